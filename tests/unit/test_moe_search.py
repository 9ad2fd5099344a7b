"""The search for the best launch configurations, on a GPU whose times are known."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.moe import search as searching
from sgl_admin.moe import space, tables
from sgl_admin.moe.journal import Journal
from sgl_admin.moe.search import CannotRun, Search
from sgl_admin.moe.space import DOWN, UP, UP_SORTED, USE_TMA, Config, Trial
from sgl_admin.moe.tables import Pair
from tests.doubles.moe_bench import DEFAULT, Bench, Compiler, Down, Tables, call_us, time_us

TUNING = {"E": 513, "N": 512}
GROUPS: dict[str, list[int]] = {"odd": [2, 4], "sixteens": [16, 32, 64, 128], "large": [1024]}
SIZES = sorted(itertools.chain(*GROUPS.values()))
CONFIGS = space.configs((128, 128))
# A default that nothing has to fear.
SLOW: Tables = {"default": ({1: {**DEFAULT, "BLOCK_SIZE_N": 32, "num_warps": 8}}, None)}
# Of one token, as of 10 experts of 512.
ROWS = 10 / 512


class Tried:
    """A search over a journal, and what came of it."""

    def __init__(
        self,
        journal: Path,
        configs: Sequence[Config],
        sizes: Sequence[int],
        bench: Bench,
        compiler: Compiler | None = None,
        up_tma: bool = False,
        down_tma: bool = True,
    ) -> None:
        self.bench = bench
        self.compiler = compiler or Compiler()
        self.journal = Journal(journal, TUNING)
        self.found: dict[int, Pair] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.told: list[tuple[str, int, int]] = []
        self.search = Search(
            space.trials(configs, up_tma, down_tma),
            sizes,
            ROWS,
            self.journal,
            bench,
            self.compiler,
            lambda *words: self.told.append(words),
        )

    def _take(self, size: int, settled: Any) -> None:
        self.found[size], self.rows[size] = settled.pair, settled.row

    def run(self, *ladder: int) -> dict[int, Pair]:
        try:
            self.search.run(self._take)
            if ladder:
                self.search.fill(ladder, {}, self._take)
        finally:
            self.journal.close()
        return self.found

    def looked(self, size: int) -> list[Trial]:
        return [trial for of_size, trial in self.bench.looked if of_size == size]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def best_of(size: int, by_tma: bool = True, configs: Sequence[Config] = CONFIGS) -> Pair:
    """The best pair of the whole space within the heights that suit the size, by brute force."""
    trials = [
        trial
        for trial in space.trials(configs, False, by_tma)
        if space.in_window(trial.config, size * ROWS)
    ]
    pairs = []
    for height in {trial.config["BLOCK_SIZE_M"] for trial in trials}:
        for tma in (False, True) if by_tma else (False,):
            of_height = [trial for trial in trials if trial.config["BLOCK_SIZE_M"] == height]
            ups = [each for each in of_height if each.part == (UP_SORTED if tma else UP)]
            downs = [
                each
                for each in of_height
                if each.part == DOWN and bool(each.config.get(USE_TMA)) is tma
            ]
            up, down = (min(each, key=lambda trial: time_us(size, trial)) for each in (ups, downs))
            pairs.append(Pair(up.config, down.config))
    return min(pairs, key=lambda pair: call_us(size, pair))


@pytest.mark.parametrize("down_tma", [False, True])
def test_the_best_pair_of_each_batch_size_is_found(path: Path, down_tma: bool) -> None:
    found = Tried(path, CONFIGS, SIZES, Bench(GROUPS, rivals=SLOW), down_tma=down_tma).run()
    assert sorted(found) == SIZES
    for size, pair in found.items():
        # As near as a look can tell them apart.
        assert call_us(size, pair) <= call_us(size, best_of(size, down_tma)) * 1.01, size
        assert pair.by_tma is down_tma
        assert pair.up["BLOCK_SIZE_M"] == pair.down["BLOCK_SIZE_M"]
        assert pair.up["BLOCK_SIZE_N"] < pair.down["BLOCK_SIZE_N"], "tuned apart"
    assert len({pair.key for pair in found.values()}) > 2, "one that suits all would show nothing"


def test_the_up_projection_is_tried_by_tma_where_the_release_can(path: Path) -> None:
    tried = Tried(path, CONFIGS, [64], Bench({"a": [64]}, rivals=SLOW), up_tma=True)
    assert tried.run()[64].up[USE_TMA] is True
    assert {(trial.part, bool(trial.config.get(USE_TMA))) for trial in tried.looked(64)} == {
        (part, tma) for part in (UP, UP_SORTED, DOWN) for tma in (False, True)
    }


def test_the_largest_group_comes_first_and_its_first_size_tries_everything(path: Path) -> None:
    tried = Tried(path, CONFIGS, SIZES, Bench(GROUPS))
    assert list(tried.run()) == [16, 32, 64, 128, 2, 4, 1024]
    coarse = [
        trial
        for trial in space.trials(CONFIGS, False, True)
        if space.is_coarse(trial) and space.in_window(trial.config, 16 * ROWS)
    ]
    assert tried.looked(16)[: len(coarse)] == coarse
    assert len(tried.compiler.asked[0]) == len(coarse), "all of the first group's at once"
    assert all(len(tried.looked(size)) < len(tried.looked(16)) for size in (32, 64, 2, 4))
    heights = {trial.config["BLOCK_SIZE_M"] for trial in tried.looked(1024)}
    assert heights == {16, 32, 64}, "as high as 80 rows of an expert are, and a fourth of that"


def test_what_is_looked_at_was_compiled_with_others(path: Path) -> None:
    """A look compiles what is missing by itself, one after the other: 11 s of one size's, on an
    H200.
    """
    bench = Bench(GROUPS, rivals=SLOW)
    tried = Tried(path, CONFIGS, SIZES, bench)
    tried.run()
    compiled = set(itertools.chain(*tried.compiler.asked))
    looked = {launch for size, trial in bench.looked for launch in bench.launches(size, trial)}
    assert looked <= compiled


def test_what_compiles_longest_is_asked_for_first(path: Path) -> None:
    tried = Tried(path, CONFIGS, [16], Bench({"a": [16]}))
    tried.run()
    tiles = [json.loads(f"[{launch.partition('(')[2][:-1]}]") for launch in tried.compiler.asked[0]]
    orders = [-tile[0] * tile[1] * tile[5] for tile in tiles]
    assert orders == sorted(orders)


def test_sizes_that_launch_the_same_are_one_group(path: Path) -> None:
    tried = Tried(path, CONFIGS[:3], SIZES, Bench(GROUPS))
    assert tried.search.grouped(SIZES) == [[16, 32, 64, 128], [2, 4], [1024]]


def test_a_configuration_whose_launch_was_dropped_is_never_measured(path: Path) -> None:
    bench = Bench({"a": [16, 32]}, rivals=SLOW)
    best = best_of(16)
    [launch] = bench.launches(16, Trial(DOWN, best.down))
    compiler = Compiler({launch: "its compiler took more than 120 s"})
    tried = Tried(path, CONFIGS, [16, 32], bench, compiler)
    found = tried.run()
    assert Trial(DOWN, best.down) not in [trial for _, trial in bench.looked]
    assert all(pair.down != best.down for _, pairs, _ in bench.compared for pair in pairs)
    assert found[16].down != best.down and Journal(path, TUNING).dropped_launches == (
        compiler.failing
    )


def test_one_that_cannot_run_is_dropped_and_the_best_of_the_others_is_taken(path: Path) -> None:
    best = best_of(16)

    def cannot_run(size: int, trial: Trial) -> bool:
        return trial.part == DOWN and trial.config == best.down

    found = Tried(path, CONFIGS, [16], Bench({"a": [16]}, cannot_run, SLOW)).run()
    assert found[16].down != best.down and found[16].by_tma
    assert set(Journal(path, TUNING).dropped.values()) == {"out of resource: shared memory"}


def test_nothing_that_can_be_used_is_told(path: Path) -> None:
    tried = Tried(path, CONFIGS[:20], [16], Bench({"a": [16]}, lambda size, trial: True))
    with pytest.raises(CannotRun, match="no configuration can be used at batch size 16"):
        tried.run()
    assert Journal(path, TUNING).best == {}


def test_where_no_tuned_one_runs_a_rivals_row_is_written(path: Path) -> None:
    bench = Bench({"a": [16]}, lambda size, trial: trial.config != DEFAULT)
    tried = Tried(path, CONFIGS[:20], [16], bench)
    assert tried.run() == {16: Pair(DEFAULT, DEFAULT)}
    assert tried.rows[16]["source"] == "default"


# --- rivals ---------------------------------------------------------------------------------------


def test_every_rival_is_measured_in_the_turns_of_the_last_comparison(path: Path) -> None:
    slow = {**DEFAULT, "BLOCK_SIZE_N": 32, "num_warps": 8}
    shipped, near, before = ({64: {**slow, "num_stages": stages}} for stages in (2, 4, 5))
    rivals: Tables = {
        **SLOW,
        "shipped": (shipped, {64: {**shipped[64], USE_TMA: True}}),
        "nearest:NVIDIA H200": (near, None),
        "previous": (before, None),
    }
    tried = Tried(path, CONFIGS, [64], Bench({"a": [64]}, rivals=rivals))
    tried.run()
    _, pairs, turns = tried.bench.compared[-1]
    theirs = list(tried.bench.rivals(64).values())
    assert len(theirs) == 4 and all(rival in pairs for rival in theirs) and turns == 24
    row = tried.rows[64]
    assert row["source"] == "tuned" and row["after"] == round(call_us(64, tried.found[64]), 3)
    for name, rival in zip(("default", "shipped", "nearest", "previous"), theirs, strict=True):
        assert row[name] == round(call_us(64, rival), 3)


@pytest.mark.parametrize(
    ("wins_by", "source"), [(0.0, "shipped"), (0.009, "shipped"), (0.02, "tuned")]
)
def test_a_row_is_replaced_only_by_one_that_wins_by_more_than_a_hundredth(
    path: Path, wins_by: float, source: str
) -> None:
    best, shipped = best_of(64), {64: {**DEFAULT, "GROUP_SIZE_M": 7}}

    def time_of(size: int, trial: Trial) -> float:
        if trial.config["GROUP_SIZE_M"] == 7:
            return (call_us(64, best) / (1 - wins_by) - 20) / 2
        return time_us(size, trial)

    bench = Bench({"a": [64]}, rivals={**SLOW, "shipped": (shipped, None)}, time_of=time_of)
    tried = Tried(path, CONFIGS, [64], bench)
    tried.run()
    assert tried.rows[64]["source"] == source
    assert tried.found[64] == (best if source == "tuned" else Pair(shipped[64], shipped[64]))


# --- the whole ladder -----------------------------------------------------------------------------


# Of no space, so that a rival may have something that no search finds.
THEIRS = [{**config, "GROUP_SIZE_M": 7} for config in CONFIGS[::33]]


def random_times(seed: int) -> Any:
    """Times that grow with the size as each tile has it, so that which one is best changes, and
    rivals are best at some.
    """
    made: dict[str, tuple[float, float, float]] = {}

    def time_of(size: int, trial: Trial) -> float:
        key = f"{trial.part} {sorted(trial.config.items())}"
        if key not in made:
            chance = random.Random(f"{seed} {key}")
            theirs = trial.config["GROUP_SIZE_M"] == 7 or trial.config == DEFAULT
            start = chance.uniform(15, 45) if theirs else chance.uniform(30, 60)
            made[key] = start, 2 ** chance.uniform(3, 11), chance.uniform(0.4, 1.3)
        start, knee, power = made[key]
        return start * (1 + (size / knee) ** power)

    return time_of


def random_table(chance: random.Random, largest: int) -> dict[int, Config]:
    sizes = chance.sample(range(1, largest + 1), chance.randint(1, 12))
    return {size: chance.choice(THEIRS) for size in sorted(sizes)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_the_files_are_nowhere_slower_than_any_rival(path: Path, seed: int) -> None:
    """As SGLang reads them, at every size, whatever the times are: by no more than what a row has
    to win by, and what the times can move between two checked sizes.
    """
    chance, largest = random.Random(seed), 2048
    rivals: dict[str, Any] = {}
    for name in chance.sample(["shipped", "nearest:NVIDIA H200", "previous"], chance.randint(0, 3)):
        up = random_table(chance, largest)
        by_tma = {size: {**config, USE_TMA: True} for size, config in up.items()}
        rivals[name] = (up, chance.choice([None, by_tma]))
    sizes = sorted(chance.sample(range(1, largest), 5))
    time_of = random_times(seed)
    bench = Bench({"odd": [size for size in sizes if size % 16]}, rivals=rivals, time_of=time_of)
    keys = tables.ladder(sizes, {size for up, _ in rivals.values() for size in up}, largest)
    found = Tried(path, space.configs((128, 128), 24), sizes, bench).run(*keys)
    up, down = ({size: pair[part] for size, pair in sorted(found.items())} for part in (0, 1))
    for size in range(1, largest + 1):
        ours = call_us(size, tables.row(up, down, size), time_of)
        for name, rival in bench.rivals(size).items():
            assert ours <= call_us(size, rival, time_of) * 1.025, (size, name)


def test_a_size_between_two_rows_that_is_slower_than_a_rival_gets_its_own_row(path: Path) -> None:
    """As was measured on an H200: 2048 took the row of 1024, a fifth slower than no file."""

    def time_of(size: int, trial: Trial) -> float:
        steep = trial.config["BLOCK_SIZE_M"] == 16
        return 100 + (max(0, size - 40) * 5 if steep else 20 + size / 100)

    bench = Bench({"a": [32, 64]}, time_of=time_of)
    configs = [config for config in CONFIGS if config["BLOCK_SIZE_M"] == 16]
    tried = Tried(path, configs, [32, 64], bench)
    found = tried.run(32, 64)
    assert found[32].up["BLOCK_SIZE_M"] == 16 and found[64] == Pair(DEFAULT, DEFAULT)
    inserted = sorted(set(found) - {32, 64})
    assert 48 in inserted and found[48] == Pair(DEFAULT, DEFAULT)


def test_a_filled_size_tries_its_neighbours_rows_and_the_rivals_alone(path: Path) -> None:
    groups = {"a": [16, 32, 64]}
    first = Tried(path, CONFIGS, [16, 64], Bench(groups, rivals=SLOW))
    first.run()
    again = Tried(path, CONFIGS, [16, 64], Bench(groups, rivals=SLOW))
    again.run(16, 32, 64)
    assert again.bench.looked == [] and first.bench.looked
    pairs, turns = next(each[1:] for each in again.bench.compared if each[0] == 32)
    neighbours = {again.found[16].key, again.found[64].key}
    default = again.bench.rivals(32)["default"]
    assert {pair.key for pair in pairs} == {*neighbours, default.key} and turns == 12


def test_the_ladder_has_powers_of_two_their_middles_and_what_was_asked_for() -> None:
    assert tables.ladder([48, 5], [1536, 20000], 100) == [
        1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 100,
    ]  # fmt: skip
    assert tables.ladder([200], [], 100)[-1] == 200, "what was asked for has a row"


# --- killed ---------------------------------------------------------------------------------------

# Few enough to be brought down at each call.
FEW = space.configs((128, 128), 12)
SMALL = {"sixteens": [16, 32], "odd": [2]}
LADDER = (2, 8, 16, 32)


def cannot(size: int, trial: Trial) -> bool:
    return trial.config["BLOCK_SIZE_M"] == 32 and trial.config["num_stages"] == 5


@pytest.fixture
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_LEAST", 2)
    monkeypatch.setattr(searching, "_REFINED", 1)


@pytest.mark.slow
def test_a_search_that_is_brought_down_at_any_call_ends_as_one_that_is_not(
    tmp_path: Path, least: None
) -> None:
    whole = Tried(tmp_path / "whole", FEW, [2, 16, 32], Bench(SMALL, cannot))
    expected = whole.run(*LADDER)
    for number in range(1, whole.bench.calls + 1):
        path = tmp_path / f"{number}"
        first = Tried(path, FEW, [2, 16, 32], Bench(SMALL, cannot))
        first.bench.down_at = number
        with pytest.raises(Down):
            first.run(*LADDER)
        again = Tried(path, FEW, [2, 16, 32], Bench(SMALL, cannot))
        assert again.run(*LADDER) == expected, number
        # Neither is a look done twice, nor is anything looked at that an undisturbed search would
        # leave out.
        looks = [repr(each) for each in first.bench.looked + again.bench.looked]
        assert sorted(looks) == sorted(repr(each) for each in whole.bench.looked), number
        settled = set(first.found)
        assert not {size for size, _ in again.bench.looked} & settled, number
        lost = set(expected) - settled - set(again.rows)
        assert not lost
        path.unlink()


@pytest.mark.slow
def test_every_write_of_the_journal_may_be_the_last_one(tmp_path: Path, least: None) -> None:
    """Torn after each line and in each one's middle: what was settled stays, at most one size is
    measured again.
    """
    whole = Tried(tmp_path / "whole", FEW, [2, 16, 32], Bench(SMALL, cannot))
    expected = whole.run(*LADDER)
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    settled_by = list(itertools.accumulate('"row"' in line for line in lines))
    for number in range(1, len(lines)):
        torn = tmp_path / "torn"
        torn.write_text("".join(lines[:number]) + lines[number][: len(lines[number]) // 2])
        again = Tried(torn, FEW, [2, 16, 32], Bench(SMALL, cannot))
        assert again.run(*LADDER) == expected, number
        measured = {size for size, _, turns in again.bench.compared if turns != 4}
        kept = settled_by[number - 1]
        assert len(set(expected)) - kept <= len(measured) + 1


def test_a_pair_that_brought_the_process_down_is_not_tried_again(path: Path) -> None:
    best = best_of(16)
    journal = Journal(path, TUNING)
    journal.drop(16, best.key, "the process that measured it ended: exit code -11")
    journal.close()
    found = Tried(path, CONFIGS, [16], Bench({"a": [16]})).run()
    assert found[16] != best


def test_what_was_settled_is_told_again_and_not_measured(path: Path) -> None:
    first = Tried(path, FEW, [16, 32], Bench({"a": [16, 32]})).run()
    # Killed after it was noted and before it was reported.
    again = Tried(path, FEW, [16, 32], Bench({"a": [16, 32]}))
    assert again.run() == first and again.bench.calls == 0 and again.compiler.asked == []


def test_a_look_is_given_up_by_the_best_so_far(path: Path) -> None:
    tried = Tried(path, CONFIGS, [16], Bench({"a": [16]}))
    tried.run()
    assert tried.bench.hopeless[0] == math.inf
    first: Mapping[int, float] = tried.journal.looks[16]
    numbers = [
        number
        for number, trial in enumerate(space.trials(CONFIGS, False, True))
        if trial.part == UP and space.is_coarse(trial) and number in first
    ]
    looks = [first[number] for number in numbers]
    assert tried.bench.hopeless[1 : len(looks)] == [
        min(looks[:count]) * 3 + 600 for count in range(1, len(looks))
    ]
