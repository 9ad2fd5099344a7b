"""Processes and process groups: who they are, how they end, and the last lines of their logs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgl_admin.base.errors import StageFailure
from sgl_admin.contract import processes

_TERMINATE_S = 15.0
_TAIL_BYTES = 1 << 16
# A signal to group 0 would go to this process's own, and 1 is the init's; the kernel gives no
# number above the last.
_GROUPS = range(2, 2**22)


def start_time(pid: int) -> str | None:
    """When a process began, in clock ticks since boot: with its pid, the identity of a process.
    None when it is gone.
    """
    ticks = processes.start_ticks(pid)
    return None if ticks is None else str(ticks)


def is_running(pid: int, ticks: str) -> bool:
    """Whether the process of that identity still does something: one that has ended and waits to be
    reaped does not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == ticks and fields[0] not in "ZX"


def end_noted(group: Any, ticks: Any) -> None:
    """End the group of a server by what a record says of it. Raises StageFailure.

    The leader dies with its parent, but some of its children do not: its number still names their
    group then.
    """
    if type(group) is int and group in _GROUPS and start_time(group) in (ticks, None):
        end_group(group)


def end_group(group: int, reap: Callable[[], object] = lambda: None) -> None:
    """SIGTERM, then SIGKILL, to a process group, until none of it is left."""
    for number, patience_s in ((signal.SIGTERM, _TERMINATE_S), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            reap()
            if not group_is_running(group):
                return
            time.sleep(0.05)
    raise StageFailure("cleanup_failed", f"process group {group} of the server outlived SIGKILL")


def group_is_running(group: int) -> bool:
    """Whether any process of the group still runs; one that has ended and only waits to be reaped
    does not count.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                return True
    return False


def last_lines(log: Path, start: int, lines: int = 20) -> list[str]:
    """The last lines of what a log holds from `start` on, in bytes."""
    with open(log, "rb") as stream:
        # A server that served for days has written more than anyone wants to read for its last
        # words.
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()[-lines:]
