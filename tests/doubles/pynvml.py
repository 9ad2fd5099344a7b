"""Stands for nvidia-ml-py 13.615.71, the Python names of NVIDIA's management library (NVML), on a
machine without a GPU.

The environment variable SGL_TEST_NVML names a JSON file, read at each call, that says what the
machine has; each key may be left out:

    driver          580.159.04
    cuda            13000: the newest CUDA that the driver runs, as NVML counts it
    gpus            [{"name", "uuid", "memory": [free, total] in bytes, "capability": [9, 0],
                    "mig": 0, 1 or null where the GPU cannot do it, "throttle": a bit mask,
                    "vbios", "power_limit" and "power" in milliwatts, "temperature",
                    "clocks", "most_clocks": MHz by NVML's number of the clock,
                    "uncorrectable": ECC errors,
                    "xids": those since boot; there are events of those that came after a GPU was
                    registered for them,
                    "processes": [{"pid", "memory": bytes, or null where the driver does not
                    tell}]}], by default one H100
    process_names   pid -> path; of any other process NVML knows no name, as of one outside the
                    container's process ids
    fails           name of a function -> name of the error that it raises: {"nvmlInit":
                    "DriverNotLoaded"}, or "LibraryMismatch"

As the real one, a call before nvmlInit or after nvmlShutdown raises NVMLError_Uninitialized. It is
loaded through PYTHONPATH.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "SGL_TEST_NVML"
GPU: dict[str, Any] = {
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-c5533cd4-5a60-059e-348d-b6d7466932e4",
    "capability": [9, 0],
    "memory": [80 << 30, 80 << 30],
    "mig": 0,
    "throttle": 0,
    "vbios": "96.00.89.00.01",
    "power_limit": 700_000,
    "power": 120_000,
    "temperature": 34,
    "clocks": {"1": 1980, "2": 2619},
    "most_clocks": {"1": 1980, "2": 2619},
    "uncorrectable": 0,
    "xids": [],
    "processes": [],
}
_initialised = 0


class NVMLError(Exception):
    """As nvidia-ml-py makes it: a class for each code, which is made without arguments."""

    value, text = 999, ""

    def __str__(self) -> str:
        return self.text or f"NVML Error with code {self.value}"


class NVMLLibraryMismatchError(Exception):
    """Raised in place of NVMLError_FunctionNotFound by functions that come in versions; it is no
    NVMLError.
    """


# Taken from the real module, with their codes and words.
_ERRORS = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "nvml_errors.json").read_text(encoding="utf-8")
)["errors"]
for _name, (_value, _text) in _ERRORS.items():
    globals()[_name] = type(_name, (NVMLError,), {"value": _value, "text": _text or ""})


@dataclass(frozen=True)
class Handle:
    """What NVML gives for a GPU: only good to be handed back."""

    number: int


@dataclass(frozen=True)
class c_nvmlProcessInfo_t:
    pid: int
    usedGpuMemory: int | None


def _error(name: str) -> Exception:
    if name == "LibraryMismatch":
        return NVMLLibraryMismatchError("Unversioned function called")
    error: Exception = globals()[f"NVMLError_{name}"]()
    return error


def _machine(function: str) -> dict[str, Any]:
    machine = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    if error := machine.get("fails", {}).get(function):
        raise _error(error)
    if not _initialised and function != "nvmlInit":
        raise _error("Uninitialized")
    return {"driver": "580.159.04", "cuda": 13000, "gpus": [{}], "process_names": {}, **machine}


def _gpu(function: str, handle: Handle) -> dict[str, Any]:
    assert isinstance(handle, Handle), f"{function} takes what nvmlDeviceGetHandleBy... gave"
    return {**GPU, **_machine(function)["gpus"][handle.number]}


@dataclass(frozen=True)
class c_nvmlMemory_t:
    total: int
    free: int
    used: int


def nvmlDeviceGetMemoryInfo(handle: Handle) -> c_nvmlMemory_t:
    free, total = _gpu("nvmlDeviceGetMemoryInfo", handle)["memory"]
    return c_nvmlMemory_t(total, free, total - free)


def nvmlInit() -> None:
    global _initialised
    _machine("nvmlInit")
    _initialised += 1


def nvmlShutdown() -> None:
    global _initialised
    _machine("nvmlShutdown")
    _initialised -= 1


def nvmlSystemGetDriverVersion() -> str:
    return str(_machine("nvmlSystemGetDriverVersion")["driver"])


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return int(_machine("nvmlSystemGetCudaDriverVersion_v2")["cuda"])


def nvmlSystemGetProcessName(pid: int) -> str:
    names = _machine("nvmlSystemGetProcessName")["process_names"]
    if str(pid) not in names:
        raise _error("NotFound")
    return str(names[str(pid)])


def nvmlDeviceGetCount() -> int:
    return len(_machine("nvmlDeviceGetCount")["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    if index not in range(len(_machine("nvmlDeviceGetHandleByIndex")["gpus"])):
        raise _error("InvalidArgument")
    return Handle(index)


def nvmlDeviceGetHandleByUUID(uuid: str) -> Handle:
    """By the whole UUID, not by its beginning."""
    for number, gpu in enumerate(_machine("nvmlDeviceGetHandleByUUID")["gpus"]):
        if {**GPU, **gpu}["uuid"] == uuid:
            return Handle(number)
    raise _error("NotFound")


def nvmlDeviceGetName(handle: Handle) -> str:
    return str(_gpu("nvmlDeviceGetName", handle)["name"])


def nvmlDeviceGetUUID(handle: Handle) -> str:
    return str(_gpu("nvmlDeviceGetUUID", handle)["uuid"])


def nvmlDeviceGetIndex(handle: Handle) -> int:
    _gpu("nvmlDeviceGetIndex", handle)
    return handle.number


def nvmlDeviceGetCudaComputeCapability(handle: Handle) -> tuple[int, int]:
    major, minor = _gpu("nvmlDeviceGetCudaComputeCapability", handle)["capability"]
    return major, minor


def nvmlDeviceGetMigMode(handle: Handle) -> list[int]:
    """The mode now, and the one after the next reset."""
    mode = _gpu("nvmlDeviceGetMigMode", handle)["mig"]
    if mode is None:
        raise _error("NotSupported")
    return [mode, mode]


def nvmlDeviceGetComputeRunningProcesses(handle: Handle) -> list[c_nvmlProcessInfo_t]:
    found = _gpu("nvmlDeviceGetComputeRunningProcesses", handle)["processes"]
    return [c_nvmlProcessInfo_t(process["pid"], process["memory"]) for process in found]


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: Handle) -> int:
    return int(_gpu("nvmlDeviceGetCurrentClocksThrottleReasons", handle)["throttle"])


# nvml.h: NVML_CLOCK_SM 1, NVML_CLOCK_MEM 2, NVML_TEMPERATURE_GPU 0,
# NVML_MEMORY_ERROR_TYPE_UNCORRECTED 1, NVML_VOLATILE_ECC 0.
NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
NVML_TEMPERATURE_GPU = 0
NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0


def nvmlDeviceGetVbiosVersion(handle: Handle) -> str:
    return str(_gpu("nvmlDeviceGetVbiosVersion", handle)["vbios"])


def nvmlDeviceGetPowerManagementLimit(handle: Handle) -> int:
    return int(_gpu("nvmlDeviceGetPowerManagementLimit", handle)["power_limit"])


def nvmlDeviceGetPowerUsage(handle: Handle) -> int:
    return int(_gpu("nvmlDeviceGetPowerUsage", handle)["power"])


def nvmlDeviceGetTemperature(handle: Handle, sensor: int) -> int:
    assert sensor == NVML_TEMPERATURE_GPU
    return int(_gpu("nvmlDeviceGetTemperature", handle)["temperature"])


def nvmlDeviceGetClockInfo(handle: Handle, clock: int) -> int:
    return int(_gpu("nvmlDeviceGetClockInfo", handle)["clocks"][str(clock)])


def nvmlDeviceGetMaxClockInfo(handle: Handle, clock: int) -> int:
    return int(_gpu("nvmlDeviceGetMaxClockInfo", handle)["most_clocks"][str(clock)])


def nvmlDeviceGetTotalEccErrors(handle: Handle, kind: int, counter: int) -> int:
    assert (kind, counter) == (NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC)
    return int(_gpu("nvmlDeviceGetTotalEccErrors", handle)["uncorrectable"])


# --- events

# nvml.h.
nvmlEventTypeXidCriticalError = 0x8


@dataclass(frozen=True)
class c_nvmlEventData_t:
    device: Handle
    eventType: int
    eventData: int


# By GPU, how many of its Xids are known to an event set.
EventSet = dict[int, int]


def nvmlEventSetCreate() -> EventSet:
    _machine("nvmlEventSetCreate")
    return {}


def nvmlDeviceRegisterEvents(handle: Handle, types: int, events: EventSet) -> None:
    assert types == nvmlEventTypeXidCriticalError
    events[handle.number] = len(_gpu("nvmlDeviceRegisterEvents", handle)["xids"])


def nvmlEventSetWait_v2(events: EventSet, timeout_ms: int) -> c_nvmlEventData_t:
    assert timeout_ms == 0, "a sample does not wait"
    _machine("nvmlEventSetWait_v2")
    if not events:
        raise _error("InvalidArgument")
    for number, known in events.items():
        xids = _gpu("nvmlEventSetWait_v2", Handle(number))["xids"]
        if len(xids) > known:
            events[number] = known + 1
            return c_nvmlEventData_t(Handle(number), nvmlEventTypeXidCriticalError, xids[known])
    raise _error("Timeout")


def nvmlEventSetFree(events: EventSet) -> None:
    _machine("nvmlEventSetFree")
    events.clear()
