"""What must not be in any file of the repository, and versions that must be the same."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class File(NamedTuple):
    name: str  # from the repository's root
    text: str


class Rule(NamedTuple):
    """`sample` is a file that breaks the rule. Words are joined from parts, so that this file keeps
    the rules itself.
    """

    why: str
    where: Callable[[File], bool]
    pattern: str
    sample: File


def anywhere(_file: File) -> bool:
    return True


def python(file: File) -> bool:
    return file.name.endswith(".py") or bool(re.match(r"#!.*\bpython", file.text))


def shell_script(file: File) -> bool:
    return file.name.endswith(".sh") or bool(re.match(r"#!.*\b(ba|da)?sh\b", file.text))


def tasks(file: File) -> bool:
    return file.name.startswith(("roles/", "playbooks/")) and file.name.endswith((".yml", ".yaml"))


HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("ports", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
    )
]
SHELL = "she" + "ll"
SYSTEM = ".".join(("os", "system"))
EVAL = "ev" + "al"
NO_PASSWORD = "NOPASS" + "WD"

RULES = [
    Rule(
        "indexes and mirrors come from the machine's own settings",
        anywhere,
        "|".join(map(re.escape, HOSTS)),
        File("README.md", f"see https://{HOSTS[0]}/simple"),
    ),
    # A path alone is a user's login shell.
    Rule(
        "argument lists only: use ansible.builtin.command or a module",
        tasks,
        rf"^\s*(- )?(ansible\.builtin\.|ansible\.legacy\.)?{SHELL}:(?!\s+/\S+$)",
        File("roles/x/tasks/main.yml", f"- name: List\n  ansible.builtin.{SHELL}: ls | wc -l\n"),
    ),
    Rule(
        "argument lists only",
        python,
        rf"\b{SHELL}\s*=\s*True\b|\b{re.escape(SYSTEM)}\b",
        File("x.py", f"run(command, {SHELL}=True)"),
    ),
    Rule(
        "argument lists only",
        shell_script,
        rf"^[^#\n]*\b{EVAL}\s",
        File("bin/x", f'#!/bin/sh\n{EVAL} "$1"\n'),
    ),
    Rule(
        "sudo asks for a password, or the user is root",
        anywhere,
        NO_PASSWORD,
        File("x", f"ALL=(ALL) {NO_PASSWORD}: ALL"),
    ),
]


def repository() -> Iterator[File]:
    """The text files that git tracks, or would if they were added."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in sorted(set(names.split("\0")) - {""}):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue  # deleted, not yet committed
        try:
            yield File(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue


def findings(rule: Rule, file: File) -> list[str]:
    if not rule.where(file):
        return []
    found = re.finditer(rule.pattern, file.text, re.MULTILINE)
    return [
        f"{file.name}:{file.text.count(chr(10), 0, match.start()) + 1}: {match.group().strip()}"
        f" ({rule.why})"
        for match in found
    ]


@pytest.fixture(scope="module")
def files() -> list[File]:
    return list(repository())


@pytest.mark.parametrize("rule", RULES, ids=["hosts", "tasks", "python", "scripts", "sudo"])
def test_rule_is_kept(rule, files):
    assert findings(rule, rule.sample), "the rule does not find its own sample"
    assert [finding for file in files for finding in findings(rule, file)] == []


def test_repository_is_read(files):
    assert Path(__file__).resolve().relative_to(ROOT).as_posix() in {file.name for file in files}


def version_in_changelog(text: str) -> str | None:
    """Of the top entry that is a release: `## 1.0.0`, or `## v1\\.0\\.0` as antsibull-changelog
    writes it. What is not released yet stands above it.
    """
    plain = text.replace("\\", "")
    top = re.search(r"^## \[?v?(?!Unreleased)([^\s\]]+)", plain, re.MULTILINE)
    return top and top.group(1)


VERSIONS: dict[str, Callable[[str], str | None]] = {
    "galaxy.yml": lambda text: yaml.safe_load(text)["version"],
    "pyproject.toml": lambda text: tomllib.loads(text)["project"]["version"],
    "sgl_admin/__init__.py": (lambda text: text.split('__version__ = "')[1].split('"')[0]),
    "CHANGELOG.md": version_in_changelog,
}


@pytest.mark.parametrize("name", [name for name in VERSIONS if name != "galaxy.yml"])
def test_version_is_the_collections(name):
    for path in (ROOT / "galaxy.yml", ROOT / name):
        if not path.is_file():
            pytest.skip(f"there is no {path.relative_to(ROOT)}")
    wanted, found = (
        VERSIONS[path]((ROOT / path).read_text(encoding="utf-8")) for path in ("galaxy.yml", name)
    )
    assert found == wanted, f"{name} says {found}, galaxy.yml says {wanted}"
