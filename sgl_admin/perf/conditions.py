"""What disturbs a benchmark: the conditions that hold at a moment, by the samples before it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sgl_admin.facts.devices import GpuProcess
from sgl_admin.perf import watch
from sgl_admin.perf.watch import Sample

THROTTLED, GPU_PROCESS, ECC, XID, CPU, GOVERNOR, CLOCK, UNWATCHED = KINDS = (
    "throttled",
    "gpu_process",
    "ecc",
    "xid",
    "cpu",
    "governor",
    "clock",
    # What could not be read, so that nothing is known of it.
    "unwatched",
)
CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
# Over so many seconds the load of others is averaged: a login or an Ansible module takes less.
_CPU_S = 5.0


@dataclass(frozen=True)
class Condition:
    """What holds, and by `subject` of what. Of its sentences that with the largest `extent` counts;
    `since_s` is from when on it was seen, where that is not this moment.
    """

    kind: str
    subject: str
    what: str
    extent: float = 0.0
    since_s: float | None = None


@dataclass(frozen=True)
class CpuClocks:
    """The CPUs' governors, each once, and their frequencies now."""

    governors: tuple[str, ...] = ()
    mean_hz: float | None = None
    least_hz: float | None = None


@dataclass(frozen=True)
class Moment:
    """One sample, and what else was seen with it. `unread` is what could not be read, and why."""

    sample: Sample
    wall_s: float
    processes: tuple[GpuProcess, ...] = ()
    cpus: CpuClocks = CpuClocks()
    unread: tuple[str, ...] = ()


@dataclass
class Conditions:
    """Keeps of the moments before what the next one is compared with."""

    _recent: deque[Moment] = field(default_factory=deque)
    _governors: tuple[str, ...] = ()
    # Other processes' part of the CPUs in the last seconds, in percent.
    others_percent: float | None = None

    def at(self, moment: Moment) -> list[Condition]:
        while self._recent and moment.sample.at_s - self._recent[0].sample.at_s > _CPU_S:
            self._recent.popleft()
        before = self._recent[-1] if self._recent else None
        self._recent.append(moment)
        found = [Condition(UNWATCHED, each, each) for each in moment.unread]
        found += [
            Condition(GPU_PROCESS, str(each.pid), f"the GPU was used by {each}", each.memory_mib)
            for each in moment.processes
        ]
        found += [*_throttles(moment.sample), *_xids(moment.sample)]
        found += self._of_cpus()
        found += self._of_governors(moment.cpus.governors)
        if before is not None:
            found += [*_errors(before.sample, moment.sample), *_jump(before, moment)]
        return found

    def _of_cpus(self) -> Iterator[Condition]:
        self.others_percent = None
        first, last = self._recent[0].sample, self._recent[-1].sample
        if last.ticks is None or first.ticks is None:
            yield Condition(UNWATCHED, "cpu", "the load of the CPUs could not be read")
            return
        if first is last:
            return
        part = watch.since(first.ticks, last.ticks)
        if part is None or not part.total:
            while len(self._recent) > 1:
                self._recent.popleft()
            yield Condition(UNWATCHED, "cpu", "the counters of the CPUs were set back, or stood")
            return
        percent = max(0.0, 100 * (part.busy - part.own) / part.total)
        self.others_percent = percent
        if percent > watch.MOST_OTHERS:
            what = f"other processes had {percent:.0f}% of the CPUs"
            yield Condition(CPU, "", what, percent, since_s=first.at_s)

    def _of_governors(self, governors: tuple[str, ...]) -> Iterator[Condition]:
        self._governors = self._governors or governors
        if governors and governors != self._governors:
            before, now = " and ".join(self._governors), " and ".join(governors)
            yield Condition(GOVERNOR, now, f"the CPUs' governor was set from {before} to {now}")


def _throttles(sample: Sample) -> Iterator[Condition]:
    for index, gpu in enumerate(sample.gpus):
        if held := ", ".join(watch.slowed_by(gpu)):
            yield Condition(THROTTLED, f"{index} {held}", f"GPU {index} was throttled ({held})")


def _xids(sample: Sample) -> Iterator[Condition]:
    for index, gpu in enumerate(sample.gpus):
        for code in sorted(set(gpu.xids)):
            yield Condition(XID, f"{index} {code}", f"GPU {index} had Xid {code}")


def _errors(before: Sample, after: Sample) -> Iterator[Condition]:
    for index, (earlier, later) in enumerate(zip(before.gpus, after.gpus, strict=False)):
        if earlier.uncorrectable is None or later.uncorrectable is None:
            continue
        more = later.uncorrectable - earlier.uncorrectable
        if more:
            what = (
                f"GPU {index} had {more} uncorrectable ECC errors"
                if more > 0
                else f"GPU {index}'s count of ECC errors went backwards, as after a reset"
            )
            yield Condition(ECC, f"{index} {later.uncorrectable}", what)


def _jump(before: Moment, after: Moment) -> Iterator[Condition]:
    jump_s = after.wall_s - before.wall_s - (after.sample.at_s - before.sample.at_s)
    if abs(jump_s) > watch.JUMP_S:
        what = f"the host's clock was set by {jump_s:+.0f} s"
        yield Condition(CLOCK, f"{after.sample.at_s}", what)


def cpu_clocks() -> CpuClocks:
    """As the kernel's cpufreq says; a virtual machine has none of it."""
    governors, frequencies = set(), []
    for policy in CPUFREQ.glob("policy*"):
        try:
            governors.add((policy / "scaling_governor").read_text().strip())
            frequencies.append(1000.0 * int((policy / "scaling_cur_freq").read_text()))
        except (OSError, ValueError):
            continue
    return CpuClocks(
        tuple(sorted(governors)),
        statistics.fmean(frequencies) if frequencies else None,
        min(frequencies, default=None),
    )
