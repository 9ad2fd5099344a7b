"""The command line of sgl-admin."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from sgl_admin import __version__
from sgl_admin.base import clock, detached, files, locks, paths, rights
from sgl_admin.base.errors import Refused
from sgl_admin.commands import argument_types, ready, status_codes
from sgl_admin.commands import check as check_cli
from sgl_admin.commands import perf as perf_cli
from sgl_admin.commands import prep as prep_cli
from sgl_admin.commands import prune as prune_cli
from sgl_admin.commands import request as request_cli
from sgl_admin.commands import server as server_cli
from sgl_admin.commands import share as share_cli
from sgl_admin.commands import smoke as smoke_cli
from sgl_admin.contract.exit_codes import (
    EXIT_BUSY,
    EXIT_NO_LIVE_RUN,
    EXIT_NO_RESULT,
    EXIT_OK,
    EXIT_PERMISSION,
    EXIT_PROOF_FAILED,
    EXIT_SIGINT,
    EXIT_USAGE,
)
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.contract.texts import say, say_json, unwritten
from sgl_admin.facts import model
from sgl_admin.perf import windows
from sgl_admin.prep import worker
from sgl_admin.prep.arguments import refuse_unknown
from sgl_admin.prep.execute import Execution, confirm_proof
from sgl_admin.prep.plan import Plan, plan_prep
from sgl_admin.records import caches, job, run, standalone
from sgl_admin.records.request import Request
from sgl_admin.serving import benchmark_server, services
from sgl_admin.share import incoming

_POLL_S = 0.1
# How often a prep that is watched is looked at, and the longest silence.
_LOOK_S, _HEARTBEAT_S = 1.0, 10.0
# For the holder of the prep lock to write what it does.
_START_PATIENCE_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command; not 0 where what it says could not be written."""
    code = _run(argv)
    if (problem := unwritten()) is not None:
        _complain(EXIT_NO_RESULT, problem)
        return code or EXIT_NO_RESULT
    return code


def _run(argv: Sequence[str] | None) -> int:
    rights.begin()
    arguments = _parser().parse_args(argv)
    try:
        if arguments.root:
            standalone.begin(arguments.root)
        return int(arguments.handler(arguments))
    except Refused as refusal:
        return _complain(refusal.exit_code, str(refusal))
    except run.NoLiveRun as error:
        return _complain(EXIT_NO_LIVE_RUN, str(error))
    except model.UnusableModel as error:
        return _complain(EXIT_USAGE, str(error))
    except PermissionError as error:
        # A write to a file that is open names none.
        whose = f": it must belong to {os.getuid()}:{os.getgid()}, this container's user"
        named = f"no permission for {error.filename}{whose}" if error.filename else None
        return _complain(EXIT_PERMISSION, named or files.reason(error))
    except OSError as error:
        return _complain(EXIT_NO_RESULT, files.reason(error))
    except KeyboardInterrupt:
        return _complain(
            EXIT_SIGINT,
            "no longer followed; a prep goes on by itself (sgl-admin status --watch follows it,"
            " sgl-admin prep cancel ends it)",
        )


def _complain(exit_code: int, message: str) -> int:
    say(f"sgl-admin: {message}", file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sgl-admin",
        description="Warms and inspects the kernel caches of this SGLang container.",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help=(
            "work on this machine, without the container, and keep caches and records below this"
            " folder"
        ),
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    group = commands.add_parser("caches", help="the kernel caches under /profiles").add_subparsers(
        required=True, metavar="ACTION"
    )

    _add_ensure(group)
    share_cli.register(group)
    inspect = group.add_parser("inspect", help="what the caches hold")
    inspect.set_defaults(handler=_inspect)
    inspect.add_argument("--json", action="store_true", help="print it as JSON")
    _add_status(commands)
    perf_cli.add_parser(commands).set_defaults(handler=_perf)
    prep_cli.register(commands)
    prune_cli.register(commands)
    ready.register(commands)
    server_cli.register(commands)
    check_cli.register(commands)
    smoke_cli.register(commands)

    commands.add_parser("version", help="the version of sgl-admin").set_defaults(handler=_version)
    return parser


def _add_ensure(group: Any) -> None:
    ensure = group.add_parser(
        "ensure", help="warm what is not warm, and prove that the server's metrics arrive",
        epilog="Without a stage flag every stage is ensured; with any, the others are skipped.",
    )  # fmt: skip
    ensure.set_defaults(handler=_ensure)
    request_cli.add_arguments(ensure)
    ensure.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    ensure.add_argument(
        "--standing",
        action="store_true",
        help=(
            "with --detach: where something is to be done, print the plan among them, and do"
            " nothing"
        ),
    )
    ensure.add_argument(
        "--json", action="store_true", help="print the result as JSON before the RESULT lines"
    )
    ensure.add_argument(
        "--detach",
        action="store_true",
        help="return as soon as the prep runs; print {job, result, attached} as JSON",
    )
    argument_types.add_seconds(ensure, "--wait", "with --detach: wait so long for the end first")


def _add_status(commands: Any) -> None:
    status = commands.add_parser(
        "status",
        help="the prep that runs, or the last one, and the services that are dead",
        epilog=(
            f"{status_codes.MEANING} {EXIT_PROOF_FAILED} too where it ended well and a"
            " service is dead that METRICS_READY stands on."
        ),
    )
    status.set_defaults(handler=_status)
    status.add_argument("--json", action="store_true", help="print {job, result, services} as JSON")
    status.add_argument(
        "--watch",
        action="store_true",
        help="show its progress until it ends",
    )
    argument_types.add_seconds(status, "--wait", "wait so long for it to end first")


def _ensure(arguments: argparse.Namespace) -> int:
    live = run.live()
    request = request_cli.of(arguments, live)
    _check_ownership()
    if arguments.dry_run:
        return _print_dry_run(_plan(live, request).to_json(), arguments.json)
    standing = arguments.detach and arguments.standing
    prep_id, plan = _begin_or_attach(live, request, standing)
    if prep_id is None:
        assert plan is not None
        return _print_envelope(live.run_id, None, attached=False, plan=plan.to_json())
    cost = {} if plan is None or plan.cost is None else {"cost": plan.cost}
    if arguments.detach:
        record = _wait(live.run_id, arguments.wait)
        return _print_envelope(live.run_id, record, attached=plan is None, **cost)
    if cost:
        say(f"{prep_id} {cost['cost']}", file=sys.stderr)
    return _follow(live.run_id, prep_id, arguments.json, _print_result)


def _perf(arguments: argparse.Namespace) -> int:
    live = run.live()
    request = perf_cli.request(live, arguments.profile, arguments.rebuild)
    _check_ownership()
    prep_id, _plan_of_it = _begin_or_attach(live, request)
    return _follow(live.run_id, str(prep_id), arguments.json, perf_cli.show)


def _begin_or_attach(
    live: run.Run, request: Request, standing: bool = False
) -> tuple[str | None, Plan | None]:
    """The id of the prep that does this request, and its plan; no plan where it was running
    already. Raises Refused (busy) when another one runs.

    With `standing`, no id where the plan has something to do: then nothing was begun.
    """
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        with locks.tried(job.LOCK) as lock:
            if lock is not None:
                return _begin(live, request, lock, standing)
        record = job.read(live.run_id)
        if record is not None and job.alive(record):
            return _attach(record, request), None
        # Its holder has not written its record yet, has ended this very moment, or only looked
        # whether a prep runs.
        if time.monotonic() > deadline:
            raise Refused(
                EXIT_BUSY,
                f"another prep is starting on this host (its lock is held by"
                f" {locks.holder(job.LOCK)}, maybe of another container); try again",
            )
        time.sleep(_POLL_S)


def _begin(live: run.Run, request: Request, lock: int, standing: bool) -> tuple[str | None, Plan]:
    """With the prep lock held: do the prep at once where nothing is to be done, or else begin its
    process; returns its id and its plan.

    With `standing` no process is begun, and there is no id.
    """
    warnings: list[str] = []
    job.settle(live.run_id, warnings)
    incoming.settle(warnings)
    benchmark_server.settle_dead(live.run_id)
    plan = confirm_proof(_plan(live, request, warnings))
    worker.sweep(live.run_id)
    if standing and not plan.nothing_to_do:
        return None, plan
    prep_id = clock.new_id("prep")
    if plan.nothing_to_do:
        Execution(plan, job.Job(live.run_id, request, prep_id, plan.shown_request)).run()
    else:
        _spawn(plan, prep_id, lock)
    return prep_id, plan


def _plan(live: run.Run, request: Request, warnings: Iterable[str] = ()) -> Plan:
    """What is to be done, once it is known that the server takes its arguments. Raises Refused."""
    plan = plan_prep(live, request, warnings)
    refuse_unknown(plan)
    return plan


def _spawn(plan: Plan, prep_id: str, lock: int) -> None:
    run_id = plan.run.run_id

    def recorded() -> bool:
        record = job.read(run_id)
        return record is not None and record["prep_id"] == prep_id

    detached.begin(
        run_id,
        "sgl_admin.prep.worker",
        prep_id,
        worker.order(plan.request, plan.warnings),
        lock,
        recorded,
    )


def _check_ownership() -> None:
    """What another uid owns would stop the prep in its middle: find it before anything is done."""
    for folder in (
        paths.TELEMETRY,
        paths.RUNS,
        paths.LOGS,
        paths.PROFILES,
        *(paths.PROFILES / cache for cache in caches.CACHES),
    ):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise Refused(
                EXIT_PERMISSION,
                f"{paths.to_host(folder) or folder} cannot be written by"
                f" {os.getuid()}:{os.getgid()}: chown -R {os.getuid()}:{os.getgid()}"
                f" {paths.to_host(folder) or folder}",
            )


def _attach(record: dict[str, Any], request: Request) -> str:
    """The id of the running prep when it is the same request. Raises Refused (busy) when it is
    another.
    """
    if record["arguments_digest"] != request.digest:
        raise Refused(
            EXIT_BUSY,
            f"busy: {record['prep_id']} (pid {record['pid']}) runs with other arguments:"
            f" {' '.join(map(str, record['arguments']))}; wait for it (sgl-admin status --watch)"
            " and run this again",
        )
    return str(record["prep_id"])


def _wait(run_id: str, seconds: float) -> dict[str, Any] | None:
    """The job's record once it has ended, or as it is after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended = not job.running()
        record = job.read(run_id)
        if ended and record is not None and record["state"] == job.RUNNING:
            # Its process was killed.
            with locks.tried(job.LOCK) as lock:
                if lock is not None:
                    job.settle(run_id, [])
            record = job.read(run_id)
        if record is None or record["state"] != job.RUNNING or time.monotonic() >= deadline:
            return record
        time.sleep(_POLL_S)


def _watch(run_id: str, prep_id: str, stream: TextIO) -> dict[str, Any] | None:
    """Show the prep's progress, a line at each change and one each _HEARTBEAT_S seconds, until it
    ends; returns its record.
    """
    shown, shown_at = None, 0.0
    while True:
        record = _wait(run_id, _LOOK_S)
        if record is None or record["prep_id"] != prep_id or record["state"] != job.RUNNING:
            return record
        doing = record["stage"], record["message"]
        if doing != shown or time.monotonic() - shown_at >= _HEARTBEAT_S:
            shown, shown_at = doing, time.monotonic()
            say(job.describe(record), file=stream, flush=True)


def _follow(
    run_id: str,
    prep_id: str,
    as_json: bool,
    show: Callable[[str, dict[str, Any], bool, int], int],
) -> int:
    """Show progress on standard error until the prep ends; then its result."""
    record = _watch(run_id, prep_id, sys.stderr)
    result = _result_of(run_id, prep_id)
    # A prep that ended between its result and its last record has no exit code: the next one finds
    # what is done.
    if result is None or record is None or record["exit_code"] in (None, EXIT_NO_RESULT):
        message = record["message"] if record else "its record is gone"
        log = paths.to_host(paths.log(run_id))
        return _complain(
            EXIT_NO_RESULT,
            f"{prep_id} ended without a result: {message}; the log is {log}; run it again",
        )
    return show(run_id, result, as_json, int(record["exit_code"]))


def _result_of(run_id: str, prep_id: str) -> dict[str, Any] | None:
    """The prep's result; None where it wrote none, or what is there cannot be read: the next prep
    sets that aside.
    """
    result = files.read_valid(paths.prep_result(run_id), RESULT_SHAPE)
    return result if result and result["run"].get("prep_id") == prep_id else None


def _print_result(run_id: str, result: dict[str, Any], as_json: bool, exit_code: int) -> int:
    if as_json:
        say_json(result, indent=2)
    else:
        for name, stage in result["stages"].items():
            why = f"{stage['reason'] or ''}{'; '.join(stage['errors'])}"
            say(f"{name:12} {stage['status']:8} {why}".rstrip())
        proof = result["telemetry_probe"]
        say(f"{'metrics':12} {'ready' if proof['ok'] else 'not ready: ' + str(proof['reason'])}")
    for warning in result["warnings"]:
        say(f"sgl-admin: warning: {warning}", file=sys.stderr)
    stages = " ".join(f"{name}:{stage['status']}" for name, stage in result["stages"].items())
    say(f"RESULT_JSON {paths.prep_result(run_id)}")
    say(f"RESULT_STATUS {result['status']} {stages}")
    return exit_code


def _print_dry_run(plan: dict[str, Any], as_json: bool) -> int:
    if as_json:
        say_json(plan, indent=2)
    else:
        for name, stage in plan["stages"].items():
            say(f"{name:12} {stage['status']:10} {stage['reason'] or ''}".rstrip())
        say(f"{'metrics':12} {plan['telemetry_probe']}")
        if plan["cost"]:
            say(f"a prep {plan['cost']}")
    stages = " ".join(f"{name}:{stage['status']}" for name, stage in plan["stages"].items())
    say(f"RESULT_STATUS dry_run {stages}")
    return 0


def _print_envelope(run_id: str, record: dict[str, Any] | None, **more: Any) -> int:
    result = _result_of(run_id, record["prep_id"]) if record else None
    say_json({"job": record, "result": result, **more})
    return 0


def _status(arguments: argparse.Namespace) -> int:
    live = run.live()
    record = _wait(live.run_id, arguments.wait)
    if arguments.watch and record is not None:
        record = _watch(live.run_id, record["prep_id"], sys.stdout)
    alive = services.states(live.manifest)
    unwatched = windows.obstacle(live.run_id)
    if arguments.json:
        watch = {"wanted": windows.is_wanted(), "reason": unwatched}
        return _print_envelope(live.run_id, record, services=alive, watch=watch)
    say(f"no prep yet in {live.run_id}" if record is None else job.describe(record))
    for problem in (*services.problems(alive), *filter(None, [unwatched])):
        say(problem)
    code = status_codes.status_code(record)
    return code or (EXIT_OK if services.obstacle(alive) is None else EXIT_PROOF_FAILED)


def _inspect(arguments: argparse.Namespace) -> int:
    found = caches.snapshot()
    if arguments.json:
        say_json(found, indent=2)
        return 0
    for name in caches.CACHES:
        cache = found[name]
        state = "valid" if cache["valid"] else cache["reason"]
        say(
            f"{name:14} {cache['file_count']:7} files {cache['size_bytes'] / 2**20:10.1f} MiB "
            f" {state}"
        )
    return 0


def _version(arguments: argparse.Namespace) -> int:
    say(f"sgl-admin {__version__}")
    return 0
