"""What a folder of tests, a scenario or a bench needs of this machine, and the command that brings
it: `python -m tests.tools molecule/fleet`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

DAEMON = "a Docker daemon that answers"
_TEST_TOOLS = "make test-tools-up"
# The command that brings each program.
BROUGHT_BY = {
    "docker": "make docker-up",
    DAEMON: "make docker-up",
    "chromium": _TEST_TOOLS,
    "rsync": _TEST_TOOLS,
    "docker-registry": _TEST_TOOLS,
    "minisign": _TEST_TOOLS,
    "openssl": _TEST_TOOLS,
    "ssh": _TEST_TOOLS,
    "ssh-keygen": _TEST_TOOLS,
}

_CONTAINERS = ("docker", DAEMON)
# What a container that is a whole host is reached by.
_HOSTS = (*_CONTAINERS, "ssh", "ssh-keygen")
# By folder or file, from the checkout's root.
NEEDS: dict[str, tuple[str, ...]] = {
    "tests/unit": ("openssl",),
    "tests/fuzz": (),
    "tests/gpu": (),
    "tests/browser": ("chromium",),
    "tests/integration": (*_HOSTS, "rsync", "docker-registry", "minisign", "openssl"),
    "tests/faults": _HOSTS,
    "tests/molecule": (*_HOSTS, "docker-registry"),
    "molecule/default": _CONTAINERS,
    "molecule/fleet": (*_HOSTS, "docker-registry"),
    "tests/bench/cache_share.py": (),
    "tests/bench/model_verify.py": (),
    "tests/bench/converged.py": (*_HOSTS, "docker-registry"),
    "tests/bench/scale.py": ("docker",),
    "tests/bench/year.py": _CONTAINERS,
}


def is_there(need: str) -> bool:
    if need != DAEMON:
        return shutil.which(need) is not None
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def lacking(places: Iterable[str], there: Callable[[str], bool] = is_there) -> str | None:
    """One sentence about what these places need and this machine lacks; None where all is there."""
    places = sorted(set(places))
    needed = dict.fromkeys(need for place in places for need in NEEDS[place])
    missing = [need for need in needed if not there(need)]
    if not missing:
        return None
    commands = dict.fromkeys(BROUGHT_BY[need] for need in missing)
    return (
        f"{', '.join(places)}: this machine lacks {', '.join(missing)}; run"
        f" {' and '.join(f'`{command}`' for command in commands)}"
    )


def place_of(path: Path) -> str | None:
    """The place that a file belongs to; None outside of all."""
    return next((place for place in NEEDS if path.resolve().is_relative_to(ROOT / place)), None)


def require(*places: str) -> None:
    """End this program where something is lacking."""
    if message := lacking(places):
        sys.exit(message)


if __name__ == "__main__":
    require(*sys.argv[1:])
