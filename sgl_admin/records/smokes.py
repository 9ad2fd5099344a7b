"""The summary of a smoke: the one that runs, or the last one. Who holds the smoke lock is running;
no summary can outlive that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, files, locks, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import end_noted, start_time
from sgl_admin.contract import places
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.records.run import Run
from sgl_admin.records.scenario import Scenario, Test

LOCK = places.LOCK_SMOKE
RUNNING, DONE, FAILED, INTERRUPTED = "running", "done", "failed", "interrupted"
PASSED, NOT_RUN = "passed", "not_run"
_SHAPE: files.Shape = {
    "smoke_id": str,
    "scenario": str,
    "state": str,
    "pid": int,
    "server": dict,
    "tests": list,
    "counts": dict,
    "errors": list,
    "warnings": list,
}
_POLL_S = 0.1


def folder(run_id: str) -> Path:
    return paths.run_dir(run_id) / "smokes"


def path(run_id: str, smoke_id: str) -> Path:
    return folder(run_id) / smoke_id / "summary.json"


def place(file: Path) -> dict[str, str | None]:
    """A file's names in the container and on the host."""
    return {"container_path": str(file), "host_path": paths.to_host(file)}


def new(live: Run, scenario: Scenario, smoke_id: str) -> dict[str, Any]:
    """The summary of a smoke that this process begins."""
    ready, source = prep_metrics_ready(live)
    tests = [_not_run(test) for test in scenario.tests]
    return {
        "schema_version": "1",
        "smoke_id": smoke_id,
        "run_id": live.run_id,
        "scenario": scenario.name,
        "state": RUNNING,
        "exit_code": None,
        "pid": os.getpid(),
        "pid_start_ticks": start_time(os.getpid()),
        "started_at": clock.utc(),
        "finished_at": None,
        "duration_s": 0.0,
        "window": {"start": time.time(), "end": None},
        "summary": place(path(live.run_id, smoke_id)),
        "server": {
            "used": None,
            "port": live.manifest["services"]["sglang"]["port"],
            "argv": None,
            "pgid": None,
            "start_ticks": None,
            "ready_after_s": None,
            "log_tail": [],
        },
        "model": None,
        "prep_metrics_ready": ready,
        "prep_metrics_ready_source": source,
        "tests": tests,
        "counts": count(tests),
        "undisturbed": None,
        "disturbances": [],
        "errors": [],
        "warnings": [],
    }


def _not_run(test: Test) -> dict[str, Any]:
    nothing = (
        "error stop_reason usage latency_s ttft_s started_at finished_at transcript metrics"
        " prometheus log".split()
    )
    return {
        "name": test.name,
        "status": NOT_RUN,
        "turns": len(test.turns),
        "turns_done": 0,
        **dict.fromkeys(nothing),
    }


def count(tests: list[dict[str, Any]]) -> dict[str, int]:
    found = [test["status"] for test in tests]
    return {
        "total": len(found),
        **{status: found.count(status) for status in (PASSED, FAILED, NOT_RUN)},
    }


def prep_metrics_ready(live: Run) -> tuple[bool | None, str | None]:
    """What the run's latest prep_result says of METRICS_READY, and through which path it was found;
    None and None where nothing does.
    """
    named = live.manifest["paths"]["container"].get("prep_result")
    ways = [("manifest", Path(named))] if isinstance(named, str) else []
    for source, file in (*ways, ("container_path", paths.prep_result(live.run_id))):
        try:
            result = files.read_record(file, RESULT_SHAPE)
        except (OSError, ValueError):
            continue
        # One that was copied from another run says nothing of this one.
        if (
            result is not None
            and result["run"].get("run_id") == live.run_id
            and isinstance(result["telemetry_probe"].get("ok"), bool)
        ):
            return result["telemetry_probe"]["ok"], source
    return None, None


def latest(run_id: str) -> str | None:
    """The id of the run's last smoke: each is written to only while it holds the lock, so they
    follow each other.
    """
    found = sorted(
        folder(run_id).glob("smoke-*/summary.json"), key=lambda file: file.stat().st_mtime_ns
    )
    return found[-1].parent.name if found else None


def read(run_id: str, smoke_id: str) -> dict[str, Any] | None:
    return files.read_or_set_aside(path(run_id, smoke_id), _SHAPE, [])


def settle(run_id: str) -> None:
    """With the smoke lock held: a summary that says it runs is of a dead process. Say so in it, and
    end its server.
    """
    smoke_id = latest(run_id)
    record = read(run_id, smoke_id) if smoke_id else None
    if smoke_id is None or record is None or record["state"] != RUNNING:
        return
    record["state"] = INTERRUPTED
    record["errors"].append("its process is gone: it was killed before it ended")
    sweep(run_id)
    server = record["server"]
    try:
        end_noted(server.get("pgid"), server.get("start_ticks"))
    except StageFailure as failure:
        record["errors"].append(f"{failure.error_type}: {failure}")
    server.update(pgid=None, start_ticks=None)
    files.write_json(path(run_id, smoke_id), record)


def sweep(run_id: str) -> None:
    """With the smoke lock held: remove the temp files that a killed smoke of this run left."""
    for pattern in ("*", "*/tests/*"):
        for written in folder(run_id).glob(pattern):
            files.sweep_temporaries(written)


def wait(run_id: str, smoke_id: str, seconds: float) -> dict[str, Any] | None:
    """The smoke's summary once it has ended, or as it is after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        # In this order: a smoke that ends in between has written its summary before it let the lock
        # go.
        with locks.tried(LOCK) as lock:
            if lock is not None:
                settle(run_id)
            record = read(run_id, smoke_id)
        if record is None or record["state"] != RUNNING or time.monotonic() >= deadline:
            return record
        time.sleep(_POLL_S)
