# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads what a container's run left on the host: pointer, manifest, prep_result; and says whether
that run is the live one.

The formats are the project's contract (schemas/). Nothing here is trusted: the files lie in a
folder that a service writes.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _safe_tree as safe_tree
from ._contract import listeners, locks, places, processes, records
from ._contract.texts import one_line, path_line
from ._docker_cli import DockerCli, beside, same_folder

_HOST_PATHS = (
    *(f"{mount.folder}_root" for mount in places.MOUNTS),
    *("run_dir", "log_file", "prometheus_dir", "jaeger_dir"),
)
# Far above any real one; a reader on every converged run should not be fed a gigabyte.
_MAX_BYTES = 32 * 2**20
# The contract's, of one length: as text they are in the order of time.
_TELEMETRY, _PROFILES = (
    next(mount.target for mount in places.MOUNTS if mount.folder == folder)
    for folder in ("telemetry", "profiles")
)
_RESTART = "start the container again (playbooks/start.yml)"
# How often, and after how many seconds, a lock that is held is looked at once more.
_LOOKS, _LOOK_S = 3, 0.01
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class RecordError(Exception):
    """A record is missing, cannot be read or breaks the contract; the message names the file and
    the remedy.
    """


@dataclass(frozen=True)
class RunRecord:
    run_id: str
    manifest: dict[str, Any]
    prep_result: dict[str, Any] | None
    # The telemetry root as the caller names it: no record that the run left is read outside of it.
    top: Path

    @property
    def paths(self) -> dict[str, Any]:
        host: dict[str, Any] = self.manifest["paths"]["host"]
        return host

    @property
    def metrics_ready(self) -> bool:
        """Whether the latest prep of this run recorded the proof of its own server. `sgl-admin
        ready` says whether it still holds.
        """
        if self.prep_result is None:
            return False
        proof, server = self.prep_result["telemetry_probe"], self.prep_result["run"].get("server")
        # Releases before 1.1 name no server in either.
        proven = server.get("identity") if isinstance(server, dict) else None
        return proof["ok"] is True and proof.get("server") == proven


def read(telemetry_root: str) -> RunRecord | None:
    """What the pointer leads to; None without a pointer. Raises RecordError."""
    top = Path(telemetry_root)
    pointer = top / places.POINTER
    content = _read_bytes(pointer, top)
    if content is None:
        return None
    with _refusing(pointer):
        named = records.parse_pointer(content.decode("utf-8"))
    path = Path(named.get(records.POINTER_KEY_HOST, ""))
    run_id = path.name.removesuffix(".json")
    if not path.is_absolute() or not records.RUN_ID.fullmatch(run_id):
        raise RecordError(
            f"{pointer} names no manifest of a run in {records.POINTER_KEY_HOST}; {_RESTART}"
        )
    manifest = _read_json(path, top)
    if manifest is None:
        raise RecordError(f"{pointer} names {one_line(path)}, which does not exist; {_RESTART}")
    check_manifest(manifest, run_id, path)
    return RunRecord(run_id, manifest, _prep_result(manifest, run_id, top), top)


def describe(
    telemetry_root: str, container: dict[str, Any] | None, unknown: str | None = None
) -> dict[str, Any]:
    """What the records say of the container's run, and whether it is the live one; `container` as
    docker_cli describes it, `unknown` why Docker could not say whether it exists.
    """
    try:
        record = read(telemetry_root)
    except RecordError as error:
        # Maybe what an earlier run left, which the one that is starting replaces.
        return summary(None, str(error), container)
    if record is None:
        reason = f"there is no pointer {places.POINTER} in {telemetry_root}"
        return summary(None, reason, container)
    if unknown is not None:
        name = one_line(record.manifest["container_name"])
        reason = f"whether container {name} runs is unknown: {unknown}"
        return summary(record, reason, container)
    return summary(record, not_live_because(record, container), container)


def note_elsewhere(
    run: dict[str, Any],
    container: dict[str, Any] | None,
    find: Callable[[str], dict[str, Any] | None],
) -> None:
    """Note in a run that `describe` returned the container in which it is live, where that is
    another one than `container`; `find` describes a container by its id.
    """
    manifest = run.get("manifest")
    recorded = None if manifest is None else manifest.get("container_id")
    if run["live"] or recorded is None:
        return
    if container is not None and container["id"] == recorded:
        return
    other = find(recorded)
    if other is not None and is_up(other):
        run["elsewhere"] = other["name"]
        run["reason"] = f"{run['run_id']} is live in container {other['name']}"


def other_of_tree(
    docker: DockerCli, telemetry_root: str, name: str, container: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Another container than that of this name, or than what a replacement has beside it, which
    has the tree: one that is up before one that is not. None where `container`, that of this name,
    has the tree and is up. Raises DockerError.

    Which container a tree has, its mounts say: records can be missing.
    """
    own = (name, *beside(name))
    if container is not None and is_up(container) and _has_tree(container, telemetry_root):
        return None
    if not os.path.exists(telemetry_root):
        return None
    found = docker.mounting(telemetry_root, _TELEMETRY)
    others = [each for each in found if each["name"] not in own]
    return max(others, key=is_up, default=None)


def _has_tree(container: dict[str, Any], telemetry_root: str) -> bool:
    return same_folder(container.get("mounts", {}).get(_TELEMETRY), telemetry_root)


def running_prep(record: RunRecord, profiles_root: str) -> dict[str, Any] | None:
    """Id, pid, stage and arguments of the prep that runs in a live run; None where none does, or
    where its record does not name it.
    """
    try:
        job = _read_json(Path(record.paths["run_dir"]) / "job.json", record.top)
    except RecordError:
        # sgl-admin, which sets it aside, is asked before a prep begins.
        return None
    if job is None or job.get("state") != "running":
        return None
    # A prep that was killed holds no lock, whatever its record says.
    if _holder(_lock(profiles_root, places.LOCK_PREP)) is None:
        return None
    arguments = job.get("arguments")
    return {
        **{key: job.get(key) for key in ("prep_id", "pid", "stage")},
        "arguments": [str(word) for word in arguments] if isinstance(arguments, list) else [],
    }


def _lock(profiles_root: str, name: str) -> Path:
    return Path(profiles_root) / places.LOCKS / f"{name}.lock"


# What holds each lock, and how sgl-admin ends it or waits for it.
_HOLDERS = {
    places.LOCK_PREP: ("a prep", "wait for it: {admin} status --watch"),
    places.LOCK_SERVING: (
        "a server that was started for a benchmark",
        "stop it: {admin} server stop",
    ),
    places.LOCK_SMOKE: ("a smoke", "wait for it: {admin} smoke status --wait 600"),
}


def in_use(
    container: dict[str, Any],
    profiles_root: str,
    live: bool = False,
    prep: dict[str, Any] | None = None,
) -> list[str]:
    """What goes on in a container and would be lost with it, in words; without its prep, where
    that is known by its record. Its locks tell, and no record does: one can be missing, be an
    earlier one, or be of another release. A lock that cannot be read counts as held, and so does
    one that another container of these caches holds.

    sgl-admin can end what runs where the run is live.
    """
    if not is_up(container):
        return []
    admin = f"docker exec {one_line(container['name'])} sgl-admin"
    found = []
    for name, (words, remedy) in _HOLDERS.items():
        if name == places.LOCK_PREP and prep is not None:
            continue
        lock = _lock(profiles_root, name)
        who = _holder(lock)
        if who is None and _held_without_name(lock, container["pid"]):
            who = "another process"
        if who is not None:
            ends = f"; {remedy.format(admin=admin)}" if live else ""
            found.append(f"{words} ({path_line(str(lock))} is held by {who}{ends})")
    return found


def _profiles(container: dict[str, Any], record: RunRecord | None) -> str | None:
    """Where a container's caches and locks are on the host. Docker says it; the container's live
    record counts only where Docker does not.
    """
    recorded = record.paths["profiles_root"] if record is not None else None
    found: str | None = container.get("mounts", {}).get(_PROFILES, recorded)
    return found


def is_up(container: dict[str, Any]) -> bool:
    """Whether the container has processes; those of a paused one are held, and not ended."""
    return container["status"] in ("running", "paused")


def _holder(lock: Path) -> str | None:
    """The process that holds a lock, in words; None where it is free. One that cannot be read
    counts as held.
    """
    who = "another process"
    for attempt in range(_LOOKS):
        try:
            with open(safe_tree.open_file(str(lock), str(lock.parent.parent)), "rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    who = locks.holder(stream.fileno())
                    # Who only looks, as this does, holds it for a moment.
                    if attempt < _LOOKS - 1:
                        time.sleep(_LOOK_S)
                    continue
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return who
        return None
    return who


def _held_without_name(lock: Path, pid: int) -> bool:
    """Whether a process of the container whose first one is `pid` has a lock open whose file was
    removed: it holds that lock still, and the next process makes another file.
    """
    if lock.exists():
        return False
    try:
        container = os.readlink(f"/proc/{pid}/ns/pid")
        others = list(listeners.pids())
    except OSError:
        return False
    ending = f"{places.LOCKS}/{lock.name} (deleted)"
    for other in others:
        try:
            is_its = os.readlink(f"/proc/{other}/ns/pid") == container
        except OSError:
            # It ended meanwhile, or is another user's.
            continue
        if is_its and any(link.endswith(ending) for link in listeners.descriptors(other)):
            return True
    return False


def summary(
    record: RunRecord | None,
    reason: str | None,
    container: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A run for those who act on it; `reason` says why it is not the live one, and is None when it
    is. `elsewhere` is left to note_elsewhere.
    """
    live = record is not None and reason is None
    prep, used = None, []
    if container is not None:
        running = record if live else None
        profiles = _profiles(container, running)
        if profiles is not None:
            prep = running_prep(running, profiles) if running is not None else None
            used = in_use(container, profiles, live, prep)
    return {
        "live": live,
        "reason": reason,
        "run_id": record.run_id if record else None,
        "manifest": record.manifest if record else None,
        "paths": record.paths if record else None,
        "prep_result": record.prep_result if record else None,
        "metrics_ready": live and record is not None and record.metrics_ready,
        "prep": prep,
        "in_use": used,
        "elsewhere": None,
    }


def check_manifest(manifest: dict[str, Any], run_id: str, path: Path) -> None:
    """The parts that the collection builds on. Raises RecordError naming the first that is
    wrong.
    """

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise RecordError(
                f"{one_line(path)} is not a manifest of schema 1: {what}; start the container again"
                " (playbooks/start.yml)"
            )

    demand(manifest.get("schema_version") == "1", "schema_version is not 1")
    demand(manifest.get("container_run_id") == run_id, f"container_run_id is not {run_id}")
    for key in ("container_id", "container_name", "started_at", "image_id"):
        demand(isinstance(manifest.get(key), str), f"{key} is missing")
    demand(_TIMESTAMP.fullmatch(manifest["started_at"]) is not None, "started_at is not a time")
    services, paths = manifest.get("services"), manifest.get("paths")
    prometheus = services.get("prometheus") if isinstance(services, dict) else None
    demand(
        isinstance(prometheus, dict) and isinstance(prometheus.get("url"), str),
        "services.prometheus.url is missing",
    )
    for side in ("container", "host"):
        named: Any = paths.get(side) if isinstance(paths, dict) else None
        demand(isinstance(named, dict), f"paths.{side} is missing")
        for key in _HOST_PATHS:
            demand(
                isinstance(named.get(key), str) and named[key].startswith("/"),
                f"paths.{side}.{key} is not an absolute path",
            )
        result = named.get("prep_result")
        demand(
            result is None or (isinstance(result, str) and result.startswith("/")),
            f"paths.{side}.prep_result is not an absolute path",
        )


def _prep_result(manifest: dict[str, Any], run_id: str, top: Path) -> dict[str, Any] | None:
    """The aggregate that the manifest names; None before the first prep of the run. Raises
    RecordError.
    """
    named = manifest["paths"]["host"].get("prep_result")
    if named is None:
        return None
    result = _read_json(Path(named), top)
    if result is None:
        return None
    run, stages, proof = result.get("run"), result.get("stages"), result.get("telemetry_probe")
    if not (
        isinstance(run, dict)
        and isinstance(stages, dict)
        and isinstance(proof, dict)
        and isinstance(proof.get("ok"), bool)
    ):
        raise RecordError(
            f"{one_line(named)} is not a prep_result of schema 1; run the prep again"
            " (playbooks/prep.yml)"
        )
    # A file of another run would carry that run's proof: it counts for nothing here.
    return result if run.get("run_id") == run_id else None


def _read_json(path: Path, top: Path) -> dict[str, Any] | None:
    content = _read_bytes(path, top)
    with _refusing(path):
        return None if content is None else records.parse_json(path, content)


def _read_bytes(path: Path, top: Path) -> bytes | None:
    """The content of a record below the telemetry root `top`. What a record names may lead
    anywhere, and root reads it.
    """
    for root in (top, Path(os.path.realpath(top))):
        if path.is_relative_to(root) and ".." not in path.parts:
            break
    else:
        raise RecordError(f"{one_line(path)} is not below {one_line(top)}; {_RESTART}")
    with _refusing(path):
        try:
            return safe_tree.read_file(str(path), _MAX_BYTES, str(root))
        except (FileNotFoundError, NotADirectoryError):
            return None


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns what keeps a record from being read into RecordError, with the remedy."""
    try:
        yield
    except ValueError as error:
        raise RecordError(f"{one_line(error)}; {_RESTART}") from error
    except OSError as error:
        raise RecordError(
            f"{one_line(path)} cannot be read: {error.strerror}; it must be a file that the user"
            " whom the playbook runs as can read"
        ) from error


def not_live_because(record: RunRecord, container: dict[str, Any] | None) -> str | None:
    """Why the record's run is not the container's live one; None when it is. `container` as
    docker_cli describes it.
    """
    if container is None:
        return f"there is no container {one_line(record.manifest['container_name'])}"
    if not container["running"]:
        return f"container {one_line(record.manifest['container_name'])} is {container['status']}"
    if record.manifest["container_id"] != container["id"]:
        return f"{record.run_id} is a run of an earlier container"
    written = record.manifest.get("pid1")
    seen = processes.identity(container["pid"])
    if isinstance(written, dict) and seen is not None:
        is_same = written == seen
    else:
        # The host's /proc does not show the container's processes: then the times decide, to the
        # second.
        is_same = record.manifest["started_at"] >= container["started_at"][:19]
    return None if is_same else f"{record.run_id} is an earlier run of this container"


def remove_pointer(telemetry_root: str) -> None:
    """Remove the pointer for good. Raises RecordError where that is not allowed."""
    pointer = Path(telemetry_root) / places.POINTER
    try:
        safe_tree.unlink(str(pointer))
    except OSError as error:
        raise RecordError(
            f"{pointer} cannot be removed: {error.strerror}; run as its owner"
        ) from error
