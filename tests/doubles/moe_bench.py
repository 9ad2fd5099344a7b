"""The fused experts on a GPU whose times are a known function of batch size and configuration, for
tests of the search.

It stands for sgl_admin.moe.bench: a first look there is off by up to a fortieth. It keeps what it
was asked, and can be brought down at any of its calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sgl_admin.moe import space
from sgl_admin.moe.search import CannotRun
from sgl_admin.moe.space import Config


class Down(Exception):
    """What ends the process, in the place of a signal."""


def time_us(size: int, config: Config) -> float:
    """Microseconds of a call: a bowl around one configuration for each batch size, which moves
    slowly with the size.
    """
    wanted = min(16 * 2 ** max(0, round(math.log2(size) / 2) - 1), 128)
    # Every one of 1920 takes another time, so there is one best.
    order = sum(
        place * value
        for place, value in zip(
            (0.01, 0.003, 0.0007, 0.0001, 0.05, 0.09), space.key(config), strict=True
        )
    )
    return (
        100
        + size / 4
        + 40 * abs(math.log2(config["BLOCK_SIZE_M"] / wanted))
        + 15 * abs(math.log2(config["BLOCK_SIZE_N"] / 64))
        + 9 * abs(math.log2(config["BLOCK_SIZE_K"] / 128))
        + 5 * abs(config["num_warps"] - 4)
        + 3 * abs(config["num_stages"] - 3)
        + order
    )


class Bench:
    def __init__(
        self, cannot_run: Callable[[int, Config], bool] = lambda size, config: False
    ) -> None:
        self._cannot_run = cannot_run
        self.looked: list[tuple[int, Config]] = []
        self.compared: list[tuple[int, list[Config], int]] = []
        self.hopeless: list[float] = []
        # The number of the call that brings it down.
        self.down_at: int | None = None
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.down_at:
            raise Down

    def look(self, size: int, config: Config, hopeless_us: float) -> float:
        self._call()
        self.looked.append((size, config))
        self.hopeless.append(hopeless_us)
        if self._cannot_run(size, config):
            raise CannotRun("out of resource: shared memory")
        off = (sum(space.key(config)) * 7 % 11) / 400
        return time_us(size, config) * (1 + off)

    def compare(self, size: int, configs: Sequence[Config], turns: int) -> list[float]:
        self._call()
        self.compared.append((size, list(configs), turns))
        return [time_us(size, config) for config in configs]


class Compiler:
    """Compiles nothing, and keeps what it was asked; `failing` launches are told to have failed."""

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


def launches_of(
    groups: Mapping[str, Iterable[int]], configs: Sequence[Config], none: Iterable[int] = ()
) -> dict[int, list[Any]]:
    """Two launches of each configuration, the same for all batch sizes of a group; those numbered
    in `none` have no launch at all.
    """
    return {
        size: [
            () if number in none else (f"{group} up {number}", f"{group} down {number}")
            for number in range(len(configs))
        ]
        for group, sizes in groups.items()
        for size in sizes
    }
