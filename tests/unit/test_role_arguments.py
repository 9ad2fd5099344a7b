"""Every variable is declared once, in the contract, and is one that some role or play reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgl_admin.contract import options

ROOT = Path(__file__).resolve().parents[2]
ROLES_DIR = ROOT / "roles"
ROLES = sorted(path.name for path in ROLES_DIR.iterdir() if path.is_dir())
# The one that has the defaults.
SETTINGS = "settings"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def own_variables(role: str) -> set[str]:
    found: set[str] = set()
    for folder in ("defaults", "vars"):
        path = ROLES_DIR / role / folder / "main.yml"
        found |= set(load(path)) if path.exists() else set()
    return found


def variables_read() -> set[str]:
    """Every sgl_ name in roles and playbooks, those of modules too."""
    places = [*ROLES_DIR.glob("*/*/*.yml"), *(ROOT / "playbooks").glob("*.yml")]
    texts = [
        path.read_text(encoding="utf-8")
        for path in places
        if not path.is_relative_to(ROLES_DIR / SETTINGS / "defaults")
        and path.name != "argument_specs.yml"
    ]
    return {name for text in texts for name in re.findall(r"\bsgl_\w+", text)}


def test_there_are_roles() -> None:
    assert ROLES, f"no role in {ROLES_DIR}"


@pytest.mark.parametrize("role", [role for role in ROLES if role != SETTINGS])
def test_every_role_has_the_defaults(role: str) -> None:
    meta = load(ROLES_DIR / role / "meta" / "main.yml")
    assert meta["dependencies"] == [{"role": f"slice_bench.sglang.{SETTINGS}"}]


@pytest.mark.parametrize("role", [role for role in ROLES if role != SETTINGS])
def test_a_role_names_its_own_variables_after_itself(role: str) -> None:
    assert [name for name in own_variables(role) if not name.startswith(f"{role}_")] == []


def test_what_roles_and_plays_read_is_declared() -> None:
    modules = {path.stem for path in (ROOT / "plugins").glob("*/sgl_*.py")}
    declared = {*options.BY_NAME, *own_variables(SETTINGS), *modules}
    assert sorted(variables_read() - declared) == []


def test_every_variable_is_read() -> None:
    assert sorted(set(options.BY_NAME) - variables_read()) == []


def parts_of(option: options.Option) -> list[options.Option]:
    return [option, *(inner for part in option.parts for inner in parts_of(part))]


@pytest.mark.parametrize("name", sorted(options.BY_NAME))
def test_an_option_is_whole(name: str) -> None:
    option = options.BY_NAME[name]
    assert name.startswith(options.PREFIX)
    for each in parts_of(option):
        assert each.type and each.text.endswith((".", ")")), each
        assert (each.type == "list") == bool(each.elements), each
        assert each.default is None or not each.choices or each.default in each.choices, each


def test_no_variable_is_declared_twice() -> None:
    assert len(options.BY_NAME) == len(options.OPTIONS)


def test_the_flavours_are_those_that_there_are() -> None:
    folder = ROLES_DIR / "image" / "files" / "flavours"
    flavours = [path.name for path in folder.iterdir() if path.is_dir()]
    assert list(options.BY_NAME["sgl_flavour"].choices) == sorted(flavours)


@pytest.mark.parametrize("role", ROLES)
def test_the_role_has_a_readme(role: str) -> None:
    assert (ROLES_DIR / role / "README.md").read_text(encoding="utf-8").strip()


OWN = re.compile(rf"(?<![.\w'\"])(?:{'|'.join(ROLES)})_\w+")
EXPRESSION = re.compile(
    r"\{\{.*?\}\}|^\s*(?:- |when: |until: |changed_when: ).*$", re.DOTALL | re.MULTILINE
)
DEFINED = re.compile(rf"^\s*(?:register: )?((?:{'|'.join(ROLES)})_\w+)(?::|$)", re.MULTILINE)


def test_what_roles_and_plays_read_of_each_other_is_defined() -> None:
    places = [*ROLES_DIR.glob("*/*/*.yml"), *(ROOT / "playbooks").glob("*.yml")]
    texts = [path.read_text(encoding="utf-8") for path in places]
    defined = {name for text in texts for name in DEFINED.findall(text)}
    read = {
        name
        for text in texts
        for expression in EXPRESSION.findall(text)
        for name in OWN.findall(expression)
    }
    assert {"preflight_host", "stack_run", "provider_prep_done"} <= read
    assert sorted(read - defined) == []
