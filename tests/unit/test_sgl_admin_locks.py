"""Locks die with their owner; a job's record never outlives its process unsaid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths, processes
from sgl_admin.records import job
from sgl_admin.records.request import Request
from tests.contract import validators

HOLDER = """
import sys, time
from pathlib import Path
from sgl_admin.base import locks, paths
paths.LOCKS = Path(sys.argv[1])
lock = locks.try_lock("prep")
print("held" if lock is not None else "refused", flush=True)
sys.stdin.read()
"""
REQUEST = Request("/models/m", 1, {"inductor": "ensure"}, (), "auto", "auto", (), 1.0, 1.0, 30000)
PREP_ID = "prep-20261123T091600Z-77aa01bc"


@pytest.fixture
def holder(container: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process that holds the lock `prep`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(paths.LOCKS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(locks.__file__).parents[2])},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def group(container: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group that stands for a server: it ignores SIGTERM and has a child."""
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork();"
        " os.write(1, b'1'); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == b"11"
    yield process
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()


def test_one_lock_has_one_owner(holder: subprocess.Popen[str]) -> None:
    assert locks.try_lock("prep") is None
    assert job.running() is True
    other = locks.try_lock("inductor")
    assert other is not None
    os.close(other)


def test_a_look_at_a_lock_creates_no_file(container: Path) -> None:
    assert locks.held("inductor") is False and not list(paths.LOCKS.iterdir())
    paths.LOCKS.rmdir()
    assert locks.held("inductor") is False and not paths.LOCKS.exists()


def test_a_killed_owner_frees_its_lock(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    descriptor = locks.try_lock("prep")
    assert descriptor is not None
    os.close(descriptor)


def test_an_old_lock_file_is_no_lock(container: Path) -> None:
    path = paths.LOCKS / "prep.lock"
    path.touch()
    os.utime(path, (0, 0))
    assert job.running() is False


def test_waiting_for_a_lock_has_an_end(holder: subprocess.Popen[str]) -> None:
    with pytest.raises(TimeoutError, match="prep.lock is held"), locks.locked("prep", 0.0):
        pytest.fail("the lock of another was taken")
    holder.terminate()
    with locks.locked("prep", 60.0):
        assert locks.try_lock("prep") is None
    assert job.running() is False


def test_the_lock_goes_with_a_child_that_inherits_it(container: Path) -> None:
    lock = locks.try_lock("prep")
    assert lock is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=(lock,),
    )
    os.close(lock)
    try:
        assert job.running() is True, "the worker does not hold the lock of the one that began it"
    finally:
        child.communicate()
    assert job.running() is False


def record(live_run: str, **changes: Any) -> None:
    made = job.Job(live_run, REQUEST, PREP_ID)
    made.update(**changes)
    validators.validate_job(made.record)


def test_settling_ends_the_server_of_a_dead_prep(
    live_run: str, group: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_TERMINATE_S", 0.2)
    record(
        live_run,
        stage="inductor",
        server={
            "pgid": group.pid,
            "started_at": "2026-11-23T09:16:00Z",
            "start_ticks": processes.start_time(group.pid),
        },
    )
    warnings: list[str] = []
    job.settle(live_run, warnings)
    assert not processes.group_is_running(group.pid)
    settled = files.read_json(paths.job(live_run))
    assert settled is not None and (settled["state"], settled["server"]) == ("interrupted", None)
    validators.validate_job(settled)
    assert len(warnings) == 1 and PREP_ID in warnings[0] and "inductor" in warnings[0]


def test_settling_ends_the_children_that_outlived_their_server(
    live_run: str, group: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_TERMINATE_S", 0.2)
    record(
        live_run,
        server={
            "pgid": group.pid,
            "started_at": "2026-11-23T09:16:00Z",
            "start_ticks": processes.start_time(group.pid),
        },
    )
    group.kill()
    group.wait()
    assert processes.group_is_running(group.pid), "the child went with its parent"
    job.settle(live_run, [])
    assert not processes.group_is_running(group.pid)


def test_settling_leaves_a_process_that_only_has_the_same_number(
    live_run: str, group: subprocess.Popen[bytes]
) -> None:
    record(
        live_run,
        server={"pgid": group.pid, "started_at": "2026-11-23T09:16:00Z", "start_ticks": "1"},
    )
    job.settle(live_run, [])
    assert group.poll() is None
    assert (job.read(live_run) or {})["state"] == "interrupted"


@pytest.mark.parametrize(("state", "exit_code"), [("done", 0), ("failed", 6), ("interrupted", 13)])
def test_settling_leaves_what_has_ended(live_run: str, state: str, exit_code: int) -> None:
    record(live_run, state=state, exit_code=exit_code)
    before = paths.job(live_run).read_bytes()
    warnings: list[str] = []
    job.settle(live_run, warnings)
    assert paths.job(live_run).read_bytes() == before and warnings == []


def test_settling_sets_a_torn_record_aside(live_run: str) -> None:
    paths.job(live_run).parent.mkdir(parents=True)
    paths.job(live_run).write_text("{")
    warnings: list[str] = []
    job.settle(live_run, warnings)
    assert not paths.job(live_run).exists() and "corrupt-1" in warnings[0]


def test_progress_that_comes_too_fast_is_left_out(live_run: str) -> None:
    made = job.Job(live_run, REQUEST, PREP_ID)
    made.update(message="first")
    made.update(3600.0, message="second")
    assert (job.read(live_run) or {})["message"] == "first"
    made.update(message="third")
    assert (job.read(live_run) or {})["message"] == "third"


def test_a_process_is_told_by_its_start(group: subprocess.Popen[bytes]) -> None:
    ticks = processes.start_time(group.pid)
    assert ticks is not None and ticks == processes.start_time(group.pid) != processes.start_time(
        os.getpid()
    )
    os.killpg(group.pid, signal.SIGKILL)
    group.wait()
    assert processes.start_time(group.pid) is None
