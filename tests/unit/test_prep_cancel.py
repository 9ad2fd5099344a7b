"""`sgl-admin prep cancel`: it ends the prep that runs, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action import sgl_prep
from ansible_collections.slice_bench.sglang.plugins.callback import report as callback

from sgl_admin.base import files, paths, processes
from sgl_admin.commands import main as cli
from sgl_admin.commands import prep as prep_cli
from sgl_admin.records import job
from tests.contract import validators
from tests.doubles.prep_action import PrepAction
from tests.unit.test_prep_action import envelope

# Stands for the prep's own process, as far as its lock and signals go: it says on standard output
# that it has the lock, and at its end writes the record that it is given.
HOLDER = """
import fcntl, os, pathlib, signal, sys
lock, record, last, deaf = sys.argv[1:]
descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(descriptor, fcntl.LOCK_EX)
def end(*_):
    pathlib.Path(record).write_text(last)
    sys.exit(14)
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else end)
print("held", flush=True)
sys.stdin.read()
"""
Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin(live_run: str) -> Iterator[Begin]:
    """Begin a process that holds the prep lock; `recorded` has the run's record name it."""
    begun: list[subprocess.Popen[str]] = []

    def start(deaf: bool = False, recorded: bool = True) -> subprocess.Popen[str]:
        record = {
            **validators.example("job"),
            "arguments": [],
            "state": "running",
            "exit_code": None,
        }
        last = {**record, "state": "interrupted", "exit_code": 14, "message": "told to end"}
        process = subprocess.Popen(
            [
                sys.executable, "-c", HOLDER, str(paths.LOCKS / "prep.lock"),
                str(paths.job(live_run)), json.dumps(last), "deaf" * deaf,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        if recorded:
            ticks = processes.start_time(process.pid)
            files.write_json(
                paths.job(live_run), {**record, "pid": process.pid, "pid_start_ticks": ticks}
            )
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_prep_is_ended_in_order_and_its_last_record_is_shown(
    begin: Begin, capsys: pytest.CaptureFixture[str]
) -> None:
    process = begin()
    assert cli.main(["prep", "cancel", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["cancelled"] is True
    assert (answer["job"]["state"], answer["job"]["exit_code"]) == ("interrupted", 14)
    assert process.wait(5) == 14 and not job.running()


def test_where_no_prep_runs_there_is_nothing_to_do(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prep", "cancel"]) == 0
    assert capsys.readouterr().out == f"no prep runs in {live_run}\n"
    # A record that a killed prep left names a process that is another one by now.
    stale = {
        "arguments": [],
        "state": "running",
        "pid": os.getpid(),
        "pid_start_ticks": "1",
        "exit_code": None,
    }
    files.write_json(paths.job(live_run), {**validators.example("job"), **stale})
    assert cli.main(["prep", "cancel"]) == 0


def test_a_prep_that_does_not_end_is_busy(begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    process = begin(deaf=True)
    assert cli.main(["prep", "cancel", "--timeout", "0.2"]) == 5
    assert f"(pid {process.pid}) was told to end and still runs" in capsys.readouterr().err


def test_a_process_of_another_container_is_not_ended(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prep_cli, "_PATIENCE_S", 0.0)
    process = begin(recorded=False)
    assert cli.main(["prep", "cancel"]) == 5
    assert "cancel it in the container that it runs in" in capsys.readouterr().err
    assert process.poll() is None


def test_without_a_live_run_there_is_none_to_cancel(container: Path) -> None:
    assert cli.main(["prep", "cancel"]) == 4


def test_a_prep_that_begins_says_how_to_watch_and_to_cancel_it() -> None:
    said: list[str] = []
    action = PrepAction(
        [envelope("running", None), envelope("done", 0)], {"model": "/models/m"}, False
    )
    action._display.display = said.append
    action.run(None, {"inventory_hostname": "gpu1"})
    prep_id = validators.example("job")["prep_id"]
    assert said[0] == f"gpu1: {sgl_prep.goes_on(prep_id, 'sglang-dev')}"
    assert "`docker exec sglang-dev sgl-admin prep cancel` ends it" in said[0]
    quick = PrepAction([envelope("done", 0)], {"model": "/models/m"}, False)
    quick._display.display = said.append
    quick.run(None, {})
    assert len(said) == 2, "one that has ended already needs no such words"


@pytest.mark.parametrize("ended", [True, False])
def test_ctrl_c_says_what_goes_on(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible leaves by sys.exit then, and no result of the host has come."""
    said: list[str] = []

    class Named:
        action, name, _uuid, run_once, any_errors_fatal = "sgl_prep", "x", "1", False, False
        _role, delegate_to = None, None

        def get_name(self) -> str:
            return "gpu1"

    class Result:
        task, host, result = Named(), Named(), {"changed": False}

    at_exit: list[Any] = []
    monkeypatch.setattr(callback.atexit, "register", at_exit.append)
    monkeypatch.setattr(callback.context, "CLIARGS", {})
    made = callback.CallbackModule()
    made._display = type("Display", (), {"display": staticmethod(said.append)})()
    made.v2_runner_on_start(Named(), Named())
    if ended:
        made.v2_runner_on_ok(Result())
    for call in at_exit:
        call()
    assert len(said) == (0 if ended else 1)
    if not ended:
        assert said[0].startswith("A prep that has begun on gpu1 goes on by itself")
