"""`sgl-admin ready`: whether METRICS_READY holds now."""

from __future__ import annotations

import argparse
from typing import Any

from sgl_admin.contract.exit_codes import EXIT_OK, EXIT_PROOF_FAILED
from sgl_admin.contract.texts import say, say_json
from sgl_admin.records import run
from sgl_admin.serving import readiness


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    ready = commands.add_parser(
        "ready",
        help="whether METRICS_READY holds now: exit code 0 where it does",
        epilog=(
            f"Exit code {EXIT_PROOF_FAILED} where it does not hold, with the reason. Starts and"
            " writes nothing."
        ),
    )
    ready.set_defaults(handler=_ready)
    ready.add_argument(
        "--identity",
        metavar="DIGEST",
        help="of an earlier prepared server of this run, by run.server.identity of its prep_result",
    )
    ready.add_argument("--json", action="store_true", help="print {ready, reason, ...} as JSON")


def _ready(arguments: argparse.Namespace) -> int:
    answer = readiness.readiness(run.live(), arguments.identity)
    if arguments.json:
        say_json(answer)
    else:
        state = "ready" if answer["ready"] else f"not ready: {answer['reason']}"
        say(f"{answer['run_id']} {state}")
    return EXIT_OK if answer["ready"] else EXIT_PROOF_FAILED
