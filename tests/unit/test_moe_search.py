"""The search for the best launch configuration, on a GPU whose times are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.moe import search as searching
from sgl_admin.moe import space
from sgl_admin.moe.journal import Journal
from sgl_admin.moe.search import CannotRun, Search
from sgl_admin.moe.space import Config
from tests.doubles.moe_bench import Bench, Compiler, Down, launches_of, time_us

TUNING = {"E": 513, "N": 512}
GROUPS: dict[str, list[int]] = {"odd": [2, 4], "sixteens": [16, 32, 64, 128], "large": [1024]}
CONFIGS = space.configs((128, 128))


class Tried:
    """A search over a journal, and what came of it."""

    def __init__(
        self,
        journal: Path,
        configs: Sequence[Config],
        launches: Mapping[int, Sequence[tuple[str, ...]]],
        bench: Bench,
        compiler: Compiler | None = None,
    ) -> None:
        self.bench = bench
        self.compiler = compiler or Compiler()
        self.journal = Journal(journal, TUNING)
        self.found: dict[int, tuple[Config, float]] = {}
        self.told: list[tuple[str, int, int]] = []
        self.search = Search(
            configs,
            launches,
            self.journal,
            bench,
            self.compiler,
            lambda *words: self.told.append(words),
        )

    def run(self) -> dict[int, tuple[Config, float]]:
        try:
            self.search.run(lambda size, config, us: self.found.update({size: (config, us)}))
        finally:
            self.journal.close()
        return self.found

    def looked(self, size: int) -> list[Config]:
        return [config for of_size, config in self.bench.looked if of_size == size]

    def compiled(self) -> list[set[int]]:
        """The numbers of the configurations of each compilation."""
        return [{int(launch.split()[2]) for launch in launches} for launches in self.compiler.asked]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def best_of(size: int, configs: Sequence[Config] = CONFIGS) -> Config:
    return min(configs, key=lambda config: time_us(size, config))


def test_the_best_of_each_batch_size_is_found(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of(GROUPS, CONFIGS), Bench())
    found = tried.run()
    assert sorted(found) == [2, 4, 16, 32, 64, 128, 1024]
    for size in found:
        reachable = [CONFIGS[number] for number in tried.journal.looks[size]]
        assert found[size] == (best_of(size, reachable), time_us(size, best_of(size, reachable)))
        assert found[size][0] == best_of(size)
    assert len({tuple(config.values()) for config, _ in found.values()}) > 2, (
        "one that suits all would show nothing"
    )
    assert (tried.search.looked, tried.search.look_s >= 0) == (len(tried.bench.looked), True)


def test_the_largest_group_comes_first_and_its_first_size_tries_everything(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of(GROUPS, CONFIGS), Bench())
    assert list(tried.run()) == [16, 32, 64, 128, 2, 4, 1024]
    assert [len(tried.looked(size)) for size in (16, 32, 64, 128)] == [1280, 640, 640, 640]
    assert tried.looked(16) == CONFIGS
    assert tried.compiled()[0] == set(range(1280)), "all of the first group's at once"
    assert tried.told[0] == ("compile", 2560, 2560) and ("batch size 16", 0, 1280) in tried.told


def test_what_compiles_longest_is_asked_for_first(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS), Bench())
    tried.run()
    orders = [
        space.compile_order(CONFIGS[int(launch.split()[2])]) for launch in tried.compiler.asked[0]
    ]
    assert orders == sorted(orders)


def test_a_later_group_compiles_only_what_was_best_nearby(path: Path) -> None:
    tried = Tried(
        path,
        CONFIGS,
        launches_of({"odd": [2], "sixteens": [16, 256], "large": [1024]}, CONFIGS),
        Bench(),
    )
    tried.run()
    for later, nearest in ((1, 16), (2, 256)):
        looks = tried.journal.looks[nearest]
        assert tried.compiled()[later] == set(
            sorted(looks, key=lambda number: looks[number])[:192]
        ), "15% of 1280"
    assert tried.looked(2) == [CONFIGS[number] for number in sorted(tried.compiled()[1])]


def test_a_later_group_of_a_small_sample_tries_at_least_128(path: Path) -> None:
    sample = space.configs((128, 128), 300)
    tried = Tried(path, sample, launches_of({"a": [16, 32], "b": [2]}, sample), Bench())
    tried.run()
    assert [len(tried.looked(size)) for size in (16, 32, 2)] == [300, 150, 128]


def test_a_group_of_later_sizes_compiles_what_any_of_them_wants(path: Path) -> None:
    launches = launches_of({"sixteens": [16, 32, 2048], "odd": [2, 1000]}, CONFIGS)
    tried = Tried(path, CONFIGS, launches, Bench())
    tried.run()
    wanted = [{CONFIGS.index(config) for config in tried.looked(size)} for size in (2, 1000)]
    assert wanted[0] != wanted[1] and tried.compiled()[1] == wanted[0] | wanted[1]


def test_sizes_that_launch_the_same_are_one_group() -> None:
    found = searching.grouped(
        launches_of({"odd": [2, 4], "sixteens": [128, 16, 64], "large": [1024]}, CONFIGS[:3])
    )
    assert found == [[16, 64, 128], [2, 4], [1024]]


def test_a_configuration_whose_launch_was_dropped_is_never_measured(path: Path) -> None:
    best = CONFIGS.index(best_of(16))
    compiler = Compiler(
        {
            f"a down {best}": "its compiler took more than 120 s",
            "a up 7": "its compiler ended with exit code 9",
        }
    )
    tried = Tried(path, CONFIGS, launches_of({"a": [16, 32]}, CONFIGS), Bench(), compiler)
    found = tried.run()
    measured = [config for _, config in tried.bench.looked] + [
        config for _, configs, _ in tried.bench.compared for config in configs
    ]
    assert (
        CONFIGS[best] not in measured
        and CONFIGS[7] not in measured
        and len(tried.looked(16)) == 1278
    )
    rest = [config for number, config in enumerate(CONFIGS) if number not in (7, best)]
    assert found[16][0] == best_of(16, rest)
    assert Journal(path, TUNING).dropped_launches == compiler.failing


def test_a_dropped_launch_is_not_compiled_again(path: Path) -> None:
    sample = space.configs((128, 128), 40)
    launches = launches_of({"a": [16]}, sample)
    Tried(path, sample, launches, Bench(), Compiler({"a up 3": "it does not compile"})).run()
    with path.open("a") as stream:
        stream.write('{"batch_size": 16, "configuration": 0, "us": 1.0}\n')
    content = "".join(
        line for line in path.read_text().splitlines(keepends=True) if '"best"' not in line
    )
    path.write_text(content)
    again = Tried(path, sample, launches, Bench())
    again.run()
    assert again.compiler.asked and all("a up 3" not in asked for asked in again.compiler.asked)


def test_one_that_cannot_run_is_dropped_and_the_best_of_the_others_is_taken(path: Path) -> None:
    best = best_of(16)

    def cannot_run(size: int, config: Config) -> bool:
        return config["BLOCK_SIZE_M"] == best["BLOCK_SIZE_M"]

    tried = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS), Bench(cannot_run))
    rest = [config for config in CONFIGS if not cannot_run(16, config)]
    assert tried.run()[16] == (best_of(16, rest), time_us(16, best_of(16, rest)))
    journal = Journal(path, TUNING)
    assert set(journal.dropped) == {
        (16, number) for number, config in enumerate(CONFIGS) if cannot_run(16, config)
    }
    assert set(journal.dropped.values()) == {"out of resource: shared memory"}


def test_what_launches_nothing_is_not_tried(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS, none=range(0, 1280, 2)), Bench())
    tried.run()
    assert tried.looked(16) == CONFIGS[1::2] and tried.compiled() == [set(range(1, 1280, 2))]


@pytest.mark.parametrize("why", ["runs", "compiles", "launches", "is captured"])
def test_nothing_that_can_be_used_is_told(
    path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = space.configs((128, 128), 20)
    bench = Bench(lambda size, config: why == "runs")
    if why == "is captured":
        monkeypatch.setattr(
            bench, "compare", lambda size, configs, turns: [math.inf] * len(configs)
        )
    compiler = Compiler(
        {f"a up {number}": "no" for number in range(20)} if why == "compiles" else {}
    )
    launches = launches_of({"a": [16]}, sample, none=range(20) if why == "launches" else ())
    tried = Tried(path, sample, launches, bench, compiler)
    with pytest.raises(CannotRun, match=r"none of \d+ configurations can be used at batch size 16"):
        tried.run()
    assert Journal(path, TUNING).best == {}


def test_one_that_cannot_be_captured_is_not_chosen(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    best = best_of(16)
    real = bench.compare
    monkeypatch.setattr(
        bench,
        "compare",
        lambda size, configs, turns: [
            math.inf if config == best else us
            for config, us in zip(configs, real(size, configs, turns), strict=True)
        ],
    )
    found = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS), bench).run()
    assert found[16][0] == best_of(16, [config for config in CONFIGS if config != best])


def test_few_stay_after_the_first_look_and_fewer_after_the_second(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS), Bench())
    tried.run()
    (_, second, second_turns), (_, last, last_turns) = tried.bench.compared
    assert (len(second), second_turns, len(last), last_turns) == (24, 3, 6, 15)
    looks = tried.journal.looks[16]
    assert second == [
        CONFIGS[number] for number in sorted(looks, key=lambda number: looks[number])[:24]
    ]
    assert last == sorted(second, key=lambda config: time_us(16, config))[:6]


def test_a_look_is_given_up_by_the_best_so_far(path: Path) -> None:
    tried = Tried(path, CONFIGS, launches_of({"a": [16]}, CONFIGS), Bench())
    tried.run()
    looks = [tried.journal.looks[16][number] for number in range(1280)]
    assert tried.bench.hopeless[0] == math.inf
    assert tried.bench.hopeless[1:] == [min(looks[:count]) * 3 + 600 for count in range(1, 1280)]


# --- killed ---------------------------------------------------------------------------------------

# Few enough to be brought down at each call; with `_LATER_LEAST` of 5 a later group leaves most of
# them out.
FEW = space.configs((128, 128), 30)
BEST_OF_16 = best_of(16, FEW)
SMALL = {"sixteens": [16, 32, 64, 128], "odd": [2, 4, 8], "large": [1024]}


@pytest.fixture
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_LATER_LEAST", 5)


def cannot(size: int, config: Config) -> bool:
    # At 2 it is one of those that 4 and 8, of the same later group, have to try all the same.
    return (config["BLOCK_SIZE_M"] == 256 and config["num_stages"] == 5) or (
        size == 2 and config == BEST_OF_16
    )


def test_a_search_that_is_brought_down_at_any_call_ends_as_one_that_is_not(
    tmp_path: Path, least: None
) -> None:
    launches = launches_of(SMALL, FEW)
    whole = Tried(tmp_path / "whole", FEW, launches, Bench(cannot))
    expected = whole.run()
    assert [len(whole.looked(size)) for size in (16, 32, 64, 128, 2, 4, 8, 1024)] == [
        30,
        15,
        15,
        15,
        5,
        5,
        5,
        5,
    ]
    for number in range(1, whole.bench.calls + 1):
        path = tmp_path / f"{number}"
        first = Tried(path, FEW, launches, Bench(cannot))
        first.bench.down_at = number
        with pytest.raises(Down):
            first.run()
        again = Tried(path, FEW, launches, Bench(cannot))
        assert again.run() == expected, number
        # Neither is a look done twice, nor is anything looked at that an undisturbed search would
        # leave out.
        looks = [
            (size, space.key(config)) for size, config in first.bench.looked + again.bench.looked
        ]
        assert sorted(looks) == sorted(
            (size, space.key(config)) for size, config in whole.bench.looked
        ), number
        assert not {size for size, _ in again.bench.looked} & set(first.found), number
        assert not {size for size, _, _ in again.bench.compared} & set(first.found), number
        path.unlink()


def test_a_search_that_is_brought_down_again_and_again_gets_there(
    tmp_path: Path, least: None
) -> None:
    launches = launches_of(SMALL, FEW)
    expected = Tried(tmp_path / "whole", FEW, launches, Bench(cannot)).run()
    looks, rounds = 0, 0
    while True:
        tried = Tried(tmp_path / "torn", FEW, launches, Bench(cannot))
        tried.bench.down_at = 7
        try:
            found = tried.run()
            break
        except Down:
            looks += len(tried.bench.looked)
            rounds += 1
    assert (
        found == expected
        and rounds > 5
        and looks + len(tried.bench.looked)
        == sum(map(len, tried.journal.looks.values())) + len(tried.journal.dropped)
    )


def test_what_was_settled_is_told_again_and_not_measured(path: Path) -> None:
    launches = launches_of({"a": [16, 32]}, FEW)
    first = Tried(path, FEW, launches, Bench()).run()
    # Killed after it was noted and before anybody was told.
    again = Tried(path, FEW, launches, Bench())
    assert again.run() == first and again.bench.calls == 0 and again.compiler.asked == []


def test_half_a_look_at_another_size_leaves_no_configuration_out(path: Path, least: None) -> None:
    """Brought down at the first looks for one size, then asked for a smaller one, too: that one
    tries everything.
    """
    down = Tried(path, FEW, launches_of({"a": [64]}, FEW), Bench())
    down.bench.down_at = 10
    with pytest.raises(Down):
        down.run()
    again = Tried(path, FEW, launches_of({"a": [16, 64]}, FEW), Bench())
    assert again.run()[16][0] == best_of(16, FEW) and len(again.looked(16)) == len(FEW)


def test_what_the_journal_dropped_is_not_tried_again(path: Path) -> None:
    best = FEW.index(best_of(16, FEW))
    journal = Journal(path, TUNING)
    journal.drop(16, best, "the process that measured it ended: exit code -11")
    journal.close()
    tried = Tried(path, FEW, launches_of({"a": [16]}, FEW), Bench())
    found: Any = tried.run()
    assert FEW[best] not in tried.looked(16) and found[16][0] == best_of(
        16, [config for config in FEW if config != FEW[best]]
    )
