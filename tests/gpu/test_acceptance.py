"""The acceptance suite as tests: on a machine without a Hopper GPU or without SGLang they are
reported as not run, with the reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import acceptance

pytestmark = pytest.mark.gpu

ACCEPTANCE = Path(__file__).with_name("acceptance.py")


def why_not() -> str | None:
    """Why the suite cannot run here."""
    try:
        import pynvml

        pynvml.nvmlInit()
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
    except Exception as error:
        return f"no NVIDIA GPU here ({type(error).__name__})"
    if tuple(capability) != (9, 0):
        return (
            f"the GPU's compute capability is {'.'.join(map(str, capability))}, and the suite is"
            " for Hopper, 9.0"
        )
    done = subprocess.run(
        [sys.executable, "-c", "import sglang, pebble"], capture_output=True, text=True, check=False
    )
    return (
        None if done.returncode == 0 else f"SGLang or pebble is not installed for {sys.executable}"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := why_not():
        pytest.skip(f"not run: {reason}")
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("phase", acceptance.PHASES)
def test_a_phase_holds(root: Path, phase: str) -> None:
    """The phases build on each other: cold fills the caches that the next ones use."""
    done = subprocess.run(
        [
            sys.executable,
            str(ACCEPTANCE),
            "--root",
            str(root / "root"),
            "--out",
            str(root / "out"),
            phase,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
