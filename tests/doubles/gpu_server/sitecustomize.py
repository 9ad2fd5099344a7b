"""Stands for the device node of NVIDIA's driver, in each Python process that has this folder on its
PYTHONPATH.

SGL_TEST_NVML set: /dev/nvidiactl is there, so sgl-admin asks NVML (the double in pynvml.py). Not
set: it is not, whatever this machine has. SGL_TEST_NO_TORCH set: a process that imports torch ends
at once, with exit code 97.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

try:
    from sgl_admin.facts import devices
except ImportError:
    # The server's process does not have sgl-admin.
    pass
else:
    devices.CONTROL = Path("/dev/null" if os.environ.get("SGL_TEST_NVML") else "/dev/null/none")


class NoTorch:
    """Comes before all that finds modules."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name.partition(".")[0] == "torch":
            # No exception: code that tries an import catches those.
            os.write(2, b"double: torch was imported\n")
            os._exit(97)


if os.environ.get("SGL_TEST_NO_TORCH"):
    sys.meta_path.insert(0, NoTorch)
