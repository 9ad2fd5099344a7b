"""What a prep costs that runs stages although this host has records of their work: which stages,
what changed since, and how long they took, by those records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sgl_admin.contract.records import MADE_IN
from sgl_admin.contract.texts import duration, is_duration, one_line
from sgl_admin.records import caches
from sgl_admin.stages import earlier, inputs

if TYPE_CHECKING:
    from sgl_admin.prep.plan import Decision

_LONGEST = 600
_DEVICE = ("device_name", "compute_capability", "cpu_arch", "cpu_isa")
_MAPPINGS = {"environment": "variables", "named_files": "files"}
_MOST_NAMED = 4


@dataclass(frozen=True)
class Repeat:
    """A stage that runs although a record of its work stands."""

    stage: str
    # What else changed than the image and its software.
    changes: tuple[str, ...]
    # How long it took; None where no record says it, or where it runs only to be shown warm.
    seconds: float | None
    cached: bool = False
    # From which base image to which.
    image: str | None = None
    # Of the packages that the stage depends on, those that changed.
    software: tuple[str, ...] = ()


def line(decisions: Iterable[Decision]) -> str | None:
    """The cost in one sentence; None where a prep repeats nothing."""
    found = list(filter(None, map(_repeat, decisions)))
    parts = []
    if again := [each for each in found if not each.cached]:
        names = ", ".join(each.stage for each in again)
        parts.append(f"runs {names} ({_changes(again)}); {_time(again)}")
    if cached := [each for each in found if each.cached]:
        names = ", ".join(each.stage for each in cached)
        parts.append(f"starts the server to check {names} ({_changes(cached)})")
    return one_line("; ".join(parts), _LONGEST) if parts else None


def _changes(found: list[Repeat]) -> str:
    image = next((each.image for each in found if each.image), "")
    software = list(dict.fromkeys(name for each in found for name in each.software))
    parts = []
    if image or software:
        about = f": {', '.join(software[:_MOST_NAMED])}" if software else ""
        parts.append(f"the image changed{image}{about}")
    parts += dict.fromkeys(change for each in found for change in each.changes)
    return "; ".join(parts)


def _time(found: list[Repeat]) -> str:
    known = [each.seconds for each in found if each.seconds is not None]
    unknown = [each.stage for each in found if each.seconds is None]
    if not known:
        return "no record says how long that took before"
    more = f" without {', '.join(unknown)}, whose time no record has" if unknown else ""
    return f"that took about {duration(sum(known))} before{more}"


def _repeat(decision: Decision) -> Repeat | None:
    if decision.action != "run" or decision.signature is None:
        return None
    own = decision.record
    record = _closest(own)
    if record is None:
        return None
    changes: tuple[str, ...] = ()
    software: tuple[str, ...] = ()
    if caches.digest(record["signature"]) == caches.digest(own.signature):
        image = _image_change(record) if decision.cached else None
    else:
        image = _image_change(record)
        before, now = record["signature"], own.signature
        packages = inputs.software(decision.stage.depends_on)
        keys = _differing(before, now)
        software = tuple(f"{key} {before[key]} to {now[key]}" for key in keys if key in packages)
        others = (key for key in keys if key not in packages)
        changes = tuple(_difference(key, before[key], now[key]) for key in others)
    if not (changes or software or (image and decision.cached)):
        changes = (decision.explanation or "",)
    seconds = None if decision.cached else _seconds(decision.stage.name, record)
    return Repeat(decision.stage.name, changes, seconds, decision.cached, image, software)


def _closest(own: caches.SignatureRecord) -> dict[str, Any] | None:
    """Of the records of a stage the one that is most like what is wanted: of the same model where
    there is one, then with the fewest differences, then the latest.
    """

    def rank(record: dict[str, Any]) -> tuple[bool, int]:
        signature = record["signature"]
        return (not own.same_model(signature), len(_differing(signature, own.signature)))

    return min(own.all(), key=rank, default=None)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys of two signatures that both have with other values; a release that recorded less
    changed nothing by that.
    """
    return [
        key
        for key in now
        if key in before and caches.digest({key: before[key]}) != caches.digest({key: now[key]})
    ]


def _difference(key: str, before: Any, now: Any) -> str:
    if key in _DEVICE:
        return f"{key} changed from {before} to {now}"
    if key in caches.OF_MODEL:
        return "another model"
    if key == "arguments":
        return _named("the server's arguments changed", _flags(before), _flags(now))
    if key in _MAPPINGS:
        return _named(f"{_MAPPINGS[key]} changed", _items(before), _items(now))
    return f"{key} changed"


def _image_change(record: dict[str, Any]) -> str | None:
    before, now = record.get(caches.IMAGE), caches.base_image()
    if isinstance(before, str) and before and now and before != now:
        return f" from {before} to {now}"
    return None


def _named(what: str, before: set[tuple[str, str]], now: set[tuple[str, str]]) -> str:
    """Names only: a value may be a secret."""
    names = sorted({name for name, _value in before ^ now})
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{what}: {', '.join(names[:_MOST_NAMED])}{more}"


def _flags(groups: Any) -> set[tuple[str, str]]:
    found = groups if isinstance(groups, list) else []
    return {(str(group[0]), str(group)) for group in found if isinstance(group, list) and group}


def _items(values: Any) -> set[tuple[str, str]]:
    found = values if isinstance(values, dict) else {}
    return {(name, str(value)) for name, value in found.items()}


def _seconds(stage: str, record: dict[str, Any]) -> float | None:
    """How long the work of a record took: by the record, or by the result of a prep, which is all
    that releases before 1.2 left.
    """
    recorded = record["summary"].get(MADE_IN)
    if is_duration(recorded):
        return float(recorded)
    signature = caches.digest(record["signature"])
    for result in earlier.results():
        made = result["stages"].get(stage)
        if not isinstance(made, dict) or made.get("ran") is not True or made.get("status") != "ok":
            continue
        took = made.get("duration_s")
        if is_duration(took) and caches.digest(made.get("signature") or {}) == signature:
            return float(took)
    return None
