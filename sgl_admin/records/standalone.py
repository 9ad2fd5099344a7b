"""A run without the container: `sgl-admin --root FOLDER` keeps its records and caches below that
folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sgl_admin.base import clock, files, keyed, locks, paths, rights
from sgl_admin.base.errors import Refused
from sgl_admin.contract import places
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.contract.services import BY_NAME, LOOPBACK, SGLANG
from sgl_admin.records import caches, run

_LOCK_TIMEOUT_S = 10.0
# What the server takes beside its command; an operator gives more with --server-arg.
_FLAVOUR = {
    "flavour": "standalone",
    "server": {"args": [], "env": {}, "batch_sizes": [1, 2, 4, 8]},
    "services": [],
}


def begin(root: str) -> None:
    """Make `root` the place of everything, with its folders and a run in it where there is none.
    Raises Refused.
    """
    folder = Path(root).resolve()
    if folder == Path("/") or (folder.exists() and not folder.is_dir()):
        raise Refused(
            EXIT_USAGE,
            f"--root {root} is no folder to work in; name one that is there, or a new one",
        )
    paths.relocate(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in (
        paths.TELEMETRY,
        paths.RUNS,
        paths.LOGS,
        paths.STATE,
        paths.PROFILES,
        paths.IN_PROGRESS,
        *(paths.PROFILES / cache for cache in caches.CACHES),
    ):
        place.mkdir(exist_ok=True)
    _close(paths.PROFILES)
    try:
        with locks.locked("standalone", _LOCK_TIMEOUT_S):
            _begin_run()
    except TimeoutError as error:
        raise Refused(EXIT_USAGE, f"{error}: another sgl-admin begins a run there") from error


def _close(profiles: Path) -> None:
    """What is in the caches runs in the next server: as in a container's tree, they are for the
    caller alone and, where that was asked for, the group.
    """
    rights_of = places.folder_rights("profiles", "", rights.group_writable())
    status = profiles.stat()
    if status.st_uid == os.geteuid() and status.st_mode & rights_of.refused:
        profiles.chmod(stat.S_IMODE(status.st_mode) & ~rights_of.refused)


def _begin_run() -> None:
    if not paths.FLAVOUR.exists():
        files.write_json(paths.FLAVOUR, dict(_FLAVOUR))
    if paths.POINTER.exists() and paths.LIVE_RUN.exists():
        return
    keyed.ensure()
    run_id = clock.new_id("container-run")
    (paths.run_dir(run_id) / "stages").mkdir(parents=True)
    paths.log(run_id).touch()
    named = {
        "telemetry_root": str(paths.TELEMETRY),
        "run_dir": str(paths.run_dir(run_id)),
        "log_file": str(paths.log(run_id)),
    }
    prometheus = BY_NAME["prometheus"].ports[0].default
    manifest = {
        "schema_version": "1",
        "container_run_id": run_id,
        "started_at": clock.utc(),
        "services": {
            "prometheus": {"port": prometheus, "url": f"http://{LOOPBACK}:{prometheus}"},
            SGLANG.name: {"port": SGLANG.default},
        },
        "paths": {"container": named, "host": dict(named)},
    }
    files.write_json(paths.manifest(run_id), manifest)
    files.write_text(paths.LIVE_RUN, run_id + "\n")
    files.write_text(paths.POINTER, run.pointer_text(run_id), mode=0o600)
