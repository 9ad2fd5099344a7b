"""Stands for nvidia-ml-py, the Python names of NVIDIA's management library (NVML), on a machine
without a GPU.

The environment variable SGL_TEST_NVML names a JSON file, read at each call, that says what the
machine has; each key may be left out:

    driver          580.159.04
    cuda            13000: the newest CUDA that the driver runs, as NVML counts it
    gpus            [{"name", "uuid", "capability": [9, 0], "mig": 0, 1 or null where the GPU cannot
                    do it, "throttle": a bit mask, "processes": [{"pid", "memory": bytes, or null
                    where the driver does not tell}]}], by default one H100
    process_names   pid -> path; of any other process NVML knows no name, as of one outside the
                    container's process ids
    fails           name of a function -> name of the error that it raises: {"nvmlInit":
                    "DriverNotLoaded"}

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
    "mig": 0,
    "throttle": 0,
    "processes": [],
}
_initialised = 0


class NVMLError(Exception):
    """As NVML words it; the classes below are those that its callers meet here."""

    text = "Unknown Error"

    def __str__(self) -> str:
        return self.text


class NVMLError_Uninitialized(NVMLError):
    text = "Uninitialized"


class NVMLError_InvalidArgument(NVMLError):
    text = "Invalid Argument"


class NVMLError_NotSupported(NVMLError):
    text = "Not Supported"


class NVMLError_NotFound(NVMLError):
    text = "Not Found"


class NVMLError_DriverNotLoaded(NVMLError):
    text = "Driver Not Loaded"


class NVMLError_LibRmVersionMismatch(NVMLError):
    text = "RM has detected an NVML/RM version mismatch."


class NVMLError_GpuIsLost(NVMLError):
    text = "GPU is lost"


@dataclass(frozen=True)
class Handle:
    """What NVML gives for a GPU: only good to be handed back."""

    number: int


@dataclass(frozen=True)
class c_nvmlProcessInfo_t:
    pid: int
    usedGpuMemory: int | None


def _machine(function: str) -> dict[str, Any]:
    machine = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    if error := machine.get("fails", {}).get(function):
        raise globals()[f"NVMLError_{error}"]
    if not _initialised and function != "nvmlInit":
        raise NVMLError_Uninitialized
    return {"driver": "580.159.04", "cuda": 13000, "gpus": [{}], "process_names": {}, **machine}


def _gpu(function: str, handle: Handle) -> dict[str, Any]:
    assert isinstance(handle, Handle), f"{function} takes what nvmlDeviceGetHandleBy... gave"
    return {**GPU, **_machine(function)["gpus"][handle.number]}


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
        raise NVMLError_NotFound
    return str(names[str(pid)])


def nvmlDeviceGetCount() -> int:
    return len(_machine("nvmlDeviceGetCount")["gpus"])


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    if index not in range(len(_machine("nvmlDeviceGetHandleByIndex")["gpus"])):
        raise NVMLError_InvalidArgument
    return Handle(index)


def nvmlDeviceGetHandleByUUID(uuid: str) -> Handle:
    """By the whole UUID, not by its beginning."""
    for number, gpu in enumerate(_machine("nvmlDeviceGetHandleByUUID")["gpus"]):
        if {**GPU, **gpu}["uuid"] == uuid:
            return Handle(number)
    raise NVMLError_NotFound


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
        raise NVMLError_NotSupported
    return [mode, mode]


def nvmlDeviceGetComputeRunningProcesses(handle: Handle) -> list[c_nvmlProcessInfo_t]:
    found = _gpu("nvmlDeviceGetComputeRunningProcesses", handle)["processes"]
    return [c_nvmlProcessInfo_t(process["pid"], process["memory"]) for process in found]


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: Handle) -> int:
    return int(_gpu("nvmlDeviceGetCurrentClocksThrottleReasons", handle)["throttle"])
