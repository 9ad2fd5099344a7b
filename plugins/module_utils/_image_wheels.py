# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The image's Python packages: fetched by the host's pip or, where that cannot, by the
controller's.
"""

from __future__ import annotations

import os
import re

from ._contract.texts import one_line
from ._image_parts import ImageError, sha256_of

# The Python of Debian bookworm, which the wheels are for.
WHEEL_PYTHON = "3.11"
_ABIS = ("cp311", "abi3", "none")
_PLATFORMS = (
    "manylinux_2_35",
    "manylinux_2_31",
    "manylinux_2_28",
    "manylinux_2_17",
    "manylinux2014",
    "linux",
)
_ERROR = re.compile(r"(?:ERROR: |(?=No module named ))(.+)")
_DIGEST = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class NoWheels(ImageError):
    """The host's pip cannot fetch them; `requirements` and `machine` are what another one needs."""

    def __init__(self, message: str, requirements: str, machine: str) -> None:
        super().__init__(message)
        self.requirements = requirements
        self.machine = machine


def download_command(python: str, machine: str, requirements: str, folder: str) -> list[str]:
    """pip's argument list: wheels for a machine into a folder, checked by the digests in a file of
    requirements, with that host's own indexes, proxy and CA bundle.
    """
    command = [
        *(python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--require-hashes", "--no-deps", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", WHEEL_PYTHON),
    ]
    for abi in _ABIS:
        command += ["--abi", abi]
    for platform in _PLATFORMS:
        command += ["--platform", f"{platform}_{machine}"]
    return [*command, "--dest", folder, "--requirement", requirements]


def reason(output: str) -> str:
    """The words of pip's output that say why it failed."""
    errors = _ERROR.findall(output) or output.splitlines() or ["it says nothing"]
    return one_line(errors[-1], 110)


def check(folder: str, requirements: str) -> None:
    """Hold wheels that were brought to the requirements' digests. Raises ImageError."""
    digests = set(_DIGEST.findall(requirements))
    for name in os.listdir(folder):
        if sha256_of(os.path.join(folder, name)) not in digests:
            raise ImageError(f"the wheel {name} that the controller sent has another digest")
