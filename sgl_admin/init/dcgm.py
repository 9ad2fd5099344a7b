"""Becomes dcgm-exporter, with the rights and the engine that there are: looked at anew at each of
its starts.

Profiling metrics need CAP_SYS_ADMIN. devuser can get it by a file capability alone, and a program
that has one outside the container's bounding set does not start at all: so the image has
dcgm-exporter twice, once with the capability, and one of them is chosen here. The flags are those
of dcgm-exporter 4.4.1-4.5.2.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths, rights
from sgl_admin.contract.services import LOOPBACK
from sgl_admin.contract.texts import say
from sgl_admin.init.services import Settings

WARNING = (
    "dcgm-exporter lacks cap_sys_admin; start container with --cap-add SYS_ADMIN for profiling"
    " metrics"
)
PLAIN = "/usr/local/bin/dcgm-exporter"
PRIVILEGED = "/usr/local/lib/sgl/dcgm-exporter"
DCGMI = "/usr/bin/dcgmi"
# Where nv-hostengine listens unless it is told otherwise.
HOST_ENGINE_PORT = 5555
COUNTERS = Path("/etc/dcgm-exporter")
_CAP_SYS_ADMIN = 21
_COLLECT_INTERVAL_MS = 1000
_PROFILING = "DCGM_FI_PROF_"


@dataclass(frozen=True)
class Choice:
    """Whose engine is asked, and whether it may profile."""

    host_engine: bool
    profiling: bool


def main() -> None:
    rights.begin()
    choice = choose(Path("/proc/self/status").read_text(encoding="utf-8"), host_engine_answers())
    files.write_json(_note(), asdict(choice), mode=0o644)
    argv = command(choice, Settings.from_environment())
    say(
        f"dcgm_exporter: {'profiling' if choice.profiling else WARNING}: {' '.join(argv)}",
        flush=True,
    )
    os.execv(argv[0], argv)


def choose(status: str, host_engine: bool) -> Choice:
    """`status` is this process's /proc/self/status. The host's own engine profiles by its own
    rights.
    """
    return Choice(host_engine, host_engine or may_gain(status, _CAP_SYS_ADMIN))


def may_gain(status: str, capability: int) -> bool:
    """Whether a file capability takes effect: it is in the bounding set, and nothing forbids new
    privileges.
    """
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return (
        bounding is not None
        and bool(int(bounding[1], 16) >> capability & 1)
        and not re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
    )


def host_engine_answers() -> bool:
    """Whether an nv-hostengine runs on the host, whose network this is: two engines that profile
    one GPU get in each other's way.
    """
    try:
        socket.create_connection((LOOPBACK, HOST_ENGINE_PORT), timeout=1).close()
        # Something else may have that port; DCGM's own client can tell.
        discovery = [DCGMI, "discovery", "--host", f"{LOOPBACK}:{HOST_ENGINE_PORT}", "--list"]
        return (
            subprocess.run(
                discovery, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def command(choice: Choice, settings: Settings) -> list[str]:
    """dcgm-exporter's argument list; its list of metrics is written beside. Raises OSError."""
    counters = paths.STATE / "dcgm-counters.csv"
    source = COUNTERS / ("dcp-metrics-included.csv" if choice.profiling else "default-counters.csv")
    # The default list names some profiling metrics too.
    lines = [
        line
        for line in source.read_text(encoding="utf-8").splitlines()
        if choice.profiling or not line.startswith(_PROFILING)
    ]
    files.write_text(counters, "\n".join(lines) + "\n", mode=0o644)
    argv = [
        PRIVILEGED if choice.profiling and not choice.host_engine else PLAIN,
        f"--address={settings.address('dcgm_exporter')}",
        f"--collectors={counters}",
        f"--collect-interval={_COLLECT_INTERVAL_MS}",
    ]
    return (
        [*argv, f"--remote-hostengine-info={LOOPBACK}:{HOST_ENGINE_PORT}"]
        if choice.host_engine
        else argv
    )


def chosen() -> Choice:
    """What the latest start of dcgm-exporter chose."""
    note: dict[str, Any] = files.read_json(_note()) or {}
    return Choice(note.get("host_engine") is True, note.get("profiling") is True)


def _note() -> Path:
    return paths.STATE / "dcgm-exporter.json"


if __name__ == "__main__":
    main()
