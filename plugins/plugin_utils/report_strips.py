# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lays out the picture of what stage `perf` measured of a fleet: a strip for each measurement and
each kind of host, with a dot for each host.

Which hosts are compared follows from the contract, which ones are slow is in the report.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..module_utils._contract import perf

# An axis reaches at least so far to both sides of the middle, as a share of it: hosts that are
# alike are drawn close together, however small their differences are.
LEAST_REACH = 0.05
# Dots that are closer than this, in percent of the width, are in different lanes; a lane has so
# many px, and the first one is in the middle.
DOT_WIDTH, LANE_HEIGHT, MOST_LANES = 0.8, 8, 9
# So many slow hosts of a strip, the slowest ones, have a line with their name. The others are
# marked among the dots.
MOST_NAMED = 8


class Dot(NamedTuple):
    """A host in a strip, by its number in the report; ``x`` in percent. A slow one has a verdict,
    warn or fail, and a sentence.
    """

    host: int
    value: float
    x: float
    verdict: str | None
    sentence: str | None


class Axis(NamedTuple):
    """The values at both ends of a strip."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value is, in percent of the width."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


class Strip(NamedTuple):
    """The hosts of one kind. ``swarm`` has each dot with its ``y`` in px, ``named`` the slow hosts
    with a line of their own. A single host has numbers and no picture.
    """

    kind: str
    hosts: list[int]
    smallest: float
    largest: float
    median: float | None
    axis: Axis
    height: int
    swarm: list[tuple[Dot, int]]
    named: list[Dot]

    @property
    def slow(self) -> list[Dot]:
        return [*self.named, *self.more]

    @property
    def more(self) -> list[Dot]:
        """The slow hosts without a line of their own."""
        return [dot for dot, _y in self.swarm if dot.verdict]


class Measured(NamedTuple):
    """A measurement that at least one host has, for each kind of host."""

    about: perf.Measurement
    strips: list[Strip]


def measured(hosts: list[dict[str, Any]], fleet: dict[str, Any]) -> list[Measured]:
    """The measurements in the contract's order, each with the kind of most hosts first."""
    numbers = {host["host"]: number for number, host in enumerate(hosts)}
    outliers = {
        (each["host"], each["name"]): each for each in (fleet.get("perf") or {}).get("outliers", [])
    }
    groups = perf.comparable({host["host"]: host["perf"] for host in hosts if host["perf"]})
    groups.sort(key=lambda group: -len(group.values))
    found = []
    for about in perf.MEASUREMENTS:
        same = [group for group in groups if group.name == about.name]
        kinds = [_kind(group, hosts[numbers[next(iter(group.values))]]) for group in same]
        strips = []
        for kind, group in zip(kinds, same, strict=True):
            # Kinds of equal names differ by the digest of what was measured.
            full = f"{kind}, {str(group.kind)[:8]}" if kinds.count(kind) > 1 else kind
            strips.append(_strip(full, group, numbers, outliers))
        if strips:
            found.append(Measured(about, strips))
    return found


def _kind(group: perf.Comparable, host: dict[str, Any]) -> str:
    """What the hosts of a group have in common, by one of them."""
    device = str(host["perf"].get("device_name") or "unknown device")
    if perf.BY_NAME[group.name].of_server and host["model"]:
        return f"{device}, {host['model']['slug']}"
    return device


def _axis(group: perf.Comparable) -> Axis:
    smallest, largest = min(group.values.values()), max(group.values.values())
    middle = group.median or (smallest + largest) / 2
    return Axis(min(smallest, middle * (1 - LEAST_REACH)), max(largest, middle * (1 + LEAST_REACH)))


def _dots(
    group: perf.Comparable,
    axis: Axis,
    numbers: dict[str, int],
    outliers: dict[tuple[str, str], dict[str, Any]],
) -> list[Dot]:
    dots = []
    for host, value in group.values.items():
        outlier = outliers.get((host, group.name), {})
        verdict, sentence = outlier.get("verdict"), outlier.get("sentence")
        dots.append(Dot(numbers[host], value, axis.place(value), verdict, sentence))
    return dots


def _strip(
    kind: str,
    group: perf.Comparable,
    numbers: dict[str, int],
    outliers: dict[tuple[str, str], dict[str, Any]],
) -> Strip:
    axis = _axis(group)
    dots = _dots(group, axis, numbers, outliers)
    worst_first = sorted(
        dots, key=lambda dot: dot.value, reverse=not perf.BY_NAME[group.name].higher
    )
    named = [dot for dot in worst_first if dot.verdict][:MOST_NAMED]
    drawn = dots if len(dots) > 1 else []
    swarm, height = _swarm([dot for dot in drawn if dot not in named])
    return Strip(
        kind,
        [dot.host for dot in dots],
        min(group.values.values()),
        max(group.values.values()),
        group.median,
        axis,
        height,
        swarm,
        named,
    )


def _swarm(dots: list[Dot]) -> tuple[list[tuple[Dot, int]], int]:
    """The dots with their heights, and the height of all: each one in the lane nearest to the
    middle that has room for it. Where none has, it covers a part of the dot that is farthest.
    """
    ends: list[float] = []
    in_lanes: list[tuple[Dot, int]] = []
    for dot in sorted(dots, key=lambda dot: dot.x):
        lane = next((lane for lane, end in enumerate(ends) if dot.x - end >= DOT_WIDTH), len(ends))
        if lane == MOST_LANES:
            lane = ends.index(min(ends))
        ends[lane : lane + 1] = [dot.x]
        in_lanes.append((dot, lane))
    # Lanes are by turns above and below the first one.
    above = len(ends) // 2
    middle = LANE_HEIGHT * (above + 1)
    swarm = []
    for dot, lane in in_lanes:
        distance = LANE_HEIGHT * ((lane + 1) // 2)
        swarm.append((dot, middle - distance if lane % 2 else middle + distance))
    return swarm, 2 * middle
