"""The command line of SGLang's server, and its environment on a GPU."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from sgl_admin.base import versions
from sgl_admin.base.engine import HOST
from sgl_admin.sglang import metrics, moe_configs

HOST_FLAG, PORT_FLAG = "--host", "--port"
_API_KEY_FLAG, _ADMIN_KEY_FLAG = "--api-key", "--admin-api-key"
_NODES_FLAG = "--nnodes"
_AUTH = "srt/utils/auth.py"


def command(model: str, tp: int, port: int, arguments: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--tp-size", str(tp),
        HOST_FLAG, HOST, PORT_FLAG, str(port), metrics.FLAG, *arguments,
    ]  # fmt: skip


def key_arguments(api_key: str, admin_key: str) -> list[str]:
    return [
        *([_API_KEY_FLAG, api_key] if api_key else []),
        *([_ADMIN_KEY_FLAG, admin_key] if admin_key else []),
    ]


def api_key(argv: list[str]) -> str | None:
    """The key that a server with this command line asks for; None where it asks for none."""
    return argv[argv.index(_API_KEY_FLAG) + 1] if _API_KEY_FLAG in argv else None


@functools.cache
def has_admin_key() -> bool:
    """Whether the installed release asks for a key of its own at its admin calls (SGLang 0.5.9 to
    0.5.23: srt/utils/auth.py).
    """
    folder = versions.package_folder("sglang")
    try:
        return folder is not None and "admin_api_key" in (folder / _AUTH).read_text("utf-8")
    except (OSError, ValueError):
        return False


def port(argv: list[str]) -> int:
    return int(argv[argv.index(PORT_FLAG) + 1])


def spans_hosts(argv: Sequence[str]) -> bool:
    """Whether a server with this command line is one of several nodes."""
    given = [
        word.partition("=")[2] or next(iter(argv[at + 1 : at + 2]), "")
        for at, word in enumerate(argv)
        if word.partition("=")[0] == _NODES_FLAG
    ]
    return bool(given) and given[-1] != "1"


def network_environment(argv: Sequence[str]) -> dict[str, str]:
    """Keeps the sockets of gloo and NCCL, which ask for no password, on loopback where all of the
    server is on this host. They take the address that the host's name resolves to
    (gloo/transport/tcp), and the first interface that is not loopback (NCCL's bootstrap).
    """
    return {} if spans_hosts(argv) else {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


def gpu_environment(configs: Path) -> dict[str, str]:
    # The order of the GPUs is the one that NVML, nvidia-smi and this package count by.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", moe_configs.VARIABLE: str(configs)}
