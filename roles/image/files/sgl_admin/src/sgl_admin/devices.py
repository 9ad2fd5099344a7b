"""Which devices the kernels are for: NVIDIA GPUs by NVML, or the CPU where there is none."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Devices:
    name: str
    count: int
    cuda: bool
    compute_capability: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    # What the compiler may assume of the CPU: Inductor's C++ kernels depend on it, and on nothing else of the CPU.
    cpu_isa: str | None = None
    cpu_arch: str = platform.machine()


def find() -> Devices:
    """The host's devices as this process sees them. Raises RuntimeError where an NVIDIA driver is there and NVML fails."""
    if not Path("/dev/nvidiactl").exists():
        return Devices(name="cpu", count=1, cuda=False, cpu_isa=_cpu_isa())
    try:
        import pynvml
    except ImportError as error:
        raise RuntimeError("an NVIDIA driver is here, but this image lacks nvidia-ml-py, which names the GPU") from error
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return Devices(
            name=pynvml.nvmlDeviceGetName(handle),
            count=pynvml.nvmlDeviceGetCount(),
            cuda=True,
            compute_capability=".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
            driver_version=pynvml.nvmlSystemGetDriverVersion(),
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}",
        )
    except pynvml.NVMLError as error:
        raise RuntimeError(f"NVML does not answer: {error}; is the container started with its GPUs?") from error


def _cpu_isa() -> str:
    """The widest vector extension that Inductor generates code for (torch/_inductor/cpu_vec_isa.py looks for these)."""
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
