"""`sgl-admin perf`: measure the host for the server that was prepared, and say how fast it is."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from sgl_admin.base import locks
from sgl_admin.base.errors import Refused
from sgl_admin.contract import perf
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_OK
from sgl_admin.contract.stages import BY_NAME
from sgl_admin.contract.texts import say, say_json
from sgl_admin.perf import table
from sgl_admin.prep import again
from sgl_admin.prep.plan import plan_prep
from sgl_admin.records.request import Request
from sgl_admin.records.run import Run
from sgl_admin.serving import benchmark_server

_STAGE = BY_NAME["perf"]


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "perf",
        help="measure whether this host is fast, for the server that was prepared",
        epilog=(
            "Nothing is measured while a measurement of before stands. No other stage is run."
            f" Exit code {EXIT_OK}: pass or warn; {_STAGE.exit_code}: fail, or it was not"
            f" measured; {EXIT_BUSY}: a prep or a benchmark's server runs; {EXIT_NO_LIVE_RUN}: no"
            " run is live, or nothing was prepared."
        ),
    )
    parser.add_argument(
        "profile", nargs="?", default="", help="that of the server (default: the latest prep's)"
    )
    parser.add_argument("--rebuild", action="store_true", help="measure again")
    parser.add_argument("--json", action="store_true", help="print perf_probe as JSON")
    return parser


def request(live: Run, profile: str, rebuild: bool) -> Request:
    """What was asked for when the server was prepared, with the stage. Raises Refused where that
    does not stand any more, or a server would disturb the measurement.
    """
    prepared = again.plan(live, profile).request
    mode = "rebuild" if rebuild else "ensure"
    found = replace(prepared, stages={**prepared.stages, _STAGE.name: mode})
    # A plan that has nothing to do disturbs no server.
    if locks.held(benchmark_server.SERVES) and not plan_prep(live, found).nothing_to_do:
        raise Refused(
            EXIT_BUSY,
            "a server that was started for a benchmark runs, and would disturb the measurement:"
            " stop it first (sgl-admin server stop)",
        )
    return found


def show(run_id: str, result: dict[str, Any], as_json: bool, exit_code: int) -> int:
    """Print what a prep found; returns the command's exit code."""
    probe = result["perf_probe"]
    if as_json:
        say_json(probe, indent=2)
    else:
        for line in table.lines(probe):
            say(line)
    verdict = probe["verdict"] or "unknown"
    state = result["stages"][_STAGE.name]["status"]
    reason = "" if verdict == perf.PASS else f" {probe['reason']}"
    say(f"PERF_STATUS {verdict} perf:{state}{reason}")
    return exit_code or (EXIT_OK if probe["ok"] else _STAGE.exit_code)
