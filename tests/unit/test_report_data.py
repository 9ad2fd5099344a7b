"""What the report gathers of a playbook's results, whatever became of a host."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.report_data import Report

from tests.contract import validators

RESULT = validators.example("prep_result")
MANIFEST = validators.example("manifest")
RUN = {
    "live": True,
    "run_id": MANIFEST["container_run_id"],
    "manifest": MANIFEST,
    "paths": {**MANIFEST["paths"]["container"]},
    "metrics_ready": False,
}
INFO: dict[str, Any] = {
    "devices": {"count": 1, "name": "NVIDIA GH200 480GB", "cuda": True},
    "run": {**RUN, "live": False, "run_id": None},
    "tree": {"foreign": []},
}
PREP = {
    "prep_id": RESULT["run"]["prep_id"],
    "status": RESULT["status"],
    "stages": {name: stage["status"] for name, stage in RESULT["stages"].items()},
    "metrics_ready": True,
    "exit_code": 0,
    "result": RESULT,
}


class Told:
    """A report that is told what the callback would tell it."""

    def __init__(self, playbook: str = "prep.yml", check_mode: bool = False) -> None:
        self.report = Report(playbook, check_mode)
        self._tasks = 0

    def task(self, host: str, action: str, role: str | None, state: str = "ok", /, **result: Any) -> None:
        self._tasks += 1
        self.report.begin(host, str(self._tasks))
        self.report.end(host, str(self._tasks), action, role, f"task {self._tasks}", state, result)

    def document(self, failed: tuple[str, ...] = (), unreachable: tuple[str, ...] = ()) -> dict[str, Any]:
        self.report.settle(set(failed), set(unreachable))
        document = self.report.document()
        validators.validate_report(document)
        return document

    def host(self, **ended: Any) -> dict[str, Any]:
        hosts: list[dict[str, Any]] = self.document(**ended)["hosts"]
        assert len(hosts) == 1
        return hosts[0]


def prepared(told: Told, host: str) -> None:
    told.task(host, "sgl_host_info", "preflight", **INFO)
    told.task(host, "sgl_image", "image", "changed")
    told.task(host, "docker_container", "stack", "skipped")
    told.task(host, "docker_container", "stack", "changed")
    told.task(host, "sgl_manifest", "stack", **RUN)
    told.task(host, "sgl_prep", "provider_prep", "changed", **PREP)
    told.task(host, "debug", None, msg={"METRICS_READY": True})


def test_a_prepared_host() -> None:
    told = Told()
    prepared(told, "a")
    host = told.host()
    assert (host["status"], host["changed"], host["metrics_ready"], host["exit_code"]) == ("ok", 3, True, 0)
    assert host["run_id"] == MANIFEST["container_run_id"] and host["prep_id"] == RESULT["run"]["prep_id"]
    assert [(step["name"], step["status"]) for step in host["steps"]] == [
        ("preflight", "ok"),
        ("image", "changed"),
        ("stack", "changed"),
        ("provider_prep", "changed"),
    ]
    assert host["stages"]["moe_tune"]["duration_s"] == RESULT["stages"]["moe_tune"]["duration_s"]
    assert host["caches"]["triton"] == {"before_bytes": 0, "after_bytes": 734003200, "before_files": 0, "after_files": 182}
    assert host["links"]["manifest_container"] == f"/telemetry/container_runs/{host['run_id']}.json"
    assert host["notes"] == []
    assert told.report.is_ours


def test_hosts_that_failed_or_were_never_reached_are_there_with_their_reasons() -> None:
    told = Told()
    prepared(told, "a")
    told.task("b", "sgl_host_info", "preflight", "failed", msg="port 9090 is taken", **{**INFO, "tree": {"foreign": ["/x"]}})
    told.task("c", "sgl_host_info", "preflight", "unreachable", msg="no route to host")
    document = told.document(failed=("b",), unreachable=("c",))
    a, b, c = document["hosts"]
    assert (document["status"], document["metrics_ready"]) == ("partial", {"ready": 1, "total": 3})
    assert (a["status"], b["status"], c["status"]) == ("ok", "failed", "unreachable")
    assert (b["problem"], b["failed_task"], b["foreign"]) == ("port 9090 is taken", "task 8", ["/x"])
    assert c["problem"] == "no route to host" and c["run_id"] is None and c["stages"] == {}


def test_a_failure_that_was_rescued_is_none() -> None:
    told = Told()
    told.task("a", "sgl_manifest", "stack", "failed", msg="no live run")
    told.task("a", "sgl_manifest", "stack", **RUN)
    host = told.host()
    assert (host["status"], host["problem"], host["failed_task"]) == ("ok", None, None)


def test_a_host_that_failed_is_not_ready_whatever_was_found_before() -> None:
    told = Told()
    told.task("a", "sgl_host_info", "preflight", **{**INFO, "run": {**RUN, "metrics_ready": True}})
    told.task("a", "docker_container", "stack", "failed", msg="no such image")
    assert told.host(failed=("a",))["metrics_ready"] is None


def test_a_smoke_that_did_not_begin_keeps_its_exit_code() -> None:
    told = Told("smoke.yml")
    told.task("a", "sgl_smoke", "smoke", "failed", msg="busy", exit_code=5)
    assert told.host(failed=("a",))["smoke"] == {"summary": None, "path": None, "exit_code": 5}


@pytest.mark.parametrize(("ends", "status"), [((), "ok"), (("a",), "partial"), (("a", "b"), "failed")])
def test_the_runs_status_is_that_of_its_hosts(ends: tuple[str, ...], status: str) -> None:
    told = Told()
    for name in "ab":
        told.task(name, "sgl_host_info", "preflight", "failed" if name in ends else "ok", msg="x", **INFO)
    assert told.document(failed=ends)["status"] == status


def test_check_mode_tells_the_plan_and_no_stages() -> None:
    told = Told(check_mode=True)
    told.task("a", "sgl_host_info", "preflight", **INFO)
    told.task("a", "sgl_prep", "provider_prep", "changed", stages={"inductor": "would_run"}, exit_code=0)
    host = told.host()
    assert host["plan"] == {"inductor": "would_run"} and host["stages"] == {} and host["metrics_ready"] is None


def test_warnings_are_told_once_and_roles_notes_are_kept() -> None:
    told = Told()
    told.task("a", "sgl_host_info", "preflight", warnings=["w"], **INFO)
    told.task("a", "debug", "stack", msg="is live and is kept")
    told.task("a", "sgl_prep", "provider_prep", warnings=["w"], **{**PREP, "result": {**RESULT, "warnings": ["w", "x"]}})
    host = told.host()
    assert (host["warnings"], host["notes"]) == (["w", "x"], ["is live and is kept"])


def test_a_smoke_is_kept_whole() -> None:
    summary = validators.example("smoke_summary")
    told = Told("smoke.yml")
    told.task("a", "sgl_smoke", "smoke", "failed", msg="x", summary=summary, path="/telemetry/s", exit_code=8)
    assert told.host(failed=("a",))["smoke"] == {"summary": summary, "path": "/telemetry/s", "exit_code": 8}


def test_other_peoples_playbooks_are_none_of_ours() -> None:
    told = Told("site.yml")
    told.task("a", "copy", "web", "changed")
    assert not told.report.is_ours
