"""Which of the measured configurations gets a row, and what is said of the gain."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from sgl_admin.moe import gain, tables, verdict
from sgl_admin.moe.space import USE_TMA
from sgl_admin.sglang import ENGINE
from tests.doubles.moe_bench import DEFAULT


def times(us: float, noise: float = 0.0, seed: int = 1, turns: int = 24) -> list[float]:
    chance = random.Random(seed)
    return [us * (1 + chance.uniform(-noise, noise)) for _ in range(turns)]


@pytest.mark.parametrize(
    ("tuned_us", "noise", "source"),
    [(97, 0.0, "tuned"), (99.5, 0.0, "default"), (101, 0.0, "default"), (97, 0.4, "default"),
     (80, 0.05, "tuned")],
)  # fmt: skip
def test_a_tuned_row_has_to_win_by_more_than_the_noise(
    tuned_us: float, noise: float, source: str
) -> None:
    measured = {"t": times(tuned_us, noise, 1), "d": times(100, noise, 2)}
    decided = verdict.judge(measured, ["t"], {"default": "d"})
    assert decided is not None and decided.source == source
    assert decided.chosen == ("t" if source == "tuned" else "d")


def test_what_disturbs_a_turn_disturbs_both_and_is_no_noise() -> None:
    drift = [1 + turn / 10 for turn in range(24)]
    measured = {"t": [95 * each for each in drift], "d": [100 * each for each in drift]}
    decided = verdict.judge(measured, ["t"], {"default": "d"})
    assert decided is not None and decided.source == "tuned" and decided.noise < 1e-9


def test_the_best_rival_is_the_one_to_beat_and_all_are_told() -> None:
    measured = {"t": times(90), "d": times(120), "s": times(91), "h": times(100), "n": times(95)}
    rivals = {
        "default": "d",
        "shipped": "s",
        "nearest:NVIDIA H200": "n",
        "nearest:NVIDIA H100": "h",
    }
    decided = verdict.judge(measured, ["t"], rivals)
    assert decided is not None and decided.describe() == {
        "default": 120.0,
        "shipped": 91.0,
        "nearest": 95.0,
        "previous": None,
        "after": 90.0,
        "source": "tuned",
        "noise": 0.0,
    }
    assert verdict.is_row(decided.describe())
    measured["s"] = times(90.5)
    decided = verdict.judge(measured, ["t"], rivals)
    assert decided is not None and decided.describe()["after"] == 90.5


@pytest.mark.parametrize(
    ("us", "source"),
    [({"default": 100, "shipped": 98, "nearest:NVIDIA H100": 97.5}, "shipped"),
     ({"default": 100, "shipped": 98, "nearest:NVIDIA H100": 96}, "nearest:NVIDIA H100"),
     ({"default": 97.5, "shipped": 98}, "shipped"),
     ({"default": 95, "shipped": 98}, "default"),
     ({"default": 98, "nearest:NVIDIA H200": 97.5}, "default"),
     ({"default": 97.5, "shipped": 97, "previous": 97.8}, "previous"),
     ({"default": 98, "shipped": math.inf, "nearest:NVIDIA H200": 97.5}, "default")],
)  # fmt: skip
def test_what_stands_stays_until_another_is_faster_by_more_than_the_noise(
    us: dict[str, float], source: str
) -> None:
    """The row of an H100's file was 0.1% faster than the shipped one at 1024 tokens on an H200, and
    2.4% slower at 1056.
    """
    decided = verdict.judge(
        {name: times(each) for name, each in us.items()}, [], {n: n for n in us}
    )
    assert decided is not None and decided.source == source and decided.us == us[source]


def test_one_that_could_not_be_measured_never_counts() -> None:
    measured = {"t": [math.inf] * 3, "d": times(100, turns=3)}
    decided = verdict.judge(measured, ["t"], {"default": "d"})
    assert decided is not None and decided.source == "default"
    measured = {"t": times(100, turns=3), "d": [math.inf] * 3}
    decided = verdict.judge(measured, ["t"], {"default": "d"})
    assert decided is not None and decided.source == "tuned"
    assert decided.describe()["default"] is None
    assert verdict.judge({}, [], {}) is None


def row(after: float, source: str = "tuned", **us: float) -> dict[str, object]:
    return {**dict.fromkeys(verdict.RIVALS), **us, "after": after, "source": source}


def test_the_gain_is_a_geometric_mean_and_the_worst_size() -> None:
    found = gain.summary(
        {512: row(100, default=121, shipped=110), 2: row(100, default=100, shipped=100)}
    )
    assert found is not None
    assert [each["batch_size"] for each in found["rows"]] == [2, 512]
    assert found["times_as_fast"] == {
        "default": 1.1, "shipped": 1.049, "nearest": None, "previous": None,
    }  # fmt: skip
    assert found["worst"]["default"] == {"batch_size": 2, "times_as_fast": 1.0}
    assert found["worst"]["nearest"] is None
    assert found["summary"] == (
        "1.05 times as fast as what SGLang ships over 2 batch sizes; faster than all that was there"
        " at 1 of them, by up to 9%"
    )
    assert gain.summary({}) is None


def test_nothing_better_is_said_so() -> None:
    found = gain.summary({2: row(35.3, "shipped", default=39.3, shipped=35.3)})
    assert found is not None
    assert found["summary"] == "nothing better than what SGLang ships was found"


# --- tables, as SGLang reads them


def test_the_nearest_key_answers_and_of_two_the_first_in_the_file() -> None:
    """`min(configs.keys(), key=lambda x: abs(x - M))` of try_get_optimal_moe_config."""
    for low, high in itertools.pairwise([1, 2, 4, 7, 64, 96, 1024]):
        last = tables.middle(low, high)
        assert tables.nearest([low, high], last) == low
        assert tables.nearest([low, high], last + 1) == high


def test_a_row_has_one_height_and_the_up_projections_where_there_is_no_other() -> None:
    up = {1: DEFAULT, 64: {**DEFAULT, "BLOCK_SIZE_M": 16}}
    assert tables.row(up, {}, 80) == (up[64], up[64])
    down = {64: {**DEFAULT, USE_TMA: True}}
    pair = tables.row(up, down, 80)
    assert pair.up == up[64] and pair.down == {**down[64], "BLOCK_SIZE_M": 16} and pair.by_tma
    assert down[64]["BLOCK_SIZE_M"] == 64, "what was read is not changed"
    assert set(tables.whole(up, down)) == {1, 64} and tables.whole({}, down) == {}


def test_a_pair_has_one_name_whatever_the_order_of_its_words() -> None:
    turned = dict(reversed(DEFAULT.items()))
    same = tables.Pair(DEFAULT, {**DEFAULT, USE_TMA: False})
    assert tables.Pair(turned, turned).key == same.key
    assert tables.pair_of(same.to_json()) == same
    with pytest.raises(ValueError, match="no pair"):
        tables.pair_of({"up": DEFAULT})


# --- what SGLang brings, and asks for


def test_the_nearest_gpus_are_of_the_same_processor() -> None:
    near = ENGINE.moe.nearest_devices
    assert near("NVIDIA GH200 480GB", 90) == ["NVIDIA H200", "NVIDIA H100 80GB HBM3"]
    assert near("NVIDIA H200", 90) == ["NVIDIA H100 80GB HBM3"]
    assert near("NVIDIA B200", 100) == [] == near("NVIDIA T4", 75)


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [((), 16384), (("--chunked-prefill-size", "8192"), 8192),
     (("--chunked-prefill-size=-1", "--max-prefill-tokens", "4096"), 4096),
     (("--chunked-prefill-size", "1000000"), 32768), (("--chunked-prefill-size", "x"), 16384),
     (("--chunked-prefill-size", "9" * 5000), 32768)],
)  # fmt: skip
def test_the_ladder_ends_where_the_servers_prefills_do(
    arguments: tuple[str, ...], tokens: int
) -> None:
    assert ENGINE.moe.most_tokens(arguments) == tokens
