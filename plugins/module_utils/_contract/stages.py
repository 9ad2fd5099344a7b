# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The stages of a prep, in their order."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("ensure", "rebuild", "skip")
PROBES = ("auto", "always", "never")


@dataclass(frozen=True)
class Stage:
    """A stage as callers know it.

    `option` is its key in sgl_stages and, with dashes, its flag; `caches` are folders of profiles/
    that it fills; `exit_code` is what sgl-admin ends with when this stage is the first that failed;
    `skipped_by` is the flag of `slice_bench provider-prep` that leaves it out; `default` is its
    mode where none is named; `shared` says whether one host's work stands for others.
    """

    name: str
    option: str
    caches: tuple[str, ...]
    exit_code: int
    text: str
    skipped_by: str = ""
    default: str = "ensure"
    shared: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.option.replace('_', '-')}"


STAGES = (
    Stage("deep_gemm", "deep_gemm", ("deep_gemm",), 10, "DeepGEMM's kernels", "--skip-gemm-cache"),
    Stage(
        "moe_tune",
        "moe",
        ("moe_configs",),
        11,
        "tuned configurations of the mixture-of-experts kernel",
    ),
    Stage(
        "flashinfer",
        "flashinfer",
        ("flashinfer", "tvm_ffi", "tilelang", "cute_dsl"),
        12,
        "FlashInfer's kernels",
        "--skip-warmup-cache",
    ),
    Stage(
        "inductor",
        "inductor",
        ("torchinductor", "triton", "sglang", "torch", "cuda"),
        13,
        "TorchInductor's and Triton's kernels",
        "--skip-warmup-cache",
    ),
    Stage(
        "perf",
        "perf",
        ("perf",),
        14,
        "the measurement of whether the host is as fast as it should be",
        default="skip",
        shared=False,
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
SHARED = tuple(stage.name for stage in STAGES if stage.shared)
OPTIONS = {stage.name: stage.option for stage in STAGES}
BY_NAME = {stage.name: stage for stage in STAGES}
# The stage whose in-progress marker speaks for a cache.
STAGE_OF_CACHE = {cache: stage.name for stage in STAGES for cache in stage.caches}
ERROR_TYPES = (
    "permissions_unexpected",
    "insufficient_disk",
    "lock_timeout",
    "port_busy",
    "gpu_busy",
    "oom",
    "compile_failed",
    "tuner_failed",
    "config_missing",
    "server_start_failed",
    "server_unhealthy_timeout",
    "request_failed",
    "measurement_failed",
    "too_slow",
    "cleanup_failed",
    "interrupted",
    "unsupported",
)
