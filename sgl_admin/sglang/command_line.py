"""The command line of SGLang's server, and its environment on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from sgl_admin.base.engine import HOST
from sgl_admin.sglang import metrics, moe_configs

HOST_FLAG, PORT_FLAG = "--host", "--port"


def command(model: str, tp: int, port: int, arguments: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--tp-size", str(tp),
        HOST_FLAG, HOST, PORT_FLAG, str(port), metrics.FLAG, *arguments,
    ]  # fmt: skip


def port(argv: list[str]) -> int:
    return int(argv[argv.index(PORT_FLAG) + 1])


def gpu_environment(configs: Path) -> dict[str, str]:
    # The order of the GPUs is the one that NVML, nvidia-smi and this package count by.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", moe_configs.VARIABLE: str(configs)}
