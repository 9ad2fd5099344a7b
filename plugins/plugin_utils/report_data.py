# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gathers, from the results of a playbook's tasks, what became of each host. The document is
schemas/report.schema.json.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..filter.fleet import cache_group
from ..module_utils._contract.stages import NAMES as STAGES
from ..module_utils._contract.stages import SHARED
from ..module_utils._contract.texts import clean
from .report_fleet import fleet, summary, warn_of_outliers

# The modules whose results say what a host is and what was done on it.
KNOWN = ("sgl_values", "sgl_host_info", "sgl_container", "sgl_manifest", "sgl_prep", "sgl_smoke")
_VERSIONS = {
    name: f"{name}_version"
    for name in ("sglang", "torch", "triton", "flashinfer", "deep_gemm", "driver")
} | {"cuda": "cuda"}
_STAGE_KEYS = ("status", "reason", "duration_s", "error_type", "errors")
_SMOKE_KEYS = ("summary", "path", "exit_code")
_PROBE_KEYS = ("ok", "tokens_expected", "tokens_seen", "waited_s", "reason")


@dataclass
class _Host:
    """One host's results; `steps` are the roles that ran on it, `began` the tasks that run now
    (seconds).
    """

    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)
    first: float | None = None
    last: float = 0.0
    changed: int = 0
    status: str = "ok"
    problem: str | None = None
    failed_task: str | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    group: str | None = None
    # The stages of each prep of this run by its id: a prep that is attached to once more is no
    # second one.
    preps: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The latest answer of a prep of each profile; empty for one whose turn has not come.
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    gave: list[dict[str, Any]] = field(default_factory=list)
    took: list[dict[str, Any]] = field(default_factory=list)
    last_task: str | None = None
    stopped: bool = False


def _run(known: dict[str, dict[str, Any]], info: dict[str, Any]) -> dict[str, Any]:
    """The container's run as a task found or made it, or else as the preflight found it."""
    told = (
        known.get("sgl_container") or {},
        known.get("sgl_manifest") or {},
        info.get("run") or {},
    )
    return next((each for each in told if "live" in each), {})


class Report:
    """Fed by the callback as tasks begin and end; `document` at the end."""

    def __init__(self, playbook: str, check_mode: bool) -> None:
        self._playbook = playbook
        self._check_mode = check_mode
        self._zero = time.monotonic()
        self._started_at = _utc()
        self._hosts: dict[str, _Host] = {}
        # Of the plays that this collection has a part in: their hosts, for each play those that
        # were not begun, and the batch that runs.
        self._fleet: dict[str, None] = {}
        self._waiting: dict[str, list[str]] = {}
        self._batch: list[str] = []
        self._stopping: str | None = None
        # Which host gave, in this run, what has this digest.
        self._givers: dict[str, str] = {}
        # Whether a play prepares hosts, and does not only start or stop them; told by the callback.
        self.of_a_prep = False
        self.report_id = (
            f"report-{self._started_at.replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"
        )

    @property
    def is_ours(self) -> bool:
        """Whether any task was one of this collection's."""
        return any(host.known or host.status == "unreachable" for host in self._hosts.values())

    def play(self, play_id: str, hosts: list[str], batch: list[str]) -> None:
        """A play begins on a batch of its hosts; `hosts` are all that it is for."""
        for name in hosts:
            self._hosts.setdefault(name, _Host())
        self._fleet.update(dict.fromkeys(hosts))
        self._waiting[play_id] = [
            name for name in self._waiting.get(play_id, hosts) if name not in batch
        ]
        self._batch, self._stopping = [name for name in batch if name in hosts], None

    def stop(self, task_id: str | None = None) -> None:
        """The hosts of the batch go no further because others failed, in the task with this id or
        in the last one that ended.
        """
        self._stopping = task_id
        for name in self._batch:
            self._hosts[name].stopped = True

    def begin(self, host: str, task_id: str) -> None:
        entry = self._hosts.setdefault(host, _Host())
        entry.began[task_id] = self._now()
        if entry.first is None:
            entry.first = entry.began[task_id]

    def end(
        self,
        host: str,
        task_id: str,
        action: str,
        role: str | None,
        name: str,
        status: str,
        result: dict[str, Any],
        delegate: str | None = None,
    ) -> None:
        """A task has ended; `status` is ok, changed, failed, unreachable or skipped, `delegate` the
        host that did it for this one.
        """
        entry, now = self._hosts.setdefault(host, _Host()), self._now()
        began = entry.began.pop(task_id, now)
        entry.last, entry.last_task = now, name
        # A host that does another task after a failure elsewhere was not stopped by it.
        entry.stopped = entry.stopped and task_id == self._stopping
        # Of records that are not as the contract says; `document` finds these once more.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            self._note_profiles(entry, action, result)
            if action == "sgl_prep" and status != "skipped":
                _note_prep(entry, result)
            if action == "sgl_share" and status in ("ok", "changed"):
                self._note_shared(delegate or host, result.get("items") or {}, now - began)
        if action in KNOWN and status != "skipped":
            entry.known[action] = result
        if action == "debug" and role and status != "skipped":
            entry.notes.append(str(result.get("msg")))
        if status == "changed":
            entry.changed += 1
        for warning in result.get("warnings") or []:
            if (words := str(warning)) not in entry.warnings:
                entry.warnings.append(words)
        if status in ("failed", "unreachable"):
            problem = str(result.get("msg") or "the task failed")
            entry.problem, entry.failed_task = (
                (f"on {delegate}: {problem}" if delegate not in (None, "", host) else problem),
                name,
            )
        if role and status != "skipped":
            _add_step(entry.steps, role, began, now, status)

    def settle(self, failed: set[str], unreachable: set[str]) -> None:
        """Which hosts failed in the end: a failure that was rescued does not count."""
        for name in failed | unreachable:
            self._hosts.setdefault(name, _Host())
        for name, host in self._hosts.items():
            host.status = (
                "unreachable" if name in unreachable else "failed" if name in failed else "ok"
            )
            if host.status == "ok":
                host.problem = host.failed_task = None

    def _note_profiles(self, entry: _Host, action: str, result: dict[str, Any]) -> None:
        """The profiles that a prep will come to."""
        if action == "sgl_values" and self.of_a_prep:
            for profile in result.get("profiles") or []:
                entry.profiles.setdefault(str(profile), {})

    def _note_shared(self, host: str, items: dict[str, dict[str, Any]], seconds: float) -> None:
        """What a host gave or took in one task of so many seconds."""
        entry = self._hosts.setdefault(host, _Host())
        for name, what in items.items():
            stage = name.partition("-")[0]
            about = {
                "stage": stage if stage in STAGES else None,
                "name": name,
                "bytes": what.get("bytes"),
                "finished": what.get("finished"),
                "seconds": round(seconds, 3),
            }
            if what["status"] == "given":
                self._givers[what["digest"]] = host
                entry.gave.append({**about, "to": what.get("from") or "controller"})
            elif what["status"] in ("imported", "loaded"):
                entry.took.append(
                    {
                        **about,
                        "from": what.get("from"),
                        "from_host": self._givers.get(what["digest"]),
                    }
                )

    def document(
        self, use: Callable[[dict[str, Any]], object] = lambda document: None
    ) -> dict[str, Any]:
        """The report, which `use` has been called with: what makes a page of it. A host whose
        records break it costs its own row only.
        """
        names = list(self._hosts)
        if (document := self._whole(names, [], use)) is not None:
            return document
        broken = [name for name in names if self._whole([name], [], use) is None]
        return self._whole(names, broken, use) or self._whole(names, names, use) or {}

    def _whole(
        self, names: list[str], broken: list[str], use: Callable[[dict[str, Any]], object]
    ) -> dict[str, Any] | None:
        """The report of these hosts, of those that are broken without their records; None where
        it cannot be made, written or used.
        """
        try:
            hosts = [
                self._unreadable(name, self._hosts[name])
                if name in broken
                else self._host(name, self._hosts[name])
                for name in names
            ]
            # Hosts and their containers put words into it.
            document: dict[str, Any] = clean(self._of(hosts))
            # NaN and infinity are no JSON, so no report has them.
            json.dumps(document, allow_nan=False)
            summary(document)
            use(document)
        except Exception:
            # A record may hold anything: a report must not end the run.
            return None
        return document

    def _unreadable(self, name: str, entry: _Host) -> dict[str, Any]:
        """The row of a host whose records are not as the contract says."""
        problem = (
            "its records are not as their schemas say, so this row lacks them: look at them on the"
            " host, and run the prep again (playbooks/prep.yml)"
        )
        if entry.problem:
            problem = f"{entry.problem}; {problem}"
        status = "failed" if entry.status == "ok" else entry.status
        bare = replace(
            entry,
            known={},
            preps={},
            profiles={},
            gave=[],
            took=[],
            group=None,
            status=status,
            problem=problem,
        )
        return self._host(name, bare)

    def _of(self, hosts: list[dict[str, Any]]) -> dict[str, Any]:
        fine = sum(host["status"] == "ok" for host in hosts)
        whole = fleet(hosts, self._fleet or None)
        warn_of_outliers(hosts, whole)
        return {
            "schema_version": "1",
            "report_id": self.report_id,
            "playbook": self._playbook,
            "check_mode": self._check_mode,
            "started_at": self._started_at,
            "finished_at": _utc(),
            "duration_s": round(self._now(), 3),
            "status": "ok" if fine == len(hosts) else "partial" if fine else "failed",
            "metrics_ready": {
                "ready": sum(host["metrics_ready"] is True for host in hosts),
                "total": len(hosts),
            },
            "fleet": whole,
            "hosts": hosts,
        }

    def _host(self, name: str, entry: _Host) -> dict[str, Any]:
        info, prep = entry.known.get("sgl_host_info", {}), entry.known.get("sgl_prep", {})
        run = _run(entry.known, info)
        smoke = entry.known.get("sgl_smoke", {})
        result = prep.get("result") or {}
        about = result.get("run") or {}
        proof = result.get("telemetry_probe")
        unfinished = self._unfinished(name, entry)
        # What was found before counts only where nothing failed since, and the host went to its
        # end.
        counts = run.get("live") and entry.status == "ok" and not unfinished
        # In check mode as it would be: what was found counts only where it stands for this request.
        counts = counts and not (self._check_mode and prep.get("probe", "stands") != "stands")
        found = run.get("metrics_ready") if counts else None
        work_s = _work_s(entry.preps)
        rows = [_profile(name, answer) for name, answer in entry.profiles.items()]
        return {
            "host": name,
            "status": entry.status,
            "changed": entry.changed,
            "problem": entry.problem,
            "failed_task": entry.failed_task,
            "unfinished": unfinished,
            "group": entry.group,
            "work_s": work_s,
            "profiles": rows,
            "shared": _shared(entry, work_s),
            "run_id": run.get("run_id") if run.get("live") else None,
            "prep_id": prep.get("prep_id"),
            "metrics_ready": _all_ready(rows) if rows else prep.get("metrics_ready", found),
            "exit_code": prep.get("exit_code"),
            "prep_status": prep.get("status"),
            "notes": entry.notes,
            "smoke": {key: smoke.get(key) for key in _SMOKE_KEYS} if "exit_code" in smoke else None,
            "system": info.get("system"),
            **_as_found(info),
            "model": _model(about),
            "chosen": (about.get("server") or {}).get("chosen") or [],
            "device": _device(info),
            "versions": (
                {name: about.get(key) for name, key in _VERSIONS.items()} if about else None
            ),
            "started_at": _utc(self._wall(entry.first)) if entry.first is not None else None,
            "finished_at": _utc(self._wall(entry.last)) if entry.first is not None else None,
            "duration_s": round(entry.last - entry.first, 3) if entry.first is not None else None,
            "steps": entry.steps,
            "stages": {
                name: {key: stage.get(key) for key in _STAGE_KEYS}
                for name, stage in (result.get("stages") or {}).items()
            },
            **_measured(result),
            # What check mode says of the stages.
            "plan": {} if result else prep.get("stages") or {},
            "telemetry_probe": {key: proof.get(key) for key in _PROBE_KEYS} if proof else None,
            "caches": _caches(result),
            "warnings": list(dict.fromkeys([*entry.warnings, *(result.get("warnings") or [])])),
            "links": _links(run),
        }

    def _unfinished(self, name: str, entry: _Host) -> str | None:
        """Why a host on which nothing failed did not go to its end; None where it did, or was ready
        before that.
        """
        if entry.status != "ok":
            return None
        prep = entry.known.get("sgl_prep", {})
        if prep.get("metrics_ready") is True and all(entry.profiles.values()):
            return None
        if entry.stopped:
            after = (
                f"stopped after the task '{entry.last_task}'" if entry.last_task else "not begun"
            )
            return f"{after}, because other hosts failed"
        waiting = any(name in hosts for hosts in self._waiting.values())
        return "its batch was not begun, because hosts before it failed" if waiting else None

    def _now(self) -> float:
        return time.monotonic() - self._zero

    def _wall(self, offset_s: float) -> float:
        return time.time() - self._now() + offset_s


def _utc(seconds: float | None = None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _note_prep(entry: _Host, prep: dict[str, Any]) -> None:
    found = prep.get("plan") or prep.get("result") or {}
    # The first answer is that to the whole request; a later one may be of a share of it.
    if entry.group is None and any(
        stage.get("key") for stage in (found.get("stages") or {}).values()
    ):
        entry.group = cache_group(prep)
    if profile := prep.get("profile"):
        entry.profiles[str(profile)] = prep
    if prep.get("result") and prep.get("prep_id"):
        entry.preps[prep["prep_id"]] = prep["result"]["stages"]


def _profile(name: str, prep: dict[str, Any]) -> dict[str, Any]:
    """The row of a profile on a host, by the latest answer of its prep."""
    result = prep.get("result") or {}
    proof = result.get("telemetry_probe") or {}
    stands = True if prep.get("probe") == "stands" else None
    return {
        "profile": name,
        "status": prep.get("status"),
        "prep_id": prep.get("prep_id"),
        "model": _model(result.get("run") or {}),
        "stages": dict(prep.get("stages") or {}),
        "metrics_ready": prep.get("metrics_ready", stands),
        "reason": proof.get("reason"),
    }


def _all_ready(rows: list[dict[str, Any]]) -> bool | None:
    """Whether the metrics of each profile's server are proven; None where nothing says so."""
    told = [row["metrics_ready"] for row in rows]
    if all(ready is True for ready in told):
        return True
    return False if False in told else None


def _work_s(preps: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The seconds of each stage that hosts share and that really ran, in whichever prep of this
    run.
    """
    ran = {
        name: [
            stages[name]["duration_s"]
            for stages in preps.values()
            if name in stages and stages[name].get("ran")
        ]
        for name in SHARED
    }
    return {name: round(sum(seconds), 3) for name, seconds in ran.items() if seconds}


def _measured(result: dict[str, Any]) -> dict[str, Any]:
    tuned = (result.get("stages") or {}).get("moe_tune") or {}
    probe = result.get("perf_probe") or {}
    return {
        # None where nothing was measured.
        "moe_gain": (tuned.get("artifacts") or {}).get("gain"),
        "perf": probe if probe.get("verdict") else None,
        # The last one is of the server as it is prepared.
        "server_start": (result.get("server_starts") or [None])[-1],
        "start_advice": result.get("start_advice") or [],
    }


def _made(stages: dict[str, Any], stage: str) -> bool:
    return stage in stages and stages[stage].get("ran") is True and stages[stage]["status"] == "ok"


def _shared(entry: _Host, stages: Iterable[str]) -> dict[str, Any]:
    """Which of the stages the host made itself, and what it gave and took."""
    return {
        "made": [
            stage
            for stage in stages
            if any(_made(results, stage) for results in entry.preps.values())
        ],
        "gave": entry.gave,
        "took": entry.took,
    }


def _model(about: dict[str, Any]) -> dict[str, Any] | None:
    if not about:
        return None
    return {"path": about["model"], "slug": about["model_slug"], "tp": about["tp"]}


def _device(info: dict[str, Any]) -> dict[str, Any] | None:
    devices = info.get("devices")
    if not devices:
        return None
    return {key: value for key, value in devices.items() if key in ("name", "count")}


def _as_found(info: dict[str, Any]) -> dict[str, Any]:
    """What the look at the host says, before anything was done."""
    tree, run = info.get("tree") or {}, info.get("run") or {}
    prep, name = run.get("prep") or {}, info.get("container_name")
    container = {"name": name, "id": (info.get("container") or {}).get("id")}
    return {
        "foreign": tree.get("foreign") or [],
        "ignored": tree.get("ignored") or [],
        "container": container if name else None,
        # What ran in it, in words.
        "in_use": [
            *([f"prep {prep.get('prep_id')}"] if prep else []),
            *(run.get("in_use") or []),
        ],
    }


def _add_step(
    steps: list[dict[str, Any]], role: str, began: float, ended: float, status: str
) -> None:
    """One step for all tasks of a role that follow each other; the worst of their states is its
    own.
    """
    order = ("ok", "changed", "failed", "unreachable")
    if not steps or steps[-1]["name"] != role:
        steps.append({"name": role, "start_s": round(began, 3), "duration_s": 0.0, "status": "ok"})
    step = steps[-1]
    # The start may be rounded to after the end.
    step["duration_s"] = max(0.0, round(ended - step["start_s"], 3))
    step["status"] = max(step["status"], status, key=order.index)


def _caches(result: dict[str, Any]) -> dict[str, Any] | None:
    sizes = result.get("profile_cache")
    if not sizes:
        return None
    nothing = {"size_bytes": 0, "file_count": 0}
    return {
        name: {
            f"{when}_{unit}": sizes[when].get(name, nothing)[key]
            for unit, key in (("bytes", "size_bytes"), ("files", "file_count"))
            for when in ("before", "after")
        }
        for name in sizes["after"]
    }


def _links(run: dict[str, Any]) -> dict[str, Any]:
    """Where the live run's records are, on the host and in the container."""
    if not run.get("live"):
        return dict.fromkeys(
            (
                "prometheus",
                "prep_result",
                "prep_result_container",
                "manifest",
                "manifest_container",
                "log",
            )
        )
    manifest, host = run["manifest"], run["paths"]
    inside = manifest["paths"]["container"]["run_dir"]
    return {
        "prometheus": manifest["services"]["prometheus"]["url"],
        "prep_result": f"{host['run_dir']}/prep_result.json",
        "prep_result_container": f"{inside}/prep_result.json",
        "manifest": f"{host['run_dir']}.json",
        "manifest_container": f"{inside}.json",
        "log": host["log_file"],
    }
