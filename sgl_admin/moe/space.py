"""The launch configurations that are tried, and which of them a batch size has to try."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# The keyword arguments of one kernel's launch, and USE_TMA where SGLang reads it.
Config = dict[str, Any]

USE_TMA = "USE_TMA"
# The two projections of an expert. Where the down projection loads by TMA, the up projection writes
# its rows sorted by expert, which is another kernel.
UP, UP_SORTED, DOWN = "up", "up_sorted", "down"

# The values that SGLang's own tuner tries on NVIDIA GPUs (benchmark/kernels/fused_moe_triton,
# get_configs_compute_bound); GROUP_SIZE_M changes the order of the tiles alone, so all are tried
# with one of its values first.
_VALUES = {
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256),
    "BLOCK_SIZE_N": (32, 64, 128, 256),
    "BLOCK_SIZE_K": (64, 128, 256),
    "GROUP_SIZE_M": (32,),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
GROUP_SIZES = (1, 16, 32, 64)
# Elements of a tile for each warp: more do not fit its registers, and fewer leave it idle.
_MOST_PER_WARP, _LEAST_PER_WARP = 4096, 256
_LEAST_WARPS = 4
# A tile is at most so many times as high as the rows that an expert has on average, and at least
# this part of it.
_HIGHEST, _LOWEST = 4, 1 / 8
_SMALL_TILE = 32
_SEED = 20261123


@dataclass(frozen=True)
class Trial:
    """A launch configuration of one projection."""

    part: str
    config: Config


def configs(block_shape: tuple[int, int] | None, sample: int | None = None) -> list[Config]:
    """All configurations for these scales, or a fixed sample of so many of them.

    With scales for blocks a tile may not reach over a block's end along K: the filter of SGLang's
    own tuner.
    """
    tiles = (
        dict(zip(_VALUES, values, strict=True)) for values in itertools.product(*_VALUES.values())
    )
    fitting = [config for config in tiles if _fits_warps(config)]
    if block_shape is not None:
        fitting = [config for config in fitting if block_shape[1] % config["BLOCK_SIZE_K"] == 0]
    if sample is not None and sample < len(fitting):
        chosen = set(random.Random(_SEED).sample(range(len(fitting)), sample))
        fitting = [config for number, config in enumerate(fitting) if number in chosen]
    return fitting


def _fits_warps(config: Config) -> bool:
    warps = config["num_warps"]
    per_warp = config["BLOCK_SIZE_M"] * config["BLOCK_SIZE_N"] // warps
    return per_warp <= _MOST_PER_WARP and (warps <= _LEAST_WARPS or per_warp >= _LEAST_PER_WARP)


@functools.cache
def count(block_shape: tuple[int, int] | None, sample: int | None = None) -> int:
    """How many there are: asked for by each plan, several times."""
    return len(configs(block_shape, sample))


@functools.cache
def earlier_count(block_shape: tuple[int, int] | None, sample: int | None = None) -> int:
    """How many configurations releases before 1.2 tried, which their signatures name."""
    whole = math.prod(len(values) for values in _VALUES.values()) * len(GROUP_SIZES)
    if block_shape is not None:
        widths = _VALUES["BLOCK_SIZE_K"]
        fitting = [width for width in widths if block_shape[1] % width == 0]
        whole = whole * len(fitting) // len(widths)
    return min(whole, sample or whole)


def trials(coarse: Sequence[Config], up_tma: bool, down_tma: bool) -> list[Trial]:
    """Every trial that a search can come to, in one order: its journal names them by number."""
    found = []
    for part, tma in ((UP, up_tma), (UP_SORTED, up_tma), (DOWN, down_tma)):
        if part == UP_SORTED and not down_tma:
            continue
        for by_tma in (False, True) if tma else (False,):
            for config in coarse:
                for group_size in GROUP_SIZES:
                    tried = {**config, "GROUP_SIZE_M": group_size}
                    found.append(Trial(part, {**tried, USE_TMA: True} if by_tma else tried))
    return found


def is_coarse(trial: Trial) -> bool:
    """Whether it is tried first: the others are variants of those that are best."""
    return trial.part != UP_SORTED and trial.config["GROUP_SIZE_M"] in _VALUES["GROUP_SIZE_M"]


def in_window(config: Config, rows_per_expert: float) -> bool:
    """Whether a tile's height suits so many rows of an expert."""
    height: int = config["BLOCK_SIZE_M"]
    return height <= max(_SMALL_TILE, _HIGHEST * rows_per_expert) and height >= min(
        rows_per_expert * _LOWEST, _VALUES["BLOCK_SIZE_M"][-2]
    )


def compile_order(config: Config) -> int:
    """Sorts what compiles longest to the front: large tiles in many stages."""
    return -int(config["BLOCK_SIZE_M"] * config["BLOCK_SIZE_N"] * config.get("num_stages", 1))


def key(config: Config) -> tuple[int, ...]:
    return (*(config[name] for name in _VALUES), int(config.get(USE_TMA, False)))
