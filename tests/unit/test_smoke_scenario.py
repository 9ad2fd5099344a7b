"""What is a scenario, and what is wrong with one that is invalid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_admin.records import scenario
from tests.fuzz.fuzzing import damaged, documents, encoded, mostly, spoiled

FULL = {
    "name": "full",
    "defaults": {
        "temperature": 0.5,
        "max_tokens": 8,
        "timeout_s": 30,
        "stream": False,
        "top_p": 0.9,
        "seed": 1,
    },
    "tests": [
        {"name": "one", "turns": ["a"]},
        {
            "name": "two.turns-2_b",
            "system": "Be brief.",
            "turns": ["a", "b"],
            "temperature": 0,
            "stream": True,
            "seed": -3,
        },
    ],
}


def test_a_test_takes_the_defaults_and_its_own() -> None:
    found = scenario.parse(json.dumps(FULL))
    defaults = scenario.Options(0.5, 8, 30, False, 0.9, 1)
    assert found == scenario.Scenario(
        "full",
        (
            scenario.Test("one", None, ("a",), defaults),
            scenario.Test(
                "two.turns-2_b", "Be brief.", ("a", "b"), scenario.Options(0, 8, 30, True, 0.9, -3)
            ),
        ),
    )


def test_what_nothing_says_is_as_documented() -> None:
    found = (
        scenario.parse('{"name": "n", "tests": [{"name": "t", "turns": ["x"]}]}').tests[0].options
    )
    assert vars(found) == {
        "temperature": 0,
        "max_tokens": 64,
        "timeout_s": 120,
        "stream": True,
        "top_p": None,
        "seed": None,
    }


def test_the_built_in_scenario_has_a_one_shot_and_a_multi_turn_test() -> None:
    assert [len(test.turns) for test in scenario.parse(scenario.DEFAULT).tests] == [1, 2]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ((), [], "the scenario: must be a JSON object"),
        (("name",), None, "name: must be a text"),
        (("name",), " ", "name: must be a text"),
        (
            ("extra",),
            1,
            "the scenario: has the unknown key 'extra'; it takes name, defaults, tests",
        ),
        (("defaults",), None, "defaults: must be a JSON object"),
        (("defaults", "stream"), 1, "defaults.stream: must be true or false"),
        (("defaults", "turns"), ["x"], "defaults: has the unknown key 'turns'"),
        (("defaults", "temperature"), 2.1, "defaults.temperature: must be a number from 0 to 2"),
        (("defaults", "temperature"), True, "defaults.temperature: must be a number"),
        (("defaults", "temperature"), float("nan"), "defaults.temperature: must be a number"),
        (("defaults", "max_tokens"), 0, "defaults.max_tokens: must be a whole number from 1"),
        (("defaults", "max_tokens"), 1.5, "defaults.max_tokens: must be a whole number"),
        (("defaults", "timeout_s"), 0, "defaults.timeout_s: must be a number"),
        (("defaults", "timeout_s"), float("inf"), "defaults.timeout_s: must be a number"),
        (("defaults", "top_p"), 0, "defaults.top_p: must be a number"),
        (("defaults", "seed"), 2**63, "defaults.seed: must be a whole number"),
        (("defaults", "seed"), None, "defaults.seed: must be a whole number"),
        (("tests",), [], "tests: must be a list of at least one test"),
        (("tests",), {}, "tests: must be a list of at least one test"),
        (("tests", 1), "x", r"tests\[1\]: must be a JSON object"),
        (("tests", 1, "name"), "one", r"tests\[1\].name: another test is named 'one'"),
        (("tests", 1, "name"), "../x", r"tests\[1\].name: must be"),
        (("tests", 1, "name"), "-x", r"tests\[1\].name: must be"),
        (("tests", 1, "name"), "x\n", r"tests\[1\].name: must be"),
        (("tests", 1, "name"), "x" * 101, r"tests\[1\].name: must be"),
        (("tests", 1, "system"), 7, r"tests\[1\].system: must be a text"),
        (("tests", 1, "turns"), [], r"tests\[1\].turns: must be a list of at least one text"),
        (("tests", 1, "turns"), "a", r"tests\[1\].turns: must be a list"),
        (("tests", 1, "turns", 0), "", r"tests\[1\].turns\[0\]: must be a text"),
        (("tests", 1, "turns", 1), None, r"tests\[1\].turns\[1\]: must be a text"),
        (("tests", 1, "max_tokens"), "8", r"tests\[1\].max_tokens: must be a whole number"),
        (("tests", 1, "maxtokens"), 8, r"tests\[1\]: has the unknown key 'maxtokens'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    place: tuple[str | int, ...], value: Any, words: str
) -> None:
    document: Any = json.loads(json.dumps(FULL))
    if place:
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value
    else:
        document = value
    with pytest.raises(scenario.ScenarioError, match=f"^{words}"):
        scenario.parse(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\x00", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(scenario.ScenarioError, match="not valid JSON"):
        scenario.parse(text)


@settings(
    max_examples=300,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(
    damaged(mostly(spoiled(FULL), documents("name", "defaults", "tests")).map(encoded))
    | st.binary(max_size=60)
)
def test_anything_is_a_scenario_or_refused(content: bytes) -> None:
    try:
        found = scenario.parse(content)
    except scenario.ScenarioError as error:
        assert str(error)
    else:
        assert found.tests and all(test.turns and test.name for test in found.tests)
        # What is sent to a server and written to a file.
        assert json.dumps([vars(test.options) for test in found.tests], allow_nan=False)
