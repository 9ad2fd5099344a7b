"""What is seen of the host while it is measured: samples, ten a second, and what they say."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sgl_admin.contract import perf
from sgl_admin.facts import devices
from sgl_admin.facts.devices import GpuProcess, GpuSample
from sgl_admin.perf.verdict import Finding

PERIOD_S = 0.1
# How often the GPUs' processes are asked for.
_PROCESSES_S = 1.0
# A power cap is how a GPU at full load keeps to its limit, so it is not among the disturbances.
_CAP = "power cap"
# What other processes may have of all CPUs, in percent.
MOST_OTHERS = 10.0
# Of the samples in which a GPU was throttled, in percent.
_THROTTLED = 2.0
# Of the highest clock, what a GPU without a set limit reaches at some moment of a measurement, and
# how many samples that takes.
_REACHED, _LEAST_SAMPLES = 0.9, 50
# By how many seconds the wall clock may leave the monotonic one.
JUMP_S = 2.0
# Xids that a program brings about, by NVIDIA's k8s-device-plugin, which takes no GPU out of use for
# them (internal/rm/health.go); any other says that the GPU is not well.
_OF_PROGRAMS = (13, 31, 43, 45, 68, 109)
_PROC = Path("/proc")


@dataclass(frozen=True)
class Ticks:
    """Clock ticks since boot: of all CPUs, those in which they worked, and those of our own."""

    total: int
    busy: int
    own: int


@dataclass(frozen=True)
class Sample:
    """One moment, in seconds since the first sample."""

    at_s: float
    ticks: Ticks | None
    gpus: tuple[GpuSample, ...] = ()


@dataclass
class Seen:
    """All samples, the processes that used a GPU meanwhile, and by how many seconds the wall clock
    was set.
    """

    samples: list[Sample] = field(default_factory=list)
    processes: dict[int, GpuProcess] = field(default_factory=dict)
    clock_jump_s: float = 0.0

    def findings(self) -> list[Finding]:
        return [
            *_of_processes(list(self.processes.values())),
            *_of_cpus([sample.ticks for sample in self.samples if sample.ticks is not None]),
            *_of_gpus([sample.gpus for sample in self.samples]),
        ]

    @property
    def clock_was_set(self) -> bool:
        return abs(self.clock_jump_s) > JUMP_S


@contextmanager
def watching(
    group: int, cuda: bool, visible: str | None
) -> Iterator[tuple[Seen, Callable[[], None]]]:
    """What is seen, and what takes the next sample where it is due. Raises GpuUnavailable where a
    GPU is lost.
    """
    seen = Seen()
    if not cuda:
        yield seen, _Watch(seen, group, None, visible)
        return
    with devices.watching(visible) as gpus:
        yield seen, _Watch(seen, group, gpus, visible)


class _Watch:
    def __init__(
        self,
        seen: Seen,
        group: int,
        gpus: Callable[[], list[GpuSample]] | None,
        visible: str | None,
    ) -> None:
        self._seen, self._group, self._gpus, self._visible = seen, group, gpus, visible
        self._began, self._wall = time.monotonic(), time.time()
        self._due = self._processes_due = self._began

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + PERIOD_S
        elapsed = now - self._began
        self._seen.samples.append(take(elapsed, self._own_ticks, self._gpus))
        self._seen.clock_jump_s = time.time() - self._wall - elapsed
        if self._gpus and now >= self._processes_due:
            self._processes_due = now + _PROCESSES_S
            for process in devices.processes((self._group,), visible=self._visible):
                self._seen.processes.setdefault(process.pid, process)

    def _own_ticks(self) -> int:
        """Those of this process, and of the leader of the group that is watched."""
        return _ticks_of(os.getpid()) + _ticks_of(self._group)


def take(
    at_s: float, own: Callable[[], int | None], gpus: Callable[[], list[GpuSample]] | None
) -> Sample:
    """A sample of now; `own` counts our own ticks, `gpus` samples the GPUs."""
    return Sample(round(at_s, 3), ticks(own), tuple(gpus()) if gpus else ())


def ticks(own: Callable[[], int | None]) -> Ticks | None:
    """The CPUs' clock ticks by /proc/stat, of which `own` are our own; None where they cannot be
    read.
    """
    try:
        numbers = [int(word) for word in (_PROC / "stat").read_text().split("\n")[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = numbers
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq + steal
    ours = own()
    return None if ours is None else Ticks(busy + idle + iowait, busy, ours)


def _ticks_of(pid: int) -> int:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0


def _of_processes(processes: list[GpuProcess]) -> Iterator[Finding]:
    if processes:
        named = ", ".join(map(str, processes[:4]))
        yield Finding(perf.WARN, f"the GPU was used meanwhile by {named}: end that")


def _of_cpus(found: Sequence[Ticks]) -> Iterator[Finding]:
    """Other processes' part of all CPUs, by the differences of samples that follow each other."""
    total = others = backwards = 0
    for before, after in zip(found, found[1:], strict=False):
        if (part := since(before, after)) is None:
            # The measuring process has ended, or the counters began again.
            backwards += 1
            continue
        total += part.total
        others += part.busy - part.own
    if backwards > 1:
        yield Finding(
            perf.WARN,
            f"the CPUs' counters went backwards {backwards} times, so other load is not known",
        )
    if total and (percent := 100 * others / total) > MOST_OTHERS:
        yield Finding(
            perf.WARN,
            f"other processes had {percent:.0f}% of the CPUs meanwhile: end them (top shows them)",
        )


def since(before: Ticks, after: Ticks) -> Ticks | None:
    """The ticks between two moments; None where a counter went backwards."""
    part = Ticks(after.total - before.total, after.busy - before.busy, after.own - before.own)
    return None if min(part.total, part.busy, part.own) < 0 else part


def slowed_by(gpu: GpuSample) -> list[str]:
    """What holds the GPU's clocks down, but its power limit."""
    return sorted(set(gpu.throttles) - {_CAP})


def _of_gpus(found: Sequence[tuple[GpuSample, ...]]) -> Iterator[Finding]:
    for index in range(max(map(len, found), default=0)):
        samples = [gpus[index] for gpus in found if index < len(gpus)]
        yield from _of_throttles(index, samples)
        yield from _of_clocks(index, samples)
        errors = [each.uncorrectable for each in samples if each.uncorrectable is not None]
        yield from _of_errors(index, errors)
        yield from _of_xids(index, sorted({code for each in samples for code in each.xids}))


def _of_throttles(index: int, samples: list[GpuSample]) -> Iterator[Finding]:
    held = [slowed_by(each) for each in samples if slowed_by(each)]
    percent = 100 * len(held) / len(samples)
    if percent > _THROTTLED:
        words = ", ".join(sorted({name for each in held for name in each}))
        yield Finding(
            perf.WARN,
            f"GPU {index} was throttled ({words}) in {percent:.0f}% of the samples: look at its"
            " cooling and its power supply",
        )


def _of_clocks(index: int, samples: list[GpuSample]) -> Iterator[Finding]:
    """A clock that `nvidia-smi -lgc` has locked: NVML does not tell the limit, and names no reason
    for it.
    """
    clocks = [each.sm_mhz for each in samples if each.sm_mhz is not None]
    most = samples[-1].most_sm_mhz if samples else None
    if most and len(clocks) >= _LEAST_SAMPLES and max(clocks) < _REACHED * most:
        yield Finding(
            perf.WARN,
            f"GPU {index}'s clock never went above {max(clocks)} of {most} MHz: if a limit is set"
            f" (nvidia-smi -lgc), `nvidia-smi -i {index} -rgc` takes it off",
        )


def _of_errors(index: int, errors: list[int]) -> Iterator[Finding]:
    pairs = list(zip(errors, errors[1:], strict=False))
    if any(after < before for before, after in pairs):
        yield Finding(
            perf.WARN,
            f"GPU {index}'s count of ECC errors went backwards, as after a reset: measure again",
        )
    elif pairs and errors[-1] > errors[0]:
        yield Finding(
            perf.FAIL,
            f"GPU {index} had {errors[-1] - errors[0]} uncorrectable ECC errors meanwhile: reset it"
            " (`nvidia-smi -r`), and have it replaced if that comes again",
        )


def _of_xids(index: int, codes: list[int]) -> Iterator[Finding]:
    for code in codes:
        cause = "a program's own error" if code in _OF_PROGRAMS else "the GPU is not well"
        yield Finding(
            perf.WARN if code in _OF_PROGRAMS else perf.FAIL,
            f"GPU {index} had Xid {code} meanwhile ({cause}): `dmesg | grep Xid` on the host shows"
            " all of it",
        )
