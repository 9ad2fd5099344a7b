"""Runs the tuning process: follows its progress, ends it when it hangs, and begins it again when a
configuration has brought it down.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_admin.base import files, logs, ordered, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import ended, oom_kills, oom_kills_since
from sgl_admin.contract.texts import one_line
from sgl_admin.facts import devices
from sgl_admin.moe import config_files
from sgl_admin.moe.journal import Journal
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.space import Config
from sgl_admin.moe.tables import Pair, pair_of
from sgl_admin.sglang import ENGINE

# How the process ends where beginning it again would not help.
EXIT_CANNOT_RUN, EXIT_MEMORY = 3, 4
COMPILE_LIMIT_S = 120.0
# The longest silence of the process: it starts up, or one configuration compiles or runs.
_STALL_S = 600.0
_MEASURE_STALL_S = 60.0
# What a configuration may be to blame for, by the words of the process that died of it.
_OF_CONFIGURATIONS = ("compile_failed", "unsupported")
_KERNEL_CRASHED = "illegal memory access"
# A death of a server's kind is this one's of its own.
_OWN_TYPE = {"server_start_failed": "tuner_failed"}
# Where the cause of a death is looked for, and what a message quotes of its words.
_LAST_LINES, _WORDS = 400, 160
# So many configurations may bring the process down before something else must be wrong.
_FALLS = 25
_PROCESS = "sgl_admin.moe.tune_process"
# For the process to end after its last word.
_END_S = 60.0
# How often the GPU's clocks are looked at.
_LOOK_S = 5.0
# What the compiled kernels of a whole space took (measured: docs/benchmarks), and some more.
_KERNEL_BYTES = 1_200_000


# Each row as soon as it is known: its batch size, its launch configurations, what was measured.
Found = Callable[[int, Pair, dict[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """What is to be tuned beside the shape: the whole ladder of sizes that get a row, those of them
    that have one, and the other tables that a row has to beat (config_files.rivals).
    """

    configs: list[Config]
    ladder: list[int]
    known: dict[int, Pair]
    rivals: dict[str, Any]
    up_tma: bool = False
    down_tma: bool = False
    # Told of the rows that stand until the tuned ones do.
    base: Callable[[dict[int, Pair]], None] = lambda rows: None

    def to_json(self) -> dict[str, Any]:
        return {
            "configs": self.configs,
            "ladder": self.ladder,
            "known": {str(size): pair.to_json() for size, pair in self.known.items()},
            "up_tma": self.up_tma,
            "down_tma": self.down_tma,
        }


@dataclass
class Outcome:
    """What came of a tuning, for the stage's artifacts."""

    batch_sizes: list[int] = field(default_factory=list)
    configurations: int = 0
    compiled: int = 0
    compile_s: float = 0.0
    duration_s: float = 0.0
    looked: int = 0
    look_s: float = 0.0
    us: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    routing: list[str] = field(default_factory=lambda: ["uniform", "skewed"])
    dropped: int = 0
    restarts: int = 0
    throttled: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {**self.__dict__}


class Tuner:
    def __init__(
        self,
        shape: MoeShape,
        order: Order,
        tuning: dict[str, Any],
        sm: int,
        log: Path,
        progress: Callable[[int, int, str, str], None],
        on_group: Callable[[int | None], None],
        environment: dict[str, str],
    ) -> None:
        """`sm` is the compute capability as a number, 90. `tuning` names what the findings depend
        on: others are not taken up.

        `on_group` is told the process group, to end it by.
        """
        self._shape = shape
        self._order = order
        self._tuning = tuning
        self._sm = sm
        self._log = log
        self._progress = progress
        self._on_group = on_group
        self._environment = environment
        self.folder = config_files.work(tuning)
        self.outcome = Outcome(configurations=len(order.configs))
        self._ended = ""

    def run(self, batch_sizes: list[int], found: Found) -> Outcome:
        """Tune for these batch sizes; `found` is told of each configuration as soon as it is known.
        Raises StageFailure.
        """
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_space()
        # What a killed one had settled says which configurations are worth trying at the others.
        batch_sizes = sorted({*batch_sizes, *Journal(self._journal, self._tuning).best})
        while not self._attempt(batch_sizes, found):
            self.outcome.restarts += 1
            if self.outcome.restarts > _FALLS:
                raise StageFailure(
                    "tuner_failed",
                    f"the tuner's process ended {self.outcome.restarts} times, last: {self._ended}",
                    self._tail(),
                )
        self.outcome.duration_s = round(time.monotonic() - started, 3)
        shutil.rmtree(self.folder)
        return self.outcome

    def _check_space(self) -> None:
        configurations = len(self._order.configs)
        wanted = 4 * configurations * _KERNEL_BYTES
        if (free := shutil.disk_usage(self.folder).free) < wanted:
            raise StageFailure(
                "insufficient_disk",
                f"compiling {configurations} MoE configurations takes about {wanted >> 20} MiB"
                f" while it lasts, and {paths.to_host(self.folder)} has {free >> 20} MiB: free some"
                " and run again",
            )

    def _attempt(self, batch_sizes: list[int], found: Found) -> bool:
        """Whether the tuning was finished. Raises StageFailure where beginning it again would not
        help.
        """
        measured = self._measured()
        order = {
            "shape": self._shape.to_json(),
            **self._order.to_json(),
            "rivals": self._rivals(),
            "journal": str(self._journal),
            "tuning": self._tuning,
            "batch_sizes": batch_sizes,
            "workers": _processors(),
            "compile_limit_s": COMPILE_LIMIT_S,
            "ended": self._ended,
            "sm": self._sm,
        }
        environment = {**self._environment, "TRITON_CACHE_DIR": str(self.folder / "triton")}
        self._oom_kills, self._log_start = oom_kills(), logs.size(self._log)
        with ordered.working(_PROCESS, order, environment, self._log, self._on_group) as worker:
            process = worker.process
            try:
                hung = self._follow(worker.stream, found)
                if hung is None:
                    process.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:
                hung = f"it did not end within {_END_S:.0f} s of its work"
        if hung is None and process.returncode == 0:
            return True
        self._ended = hung or ended(process.returncode)
        self._raise_hopeless(process.returncode if hung is None else None, measured)
        return False

    def _rivals(self) -> dict[str, Any]:
        """The tables that stood when this tuning began: its own first rows are none of them."""
        path = self.folder / "rivals.json"
        try:
            noted = files.read_json(path) or {}
        except ValueError:
            noted = {}
        if isinstance(noted.get("rivals"), dict):
            return dict(noted["rivals"])
        files.write_json(path, {"schema_version": "1", "rivals": self._order.rivals})
        return self._order.rivals

    def _raise_hopeless(self, code: int | None, measured: int) -> None:
        """Raise StageFailure where no configuration is to blame for the process's end."""
        tail = self._tail()
        if code == EXIT_MEMORY:
            raise StageFailure(
                "oom",
                "the GPU's memory does not hold one layer's experts beside what else is in it",
                tail,
            )
        if code == EXIT_CANNOT_RUN:
            raise StageFailure(
                "tuner_failed",
                tail[-1].removeprefix("sgl-admin: ") if tail else "no configuration can be used",
                tail,
            )
        said = logs.last_lines(self._log, self._log_start, _LAST_LINES)
        death = ENGINE.death(said, code, oom_kills_since(self._oom_kills))
        words = one_line(death.words, _WORDS)
        known = (
            death.remedy
            and death.error_type not in _OF_CONFIGURATIONS
            and _KERNEL_CRASHED not in death.words
        )
        if code is not None and known:
            raise StageFailure(
                _OWN_TYPE.get(death.error_type, death.error_type),
                f"the tuner's process ended ({self._ended}): {words or 'it said nothing'};"
                f" {death.remedy} (its kernels are in {paths.to_host(self.folder)})",
                tail,
            )
        if self._measured() == measured:
            cause = f": {words}" if words and code is not None else ""
            raise StageFailure(
                "tuner_failed",
                f"the tuner's process ended before it measured anything: {self._ended}{cause}; the"
                f" log is {paths.to_host(self._log) or self._log}",
                tail,
            )

    @property
    def _journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def _measured(self) -> int:
        """How many measurements were begun, by the journal."""
        try:
            return files.read_bytes(self._journal).count(b'"measuring"')
        except FileNotFoundError:
            return 0

    def _follow(self, stream: int, found: Found) -> str | None:
        """Read what the process tells until it ends; returns why it has to be ended, or None."""
        buffer = b""
        patience_s, looked_at, heard_at = _STALL_S, -math.inf, time.monotonic()
        while True:
            ready, _, _ = select.select([stream], [], [], 1.0)
            if time.monotonic() - looked_at > _LOOK_S:
                looked_at = time.monotonic()
                self._look_at_clocks()
            if not ready:
                if time.monotonic() - heard_at > patience_s:
                    return f"it told nothing for {patience_s:.0f} s"
                continue
            heard_at = time.monotonic()
            if not (more := os.read(stream, 1 << 16)):
                return None
            *lines, buffer = (buffer + more).split(b"\n")
            for line in lines:
                patience_s = self._take(json.loads(line), found)

    def _take(self, told: dict[str, Any], found: Found) -> float:
        """Do what a line tells; returns for how many seconds the next one may be awaited."""
        match told:
            case {"phase": str(phase), "done": int(done), "total": int(total)}:
                self._progress(done, total, "configurations", f"tuning MoE kernels, {phase}")
                return (
                    _MEASURE_STALL_S
                    if phase.startswith("batch size")
                    else max(_STALL_S, COMPILE_LIMIT_S * 2)
                )
            case {
                "compiled": int(count),
                "failed": int(failed),
                "seconds": float(seconds) | int(seconds),
            }:
                self.outcome.compiled += count
                self.outcome.dropped += failed
                self.outcome.compile_s = round(self.outcome.compile_s + seconds, 3)
            case {
                "batch_size": int(size),
                "best": dict(best),
                "row": dict(row),
                "looked": int(looked),
                "look_s": float(look_s),
            }:
                self.outcome.looked, self.outcome.look_s = looked, round(look_s, 3)
                # One that was begun again tells what was found before, too.
                if size not in self.outcome.batch_sizes:
                    self.outcome.batch_sizes.append(size)
                    self.outcome.us[str(size)] = row["after"]
                    found(size, pair_of(best), row)
            case {"base": dict(base)}:
                self._order.base({int(size): pair_of(each) for size, each in base.items()})
            case {"rows": list(rows)}:
                self.outcome.rows = len(rows)
        return _STALL_S

    def _look_at_clocks(self) -> None:
        try:
            reasons = devices.throttles(self._environment.get(devices.VISIBLE))
        except RuntimeError:
            return
        self.outcome.throttled.extend(
            reason for reason in reasons if reason not in self.outcome.throttled
        )

    def _tail(self) -> list[str]:
        return logs.last_lines(self._log, self._log_start)


def _processors() -> int:
    return max(1, len(os.sched_getaffinity(0)) - 1)
