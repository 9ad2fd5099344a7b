"""What differs between releases of SGLang, in one place: names of flags, of modules and of places.

Seen in the releases that each row is named after (their packages and, for what is the same in all,
docs/decisions/gpu-stages.md). Between two rows the older one counts; a release newer than the last
row is taken for it, with a warning. What the log of a server says (moe_configs.py) always has the
last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin.contract.model.config import architecture_name
from sgl_admin.sglang import moe_configs, packages, tracing

if TYPE_CHECKING:
    from sgl_admin.sglang.fused_experts import FusedExperts

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NO_FUSION_FLAG = "--disable-shared-experts-fusion"


@dataclass(frozen=True)
class Release:
    since: tuple[int, int, int]
    # Batch sizes that CUDA graphs are captured for when decoding.
    cuda_graph_flag: str
    # Where SGLang's traces go.
    otlp_flag: str
    # The module of `fused_experts`, and the one that looks its configurations up.
    fused_moe: str
    moe_look_up: str
    # The module of the Triton kernels that `fused_experts` launches.
    kernels: str
    # The folder in the package whose `configs` holds the MoE configurations that come with it.
    moe_configs: str
    # How many shared experts the server fuses into the routed ones, by the model's config and the
    # ranks of expert parallelism.
    fused_shared: Callable[[dict[str, Any], int], int]
    # Methods of quantisation whose fused experts may lack the gate (`MoeRunnerConfig.is_gated`, in
    # `create_weights` of each); all others make room for one. The empty one quantises nothing.
    ungated: tuple[str, ...] = ("", "modelopt_fp8")
    # Whether configurations of the down projection alone are read, and whether the up projection
    # can load by TMA (USE_TMA in its own).
    down_files: bool = True
    up_tma: bool = False

    def cuda_graph_arguments(self, batch_sizes: tuple[int, ...]) -> list[str]:
        return [self.cuda_graph_flag, *map(str, batch_sizes)] if batch_sizes else []

    def tracing_arguments(self, manifest: dict[str, Any]) -> list[str]:
        return tracing.arguments(manifest, self.otlp_flag)

    def fused_shared_experts(
        self, config: dict[str, Any], server_args: tuple[str, ...], ranks: int = 1
    ) -> int:
        return 0 if _NO_FUSION_FLAG in server_args else self.fused_shared(config, ranks)

    def built_in_moe_configs(self) -> Path | None:
        package = packages.folder()
        return package / self.moe_configs / moe_configs.FOLDER if package else None

    def fused_experts(
        self, experts: int, everywhere: int | None = None, gated: bool = True
    ) -> FusedExperts:
        # Not above: only the tuner's process needs it, and `inspect` is slow to import.
        from sgl_admin.sglang.fused_experts import FusedExperts

        return FusedExperts(self.fused_moe, self.moe_look_up, experts, everywhere or experts, gated)


def _deepseek(config: dict[str, Any], ranks: int) -> int:
    """Expert parallelism keeps the shared expert apart on NVIDIA GPUs."""
    architecture = architecture_name(config)
    if ranks > 1 or config.get("n_shared_experts") != 1:
        return 0
    if architecture in ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"):
        # Kimi-K2, of the same architecture with 384 experts, keeps it apart.
        return 1 if config.get("n_routed_experts") == 256 else 0
    return 1 if architecture == "Glm4MoeForCausalLM" else 0


def _deepseek_and_qwen_next(config: dict[str, Any], ranks: int) -> int:
    if architecture_name(config) == "Qwen3NextForCausalLM":
        # Where a shared expert is as large as a routed one; each rank has it.
        size = config.get("shared_expert_intermediate_size")
        return 1 if size and size == config.get("moe_intermediate_size") else 0
    return _deepseek(config, ranks)


_OLD_MOE = "sglang.srt.layers.moe.fused_moe_triton"
_NEW_MOE = "sglang.srt.layers.moe.moe_runner.triton_utils"
_SINCE_0_5_9 = Release(
    (0, 5, 9),
    "--cuda-graph-bs",
    "--otlp-traces-endpoint",
    f"{_OLD_MOE}.fused_moe",
    f"{_OLD_MOE}.fused_moe_triton_config",
    f"{_OLD_MOE}.fused_moe_triton_kernels",
    "srt/layers/moe/fused_moe_triton",
    _deepseek,
)
_SINCE_0_5_17 = Release(
    (0, 5, 17),
    "--cuda-graph-bs-decode",
    "--otlp-traces-endpoint",
    f"{_NEW_MOE}.fused_moe",
    f"{_NEW_MOE}.fused_moe_triton_config",
    "sglang.kernels.ops.moe.fused_moe_triton_kernels",
    "srt/layers/moe/moe_runner/triton_utils",
    _deepseek_and_qwen_next,
)
RELEASES = (
    replace(
        _SINCE_0_5_9,
        since=(0, 5, 3),
        otlp_flag="--oltp-traces-endpoint",
        ungated=(),
        down_files=False,
    ),
    _SINCE_0_5_9,
    _SINCE_0_5_17,
    # Read too, and the same but for TMA and the gate: what is newer than the last one gets a
    # warning.
    replace(_SINCE_0_5_17, since=(0, 5, 23), up_tma=True, ungated=("", "modelopt_fp8", "fp8")),
)


def installed() -> tuple[Release, str | None]:
    return of(packages.version())


def of(version: str | None) -> tuple[Release, str | None]:
    """The row of an installed version, and a warning where there is none for it."""
    newest, oldest = RELEASES[-1], RELEASES[0]
    found = _VERSION.match(version or "")
    if found is None or found[0] == "0.0.0":
        return newest, (
            f"unknown SGLang version {version}, assuming {_text(newest)}" if version else None
        )
    number = (int(found[1]), int(found[2]), int(found[3]))
    if number > newest.since:
        return newest, (
            f"SGLang {version} is newer than what is known here ({_text(newest)}): its flags and"
            " places are taken to be the same"
        )
    if number < oldest.since:
        return oldest, (
            f"SGLang {version} is older than what is known here ({_text(oldest)}): its flags and"
            " places may differ"
        )
    return next(release for release in reversed(RELEASES) if release.since <= number), None


def _text(release: Release) -> str:
    return ".".join(map(str, release.since))
