"""The fused experts on a GPU whose times are a known function of batch size and configuration, for
tests of the search.

It stands for sgl_admin.moe.bench: a first look there is off by up to a fortieth. What SGLang makes
of a table is as in its 0.5.17 (srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py):
the nearest key's row, the up projection's for both where there is no other, and its default for
FP8 in blocks where there is no table. It keeps what it was asked, and can be brought down at any of
its calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from sgl_admin.moe import space, tables
from sgl_admin.moe.search import CannotRun
from sgl_admin.moe.space import DOWN, UP_SORTED, USE_TMA, Config, Trial
from sgl_admin.moe.tables import Pair

# get_default_config of 0.5.17 for fp8_w8a8 in blocks of 128.
DEFAULT: Config = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
    "num_warps": 4,
    "num_stages": 3,
}
# What a call takes beside its two projections.
BESIDE_US = 20.0

Tables = Mapping[str, tuple[Mapping[int, Config] | None, Mapping[int, Config] | None]]
Time = Callable[[int, Trial], float]


class Down(Exception):
    """What ends the process, in the place of a signal."""


def time_us(size: int, trial: Trial) -> float:
    """Microseconds of a projection: a bowl around one configuration for each batch size, which
    moves slowly with the size. The down projection wants other stages, and gains by TMA.
    """
    config = trial.config
    wanted = min(16 * 2 ** max(0, round(math.log2(size) / 2) - 1), 128)
    stages, width = (4, 128) if trial.part == DOWN else (3, 64)
    # Every one takes another time, so there is one best.
    order = sum(
        place * value
        for place, value in zip(
            (0.01, 0.003, 0.0007, 0.0001, 0.05, 0.09, 0.2), space.key(config), strict=True
        )
    )
    us = (
        100
        + size / 4
        + 40 * abs(math.log2(config["BLOCK_SIZE_M"] / wanted))
        + 15 * abs(math.log2(config["BLOCK_SIZE_N"] / width))
        + 9 * abs(math.log2(config["BLOCK_SIZE_K"] / 128))
        + 2 * abs(math.log2(config["GROUP_SIZE_M"] / 16))
        + 5 * abs(config["num_warps"] - 4)
        + 3 * abs(config["num_stages"] - stages)
        + order
    )
    if trial.part == UP_SORTED:
        us += 1
    return us * 0.9 if config.get(USE_TMA) else us


def call_us(size: int, pair: Pair, time_of: Time = time_us) -> float:
    """Microseconds of a whole call."""
    up, down = trials_of(pair)
    return BESIDE_US + time_of(size, up) + time_of(size, down)


def trials_of(pair: Pair) -> tuple[Trial, Trial]:
    by_tma = bool(pair.down.get(USE_TMA))
    return Trial(UP_SORTED if by_tma else space.UP, pair.up), Trial(DOWN, pair.down)


class Bench:
    def __init__(
        self,
        groups: Mapping[str, Iterable[int]],
        cannot_run: Callable[[int, Trial], bool] = lambda size, trial: False,
        rivals: Tables | None = None,
        time_of: Time = time_us,
    ) -> None:
        """`groups` of batch sizes that launch the same kernels; any other size is one of `rest`."""
        self._group = {size: name for name, sizes in groups.items() for size in sizes}
        self._cannot_run = cannot_run
        self._tables: Tables = {"default": (None, None), **(rivals or {})}
        self._time_of = time_of
        self.looked: list[tuple[int, Trial]] = []
        self.compared: list[tuple[int, list[Pair], int]] = []
        self.hopeless: list[float] = []
        # The number of the call that brings it down.
        self.down_at: int | None = None
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.down_at:
            raise Down

    def group(self, size: int) -> str:
        return self._group.get(size, "rest")

    def launches(self, size: int, trial: Trial) -> list[str]:
        return [f"{self.group(size)} {trial.part} {space.key({**DEFAULT, **trial.config})}"]

    def rivals(self, size: int) -> dict[str, Pair]:
        found = {}
        for name, (up, down) in self._tables.items():
            found[name] = tables.row(up, down or {}, size) if up else Pair(DEFAULT, DEFAULT)
        return found

    def look(self, size: int, trial: Trial, hopeless_us: float) -> float:
        self._call()
        self.looked.append((size, trial))
        self.hopeless.append(hopeless_us)
        if self._cannot_run(size, trial):
            raise CannotRun("out of resource: shared memory")
        off = (sum(space.key(trial.config)) * 7 % 11) / 400
        return self._time_of(size, trial) * (1 + off)

    def check(self, size: int, pair: Pair) -> None:
        self._call()
        if any(self._cannot_run(size, trial) for trial in trials_of(pair)):
            raise CannotRun("out of resource: shared memory")

    def compare(self, size: int, pairs: Sequence[Pair], turns: int) -> list[list[float]]:
        self._call()
        self.compared.append((size, list(pairs), turns))
        return [[call_us(size, pair, self._time_of)] * turns for pair in pairs]


class Compiler:
    """Compiles nothing, and keeps what it was asked; `failing` launches are reported as failed."""

    def __init__(self, failing: Mapping[str, str] | None = None) -> None:
        self.failing = failing or {}
        self.asked: list[list[str]] = []

    def __call__(
        self, launches: Iterable[str], progress: Callable[[int, int], None]
    ) -> Mapping[str, str]:
        wanted = list(launches)
        self.asked.append(wanted)
        progress(len(wanted), len(wanted))
        return {launch: why for launch, why in self.failing.items() if launch in wanted}
