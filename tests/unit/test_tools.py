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


# As a user types it, from the checkout's root.
TYPED = {
    "tests": ["-m", "pytest", "-q"],
    "molecule": ["-m", "molecule", "test", "--scenario-name"],
    "bench": [],
}


def typed(place: str) -> list[str]:
    kind = "bench" if place.endswith(".py") else place.partition("/")[0]
    return [*TYPED[kind], place.partition("/")[2] if kind == "molecule" else place]


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(place for place, needs in tools.NEEDS.items() if needs))
def test_a_place_says_at_once_what_this_machine_lacks(place: str, tmp_path: Path) -> None:
    """Each is run with nothing on the PATH but this environment's own programs."""
    done = subprocess.run(
        [sys.executable, *typed(place)],
        cwd=ROOT,
        env=os.environ
        | {"PATH": str(Path(sys.executable).parent), "LC_ALL": "C.UTF-8"}
        | {"MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path), "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert f"{place}: this machine lacks {', '.join(tools.NEEDS[place])}; run `make " in said, said
    for need in tools.NEEDS[place]:
        assert f"`{tools.BROUGHT_BY[need]}`" in said
    assert "Traceback" not in said
    if place.startswith("tests/") and not place.endswith(".py"):
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
