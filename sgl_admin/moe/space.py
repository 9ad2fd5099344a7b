"""The launch configurations that are tried, and which of them a batch size has to try."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

Config = dict[str, int]

# The values that SGLang's own tuner tries on NVIDIA GPUs (benchmark/kernels/fused_moe_triton,
# get_configs_compute_bound).
_VALUES = {
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256),
    "BLOCK_SIZE_N": (32, 64, 128, 256),
    "BLOCK_SIZE_K": (64, 128, 256),
    "GROUP_SIZE_M": (1, 16, 32, 64),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
_SEED = 20261123


def configs(block_shape: tuple[int, int] | None, sample: int | None = None) -> list[Config]:
    """All configurations for these scales, or a fixed sample of so many of them.

    With scales for blocks a tile may not reach over a block's end along K: the filter of SGLang's
    own tuner.
    """
    found = [
        dict(zip(_VALUES, values, strict=True)) for values in itertools.product(*_VALUES.values())
    ]
    if block_shape is not None:
        found = [config for config in found if block_shape[1] % config["BLOCK_SIZE_K"] == 0]
    if sample is not None and sample < len(found):
        chosen = set(random.Random(_SEED).sample(range(len(found)), sample))
        found = [config for number, config in enumerate(found) if number in chosen]
    return found


@functools.cache
def count(block_shape: tuple[int, int] | None, sample: int | None = None) -> int:
    """How many there are: asked for by each plan, several times."""
    return len(configs(block_shape, sample))


def compile_order(config: Config) -> int:
    """Sorts what compiles longest to the front: large tiles in many stages."""
    return -config["BLOCK_SIZE_M"] * config["BLOCK_SIZE_N"] * config["num_stages"]


def key(config: dict[str, Any]) -> tuple[int, ...]:
    return tuple(config[name] for name in _VALUES)
