# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Begins a prep in the container and follows it by short polls, showing its progress: a lost
connection loses nothing but the view.

Each poll is one command over the host's connection, without a module: a prep of hours asks a
thousand times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError

from ..module_utils._contract.options import prep_spec, request_document
from ..module_utils._contract.records import MADE_IN
from ..module_utils._contract.texts import duration, is_duration, one_line
from ..module_utils._prep_client import AdminError, PrepClient, did_work, failure
from ..plugin_utils.admin_action import BROKEN_ANSWER, AdminAction, breaks_the_contract

# With a poll on top it stays below 15 s of silence; where more hosts are prepared at once, only
# what changes is shown.
_HEARTBEAT_S = 10.0
_FEW_HOSTS = 4
# Seconds that one round trip waits for the prep's end; the first one, which tells what runs, not
# for long.
_FIRST_POLL_S = 1.0
_POLL_S = 5.0

ARGUMENT_SPEC: dict[str, Any] = {
    "container": {"type": "str", "default": "sglang-dev"},
    **prep_spec(),
    "assume_started": {"type": "bool", "default": True},
    "standing": {"type": "bool", "default": False},
    "give": {"type": "dict"},
    "earlier": {"type": "dict"},
}


class ActionModule(AdminAction):
    def act(self) -> dict[str, Any]:
        _ignored, given = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        client = PrepClient(self.call, given["container"])
        named = {"profile": given["profile"]} if given["profile"] else {}
        try:
            follow = self._plan if self._task.check_mode else self._prep
            return {**named, **follow(client, given)}
        except AdminError as error:
            return {**named, "failed": True, "msg": str(error), "exit_code": error.exit_code}
        except BROKEN_ANSWER as error:
            return {**named, "failed": True, "msg": breaks_the_contract(error)}

    def _plan(self, client: PrepClient, given: dict[str, Any]) -> dict[str, Any]:
        if not given["assume_started"]:
            if took := earlier_work(given["earlier"] or {}):
                self.say(took)
            return {
                "changed": True,
                "stages": {},
                "probe": "skipped" if given["probe"] == "never" else "would_run",
                "msg": "a prep would follow the start of the container",
            }
        plan = client.dry_run(request_document(given))
        if cost := plan.get("cost"):
            self.say(f"the prep {cost}")
        self._warn(plan["warnings"])
        stages = {name: stage["status"] for name, stage in plan["stages"].items()}
        return {
            "changed": plan["would_change"] is True,
            "stages": stages,
            "probe": plan.get("telemetry_probe", "would_run"),
            "exit_code": 0,
            "diff": plan_diff(plan),
        }

    def _prep(self, client: PrepClient, given: dict[str, Any]) -> dict[str, Any]:
        few = len(self._vars.get("ansible_play_hosts") or []) <= _FEW_HOSTS
        with losing_nothing("the prep, if it had begun,"):
            envelope = client.start(request_document(given), _FIRST_POLL_S, given["standing"])
        if plan := envelope.get("plan"):
            self._warn(plan["warnings"])
            return {
                "changed": False,
                "plan": plan,
                "stages": {name: stage["status"] for name, stage in plan["stages"].items()},
                "exit_code": 0,
            }
        if envelope.get("attached") is True and envelope["job"]:
            self.say(f"attached to {progress(envelope['job'])}")
        if cost := envelope.get("cost"):
            self.say(f"the prep {cost}")
        if (job := envelope["job"]) and job["state"] == "running":
            self.say(goes_on(job["prep_id"], given["container"]))
        shown, shown_at, finished = None, 0.0, 0
        while (job := envelope["job"]) and job["state"] == "running":
            doing = job.get("stage"), job.get("message")
            if doing != shown or (few and time.monotonic() - shown_at >= _HEARTBEAT_S):
                self.say(progress(job))
                shown, shown_at = doing, time.monotonic()
            if given["give"] and len(job.get("finished_batch_sizes", [])) > finished:
                finished = len(job["finished_batch_sizes"])
                self._give(given["give"])
            with losing_nothing(job["prep_id"]):
                envelope = client.follow(job["prep_id"], _POLL_S)
        result = envelope["result"]
        if job is None:
            raise AdminError("sgl-admin has no record of the prep that it began; run this again")
        outcome: dict[str, Any] = {
            "changed": result is not None and did_work(result),
            "prep_id": job["prep_id"],
            "job": job,
            "stages": {},
        }
        outcome["exit_code"] = job["exit_code"] if isinstance(job["exit_code"], int) else 1
        if result:
            self._warn(result["warnings"])
            outcome.update(
                status=result["status"],
                stages={name: stage["status"] for name, stage in result["stages"].items()},
                metrics_ready=result["telemetry_probe"]["ok"] is True,
                result=result,
                diff=result_diff(result),
            )
        problem = failure(job, result)
        return {**outcome, "failed": True, "msg": problem} if problem else outcome

    def _give(self, what: dict[str, Any]) -> None:
        """Share the batch sizes that are finished so far. Where that fails the prep goes on: all of
        them are given when it has ended.
        """
        task = self._task.copy()
        task.args = {**what, "state": "given"}
        action = self._shared_loader_obj.action_loader.get(
            "slice_bench.sglang.sgl_share",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        try:
            answer = action.run(task_vars=self._vars)
            problem = answer.get("msg") if answer.get("failed") else None
        except AnsibleError as error:
            problem = str(error)
        if problem:
            self.warn(f"what is finished so far is not shared yet: {problem}")

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self.warn(str(warning))


@contextmanager
def losing_nothing(prep: str) -> Iterator[None]:
    """Says of a connection that breaks what became of the prep."""
    try:
        yield
    except AnsibleConnectionFailure as error:
        raise AnsibleConnectionFailure(
            f"{prep} goes on by itself: run this again to attach to it ({error})"
        ) from error


def goes_on(prep_id: str, container: str) -> str:
    """What Ctrl-C does not end, and what does. A worker that Ctrl-C ends has no time for words."""
    admin = f"docker exec {container} sgl-admin"
    return (
        f"{prep_id} goes on by itself when ansible-playbook ends (Ctrl-C): `{admin} status --watch`"
        f" follows it, `{admin} prep cancel` ends it"
    )


def earlier_work(result: dict[str, Any]) -> str | None:
    """What may run again in a container that is yet to be started, and how long it took, by the
    result of the latest prep; None where that did no work.
    """
    found = {name: _took(stage) for name, stage in (result.get("stages") or {}).items()}
    times = {name: seconds for name, seconds in found.items() if seconds}
    if not times:
        return None
    return (
        f"the container is replaced first; then the prep runs those of {', '.join(times)} that the"
        f" new one changes, which took about {duration(sum(times.values()))} together before"
    )


def _took(stage: Any) -> float:
    """How long a stage's work took, by its record, which is of any release; 0 where it does not
    say.
    """
    try:
        files = stage["artifacts"].get("files") or {}
        seconds = files.get(MADE_IN, stage["duration_s"] if stage["status"] == "ok" else 0)
        return float(seconds) if is_duration(seconds) else 0.0
    except BROKEN_ANSWER:
        return 0.0


def plan_diff(plan: dict[str, Any]) -> dict[str, str]:
    """What a prep would change: each stage that would run, and the proof."""
    changes = {
        name: (one_line(stage.get("reason") or "as asked", 2000), "warm")
        for name, stage in plan["stages"].items()
        if stage["status"] == "would_run"
    }
    if plan.get("telemetry_probe") == "would_run":
        changes["metrics_ready"] = ("not proven for this server", "proven, if its metrics arrive")
    return _diff(changes)


def result_diff(result: dict[str, Any]) -> dict[str, str]:
    """What a prep changed: each stage that ran, and a proof of its own."""
    changes = {
        name: ("not warm", "warm" if stage["status"] == "ok" else str(stage["status"]))
        for name, stage in result["stages"].items()
        if stage["ran"]
    }
    proof = result["telemetry_probe"]
    if proof["ok"] is True and proof.get("prep_id") == result["run"]["prep_id"]:
        changes["metrics_ready"] = ("not proven for this server", "proven")
    return _diff(changes)


def _diff(changes: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {
        "before": "".join(f"{name}: {before}\n" for name, (before, _after) in changes.items()),
        "after": "".join(f"{name}: {after}\n" for name, (_before, after) in changes.items()),
    }


def progress(job: dict[str, Any]) -> str:
    """One line of a job's record: prep, stage, message, seconds so far and, where there is one, the
    estimate of what is left.
    """
    left = f", about {job['eta_s']:.0f} s left" if job.get("eta_s") else ""
    return (
        f"{job['prep_id']}: {job.get('stage') or 'prep'}: {job.get('message')}"
        f" ({job.get('elapsed_s', 0):.0f} s{left})"
    )
