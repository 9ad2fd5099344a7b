"""Which devices the kernels are for: NVIDIA GPUs by NVML, or the CPU where there is none."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# There wherever NVIDIA's driver is, and in a container that was started with its GPUs.
CONTROL = Path("/dev/nvidiactl")
# By which CUDA, and so NVML's answers here, are narrowed.
VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIB = 1 << 20
# What lowers a clock against the driver's will, by NVML's names (nvmlClocksEventReasons); idle and
# set limits are not among them.
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Devices:
    name: str
    count: int
    cuda: bool
    compute_capability: str | None = None
    driver_version: str | None = None
    # The newest CUDA that the driver can run.
    cuda_version: str | None = None
    # Product names of all that are visible, each once.
    kinds: tuple[str, ...] = ()
    # What the compiler may assume of the CPU: Inductor's C++ kernels depend on it, and on nothing
    # else of the CPU.
    cpu_isa: str | None = None
    cpu_arch: str = platform.machine()


@dataclass(frozen=True)
class GpuProcess:
    pid: int
    name: str
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.memory_mib} MiB)"


def find(visible: str | None = None) -> Devices:
    """The devices that a server started from here would see; `visible` is its
    CUDA_VISIBLE_DEVICES, by default this process's own.

    Raises RuntimeError where an NVIDIA driver is there and NVML fails, or where a GPU is cut up by
    MIG.
    """
    if not CONTROL.exists():
        return Devices(name="cpu", count=1, cuda=False, cpu_isa=_cpu_isa())
    with _nvml() as nvml:
        gpus = list(_visible(nvml, visible))
        if not gpus:
            raise RuntimeError(
                "NVML shows no GPU here: is the container started with its GPUs, and does"
                " CUDA_VISIBLE_DEVICES name one?"
            )
        for gpu in gpus:
            if _mig_is_on(nvml, gpu):
                # By its UUID: its number here need not be the host's.
                uuid = nvml.nvmlDeviceGetUUID(gpu)
                raise RuntimeError(
                    f"MIG is on for GPU {uuid} ({nvml.nvmlDeviceGetName(gpu)}), and its kernels"
                    " would be tuned for a slice of it: turn it off on the host (nvidia-smi -i"
                    f" {uuid} -mig 0), or hide that GPU (CUDA_VISIBLE_DEVICES)"
                )
        names = [nvml.nvmlDeviceGetName(gpu) for gpu in gpus]
        cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        return Devices(
            name=names[0],
            count=len(gpus),
            cuda=True,
            compute_capability=".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(gpus[0]))),
            driver_version=nvml.nvmlSystemGetDriverVersion(),
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
            kinds=tuple(dict.fromkeys(names)),
        )


def processes(
    own_groups: Iterable[int] = (), least_mib: int = 256, visible: str | None = None
) -> list[GpuProcess]:
    """Who else computes on the visible GPUs and holds at least `least_mib` MiB of their memory;
    none of `own_groups`.

    NVML tells what the container may see: processes of the host's are named where it shares the
    host's process ids.
    """
    own = set(own_groups)
    held: dict[int, int] = {}
    with _nvml() as nvml:
        for gpu in _visible(nvml, visible):
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
        return [
            GpuProcess(pid, _process_name(nvml, pid), memory // _MIB)
            for pid, memory in held.items()
            if memory >= least_mib * _MIB and _group(pid) not in own
        ]


def throttles(visible: str | None = None) -> list[str]:
    """What holds the first GPU's clocks down now, in words."""
    with _nvml() as nvml:
        try:
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(next(_visible(nvml, visible)))
        except (nvml.NVMLError, StopIteration):
            return []
    return [words for bit, words in _THROTTLES.items() if reasons & bit]


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, initialised. Raises RuntimeError where it cannot be, or where it fails."""
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeError(
            "an NVIDIA driver is here, but this image lacks nvidia-ml-py, which names the GPU"
        ) from error
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise RuntimeError(
            f"NVML does not answer: {error}; is the container started with its GPUs?"
        ) from error


def _visible(nvml: Any, visible: str | None = None) -> Iterator[Any]:
    """The GPUs that CUDA shows a process with this CUDA_VISIBLE_DEVICES (by default this one), in
    the order of their PCI addresses (CUDA_DEVICE_ORDER=PCI_BUS_ID).
    """
    wanted = os.environ.get(VISIBLE) if visible is None else visible
    if wanted is None:
        yield from _every(nvml)
        return
    for name in filter(None, map(str.strip, wanted.split(","))):
        try:
            gpu = (
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdigit()
                else _by_uuid(nvml, name)
            )
        except nvml.NVMLError:
            gpu = None
        if gpu is None:
            # CUDA takes a name that it does not know for the end of the list.
            return
        yield gpu


def _every(nvml: Any) -> Iterator[Any]:
    return (nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount()))


def _by_uuid(nvml: Any, name: str) -> Any | None:
    """CUDA takes the beginning of a UUID too, where one GPU alone has it; NVML takes whole ones."""
    found = [gpu for gpu in _every(nvml) if nvml.nvmlDeviceGetUUID(gpu).startswith(name)]
    return found[0] if len(found) == 1 else None


def _mig_is_on(nvml: Any, gpu: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(gpu)[0])
    except nvml.NVMLError:
        # A GPU that cannot do it has no such mode.
        return False


def _process_name(nvml: Any, pid: int) -> str:
    try:
        name = nvml.nvmlSystemGetProcessName(pid)
    except nvml.NVMLError:
        return "a process of another container"
    return str(name).rpartition("/")[2]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _cpu_isa() -> str:
    """The widest vector extension that Inductor generates code for (torch/_inductor/cpu_vec_isa.py
    looks for these).
    """
    if platform.machine() == "aarch64":
        wanted: tuple[tuple[str, str], ...] = (("sve", "sve"),)
        narrowest = "neon"
    else:
        wanted = (("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"))
        narrowest = "sse2"
    flags: set[str] = set()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
    return next((name for flag, name in wanted if flag in flags), narrowest)
