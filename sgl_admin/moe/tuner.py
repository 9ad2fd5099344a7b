"""Runs the tuning processes, one on each GPU: follows their progress, ends one that hangs, and
begins it again when a configuration has brought it down.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgl_admin.base import files, logs, ordered, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import ended, oom_kills, oom_kills_since
from sgl_admin.contract.texts import one_line
from sgl_admin.facts import devices
from sgl_admin.facts.gpu_fit import Gpus
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
# What a kernel does to the process, as the CUDA driver says it.
_OF_KERNELS = "CUDA error"
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
    # How many GPUs tuned; of a host with several, which ones, and which were left alone.
    gpus: int = 1
    gpus_used: list[str] = field(default_factory=list)
    gpus_left: list[str] = field(default_factory=list)


@dataclass
class _OnGpu:
    """The process of one GPU, and what it said last."""

    number: int
    # For CUDA_VISIBLE_DEVICES; None where the environment's own is right.
    gpu: str | None
    journal: Path
    log: Path
    ended: str = ""
    # The exception that ended it last; empty where none did.
    raised: str = ""
    looked: int = 0
    look_s: float = 0.0
    compiled: int = 0
    failed: int = 0
    compile_s: float = 0.0
    # Of this attempt.
    stack: ExitStack = field(default_factory=ExitStack)
    worker: ordered.Worker | None = None
    measured_before: int = 0
    log_start: int = 0
    oom_kills: int | None = None
    buffer: bytes = b""
    patience_s: float = 0.0
    heard_at: float = 0.0

    def measured(self) -> int:
        """How many measurements were begun, by the journal."""
        try:
            return files.read_bytes(self.journal).count(b'"measuring"')
        except FileNotFoundError:
            return 0

    def tail(self) -> list[str]:
        return logs.last_lines(self.log, self.log_start)


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
        gpus: Gpus | None = None,
    ) -> None:
        """`sm` is the compute capability as a number, 90. `tuning` names what the findings depend
        on: others are not taken up.

        `on_group` gets the process group, to end it by: of several GPUs the first one's, as the
        others end with this process. `gpus` may be tuned on, all at once; where none is named, the
        first that CUDA shows is.
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
        gpus = gpus or Gpus()
        self._processes = self._one_for_each(gpus.idle or (None,))
        self.outcome = Outcome(
            configurations=len(order.configs),
            gpus=len(self._processes),
            gpus_used=list(gpus.idle),
            gpus_left=list(gpus.busy),
        )

    def run(self, batch_sizes: list[int], found: Found) -> Outcome:
        """Tune for these batch sizes; `found` is called with each configuration as soon as it is
        known. Raises StageFailure.
        """
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_space()
        # What a killed one had settled says which configurations are worth trying at the others.
        known = Journal(self._processes[0].journal, self._tuning).best
        batch_sizes = sorted({*batch_sizes, *known})
        with ExitStack() as stack:
            for each in self._processes:
                stack.callback(each.stack.close)
            for each in self._processes:
                self._begin(each, batch_sizes)
            self._follow(batch_sizes, found)
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

    def _one_for_each(self, gpus: Sequence[str | None]) -> list[_OnGpu]:
        """Each has a journal of its GPU, so that one that goes on takes up times of that GPU alone;
        a host with one GPU has no name for it.
        """
        made = []
        for number, gpu in enumerate(gpus):
            journal = self.folder / (f"journal-{gpu}.jsonl" if gpu else "journal.jsonl")
            # What one of them died of is looked for in its own words.
            log = self.folder / f"{gpu}.log" if number else self._log
            made.append(_OnGpu(number, gpu, journal, log))
        return made

    def _begin(self, each: _OnGpu, batch_sizes: list[int]) -> None:
        order = {
            "shape": self._shape.to_json(),
            **self._order.to_json(),
            "rivals": self._rivals(),
            "journal": str(each.journal),
            "tuning": self._tuning,
            "batch_sizes": batch_sizes,
            "workers": _compilers(len(self._processes)),
            "compile_limit_s": COMPILE_LIMIT_S,
            "ended": each.ended,
            "sm": self._sm,
            "number": each.number,
            "beside": [str(other.journal) for other in self._processes],
            "processes": len(self._processes),
        }
        environment = {**self._environment, "TRITON_CACHE_DIR": str(self.folder / "triton")}
        if each.gpu is not None:
            environment[devices.VISIBLE] = each.gpu
        each.measured_before = each.measured()
        each.oom_kills, each.log_start = oom_kills(), logs.size(each.log)
        each.buffer, each.patience_s, each.heard_at = b"", _STALL_S, time.monotonic()
        on_group = self._on_group if each.number == 0 else lambda group: None
        each.worker = each.stack.enter_context(
            ordered.working(_PROCESS, order, environment, each.log, on_group)
        )

    def _finish(self, each: _OnGpu, hung: str | None) -> bool:
        """End the process of a GPU; whether its work was finished. Raises StageFailure where
        beginning it again would not help.
        """
        assert each.worker is not None
        process, each.worker = each.worker.process, None
        try:
            if hung is None:
                process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            hung = f"it did not end within {_END_S:.0f} s of its work"
        each.stack.close()
        if hung is None and process.returncode == 0:
            return True
        each.ended = hung or ended(process.returncode)
        self._raise_hopeless(each, process.returncode if hung is None else None)
        self.outcome.restarts += 1
        if self.outcome.restarts > _FALLS:
            raise StageFailure(
                "tuner_failed",
                f"the tuner's process ended {self.outcome.restarts} times, last: {each.ended}",
                each.tail(),
            )
        return False

    def _rivals(self) -> dict[str, Any]:
        """The tables that stood when this tuning began: its own first rows are none of them."""
        path = self.folder / "rivals.json"
        noted = files.read_valid(path)
        if isinstance(noted.get("rivals"), dict):
            return dict(noted["rivals"])
        files.write_json(path, {"schema_version": "1", "rivals": self._order.rivals})
        return self._order.rivals

    def _raise_hopeless(self, each: _OnGpu, code: int | None) -> None:
        """Raise StageFailure where no configuration is to blame for the process's end."""
        tail = each.tail()
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
        said = logs.last_lines(each.log, each.log_start, _LAST_LINES)
        death = ENGINE.death(said, code, oom_kills_since(each.oom_kills))
        words = one_line(death.words, _WORDS)
        known = (
            death.remedy
            and death.error_type not in _OF_CONFIGURATIONS
            and _KERNEL_CRASHED not in death.words
        )
        on_gpu = f" of GPU {each.gpu}" if each.gpu else ""
        if code is not None and known:
            raise StageFailure(
                _OWN_TYPE.get(death.error_type, death.error_type),
                f"the tuner's process{on_gpu} ended ({each.ended}): {words or 'it said nothing'};"
                f" {death.remedy} (its kernels are in {paths.to_host(self.folder)})",
                tail,
            )
        if each.measured() == each.measured_before:
            cause = f": {words}" if words and code is not None else ""
            raise StageFailure(
                "tuner_failed",
                f"the tuner's process{on_gpu} ended before it measured anything: {each.ended}"
                f"{cause}; the log is {paths.to_host(each.log) or each.log}",
                tail,
            )
        before, each.raised = each.raised, ""
        if code == 1 and death.error_type not in _OF_CONFIGURATIONS and _OF_KERNELS not in words:
            each.raised = words
        if before and before == each.raised:
            # Two configurations that have nothing in common but these words.
            raise StageFailure(
                "tuner_failed",
                f"the tuner's process{on_gpu} ended twice with the same error: {words}; that is"
                " a fault of the tuner or of the installed SGLang: report it with the log"
                f" {paths.to_host(each.log) or each.log}, and skip the stage (--moe skip)",
                tail,
            )

    def _follow(self, batch_sizes: list[int], found: Found) -> None:
        """Read what the processes tell until all have ended, and begin those again that a
        configuration brought down. Raises StageFailure.
        """
        looked_at = -math.inf
        while running := {each.worker.stream: each for each in self._processes if each.worker}:
            ready, _, _ = select.select(list(running), [], [], 1.0)
            if time.monotonic() - looked_at > _LOOK_S:
                looked_at = time.monotonic()
                self._look_at_clocks()
            for stream, each in running.items():
                hung = None
                if stream in ready:
                    if self._hear(each, stream, found):
                        continue
                elif time.monotonic() - each.heard_at > each.patience_s:
                    hung = f"it reported nothing for {each.patience_s:.0f} s"
                else:
                    continue
                if not self._finish(each, hung):
                    self._begin(each, batch_sizes)

    def _hear(self, each: _OnGpu, stream: int, found: Found) -> bool:
        """Whether the process goes on."""
        each.heard_at = time.monotonic()
        if not (more := os.read(stream, 1 << 16)):
            return False
        *lines, each.buffer = (each.buffer + more).split(b"\n")
        for line in lines:
            each.patience_s = self._take(each, json.loads(line), found)
        return True

    def _take(self, each: _OnGpu, told: dict[str, Any], found: Found) -> float:
        """Do what a line tells; returns for how many seconds the next one may be awaited."""
        match told:
            case {"phase": str(phase), "done": int(done), "total": int(total)}:
                # One GPU's numbers show how far all of them are.
                if each.number == 0:
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
                each.compiled += count
                each.failed += failed
                each.compile_s += seconds
                self._sum_compiled()
            case {
                "batch_size": int(size),
                "best": dict(best),
                "row": dict(row),
                "looked": int(looked),
                "look_s": float(look_s),
            }:
                each.looked, each.look_s = looked, look_s
                self.outcome.looked = sum(one.looked for one in self._processes)
                self.outcome.look_s = round(sum(one.look_s for one in self._processes), 3)
                # One that was begun again tells what was found before, too.
                if size not in self.outcome.batch_sizes:
                    self.outcome.batch_sizes.append(size)
                    self.outcome.us[str(size)] = row["after"]
                    found(size, pair_of(best), row)
            case {"base": dict(base)}:
                self._order.base({int(size): pair_of(pair) for size, pair in base.items()})
            case {"rows": list(rows)}:
                self.outcome.rows = len(rows)
        return _STALL_S

    def _sum_compiled(self) -> None:
        """Several processes compile the same kernels together: what one waited for all of them
        counts once.
        """
        self.outcome.compiled = max(one.compiled for one in self._processes)
        self.outcome.dropped = max(one.failed for one in self._processes)
        self.outcome.compile_s = round(max(one.compile_s for one in self._processes), 3)

    def _look_at_clocks(self) -> None:
        for each in self._processes:
            try:
                reasons = devices.throttles(each.gpu or self._environment.get(devices.VISIBLE))
            except RuntimeError:
                return
            named = [f"{reason} ({each.gpu})" if each.gpu else reason for reason in reasons]
            self.outcome.throttled.extend(
                reason for reason in named if reason not in self.outcome.throttled
            )


def _compilers(processes: int) -> int:
    """For each process; one processor is left to each of them."""
    return max(1, len(os.sched_getaffinity(0)) // processes - 1)
