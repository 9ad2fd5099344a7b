"""The kernel caches under /profiles: what is in them, and whether what a signature vouches for is
still whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, files, paths
from sgl_admin.base.locks import held
from sgl_admin.contract import places
from sgl_admin.contract.places import CACHES
from sgl_admin.contract.stages import STAGE_OF_CACHE
from sgl_admin.records import vouched

# What a compiler leaves beside its results: not part of a cache's content.
_SCRATCH = re.compile(r"(\.lock$|\.tmp$|\.tmp\.|^tmp)")
RECORDS = places.SIGNATURES
# What a tuning keeps while it lasts.
WORK = ".tuning"
# Of one cache, how many servers a record names that ran with it: the last ones.
_MOST_SERVERS = 64
RECORD_SHAPE: files.Shape = {"signature": dict, "summary": dict, "files": dict}


def cache_files(cache: str) -> Iterator[tuple[Path, os.stat_result]]:
    """Each content file of a cache with its stat; folders that vanish meanwhile are passed over."""
    folders = [paths.PROFILES / cache]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in (RECORDS, WORK):
                    folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and not _SCRATCH.search(entry.name):
                try:
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


class SignatureRecord:
    """On disk: the signature of a finished stage and the files (name, bytes) that it vouches for.

    One file for each signature, so that two models on one host do not take each other's caches for
    stale.
    """

    def __init__(self, stage: str, caches: tuple[str, ...], signature: dict[str, Any]) -> None:
        self.caches = caches
        self.signature = signature
        self.path = paths.PROFILES / caches[0] / RECORDS / f"{stage}-{digest(signature)}.json"
        # The servers that ran with this work; None before `problem` was asked.
        self._served: list[str] | None = None

    def problem(self, unreadable: list[str]) -> str | None:
        """Why the caches do not hold this signature's work; None when they do.

        Reads only: a record that cannot be read counts as missing, and `unreadable` gets the
        reason.
        """
        self._served = []
        try:
            record = files.read_record(self.path, RECORD_SHAPE)
        except ValueError as error:
            unreadable.append(str(error))
            record = None
        # As they are digested: to Python, true is 1, and NaN is not itself.
        if record is None or digest(record["signature"]) != digest(self.signature):
            return "no finished work with this signature"
        if vouched.Exposure().forged(self.path):
            return "its signature record could be changed by other users"
        problem = vouched.problem(record)
        served = record.get("served")
        if problem is None and isinstance(served, list):
            self._served = [identity for identity in served if isinstance(identity, str)]
        return problem

    def trusted(self, identity: str) -> bool:
        """Whether this server, by records.served.identity, ran with this work as it is now."""
        if self._served is None:
            self.problem([])
        return identity in (self._served or ())

    def write(self, content: Iterable[Path] | None = None, served: str = "") -> dict[str, Any]:
        """Vouch for these files, or for all that the caches hold now; returns the record's summary
        of them. `served` is the server that ran with them.
        """
        self.problem([])
        known = [identity for identity in self._served or () if identity != served]
        listed: dict[str, int] = {}
        latest = 0.0
        everything = [path for cache in self.caches for path, _ in cache_files(cache)]
        # Before their sizes: one that is written to meanwhile is no longer what was read.
        digests, exposed = vouched.describe(everything if content is None else content)
        for name in digests:
            stat = (paths.PROFILES / name).stat()
            listed[name] = stat.st_size
            latest = max(latest, stat.st_mtime)
        summary = {
            "count": len(listed),
            "bytes": sum(listed.values()),
            "latest_mtime_iso": clock.utc(latest) if listed else None,
        }
        # Whoever could change a record could vouch for a kernel of his own.
        self.path.parent.mkdir(places.RECORD_RIGHTS.new, parents=True, exist_ok=True)
        files.write_json(
            self.path,
            {
                "schema_version": "1",
                "signature": self.signature,
                "summary": summary,
                "files": listed,
                vouched.DIGESTS: digests,
                vouched.EXPOSED: exposed,
                "served": [*known, *filter(None, [served])][-_MOST_SERVERS:],
            },
            mode=0o600,
        )
        self._served = None
        return summary

    def settle(self) -> None:
        """Of work that stands: note it as closed to other users where it was open to them and is
        not any more, so that its files need not be read each time.
        """
        record = files.read_json(self.path) or {}
        if record.get(vouched.EXPOSED) is True:
            names = [paths.PROFILES / name for name in record["files"]]
            if not vouched.describe(names)[1]:
                self.write(names)

    def summary(self) -> dict[str, Any] | None:
        return (files.read_json(self.path) or {}).get("summary")

    def content(self) -> list[Path]:
        """The files that it vouches for; none where there is no such record, or it does not hold
        any more.
        """
        if self.problem([]) is not None:
            return []
        return [paths.PROFILES / name for name in (files.read_json(self.path) or {})["files"]]


def digest(signature: dict[str, Any]) -> str:
    """The 16 hex digits by which a signature is found."""
    canonical = json.dumps(signature, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def snapshot() -> dict[str, Any]:
    """`profile_cache.start` of the manifest, and what `caches inspect` prints."""
    return {
        "schema_version": "1",
        "taken_at": clock.utc(),
        **{cache: _describe(cache, STAGE_OF_CACHE[cache]) for cache in CACHES},
    }


def sizes() -> dict[str, dict[str, int]]:
    """How much each cache holds: `size_bytes` and `file_count`."""
    found = {}
    for cache in CACHES:
        listed = [stat.st_size for _, stat in cache_files(cache)]
        found[cache] = {"size_bytes": sum(listed), "file_count": len(listed)}
    return found


# Each content file of the caches, with its size and modification time.
Listing = dict[Path, tuple[int, int]]


def listing() -> Listing:
    return {
        path: (stat.st_size, stat.st_mtime_ns)
        for cache in CACHES
        for path, stat in cache_files(cache)
    }


def changed(names: Iterable[str], before: Listing) -> int:
    """How many files of these caches are new or other ones since."""
    return sum(
        before.get(path) != (stat.st_size, stat.st_mtime_ns)
        for name in names
        for path, stat in cache_files(name)
    )


def _describe(cache: str, stage: str) -> dict[str, Any]:
    folder = paths.PROFILES / cache
    count, size, latest = 0, 0, 0.0
    for _, stat in cache_files(cache):
        count, size, latest = count + 1, size + stat.st_size, max(latest, stat.st_mtime)
    marker = partial_info(stage)
    signature, reason = _newest_record(folder)
    if marker is not None:
        reason = "in_progress_or_aborted"
    elif count == 0:
        reason = "empty"
    return {
        "exists": folder.is_dir(),
        "path": str(folder),
        "host_path": paths.to_host(folder),
        "size_bytes": size,
        "file_count": count,
        "latest_mtime_iso": clock.utc(latest) if count else None,
        "valid": reason is None,
        "reason": reason,
        "partial": marker is not None,
        "partial_info": marker,
        "signature": signature,
    }


def _newest_record(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    records = sorted(folder.glob(f"{RECORDS}/*.json"), key=_modified)
    if not records:
        return None, None
    try:
        record = files.read_record(records[-1], RECORD_SHAPE)
    except ValueError:
        record = None
    if record is None:
        return None, "its signature record cannot be read"
    return record["signature"], vouched.problem(record)


def _modified(path: Path) -> float:
    """When a record was written; one that a prep just sets aside, or that leads nowhere, counts as
    the oldest.
    """
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def partial_info(stage: str) -> dict[str, Any] | None:
    """What the marker of a stage in progress, or one that died, says; None without a marker."""
    try:
        return files.read_json(paths.IN_PROGRESS / f"{stage}.json")
    except ValueError:
        return {"stage": stage, "owner_pid": None, "started_at": None}


def dead_owner(stage: str) -> bool:
    """True when a marker is there and no process holds the stage's lock."""
    return partial_info(stage) is not None and not held(stage)
