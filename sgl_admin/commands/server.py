"""`sgl-admin server`: start exactly the server that was prepared, ask after it, and stop it."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from sgl_admin.base import keyed, paths
from sgl_admin.base.errors import Refused, StageFailure
from sgl_admin.base.processes import end_noted
from sgl_admin.commands import argument_types
from sgl_admin.contract.exit_codes import (
    EXIT_NO_LIVE_RUN,
    EXIT_OK,
    EXIT_SERVER_FAILED,
    EXIT_SIGINT,
    EXIT_USAGE,
)
from sgl_admin.contract.texts import say, say_json
from sgl_admin.prep import again
from sgl_admin.prep.plan import Plan
from sgl_admin.records import run
from sgl_admin.records.run import Run
from sgl_admin.serving import benchmark_server
from sgl_admin.sglang import ENGINE

_HEARTBEAT_S = 5.0


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    actions = commands.add_parser("server", help="the server that was prepared").add_subparsers(
        required=True, metavar="ACTION"
    )

    start = actions.add_parser(
        "start",
        help="start it, detached, where it does not run, and wait until it is healthy",
        epilog=(
            "Its command and environment are those of the run's latest prep, or of the one that"
            " --identity or a profile names: what the caches are warm for. In a run without a prep"
            " it is that of the latest proven prep. Where the run has no proof of it, this server"
            " makes the proof."
        ),
    )
    start.set_defaults(handler=_start)
    start.add_argument(
        "profile",
        nargs="?",
        help="the profile whose server is started, also in a run that has not prepared it",
    )
    argument_types.add_seconds(
        start, "--timeout", "to become healthy", argument_types.SERVER_TIMEOUT_S
    )
    start.add_argument(
        "--identity",
        metavar="DIGEST",
        help="an earlier prepared server of this run, by run.server.identity of its prep_result",
    )
    start.add_argument("--detach", action="store_true", help="return as soon as it is started")
    start.add_argument("--dry-run", action="store_true", help="print the command and do nothing")

    status = actions.add_parser(
        "status",
        help="whether it runs and is healthy",
        epilog=(
            f"Exit code {EXIT_OK}: it is healthy; {EXIT_SERVER_FAILED}: it is not (it starts, has"
            f" ended, was stopped, or none was started); {EXIT_NO_LIVE_RUN}: no run is live."
        ),
    )
    status.set_defaults(handler=_status)
    argument_types.add_seconds(status, "--wait", "wait so long for it to become healthy first")

    stop = actions.add_parser(
        "stop", help="stop it with all its processes; harmless where none runs"
    )
    stop.set_defaults(handler=_stop)
    _add_admin_key(actions)
    for action in (start, status, stop):
        action.add_argument(
            "--json", action="store_true", help="print {server, healthy, log_tail} as JSON"
        )


def _add_admin_key(actions: Any) -> None:
    admin = actions.add_parser(
        "admin-key",
        help="print the key of its admin calls, such as flushing its cache",
        epilog="It is sent as Authorization: Bearer KEY.",
    )
    admin.set_defaults(handler=_admin_key)


def _admin_key(arguments: argparse.Namespace) -> int:
    run.live()
    say(keyed.admin_key())
    return 0


def _start(arguments: argparse.Namespace) -> int:
    live = run.live()
    if arguments.profile and arguments.identity:
        raise Refused(EXIT_USAGE, "a profile and --identity name one server each: give one of them")
    planned = _planned(live, arguments)
    wanted = _of_plan(planned) if planned else benchmark_server.prepared(live, arguments.identity)
    if arguments.dry_run:
        shown = wanted.command.shown
        env = {**shown["env"], **wanted.start_env}
        words = [*(f"{key}={value}" for key, value in env.items()), *shown["argv"]]
        if arguments.json:
            say_json({"argv": shown["argv"], "env": env})
        else:
            say(shlex.join(words))
        return 0
    _have_moe_configs({**wanted.command.env, **wanted.start_env})
    record, started = benchmark_server.start(live, wanted)
    healthy = False
    if not arguments.detach:
        try:
            found, healthy = benchmark_server.wait(
                live.run_id, arguments.timeout, _Heartbeat(record["server_id"])
            )
        except KeyboardInterrupt:
            raise Refused(
                EXIT_SIGINT,
                f"no longer followed; {record['server_id']} goes on by itself (sgl-admin server"
                " status)",
            ) from None
        if not healthy:
            _refuse_unhealthy(live.run_id, found, arguments.timeout)
        record = found or record
        if planned:
            runs = {"log_start": record["log_start"], "group": record["pgid"]}
            again.prove(planned, wanted.server(live.run_id, **runs))
    return _print(live.run_id, record, healthy, arguments.json, started=started)


def _have_moe_configs(environment: Mapping[str, str]) -> None:
    """The folder of MoE configurations that the server's environment names: SGLang does not start
    where it is missing, and a prep whose stages start no server makes none. Raises Refused.
    """
    if not (named := environment.get(ENGINE.moe.variable)):
        return
    from sgl_admin.moe import config_files

    try:
        config_files.make_ready(named, ENGINE.release()[0])
    except StageFailure as failure:
        raise Refused(EXIT_SERVER_FAILED, str(failure)) from failure


def _planned(live: Run, arguments: argparse.Namespace) -> Plan | None:
    """The plan for the server, where the run's own records do not say which one it is. Raises
    Refused.
    """
    if arguments.profile:
        return again.plan(live, arguments.profile)
    if arguments.identity or paths.prep_result(live.run_id).exists():
        return None
    return again.plan(live)


def _of_plan(planned: Plan) -> benchmark_server.Prepared:
    return benchmark_server.Prepared(
        planned.command,
        planned.request.model,
        planned.context.served_identity,
        planned.start_environment(
            [decision.stage.name for decision in planned.decisions if decision.action == "noop"]
        ),
    )


class _Heartbeat:
    """Says now and then, on standard error, that a server is still starting."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said_at = time.monotonic()

    def __call__(self, waited_s: float) -> None:
        if time.monotonic() - self._said_at >= _HEARTBEAT_S:
            self._said_at = time.monotonic()
            say(f"{self._name}: not healthy yet ({waited_s:.0f} s)", file=sys.stderr, flush=True)


def _refuse_unhealthy(run_id: str, record: dict[str, Any] | None, timeout_s: float) -> None:
    """Raises Refused: why the server did not become healthy, with its last words. One that still
    starts is left running.
    """
    if record is not None and record["state"] == benchmark_server.ENDED:
        # Its children may have outlived it.
        end_noted(record["pgid"], record["start_ticks"])
    failure = benchmark_server.unhealthy(run_id, record, timeout_s)
    for line in failure.log_tail:
        say(line, file=sys.stderr)
    raise Refused(EXIT_SERVER_FAILED, str(failure))


def _status(arguments: argparse.Namespace) -> int:
    run_id = run.live().run_id
    record, healthy = benchmark_server.wait(run_id, arguments.wait)
    _print(run_id, record, healthy, arguments.json)
    return 0 if healthy else EXIT_SERVER_FAILED


def _stop(arguments: argparse.Namespace) -> int:
    run_id = run.live().run_id
    try:
        return _print(run_id, benchmark_server.stop(run_id), False, arguments.json)
    except StageFailure as failure:
        raise Refused(EXIT_SERVER_FAILED, str(failure)) from failure


def _print(
    run_id: str, record: dict[str, Any] | None, healthy: bool, as_json: bool, **more: bool
) -> int:
    if as_json:
        tail: list[str] = []
        if record is not None and record["state"] == benchmark_server.ENDED:
            tail = benchmark_server.handle(run_id, record).log_tail()
        say_json({"server": record, "healthy": healthy, "log_tail": tail, **more})
    elif record is None:
        say("no server was started in this run")
    else:
        state = "healthy" if healthy else record["state"]
        log = paths.to_host(paths.log(run_id)) or paths.log(run_id)
        model, port = record.get("model"), record["port"]
        say(f"{record['server_id']} {state}: port {port}, {model}, log {log}")
    return 0
