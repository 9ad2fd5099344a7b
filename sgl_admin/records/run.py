"""The live run: which run the pointer names, whether it is this container's, and its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Explained
from sgl_admin.contract import records

# What a prep builds on.
_PARTS = {
    "paths.container": dict,
    "paths.host": dict,
    "services.prometheus.url": str,
    "services.sglang.port": int,
}


class NoLiveRun(Explained):
    """The pointer or the manifest is missing, stale or unreadable (exit code 4)."""


@dataclass(frozen=True)
class Run:
    run_id: str
    manifest: dict[str, Any]

    def add_prep_result_paths(self) -> None:
        """Name the prep_result in the manifest, in the container's paths and the host's, once the
        file is there.
        """
        container_path = str(paths.prep_result(self.run_id))
        wanted = {"container": container_path, "host": paths.to_host(container_path)}
        manifest = files.read_json(paths.manifest(self.run_id)) or self.manifest
        if all(manifest["paths"][side].get("prep_result") == path for side, path in wanted.items()):
            return
        for side, path in wanted.items():
            manifest["paths"][side]["prep_result"] = path
        files.write_json(paths.manifest(self.run_id), manifest)


def pointer_text(run_id: str) -> str:
    manifest = paths.manifest(run_id)
    return records.pointer_text(manifest, paths.to_host(manifest))


def pointed_run() -> str | None:
    """The run id that the pointer names; None without a pointer or where it names none."""
    try:
        text = files.read_bytes(paths.POINTER).decode("utf-8")
    except (FileNotFoundError, ValueError):
        return None
    manifest = records.parse_pointer(text).get(records.POINTER_KEY, "")
    return manifest.rpartition("/")[2].removesuffix(".json") or None


def live() -> Run:
    """The run of this container. Raises NoLiveRun with the reason and the remedy."""
    remedy = "start the container again (playbooks/start.yml)"
    try:
        run_id = files.read_bytes(paths.LIVE_RUN).decode("utf-8").strip()
    except (FileNotFoundError, ValueError):
        raise NoLiveRun(
            f"the container's init has not begun a run ({paths.LIVE_RUN} is missing); {remedy}"
        ) from None
    pointed = pointed_run()
    if pointed is None:
        raise NoLiveRun(
            f"no pointer at {paths.POINTER}: run {run_id} is still starting, or is stopping; wait,"
            f" or {remedy}"
        )
    if pointed != run_id:
        raise NoLiveRun(
            f"the pointer {paths.POINTER} names {pointed}, but this container's run is {run_id};"
            f" {remedy}"
        )
    try:
        manifest = files.read_json(paths.manifest(run_id))
    except ValueError as error:
        raise NoLiveRun(f"{error}; {remedy}") from error
    if manifest is None or not isinstance(manifest.get("paths"), dict):
        raise NoLiveRun(
            f"the manifest {paths.manifest(run_id)} is missing or has no paths; {remedy}"
        )
    if (lacking := _lacking(manifest, run_id)) is not None:
        raise NoLiveRun(f"the manifest {paths.manifest(run_id)} has no valid {lacking}; {remedy}")
    return Run(run_id, manifest)


def _lacking(manifest: dict[str, Any], run_id: str) -> str | None:
    """The first part of a manifest, of those that a prep builds on, that is not as the init writes
    it.
    """
    if manifest.get("container_run_id") != run_id:
        return "container_run_id"
    for name, kind in _PARTS.items():
        part: Any = manifest
        for key in name.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if (
            not isinstance(part, kind)
            or isinstance(part, bool)
            or (isinstance(part, int) and not 0 < part < 2**16)
        ):
            return name
    return None
