"""Which processes on the GPUs are this container's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sgl_admin.facts.devices import GpuProcess

PROC = Path("/proc")
# Each CUDA process has it open, and none that only asks NVML.
_CUDA = "/dev/nvidia-uvm"


def own() -> set[int]:
    """This container's processes that use a GPU, by its own process ids."""
    cgroup = _cgroup("self")
    return {
        int(folder.name)
        for folder in PROC.glob("[0-9]*")
        if _uses_cuda(folder / "fd") and _cgroup(folder.name) == cgroup
    }


def _cgroup(process: str) -> str | None:
    try:
        return (PROC / process / "cgroup").read_text()
    except OSError:
        return None


def _uses_cuda(descriptors: Path) -> bool:
    try:
        return any(os.readlink(each) == _CUDA for each in descriptors.iterdir())
    except OSError:
        return False


def foreign(listed: Sequence[GpuProcess], ours: set[int]) -> list[GpuProcess] | None:
    """Those of the processes that NVML lists that are not this container's, `ours`; None where it
    does not list our own, so that others may be missing too.

    Some drivers know nothing of process ids' namespaces and give those of the host
    (NVIDIA/nvidia-docker, issue 1483): then as many as there are own ones are taken for these.
    """
    others = [process for process in listed if process.pid not in ours]
    if not ours or len(others) < len(listed):
        return others
    if not listed:
        return None
    return sorted(others, key=lambda process: -process.memory_mib)[len(ours) :]
