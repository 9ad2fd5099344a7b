"""Tables of launch configurations by batch size, as SGLang reads them: which row answers for a
size, which sizes need a row, and between which ones it has to be checked.

SGLang (0.5.3 to 0.5.23, `try_get_optimal_moe_config`) takes the row of the key that is nearest to
the number of tokens, of two that are as near the one that stands first in the file; both
projections share one sorting of the tokens, so the down projection's BLOCK_SIZE_M is the up
projection's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sgl_admin.moe.space import USE_TMA, Config

Table = Mapping[int, Config]


class Pair(NamedTuple):
    """The launch configurations of one call's two projections."""

    up: Config
    down: Config

    @property
    def by_tma(self) -> bool:
        """Whether the down projection loads by TMA, which the up projection's kernel depends on."""
        return bool(self.down.get(USE_TMA, False))

    @property
    def key(self) -> str:
        return json.dumps([_plain(self.up), _plain(self.down)], sort_keys=True)

    def to_json(self) -> dict[str, Config]:
        return {"up": self.up, "down": self.down}


def _plain(config: Config) -> Config:
    return {name: value for name, value in config.items() if name != USE_TMA or value}


def pair_of(document: Any) -> Pair:
    """Raises ValueError for anything but what `to_json` gives."""
    match document:
        case {"up": dict(up), "down": dict(down)}:
            return Pair(up, down)
    raise ValueError("no pair of launch configurations")


def nearest(keys: Iterable[int], size: int) -> int:
    """The key whose row answers for a size, with the keys in a file's order."""
    return min(keys, key=lambda key: abs(key - size))


def row(up: Table, down: Table, size: int) -> Pair:
    """What a server launches at a size by these tables; without one for the down projection it
    takes the up projection's.
    """
    first = up[nearest(up, size)]
    second = dict(down[nearest(down, size)]) if down else dict(first)
    second["BLOCK_SIZE_M"] = first["BLOCK_SIZE_M"]
    return Pair(dict(first), second)


def whole(up: Table, down: Table) -> dict[int, Pair]:
    """Both tables with the rows of both, each of which answers as it did."""
    return {size: row(up, down, size) for size in sorted({*up, *down})} if up else {}


def ladder(sizes: Iterable[int], others: Iterable[int], largest: int) -> list[int]:
    """The sizes that get a row, so that each size up to `largest` has one near it: powers of two,
    the middles between them, those that were asked for, and `others`, at which another file
    changes its answer.
    """
    asked = set(sizes)
    keys = {key for key in (*asked, *others) if 1 <= key <= largest or key in asked}
    power = 1
    while power <= largest:
        keys.add(power)
        if power > 1 and power + power // 2 <= largest:
            keys.add(power + power // 2)
        power *= 2
    return sorted({*keys, largest})


def gaps(keys: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours that have a size between them."""
    ordered = sorted(keys)
    return [(low, high) for low, high in zip(ordered, ordered[1:], strict=False) if high - low > 1]


def middle(low: int, high: int) -> int:
    """The last size for which the lower of two keys answers."""
    return (low + high) // 2
