"""The report as the callback makes it of real playbooks: of runs that fail and of hosts that cannot
be reached too.

From `rolled_out` on, what runs is the real playbooks/prep.yml on hosts that are doubles
(tests/doubles/fleet): that needs no Docker.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract import validators
from tests.doubles.fleet.checkout import FleetCheckout, Ran
from tests.integration.installation import Play, Site, ansible

pytestmark = pytest.mark.slow


def told(
    site: Site, folder: Path, playbook: str = "prep", *flags: str, **environment: str
) -> tuple[Play, list[dict[str, Any]]]:
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
    assert (
        play.code == 2
        and report["status"] == "failed"
        and report["metrics_ready"] == {"ready": 0, "total": 1}
    )
    assert (host["status"], host["failed_task"]) == (
        "failed",
        "Inspect the host, and refuse what cannot work",
    )
    assert str(bare.root) in host["problem"] and host["problem"] in play.text
    assert [step["name"] for step in host["steps"]] == ["preflight"]


def test_a_host_that_cannot_be_reached_is_told(bare: Site, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    away = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_connection": "ssh"}
    inventory.write_text(yaml.safe_dump({"sglang": {"hosts": {"away": away}}}))
    done = ansible(
        "ansible-playbook",
        "playbooks/prep.yml",
        "--inventory",
        str(inventory),
        environment={"SGL_REPORT_DIR": str(tmp_path / "reports")},
    )
    (path,) = (tmp_path / "reports").glob("*.json")
    report = json.loads(path.read_text())
    validators.validate_report(report)
    assert (
        done.code == 4
        and report["hosts"][0]["status"] == "unreachable"
        and report["hosts"][0]["problem"]
    )


def test_what_is_no_prep_gets_no_page_but_an_outcome_where_one_is_wanted(
    bare: Site, tmp_path: Path
) -> None:
    outcome = tmp_path / "outcome.json"
    play, reports = told(bare, tmp_path / "reports", "stop", SGL_REPORT_OUTCOME=str(outcome))
    assert play.code == 0 and reports == [] and not (tmp_path / "reports").exists()
    document = json.loads(outcome.read_text())
    validators.validate_report(document)
    assert document["playbook"] == "stop.yml" and document["hosts"][0]["status"] == "ok"


def test_check_mode_says_so_and_without_a_folder_there_is_no_page(
    bare: Site, tmp_path: Path
) -> None:
    _play, (report,) = told(bare, tmp_path / "reports", "prep", "--check")
    assert (
        report["check_mode"] is True
        and report["hosts"][0]["plan"] == {}
        and report["hosts"][0]["stages"] == {}
    )
    play = bare.play("prep", "--check", environment={"SGL_REPORT_DIR": ""})
    assert play.code == 0 and "Report:" not in play.output


def test_a_folder_that_cannot_be_written_is_a_warning(bare: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    play = bare.play(
        "prep", "--check", environment={"SGL_REPORT_DIR": str(tmp_path / "file" / "reports")}
    )
    assert play.code == 0 and "no report: " in play.text and "SGL_REPORT_DIR" in play.text


# --- rolled out to a fleet ------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path) -> FleetCheckout:
    return FleetCheckout(tmp_path)


def rolled_out(
    fleet: FleetCheckout, hosts: dict[str, dict[str, Any]], *flags: str, **variables: Any
) -> tuple[Ran, dict[str, Any]]:
    """A run on these hosts, and its report."""
    fleet.hosts(hosts, **variables)
    ran = fleet.run(*flags)
    assert ran.report is not None and ran.page is not None, ran.output
    validators.validate_report(ran.report)
    return ran, ran.report


def said(ran: Ran) -> list[str]:
    """The lines between the recap and the report's name."""
    lines = ran.output.split("PLAY RECAP")[1].splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if line.startswith("Report: "))
    return [line for line in lines[:end] if line and "unreachable=" not in line]


FAILED = "stage moe_tune failed, tuner_failed: out of memory"


def test_one_host_makes_it_and_all_are_ready(fleet: FleetCheckout) -> None:
    ran, report = rolled_out(fleet, {"b": {}, "a": {}, "c": {}})
    assert ran.code == 0 and said(ran) == ["METRICS_READY: 3 of 3 hosts"]
    assert [host["host"] for host in report["hosts"]] == [
        "b",
        "a",
        "c",
    ], "in the order of the inventory"
    (group,) = report["fleet"]["groups"]
    assert group["makers"] == ["b"] and group["stages"]["moe_tune"] == {
        "made_by": ["b"], "failed_on": [], "taken_by": ["a", "c"], "seconds": 100.0,
    }  # fmt: skip
    assert {
        taken["from_host"] for host in report["hosts"][1:] for taken in host["shared"]["took"]
    } == {"b"}
    assert ran.page is not None and 'id="fleet"' in ran.page
    again = fleet.run()
    assert (
        again.report is not None
        and again.report["fleet"]["tuning_s"] == 0
        and said(again) == ["METRICS_READY: 3 of 3 hosts"]
    )


def test_a_host_that_has_it_gives_it_when_another_asks(fleet: FleetCheckout) -> None:
    """Alone, a host shares with no other; what it gives later is done on it, in a task of the host
    that asks.
    """
    rolled_out(fleet, {"a": {}})
    ran, report = rolled_out(fleet, {"a": {}, "b": {}})
    a, b = report["hosts"]
    assert ran.code == 0 and report["fleet"]["tuning_s"] == 0
    assert [given["stage"] for given in a["shared"]["gave"]] == ["moe_tune", "inductor"] and b[
        "shared"
    ]["gave"] == []
    assert [(taken["stage"], taken["from_host"]) for taken in b["shared"]["took"]] == [
        ("moe_tune", "a"),
        ("inductor", "a"),
    ]
    _, report = rolled_out(fleet, {"c": {}}, sgl_cache_share="relay")
    assert [taken["from_host"] for taken in report["hosts"][0]["shared"]["took"]] == [
        None,
        None,
    ], "given before this run"


def test_a_host_that_is_away_when_it_shall_give_is_not_the_one_that_asked(
    fleet: FleetCheckout,
) -> None:
    rolled_out(fleet, {"a": {}})
    _, report = rolled_out(fleet, {"a": {"share_unreachable": "no route to host"}, "b": {}})
    a, b = report["hosts"]
    assert (a["status"], b["status"]) == ("ok", "failed") and "no route to host" in b["problem"]
    assert (
        report["fleet"]["metrics_ready"] == {"ready": 1, "of": 2}
        and [step["status"] for step in b["steps"]][-1] == "failed"
    )


def test_hosts_that_are_refused_or_away_are_counted_and_told_with_their_reasons(
    fleet: FleetCheckout,
) -> None:
    ran, report = rolled_out(
        fleet,
        {
            "a": {},
            "b": {"refused": "port 9090 is taken\nby prometheus"},
            "c": {"unreachable": "no route to host"},
        },
    )
    assert ran.code == 4 and report["fleet"]["metrics_ready"] == {"ready": 1, "of": 3}
    head, refused, away = said(ran)
    assert (head, refused) == ("METRICS_READY: 1 of 3 hosts", "b: failed: port 9090 is taken")
    assert away.startswith("c: unreachable: ") and away.endswith("no route to host")
    assert [
        (failure["host"], failure["unreachable"]) for failure in report["fleet"]["failures"]
    ] == [("b", False), ("c", True)]


def test_there_is_a_report_where_no_host_came_as_far_as_the_prep(fleet: FleetCheckout) -> None:
    ran, _report = rolled_out(fleet, {"a": {"refused": "x"}, "b": {"refused": "y"}})
    assert ran.code == 2 and said(ran) == [
        "METRICS_READY: 0 of 2 hosts",
        "a: failed: x",
        "b: failed: y",
    ]


def test_where_the_maker_fails_the_next_host_goes_on_with_what_it_finished(
    fleet: FleetCheckout,
) -> None:
    ran, report = rolled_out(fleet, {"a": {"tuner_fails": True}, "b": {}, "c": {}})
    assert said(ran) == ["METRICS_READY: 2 of 3 hosts", f"a: failed: {FAILED}"]
    (group,) = report["fleet"]["groups"]
    assert group["stages"]["moe_tune"] == {
        "made_by": ["b"],
        "failed_on": ["a"],
        "taken_by": ["b", "c"],
        "seconds": 100.0,
    }
    assert report["fleet"]["tuning_s"] == 120.0 and group["makers"] == [
        "a",
        "b",
    ], "what the first one compiled counts"
    took = [
        (taken["stage"], taken["finished"], taken["from_host"])
        for taken in report["hosts"][2]["shared"]["took"]
    ]
    assert took == [("moe_tune", False, "a"), ("inductor", True, "a"), ("moe_tune", True, "b")]


def test_where_the_canary_fails_the_others_are_told_as_not_begun(fleet: FleetCheckout) -> None:
    hosts: dict[str, dict[str, Any]] = {
        "a": {"tuner_fails": True},
        "b": {"ready_before": True},
        "c": {},
    }
    ran, report = rolled_out(fleet, hosts, sgl_canary=1)
    why = "not finished: its batch was not begun, because hosts before it failed"
    assert said(ran) == [
        "METRICS_READY: 0 of 3 hosts",
        f"a: failed: {FAILED}",
        f"b: {why}",
        f"c: {why}",
    ]
    assert report["fleet"]["not_finished"] == ["b", "c"] and report["metrics_ready"] == {
        "ready": 0,
        "total": 3,
    }


def test_healthy_hosts_of_a_batch_that_max_fail_percentage_stopped_are_told(
    fleet: FleetCheckout,
) -> None:
    hosts: dict[str, dict[str, Any]] = {"a": {}, "b": {"prep_refused": "busy"}, "c": {}}
    ran, report = rolled_out(fleet, hosts, sgl_max_fail_percentage=0, sgl_batch=2)
    after = (
        "stopped after the task 'Warm the caches and prove the metrics', because other hosts failed"
    )
    assert said(ran)[1:3] == ["b: failed: busy", f"a: not finished: {after}"]
    assert (
        report["fleet"]["not_finished"] == ["a", "c"]
        and "its batch was not begun" in report["hosts"][2]["unfinished"]
    )


def test_a_failure_that_is_one_of_all_hosts_leaves_the_others_unfinished(
    fleet: FleetCheckout,
) -> None:
    hosts = {"a": {}, "b": {"refused": "x"}, "c": {}}
    ran, report = rolled_out(fleet, hosts, sgl_max_fail_percentage=10)
    failed = {failure["host"] for failure in report["fleet"]["failures"]}
    assert ran.code == 2 and failed == {"a", "b"}
    assert report["fleet"]["not_finished"] == ["c"] and report["fleet"]["metrics_ready"] == {
        "ready": 0,
        "of": 3,
    }


def test_of_one_host_nothing_more_is_said(fleet: FleetCheckout) -> None:
    ran, report = rolled_out(fleet, {"a": {}})
    assert said(ran) == [] and report["fleet"]["metrics_ready"] == {"ready": 1, "of": 1}
    ran, report = rolled_out(fleet, {"a": {}, "b": {}}, "--limit", "b")
    assert said(ran) == [] and report["fleet"]["metrics_ready"] == {"ready": 1, "of": 1}


# --- the front's command --------------------------------------------------------------------------


def front(fleet: FleetCheckout, *words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python -m slice_bench.cli fleet`."""
    process = fleet.front("fleet", *words, cwd=cwd)
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def test_the_front_ends_with_the_summary_and_an_exit_code(
    fleet: FleetCheckout, tmp_path: Path
) -> None:
    """From a folder that is not the checkout, whose paths are the caller's."""
    inventory = fleet.hosts({"a": {}, "b": {"refused": "x"}})
    code, out, error = front(fleet, "-i", inventory.name, cwd=tmp_path)
    assert (code, error) == (1, "") and "TASK [Sum up]" in out
    assert (
        out.splitlines()[-2:] == ["METRICS_READY: 1 of 2 hosts", "b: failed: x"]
        and out.count("METRICS_READY: 1 of 2") == 1
    )
    code, out, error = front(
        fleet, "-i", str(inventory), "--limit", "a", "--json", "-e", "x=1", "--forks", "3"
    )
    assert code == 0 and "TASK [Sum up]" in error and error.endswith("METRICS_READY: 1 of 1 host\n")
    summary = json.loads(out)
    assert (summary["exit_code"], summary["metrics_ready"], summary["failures"]) == (
        0,
        {"ready": 1, "of": 1},
        [],
    )
    (report,) = (tmp_path / "reports").glob(f"{summary['report_id']}.json")
    code, out, error = front(fleet, "--report", str(report), "--json")
    assert (code, json.loads(out)) == (0, summary)


def test_the_fronts_check_fails_only_where_something_would(fleet: FleetCheckout) -> None:
    """In batches, too: each is begun, so no host is left out."""
    inventory = fleet.hosts({"a": {}, "b": {"refused": "x"}, "c": {}}, sgl_canary=1)
    assert front(fleet, "-i", str(inventory), "--check", "--limit", "a,c")[0] == 0
    code, out, _ = front(fleet, "-i", str(inventory), "--check")
    assert code == 1 and out.splitlines()[-2:] == [
        "METRICS_READY: 0 of 3 hosts, as they were found (check mode changes nothing)",
        "b: failed: x",
    ]
    assert not list(fleet.states.glob("a/prep-*"))


@pytest.mark.parametrize(
    "words",
    [["--limit", "nobody"], ["-i", "elsewhere,", "--limit", "elsewhere"], ["--no-such-option"]],
)
def test_where_nothing_could_be_run_the_front_says_so(
    fleet: FleetCheckout, words: list[str]
) -> None:
    inventory = fleet.hosts({"a": {}})
    code, _, error = front(fleet, *(words if "-i" in words else ["-i", str(inventory), *words]))
    assert code == 2 and error.splitlines()[-1].startswith("ERROR: nothing was run: ")


@pytest.mark.parametrize("whom", ["everything, as a terminal does", "the front alone"])
def test_the_front_can_be_interrupted(fleet: FleetCheckout, whom: str) -> None:
    inventory = fleet.hosts({"a": {"hangs": True}})
    process = fleet.front("fleet", "-i", str(inventory))
    deadline = time.monotonic() + 60
    while not (fleet.states / "a" / "hangs").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    if whom == "the front alone":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "ask the same again to attach" in error
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_a_pipe_is_told_comes_while_the_prep_runs(
    fleet: FleetCheckout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ansible itself flushes when it begins a task, and when it ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = fleet.front("fleet", "-i", str(fleet.hosts({"a": {"hangs": True}})))
    assert process.stdout is not None
    said = b""
    try:
        while b"the prep goes on" not in said:
            ready, _, _ = select.select([process.stdout], [], [], 30)
            assert ready and process.poll() is None, said.decode()
            said += os.read(process.stdout.fileno(), 1 << 16)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)


def test_a_report_is_signed_with_the_key_that_signs_caches(
    fleet: FleetCheckout, tmp_path: Path
) -> None:
    key, public = str(tmp_path / "lab.key"), str(tmp_path / "lab.pub")
    subprocess.run(
        ["minisign", "-G", "-W", "-s", key, "-p", public], check=True, capture_output=True
    )
    reports = Path(fleet.environment["SGL_REPORT_DIR"])
    ran, _report = rolled_out(fleet, {"a": {}}, sgl_cache_sign_key="{{ lab }}.key", lab=key[:-4])
    assert ran.code == 0, ran.output
    [page] = reports.glob("*.json")
    verify = ["minisign", "-V", "-p", public, "-m", str(page)]
    assert subprocess.run(verify, check=False, capture_output=True).returncode == 0
    page.write_text(page.read_text().replace('"ready": 1', '"ready": 2'))
    assert subprocess.run(verify, check=False, capture_output=True).returncode != 0

    (tmp_path / "none").write_text("no key")
    ran, _report = rolled_out(fleet, {"a": {}}, sgl_cache_sign_key=str(tmp_path / "none"))
    assert ran.code == 0 and "is not signed: minisign: " in ran.output
    ran, _report = rolled_out(fleet, {"a": {}})
    assert ran.code == 0 and not list(reports.glob("*.minisig"))
