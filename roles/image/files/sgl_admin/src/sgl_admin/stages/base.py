"""What a stage is: when it does not apply, what its work depends on, which caches it fills, and the work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin import versions
from sgl_admin.devices import Devices
from sgl_admin.model import Model

if TYPE_CHECKING:
    from sgl_admin.releases import Release
    from sgl_admin.request import Request
    from sgl_admin.warmup import Warmup

# The server's flags that choose kernels, by how their names begin; all others (context length, memory, ports, names) change no cache.
_KERNEL_FLAGS = (
    "--attention-backend", "--prefill-attention-backend", "--decode-attention-backend", "--sampling-backend", "--kv-cache-dtype",
    "--moe-", "--fp8-gemm", "--fp4-gemm", "--quantization", "--dtype", "--enable-torch-compile", "--torch-compile", "--speculative-",
    "--disable-cuda-graph", "--disable-shared-experts-fusion", "--ep-size", "--ep", "--expert-parallel-size", "--page-size", "--mamba",
    "--linear-attn", "--chunked-prefill-size", "--enable-deterministic", "--device", "--grammar-backend", "--json-model-override-args",
)  # fmt: skip
# The numbers of a model's config that are sizes of its matrices.
_SIZES = re.compile(r"(_size|_heads|_dim|_rank|_experts|_experts_per_tok|_head_num|_groups?)$")


@dataclass(frozen=True)
class Context:
    """All that a stage may know."""

    request: Request
    model: Model
    devices: Devices
    batch_sizes: tuple[int, ...]
    warmup: Warmup
    progress: Callable[[int, int, str, str], None]
    # Of the server, beside its model and its port.
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    release: Release | None = None
    # Told the process group of what a stage starts itself, None when it has ended.
    on_group: Callable[[int | None], None] = lambda group: None


class Stage:
    """One stage. Subclasses set `name` and `caches` and override what differs."""

    name: str
    caches: tuple[str, ...]

    def skip_reason(self, context: Context) -> str | None:
        """Why this stage does not apply here, by the contract's list; None when it does."""
        return None if context.devices.cuda else "no_cuda_device"

    def unsupported(self, context: Context) -> str | None:
        """Why this stage's work, which is wanted, cannot be done for such a model, in words; it has no signature then."""
        return None

    def signature(self, context: Context) -> dict[str, Any]:
        """All that changes this stage's cache, and nothing else; what every stage shares."""
        return {
            "schema_version": "1",
            "stage": self.name,
            "device_name": context.devices.name,
            "compute_capability": context.devices.compute_capability,
            "cpu_arch": context.devices.cpu_arch,
            "sglang": versions.installed("sglang"),
        }

    def lacking(self, context: Context) -> str | None:
        """What is wanted beyond the signature and is not there, in words; None when nothing is."""
        return None

    def run(self, context: Context) -> dict[str, Any]:
        """Do the work; returns artifacts beyond the files. Raises StageFailure."""
        raise NotImplementedError

    def content(self, context: Context) -> Iterable[Path] | None:
        """The files that its work is; None for all that its caches hold."""
        return None

    def standing(self, context: Context) -> dict[str, Any]:
        """Artifacts beyond the files of work that stands: what a no-op reports."""
        return {}

    @property
    def option(self) -> str:
        """The command-line flag without its dashes."""
        return self.name.replace("_", "-")


def kernel_arguments(arguments: tuple[str, ...]) -> list[str]:
    """Those of the server's arguments that choose kernels, with their values, sorted."""
    chosen: list[str] = []
    taking = False
    for word in arguments:
        if word.startswith("--"):
            taking = word.partition("=")[0].startswith(_KERNEL_FLAGS)
            if taking:
                chosen.append(word)
        elif taking:
            chosen[-1] += f" {word}"
    return sorted(chosen)


def matrix_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a model's config gives, and how its weights are quantised; nested configs by their names."""
    found: dict[str, Any] = {}
    for name, value in sorted(config.items()):
        if type(value) is int and _SIZES.search(name):
            found[name] = value
        elif isinstance(value, dict) and name.endswith("_config") and name != "quantization_config" and (nested := matrix_sizes(value)):
            found[name] = nested
    quantisation = config.get("quantization_config")
    if isinstance(quantisation, dict):
        found["quantization"] = {key: quantisation.get(key) for key in ("quant_method", "weight_block_size", "activation_scheme")}
    return found
