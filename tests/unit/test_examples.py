"""What ansible-doc shows as examples fits the options that it shows, and its expressions parse."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.plugin_docs import read_docstring
from ansible_collections.slice_bench.sglang.plugins.doc_fragments.options import ModuleDocFragment

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "slice_bench.sglang."
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))
# What a task has beside its action.
TASK_WORDS = {
    *("name", "register", "when", "become", "loop", "vars", "delegate_to", "failed_when", "tags"),
    *("changed_when", "no_log", "until", "retries", "delay", "run_once", "environment", "notify"),
}


@cache
def documented(path: Path) -> dict[str, Any]:
    """A module's documentation, with the fragments of this collection that it names."""
    found = read_docstring(str(path), verbose=False, ignore_errors=False)
    options: dict[str, Any] = {}
    for fragment in found["doc"].get("extends_documentation_fragment", []):
        if fragment.startswith(COLLECTION):
            name = fragment.rpartition("options.")[2].upper()
            options |= yaml.safe_load(getattr(ModuleDocFragment, name))["options"]
    options |= found["doc"].get("options") or {}
    return {"options": options, "examples": yaml.safe_load(found["plainexamples"] or "[]")}


def spec(options: dict[str, Any]) -> dict[str, Any]:
    """The argument specification that documentation describes."""
    kept = ("type", "elements", "choices", "default", "required", "aliases")
    return {
        name: {
            **{key: option[key] for key in kept if key in option},
            **({"options": spec(option["suboptions"])} if "suboptions" in option else {}),
        }
        for name, option in options.items()
    }


def tasks(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks of an example, which may be a play."""
    return [task for each in examples for task in (each.get("tasks") or [each])]


def problems(task: dict[str, Any]) -> list[str]:
    """What is wrong with a task of an example."""
    [action] = set(task) - TASK_WORDS
    if not action.startswith(COLLECTION):
        return [] if action.startswith("ansible.builtin.") else [f"{action} is not our module"]
    path = ROOT / "plugins" / "modules" / f"{action.removeprefix(COLLECTION)}.py"
    given = task[action] or {}
    plain = {name: value for name, value in given.items() if "{{" not in str(value)}
    options = documented(path)["options"]
    expected = spec(options)
    for name in set(given) - set(plain):
        # An expression's value is not known here, its option is.
        if name not in options:
            return [f"{name} is no option of {action}"]
        expected[name].pop("required", None)
    return list(ArgumentSpecValidator(expected).validate(plain).error_messages)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_examples_of_a_module_fit_its_options(path: Path) -> None:
    examples = tasks(documented(path)["examples"])
    assert examples, "a module has an example"
    assert any(f"{COLLECTION}{path.stem}" in task for task in examples)
    assert [problem for task in examples for problem in problems(task)] == []


@pytest.mark.parametrize(
    "arguments", [{"no_such": 1}, {"tp": "one", "model": "/m"}, {"tp": 1}, {"no_such": "{{ x }}"}]
)
def test_a_wrong_example_is_found(arguments: dict[str, Any]) -> None:
    assert problems({"name": "Warm", f"{COLLECTION}sgl_prep": arguments})


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("plugins/filter/*.yml"), *ROOT.glob("plugins/modules/*.py")]),
    ids=lambda path: path.stem,
)
def test_the_expressions_of_an_example_parse(path: Path) -> None:
    if path.suffix == ".py":
        text = read_docstring(str(path), verbose=False, ignore_errors=False)["plainexamples"]
    else:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))["EXAMPLES"]
    environment = jinja2.Environment()  # noqa: S701 - nothing is rendered
    filters = [each.stem for each in ROOT.glob("plugins/filter/*.yml")]
    names = [*filters, *(f"{COLLECTION}{name}" for name in filters)]
    builtin = ("combine", "dict2items", "items2dict", "extract", "zip", "flatten", "bool")
    environment.filters |= dict.fromkeys([*names, *builtin], str)
    environment.filters |= {f"ansible.builtin.{name}": str for name in builtin}
    assert yaml.safe_load(text)
    environment.parse(text)
