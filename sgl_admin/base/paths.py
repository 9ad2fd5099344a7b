"""Where everything is in the container, and what the same place is called on the host.

`sgl-admin --root FOLDER` works on a machine without the container: then all of it is below that
folder (`relocate`).
"""

from __future__ import annotations

import os
from pathlib import Path

from sgl_admin.contract import places
from sgl_admin.contract.places import CACHE_VARIABLES

TELEMETRY, PROFILES, MODELS, HUGGINGFACE = (Path(mount.target) for mount in places.MOUNTS)

POINTER = TELEMETRY / places.POINTER
RUNS = TELEMETRY / places.RUNS
LOGS = TELEMETRY / places.LOGS
PROMETHEUS = TELEMETRY / places.PROMETHEUS
JAEGER = TELEMETRY / places.JAEGER
PREPARED = TELEMETRY / places.PREPARED
LOCKS = PROFILES / places.LOCKS
IN_PROGRESS = PROFILES / places.IN_PROGRESS
BYTE_CODE = PROFILES / places.BYTE_CODE
# What an import has not placed yet.
INCOMING = PROFILES / places.INCOMING
# What a rebuild has not replaced yet.
REBUILDING = PROFILES / places.REBUILDING

# Not on a bind mount: each start of the container begins with its own.
STATE = Path("/var/lib/sgl")
LIVE_RUN = STATE / "run_id"
FLAVOUR = Path("/etc/sgl/flavour.json")
IMAGE_FACTS = Path("/etc/sgl/image.json")

# Folders of the container itself that programs write into.
HOME = Path(places.HOME)
TMP, VAR_TMP = (Path(folder) for folder in places.SCRATCH)

# Each of these names in the container, and below which folder of a root its place is found
# (`relocate`).
_INSIDE = {name: value for name, value in globals().items() if isinstance(value, Path)}
_PLACES = (
    *((Path(mount.target), mount.folder) for mount in places.MOUNTS),
    (STATE, "state"),
    (Path("/etc/sgl"), "state"),
    # Without a container these are the machine's, and none of a run's business.
    (HOME, "state/home"),
    (TMP, "state/tmp"),
    (VAR_TMP, "state/tmp"),
)

_HOST_ROOTS: tuple[tuple[Path, str], ...] = tuple(
    (Path(mount.target), mount.variable) for mount in places.MOUNTS
)
# Set for the processes that `sgl-admin --root` starts.
ROOT_VARIABLE = "SGL_ADMIN_ROOT"


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


def perf_samples(run_id: str) -> Path:
    """What was seen of the host while stage `perf` measured it."""
    return run_dir(run_id) / "perf_samples.json"


def watch(run_id: str) -> Path:
    """What the watcher saw of the host."""
    return run_dir(run_id) / "watch.json"


def metrics(run_id: str) -> Path:
    """The files that node_exporter reads: those with the ending .prom."""
    return run_dir(run_id) / "metrics"


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
    # The caller has set this process's environment, and maybe a cache of its own in it.
    _place_below(Path(os.environ[ROOT_VARIABLE]))
