"""Processes and process groups: who they are, and how they end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sgl_admin.base.errors import StageFailure
from sgl_admin.contract import listeners, processes

_TERMINATE_S = 15.0
# More than any of the kernel's counters takes.
_COUNTERS = 1 << 16
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
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
    fields = processes.status(pid)
    return bool(fields) and fields[19] == ticks and fields[0] not in "ZX"


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
    return any(
        fields and int(fields[2]) == group and fields[0] not in "ZX"
        for fields in map(processes.status, listeners.pids())
    )


def ended(exit_code: int) -> str:
    """How a process ended, by its exit code as Popen gives it."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"killed by signal {-exit_code}"


def oom_kills() -> int | None:
    """How many processes of this container the kernel's out-of-memory killer has ended so far; None
    where the kernel does not say.
    """
    for counter in _counters("memory.events", "memory", "memory.oom_control"):
        try:
            with open(counter, encoding="ascii", errors="replace") as stream:
                found = re.search(r"^oom_kill (\d+)$", stream.read(_COUNTERS), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return None


def oom_kills_since(before: int | None) -> int:
    """How many more than `before`; 0 where that is not known."""
    now = oom_kills()
    return 0 if now is None or before is None else max(0, now - before)


def cpu_ticks() -> int | None:
    """The CPU time of this container's processes so far, in clock ticks; None where the kernel does
    not say it of this container alone.

    The root of all cgroups counts the whole host: by the kernel's cgroup-v2.rst it lacks
    cgroup.events, and by cgroup-v1/cgroups.rst it alone has release_agent.
    """
    for counter in _counters("cpu.stat", "cpuacct", "cpuacct.usage"):
        unified = counter.name == "cpu.stat"
        if counter.with_name("cgroup.events").exists() != unified:
            continue
        if counter.with_name("release_agent").exists():
            continue
        try:
            text = counter.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        pattern, a_second = (r"^usage_usec (\d+)$", 10**6) if unified else (r"^(\d+)$", 10**9)
        if found := re.search(pattern, text, re.MULTILINE):
            return int(found[1]) * os.sysconf("SC_CLK_TCK") // a_second
    return None


def _counters(unified: str, controller: str, legacy: str) -> Iterator[Path]:
    """The files of that name of this container, by cgroup's version 2 and 1; a container mostly
    sees its own cgroup as the root.
    """
    try:
        memberships = (_PROC / "self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        memberships = []
    paths: dict[str, str] = {}
    for line in memberships:
        _, _, membership = line.partition(":")
        controllers, _, path = membership.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    for path in (paths.get("", "/"), "/"):
        yield _CGROUP / path.lstrip("/") / unified
    for path in (paths.get(controller, "/"), "/"):
        yield _CGROUP / controller / path.lstrip("/") / legacy
