"""`sgl-admin smoke`: ask the prepared server what a benchmark would, and say how it went."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, detached, files, locks
from sgl_admin.base.errors import Refused
from sgl_admin.commands import argument_types, status_codes
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_RESULT, EXIT_SIGINT, EXIT_USAGE
from sgl_admin.contract.texts import say, say_json
from sgl_admin.records import job, run, scenario
from sgl_admin.records import smokes as record
from sgl_admin.serving import benchmark_server
from sgl_admin.smoke import runner, worker

_LOOK_S, _POLL_S = 1.0, 0.1
# For the holder of the smoke lock to write what it does.
_START_PATIENCE_S = 5.0


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    actions = commands.add_parser("smoke", help="chats with the prepared server").add_subparsers(
        required=True, metavar="ACTION"
    )

    begin = actions.add_parser(
        "run",
        help="run a scenario's tests",
        epilog=(
            "A healthy server at the run's port is used; without one, the prepared server is"
            " started, and stopped in the end."
        ),
    )
    begin.set_defaults(handler=_run)
    begin.add_argument(
        "--scenario",
        metavar="FILE",
        help="the scenario as JSON, - for standard input (default: one-shot and multi-turn)",
    )
    argument_types.add_seconds(
        begin,
        "--server-timeout",
        "for a server that is started to become healthy",
        argument_types.SERVER_TIMEOUT_S,
    )
    begin.add_argument(
        "--detach",
        action="store_true",
        help="return as soon as the smoke runs; print {smoke} as JSON",
    )

    status = actions.add_parser(
        "status", help="the smoke that runs, or the last one", epilog=status_codes.MEANING
    )
    status.set_defaults(handler=_status)
    for action, what in ((begin, "the summary as JSON"), (status, "{smoke} as JSON")):
        action.add_argument("--json", action="store_true", help=f"print {what}")
    for action, when in ((begin, "with --detach: "), (status, "")):
        argument_types.add_seconds(action, "--wait", f"{when}wait so long for it to end first")


def _run(arguments: argparse.Namespace) -> int:
    text = _scenario_text(arguments.scenario)
    live = run.live()
    smoke_id = _begin(live, text, arguments.server_timeout)
    if arguments.detach:
        return _print_envelope(record.wait(live.run_id, smoke_id, arguments.wait))
    try:
        return _follow(live.run_id, smoke_id, arguments.json)
    except KeyboardInterrupt:
        raise Refused(
            EXIT_SIGINT,
            f"no longer followed; {smoke_id} goes on by itself (sgl-admin smoke status --wait 600)",
        ) from None


def _status(arguments: argparse.Namespace) -> int:
    run_id = run.live().run_id
    smoke_id = record.latest(run_id)
    found = record.wait(run_id, smoke_id, arguments.wait) if smoke_id else None
    if arguments.json:
        return _print_envelope(found)
    for line in _lines(found) if found else [f"no smoke yet in {run_id}"]:
        say(line)
    return status_codes.status_code(found)


def _scenario_text(name: str | None) -> str:
    """A valid scenario's text. Raises Refused where it is invalid or cannot be read."""
    try:
        content = (
            scenario.DEFAULT.encode()
            if name is None
            else sys.stdin.buffer.read()
            if name == "-"
            else files.read_bytes(Path(name))
        )
        text = content.decode("utf-8")
        scenario.parse(text)
    except OSError as error:
        raise Refused(EXIT_USAGE, f"the scenario cannot be read: {files.reason(error)}") from error
    except ValueError as error:
        raise Refused(EXIT_USAGE, str(error)) from error
    return text


def _begin(live: run.Run, text: str, server_timeout_s: float) -> str:
    """Begin the smoke's process; returns its id. Raises Refused: busy, no prepared server, or it
    ended at once.
    """
    deadline = time.monotonic() + _START_PATIENCE_S
    while (lock := locks.try_lock(record.LOCK)) is None:
        smoke_id = record.latest(live.run_id)
        running = record.read(live.run_id, smoke_id) if smoke_id else None
        if running is not None and job.alive(running):
            raise Refused(
                EXIT_BUSY,
                f"busy: {running['smoke_id']} (pid {running['pid']}) runs the scenario"
                f" {running['scenario']!r}; wait for it (sgl-admin smoke status --wait 600) and run"
                " this again",
            )
        # Its holder has not written its summary yet, has ended this very moment, or only looked
        # whether a smoke runs.
        if time.monotonic() > deadline:
            raise Refused(
                EXIT_BUSY,
                f"another smoke is starting on this host (its lock is held by"
                f" {locks.holder(record.LOCK)}, maybe of another container); try again",
            )
        time.sleep(_POLL_S)
    try:
        record.settle(live.run_id)
        record.sweep(live.run_id)
        _check_server(live)
        smoke_id = clock.new_id("smoke")
        order = worker.order(text, server_timeout_s)
        detached.begin(
            live.run_id,
            "sgl_admin.smoke.worker",
            smoke_id,
            order,
            lock,
            lambda: record.read(live.run_id, smoke_id) is not None,
        )
        return smoke_id
    finally:
        os.close(lock)


def _check_server(live: run.Run) -> None:
    """Raises Refused where no server can be asked: here, where nothing has begun."""
    if job.running():
        raise Refused(
            EXIT_BUSY,
            "a prep runs, whose server is its own: wait for it (sgl-admin status --watch) and run"
            " this again",
        )
    if not runner.is_served(live):
        benchmark_server.prepared(live)


def _follow(run_id: str, smoke_id: str, as_json: bool) -> int:
    """Show each test on standard error as it ends; then print the summary."""
    used, shown = None, 0
    while True:
        found = record.wait(run_id, smoke_id, _LOOK_S)
        if found is None:
            raise Refused(EXIT_NO_RESULT, f"the summary of {smoke_id} is gone; run it again")
        if found["server"]["used"] != used:
            used = found["server"]["used"]
            say(
                f"{smoke_id}: server {used} at port {found['server']['port']}",
                file=sys.stderr,
                flush=True,
            )
        ended = [test for test in found["tests"] if test["status"] != record.NOT_RUN]
        for test in ended[shown:]:
            say(f"{smoke_id}: {_test_line(test)}", file=sys.stderr, flush=True)
        shown = len(ended)
        if found["state"] != record.RUNNING:
            break
    if as_json:
        say_json(found, indent=2)
    else:
        for line in _lines(found):
            say(line)
    for kind in ("warning", "error"):
        for message in found[f"{kind}s"]:
            say(f"sgl-admin: {kind}: {message}", file=sys.stderr)
    say(f"SMOKE_SUMMARY {record.path(run_id, smoke_id)}")
    return found["exit_code"] if found["exit_code"] in range(256) else EXIT_NO_RESULT


def _print_envelope(found: dict[str, Any] | None) -> int:
    say_json({"smoke": found})
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    """The summary for a person."""
    width = max(
        (len(str(test.get("name"))) for test in found["tests"] if isinstance(test, dict)), default=0
    )
    server, counts = found["server"], found["counts"]
    ready = (
        "" if server.get("ready_after_s") is None else f", ready after {server['ready_after_s']} s"
    )
    return [
        f"{found['smoke_id']} {found['state']}: {found['scenario']}, {counts.get('passed')} of"
        f" {counts.get('total')} tests passed",
        f"server {server.get('used')} at port {server.get('port')}{ready}; model"
        f" {found.get('model')}",
        *(_test_line(test, width) for test in found["tests"]),
        *_disturbance_lines(found),
    ]


def _disturbance_lines(found: dict[str, Any]) -> Iterator[str]:
    """What the watcher saw meanwhile, where there was one; older summaries say nothing of it."""
    if found.get("undisturbed") is True:
        yield "undisturbed"
    try:
        for each in found.get("disturbances", []):
            seconds = each["end"] - each["begin"]
            yield f"disturbed from {clock.utc(each['begin'])} for {seconds:.0f} s: {each['what']}"
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError):
        yield "a disturbance whose record was changed by another program"


def _test_line(test: Any, width: int = 0) -> str:
    try:
        head = f"{test['name']:{width}} {test['status']:7}"
        if error := test.get("error"):
            return f"{head} {error['kind']} in turn {error['turn']}: {error['message']}"
        if test["status"] == record.NOT_RUN:
            return head.rstrip()
        return (
            f"{head} {test['latency_s']:.3f} s, {test['usage']['completion_tokens']} tokens,"
            f" {test['stop_reason']}"
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return "a test whose record was changed by another program"
