"""Whether the GPUs fit what a prep is asked to do, and are free for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sgl_admin.base import paths, versions
from sgl_admin.base.errors import StageFailure
from sgl_admin.facts import devices
from sgl_admin.facts.devices import Devices, GpuProcess

# The driver lets go of an ended process's memory a moment after its end.
_PATIENCE_S = 15.0
# Below this part of a GPU's memory something has taken of it; the driver's own is far less.
_LEAST_FREE = 0.9
# CUDA on a 64-bit Arm: its GPU's memory is memory of the host too. Since R570 the kernel keeps its
# page cache out of it (cscs-docs#216).
_GRACE, _KEEPS_OUT = "aarch64", 570
# What a cold server of an 80B FP8 model writes into its caches, and some more.
_CACHE_BYTES = 2 << 30


def check(found: Devices, tp: int, warn: Callable[[str], None]) -> None:
    """Raises ValueError where a prep cannot be done on these devices."""
    if tp > found.count:
        raise ValueError(
            f"tp {tp} needs {tp} devices, and here is {found.count} ({found.name}): use --tp"
            f" {found.count}"
        )
    if len(found.kinds) > 1:
        kinds = " and ".join(found.kinds)
        if tp > 1:
            raise ValueError(
                f"the GPUs are of different kinds ({kinds}), and kernels are tuned for one: show"
                " only one (CUDA_VISIBLE_DEVICES)"
            )
        warn(f"the GPUs are of different kinds ({kinds}); this prep is for the first, {found.name}")
    wanted = versions.cuda_runtime() if found.cuda else None
    if wanted and found.cuda_version and _major(found.cuda_version) < _major(wanted):
        raise ValueError(
            f"the driver {found.driver_version} runs CUDA {found.cuda_version} at most, and torch"
            f" here is built for CUDA {wanted}: update the host's driver, or take an image for CUDA"
            f" {_major(found.cuda_version)}"
        )


def _major(version: str) -> int:
    number = version.partition(".")[0]
    return int(number) if number.isdigit() else 0


def wait_until_free(visible: str | None = None) -> None:
    """Raises StageFailure(gpu_busy) where another process goes on computing on a visible GPU;
    `visible` as in devices.find.
    """
    if others := _still_there([visible])[visible]:
        named = ", ".join(map(str, others))
        raise StageFailure(
            "gpu_busy",
            f"the GPU is in use by {named}: end that, or wait for its end, and run this again",
        )


def _still_there(visible: Sequence[str | None]) -> dict[str | None, list[GpuProcess]]:
    """The processes on the GPUs that each of these shows, once there are none or they had their
    time to end.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = {each: devices.processes(visible=each) for each in visible}
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


@dataclass(frozen=True)
class Gpus:
    """Of several GPUs those that work may take, for CUDA_VISIBLE_DEVICES, and in words those that
    others use; nothing where there is one, which needs no name.
    """

    idle: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()


def all_idle(found: Devices, visible: str | None = None) -> Gpus:
    """Of the visible GPUs those of the first one's kind, after a server's end. Where all are in
    use, none is named.
    """
    if not found.cuda or found.count < 2:
        return Gpus()
    named = [uuid for uuid, name in devices.named(visible) if uuid and name == found.name]
    if len(named) < 2:
        return Gpus()
    others = _still_there(named)
    idle = tuple(uuid for uuid in named if not others[uuid])
    busy = tuple(
        f"{uuid}: in use by {', '.join(map(str, others[uuid]))}" for uuid in named if others[uuid]
    )
    return Gpus(idle, busy) if idle else Gpus()


def held_memory(found: Devices, visible: str | None = None) -> str | None:
    """What to say of a GPU whose memory is not free although no process is seen that holds it; None
    where it is free.
    """
    held = [(free, total) for free, total in devices.memory(visible) if free < total * _LEAST_FREE]
    if not held:
        return None
    free, total = min(held)
    before = f"{free} of {total} MiB of a GPU's memory are free before the server starts, and no"
    driver = found.driver_version
    if found.cpu_arch == _GRACE and driver and _major(driver) < _KEEPS_OUT:
        return (
            f"{before} process holds the rest: with a driver before {_KEEPS_OUT} (here"
            f" {driver}) a Grace host keeps its page cache there; update the driver,"
            " or empty the cache as root (sync; echo 1 > /proc/sys/vm/drop_caches)"
        )
    return (
        f"{before} process that this container sees holds the rest: look on the host (nvidia-smi),"
        " and end what holds it"
    )


def check_free_space() -> None:
    """Raises StageFailure(insufficient_disk)."""
    free = shutil.disk_usage(paths.PROFILES).free
    if free < _CACHE_BYTES:
        where = paths.to_host(paths.PROFILES)
        raise StageFailure(
            "insufficient_disk",
            f"{where} has {free >> 20} MiB free, and cold caches take up to {_CACHE_BYTES >> 20}:"
            " free some",
        )
