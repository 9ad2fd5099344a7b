"""The job record: the prep that runs, or the last one. Who holds the prep lock is running; no
record can outlive that.
"""

from __future__ import annotations

import os
import time
from types import NoneType
from typing import Any

from sgl_admin.base import clock, failures, files, paths
from sgl_admin.base.locks import held
from sgl_admin.base.processes import end_noted, start_time
from sgl_admin.contract import places
from sgl_admin.records import rebuilding
from sgl_admin.records.request import Request

LOCK = places.LOCK_PREP
RUNNING = "running"
SHAPE: files.Shape = {
    "prep_id": str,
    "pid": int,
    "arguments": list,
    "arguments_digest": str,
    "state": str,
    "stage": (str, NoneType),
    "elapsed_s": (int, float),
    "eta_s": (int, float, NoneType),
    "message": str,
    "exit_code": (int, NoneType),
}


class Job:
    """The record of one prep, written by the process that does it."""

    def __init__(
        self, run_id: str, request: Request, prep_id: str, shown: Request | None = None
    ) -> None:
        """`shown` is the request as records have it; by default all of it."""
        self._path = paths.job(run_id)
        self._started = self._counted_from = time.monotonic()
        self._written = 0.0
        self.record: dict[str, Any] = {
            "schema_version": "1",
            "prep_id": prep_id,
            "run_id": run_id,
            "pid": os.getpid(),
            "pid_started_at": clock.utc(),
            "pid_start_ticks": start_time(os.getpid()),
            "arguments_digest": request.digest,
            "arguments": (shown or request).describe(),
            "state": RUNNING,
            "stage": None,
            "done": 0,
            "total": 0,
            "unit": "steps",
            "elapsed_s": 0.0,
            "eta_s": None,
            "message": "planning",
            "server": None,
            "updated_at": clock.utc(),
            "exit_code": None,
        }

    def update(self, minimum_interval_s: float = 0.0, **fields: Any) -> None:
        """Write the record; progress that comes faster than `minimum_interval_s` seconds is left
        out.
        """
        now = time.monotonic()
        if now - self._written < minimum_interval_s:
            return
        self._written = now
        self.record.update(fields, elapsed_s=round(now - self._started, 1), updated_at=clock.utc())
        files.write_json(self._path, self.record)

    def stage(self, name: str, message: str) -> None:
        """A stage, or the proof, begins."""
        self.update(stage=name, done=0, total=0, eta_s=None, message=message)

    def steps(self, done: int, total: int, unit: str, message: str) -> None:
        if done == 0:
            self._counted_from = time.monotonic()
        # The rest is assumed to be as fast as what is done; after nothing there is no estimate.
        eta_s = None
        if done:
            elapsed_s = time.monotonic() - self._counted_from
            eta_s = round(elapsed_s / done * (total - done), 1)
        message = f"{message}: {done} of {total}"
        self.update(done=done, total=total, unit=unit, eta_s=eta_s, message=message)

    def batch_size(self, size: int) -> None:
        """A batch size is finished: it can be packed for other hosts."""
        finished = {*self.record.get("finished_batch_sizes", []), size}
        self.update(finished_batch_sizes=sorted(finished))

    def server_starting(self) -> None:
        self.update(2.0, message="waiting for the server to become healthy")

    def abandon(self, error: BaseException) -> None:
        """Say that the prep ends without a result, where that can be written: where not, the next
        one sees that its process is gone.
        """
        words = str(failures.from_error(error))
        try:
            self.update(state="failed", exit_code=1, server=None, eta_s=None, message=words)
        except OSError:
            pass

    def server(self, group: int | None) -> None:
        """Remember the server's process group, so that it can be ended when this process is killed
        outright.
        """
        self.update(
            server=(
                {"pgid": group, "started_at": clock.utc(), "start_ticks": start_time(group)}
                if group
                else None
            )
        )


def read(run_id: str, warnings: list[str] | None = None) -> dict[str, Any] | None:
    return files.read_or_set_aside(paths.job(run_id), SHAPE, [] if warnings is None else warnings)


def describe(record: dict[str, Any]) -> str:
    """One line for a person: stage, what it does, the seconds that it took so far and, where there
    is one, the estimate of what is left.
    """
    left = f", about {_seconds(record['eta_s'])} s left" if record.get("eta_s") else ""
    stage = f"{record['stage']}: " if record.get("stage") else ""
    return files.printable(
        f"{record['prep_id']} {record['state']}: {stage}{record['message']}"
        f" ({_seconds(record['elapsed_s'])} s{left})"
    )


def _seconds(number: float) -> str:
    # A whole number may be larger than any float.
    return f"{number:.0f}" if isinstance(number, float) else str(number)


def alive(record: dict[str, Any]) -> bool:
    """Whether the process that wrote the record as `running` still does; a record of another
    writer, without ticks, is believed.
    """
    return record["state"] == RUNNING and record.get("pid_start_ticks") in (
        None,
        start_time(record["pid"]),
    )


def running() -> bool:
    """Whether some process holds the prep lock."""
    return held(LOCK)


def settle(run_id: str, warnings: list[str]) -> None:
    """With the prep lock held: whatever record says it runs is of a dead process. Say so in it, end
    its server, and put back what it was about to replace.
    """
    rebuilding.settle(warnings)
    record = read(run_id, warnings)
    if record is None or record.get("state") != RUNNING:
        return
    server: dict[str, Any] = record["server"] if isinstance(record.get("server"), dict) else {}
    end_noted(server.get("pgid"), server.get("start_ticks"))
    warnings.append(
        files.printable(f"{record['prep_id']} ended without a result in stage {record['stage']}")
        + "; its work is done again where it was not finished"
    )
    record.update(
        state="interrupted", server=None, message="its process is gone", updated_at=clock.utc()
    )
    files.write_json(paths.job(run_id), record)
