"""What the action sgl_prep makes of sgl-admin's answers, above all of those that break the
contract.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

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
    assert set(request["stages"].values()) == {"ensure"}


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
    assert run((0, json.dumps(answer), ""))["metrics_ready"] is False


def test_a_plan_that_breaks_the_contract_is_a_failure_in_words() -> None:
    plan = {"would_change": "maybe", "stages": {"inductor": {"status": "noop"}}, "warnings": [7]}
    assert run((0, json.dumps(plan), ""), check_mode=True)["changed"] is False
    for broken in ({**plan, "stages": []}, {**plan, "stages": {"inductor": {}}}, {}):
        assert run((0, json.dumps(broken), ""), check_mode=True)["failed"] is True
