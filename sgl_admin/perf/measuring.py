"""Runs the measuring process, watches the host meanwhile, and ends the process when it hangs."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_admin.base import logs, ordered, paths
from sgl_admin.base.errors import GpuUnavailable, StageFailure
from sgl_admin.base.ordered import Worker
from sgl_admin.base.processes import ended
from sgl_admin.contract import perf
from sgl_admin.contract.texts import one_line, read_json_text
from sgl_admin.facts import devices
from sgl_admin.perf import watch
from sgl_admin.perf.watch import Seen

# For all of it, on GPUs and on a CPU, whose cores others may have.
_GPU_LIMIT_S, _CPU_LIMIT_S = 60.0, 120.0
_END_S = 10.0
_PROCESS = "sgl_admin.perf.measure_process"
_MOST_BYTES = 1 << 16


@dataclass
class Measured:
    """What was measured: by name the value and by how many percent it scattered; why some were
    not; and what was seen meanwhile.
    """

    values: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)


class Measuring:
    def __init__(
        self,
        gpus: int,
        environment: Mapping[str, str],
        log: Path,
        progress: Callable[[int, int, str, str], None],
        on_group: Callable[[int | None], None],
    ) -> None:
        """`gpus` are measured, and the CPU where there is none. `on_group` gets the process group,
        to end it by.
        """
        self._gpus = gpus
        self._environment = environment
        self._log = log
        self._progress = progress
        self._on_group = on_group
        self._limit_s = _GPU_LIMIT_S if gpus else _CPU_LIMIT_S
        self._found = Measured()
        self._problem: str | None = None

    def run(self) -> Measured:
        """Raises StageFailure where it could not be measured."""
        order = {"gpus": self._gpus}
        self._log_start = logs.size(self._log)
        with ordered.working(
            _PROCESS, order, self._environment, self._log, self._on_group
        ) as worker:
            hung = self._follow(worker)
            process = worker.process
        if hung:
            raise self._failure(f"it was not done after {self._limit_s:.0f} s")
        if self._problem is not None:
            raise self._failure(self._problem)
        if process.returncode:
            raise self._failure(f"its process ended ({ended(process.returncode)})")
        if not self._found.values:
            raise self._failure("its process measured nothing")
        if self._found.seen.clock_was_set:
            jump = self._found.seen.clock_jump_s
            raise self._failure(f"the host's clock was set by {jump:+.0f} s meanwhile")
        return self._found

    def _failure(self, problem: str) -> StageFailure:
        where = paths.to_host(self._log) or self._log
        return StageFailure(
            "measurement_failed",
            f"the host was not measured: {one_line(problem, 220)}; run this again (the log is"
            f" {where})",
            logs.last_lines(self._log, self._log_start),
        )

    def _follow(self, worker: Worker) -> bool:
        """Read what the process tells until it ends, and watch the host; whether it hung."""
        visible = self._environment.get(devices.VISIBLE)
        deadline = time.monotonic() + self._limit_s
        buffer = b""
        try:
            with watch.watching(worker.process.pid, self._gpus > 0, visible) as (seen, sample):
                self._found.seen = seen
                while time.monotonic() < deadline:
                    sample()
                    if not select.select([worker.stream], [], [], watch.PERIOD_S)[0]:
                        continue
                    if not (more := os.read(worker.stream, _MOST_BYTES)):
                        worker.process.wait(timeout=_END_S)
                        return False
                    *lines, buffer = (buffer + more).split(b"\n")
                    for line in lines:
                        self._take(line)
        except GpuUnavailable as error:
            self._problem = f"a GPU was lost: {error}"
            return False
        except subprocess.TimeoutExpired:
            pass
        return True

    def _take(self, line: bytes) -> None:
        try:
            told: Any = read_json_text(line)
        except ValueError:
            told = None
        match told:
            case {"begins": str(name), "done": int(done), "total": int(total)}:
                self._progress(done, total, "measurements", f"measuring {name}")
            case {"name": str(name), "value": value, "spread": float() | int() as spread} if (
                name in perf.BY_NAME and perf.is_value(value)
            ):
                self._found.values[name] = float(value)
                self._found.spreads[name] = round(float(spread), 2)
            case {"skipped": str(name), "why": str(why)}:
                self._found.skipped[name] = why
            case {"problem": str(problem)}:
                self._problem = problem
            case _:
                said = line.decode(errors="replace")
                self._problem = f"its process told what is no measurement: {said}"
