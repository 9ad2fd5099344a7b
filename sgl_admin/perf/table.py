"""A probe as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sgl_admin.contract import perf

_ROW = "{:12} {:>9} {:8} {:>8}  {}"


def lines(probe: Mapping[str, Any]) -> Iterator[str]:
    """A row for each measurement, with the reference beside which it is worst; what was not
    measured, and what was seen meanwhile.
    """
    if not probe["verdict"]:
        yield f"not measured: {probe['reason']}"
        return
    yield _ROW.format("measurement", "value", "unit", "scatter", "beside its reference").rstrip()
    for each in probe["measurements"]:
        spread = each["spread_percent"]
        scatter = "" if spread is None else f"{spread:.1f}%"
        compared = _compared(each["name"], probe["judgements"])
        yield _ROW.format(
            each["name"], perf.shown(each["value"]), each["unit"], scatter, compared
        ).rstrip()
    for each in probe["skipped"]:
        yield f"{each['name']:12} not measured: {each['reason']}"
    for each in probe["findings"]:
        yield f"{each['verdict']}: {each['sentence']}"


def _compared(name: str, judgements: list[dict[str, Any]]) -> str:
    judged = [each for each in judgements if each["name"] == name]
    if not judged:
        return "no reference"
    worst = max(judged, key=lambda each: (perf.VERDICTS.index(each["verdict"]), each["percent"]))
    side = "worse" if worst["percent"] > 0 else "better"
    return (
        f"{worst['verdict']}: {abs(worst['percent']):.1f}% {side} than {worst['reference']}"
        f" ({perf.shown(worst['expected'])})"
    )
