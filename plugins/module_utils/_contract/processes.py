# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which process is which, for all time: a pid alone is given out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def status(pid: int) -> list[str]:
    """What /proc/PID/stat says after the program's name: state, parent, group and so on (proc(5),
    from field 3); empty when the process is gone or cannot be seen.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when it is gone or cannot be seen."""
    try:
        return int(status(pid)[19])
    except (ValueError, IndexError):
        return None


def boot_id() -> str | None:
    """The identity of this boot of the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def identity(pid: int) -> dict[str, Any] | None:
    """`pid1` of the manifest: {boot_id, start_ticks}; None when the process cannot be seen."""
    boot, ticks = boot_id(), start_ticks(pid)
    return None if boot is None or ticks is None else {"boot_id": boot, "start_ticks": ticks}
