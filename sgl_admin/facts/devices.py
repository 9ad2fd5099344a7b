"""Which devices the kernels are for: NVIDIA GPUs by NVML, or the CPU where there is none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sgl_admin.base.errors import GpuUnavailable

_T = TypeVar("_T")

# There wherever NVIDIA's driver is, and in a container that was started with its GPUs.
CONTROL = Path("/dev/nvidiactl")
# By which CUDA, and so NVML's answers here, are narrowed.
VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIB = 1 << 20
_MOST_EVENTS = 100
# What lowers a clock against the driver's will, by NVML's names (nvmlClocksEventReasons); idle and
# set limits are not among them.
_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}
# Where the driver's library is older than nvidia-ml-py's structures; no NVMLError.
_MISMATCH = "NVMLLibraryMismatchError"
# NVML's errors, by nvidia-ml-py's classes, that say only that this GPU, driver or container cannot
# be asked this: they cost the answer, and nothing else.
_UNANSWERED = (
    "NVMLError_NotSupported",
    "NVMLError_FunctionNotFound",
    "NVMLError_NoPermission",
    "NVMLError_NotFound",
    "NVMLError_NoData",
    "NVMLError_ArgumentVersionMismatch",
    "NVMLError_Deprecated",
    _MISMATCH,
)
_RECREATE = (
    "the container has lost its GPUs' devices, as after `systemctl daemon-reload`: recreate it"
    " (playbooks/stop.yml, then prep.yml), and run `nvidia-ctk system create-dev-char-symlinks"
    " --create-all` as root on the host, so that it does not come again"
)
_RESET = "see its Xid in dmesg on the host, and reset the GPU (nvidia-smi --gpu-reset) or reboot"
# What helps where NVML fails as a whole.
_REMEDIES = {
    "NVMLError_LibRmVersionMismatch": (
        "the driver was updated under the running system: reboot the host, or load its new modules,"
        " and recreate the container"
    ),
    "NVMLError_GpuIsLost": _RESET,
    "NVMLError_ResetRequired": _RESET,
    "NVMLError_NoPermission": (
        "this container's user may not open the GPU's device files (/dev/nvidia0): recreate it"
        " (playbooks/stop.yml, then prep.yml), which gives it the files' group, or have the driver"
        " open them to all (NVreg_DeviceFileMode=0666)"
    ),
    "NVMLError_Unknown": _RECREATE,
    "NVMLError_OperatingSystem": _RECREATE,
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


@dataclass(frozen=True)
class GpuSample:
    """A GPU's state at one moment; None, or nothing, for values that it does not report."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttles: tuple[str, ...]
    # Since the driver was loaded, or the GPU reset.
    uncorrectable: int | None
    # Xid errors that came since the sample before.
    xids: tuple[int, ...] = ()
    # The highest that this GPU is made for.
    most_sm_mhz: int | None = None


def find(visible: str | None = None) -> Devices:
    """The devices that a server started from here would see; `visible` is its
    CUDA_VISIBLE_DEVICES, by default this process's own.

    Raises GpuUnavailable where an NVIDIA driver is there and NVML fails, or where MIG is on for
    a GPU. Values that NVML does not give here are None.
    """
    if not CONTROL.exists():
        return Devices(name="cpu", count=1, cuda=False, cpu_isa=_cpu_isa())
    with _nvml() as nvml:
        gpus = list(_visible(nvml, visible))
        if not gpus:
            raise GpuUnavailable(
                "NVML shows no GPU here: is the container started with its GPUs, and does"
                " CUDA_VISIBLE_DEVICES name one?"
            )
        for gpu in gpus:
            _refuse_mig(nvml, gpu)
        names = [_answer(nvml, nvml.nvmlDeviceGetName, gpu) for gpu in gpus]
        cuda = _libcuda_version() or _answer(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        capability = _answer(nvml, nvml.nvmlDeviceGetCudaComputeCapability, gpus[0])
        return Devices(
            name=_name(nvml, gpus[0]),
            count=len(gpus),
            cuda=True,
            compute_capability=".".join(map(str, capability)) if capability else None,
            driver_version=_answer(nvml, nvml.nvmlSystemGetDriverVersion),
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            kinds=tuple(dict.fromkeys(filter(None, names))),
        )


def _libcuda_version() -> int | None:
    """The CUDA of the libcuda that this container's programs load, as CUDA counts it: the driver's,
    or that of the image's compatibility libraries, of which NVML need not know. None where there is
    none to ask. No GPU is opened for it.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value if not failed and version.value > 0 else None


def _refuse_mig(nvml: Any, gpu: Any) -> None:
    """Raises GpuUnavailable where MIG is on; a GPU without MIG has no such mode."""
    mode = _answer(nvml, nvml.nvmlDeviceGetMigMode, gpu)
    if mode is None or not mode[0]:
        return
    # By its UUID: its number here need not be the host's.
    uuid = _answer(nvml, nvml.nvmlDeviceGetUUID, gpu) or "its UUID"
    raise GpuUnavailable(
        f"MIG is on for GPU {uuid} ({_name(nvml, gpu)}), and its kernels would be tuned for a slice"
        f" of it: turn it off on the host (nvidia-smi -i {uuid} -mig 0), or hide that GPU"
        " (CUDA_VISIBLE_DEVICES)"
    )


def _name(nvml: Any, gpu: Any) -> str:
    """The product's name. Kernels are shared by it, so GPUs that do not tell theirs share none."""
    name: str | None = _answer(nvml, nvml.nvmlDeviceGetName, gpu)
    if name is not None:
        return name
    return f"NVIDIA GPU {_answer(nvml, nvml.nvmlDeviceGetUUID, gpu) or 'of unknown name'}"


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
            for process in _answer(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or ():
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
        return [
            GpuProcess(pid, _process_name(nvml, pid), memory // _MIB)
            for pid, memory in held.items()
            if memory >= least_mib * _MIB and _group(pid) not in own
        ]


def memory(visible: str | None = None) -> list[tuple[int, int]]:
    """Of each visible GPU that tells, how many MiB of its memory are free, and how many it has."""
    with _nvml() as nvml:
        answers = [
            _answer(nvml, nvml.nvmlDeviceGetMemoryInfo, gpu) for gpu in _visible(nvml, visible)
        ]
    return [(each.free // _MIB, each.total // _MIB) for each in answers if each is not None]


def throttles(visible: str | None = None) -> list[str]:
    """What holds the first GPU's clocks down now, in words."""
    with _nvml() as nvml:
        gpu = next(_visible(nvml, visible), None)
        return [] if gpu is None else _throttles(nvml, gpu)


def _throttles(nvml: Any, gpu: Any) -> list[str]:
    reasons = _answer(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)
    return [words for bit, words in _THROTTLES.items() if (reasons or 0) & bit]


def named(visible: str | None = None) -> list[tuple[str | None, str]]:
    """Of each visible GPU its identity, by which CUDA_VISIBLE_DEVICES may name it, and its
    product's name.
    """
    with _nvml() as nvml:
        return [
            (_answer(nvml, nvml.nvmlDeviceGetUUID, gpu), _name(nvml, gpu))
            for gpu in _visible(nvml, visible)
        ]


def settings(visible: str | None = None) -> list[dict[str, Any]]:
    """Of each visible GPU, what may change how fast it is: its identity, VBIOS and power limit."""
    with _nvml() as nvml:
        return [
            {
                "uuid": _answer(nvml, nvml.nvmlDeviceGetUUID, gpu),
                "vbios": _answer(nvml, nvml.nvmlDeviceGetVbiosVersion, gpu),
                "power_limit_w": _watts(_answer(nvml, nvml.nvmlDeviceGetPowerManagementLimit, gpu)),
            }
            for gpu in _visible(nvml, visible)
        ]


def untold(visible: str | None = None) -> list[str]:
    """What the visible GPUs do not tell of that by which a disturbance is seen, in words."""
    with _nvml() as nvml:
        return [
            f"GPU {index} does not tell {words}"
            for index, gpu in enumerate(_visible(nvml, visible))
            for words, question in (
                ("what holds its clocks down", nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
                ("which processes use it", nvml.nvmlDeviceGetComputeRunningProcesses),
            )
            if _answer(nvml, question, gpu) is None
        ]


@contextlib.contextmanager
def watching(visible: str | None = None) -> Iterator[Callable[[], list[GpuSample]]]:
    """Samples the visible GPUs at each call. Raises GpuUnavailable where NVML fails meanwhile, as
    of a GPU that is lost.
    """
    with _nvml() as nvml:
        gpus = list(_visible(nvml, visible))
        with _xids(nvml, gpus) as came:
            yield lambda: [_sample(nvml, gpu, xids) for gpu, xids in zip(gpus, came(), strict=True)]


@contextlib.contextmanager
def _xids(nvml: Any, gpus: list[Any]) -> Iterator[Callable[[], list[tuple[int, ...]]]]:
    """Of each GPU the Xid errors that came since the last call; none of one that tells none."""
    events = _answer(nvml, nvml.nvmlEventSetCreate)
    if events is None:
        yield lambda: [()] * len(gpus)
        return

    def told(gpu: Any) -> bool:
        nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
        return True

    try:
        # A wait for no GPU's events is an error.
        numbers = {
            _answer(nvml, nvml.nvmlDeviceGetIndex, gpu): number
            for number, gpu in enumerate(gpus)
            if _answer(nvml, told, gpu)
        }

        def came() -> list[tuple[int, ...]]:
            found: list[list[int]] = [[] for _ in gpus]
            for event in _waiting(nvml, events) if numbers else ():
                number = numbers.get(_answer(nvml, nvml.nvmlDeviceGetIndex, event.device))
                if number is not None:
                    found[number].append(event.eventData)
            return list(map(tuple, found))

        yield came
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlEventSetFree(events)


def _waiting(nvml: Any, events: Any) -> Iterator[Any]:
    """Events that came already, but no more at once than a broken driver could tell."""
    for _ in range(_MOST_EVENTS):
        try:
            event = _answer(nvml, nvml.nvmlEventSetWait_v2, events, 0)
        except nvml.NVMLError_Timeout:
            return
        if event is None:
            return
        yield event


def _sample(nvml: Any, gpu: Any, xids: tuple[int, ...]) -> GpuSample:
    return GpuSample(
        sm_mhz=_answer(nvml, nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
        memory_mhz=_answer(nvml, nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
        power_w=_watts(_answer(nvml, nvml.nvmlDeviceGetPowerUsage, gpu)),
        temperature_c=_answer(nvml, nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
        throttles=tuple(_throttles(nvml, gpu)),
        uncorrectable=_answer(
            nvml,
            nvml.nvmlDeviceGetTotalEccErrors,
            gpu,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        xids=xids,
        most_sm_mhz=_answer(nvml, nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM),
    )


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def _answer(nvml: Any, question: Callable[..., _T], *of: Any) -> _T | None:
    """NVML's answer; None where it cannot be asked that here. Raises NVMLError where it fails."""
    try:
        return question(*of)
    except Exception as error:
        if type(error).__name__ in _UNANSWERED or isinstance(error, UnicodeDecodeError):
            return None
        raise


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, initialised. Raises GpuUnavailable where it cannot be, or where it fails."""
    try:
        import pynvml
    except ImportError as error:
        raise GpuUnavailable(
            "an NVIDIA driver is here, but this image lacks nvidia-ml-py, which names the GPU"
        ) from error
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, getattr(pynvml, _MISMATCH, pynvml.NVMLError)) as error:
        remedy = _REMEDIES.get(
            type(error).__name__, "is the container started with its GPUs (nvidia-smi in it)?"
        )
        raise GpuUnavailable(f"NVML does not answer: {error}; {remedy}") from error


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
        except (nvml.NVMLError_InvalidArgument, nvml.NVMLError_NotFound):
            gpu = None
        if gpu is None:
            # CUDA takes a name that it does not know for the end of the list.
            return
        yield gpu


def _every(nvml: Any) -> Iterator[Any]:
    return (nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount()))


def _by_uuid(nvml: Any, name: str) -> Any | None:
    """CUDA takes the beginning of a UUID too, where one GPU alone has it; NVML takes whole ones."""
    found = [
        gpu
        for gpu in _every(nvml)
        if (_answer(nvml, nvml.nvmlDeviceGetUUID, gpu) or "").startswith(name)
    ]
    return found[0] if len(found) == 1 else None


def _process_name(nvml: Any, pid: int) -> str:
    name = _answer(nvml, nvml.nvmlSystemGetProcessName, pid)
    return "a process of another container" if name is None else str(name).rpartition("/")[2]


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
