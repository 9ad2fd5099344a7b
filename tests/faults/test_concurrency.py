"""Two runs at once: they share one prep, or one wins and the other says so. Repeated
SGL_REPETITIONS times (2; 50 in the slow lane).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.fault_site import FaultSite
from tests.faults.leftovers import leftovers
from tests.integration.installation import Play, docker, ended, installation, wait_for

pytestmark = pytest.mark.slow

REPETITIONS = int(os.environ.get("SGL_REPETITIONS", "2"))


@pytest.fixture(scope="module")
def contended(fault_image: None) -> Iterator[FaultSite]:
    """An installation of which only the model is there."""
    with installation(FaultSite, container="sglang-dev-contended") as made:
        made.must_play("prep")
        yield made


def at_once(site: FaultSite, *names: str, variables: dict[str, Any] | None = None) -> list[Play]:
    """Run playbooks at the same time."""
    return [
        ended(playbook)
        for playbook in [site.start_play(name, variables=variables) for name in names]
    ]


def make_bare(site: FaultSite) -> None:
    docker("rm", "--force", site.container, check=False)
    for folder in (site.telemetry, site.profiles):
        shutil.rmtree(folder)


def check_one_prep(site: FaultSite, plays: list[Play], runs: int) -> None:
    """Both say ready, and there is one run with one result that both saw."""
    for play in plays:
        assert play.code == 0 and "Traceback" not in play.output, (
            "\n======\n".join(each.output for each in plays) + site.diagnosis()
        )
        assert '"METRICS_READY": true' in play.output and site.run_id in play.output
    assert len(list((site.telemetry / "container_runs").glob("*.json"))) == runs, (
        "a run was begun and given up"
    )
    assert site.result()["telemetry_probe"]["ok"] is True and site.result()["status"] == "ok"
    assert leftovers(site) == []


@pytest.mark.repeated
@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_two_identical_preps(contended: FaultSite, repetition: int) -> None:
    """Of a bare host, and of one whose container is outdated: neither may remove what the other
    made.
    """
    make_bare(contended)
    if repetition % 2 == 0:
        check_one_prep(contended, at_once(contended, "prep", "prep"), runs=1)
    else:
        contended.must_play("start")
        check_one_prep(
            contended,
            at_once(contended, "prep", "prep", variables={"sgl_tsdb_retention_size": "1GB"}),
            runs=2,
        )


@pytest.mark.repeated
@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_start_and_stop(contended: FaultSite, repetition: int) -> None:
    """Whichever wins, the host is in one state or the other; and who did not get what it wanted
    says why.
    """
    contended.must_play("stop" if repetition % 2 == 0 else "start")
    start, stop = at_once(contended, "start", "stop")
    said = f"{start.output}\n======\n{stop.output}"
    assert "Traceback" not in said
    if contended.inspect() is None:
        assert stop.code == 0 and not contended.pointer.exists(), said
        assert (
            start.code == 0
            or f"container {contended.container} (absent) has no live run" in start.text
        ), said
    else:
        wait_for(lambda: contended.manifest_module("--check")["live"], "the run that was started")
        assert start.code == 0, said
        assert stop.code == 0 or "is live: stop it" in stop.text, said
    assert leftovers(contended) == []


def test_another_request_while_a_prep_runs(contended: FaultSite) -> None:
    """The answer names who is busy with what; and a changed option does not end the prep."""
    contended.must_play("start")
    done = contended.ensure(
        "--probe", "always", "--detach", environment={"SGL_TEST_SERVER_READY_S": "never"}
    )
    assert done.returncode == 0, done.stderr
    job = contended.await_server()
    try:
        other = contended.play("prep", variables={"sgl_stages": {"inductor": "rebuild"}})
        assert other.code != 0
        for words in ("busy", job["prep_id"], f"pid {job['pid']}", "--probe=always"):
            assert words in other.text, other.output
        recreate = contended.play("start", variables={"sgl_tsdb_retention_size": "2GB"})
        assert recreate.code != 0
        for words in (
            "must be recreated",
            job["prep_id"],
            f"pid {job['pid']}",
            "playbooks/stop.yml",
        ):
            assert words in recreate.text, recreate.output
        assert (
            contended.job()["prep_id"] == job["prep_id"] and contended.job()["state"] == "running"
        )
        refused = contended.play("stop")
        assert refused.code == 2 and job["prep_id"] in refused.text, refused.output
        assert contended.job()["state"] == "running"
    finally:
        contended.must_play("stop", variables={"sgl_stop_force": True})
    assert leftovers(contended) == []
