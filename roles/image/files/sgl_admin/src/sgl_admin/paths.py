"""Where everything is in the container, and what the same place is called on the host."""

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

# Not on a bind mount: each start of the container begins with its own.
STATE = Path("/var/lib/sgl")
LIVE_RUN = STATE / "run_id"
FLAVOUR = Path("/etc/sgl/flavour.json")
IMAGE_FACTS = Path("/etc/sgl/image.json")

_HOST_ROOTS = (
    (TELEMETRY, "SGL_HOST_TELEMETRY_ROOT"),
    (PROFILES, "SGL_HOST_PROFILES_ROOT"),
    (MODELS, "SGL_HOST_MODELS_ROOT"),
    (HUGGINGFACE, "SGL_HOST_HF_ROOT"),
)


def to_host(path: Path | str) -> str | None:
    """The host's name of a container path; None where it is not under a bind mount or the host's root is not known."""
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
