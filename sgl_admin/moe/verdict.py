"""Which of the measured launch configurations gets a row: a tuned one only if it is faster than
every rival by more than the noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_admin.contract import perf

# What a tuned row has to be better by at least, however quiet the measurements are.
LEAST_GAIN = 0.01
# Standard errors of a median that count as noise.
_ERRORS = 2.0
# The standard error of a median, in median absolute deviations of normal values.
_OF_MEDIAN = 1.2533 * 1.4826
# Rivals, and where a row comes from.
DEFAULT, SHIPPED, NEAREST, PREVIOUS, TUNED = "default", "shipped", "nearest", "previous", "tuned"
RIVALS = (DEFAULT, SHIPPED, NEAREST, PREVIOUS)
# Which of them a server would launch by, the first that is there.
STANDING = (PREVIOUS, SHIPPED, DEFAULT)

Times = Sequence[float]


@dataclass(frozen=True)
class Verdict:
    """The row of one batch size: whose it is, and microseconds of one call by each rival."""

    chosen: str
    source: str
    us: float
    rivals: Mapping[str, float]
    noise: float

    def describe(self) -> dict[str, Any]:
        kinds: dict[str, float] = {}
        for name, us in self.rivals.items():
            kinds[kind(name)] = min(us, kinds.get(kind(name), math.inf))
        return {
            **{name: _rounded(kinds.get(name)) for name in RIVALS},
            "after": _rounded(self.us),
            "source": kind(self.source),
            "noise": round(self.noise, 4),
        }


def is_row(row: Any) -> bool:
    """Whether a record's row is what `describe` gives."""
    return (
        isinstance(row, dict)
        and row.get("source") in (*RIVALS, TUNED)
        and perf.is_value(row.get("after"))
        and all(row.get(name) is None or perf.is_value(row[name]) for name in RIVALS)
    )


def kind(rival: str) -> str:
    """``nearest`` of ``nearest:NVIDIA H200``."""
    return rival.partition(":")[0]


def _rounded(us: float | None) -> float | None:
    return None if us is None or math.isinf(us) else round(us, 3)


def median(times: Times) -> float:
    return statistics.median(times) if times else math.inf


def gain(times: Times, others: Times) -> tuple[float, float]:
    """How much faster the first is than the second, and the noise of that: both were measured in
    the same turns, so each turn says it once.
    """
    ratios = [
        mine / other
        for mine, other in zip(times, others, strict=True)
        if math.isfinite(mine) and math.isfinite(other) and other > 0
    ]
    if not ratios:
        return (0.0 if math.isinf(median(times)) else 1.0), 0.0
    middle = statistics.median(ratios)
    deviation = statistics.median(abs(ratio - middle) for ratio in ratios)
    return 1 - middle, _ERRORS * _OF_MEDIAN * deviation / math.sqrt(len(ratios))


def is_faster(times: Times, others: Times) -> bool:
    won, noise = gain(times, others)
    return won > max(noise, LEAST_GAIN)


def judge(
    times: Mapping[str, Times], tuned: Sequence[str], rivals: Mapping[str, str]
) -> Verdict | None:
    """By the times of each pair: the tuned ones and, by their names, the rivals. None where nothing
    could be measured.
    """
    measured = {name: median(times[key]) for name, key in rivals.items()}
    runnable = [name for name in rivals if math.isfinite(measured[name])]
    best = min(
        (key for key in tuned if math.isfinite(median(times[key]))),
        key=lambda key: median(times[key]),
        default=None,
    )
    if not runnable:
        return Verdict(best, TUNED, median(times[best]), measured, 0.0) if best else None
    rival = min(runnable, key=lambda name: measured[name])
    # What stands until something is faster: a row answers for its neighbours, too, and of two that
    # are as fast here another GPU's may be the slower one there.
    standing = next((name for name in STANDING if name in runnable), rival)
    if not is_faster(times[rivals[rival]], times[rivals[standing]]):
        rival = standing
    key = rivals[rival]
    if best is not None and best != key:
        _, noise = gain(times[best], times[key])
        if is_faster(times[best], times[key]):
            return Verdict(best, TUNED, median(times[best]), measured, noise)
        return Verdict(key, rival, measured[rival], measured, noise)
    return Verdict(key, rival, measured[rival], measured, 0.0)
