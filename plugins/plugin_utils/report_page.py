# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes one self-contained HTML page of a report (schemas/report.schema.json): no script, no font,
no image, nothing is loaded.

Runs on the controller, beside Ansible's own Jinja2. All times are seconds, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from ..module_utils._contract import perf, places
from ..module_utils._contract.stages import NAMES as STAGES
from . import report_fleet, report_strips

TEMPLATES = Path(__file__).resolve().parents[2] / "playbooks" / "templates"

CACHES = tuple(places.CACHES)
# What the strip below the verdict counts, from good to bad.
STANDINGS = ("ready", "no proof", "not finished", "failed", "unreachable")

# The template has a colour for each; the steps beyond it share one.
STEP_COLOURS = 7

# Distances of the time axis' ticks that read well, in seconds; beyond them, days.
TICKS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
)
MOST_TICKS = 6
DAY = 86400

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
UNKNOWN = "unknown"

# Of a host in the report of an older release.
_ADDED_LATER: dict[str, Any] = {
    "unfinished": None,
    "group": None,
    "work_s": {},
    "shared": {"made": [], "gave": [], "took": []},
    "chosen": [],
    "profiles": [],
    "perf": None,
}

# Beyond so many hosts with work of their own, the time of each one's work is on its own part of the
# page only.
FEW = 4

# A sentence and the task, if any, that it came from.
Said = tuple[str, str | None]


class Finding(NamedTuple):
    """A sentence that holds for one host or more; ``hosts`` are their numbers in the report."""

    text: str
    task: str | None
    hosts: list[int]


class Group(NamedTuple):
    """A row of the fleet's table. Hosts are numbers in the report; ``makers`` and ``takers`` with
    what they made or took.
    """

    id: str | None
    hosts: list[int]
    ready: int
    makers: list[tuple[str, list[int]]]
    takers: list[tuple[str, list[int]]]
    problems: list[Finding]


class _BytecodeCache(FileSystemBytecodeCache):
    """Without it a page takes longer, and that is all: no error of it counts."""

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError, ValueError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            super().dump_bytecode(bucket)


def _bytecode_cache() -> FileSystemBytecodeCache | None:
    try:
        return _BytecodeCache()
    except (OSError, RuntimeError):
        # Its folder in /tmp is another user's, who could have placed code in it; or there is no
        # /tmp to write in.
        return None


def render(report: dict[str, Any]) -> str:
    """The whole page. ``report`` must keep its schema, maybe that of an older release; fields that
    it does not know are not shown.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # Compiling the template takes ten times as long as filling it.
        bytecode_cache=_bytecode_cache(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, size=size, moment=moment, shown=perf.shown)
    hosts = [{**_ADDED_LATER, **host} for host in report["hosts"]]
    standings = [standing(host) for host in hosts]
    fleet = report_fleet.of_report(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        hosts=hosts,
        standings=standings,
        fleet=fleet,
        groups=groups(hosts) if "fleet" in report and len(hosts) > 1 else [],
        counts={name: standings.count(name) for name in STANDINGS},
        problems=findings(hosts, problems_of),
        warnings=findings(hosts, lambda host: [(text, None) for text in host["warnings"]]),
        chosen=findings(hosts, chosen_for),
        profiles=any(host["profiles"] for host in hosts),
        stages=STAGES,
        measured=report_strips.measured(hosts, fleet),
        least_fleet=perf.LEAST_FLEET,
        timeline=timeline(report),
        caches=[name for name in CACHES if any(name in (host["caches"] or {}) for host in hosts)],
        largest_cache=largest_cache(hosts),
    )
    # What a host printed outside UTF-8 is half a character here, and could not be written to a
    # file.
    return page.encode("utf-8", "replace").decode("utf-8")


def standing(host: dict[str, Any]) -> str:
    if host["status"] != "ok":
        return str(host["status"])
    if host.get("unfinished"):
        return "not finished"
    return "ready" if host["metrics_ready"] is True else "no proof"


def chosen_for(host: dict[str, Any]) -> list[Said]:
    """The server's arguments that were chosen for the operator, each with its reason."""
    return [(f"{' '.join(each['arguments'])}: {each['reason']}", None) for each in host["chosen"]]


def problems_of(host: dict[str, Any]) -> list[Said]:
    """The host's own sentence; without one, what its stages and its proof say."""
    if host["problem"]:
        return [(host["problem"], host["failed_task"])]
    if host.get("unfinished"):
        return [(host["unfinished"], None)]
    found: list[Said] = [
        (f"{name}: {text}", None)
        for name in STAGES
        if name in host["stages"]
        for text in host["stages"][name]["errors"]
    ]
    probe = host["telemetry_probe"]
    if probe and probe["reason"] and host["metrics_ready"] is not True:
        found.append((f"No METRICS_READY: {probe['reason']}", None))
    return found


def findings(
    hosts: list[dict[str, Any]],
    texts_of: Callable[[dict[str, Any]], list[Said]],
    numbers: list[int] | None = None,
) -> list[Finding]:
    """The same text of the same task once, with every host that it is of, or each of these; what
    most hosts have first.
    """
    found: dict[Said, Finding] = {}
    for number in range(len(hosts)) if numbers is None else numbers:
        for text, task in dict.fromkeys(texts_of(hosts[number])):
            found.setdefault((text, task), Finding(text, task, [])).hosts.append(number)
    return sorted(found.values(), key=lambda finding: -len(finding.hosts))


def groups(hosts: list[dict[str, Any]]) -> list[Group]:
    """The groups in the order of their first hosts; last, hosts that failed before they could say
    what they want.
    """
    members: dict[str | None, list[int]] = {}
    for number, host in enumerate(hosts):
        members.setdefault(host["group"], []).append(number)
    return [
        _group(name, members[name], hosts)
        for name in sorted(members, key=lambda name: name is None)
    ]


def _group(name: str | None, numbers: list[int], hosts: list[dict[str, Any]]) -> Group:
    made: dict[str, list[int]] = {}
    took: dict[str, list[int]] = {}
    few = sum(bool(hosts[number]["work_s"]) for number in numbers) <= FEW
    for number in numbers:
        if does := _made(hosts[number], few):
            made.setdefault(does, []).append(number)
        if does := _took(hosts[number]):
            took.setdefault(does, []).append(number)
    found = findings(
        hosts,
        lambda host: [(report_fleet.first_line(text), task) for text, task in problems_of(host)],
        numbers,
    )
    ready = sum(report_fleet.is_ready(hosts[number]) for number in numbers)
    return Group(name, numbers, ready, list(made.items()), list(took.items()), found)


def _made(host: dict[str, Any], with_times: bool) -> str:
    """``moe_tune 15 min 38 s, inductor failed after 20 s``, or without the times."""
    made, failed = host["shared"]["made"], "failed after" if with_times else "failed"
    return ", ".join(
        " ".join(
            [
                stage,
                *([] if stage in made else [failed]),
                *([duration(seconds)] if with_times else []),
            ]
        )
        for stage, seconds in host["work_s"].items()
    )


def _took(host: dict[str, Any]) -> str:
    """``moe_tune, inductor from gh200-01``; from where it lay, where no host is known to have given
    it in this run.
    """
    found: dict[str, list[str]] = {}
    for taken in host["shared"]["took"]:
        what = (taken["stage"] or "image") + (" (part)" if taken["finished"] is False else "")
        found.setdefault(_source(taken), []).append(what)
    return "; ".join(
        f"{', '.join(dict.fromkeys(what))} from {source}" for source, what in found.items()
    )


def _source(taken: dict[str, Any]) -> str:
    return taken["from_host"] or (
        "the controller" if (taken["from"] or "").startswith("controller:") else "the registry"
    )


def timeline(report: dict[str, Any]) -> dict[str, Any]:
    """The chart, in percent of its width: ``names`` of the steps in the order of their colours,
    ``ticks``, a row of bars for each host.
    """
    steps = [step for host in report["hosts"] for step in host["steps"]]
    span = (
        max([report["duration_s"], *(step["start_s"] + step["duration_s"] for step in steps)])
        or 1.0
    )
    names = list(dict.fromkeys(step["name"] for step in steps))
    rows = [
        [
            {
                **step,
                "colour": min(names.index(step["name"]), STEP_COLOURS),
                "x": min(100 * step["start_s"] / span, 99.7),
                "width": max(100 * step["duration_s"] / span, 0.3),
            }
            for step in host["steps"]
        ]
        for host in report["hosts"]
    ]
    return {
        "names": names,
        "rows": rows,
        "ticks": [(100 * at / span, tick_label(at)) for at in ticks(span)],
    }


def ticks(span: float) -> list[float]:
    """Where a time axis from 0 to ``span`` has its ticks."""
    whole_days = DAY * (span // (DAY * MOST_TICKS) + 1)
    every = next((every for every in TICKS if span / every <= MOST_TICKS), whole_days)
    return [round(every * number, 1) for number in range(int(span / every) + 1)]


def tick_label(seconds: float) -> str:
    """``1 h 30 min``, without the parts that are 0."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [
        f"{value:g} {unit}"
        for value, unit in ((hours, "h"), (minutes, "min"), (rest, "s"))
        if value
    ]
    return " ".join(parts) or "0"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``42 s``, ``6 min 58 s``, ``2 h 5 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: float | None) -> str:
    """``512 B``, ``2.3 KiB``, ``700 MiB``: three digits or so."""
    if count is None:
        return UNKNOWN
    power = 0
    while round(count) >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    digits = 1 if power and count < 99.95 else 0
    return f"{count:.{digits}f} {UNITS[power]}"


def largest_cache(hosts: list[dict[str, Any]]) -> int:
    """The size that a bar of full width stands for; at least 1, as the template divides by it."""
    found = [
        cache for host in hosts for name, cache in (host["caches"] or {}).items() if name in CACHES
    ]
    return max(
        [1, *(cache[key] or 0 for cache in found for key in ("before_bytes", "after_bytes"))]
    )


def moment(timestamp: str | None) -> str:
    """``25 Nov 2026, 17:22:00 UTC`` of a contract's timestamp."""
    if timestamp is None:
        return UNKNOWN
    date, _t, time = timestamp.removesuffix("Z").partition("T")
    year, month, day = date.split("-")
    return f"{int(day)} {MONTHS[int(month) - 1]} {year}, {time} UTC"
