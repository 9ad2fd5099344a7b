"""`sgl-admin prep`: end the prep that runs."""

from __future__ import annotations

import argparse
import os
import signal
import time
from typing import Any

from sgl_admin.base import locks
from sgl_admin.base.errors import Refused
from sgl_admin.commands import argument_types
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_OK
from sgl_admin.contract.texts import say, say_json
from sgl_admin.records import job, run

# A server gets 15 s to end by itself (base/processes.py), and the records follow.
_TIMEOUT_S = 60.0
_POLL_S = 0.1
# For the holder of the prep lock to write its record.
_PATIENCE_S = 5.0


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    actions = commands.add_parser("prep", help="the prep that runs").add_subparsers(
        required=True, metavar="ACTION"
    )
    cancel = actions.add_parser(
        "cancel",
        help="end it in order; harmless where none runs",
        epilog=(
            "Finished stages stay. The stage that runs is recorded as interrupted, and the next"
            f" prep does it again. Exit code {EXIT_OK}: no prep runs any more; {EXIT_BUSY}: it"
            f" still runs; {EXIT_NO_LIVE_RUN}: no run is live."
        ),
    )
    cancel.set_defaults(handler=_cancel)
    argument_types.add_seconds(cancel, "--timeout", "for it to end", _TIMEOUT_S)
    cancel.add_argument("--json", action="store_true", help="print {job, cancelled} as JSON")


def _cancel(arguments: argparse.Namespace) -> int:
    live = run.live()
    record = _running(live.run_id)
    if record is not None:
        _end(record, arguments.timeout)
    # Its own last record, which is written before its process lets go of the lock.
    last = job.read(live.run_id)
    if arguments.json:
        say_json({"job": last, "cancelled": record is not None})
    elif record is None:
        say(f"no prep runs in {live.run_id}")
    elif last is not None:
        say(job.describe(last))
    return EXIT_OK


def _running(run_id: str) -> dict[str, Any] | None:
    """The record of the prep that runs in this run; None where none does. Raises Refused (busy)
    where another container's prep holds the lock.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while job.running():
        record = job.read(run_id)
        # The record is written once the process takes signals.
        if record is not None and job.alive(record):
            return record
        if time.monotonic() > deadline:
            raise Refused(
                EXIT_BUSY,
                f"the prep lock is held by {locks.holder(job.LOCK)}, and no prep of {run_id}"
                " runs: cancel it in the container that it runs in",
            )
        time.sleep(_POLL_S)
    return None


def _end(record: dict[str, Any], timeout_s: float) -> None:
    """SIGTERM to the prep's process, which then ends its server and writes its records. Raises
    Refused (busy) where it has not ended in time.
    """
    try:
        os.kill(record["pid"], signal.SIGTERM)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + timeout_s
    while job.running() and job.alive(record):
        if time.monotonic() > deadline:
            raise Refused(
                EXIT_BUSY,
                f"{record['prep_id']} (pid {record['pid']}) was told to end and still runs after"
                f" {timeout_s:.0f} s: wait for it (sgl-admin status --watch), or stop the"
                " container (playbooks/stop.yml with sgl_stop_force)",
            )
        time.sleep(_POLL_S)
