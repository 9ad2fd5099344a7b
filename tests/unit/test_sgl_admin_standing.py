"""`sgl-admin caches ensure --detach --standing`: what stands is said at once, and what does not
is said and not begun.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import detached, files, locks, paths, versions
from sgl_admin.commands import main as cli
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_USAGE
from sgl_admin.facts import devices
from sgl_admin.records import job
from sgl_admin.share import incoming
from tests.contract import validators
from tests.unit.sharing import CPU, VERSIONS, Host, admin, nothing_taken, wipe

PREP_ID = "prep-20261123T091600Z-77aa01bc"
STANDING = ("--detach", "--standing")


@pytest.fixture
def host(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(devices, "find", lambda visible: CPU)
    monkeypatch.setattr(versions, "installed", VERSIONS.get)

    def begin(*arguments: Any) -> None:
        raise AssertionError("a process is begun")

    monkeypatch.setattr(detached, "begin", begin)
    return Host(model_folder)


def standing(host: Host, *words: str) -> dict[str, Any]:
    """What the command says; nothing but that, and the lock is free again."""
    answer = admin("caches", "ensure", *host.words, *STANDING, *words)
    assert (
        (answer.code, answer.error) == (0, "") and answer.out.count("\n") == 1 and not job.running()
    )
    return answer.document


def test_where_something_is_to_be_done_its_plan_is_told_and_nothing_begun(
    host: Host, live_run: str
) -> None:
    with nothing_taken():
        said = standing(host)
    assert set(said) == {"job", "result", "attached", "plan"}
    assert (said["job"], said["result"], said["attached"]) == (None, None, False)
    plan = said["plan"]
    assert plan["dry_run"] is True and plan["would_change"] is True
    assert plan == json.loads(
        admin("caches", "ensure", *host.words, "--dry-run", "--json").out.rpartition(
            "\nRESULT_STATUS"
        )[0]
    )
    inductor = plan["stages"]["inductor"]
    assert (
        inductor["status"] == "would_run"
        and inductor["key"] == host.record().path.stem.rpartition("-")[2]
    )
    assert not paths.job(live_run).exists() and not paths.prep_result(live_run).exists()


def test_where_nothing_is_to_be_done_it_is_the_prep_that_does_nothing(
    host: Host, live_run: str
) -> None:
    host.finish()
    said = standing(host)
    assert set(said) == {"job", "result", "attached"} and said["attached"] is False
    assert said["job"]["state"] == "done" and said["job"]["exit_code"] == 0
    assert (
        said["result"]["stages"]["inductor"]["status"] == "noop"
        and said["result"]["run"]["prep_id"] == said["job"]["prep_id"]
    )
    assert files.read_json(paths.prep_result(live_run)) == said["result"]
    validators.validate_prep_result(said["result"])


def test_a_proof_that_is_to_be_made_is_something_to_do(host: Host, live_run: str) -> None:
    host.finish()
    plan = standing(host, "--probe", "always")["plan"]
    assert plan["stages"]["inductor"]["status"] == "noop" and plan["telemetry_probe"] == "would_run"
    assert not paths.job(live_run).exists()


def test_a_corrupt_record_stays_where_only_the_plan_is_told(host: Host) -> None:
    host.finish()
    record = host.record().path
    record.write_text("{")
    with nothing_taken():
        plan = standing(host)["plan"]
    assert plan["stages"]["inductor"]["status"] == "would_run"
    assert [str(record) in warning for warning in plan["warnings"]] == [True]


@pytest.mark.parametrize("words", [("--inductor", "rebuild"), ("--cuda-graph-bs", "8")])
def test_what_is_asked_anew_is_something_to_do(host: Host, words: Sequence[str]) -> None:
    host.finish()
    assert standing(host, *words)["plan"]["would_change"] is True
    assert "plan" not in standing(host)


class Running:
    """Stands for a prep of this request that runs: its record, and the lock that its process
    holds.
    """

    def __init__(self, host: Host, run_id: str) -> None:
        job.Job(run_id, host.prep().request, PREP_ID).update()
        lock = locks.try_lock(job.LOCK)
        assert lock is not None
        self.lock = lock


@pytest.mark.parametrize("finished", [True, False])
def test_a_running_prep_of_the_same_request_is_attached_to(
    host: Host, live_run: str, finished: bool
) -> None:
    if finished:
        host.finish()
    running = Running(host, live_run)
    answer = admin("caches", "ensure", *host.words, *STANDING)
    os.close(running.lock)
    said = answer.document
    assert answer.code == 0 and set(said) == {"job", "result", "attached"}
    assert (said["attached"], said["result"], said["job"]["prep_id"], said["job"]["state"]) == (
        True,
        None,
        PREP_ID,
        "running",
    )


def test_a_running_prep_of_another_request_is_told(host: Host, live_run: str) -> None:
    running = Running(host, live_run)
    answer = admin("caches", "ensure", *host.words, *STANDING, "--inductor", "rebuild")
    os.close(running.lock)
    assert answer.code == EXIT_BUSY and answer.out == "" and PREP_ID in answer.error


def test_one_that_was_killed_is_settled_first(host: Host, live_run: str) -> None:
    job.Job(live_run, host.prep().request, PREP_ID).update(stage="inductor")
    said = standing(host)
    assert said["plan"]["warnings"] == [
        f"{PREP_ID} ended without a result in stage inductor; its work is done again where it was"
        " not finished"
    ]
    assert (job.read(live_run) or {})["state"] == "interrupted"


def test_an_import_that_was_killed_is_finished_first(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.finish()
    assert host.share("export", tmp_path / "x.tar").code == 0
    wipe()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(incoming, "_place", lambda folder: 1 / 0)
        host.share("import", tmp_path / "x.tar")
    assert host.ensured()["inductor"] == "would_run", "a dry run only looks"
    assert standing(host)["result"]["stages"]["inductor"]["status"] == "noop"


def test_without_detach_or_with_a_dry_run_it_means_nothing(
    host: Host, live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        admin("caches", "ensure", *host.words, "--standing", "--dry-run")
        .out.splitlines()[-1]
        .startswith("RESULT_STATUS dry_run ")
    )
    spawned: list[str] = []
    monkeypatch.setattr(cli, "_spawn", lambda plan, prep_id, lock: spawned.append(prep_id))
    monkeypatch.setattr(cli, "_follow", lambda run_id, prep_id, as_json, show: 0)
    assert admin("caches", "ensure", *host.words, "--standing").code == 0 and len(spawned) == 1
    assert (
        admin("caches", "ensure", *host.words, "--detach").document["job"] is None
        and len(spawned) == 2
    )


def test_a_request_that_cannot_be_done_is_refused_as_ever(host: Host) -> None:
    answer = admin("caches", "ensure", *host.words, *STANDING, "--tp", "2")
    assert (
        answer.code == EXIT_USAGE and "tp 2 needs 2 devices" in answer.error and not job.running()
    )


def test_two_that_only_look_do_not_stand_in_each_others_way(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds the lock held by one that only looks waits a moment for it: there is no record of a
    prep.
    """
    lock = locks.try_lock(job.LOCK)
    assert lock is not None
    # Let go while the other waits.
    signal.signal(signal.SIGALRM, lambda *_: os.close(lock))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        assert standing(host)["plan"]["would_change"] is True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
