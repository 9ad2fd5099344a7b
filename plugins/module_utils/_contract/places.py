# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where everything lies: the host tree, its places in the container, caches and locks."""

from __future__ import annotations

from dataclasses import dataclass

from .texts import one_line

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
# The file in a run's storage of Prometheus that it holds a lock on.
PROMETHEUS_LOCK = "lock"
# In telemetry: what was last asked for each profile that was proven.
PREPARED = ".prepared"
# With it, values that are not shown are digested in the records.
DIGEST_KEY = ".digest-key"
LOCKS, IN_PROGRESS, INCOMING, REBUILDING = ".locks", ".in_progress", ".incoming", ".rebuilding"
# In a cache: the records that vouch for its files.
SIGNATURES = ".signatures"
# Beside a record, with this ending in place of its own: when its work was last used.
USED = ".used"
# Locks by what is held: each is a file <name>.lock in LOCKS.
LOCK_PREP, LOCK_SMOKE, LOCK_SERVER, LOCK_SERVING = "prep", "smoke", "server", "serving"
# Those that are held while something runs in a run.
RUN_LOCKS = (LOCK_PREP, LOCK_SMOKE, LOCK_SERVER, LOCK_SERVING)
MOE_CONFIGS = "moe_configs"
# In it: what a tuning keeps while it lasts.
TUNING = ".tuning"

# Each cache, a folder of profiles/, with the environment variables that lead its writers there.
# Where each was read: SGLang 0.5.9, 0.5.17 and 0.5.23 (environ.py, third_party_cache_defaults),
# FlashInfer 0.7.2 (jit/env.py), TileLang 0.1.12 (env.py), flash-attn-4 4.0.0b18 and CUTLASS
# (cute/cache_utils.py, base_dsl/cache_helpers.py), tvm-ffi 0.1.11 (cpp/extension.py), PyTorch
# (utils/cpp_extension.py, ATen jit_utils.cpp).
CACHES: dict[str, tuple[str, ...]] = {
    "triton": ("TRITON_CACHE_DIR",),
    "torchinductor": ("TORCHINDUCTOR_CACHE_DIR",),
    # FlashInfer appends .cache/flashinfer: kernels, cubins that it downloads, its autotuner.
    "flashinfer": ("FLASHINFER_WORKSPACE_BASE",),
    # Older releases of SGLang read the second name.
    "deep_gemm": ("SGLANG_DG_CACHE_DIR", "SGL_DG_CACHE_DIR"),
    # SGLang's own JIT kernels: built by tvm-ffi up to 0.5.17, by SGLang itself in 0.5.23.
    "tvm_ffi": ("TVM_FFI_CACHE_DIR", "SGLANG_JIT_CACHE_DIR"),
    # SGLANG_MOE_CONFIG_DIR replaces SGLang's own files, so it is set for single servers only.
    MOE_CONFIGS: (),
    # FlashInfer's autotuner as SGLang runs it, torch_compile_cache, cute_aot, rust_extensions.
    "sglang": ("SGLANG_CACHE_DIR",),
    "tilelang": ("TILELANG_CACHE_DIR",),
    "cute_dsl": (
        "CUTE_DSL_CACHE_DIR",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR",
        "B12X_COMPILE_CACHE_DIR",
    ),
    "torch": ("TORCH_EXTENSIONS_DIR", "PYTORCH_KERNEL_CACHE_PATH"),
    # What the driver compiles of PTX. A server on a GPU has a folder of its driver's version in it.
    "cuda": ("CUDA_CACHE_PATH",),
    # The host's measurements, and their history.
    "perf": (),
}
CACHE_VARIABLES = {variable: cache for cache, names in CACHES.items() for variable in names}
# Python's byte code of packages whose folders the container's user cannot write
# (PYTHONPYCACHEPREFIX).
BYTE_CODE = ".byte_code"
PROFILES_FOLDERS = (*CACHES, f"{MOE_CONFIGS}/configs", LOCKS, IN_PROGRESS)
# What nothing mounts, so that a new container begins without it.
SCRATCH = ("/tmp", "/var/tmp")  # noqa: S108 - looked at, never written


def unmountable(path: str) -> str | None:
    """Why Docker could not bind-mount a path; None where it can."""
    if ":" not in path:
        return None
    return (
        f"is '{one_line(path, 80)}', and Docker cannot mount a path with a colon in it: set it to a"
        " path without"
    )


@dataclass(frozen=True)
class Rights:
    """The permission bits of a folder of the tree: of a new one, those that one that is there must
    have, and those that it must not.
    """

    new: int
    needed: int
    refused: int


# A process that can open a lock's file, even to read it, can hold it: so only the owner gets there.
LOCK_RIGHTS, LOCK_MODE = Rights(0o700, 0o700, 0o077), 0o600
# Who may write a signature's record decides what the next server runs.
RECORD_RIGHTS = LOCK_RIGHTS
# Only folders are made in the parent, and only by its owner. It may be a home directory, and
# Docker's daemon has to pass through it.
PARENT_RIGHTS = Rights(0o755, 0o700, 0o022)
GROUP_WRITABLE = "sgl_group_writable"


def umask(group_writable: bool) -> int:
    """What no file and no folder of the container's processes grants."""
    return 0o007 if group_writable else 0o027


def folder_rights(folder: str, name: str, group_writable: bool) -> Rights:
    """Of the mount `folder`, or of what is called `name` in it.

    Telemetry can be read by the group, for those who look at results. What is in profiles runs in
    the next server, so the folder itself is closed unless the group may write there; and the group
    never renames what is directly in it, as that is where the locks are.
    """
    if name == LOCKS:
        return LOCK_RIGHTS
    group = 0o070 if group_writable else 0o050
    if folder == "profiles" and not name:
        group = 0o050 if group_writable else 0
    if folder == "models":
        # The server only reads models, others may too, and a read-only export must do.
        return Rights(0o705 | group, 0o500, 0o002 if group_writable else 0o022)
    if folder == "huggingface":
        # The hub's client keeps tokens there. One that is there may be shared with other programs.
        group = 0o070 if group_writable else 0
        return Rights(0o700 | group, 0o700 | group, 0o002 if group_writable else 0o022)
    return Rights(0o700 | group, 0o700 | group, 0o077 & ~group)
