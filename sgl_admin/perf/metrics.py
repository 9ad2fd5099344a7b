"""The stage's verdict and numbers for Prometheus: a file of the run that node_exporter's textfile
collector reads at each scrape.

Its values are in base units. It has no text but names of ours, so nothing in it needs quoting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.contract import perf
from sgl_admin.perf import data_sheet, history

# The metric that measurements of a unit have, its help, and how many base units the unit is.
OF_UNITS = {
    "TFLOP/s": (
        "sgl_perf_operations_per_second",
        "Floating-point operations a second that stage perf measured.",
        1e12,
    ),
    "GB/s": ("sgl_perf_bytes_per_second", "Bytes a second that stage perf measured.", 1e9),
    "tokens/s": (
        "sgl_perf_tokens_per_second",
        "Tokens a second that stage perf measured of the prepared server.",
        1.0,
    ),
    "ms": (
        "sgl_perf_duration_seconds",
        "Time that stage perf measured of the prepared server.",
        1e-3,
    ),
}
VERDICT, SHORTFALL = "sgl_perf_verdict", "sgl_perf_shortfall_ratio"
MEASURED, EXPIRES = "sgl_perf_measured_timestamp_seconds", "sgl_perf_expires_timestamp_seconds"
# The label of a judgement's reference.
_REFERENCES = {data_sheet.REFERENCE: "data_sheet", history.REFERENCE: "history"}

# A metric's name, its help, and its samples by their labels.
Samples = list[tuple[str, float]]
Family = tuple[str, str, Samples]


def path(run_id: str) -> Path:
    return paths.metrics(run_id) / "perf.prom"


def publish(run_id: str, text: str) -> None:
    """Replace the run's file, where it has another text."""
    try:
        if files.read_bytes(path(run_id)) == text.encode():
            return
    except (FileNotFoundError, ValueError):
        pass
    files.write_text(path(run_id), text)


def withdraw(run_id: str) -> None:
    path(run_id).unlink(missing_ok=True)


def render(probe: Mapping[str, Any], measured_s: float, expires_s: float) -> str:
    """A probe in Prometheus' text format."""
    return exposition(_families(probe, measured_s, expires_s))


def exposition(families: Iterable[Family]) -> str:
    """Gauges in Prometheus' text format."""
    lines: list[str] = []
    for name, text, samples in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        lines += [f"{name}{labels} {value:.10g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _families(probe: Mapping[str, Any], measured_s: float, expires_s: float) -> Iterator[Family]:
    yield (
        VERDICT,
        "The verdict of stage perf: 1 for the one that holds, 0 for the others.",
        [(f'{{verdict="{each}"}}', float(each == probe["verdict"])) for each in perf.VERDICTS],
    )
    yield MEASURED, "When stage perf measured the host.", [("", measured_s)]
    yield EXPIRES, "When the verdict of stage perf expires.", [("", expires_s)]
    values = perf.values_of(probe)
    for unit, (name, text, factor) in OF_UNITS.items():
        samples = [
            (f'{{measurement="{each}"}}', factor * value)
            for each, value in values.items()
            if perf.BY_NAME[each].unit == unit
        ]
        if samples:
            yield name, text, samples
    if judged := [
        (
            f'{{measurement="{each["name"]}",reference="{_REFERENCES[each["reference"]]}"}}',
            each["percent"] / 100,
        )
        for each in probe["judgements"]
        # A proof of another release may have others.
        if each["reference"] in _REFERENCES
    ]:
        yield (
            SHORTFALL,
            "By what part a measurement of stage perf is worse than a reference, negative where it"
            " is better.",
            judged,
        )
