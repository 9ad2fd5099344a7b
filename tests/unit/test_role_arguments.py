"""Every role documents exactly the variables that it has: defaults/main.yml and
meta/argument_specs.yml name the same ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES_DIR = Path(__file__).resolve().parents[2] / "roles"
USERS = "sgl_"
ROLES = sorted(path.name for path in ROLES_DIR.iterdir() if path.is_dir())


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def defaults(role: str) -> set[str]:
    path = ROLES_DIR / role / "defaults" / "main.yml"
    return set(load(path)) if path.exists() else set()


def options(role: str) -> dict[str, dict[str, Any]]:
    """The options of the role's main entry point. A role without variables still has the file: it
    says what the role does.
    """
    specs = load(ROLES_DIR / role / "meta" / "argument_specs.yml")["argument_specs"]
    return {
        name: spec
        for name, spec in (specs["main"].get("options") or {}).items()
        if not name.startswith(USERS)
    }


def users_variables() -> set[str]:
    """The variables that users set: the preflight checks those of the GPU hosts, the role dashboard
    those of Grafana's machine.
    """
    found: set[str] = set()
    for role in ("preflight", "dashboard"):
        found |= set(
            load(ROLES_DIR / role / "meta" / "argument_specs.yml")["argument_specs"]["main"][
                "options"
            ]
        )
    return {name for name in found if name.startswith(USERS)}


def undocumented(name: str, spec: dict[str, Any]) -> list[str]:
    """The dotted names of the options, the nested ones too, that lack a description or a type."""
    missing = [f"{name}: no {key}" for key in ("description", "type") if not spec.get(key)]
    for inner, inner_spec in (spec.get("options") or {}).items():
        missing += undocumented(f"{name}.{inner}", inner_spec)
    return missing


def test_there_are_roles() -> None:
    assert ROLES, f"no role in {ROLES_DIR}"


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_options_have_the_same_names(role: str) -> None:
    assert sorted(defaults(role)) == sorted(options(role))


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described_and_typed(role: str) -> None:
    assert [line for name, spec in options(role).items() for line in undocumented(name, spec)] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_name_starts_with_the_role(role: str) -> None:
    assert [
        name for name in defaults(role) | set(options(role)) if not name.startswith(f"{role}_")
    ] == []


def test_the_preflight_checks_every_variable_that_a_role_reads() -> None:
    places = [ROLES_DIR / role / "defaults" / "main.yml" for role in ROLES]
    texts = [path.read_text() for path in (*places, ROLES_DIR.parent / "playbooks" / "prep.yml")]
    read = {name for text in texts for name in re.findall(r"\bsgl_\w+", text)}
    assert sorted(users_variables()) == sorted(read)


def test_the_readme_lists_every_variable() -> None:
    table = (
        (ROLES_DIR.parent / "README.md")
        .read_text(encoding="utf-8")
        .partition("## Variables")[2]
        .partition("\n## ")[0]
    )
    assert [name for name in sorted(users_variables()) if f"`{name}`" not in table] == []


def test_the_flavours_are_those_that_there_are() -> None:
    specs = load(ROLES_DIR / "preflight" / "meta" / "argument_specs.yml")["argument_specs"]
    flavours = [
        path.name
        for path in (ROLES_DIR / "image" / "files" / "flavours").iterdir()
        if path.is_dir()
    ]
    assert specs["main"]["options"]["sgl_flavour"]["choices"] == sorted(flavours)


@pytest.mark.parametrize("role", ROLES)
def test_the_role_has_a_readme(role: str) -> None:
    assert (ROLES_DIR / role / "README.md").read_text(encoding="utf-8").strip()
