"""What the action sgl_prep makes of sgl-admin's answers, above all of those that break the
contract.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action import sgl_prep
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import stages

from tests.contract import validators
from tests.doubles.prep_action import PrepAction


def envelope(state: str, exit_code: int | None, **job: Any) -> tuple[int, str, str]:
    record = {**validators.example("job"), "state": state, "exit_code": exit_code, **job}
    return (
        0,
        json.dumps(
            {
                "job": record,
                "result": validators.example("prep_result") if exit_code is not None else None,
            }
        ),
        "",
    )


def run(*answers: tuple[int, str, str], check_mode: bool = False) -> dict[str, Any]:
    return PrepAction(list(answers), {"model": "/models/m"}, check_mode).run(None, {})


def test_the_request_goes_in_by_standard_input() -> None:
    action = PrepAction([envelope("done", 0)], {"model": "/models/m", "tp": 2}, False)
    action.run(None, {})
    [(command, text)] = action.asked
    assert command.startswith("docker exec --interactive sglang-dev sgl-admin caches ensure")
    assert "--request -" in command and "/models/m" not in command and text is not None
    request = json.loads(text)
    assert (request["model"], request["tp"], request["probe"]) == ("/models/m", 2, "auto")
    assert request["stages"] == {stage.name: stage.default for stage in stages.STAGES}


def test_a_poll_has_nothing_on_standard_input() -> None:
    action = PrepAction(
        [envelope("running", None), envelope("done", 0)], {"model": "/models/m"}, False
    )
    action.run(None, {})
    assert [text is None for _, text in action.asked] == [False, True]


def test_a_prep_is_followed_to_its_end() -> None:
    result = run(envelope("running", None), envelope("running", None), envelope("done", 0))
    assert "failed" not in result and result["changed"] is True and result["metrics_ready"] is True


@pytest.mark.parametrize("job", [{"eta_s": "soon"}, {"elapsed_s": 10**400}, {"elapsed_s": None}])
def test_a_record_that_breaks_the_contract_is_a_failure_in_words(job: dict[str, Any]) -> None:
    result = run(envelope("running", None, **job), envelope("done", 0))
    assert result["failed"] is True and "breaks the contract" in result["msg"]


def test_a_prep_that_was_killed_after_its_result_has_failed() -> None:
    result = run(envelope("interrupted", 0))
    assert result["failed"] is True and "run it again" in result["msg"]


def test_ready_is_true_and_nothing_like_it() -> None:
    answer = json.loads(envelope("done", 0)[1])
    answer["result"]["telemetry_probe"]["ok"] = "yes"
    result = run((0, json.dumps(answer), ""))
    assert result["failed"] is True and "no valid telemetry_probe.ok" in result["msg"]


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_a_result_with_what_json_has_no_word_for_is_a_failure(name: str) -> None:
    """Python reads it, and no reader of the report does."""
    answer = json.loads(envelope("done", 0)[1])
    answer["result"]["telemetry_probe"]["waited_s"] = float(name.replace("Infinity", "inf"))
    result = run((0, json.dumps(answer), ""))
    assert result["failed"] is True and f"it holds {name}" in result["msg"]


@pytest.mark.parametrize("part", ["run", "stages", "telemetry_probe", "profile_cache", "warnings"])
@pytest.mark.parametrize("value", [None, 7, "x"])
def test_a_result_that_lacks_what_the_report_builds_on_is_a_failure(part: str, value: Any) -> None:
    answer = json.loads(envelope("done", 0)[1])
    answer["result"][part] = value
    result = run((0, json.dumps(answer), ""))
    assert result["failed"] is True and f"no valid {part}" in result["msg"]


PLAN = {
    "would_change": True,
    "stages": {
        "deep_gemm": {"status": "skipped", "reason": "no_cuda_device"},
        "flashinfer": {"status": "noop", "reason": "valid_signature"},
        "inductor": {"status": "would_run", "reason": "no finished work with\nthis signature"},
    },
    "telemetry_probe": "would_run",
    "warnings": [],
}


def test_a_plan_shows_what_would_change_and_nothing_else() -> None:
    foretold = run((0, json.dumps(PLAN), ""), check_mode=True)
    assert foretold["probe"] == "would_run" and foretold["changed"] is True
    assert foretold["diff"] == {
        "before": (
            "inductor: no finished work with this signature\n"
            "metrics_ready: not proven for this server\n"
        ),
        "after": "inductor: warm\nmetrics_ready: proven, if its metrics arrive\n",
    }
    nothing = {**PLAN, "would_change": False, "stages": {}, "telemetry_probe": "stands"}
    foretold = run((0, json.dumps(nothing), ""), check_mode=True)
    assert (foretold["probe"], foretold["changed"]) == ("stands", False)
    assert foretold["diff"] == {"before": "", "after": ""}


@pytest.mark.parametrize(("probe", "foretold"), [("auto", "would_run"), ("never", "skipped")])
def test_a_prep_that_would_follow_a_start_foretells_its_proof(probe: str, foretold: str) -> None:
    given = {"model": "/models/m", "probe": probe, "assume_started": False}
    result = PrepAction([], given, check_mode=True).run(None, {})
    assert result["probe"] == foretold and result["changed"] is True


def test_what_a_prep_changed_is_shown_as_it_ended() -> None:
    answer = json.loads(envelope("done", 0)[1])
    stages = {
        "inductor": {"status": "ok", "ran": True},
        "flashinfer": {"status": "error", "ran": True},
        "deep_gemm": {"status": "noop", "ran": False},
    }
    proof = {**answer["result"]["telemetry_probe"], "ok": True, "prep_id": "prep-other"}
    result = {**answer["result"], "stages": stages, "telemetry_probe": proof}
    assert sgl_prep.result_diff(result) == {
        "before": "inductor: not warm\nflashinfer: not warm\n",
        "after": "inductor: warm\nflashinfer: error\n",
    }
    proof["prep_id"] = result["run"]["prep_id"]
    assert "metrics_ready: proven\n" in sgl_prep.result_diff(result)["after"]
    proof["ok"] = False
    assert "metrics_ready" not in sgl_prep.result_diff(result)["after"]


def test_a_plan_that_breaks_the_contract_is_a_failure_in_words() -> None:
    plan = {"would_change": "maybe", "stages": {"inductor": {"status": "noop"}}, "warnings": [7]}
    assert run((0, json.dumps(plan), ""), check_mode=True)["changed"] is False
    for broken in ({**plan, "stages": []}, {**plan, "stages": {"inductor": {}}}, {}):
        assert run((0, json.dumps(broken), ""), check_mode=True)["failed"] is True


def said(answers: list[tuple[int, str, str]], given: dict[str, Any], check_mode: bool) -> list[str]:
    """The lines that the action shows meanwhile."""
    action = PrepAction(answers, {"model": "/models/m", **given}, check_mode)
    lines: list[str] = []
    action._display.display = lines.append
    action.run(None, {"inventory_hostname": "host-1"})
    return lines


COST = "runs inductor (another model); that took about 12 min before"


def test_the_cost_is_said_before_the_first_stage() -> None:
    code, text, _ = envelope("running", None)
    begun = (code, json.dumps({**json.loads(text), "cost": COST}), "")
    first, second, *_ = said([begun, envelope("done", 0)], {}, check_mode=False)
    assert first == f"host-1: the prep {COST}" and "goes on by itself" in second


def test_a_prep_without_a_cost_says_none() -> None:
    assert said([envelope("done", 0)], {}, check_mode=False) == []
    assert said([(0, json.dumps({**PLAN, "cost": None}), "")], {}, check_mode=True) == []


def test_a_check_says_the_cost() -> None:
    plan = (0, json.dumps({**PLAN, "cost": COST}), "")
    assert said([plan], {}, check_mode=True) == [f"host-1: the prep {COST}"]


def stage(status: str, duration_s: object, **files: object) -> dict[str, Any]:
    return {"status": status, "duration_s": duration_s, "artifacts": {"files": files}}


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        (
            {"inductor": stage("ok", 300)},
            "inductor that the new one changes, which took about 5 min",
        ),
        (
            {
                "deep_gemm": stage("noop", 0, made_in_s=9000),
                "inductor": stage("ok", 1, made_in_s=60),
            },
            "deep_gemm, inductor that the new one changes, which took about 2.5 h",
        ),
        ({"inductor": stage("noop", 0)}, None),
        ({"inductor": stage("error", 700)}, None),
        ({"inductor": {"status": "skipped"}, "flashinfer": 7, "perf": stage("ok", "soon")}, None),
        ({"inductor": stage("ok", 10**400)}, None),
        ({}, None),
    ],
)
def test_a_check_before_a_new_container_says_what_may_run_again(
    stages: dict[str, Any], named: str | None
) -> None:
    given = {"assume_started": False, "earlier": {"stages": stages}}
    lines = said([], given, check_mode=True)
    if named is None:
        assert lines == []
    else:
        [line] = lines
        assert line.startswith("host-1: the container is replaced first") and named in line
