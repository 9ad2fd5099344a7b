# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where everything lies: the host tree, its places in the container, caches and locks."""

from __future__ import annotations

from dataclasses import dataclass

ROOT_NAME = "sglang-observability"
HOME = "/home/devuser"


@dataclass(frozen=True)
class Mount:
    """A folder of the host tree that the container sees.

    `folder` is its name in the tree, `target` its path in the container, `variable` the
    container's environment variable that names the host's path.
    """

    folder: str
    target: str
    variable: str


MOUNTS = (
    Mount("telemetry", "/telemetry", "SGL_HOST_TELEMETRY_ROOT"),
    Mount("profiles", "/profiles", "SGL_HOST_PROFILES_ROOT"),
    Mount("models", "/models", "SGL_HOST_MODELS_ROOT"),
    Mount("huggingface", f"{HOME}/.cache/huggingface", "SGL_HOST_HF_ROOT"),
)

POINTER = "container_run_meta.env"
RUNS, LOGS, PROMETHEUS, JAEGER = "container_runs", "logs", "prometheus", "jaeger"
TELEMETRY_FOLDERS = (RUNS, LOGS, PROMETHEUS, JAEGER)
LOCKS, IN_PROGRESS, INCOMING, REBUILDING = ".locks", ".in_progress", ".incoming", ".rebuilding"
# Locks by what is held: each is a file <name>.lock in LOCKS.
LOCK_PREP, LOCK_SMOKE, LOCK_SERVER, LOCK_SERVING = "prep", "smoke", "server", "serving"

# Each cache, a folder of profiles/, with the environment variables that lead its writers there.
CACHES: dict[str, tuple[str, ...]] = {
    "triton": ("TRITON_CACHE_DIR",),
    "torchinductor": ("TORCHINDUCTOR_CACHE_DIR",),
    "flashinfer": ("FLASHINFER_WORKSPACE_BASE",),
    # Older releases of SGLang read the second name.
    "deep_gemm": ("SGLANG_DG_CACHE_DIR", "SGL_DG_CACHE_DIR"),
    # SGLang's own JIT kernels: built by tvm-ffi up to 0.5.17, by SGLang itself in 0.5.23.
    "tvm_ffi": ("TVM_FFI_CACHE_DIR", "SGLANG_JIT_CACHE_DIR"),
    # SGLANG_MOE_CONFIG_DIR replaces SGLang's own files, so it is set for single servers only.
    "moe_configs": (),
}
CACHE_VARIABLES = {variable: cache for cache, names in CACHES.items() for variable in names}
PROFILES_FOLDERS = (*CACHES, "moe_configs/configs", LOCKS, IN_PROGRESS)
