"""Every scenario, pytest folder and bench says what it lacks and the command that brings it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tools

ROOT = Path(__file__).resolve().parents[2]


def places() -> set[str]:
    folders = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    scenarios = {path.parent for path in (ROOT / "molecule").glob("*/molecule.yml")}
    benches = set((ROOT / "tests" / "bench").glob("*.py"))
    return {str(path.relative_to(ROOT)) for path in folders | scenarios | benches}


def test_every_place_says_what_it_needs() -> None:
    assert places() == set(tools.NEEDS)


@pytest.mark.parametrize("place", sorted(place for place, needs in tools.NEEDS.items() if needs))
def test_what_is_lacking_is_said_with_the_command(place: str) -> None:
    said = tools.lacking([place], there=lambda _need: False)
    assert said is not None and len(said) < 400
    for need in tools.NEEDS[place]:
        assert need in said and f"`{tools.BROUGHT_BY[need]}`" in said
    assert tools.lacking([place], there=lambda _need: True) is None


def test_the_commands_bring_what_they_promise() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    script = (ROOT / "scripts" / "test_tools_up.sh").read_text(encoding="utf-8")
    for need, command in tools.BROUGHT_BY.items():
        target = command.removeprefix("make ")
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        if target == "test-tools-up":
            assert need in script


@pytest.mark.parametrize(
    "scenario", [place for place in sorted(tools.NEEDS) if place.startswith("molecule/")]
)
def test_a_scenario_asks_before_it_creates(scenario: str) -> None:
    text = (ROOT / scenario / "create.yml").read_text(encoding="utf-8")
    assert f"tests.tools, {scenario}]" in text


@pytest.mark.parametrize(
    "bench", [place for place in sorted(tools.NEEDS) if place.startswith("tests/bench/")]
)
def test_a_bench_asks_before_it_begins(bench: str) -> None:
    assert f'tools.require("{bench}")' in (ROOT / bench).read_text(encoding="utf-8")


@pytest.mark.slow
def test_pytest_says_at_once_what_a_folder_lacks(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/browser"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.splitlines()[0] == (
        "ERROR: tests/browser: this machine lacks chromium; run `make test-tools-up`"
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["molecule/fleet", "tests/integration"])
def test_a_place_without_its_tools_ends_in_one_sentence(tmp_path: Path, place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools", place],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    [sentence] = done.stderr.splitlines()
    assert "docker-registry" in sentence and "`make test-tools-up`" in sentence
