"""What was asked for each profile that was proven, and by the latest proven prep. It outlives the
run, so that the next one can start the same server; a key may be in it, so only its owner reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from sgl_admin.base import files, paths
from sgl_admin.contract import stages
from sgl_admin.records.request import Request

_SHAPE: files.Shape = {"profile": str, "request": str, "own_port": bool}
_LATEST = "latest"
# What only the service user reads.
_MODE = 0o600


def _path(name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return paths.PREPARED / f"{digest if name else _LATEST}.json"


def write(request: Request, scraped_port: int) -> None:
    """Keep a request that ended with a proof; one that is kept already is not written again."""
    document = {
        "schema_version": "1",
        "profile": request.profile,
        "request": request.to_json(),
        # The next run may have another port.
        "own_port": request.warmup_port != scraped_port,
    }
    for name in dict.fromkeys((request.profile, "")):
        path = _path(name)
        # One that cannot be read is replaced.
        if files.read_valid(path, _SHAPE) != document:
            files.write_json(path, document, mode=_MODE)


def read(profile: str, scraped_port: int) -> Request | None:
    """What was last asked for a profile, or at all where it is empty; None where nothing is known.
    What was to be rebuilt then is kept now. Raises ValueError where it cannot be read.
    """
    path = _path(profile)
    record = files.read_record(path, _SHAPE)
    if record is None or (profile and record["profile"] != profile):
        return None
    try:
        request = Request.from_json(record["request"])
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from error
    modes = {stage: _mode(stage, mode) for stage, mode in request.stages.items()}
    port = request.warmup_port if record["own_port"] else scraped_port
    return replace(request, stages=modes, probe="auto", warmup_port=port)


def _mode(stage: str, mode: str) -> str:
    # What no host can give another is no cache: a measurement of the host, which a prep makes.
    if not stages.BY_NAME[stage].shared:
        return "skip"
    return "ensure" if mode == "rebuild" else mode


def any_profile() -> bool:
    """Whether a prep of this tree ended with a proof."""
    return _path("").exists()
