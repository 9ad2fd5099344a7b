"""Where everything is in the container, and what the same place is called on the host.

`sgl-admin --root FOLDER` works on a machine without the container: then all of it is below that
folder (`relocate`).
"""

from __future__ import annotations

import os
from pathlib import Path

TELEMETRY = Path("/telemetry")
PROFILES = Path("/profiles")
MODELS = Path("/models")
HUGGINGFACE = Path("/home/devuser/.cache/huggingface")

POINTER = TELEMETRY / "container_run_meta.env"
RUNS = TELEMETRY / "container_runs"
LOGS = TELEMETRY / "logs"
PROMETHEUS = TELEMETRY / "prometheus"
JAEGER = TELEMETRY / "jaeger"
LOCKS = PROFILES / ".locks"
IN_PROGRESS = PROFILES / ".in_progress"
# What an import has not placed yet.
INCOMING = PROFILES / ".incoming"

# Not on a bind mount: each start of the container begins with its own.
STATE = Path("/var/lib/sgl")
LIVE_RUN = STATE / "run_id"
FLAVOUR = Path("/etc/sgl/flavour.json")
IMAGE_FACTS = Path("/etc/sgl/image.json")

# Each of these names in the container, and below which folder of a root its place is found
# (`relocate`).
_INSIDE = {name: value for name, value in globals().items() if isinstance(value, Path)}
_PLACES = (
    (TELEMETRY, "telemetry"),
    (PROFILES, "profiles"),
    (MODELS, "models"),
    (HUGGINGFACE, "huggingface"),
    (STATE, "state"),
    (Path("/etc/sgl"), "state"),
)

_HOST_ROOTS: tuple[tuple[Path, str], ...] = (
    (TELEMETRY, "SGL_HOST_TELEMETRY_ROOT"),
    (PROFILES, "SGL_HOST_PROFILES_ROOT"),
    (MODELS, "SGL_HOST_MODELS_ROOT"),
    (HUGGINGFACE, "SGL_HOST_HF_ROOT"),
)
# Set for the processes that `sgl-admin --root` starts.
ROOT_VARIABLE = "SGL_ADMIN_ROOT"
# The cache variables of the server; in the container they are its environment (Dockerfile).
CACHE_VARIABLES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "SGLANG_DG_CACHE_DIR": "deep_gemm",
    "SGL_DG_CACHE_DIR": "deep_gemm",
    # SGLang's own JIT kernels: built by tvm-ffi up to 0.5.17, by itself in 0.5.23.
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "SGLANG_JIT_CACHE_DIR": "tvm_ffi",
}


def relocate(root: Path) -> None:
    """Put every path below `root`, which then is the host's folder too, and say so to the processes
    that are started from here.
    """
    _place_below(root)
    os.environ.update({variable: str(folder) for folder, variable in _HOST_ROOTS})
    os.environ.update(
        {variable: str(PROFILES / cache) for variable, cache in CACHE_VARIABLES.items()}
    )
    os.environ[ROOT_VARIABLE] = str(root)


def _place_below(root: Path) -> None:
    global _HOST_ROOTS
    for name, inside in _INSIDE.items():
        place, folder = next(
            (place, folder) for place, folder in _PLACES if inside.is_relative_to(place)
        )
        globals()[name] = root / folder / inside.relative_to(place)
    variables = [variable for _, variable in _HOST_ROOTS]
    _HOST_ROOTS = tuple(zip((TELEMETRY, PROFILES, MODELS, HUGGINGFACE), variables, strict=True))


def to_host(path: Path | str) -> str | None:
    """The host's name of a container path; None where it is not under a bind mount or the host's
    root is not known.
    """
    path = Path(path)
    for root, variable in _HOST_ROOTS:
        if path.is_relative_to(root):
            host_root = os.environ.get(variable)
            return str(Path(host_root) / path.relative_to(root)) if host_root else None
    return None


def run_dir(run_id: str) -> Path:
    return RUNS / run_id


def manifest(run_id: str) -> Path:
    return RUNS / f"{run_id}.json"


def prep_result(run_id: str) -> Path:
    return run_dir(run_id) / "prep_result.json"


def stage_file(run_id: str, stage: str) -> Path:
    return run_dir(run_id) / "stages" / f"{stage}.json"


def job(run_id: str) -> Path:
    return run_dir(run_id) / "job.json"


def log(run_id: str) -> Path:
    return LOGS / f"{run_id}.log"


def server(run_id: str) -> Path:
    """The record of the server that was started for a benchmark."""
    return run_dir(run_id) / "server.json"


if ROOT_VARIABLE in os.environ:
    # Whoever began this process has set its environment, and maybe a cache of its own in it.
    _place_below(Path(os.environ[ROOT_VARIABLE]))
