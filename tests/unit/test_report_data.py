"""What the report gathers of a playbook's results, whatever became of a host."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.plugin_utils import (
    report_fleet,
    report_page,
)
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.report_data import Report
from jinja2 import FileSystemBytecodeCache

from sgl_admin.contract.stages import NAMES as STAGES
from tests.contract import validators

SCHEMA = validators.schema("report")
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
    """A report that gets what the callback would give it."""

    def __init__(self, playbook: str = "prep.yml", check_mode: bool = False) -> None:
        self.report = Report(playbook, check_mode)
        self._tasks = 0

    def task(
        self,
        host: str,
        action: str,
        role: str | None,
        state: str = "ok",
        /,
        delegate: str | None = None,
        **result: Any,
    ) -> None:
        self._tasks += 1
        self.report.begin(host, str(self._tasks))
        self.report.end(
            host, str(self._tasks), action, role, f"task {self._tasks}", state, result, delegate
        )

    def document(
        self, failed: tuple[str, ...] = (), unreachable: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        self.report.settle(set(failed), set(unreachable))
        document = self.report.document()
        validators.validate_report(document)
        assert set(document) == set(SCHEMA["properties"]), "this release writes every field"
        assert all(
            set(host) == set(SCHEMA["$defs"]["host"]["properties"]) for host in document["hosts"]
        )
        return document

    def host(self, **ended: Any) -> dict[str, Any]:
        hosts: list[dict[str, Any]] = self.document(**ended)["hosts"]
        assert len(hosts) == 1
        return hosts[0]


def prepared(told: Told, host: str) -> None:
    told.task(host, "sgl_host_info", "preflight", **INFO)
    told.task(host, "sgl_image", "image", "changed")
    told.task(host, "sgl_container", "stack", "ok")
    told.task(host, "sgl_container", "stack", "changed", **RUN)
    told.task(host, "sgl_prep", "provider_prep", "changed", **PREP)
    told.task(host, "debug", None, msg={"METRICS_READY": True})


def test_a_prepared_host() -> None:
    told = Told()
    prepared(told, "a")
    host = told.host()
    assert (host["status"], host["changed"], host["metrics_ready"], host["exit_code"]) == (
        "ok",
        3,
        True,
        0,
    )
    assert (
        host["run_id"] == MANIFEST["container_run_id"]
        and host["prep_id"] == RESULT["run"]["prep_id"]
    )
    assert [(step["name"], step["status"]) for step in host["steps"]] == [
        ("preflight", "ok"),
        ("image", "changed"),
        ("stack", "changed"),
        ("provider_prep", "changed"),
    ]
    assert host["stages"]["moe_tune"]["duration_s"] == RESULT["stages"]["moe_tune"]["duration_s"]
    assert host["caches"]["triton"] == {
        "before_bytes": 0,
        "after_bytes": 734003200,
        "before_files": 0,
        "after_files": 182,
    }
    assert host["links"]["manifest_container"] == f"/telemetry/container_runs/{host['run_id']}.json"
    assert host["notes"] == []
    assert told.report.is_ours


def test_each_profile_of_a_host_has_a_row_of_its_own() -> None:
    told = Told()
    told.task("a", "sgl_host_info", "preflight", **INFO)
    unproven = copy.deepcopy(PREP)
    unproven["metrics_ready"] = False
    unproven["result"]["telemetry_probe"].update(ok=False, reason="0 of 9 tokens arrived")
    told.task("a", "sgl_prep", "provider_prep", profile="lab/one", **plan())
    told.task("a", "sgl_prep", "provider_prep", "changed", profile="lab/one", **PREP)
    told.task("a", "sgl_prep", "provider_prep", "changed", profile="two", **unproven)
    document = told.document()
    host = document["hosts"][0]
    rows = [(row["profile"], row["metrics_ready"], row["reason"]) for row in host["profiles"]]
    assert rows == [("lab/one", True, None), ("two", False, "0 of 9 tokens arrived")]
    assert host["metrics_ready"] is False, "a host is ready where each of its profiles is"
    assert "profile lab/one: 1 of 1" in report_fleet.summary(document)
    assert "profile two: 0 of 1" in report_fleet.summary(document)
    page = report_page.render(document)
    assert "lab/one" in page and "0 of 9 tokens arrived" in page


@pytest.mark.parametrize(
    ("ended", "ready", "unfinished"),
    [
        ((), False, True),
        (("one",), False, True),
        (("one", "two"), True, False),
    ],
)
def test_a_host_that_is_stopped_between_profiles_is_not_ready(
    ended: tuple[str, ...], ready: bool, unfinished: bool
) -> None:
    """The proof of its first profile is none of the second."""
    told = Told()
    told.report.of_a_prep = True
    told.report.play("play", ["a", "b"], ["a", "b"])
    told.task("a", "sgl_values", None, profiles=["one", "two"])
    told.task("a", "sgl_host_info", "preflight", **INFO)
    for profile in ended:
        told.task("a", "sgl_prep", "provider_prep", "changed", profile=profile, **PREP)
    told.task("b", "sgl_host_info", "preflight", "failed", msg="no disk")
    told.report.stop()
    document = told.document(failed=("b",))
    host = document["hosts"][0]
    assert [row["profile"] for row in host["profiles"]] == ["one", "two"]
    assert (host["metrics_ready"] is True, host["unfinished"] is not None) == (ready, unfinished)
    assert document["fleet"]["metrics_ready"]["ready"] == int(ready)
    assert document["fleet"]["not_finished"] == (["a"] if unfinished else [])
    assert f"profile two: {int(ready)} of 1" in report_fleet.summary(document)
    report_page.render(document)


def test_profiles_that_a_playbook_does_not_prepare_have_no_row() -> None:
    told = Told("look.yml")
    told.task("a", "sgl_values", "preflight", profiles=["one", "two"])
    told.task("a", "sgl_host_info", "preflight", **INFO)
    assert told.host()["profiles"] == []


def test_check_mode_foretells_each_profile() -> None:
    told = Told(check_mode=True)
    stages = {name: "noop" for name in STAGES}
    for profile, probe in (("one", "stands"), ("two", "would_run")):
        told.task("a", "sgl_prep", "provider_prep", profile=profile, probe=probe, stages=stages)
    rows = told.host()["profiles"]
    assert [row["metrics_ready"] for row in rows] == [True, None]


def test_what_was_chosen_for_the_operator_is_kept() -> None:
    chosen = [{"arguments": ["--attention-backend", "flashinfer"], "reason": "no FA3 here"}]
    server = {**RESULT["run"]["server"], "chosen": chosen}
    result = {**RESULT, "run": {**RESULT["run"], "server": server}}
    told = Told()
    told.task("a", "sgl_prep", "provider_prep", "changed", **{**PREP, "result": result})
    assert told.host()["chosen"] == chosen
    del server["chosen"]
    told.task("a", "sgl_prep", "provider_prep", "changed", **{**PREP, "result": result})
    assert told.host()["chosen"] == []


def test_hosts_that_failed_or_were_never_reached_are_there_with_their_reasons() -> None:
    told = Told()
    prepared(told, "a")
    told.task(
        "b",
        "sgl_host_info",
        "preflight",
        "failed",
        msg="port 9090 is taken",
        **{**INFO, "tree": {"foreign": ["/x"]}},
    )
    told.task("c", "sgl_host_info", "preflight", "unreachable", msg="no route to host")
    document = told.document(failed=("b",), unreachable=("c",))
    a, b, c = document["hosts"]
    assert (document["status"], document["metrics_ready"]) == ("partial", {"ready": 1, "total": 3})
    assert (a["status"], b["status"], c["status"]) == ("ok", "failed", "unreachable")
    assert (b["problem"], b["failed_task"], b["foreign"]) == (
        "port 9090 is taken",
        "task 7",
        ["/x"],
    )
    assert c["problem"] == "no route to host" and c["run_id"] is None and c["stages"] == {}


def test_a_failure_that_was_rescued_is_none() -> None:
    told = Told()
    told.task("a", "sgl_container", "stack", "failed", msg="no live run")
    told.task("a", "sgl_container", "stack", **RUN)
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


@pytest.mark.parametrize(
    ("ends", "status"), [((), "ok"), (("a",), "partial"), (("a", "b"), "failed")]
)
def test_the_runs_status_is_that_of_its_hosts(ends: tuple[str, ...], status: str) -> None:
    told = Told()
    for name in "ab":
        told.task(
            name, "sgl_host_info", "preflight", "failed" if name in ends else "ok", msg="x", **INFO
        )
    assert told.document(failed=ends)["status"] == status


def test_check_mode_tells_the_plan_and_no_stages() -> None:
    told = Told(check_mode=True)
    told.task("a", "sgl_host_info", "preflight", **INFO)
    told.task(
        "a", "sgl_prep", "provider_prep", "changed", stages={"inductor": "would_run"}, exit_code=0
    )
    host = told.host()
    assert (
        host["plan"] == {"inductor": "would_run"}
        and host["stages"] == {}
        and host["metrics_ready"] is None
    )


@pytest.mark.parametrize(
    ("probe", "ready"), [("stands", True), ("would_run", None), ("skipped", None)]
)
def test_check_mode_tells_readiness_as_it_would_be(probe: str, ready: bool | None) -> None:
    """A run that is ready as it was found is not ready for a request that it has no proof of."""
    told = Told(check_mode=True)
    told.task("a", "sgl_host_info", "preflight", **{**INFO, "run": {**RUN, "metrics_ready": True}})
    stages = {"inductor": "noop"}
    told.task("a", "sgl_prep", "provider_prep", stages=stages, probe=probe, exit_code=0)
    assert told.host()["metrics_ready"] is ready


def test_the_container_and_what_runs_in_it_are_told_of_a_host_that_failed_too() -> None:
    told = Told("stop.yml")
    run = {**RUN, "prep": {"prep_id": "prep-1"}, "in_use": ["a smoke"]}
    told.task(
        "a",
        "sgl_host_info",
        "preflight",
        **{**INFO, "container_name": "c", "container": {"id": "f" * 64}, "run": run},
    )
    told.task("a", "fail", "stack", "failed", msg="Container c is not stopped")
    told.task("b", "sgl_host_info", "preflight", container_name="d", container=None)
    told.task("c", "sgl_host_info", "preflight", "unreachable", msg="no route to host")
    a, b, c = told.document(failed=("a",), unreachable=("c",))["hosts"]
    assert a["container"] == {"name": "c", "id": "f" * 64}
    assert a["in_use"] == ["prep prep-1", "a smoke"]
    assert (b["container"], b["in_use"]) == ({"name": "d", "id": None}, [])
    assert (c["container"], c["in_use"], c["ignored"]) == (None, [], [])


def test_warnings_are_told_once_and_roles_notes_are_kept() -> None:
    told = Told()
    told.task("a", "sgl_host_info", "preflight", warnings=["w"], **INFO)
    told.task("a", "debug", "stack", msg="is live and is kept")
    told.task(
        "a",
        "sgl_prep",
        "provider_prep",
        warnings=["w"],
        **{**PREP, "result": {**RESULT, "warnings": ["w", "x"]}},
    )
    host = told.host()
    assert (host["warnings"], host["notes"]) == (["w", "x"], ["is live and is kept"])


def test_a_smoke_is_kept_whole() -> None:
    summary = validators.example("smoke_summary")
    told = Told("smoke.yml")
    told.task(
        "a",
        "sgl_smoke",
        "smoke",
        "failed",
        msg="x",
        summary=summary,
        path="/telemetry/s",
        exit_code=8,
    )
    assert told.host(failed=("a",))["smoke"] == {
        "summary": summary,
        "path": "/telemetry/s",
        "exit_code": 8,
    }


def test_other_peoples_playbooks_are_none_of_ours() -> None:
    told = Told("site.yml")
    told.task("a", "copy", "web", "changed")
    assert not told.report.is_ours


# --- the fleet ------------------------------------------------------------------------------------

KEYS = {name: f"{number:x}" * 16 for number, name in enumerate(STAGES)}
DIGEST = "sha256:" + "a" * 64


def plan(kind: str = "") -> dict[str, Any]:
    """What sgl_prep answers where others may have what is lacking."""
    found = {stage: {"status": "would_run", "key": kind + key} for stage, key in KEYS.items()}
    return {"plan": {"stages": found}, "stages": dict.fromkeys(STAGES, "would_run"), "exit_code": 0}


def prep(number: int, kind: str = "", *, failed: bool = False, **seconds: float) -> dict[str, Any]:
    """The answer of a prep in which only these stages ran, for so long; with `failed`, the last of
    them failed.
    """
    stages = {
        name: {
            **RESULT["stages"][name],
            "key": kind + KEYS[name],
            "ran": name in seconds,
            "duration_s": seconds.get(name, 0.1),
            **(
                {"status": "ok", "reason": None}
                if name in seconds
                else {"status": "noop", "reason": "valid_signature"}
            ),
        }
        for name in STAGES
    }
    if failed:
        stages[list(seconds)[-1]].update(
            status="error", error_type="tuner_failed", errors=["out of memory"]
        )
    prep_id = f"prep-20261123T09160{number}Z-77aa01bc"
    result = {**RESULT, "status": "partial" if failed else "ok", "stages": stages}
    if failed:
        result["telemetry_probe"] = {
            **RESULT["telemetry_probe"],
            "ok": False,
            "reason": "a stage failed",
        }
    return {
        **PREP,
        "prep_id": prep_id,
        "status": result["status"],
        "metrics_ready": not failed,
        "result": result,
        "exit_code": 11 if failed else 0,
    }


def item(status: str, **more: Any) -> dict[str, Any]:
    return {
        f"moe_tune-{KEYS['moe_tune']}": {
            "status": status,
            "digest": DIGEST,
            "bytes": 2000,
            "finished": True,
            **more,
        }
    }


def made_and_taken() -> Told:
    """`a` tunes and gives it, `b` takes it and proves its metrics."""
    told = Told()
    told.report.play("1", ["a", "b"], ["a", "b"])
    for host in "ab":
        told.task(host, "sgl_host_info", "preflight", **INFO)
        told.task(host, "sgl_prep", "provider_prep", **plan())
    told.task("a", "sgl_prep", "provider_prep", "changed", **prep(1, moe_tune=900.0, inductor=60.0))
    told.task("a", "sgl_share", "cache_share", "changed", items=item("given"))
    told.task(
        "b",
        "sgl_share",
        "cache_share",
        "changed",
        items=item("imported", files=1, **{"from": "controller:/c/moe.tar"}),
    )
    told.task("b", "sgl_prep", "provider_prep", **prep(2))
    return told


def test_who_made_what_and_who_took_it() -> None:
    document = made_and_taken().document()
    a, b = document["hosts"]
    assert a["group"] == b["group"] is not None
    assert a["work_s"] == {"moe_tune": 900.0, "inductor": 60.0} and a["shared"]["made"] == [
        "moe_tune",
        "inductor",
    ]
    (given,), (taken,) = (a["shared"]["gave"], b["shared"]["took"])
    assert (given["stage"], given["to"], given["bytes"]) == (
        "moe_tune",
        "controller",
        2000,
    ) and given["seconds"] >= 0
    assert (taken["from_host"], taken["from"], taken["finished"]) == (
        "a",
        "controller:/c/moe.tar",
        True,
    )
    assert (
        b["work_s"] == {}
        and b["shared"]["made"] == b["shared"]["gave"] == a["shared"]["took"] == []
    )
    assert document["fleet"] == {
        "metrics_ready": {"ready": 2, "of": 2},
        "groups": [
            {
                "id": a["group"],
                "hosts": ["a", "b"],
                "makers": ["a"],
                "stages": {
                    "moe_tune": {
                        "made_by": ["a"],
                        "failed_on": [],
                        "taken_by": ["b"],
                        "seconds": 900.0,
                    },
                    "inductor": {
                        "made_by": ["a"],
                        "failed_on": [],
                        "taken_by": [],
                        "seconds": 60.0,
                    },
                },
            }
        ],
        "failures": [],
        "not_finished": [],
        "not_proven": [],
        "perf": {
            "outliers": [],
            "without": "a reference takes 4 measured hosts of one kind, and the fleet has 2",
        },
        "tuning_s": 960.0,
    }
    assert report_fleet.summary(document) == ["METRICS_READY: 2 of 2 hosts"]


def test_hosts_with_other_signatures_are_another_group() -> None:
    told = Told()
    for host, kind in (("a", ""), ("b", "9"), ("c", "")):
        told.task(host, "sgl_prep", "provider_prep", **plan(kind))
    groups = told.document()["fleet"]["groups"]
    assert [group["hosts"] for group in groups] == [["a", "c"], ["b"]] and len(
        {group["id"] for group in groups}
    ) == 2


def test_what_a_host_gives_for_another_is_its_own_and_what_was_there_before_is_nobodys() -> None:
    told = Told()
    registry = f"registry.example.com/caches@{DIGEST}"
    told.task(
        "b", "sgl_share", "cache_share", "changed", items=item("imported", **{"from": registry})
    )
    told.task(
        "b",
        "sgl_share",
        "cache_share",
        "changed",
        delegate="a",
        items=item("given", **{"from": registry}),
    )
    told.task(
        "b", "sgl_share", "cache_share", "changed", items=item("imported", **{"from": registry})
    )
    told.task("b", "sgl_share", "cache_share", delegate="a", items=item("there"))
    told.task(
        "c",
        "sgl_share",
        "cache_share",
        items={**item("absent"), "inductor-1": {"status": "standing", "digest": DIGEST}},
    )
    hosts = {host["host"]: host["shared"] for host in told.document()["hosts"]}
    assert [given["to"] for given in hosts["a"]["gave"]] == [registry] and hosts["b"]["gave"] == []
    assert [(taken["from"], taken["from_host"]) for taken in hosts["b"]["took"]] == [
        (registry, None),
        (registry, "a"),
    ]
    assert hosts["c"] == {"made": [], "gave": [], "took": []}


def test_an_image_is_taken_too_and_is_no_stage() -> None:
    told = Told()
    told.task(
        "a",
        "sgl_share",
        "image",
        "changed",
        items={
            "image-0123-aarch64": {"status": "loaded", "digest": DIGEST, "from": "controller:/i"}
        },
    )
    (taken,) = told.host()["shared"]["took"]
    assert (taken["stage"], taken["name"], taken["bytes"], taken["finished"]) == (
        None,
        "image-0123-aarch64",
        None,
        None,
    )


def test_the_next_host_goes_on_where_the_maker_failed() -> None:
    told = Told()
    for host in "ab":
        told.task(host, "sgl_prep", "provider_prep", **plan())
    told.task(
        "a",
        "sgl_prep",
        "provider_prep",
        "failed",
        msg="stage moe_tune failed",
        **prep(1, failed=True, moe_tune=300.0),
    )
    told.task("a", "sgl_share", "cache_share", "changed", items=item("given", finished=False))
    told.task("a", "fail", "cache_share", "failed", msg="stage moe_tune failed\nits log")
    told.task(
        "b",
        "sgl_share",
        "cache_share",
        "changed",
        items=item("imported", finished=False, **{"from": "controller:/p"}),
    )
    told.task("b", "sgl_prep", "provider_prep", "changed", **prep(2, moe_tune=500.0))
    document = told.document(failed=("a",))
    fleet = document["fleet"]
    assert fleet["metrics_ready"] == {"ready": 1, "of": 2} and fleet["tuning_s"] == 800.0
    assert fleet["failures"] == [
        {
            "host": "a",
            "task": "task 5",
            "reason": "stage moe_tune failed\nits log",
            "unreachable": False,
        }
    ]
    (group,) = fleet["groups"]
    assert group["makers"] == ["b"]
    assert group["stages"] == {
        "moe_tune": {"made_by": ["b"], "failed_on": ["a"], "taken_by": ["b"], "seconds": 800.0}
    }
    assert report_fleet.summary(document) == [
        "METRICS_READY: 1 of 2 hosts",
        "a: failed: stage moe_tune failed",
    ]


def test_a_prep_that_is_attached_to_again_is_counted_once_and_shares_of_it_each() -> None:
    told = Told()
    told.task("a", "sgl_prep", "provider_prep", **plan())
    for answer in (
        prep(1, moe_tune=10.0),
        prep(1, moe_tune=10.0),
        prep(2),
        prep(3, "9", moe_tune=5.0),
    ):
        told.task("a", "sgl_prep", "provider_prep", "changed", **answer)
    host = told.host()
    assert host["work_s"] == {"moe_tune": 15.0}
    assert host["group"] == report_fleet.of_report(told.document())["groups"][0]["id"]
    other = Told()
    other.task("a", "sgl_prep", "provider_prep", **plan())
    assert host["group"] == other.host()["group"], "that of the whole request, not that of a share"


def test_hosts_of_a_batch_that_was_not_begun_are_counted_and_are_not_ready_whatever_they_were() -> (
    None
):
    told = Told()
    told.report.play("1", ["a", "b", "c"], ["a", "b", "c"])
    for host in "abc":
        told.task(
            host, "sgl_host_info", "preflight", **{**INFO, "run": {**RUN, "metrics_ready": True}}
        )
    told.report.play("2", ["a", "b", "c"], ["a"])
    told.task("a", "sgl_prep", "provider_prep", "failed", msg="no live run", exit_code=4)
    told.report.stop()
    document = told.document(failed=("a",))
    assert document["metrics_ready"] == {"ready": 0, "total": 3} and document["fleet"][
        "metrics_ready"
    ] == {"ready": 0, "of": 3}
    assert document["fleet"]["not_finished"] == ["b", "c"]
    assert report_fleet.summary(document) == [
        "METRICS_READY: 0 of 3 hosts",
        "a: failed: no live run",
        "b: not finished: its batch was not begun, because hosts before it failed",
        "c: not finished: its batch was not begun, because hosts before it failed",
    ]


def test_batches_that_all_ran_leave_nobody_out() -> None:
    told = Told()
    for batch in ("ab", "c"):
        told.report.play("1", ["a", "b", "c"], list(batch))
        for host in batch:
            prepared(told, host)
    assert told.document()["fleet"]["metrics_ready"] == {"ready": 3, "of": 3}


def test_healthy_hosts_of_a_batch_that_was_stopped_are_told_and_one_with_a_proof_of_this_run_is_ready() -> (  # noqa: E501
    None
):
    told = Told()
    told.report.play("1", ["a", "b", "c"], ["a", "b", "c"])
    told.task("a", "sgl_prep", "provider_prep", **prep(1))
    told.task("b", "sgl_prep", "provider_prep", **plan())
    told.task("c", "sgl_prep", "provider_prep", "failed", msg="busy")
    told.report.stop()
    document = told.document(failed=("c",))
    assert document["fleet"]["metrics_ready"] == {"ready": 1, "of": 3} and document["fleet"][
        "not_finished"
    ] == ["b"]
    assert (
        document["hosts"][1]["unfinished"]
        == "stopped after the task 'task 2', because other hosts failed"
    )


def test_a_failure_of_all_hosts_that_a_rescue_mends_stops_nobody() -> None:
    told = Told()
    told.report.play("1", ["a", "b"], ["a", "b"])
    told.report.begin("a", "x")
    told.report.begin("b", "x")
    told.report.stop("x")
    for host in "ab":
        told.report.end(
            host, "x", "command", None, "the task", "failed" if host == "a" else "ok", {"msg": "no"}
        )
    assert told.document(failed=("a",))["fleet"]["not_finished"] == ["b"], (
        "its end in the very task says nothing"
    )
    told.task("b", "sgl_prep", "provider_prep", **{**prep(1), "metrics_ready": False})
    document = told.document(failed=("a",))
    assert document["fleet"]["not_finished"] == []
    assert [unproven["host"] for unproven in document["fleet"]["not_proven"]] == ["b"]


def test_a_host_that_failed_after_its_proof_is_not_counted_as_ready() -> None:
    told = Told()
    told.task("a", "sgl_prep", "provider_prep", **prep(1))
    told.task("a", "debug", None, "failed", msg="x")
    assert told.document(failed=("a",))["fleet"]["metrics_ready"] == {"ready": 0, "of": 1}


def test_hosts_of_other_plays_are_none_of_the_fleet() -> None:
    told = Told()
    told.report.play("0", [], [])
    told.task("proxy", "copy", None, "changed")
    told.report.play("1", ["a"], ["a"])
    prepared(told, "a")
    document = told.document()
    assert [host["host"] for host in document["hosts"]] == ["proxy", "a"] and document["fleet"][
        "metrics_ready"
    ] == {"ready": 1, "of": 1}


def test_another_host_that_could_not_do_it_is_named() -> None:
    told = Told()
    told.task("b", "sgl_share", "cache_share", "unreachable", delegate="a", msg="no route to host")
    assert told.host(unreachable=("b",))["problem"] == "on a: no route to host"
    told.task("b", "sgl_share", "cache_share", "failed", delegate="b", msg="no space")
    assert told.host(failed=("b",))["problem"] == "no space"


@pytest.mark.slow
def test_two_hundred_hosts() -> None:
    names = [f"gh200-{number:03}" for number in range(200)]
    told = Told()
    told.report.play("1", names, names)
    for number, name in enumerate(names):
        told.task(name, "sgl_prep", "provider_prep", **plan())
        if number == 0:
            told.task(name, "sgl_prep", "provider_prep", "changed", **prep(1, moe_tune=900.0))
            told.task(name, "sgl_share", "cache_share", "changed", items=item("given"))
        elif number % 50:
            told.task(
                name,
                "sgl_share",
                "cache_share",
                "changed",
                items=item("imported", **{"from": "controller:/c"}),
            )
            told.task(name, "sgl_prep", "provider_prep", **prep(2))
    gone = tuple(names[50::50])
    for name in gone:
        told.task(name, "sgl_share", "cache_share", "unreachable", msg="timed out")
    document = told.document(unreachable=gone)
    fleet = document["fleet"]
    assert fleet["metrics_ready"] == {"ready": 197, "of": 200} and fleet["tuning_s"] == 900.0
    (group,) = fleet["groups"]
    assert (
        group["hosts"] == names
        and group["makers"] == names[:1]
        and len(group["stages"]["moe_tune"]["taken_by"]) == 196
    )
    assert report_fleet.summary(document) == [
        "METRICS_READY: 197 of 200 hosts",
        *(f"{name}: unreachable: timed out" for name in gone),
    ]


def test_check_mode_says_that_it_changes_nothing_and_misses_no_proof() -> None:
    told = Told(check_mode=True)
    for host in "ab":
        told.task(
            host,
            "sgl_prep",
            "provider_prep",
            "changed",
            stages={"inductor": "would_run"},
            exit_code=0,
        )
    document = told.document()
    assert document["hosts"][0]["group"] is None
    assert report_fleet.summary(document) == [
        "METRICS_READY: 0 of 2 hosts, as they were found (check mode changes nothing)"
    ]


def test_what_a_host_says_cannot_move_the_cursor() -> None:
    told = Told()
    told.task(
        "a\x1b[2J",
        "sgl_prep",
        "provider_prep",
        "failed",
        msg="\n \n\x1b]0;title\x07bad\u202e\nmore",
    )
    assert (
        report_fleet.summary(told.document(failed=("a\x1b[2J",)))[1]
        == "a?[2J: failed: ?]0;title?bad?"
    )


def test_a_report_of_an_older_release_has_a_summary_too() -> None:
    older = validators.example("report")
    assert "fleet" not in older and "group" not in older["hosts"][0]
    assert report_fleet.of_report(older)["metrics_ready"] == {"ready": 1, "of": 3}
    assert [line.split(": ")[:2] for line in report_fleet.summary(older)] == [
        ["METRICS_READY", "1 of 3 hosts"],
        ["gh200-02", "failed"],
        ["gh200-03", "unreachable"],
    ]


# --- a host whose records are not as the contract says --------------------------------------------


def at(document: Any, path: str) -> tuple[Any, Any]:
    """The holder of what a dotted path names, and its key there."""
    *parents, last = path.split(".")
    for key in parents:
        document = document[key]
    return document, last


DAMAGED = (
    "run",
    "run.model",
    "run.model_slug",
    "run.tp",
    "stages",
    "stages.inductor",
    "stages.inductor.status",
    "stages.inductor.duration_s",
    "stages.inductor.errors",
    "telemetry_probe",
    "telemetry_probe.ok",
    "telemetry_probe.waited_s",
    "telemetry_probe.tokens_seen",
    "profile_cache",
    "profile_cache.after",
    "profile_cache.before",
    "profile_cache.after.triton.size_bytes",
    "warnings",
)
MISSING = object()
VALUES = (MISSING, None, float("nan"), float("-inf"), 7, "x", [1], {"x": {"y": 1}}, True)


@pytest.mark.parametrize("path", DAMAGED)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: "missing" if value is MISSING else None)
def test_a_report_survives_the_records_of_any_one_host(path: str, value: Any) -> None:
    """Page, JSON and summary are made, with every other host's row as it would be."""
    told = Told()
    result = copy.deepcopy(RESULT)
    holder, key = at(result, path)
    if value is MISSING:
        del holder[key]
    else:
        holder[key] = value
    for host, made in (("first", RESULT), ("odd", result), ("last", RESULT)):
        told.task(host, "sgl_host_info", "preflight", **INFO)
        told.task(host, "sgl_prep", "provider_prep", **{**PREP, "result": made})
    told.report.settle(set(), set())
    pages: list[str] = []
    document = told.report.document(lambda report: pages.append(report_page.render(report)))
    json.dumps(document, allow_nan=False)
    assert [host["host"] for host in document["hosts"]] == ["first", "odd", "last"]
    assert [host["metrics_ready"] for host in document["hosts"][::2]] == [True, True]
    assert all(name in pages[-1] for name in ("first", "odd", "last"))
    lines = "\n".join(report_fleet.summary(document))
    odd = document["hosts"][1]
    if odd["status"] == "failed":
        assert "are not as their schemas say" in odd["problem"] and odd["metrics_ready"] is None
        assert document["status"] == "partial"
        assert "odd: failed: its records" in lines and "their schemas" in pages[-1]
    if value is not MISSING and value != value:
        assert odd["status"] == "failed" or "NaN" not in json.dumps(document)


@pytest.mark.parametrize("module", ["sgl_host_info", "sgl_container", "sgl_manifest", "sgl_smoke"])
@pytest.mark.parametrize("value", [7, "x", [1], {"live": True}, {"summary": float("nan")}])
def test_a_report_survives_what_any_module_says_of_one_host(module: str, value: Any) -> None:
    told = Told()
    result = {"run": value, "live": True, "tree": value, "devices": value, "exit_code": 0}
    told.task("odd", module, "preflight", **{**result, "summary": value})
    told.task("fine", "sgl_prep", "provider_prep", **PREP)
    told.report.settle(set(), set())
    document = told.report.document(report_page.render)
    assert [host["host"] for host in document["hosts"]] == ["odd", "fine"]
    assert document["hosts"][1]["metrics_ready"] is True
    json.dumps(document, allow_nan=False)


def test_another_users_folder_for_compiled_templates_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """jinja2 (bccache.py) raises RuntimeError where /tmp/_jinja2-cache-<uid> is another user's."""

    def refuse(_self: object) -> str:
        raise RuntimeError("Cannot determine safe temp directory.")

    told = Told()
    told.task("fine", "sgl_prep", "provider_prep", **PREP)
    told.report.settle(set(), set())
    document = told.report.document()
    page = report_page.render(document)
    monkeypatch.setattr(FileSystemBytecodeCache, "_get_default_cache_dir", refuse)
    assert report_page.render(document) == page
    # Or one that is full, or that may not be written.
    monkeypatch.setattr(
        FileSystemBytecodeCache, "_get_default_cache_dir", lambda _self: str(tmp_path / "none")
    )
    assert report_page.render(document) == page


def test_a_host_that_is_slower_than_its_fleet_is_named() -> None:
    """The tolerances are those of the hosts' own records."""
    probe = validators.example("prep_result")["perf_probe"]
    hosts = []
    for number in range(6):
        host = validators.example("report")["hosts"][0]
        value = 780.0 * (0.93 if number == 3 else 1 + number / 1000)
        measured = {"name": "gemm_bf16", "value": value, "unit": "TFLOP/s", "spread_percent": None}
        host.update(host=f"h{number}", perf={**probe, "measurements": [measured]}, warnings=[])
        hosts.append(host)
    found = report_fleet.fleet(hosts)
    report_fleet.warn_of_outliers(hosts, found)
    ready = {"ready": 6, "total": 6}
    report = {**validators.example("report"), "hosts": hosts, "fleet": found}
    report.update(status="ok", metrics_ready=ready)
    validators.validate_report(report)
    words = "gemm_bf16 is 725.4 TFLOP/s, 7% below the median of 6 hosts"
    assert [host["host"] for host in hosts if host["warnings"]] == ["h3"]
    assert words in hosts[3]["warnings"][0]
    assert f"h3: slow (warn): {words}" in "\n".join(report_fleet.summary(report))
    assert words in report_page.render(report)
    few = report_fleet.fleet(hosts[:3])["perf"]
    assert few["outliers"] == [] and "the fleet has 3" in few["without"]
    assert report_fleet.fleet([{**host, "perf": None} for host in hosts])["perf"] is None
