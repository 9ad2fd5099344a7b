# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Waits for a container's run to be published, and reads a container's last words."""

from __future__ import annotations

import time
from typing import Any

from . import _run_record as run_record
from ._docker_cli import DockerCli

_POLL_S = 0.05
# A container that starts again and again for longer than this will not come up by itself.
_RESTARTING_S = 10.0
_LOG_LINES = 50


def wait(
    docker: DockerCli, telemetry_root: str, name: str, timeout_s: float
) -> tuple[dict[str, Any], float]:
    """The container's live run, and how long it took. Raises RecordError with the end of the
    container's log, and DockerError.
    """
    started = time.monotonic()
    while True:
        container = docker.container(name)
        found = run_record.describe(telemetry_root, container)
        run_record.note_elsewhere(found, container, docker.container)
        waited = time.monotonic() - started
        if found["live"]:
            return found, waited
        status = container["status"] if container else "absent"
        patience = {"running": timeout_s, "restarting": min(_RESTARTING_S, timeout_s)}
        if waited >= patience.get(status, 0.0):
            what = (
                f"container {name} ({status}) has no live run after {waited:.0f} s:"
                f" {found['reason']}"
            )
            raise run_record.RecordError(f"{what}. The end of its log:\n{log(docker, name)}")
        time.sleep(_POLL_S)


def log(docker: DockerCli, name: str) -> str:
    """The end of what the container printed."""
    words = [docker.binary, "logs", "--tail", str(_LOG_LINES), name]
    _ignored, output, error = docker.run(words)
    lines = [line for line in (output + error).splitlines() if line.strip()]
    return "\n".join(lines) or "(empty)"
