"""The watcher's record: the stretches in which it watched, and the windows in which something
disturbed the host. By both it is judged whether a benchmark was undisturbed.

Each has its begin and end twice: in Unix time, for Prometheus and people, and by the monotonic
clock, which cannot be set, for the judgement.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sgl_admin.base import clock, files, paths
from sgl_admin.contract import options
from sgl_admin.contract.texts import say
from sgl_admin.perf.conditions import KINDS, UNWATCHED, Condition

# Between two samples of one stretch; what pauses for longer has not watched.
_GAP_S = 3.0
# A condition that holds again within these seconds goes on.
_MERGE_S = 5.0
_MOST_WINDOWS, _MOST_STRETCHES = 100, 20
_POLL_S = 0.1
_SHAPE: files.Shape = {"stretches": list, "windows": list, "complete_since_s": (int, float)}
_TIMES = ("begin", "end", "begin_s", "end_s")
_SEE = "the run's log says why"


def is_wanted() -> bool:
    """Whether this container has a watcher (sgl_watch)."""
    return os.environ.get(options.BY_NAME[options.WATCH].variable, "").lower() == "true"


@dataclass
class Windows:
    """What one watcher writes. Old windows and stretches go; what is judged of the time before them
    is not known then.
    """

    run_id: str
    stretches: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    complete_since_s: float = 0.0
    # The last window of each condition, and its extent.
    _last: dict[tuple[str, str], tuple[dict[str, Any], float]] = field(default_factory=dict)
    _at_s: float = -math.inf

    @classmethod
    def resumed(cls, run_id: str) -> Windows:
        """With what an earlier watcher of the run wrote."""
        files.sweep_temporaries(paths.run_dir(run_id), paths.watch(run_id).name)
        warnings: list[str] = []
        found = files.read_or_set_aside(paths.watch(run_id), _SHAPE, warnings)
        for warning in warnings:
            say(f"watcher: WARNING: {warning}", flush=True)
        try:
            stretches, windows, since_s = _checked(found or {})
        except ValueError:
            return cls(run_id)
        return cls(run_id, stretches, windows, since_s)

    def add(self, at_s: float, wall_s: float, conditions: Iterable[Condition]) -> None:
        """What held at a moment."""
        if at_s - self._at_s > _GAP_S:
            self.stretches.append(_period(at_s, wall_s))
        self._at_s = at_s
        _extend(self.stretches[-1], at_s, wall_s)
        for condition in conditions:
            self._hold(condition, at_s, wall_s)
        del self.stretches[:-_MOST_STRETCHES]
        while len(self.windows) > _MOST_WINDOWS:
            self.complete_since_s = max(self.complete_since_s, self.windows.pop(0)["end_s"])
        if len(self._last) > _MOST_WINDOWS:
            self._last = {
                key: last for key, last in self._last.items() if at_s - last[0]["end_s"] <= _MERGE_S
            }

    def _hold(self, condition: Condition, at_s: float, wall_s: float) -> None:
        key = (condition.kind, condition.subject)
        since_s = at_s if condition.since_s is None else condition.since_s
        window, extent = self._last.get(key, (None, 0.0))
        if window is None or since_s - window["end_s"] > _MERGE_S:
            window, extent = _period(since_s, wall_s - (at_s - since_s)), -math.inf
            window["kind"] = condition.kind
            self.windows.append(window)
        if condition.extent > extent:
            window["what"], extent = condition.what, condition.extent
        _extend(window, at_s, wall_s)
        self._last[key] = (window, extent)

    def text(self) -> str:
        document = {
            "schema_version": "1",
            "run_id": self.run_id,
            "written_at": clock.utc(),
            "complete_since_s": self.complete_since_s,
            "stretches": self.stretches,
            "windows": self.windows,
        }
        return json.dumps(document, ensure_ascii=False) + "\n"


def _period(at_s: float, wall_s: float) -> dict[str, Any]:
    return dict(zip(_TIMES, (round(wall_s, 3),) * 2 + (round(at_s, 3),) * 2, strict=True))


def _extend(period: dict[str, Any], at_s: float, wall_s: float) -> None:
    period.update(end=round(wall_s, 3), end_s=round(at_s, 3))


# --- the judgement


@dataclass(frozen=True)
class Judgement:
    """`undisturbed` is None where that is not known; `problem` says why, where a watcher should
    have known.
    """

    undisturbed: bool | None = None
    disturbances: tuple[dict[str, Any], ...] = ()
    problem: str | None = None


def judged(run_id: str, begin_s: float, end_s: float) -> Judgement:
    """Of a time that has just ended, by the monotonic clock: waits until it was watched to its
    end, as long as the watcher may only be about to sample.
    """
    if not is_wanted():
        return Judgement()
    while True:
        try:
            found = _checked(files.read_record(paths.watch(run_id), _SHAPE) or {})
        except (OSError, ValueError) as error:
            return Judgement(problem=f"whether it was undisturbed is not known: {error}")
        watched_s = _watched_until(found[0])
        if watched_s >= end_s or time.monotonic() - watched_s > _GAP_S:
            return judge(*found, begin_s, end_s)
        time.sleep(_POLL_S)


def judge(
    stretches: list[dict[str, Any]],
    windows: list[dict[str, Any]],
    since_s: float,
    begin_s: float,
    end_s: float,
) -> Judgement:
    within = [each for each in windows if each["begin_s"] <= end_s and each["end_s"] >= begin_s]
    disturbances = tuple(
        {key: each[key] for key in ("begin", "end", "kind", "what")}
        for each in within
        if each["kind"] != UNWATCHED
    )
    gaps = [each["what"] for each in within if each["kind"] == UNWATCHED]
    whole = since_s <= begin_s and any(
        each["begin_s"] <= begin_s and each["end_s"] >= end_s for each in stretches
    )
    problem = None
    if not whole:
        problem = f"the watcher (sgl_watch) did not watch all of it: {_SEE}"
    elif gaps:
        problem = f"the watcher (sgl_watch) could not see all of it: {'; '.join(gaps[:3])}"
    undisturbed = False if disturbances else None if problem else True
    return Judgement(
        undisturbed,
        disturbances,
        problem and f"whether it was undisturbed is not known: {problem}",
    )


def obstacle(run_id: str) -> str | None:
    """Why the watcher that this container should have does not watch now; None where it does."""
    if not is_wanted():
        return None
    try:
        stretches, _windows, _since = _checked(files.read_record(paths.watch(run_id), _SHAPE) or {})
    except (OSError, ValueError) as error:
        return f"the watcher's record cannot be read: {error}"
    silent_s = time.monotonic() - _watched_until(stretches)
    if silent_s <= 2 * _GAP_S:
        return None
    since = f"for {silent_s:.0f} s" if stretches else "yet"
    return (
        f"the watcher (sgl_watch) has not watched {since}: {_SEE}; one that ended is started again"
    )


def _watched_until(stretches: list[dict[str, Any]]) -> float:
    return stretches[-1]["end_s"] if stretches else -math.inf


def _checked(
    document: dict[str, Any],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Stretches, windows, and since when these are complete. Raises ValueError where a record was
    changed.
    """
    stretches, windows = document.get("stretches", []), document.get("windows", [])
    since_s = document.get("complete_since_s", 0.0)
    whole = (
        _is_time(since_s)
        and all(_is_period(each) for each in (*stretches, *windows))
        and all(each.get("kind") in KINDS for each in windows)
        and all(isinstance(each.get("what"), str) for each in windows)
    )
    if not whole:
        raise ValueError("the watcher's record was changed by another program")
    return stretches, windows, since_s


def _is_period(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_time(value.get(key)) for key in _TIMES)


def _is_time(value: Any) -> bool:
    """In seconds; none that no calendar holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
