"""The search for the launch configurations of each batch size, and for the sizes that get a row.

Compiling is most of the time, and a compiled kernel serves every batch size whose launches have the
same key (Triton's: it depends on a number only by whether it is 1 or a multiple of 16). So batch
sizes that launch the same kernels are tuned one after the other, and only the first one tries
everything. Both projections are looked at apart; the best of each, with the same BLOCK_SIZE_M, are
measured as whole calls, in turns with their rivals. The sizes between those that were asked for are
filled with the rows of their neighbours and the rivals, and the rows are checked where they change.

Several GPUs share a search: each works at another size, so that what is compared was measured on
one of them, and takes up what the others have settled.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from sgl_admin.moe import space, tables, verdict
from sgl_admin.moe.claims import Claims
from sgl_admin.moe.journal import Journal, Settled
from sgl_admin.moe.space import DOWN, UP, UP_SORTED, USE_TMA, Trial, compile_order
from sgl_admin.moe.tables import Pair

# Of a batch size whose tiles were looked at for a near one, this share of them and at least so many
# in each stream (a projection, by TMA or not) and height of a tile.
_OTHER_SHARE, _SAME_SHARE, _LEAST = 0.4, 0.5, 8
# A first look ends where one run took so many times the best so far and this many microseconds
# more, which a launch by itself takes.
_HOPELESS_TIMES, _LAUNCH_US = 3.0, 600.0
# Heights of tiles that are refined: so many, and not slower than this by the looks.
_HEIGHTS, _HEIGHTS_WITHIN = 3, 1.2
# Of each stream and height, so many have all their variants tried.
_REFINED = 4
# Of each height, so many of each projection are paired; of all pairs so many stay after the looks,
# and so many are measured with the rivals. How many turns each of these takes.
_PAIRED = 3
_SECOND, _SECOND_TURNS = 16, 4
_LAST, _LAST_TURNS = 4, 24
_CHECK_TURNS = 12
# So many sizes may get a row because a check found a slower one there.
_MOST_INSERTED = 24
# Between two looks at what the other GPUs have settled.
_WAIT_S = 0.2


class CannotRun(Exception):
    """A configuration cannot be launched: it does not fit the GPU, or is invalid."""


class Bench(Protocol):
    """Measures on the GPU."""

    def group(self, size: int) -> str:
        """The same for batch sizes that launch the same kernels."""

    def launches(self, size: int, trial: Trial) -> Sequence[str]:
        """The kernels of a trial that are not loaded yet, by their keys. Raises CannotRun."""

    def rivals(self, size: int) -> Mapping[str, Pair]:
        """What SGLang would launch by the other tables."""

    def look(self, size: int, trial: Trial, hopeless_us: float) -> float:
        """A first look at one projection, in microseconds: rough, and rougher above `hopeless_us`.
        Raises CannotRun.
        """

    def check(self, size: int, pair: Pair) -> None:
        """Run a whole call once. Raises CannotRun."""

    def compare(self, size: int, pairs: Sequence[Pair], turns: int) -> list[list[float]]:
        """Microseconds of a whole call of each, in each turn."""


Progress = Callable[[str, int, int], None]
# Compiles launches, and returns why for each that could not be.
Compile = Callable[[Iterable[str], Callable[[int, int], None]], Mapping[str, str]]
Found = Callable[[int, Settled], None]
_Item = TypeVar("_Item", int, tuple[int, int])


class Search:
    def __init__(
        self,
        trials: Sequence[Trial],
        sizes: Sequence[int],
        rows_per_expert: float,
        journal: Journal,
        bench: Bench,
        compile_all: Compile,
        progress: Progress,
        claims: Claims | None = None,
        compile_ahead: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        """`rows_per_expert`: how many of one token's rows an expert has on average. `claims` are
        for work that other processes share. `compile_ahead` compiles beside the measuring.
        """
        self._trials = trials
        self._sizes = sorted(sizes)
        self._rows_per_expert = rows_per_expert
        self._journal = journal
        self._bench = bench
        self._compile_all = compile_all
        self._progress = progress
        self._claims = claims or Claims()
        self._compile_ahead = compile_ahead
        self._number = {_trial_key(trial): number for number, trial in enumerate(trials)}
        self._compiled: set[str] = set()
        self._launches: dict[tuple[str, str], tuple[str, ...]] = {}
        self._group: Callable[[int], str] = functools.cache(bench.group)
        self._rivals: Callable[[int], Mapping[str, Pair]] = functools.cache(bench.rivals)
        # First looks so far, and the seconds that they took.
        self.looked = 0
        self.look_s = 0.0

    def run(self, found: Found) -> None:
        """Tune every batch size; `found` is called for each as soon as it is done, and at once for
        those that were done before. Raises CannotRun.
        """
        for size, settled in list(self._journal.best.items()):
            # The process that settled it may have been killed before it could report it.
            found(size, settled)
        while True:
            tuned: list[int] = []
            for group in self.grouped(self._sizes):
                self._run_group(group, tuned, found)
                tuned += group
            if all(map(self._is_settled, self._sizes)):
                return
            self._wait()

    def _run_group(self, group: Sequence[int], tuned: Sequence[int], found: Found) -> None:
        unsettled = [size for size in group if not self._is_settled(size)]
        compiled = False
        # One of several GPUs begins with what its own size needs: waiting costs all of them.
        ahead = self._compile_ahead
        for size in self._claimed(unsettled, self._is_settled):
            if not compiled:
                # By the groups before alone: so one that was killed among these goes on with the
                # same candidates.
                wanted = [
                    (each, self._trials[number])
                    for each in unsettled
                    for number in self._first(each, tuned, _OTHER_SHARE)
                ]
                if ahead is None:
                    self._compile(wanted)
                else:
                    ahead(self._missing(wanted))
                compiled = True
            same = [other for other in group if other in self._journal.best]
            numbers = (
                self._first(size, same, _SAME_SHARE)
                if same
                else (self._first(size, tuned, _OTHER_SHARE))
            )
            self._settle(size, self._tuned(size, numbers), found, _LAST_TURNS)

    def fill(self, ladder: Iterable[int], known: Mapping[int, Pair], found: Found) -> list[int]:
        """Give a row to each size of the ladder, and to others where a check between two rows finds
        one that is slower than a rival there; returns the sizes of all rows.
        """

        def rows() -> dict[int, Pair]:
            return {**known, **{size: each.pair for size, each in self._journal.best.items()}}

        for size in self._until_done(
            sorted(ladder), lambda size: size in known or self._is_settled(size)
        ):
            self._settle(size, _near(rows(), size), found, _CHECK_TURNS)
        filled = len(rows())
        while open_gaps := [gap for gap in tables.gaps(rows()) if not self._is_checked(gap)]:
            for done, (low, high) in enumerate(self._until_done(open_gaps, self._is_checked)):
                size = tables.middle(low, high)
                self._progress(f"batch size {size}", done, len(open_gaps))
                is_free = len(rows()) - filled < _MOST_INSERTED
                if is_free and not self._holds(rows(), low, high):
                    self._settle(size, _near(rows(), size), found, _CHECK_TURNS)
                self._journal.check(low, high)
        return sorted(rows())

    # --- with other processes

    def _is_settled(self, size: int) -> bool:
        return size in self._journal.best

    def _is_checked(self, gap: tuple[int, int]) -> bool:
        return gap in self._journal.checked

    def _claimed(self, items: Sequence[_Item], is_done: Callable[[_Item], bool]) -> Iterator[_Item]:
        """Each that is left and that no other process works at, claimed as long as the caller works
        at it.
        """
        # Two processes begin at two ends: what is best at a size says most of the sizes near it.
        items = items[::-1] if self._claims.number % 2 else items
        # What this one began goes first: its looks are of this GPU.
        if not self._claims.is_alone:
            items = sorted(items, key=lambda item: item not in self._journal.begun)
        for item in items:
            if is_done(item):
                continue
            with self._claims.claim(str(item)) as is_mine:
                if not self._claims.is_alone:
                    self._journal.refresh()
                if is_mine and not is_done(item) and not self._is_anothers(item):
                    yield item

    def _is_anothers(self, item: object) -> bool:
        """Whether a process that works beside this one began it, and will go on with it."""
        journal = self._journal
        return item in journal.begun_beside and item not in journal.begun

    def _until_done(
        self, items: Sequence[_Item], is_done: Callable[[_Item], bool]
    ) -> Iterator[_Item]:
        """As `_claimed`, until other processes have done theirs too, or have ended."""
        while not all(map(is_done, items)):
            yield from self._claimed(items, is_done)
            if not all(map(is_done, items)):
                self._wait()

    def _wait(self) -> None:
        self._progress("the last sizes of the other GPUs", 0, 0)
        time.sleep(_WAIT_S)
        self._journal.refresh()

    def grouped(self, sizes: Iterable[int]) -> list[list[int]]:
        """Batch sizes that launch the same kernels, the largest group first."""
        groups: dict[str, list[int]] = {}
        for size in sorted(sizes):
            groups.setdefault(self._group(size), []).append(size)
        return sorted(groups.values(), key=len, reverse=True)

    # --- the trials of one size

    def _first(self, size: int, tuned: Sequence[int], share: float) -> list[int]:
        """The trials to begin with: of tiles whose height was looked at for another batch size,
        those that were best at the nearest one.
        """
        chosen: list[int] = []
        streams: dict[tuple[str, bool, int], list[int]] = {}
        for number, trial in enumerate(self._trials):
            if space.is_coarse(trial) and space.in_window(
                trial.config, size * self._rows_per_expert
            ):
                streams.setdefault(_stream(trial), []).append(number)
        for numbers in streams.values():
            looked = [
                other
                for other in tuned
                if any(number in self._journal.looks.get(other, {}) for number in numbers)
            ]
            if not looked:
                chosen += numbers
                continue
            looks = self._journal.looks[min(looked, key=lambda other: abs(math.log(other / size)))]
            # Those that could not run there, or were not looked at, come last.
            ranked = sorted(numbers, key=lambda number: looks.get(number, math.inf))
            chosen += ranked[: max(_LEAST, round(share * len(numbers)))]
        return sorted(chosen)

    def _tuned(self, size: int, numbers: Sequence[int]) -> list[Pair]:
        """The best pairs by the looks."""
        # A look compiles what is missing by itself, one after the other.
        self._compile((size, self._trials[number]) for number in numbers)
        self._look(size, numbers)
        variants = self._variants(size)
        self._compile((size, self._trials[number]) for number in variants)
        self._look(size, variants)
        pairs = self._pairs(size)
        if not pairs:
            return []
        pairs = self._runnable(size, pairs)
        taken = self._bench.compare(size, pairs, _SECOND_TURNS) if pairs else []
        ranked = sorted(
            zip(pairs, map(verdict.median, taken), strict=True), key=lambda each: each[1]
        )
        return [pair for pair, _ in ranked[:_LAST]]

    def _look(self, size: int, numbers: Sequence[int]) -> None:
        looks = self._journal.looks.setdefault(size, {})
        best: dict[str, float] = {}
        for number, us in looks.items():
            part = self._trials[number].part
            best[part] = min(us, best.get(part, math.inf))
        for done, number in enumerate(numbers):
            self._progress(f"batch size {size}", done, len(numbers))
            trial = self._trials[number]
            known = number in looks or (size, number) in self._journal.dropped
            if known or self._is_dropped(size, trial):
                continue
            self._journal.measuring(size, number)
            started = time.monotonic()
            fastest = best.get(trial.part, math.inf)
            try:
                us = self._bench.look(size, trial, fastest * _HOPELESS_TIMES + _LAUNCH_US)
            except CannotRun as error:
                self._journal.drop(size, number, str(error))
                continue
            finally:
                self.looked += 1
                self.look_s += time.monotonic() - started
            self._journal.look(size, number, us)
            best[trial.part] = min(fastest, us)

    def _ranked(self, size: int) -> dict[tuple[str, bool, int], list[int]]:
        """What was looked at, the best first, by projection, TMA and height of the tile."""
        looks = self._journal.looks.get(size, {})
        ranked: dict[tuple[str, bool, int], list[int]] = {}
        for number in sorted(looks, key=lambda each: (looks[each], each)):
            if (size, number) not in self._journal.dropped:
                ranked.setdefault(_stream(self._trials[number]), []).append(number)
        return ranked

    def _heights(self, size: int) -> list[int]:
        """The heights of tiles that are worth refining, by the first looks alone: so one that was
        killed goes on with the same ones.
        """
        looks = self._journal.looks.get(size, {})
        best: dict[tuple[str, int], float] = {}
        for (part, _, height), numbers in self._ranked(size).items():
            first = [looks[each] for each in numbers if space.is_coarse(self._trials[each])]
            if first:
                best[part, height] = min(first[0], best.get((part, height), math.inf))
        sums = {
            height: us + best[DOWN, height]
            for (part, height), us in best.items()
            if part == UP and (DOWN, height) in best
        }
        least = min(sums.values(), default=0.0)
        near = [height for height in sums if sums[height] <= least * _HEIGHTS_WITHIN]
        return sorted(near, key=lambda height: sums[height])[:_HEIGHTS]

    def _variants(self, size: int) -> list[int]:
        """The variants of the best: other orders of tiles, and the up projection with sorted
        rows.
        """
        heights = self._heights(size)
        chosen: set[int] = set()
        for (part, _, height), numbers in self._ranked(size).items():
            if height not in heights or part == UP_SORTED:
                continue
            coarse = [number for number in numbers if space.is_coarse(self._trials[number])]
            for number in coarse[:_REFINED]:
                config = self._trials[number].config
                for group_size in space.GROUP_SIZES:
                    for variant in (part, UP_SORTED) if part == UP else (part,):
                        trial = Trial(variant, {**config, "GROUP_SIZE_M": group_size})
                        variant_number = self._number.get(_trial_key(trial))
                        if variant_number is not None:
                            chosen.add(variant_number)
        return sorted(chosen)

    def _pairs(self, size: int) -> list[Pair]:
        """Both projections' best with tiles of one height, by the sum of their looks: as many whose
        down projection loads by TMA as others.
        """
        looks = self._journal.looks.get(size, {})
        ranked = self._ranked(size)
        found: dict[bool, list[tuple[float, Pair]]] = {False: [], True: []}
        for height, by_tma in itertools.product(self._heights(size), (False, True)):
            ups = [
                number
                for tma in (False, True)
                for number in ranked.get((UP_SORTED if by_tma else UP, tma, height), [])[:_PAIRED]
            ]
            downs = ranked.get((DOWN, by_tma, height), [])[:_PAIRED]
            for up, down in itertools.product(ups, downs):
                pair = Pair(self._trials[up].config, self._trials[down].config)
                found[by_tma].append((looks[up] + looks[down], pair))
        for each in found.values():
            each.sort(key=lambda one: one[0])
        half = _SECOND // 2
        left = found[False][: max(half, _SECOND - len(found[True]))]
        return [pair for _, pair in left + found[True][: _SECOND - len(left)]]

    # --- whole calls

    def _settle(self, size: int, pairs: Sequence[Pair], found: Found, turns: int) -> None:
        """Measure the pairs against the rivals, and give the size its row. Raises CannotRun where
        nothing can be used.
        """
        self._progress(f"batch size {size}", 0, 1)
        rivals = self._rivals(size)
        times = self._times(size, [*pairs, *rivals.values()], turns)
        decided = verdict.judge(
            times,
            [pair.key for pair in pairs if pair.key in times],
            {name: pair.key for name, pair in rivals.items() if pair.key in times},
        )
        if decided is None:
            raise CannotRun(f"no configuration can be used at batch size {size}")
        chosen = {pair.key: pair for pair in (*rivals.values(), *pairs)}[decided.chosen]
        settled = Settled(chosen, decided.describe())
        self._journal.settle(size, settled)
        found(size, settled)

    def _times(self, size: int, pairs: Sequence[Pair], turns: int) -> dict[str, list[float]]:
        """Of each pair that can run, by its key."""
        distinct = list({pair.key: pair for pair in pairs}.values())
        self._compile((size, trial) for pair in distinct for trial in trials_of(pair))
        runnable = self._runnable(size, distinct)
        if not runnable:
            return {}
        taken = self._bench.compare(size, runnable, turns)
        return {pair.key: times for pair, times in zip(runnable, taken, strict=True)}

    def _runnable(self, size: int, pairs: Sequence[Pair]) -> list[Pair]:
        """Those that run: each is tried alone first, so that one that brings the process down is
        known.
        """
        left = []
        for pair in pairs:
            dropped = (size, pair.key) in self._journal.dropped
            if dropped or any(self._is_dropped(size, trial) for trial in trials_of(pair)):
                continue
            self._journal.measuring(size, pair.key)
            try:
                self._bench.check(size, pair)
            except CannotRun as error:
                self._journal.drop(size, pair.key, str(error))
                continue
            left.append(pair)
            self._journal.measured(size)
        return left

    def _holds(self, rows: Mapping[int, Pair], low: int, high: int) -> bool:
        """Whether neither row is slower than a rival where the one gives way to the other."""
        size = tables.middle(low, high)
        here, beyond = self._rivals(size), self._rivals(size + 1)
        both = [rows[low], rows[high]]
        times = self._times(size, [*both, *here.values(), *beyond.values()], _CHECK_TURNS)
        for mine, rivals in zip(both, (here, beyond), strict=True):
            for rival in rivals.values():
                if rival.key not in times or rival.key == mine.key:
                    continue
                if mine.key not in times or verdict.is_faster(times[rival.key], times[mine.key]):
                    return False
        return True

    # --- kernels

    def _kernels(self, size: int, trial: Trial) -> tuple[str, ...]:
        """The kernels of a trial; none where it cannot be launched, which its measurement
        reports.
        """
        key = (self._group(size), _trial_key(trial))
        if key not in self._launches:
            try:
                self._launches[key] = tuple(self._bench.launches(size, trial))
            except CannotRun:
                self._launches[key] = ()
        return self._launches[key]

    def _is_dropped(self, size: int, trial: Trial) -> bool:
        return any(
            launch in self._journal.dropped_launches for launch in self._kernels(size, trial)
        )

    def _missing(self, wanted: Iterable[tuple[int, Trial]]) -> list[str]:
        # Large tiles take longest, and would otherwise be what all wait for at the end.
        ordered = sorted(wanted, key=lambda each: compile_order(each[1].config))
        launches = dict.fromkeys(
            launch for size, trial in ordered for launch in self._kernels(size, trial)
        )
        return [
            launch
            for launch in launches
            if launch not in self._compiled and launch not in self._journal.dropped_launches
        ]

    def _compile(self, wanted: Iterable[tuple[int, Trial]]) -> None:
        if missing := self._missing(wanted):
            for launch, why in self._compile_all(
                missing, lambda done, total: self._progress("compile", done, total)
            ).items():
                self._journal.drop_launch(launch, why)
            self._compiled.update(missing)


def _trial_key(trial: Trial) -> str:
    return f"{trial.part} {sorted(trial.config.items())}"


def _stream(trial: Trial) -> tuple[str, bool, int]:
    return trial.part, bool(trial.config.get(USE_TMA)), trial.config["BLOCK_SIZE_M"]


def trials_of(pair: Pair) -> tuple[Trial, Trial]:
    """The two kernels of a call."""
    return Trial(UP_SORTED if pair.by_tma else UP, pair.up), Trial(DOWN, pair.down)


def _near(rows: Mapping[int, Pair], size: int) -> list[Pair]:
    """The rows of a size's neighbours."""
    below = [each for each in rows if each <= size]
    above = [each for each in rows if each >= size]
    neighbours = ([max(below)] if below else []) + ([min(above)] if above else [])
    return list({rows[each].key: rows[each] for each in neighbours}.values())
