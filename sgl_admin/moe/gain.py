"""What a tuning brought, for the result and the report: each row against what SGLang would do
without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sgl_admin.moe.verdict import DEFAULT, LEAST_GAIN, PREVIOUS, RIVALS, SHIPPED

NOTHING_BETTER = "nothing better than what SGLang ships was found"


def summary(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The rows by batch size, how many times as fast the file is as each rival over all of them
    (geometric mean), and where it is worst; None where nothing was measured.
    """
    if not rows:
        return None
    ordered = [{"batch_size": size, **row} for size, row in sorted(rows.items())]
    return {
        "rows": [
            {name: row.get(name) for name in ("batch_size", *RIVALS, "after", "source")}
            for row in ordered
        ],
        "times_as_fast": {name: _mean(ordered, name) for name in RIVALS},
        "worst": {name: _worst(ordered, name) for name in RIVALS},
        "routing": ["uniform", "skewed"],
        "summary": _words(ordered),
    }


def _ratios(rows: list[dict[str, Any]], name: str) -> list[tuple[float, int]]:
    return [(row[name] / row["after"], row["batch_size"]) for row in rows if row.get(name)]


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    ratios = _ratios(rows, name)
    if not ratios:
        return None
    return round(math.exp(sum(math.log(ratio) for ratio, _ in ratios) / len(ratios)), 3)


def _worst(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    ratios = _ratios(rows, name)
    if not ratios:
        return None
    ratio, size = min(ratios)
    return {"batch_size": size, "times_as_fast": round(ratio, 3)}


def _words(rows: list[dict[str, Any]]) -> str:
    """Against the best that there was without this tuning."""
    best = [
        (min(row[name] for name in (DEFAULT, SHIPPED, PREVIOUS) if row.get(name)), row["after"])
        for row in rows
        if any(row.get(name) for name in (DEFAULT, SHIPPED, PREVIOUS))
    ]
    faster = [1 - after / before for before, after in best if after < before * (1 - LEAST_GAIN)]
    if not faster:
        return NOTHING_BETTER
    versus = SHIPPED if any(row.get(SHIPPED) for row in rows) else DEFAULT
    mean = _mean(rows, versus) or 1.0
    named = "what SGLang ships" if versus == SHIPPED else "SGLang's defaults"
    return (
        f"{mean:.2f} times as fast as {named} over {len(rows)} batch sizes; faster than all that"
        f" was there at {len(faster)} of them, by up to {max(faster):.0%}"
    )
