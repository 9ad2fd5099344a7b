# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stage `perf` measures of a host, and how a measurement is held against others of its kind:
the host's own earlier ones (in the container) and those of the fleet (on the controller).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASS, WARN, FAIL = VERDICTS = ("pass", "warn", "fail")
# So many other measurements make a reference: the host's own earlier ones, and the fleet's hosts.
LEAST_HISTORY, LEAST_FLEET = 3, 4
# The standard deviation of values that scatter normally, by their median absolute deviation.
_SIGMA = 1.4826
# Standard deviations that no honest measurement is off, for a warning and for a failure.
_WARN_SIGMAS, _FAIL_SIGMAS = 3.0, 6.0
# JSON has integers above what a float holds.
_MOST = 1e300


@dataclass(frozen=True)
class Measurement:
    """A measurement; `higher` says whether more of it is better, `of_server` whether it depends on
    the prepared server too.
    """

    name: str
    unit: str
    text: str
    higher: bool = True
    of_server: bool = False


MEASUREMENTS = (
    Measurement("gemm_fp32", "TFLOP/s", "matrix multiplication in FP32, sustained, on a CPU"),
    Measurement("gemm_bf16", "TFLOP/s", "matrix multiplication in BF16, sustained, on a GPU"),
    Measurement("gemm_fp8", "TFLOP/s", "matrix multiplication in FP8, sustained, on a GPU"),
    Measurement("hbm_copy", "GB/s", "copy within the GPU's memory, read and written bytes"),
    Measurement("hbm_read", "GB/s", "read of the GPU's memory"),
    Measurement("h2d", "GB/s", "copy from pinned host memory to the GPU"),
    Measurement("d2h", "GB/s", "copy from the GPU to pinned host memory"),
    Measurement("allreduce", "GB/s", "NCCL all-reduce over the GPUs of one server, bus bandwidth"),
    Measurement("triad", "GB/s", "STREAM triad in the host's memory"),
    Measurement(
        "decode", "tokens/s", "decoding of one request by the prepared server", of_server=True
    ),
    Measurement(
        "first_token", "ms", "time to the first token of one request", False, of_server=True
    ),
)
BY_NAME = {measurement.name: measurement for measurement in MEASUREMENTS}


@dataclass(frozen=True)
class Tolerance:
    """By how many percent a measurement may be worse than its reference before it is a warning,
    and before it is a failure.
    """

    warn: float
    fail: float


@dataclass(frozen=True)
class Judgement:
    """A measurement beside one reference; `percent` is by how much it is worse, below 0 better."""

    name: str
    reference: str
    value: float
    expected: float
    percent: float
    verdict: str

    @property
    def sentence(self) -> str:
        measurement = BY_NAME[self.name]
        side = "below" if measurement.higher else "above"
        return (
            f"{self.name} is {shown(self.value)} {measurement.unit}, {self.percent:.0f}% {side}"
            f" {self.reference} ({shown(self.expected)})"
        )


def shown(value: float) -> str:
    return f"{value:.4g}"


def is_value(value: object) -> bool:
    """Whether something can be a measurement."""
    return isinstance(value, (int, float)) and value is not True and 0 < value < _MOST


def worse_by(name: str, value: float, expected: float) -> float:
    """By how many percent a value is worse than what is expected."""
    difference = expected - value if BY_NAME[name].higher else value - expected
    return 100 * difference / expected


def beside(
    name: str, value: float, others: Sequence[float], reference: str, tolerance: Tolerance
) -> Judgement:
    """A measurement beside the median of others of its kind, which scatter as their MAD says."""
    centre = statistics.median(others)
    mad = statistics.median(abs(other - centre) for other in others)
    scatter = 100 * _SIGMA * mad / centre
    percent = worse_by(name, value, centre)
    verdict = PASS
    if percent > max(tolerance.warn, _WARN_SIGMAS * scatter):
        verdict = WARN
    if percent > max(tolerance.fail, _FAIL_SIGMAS * scatter):
        verdict = FAIL
    return Judgement(name, reference, value, centre, round(percent, 2), verdict)


def worst(verdicts: Sequence[str]) -> str:
    """The worst of these verdicts; `pass` where there is none."""
    return max(verdicts, key=VERDICTS.index, default=PASS)


# --- the hosts of a fleet


@dataclass(frozen=True)
class Comparable:
    """One measurement of the hosts of one kind, by their names. `kind` is the GPU's or the CPU's
    name, and the subject for a measurement that depends on the server too.
    """

    name: str
    kind: Any
    values: dict[str, float]

    @property
    def median(self) -> float | None:
        """None where the hosts are too few for a reference."""
        if len(self.values) < LEAST_FLEET:
            return None
        return statistics.median(self.values.values())


def comparable(probes: Mapping[str, Mapping[str, Any]]) -> list[Comparable]:
    """What can be compared of hosts, by each one's `perf_probe`."""
    groups: dict[tuple[str, Any], Comparable] = {}
    for host, probe in probes.items():
        for name, value in values_of(probe).items():
            kind = probe.get("subject" if BY_NAME[name].of_server else "device_name")
            group = groups.setdefault((name, kind), Comparable(name, kind, {}))
            group.values[host] = value
    return list(groups.values())


def of_fleet(
    probes: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, Judgement]], str | None]:
    """The hosts with a measurement that is worse than the fleet's, by each one's `perf_probe`, the
    first of which has the tolerance; or why they cannot be compared.
    """
    groups = comparable(probes)
    compared = [group for group in groups if group.median is not None]
    if not compared:
        most = max((len(group.values) for group in groups), default=0)
        return [], (
            f"a reference takes {LEAST_FLEET} measured hosts of one kind, and the fleet has {most}"
        )
    limits = next(iter(probes.values()))["tolerance"]
    return list(_outliers(compared, Tolerance(limits["warn"], limits["fail"]))), None


def _outliers(
    compared: Sequence[Comparable], tolerance: Tolerance
) -> Iterator[tuple[str, Judgement]]:
    for group in compared:
        values = list(group.values.values())
        reference = f"the median of {len(values)} hosts"
        for host, value in group.values.items():
            judgement = beside(group.name, value, values, reference, tolerance)
            if judgement.verdict != PASS:
                yield host, judgement


def values_of(probe: Mapping[str, Any]) -> dict[str, float]:
    """A probe's measurements by their names, as far as they are such."""
    found = probe.get("measurements")
    return {
        each["name"]: float(each["value"])
        for each in (found if isinstance(found, list) else [])
        if isinstance(each, dict) and each.get("name") in BY_NAME and is_value(each.get("value"))
    }
