"""Every molecule scenario, in its own test sequence: one more place where a failure is one line,
with molecule's output under it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_there_are_scenarios() -> None:
    assert SCENARIOS, f"no scenario in {ROOT / 'molecule'}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str) -> None:
    # Molecule calls ansible-playbook and pytest by name. Its output is this test's: pytest shows it
    # when the scenario fails.
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [sys.executable, "-m", "molecule", "test", "--scenario-name", scenario],
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, (
        f"molecule test --scenario-name {scenario}: exit status {result.returncode}"
    )
