"""The report as the callback makes it of real playbooks: of runs that fail and of hosts that cannot be reached too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract import validators
from tests.integration.installation import Play, Site, ansible

pytestmark = pytest.mark.slow


def told(site: Site, folder: Path, playbook: str = "prep", *flags: str, **environment: str) -> tuple[Play, list[dict[str, Any]]]:
    """Run a playbook; returns what it came to, and the reports in `folder` after it."""
    play = site.play(playbook, *flags, environment={"SGL_REPORT_DIR": str(folder), **environment})
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for document in found:
        validators.validate_report(document)
        page = folder / f"{document['report_id']}.html"
        assert f"Report: {page}" in play.output and document["hosts"][0]["host"] in page.read_text()
    return play, found


def test_a_host_that_is_refused_is_told_with_its_reason(bare: Site, tmp_path: Path) -> None:
    bare.root.write_text("a file")
    play, (report,) = told(bare, tmp_path / "new" / "reports")
    (host,) = report["hosts"]
    assert play.code == 2 and report["status"] == "failed" and report["metrics_ready"] == {"ready": 0, "total": 1}
    assert (host["status"], host["failed_task"]) == ("failed", "Look at the host, and refuse what cannot work")
    assert str(bare.root) in host["problem"] and host["problem"] in play.text
    assert [step["name"] for step in host["steps"]] == ["preflight"]


def test_a_host_that_cannot_be_reached_is_told(bare: Site, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    away = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_connection": "ssh"}
    inventory.write_text(yaml.safe_dump({"sglang": {"hosts": {"away": away}}}))
    done = ansible(
        "ansible-playbook", "playbooks/prep.yml", "--inventory", str(inventory), environment={"SGL_REPORT_DIR": str(tmp_path / "reports")}
    )
    (path,) = (tmp_path / "reports").glob("*.json")
    report = json.loads(path.read_text())
    validators.validate_report(report)
    assert done.code == 4 and report["hosts"][0]["status"] == "unreachable" and report["hosts"][0]["problem"]


def test_what_is_no_prep_gets_no_page_but_an_outcome_where_one_is_wanted(bare: Site, tmp_path: Path) -> None:
    outcome = tmp_path / "outcome.json"
    play, reports = told(bare, tmp_path / "reports", "stop", SGL_REPORT_OUTCOME=str(outcome))
    assert play.code == 0 and reports == [] and not (tmp_path / "reports").exists()
    document = json.loads(outcome.read_text())
    validators.validate_report(document)
    assert document["playbook"] == "stop.yml" and document["hosts"][0]["status"] == "ok"


def test_check_mode_says_so_and_without_a_folder_there_is_no_page(bare: Site, tmp_path: Path) -> None:
    _play, (report,) = told(bare, tmp_path / "reports", "prep", "--check")
    assert report["check_mode"] is True and report["hosts"][0]["plan"] == {} and report["hosts"][0]["stages"] == {}
    play = bare.play("prep", "--check", environment={"SGL_REPORT_DIR": ""})
    assert play.code == 0 and "Report:" not in play.output


def test_a_folder_that_cannot_be_written_is_a_warning(bare: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    play = bare.play("prep", "--check", environment={"SGL_REPORT_DIR": str(tmp_path / "file" / "reports")})
    assert play.code == 0 and "no report: " in play.text and "SGL_REPORT_DIR" in play.text
