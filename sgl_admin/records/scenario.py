"""What a smoke asks: named tests of one turn (one-shot) or several (multi-turn), read from JSON and
held to what a server takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_admin.contract.texts import read_json_text

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_SCENARIO_KEYS = ("name", "defaults", "tests")
_TEST_KEYS = ("name", "system", "turns")
# The bounds are those of SGLang and of the OpenAI API; a seed is an int64.
_RANGES = {
    "temperature": (0, 2),
    "max_tokens": (1, 2**20),
    "timeout_s": (0.001, 86400),
    "top_p": (0.001, 1),
    "seed": (-(2**63), 2**63 - 1),
}
_WHOLE = ("max_tokens", "seed")

DEFAULT = """{
  "name": "default",
  "tests": [
    {"name": "one-shot", "turns": ["What is the capital of France? Answer in one word."]},
    {"name": "multi-turn",
     "turns": ["Remember the number 17. Answer OK.", "Add 5 to it. What is the result?"]}
  ]
}"""


class ScenarioError(ValueError):
    """It is no scenario; the message begins with the place that is wrong, such as
    `tests[2].turns`.
    """


@dataclass(frozen=True)
class Options:
    """How a turn is asked. `timeout_s` seconds are for its whole answer; what is None is left to
    the server.
    """

    temperature: float = 0
    max_tokens: int = 64
    timeout_s: float = 120
    stream: bool = True
    top_p: float | None = None
    seed: int | None = None


_OPTIONS = tuple(Options.__dataclass_fields__)


@dataclass(frozen=True)
class Test:
    name: str
    system: str | None
    turns: tuple[str, ...]
    options: Options


@dataclass(frozen=True)
class Scenario:
    name: str
    tests: tuple[Test, ...]


def parse(text: str | bytes) -> Scenario:
    """The scenario of a JSON text. Raises ScenarioError and nothing else."""
    try:
        document = read_json_text(text)
    except ValueError as error:
        raise ScenarioError(f"the scenario is not valid JSON: {error}") from error
    found = _object(document, "the scenario", _SCENARIO_KEYS)
    name = _text(found.get("name"), "name")
    defaults = _options(_object(found.get("defaults", {}), "defaults", _OPTIONS), "defaults.", {})
    tests = found.get("tests")
    if not isinstance(tests, list) or not tests:
        raise ScenarioError("tests: must be a list of at least one test")
    made = tuple(_test(test, f"tests[{index}]", defaults) for index, test in enumerate(tests))
    names: set[str] = set()
    for index, test in enumerate(made):
        if test.name in names:
            raise ScenarioError(f"tests[{index}].name: another test is named {test.name!r} already")
        names.add(test.name)
    return Scenario(name, made)


def _test(value: Any, where: str, defaults: Mapping[str, Any]) -> Test:
    found = _object(value, where, (*_TEST_KEYS, *_OPTIONS))
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ScenarioError(
            f"{where}.name: must be 1 to 100 of a-z, 0-9, '_', '.' and '-', and begin with a letter"
            " or digit"
        )
    system = found.get("system")
    turns = found.get("turns")
    if not isinstance(turns, list) or not turns:
        raise ScenarioError(f"{where}.turns: must be a list of at least one text")
    return Test(
        name,
        None if system is None else _text(system, f"{where}.system"),
        tuple(_text(turn, f"{where}.turns[{index}]") for index, turn in enumerate(turns)),
        Options(
            **_options({key: found[key] for key in _OPTIONS if key in found}, f"{where}.", defaults)
        ),
    )


def _options(given: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if key == "stream":
            if not isinstance(value, bool):
                raise ScenarioError(f"{where}stream: must be true or false")
            continue
        lowest, highest = _RANGES[key]
        kinds, kind = ((int,), "whole number") if key in _WHOLE else ((int, float), "number")
        # true is an int for Python; a NaN is in no range.
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not lowest <= value <= highest
        ):
            raise ScenarioError(f"{where}{key}: must be a {kind} from {lowest} to {highest}")
    return {**defaults, **given}


def _object(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: must be a JSON object")
    for key in value:
        if key not in keys:
            raise ScenarioError(
                f"{where}: has the unknown key {key[:80]!r}; it takes {', '.join(keys)}"
            )
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ScenarioError(f"{where}: must be a text that is not empty")
    return value
