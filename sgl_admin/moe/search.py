"""The search for the best launch configuration of each batch size.

Compiling is nearly all of the time, and a compiled kernel serves every batch size whose launches
have the same key (Triton's: it depends on a number only by whether it is 1 or a multiple of 16). So
batch sizes that launch the same kernels are tuned together. The largest such group tries every
configuration; another one, whose kernels differ in nothing that changes which tile is good, only
those that were best at the nearest batch size tried before. Among the tried ones a first look
leaves few, and these are measured against each other in turns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from sgl_admin.moe.journal import Journal
from sgl_admin.moe.space import Config, compile_order

# Of a later group this share of all configurations, of the same group that one, and at least so
# many: measured in docs/benchmarks.
_LATER_SHARE, _SAME_SHARE, _LATER_LEAST = 0.15, 0.5, 128
# A first look ends where one run took so many times the best so far and this many microseconds
# more, which a launch by itself takes.
_HOPELESS_TIMES, _LAUNCH_US = 3.0, 600.0
# How many stay after the first look, after the second, and how many turns each of these two then
# takes.
_SECOND, _SECOND_TURNS = 24, 3
_LAST, _LAST_TURNS = 6, 15


class CannotRun(Exception):
    """A configuration cannot be launched: it does not fit the GPU, or is none."""


class Bench(Protocol):
    """Measures on the GPU."""

    def look(self, size: int, config: Config, hopeless_us: float) -> float:
        """A first look, in microseconds: rough, and rougher above `hopeless_us`. Raises
        CannotRun.
        """

    def compare(self, size: int, configs: Sequence[Config], turns: int) -> list[float]:
        """Microseconds of each, measured in turns; infinite for one that cannot be captured."""


Progress = Callable[[str, int, int], None]
# Compiles launches, and returns why for each that could not be.
Compile = Callable[[Iterable[str], Callable[[int, int], None]], Mapping[str, str]]


class Search:
    def __init__(
        self,
        space: Sequence[Config],
        launches: Mapping[int, Sequence[tuple[str, ...]]],
        journal: Journal,
        bench: Bench,
        compile_all: Compile,
        progress: Progress,
    ) -> None:
        """`launches`: for each batch size the launches of each configuration, by their keys; empty
        for one that has none.
        """
        self._space = space
        self._launches = launches
        self._journal = journal
        self._bench = bench
        self._compile = compile_all
        self._progress = progress
        self._compiled: set[str] = set()
        # First looks so far, and the seconds that they took.
        self.looked = 0
        self.look_s = 0.0

    def run(self, found: Callable[[int, Config, float], None]) -> None:
        """Tune every batch size; `found` is told of each as soon as it is done, of what was done
        before at once. Raises CannotRun.
        """
        settled = self._journal.best
        for size in self._launches:
            # Whoever settled it may have been killed before it could tell.
            if size in settled:
                found(size, *settled[size])
        earlier: list[int] = []
        for group in grouped(self._launches):
            open_sizes = [size for size in group if size not in settled]
            # By the groups before alone: so one that was killed among these goes on with the same
            # candidates.
            later = (
                {
                    size: self._nearest_best(size, earlier, _LATER_SHARE, _LATER_LEAST)
                    for size in open_sizes
                }
                if earlier
                else {}
            )
            self._compile_group(later or {size: self._all(size) for size in open_sizes})
            for size in open_sizes:
                same = [other for other in group if other in settled]
                numbers = (
                    later[size]
                    if later
                    else self._nearest_best(size, same, _SAME_SHARE, _LATER_LEAST)
                )
                config, us = self._tune(size, numbers)
                self._journal.settle(size, config, us)
                found(size, config, us)
            earlier += group

    def _all(self, size: int) -> list[int]:
        """The configurations that can be launched, as far as is known before they are compiled."""
        return [number for number, launches in enumerate(self._launches[size]) if launches]

    def _nearest_best(self, size: int, tuned: Sequence[int], share: float, least: int) -> list[int]:
        """Those that were best at the nearest of the batch sizes that are tuned; all where none
        is.
        """
        everything = self._all(size)
        looked = {
            other: self._journal.looks[other] for other in tuned if self._journal.looks.get(other)
        }
        if not looked:
            return everything
        nearest = looked[min(looked, key=lambda other: abs(math.log(other / size)))]
        keep = max(least, round(share * len(everything)))
        # Those that could not run there, or were not looked at, come last.
        return sorted(sorted(everything, key=lambda number: nearest.get(number, math.inf))[:keep])

    def _compile_group(self, candidates: Mapping[int, Sequence[int]]) -> None:
        # Large tiles take longest, and would otherwise be what all wait for at the end.
        numbers = sorted(
            {number for each in candidates.values() for number in each},
            key=lambda number: compile_order(self._space[number]),
        )
        wanted = dict.fromkeys(
            launch
            for number in numbers
            for size, each in candidates.items()
            if number in each
            for launch in self._launches[size][number]
        )
        missing = [
            launch
            for launch in wanted
            if launch not in self._compiled and launch not in self._journal.dropped_launches
        ]
        if missing:
            for launch, why in self._compile(
                missing, lambda done, total: self._progress("compile", done, total)
            ).items():
                self._journal.drop_launch(launch, why)
            self._compiled.update(missing)

    def _tune(self, size: int, numbers: Sequence[int]) -> tuple[Config, float]:
        """Raises CannotRun where no configuration can be used."""
        looks = self._journal.looks.setdefault(size, {})
        best = min(looks.values(), default=math.inf)
        for done, number in enumerate(numbers):
            self._progress(f"batch size {size}", done, len(numbers))
            dropped = any(
                launch in self._journal.dropped_launches for launch in self._launches[size][number]
            )
            if dropped or number in looks or (size, number) in self._journal.dropped:
                continue
            self._journal.measuring(size, number)
            started = time.monotonic()
            try:
                us = self._bench.look(
                    size, self._space[number], best * _HOPELESS_TIMES + _LAUNCH_US
                )
            except CannotRun as error:
                self._journal.drop(size, number, str(error))
                continue
            finally:
                self.looked += 1
                self.look_s += time.monotonic() - started
            self._journal.look(size, number, us)
            best = min(best, us)
        left = sorted(
            (number for number in looks if (size, number) not in self._journal.dropped),
            key=lambda number: looks[number],
        )
        us_of: dict[int, float] = {}
        for count, turns in ((_SECOND, _SECOND_TURNS), (_LAST, _LAST_TURNS)):
            left = left[:count]
            measured = self._bench.compare(size, [self._space[number] for number in left], turns)
            us_of = dict(zip(left, measured, strict=True))
            left = sorted(left, key=lambda number: us_of[number])
        if not left or math.isinf(us_of[left[0]]):
            raise CannotRun(
                f"none of {len(numbers)} configurations can be used at batch size {size}"
            )
        return self._space[left[0]], us_of[left[0]]


def grouped(launches: Mapping[int, Sequence[tuple[str, ...]]]) -> list[list[int]]:
    """Batch sizes that launch the same kernels, the largest group first."""
    groups: dict[frozenset[str], list[int]] = {}
    for size in sorted(launches):
        groups.setdefault(
            frozenset(launch for each in launches[size] for launch in each), []
        ).append(size)
    return sorted(groups.values(), key=len, reverse=True)
