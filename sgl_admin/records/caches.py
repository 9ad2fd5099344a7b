"""The kernel caches under /profiles: what is in them, and whether what a signature vouches for is
still whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base import clock, files, paths
from sgl_admin.base.locks import held
from sgl_admin.contract import places
from sgl_admin.contract.places import CACHE_VARIABLES, CACHES
from sgl_admin.contract.records import MADE_IN, canonical
from sgl_admin.contract.stages import STAGE_OF_CACHE
from sgl_admin.contract.texts import is_duration
from sgl_admin.records import vouched
from sgl_admin.records.compiled import cache_files

RECORDS = places.SIGNATURES
WORK = places.TUNING
# What the driver compiles.
_DRIVER_CACHE = "cuda"
# Of one cache, how many servers a record names that ran with it: the last ones.
_MOST_SERVERS = 64
# In a record: which of the files its work made. In a signature: the fields that name its model.
_MADE = "made"
OF_MODEL = ("model_config", "model_files")
# Of the latest work that a record is of: the base image.
IMAGE = "image"
# Of an image's digest, so many characters tell it for a person.
_DIGEST = len("sha256:") + 12
RECORD_SHAPE: files.Shape = {"signature": dict, "summary": dict, "files": dict}


@dataclass(frozen=True)
class _Vouched:
    """What a record says: the files that it vouches for, and which of them its work made."""

    signature: dict[str, Any]
    named: set[str]
    made: set[str] | None


class SignatureRecord:
    """On disk: the signature of a finished stage and the files (name, bytes) that it vouches for.

    One file for each signature, so that two models on one host do not take each other's caches for
    stale.
    """

    def __init__(self, stage: str, caches: tuple[str, ...], signature: dict[str, Any]) -> None:
        self.stage = stage
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

    def write(
        self,
        content: Iterable[Path] | None = None,
        served: str = "",
        made: Iterable[Path] | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Vouch for these files, or for all that the caches hold now; returns the record's summary
        of them. `served` is the server that ran with them, `made` are those that the work made now,
        where that is known, `seconds` what it took.
        """
        self.problem([])
        longest = max(filter(None, (self._made_in(), seconds)), default=None)
        makers = self._made(made)
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
            **({} if longest is None else {MADE_IN: longest}),
        }
        # A user who could change a record could vouch for a kernel of their own.
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
                IMAGE: base_image(),
                "served": [*known, *filter(None, [served])][-_MOST_SERVERS:],
                **({} if makers is None else {_MADE: sorted(makers & listed.keys())}),
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

    def all(self) -> list[dict[str, Any]]:
        """The records of this stage that can be read, for any signature, the latest first."""
        folder = paths.PROFILES / self.caches[0] / RECORDS
        found = sorted(folder.glob(f"{self.stage}-*.json"), key=_modified, reverse=True)
        return [record for path in found if (record := readable(path)) is not None]

    def _made_in(self) -> float | None:
        record = readable(self.path)
        recorded = None if record is None else record["summary"].get(MADE_IN)
        return recorded if is_duration(recorded) else None

    def used(self) -> None:
        """Note that a prep or a server uses this work now: a prune keeps what was used lately."""
        _note_use(self.path)

    def _made(self, now: Iterable[Path] | None) -> set[str] | None:
        """The names of all files that this signature's work has made so far; None where that is
        not known of an earlier part of it.
        """
        before = self._read(self.path)
        if now is None or (before is not None and before.made is None):
            return None if before is None else before.made
        names = {str(path.relative_to(paths.PROFILES)) for path in now}
        return names | (before.made or set() if before is not None else set())

    def own(self, warnings: list[str]) -> list[Path]:
        """The files that work for this model made, in this stage's caches: what a rebuild
        replaces.

        Several models may have been served with the same caches, and each one's record names all
        that they hold. Its own is what no other model's record says its work made: a prep that was
        killed before it had its record may have made it. Another record that does not say what was
        made, as those of earlier releases, counts with all that it names; and where one cannot be
        read, nothing is known to be this one's.
        """
        mine: set[str] = set()
        others: set[str] = set()
        for path in (paths.PROFILES / self.caches[0] / RECORDS).glob(f"{self.stage}-*.json"):
            record = self._read(path)
            if record is None and path != self.path:
                warnings.append(
                    f"{self.stage} is rebuilt beside what its caches hold, as {path} cannot be"
                    " read, and what it vouches for must stay"
                )
                return []
            if record is not None:
                if path == self.path or self.same_model(record.signature):
                    mine |= record.named
                else:
                    others |= record.named if record.made is None else record.made
        if mine and not mine - others:
            warnings.append(
                f"{self.stage} is rebuilt beside what its caches hold, as other models' records"
                " vouch for all of it"
            )
        found = [paths.PROFILES / name for name in sorted(mine - others)]
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def named_by_others(self) -> set[str]:
        """The files that other records of this stage vouch for."""
        others = map(self._read, self._others())
        return {name for record in others if record is not None for name in record.named}

    def vouch_elsewhere(self, replaced: set[str], keep: Callable[[Path], None]) -> None:
        """Have the other records of this stage vouch for files that its work made again, by their
        names below the caches; `keep` gets each record before it is written.
        """
        for path in self._others():
            record = self._read(path)
            names = set() if record is None else record.named & replaced
            if not names or vouched.Exposure().forged(path):
                continue
            digests, exposed = vouched.describe(paths.PROFILES / name for name in sorted(names))
            document = files.read_json(path) or {}
            document["files"].update(
                {name: (paths.PROFILES / name).stat().st_size for name in digests}
            )
            document[vouched.DIGESTS] = {**document.get(vouched.DIGESTS, {}), **digests}
            document[vouched.EXPOSED] = exposed or document.get(vouched.EXPOSED, False)
            keep(path)
            files.write_json(path, document, mode=0o600)

    def _others(self) -> Iterator[Path]:
        folder = paths.PROFILES / self.caches[0] / RECORDS
        return (path for path in folder.glob(f"{self.stage}-*.json") if path != self.path)

    def same_model(self, signature: dict[str, Any]) -> bool:
        own, other = (
            {key: found[key] for key in OF_MODEL if key in found}
            for found in (self.signature, signature)
        )
        return len(other) == len(OF_MODEL) and digest(own) == digest(other)

    def _read(self, path: Path) -> _Vouched | None:
        """What a record says of the files in this stage's caches; None where it cannot be read."""
        record = readable(path)
        if record is None:
            return None
        made = record.get(_MADE)
        return _Vouched(
            record["signature"],
            {name for name in record["files"] if self._in_caches(name)},
            {name for name in made if isinstance(name, str) and self._in_caches(name)}
            if isinstance(made, list)
            else None,
        )

    def _in_caches(self, name: str) -> bool:
        """A record is but a file: it may name anything."""
        parts = Path(name).parts
        return parts[:1] != () and parts[0] in self.caches and not {"..", RECORDS} & {*parts}

    def summary(self) -> dict[str, Any] | None:
        return (files.read_json(self.path) or {}).get("summary")

    def content(self) -> list[Path]:
        """The files that it vouches for; none where there is no such record, or it does not hold
        any more.
        """
        if self.problem([]) is not None:
            return []
        return [paths.PROFILES / name for name in (files.read_json(self.path) or {})["files"]]


def base_image() -> str | None:
    """The base of the image that this process runs in, as a person names it; None where there is
    none.
    """
    base = (files.read_json(paths.IMAGE_FACTS) or {}).get("base_image")
    if not isinstance(base, dict) or not base.get("name"):
        return None
    name, digest = str(base["name"]), base.get("digest")
    return f"{name.partition('@')[0]}@{digest[:_DIGEST]}" if digest else name


def readable(path: Path, shape: files.Shape = RECORD_SHAPE) -> dict[str, Any] | None:
    """As `files.read_record`; None too where there is one that cannot be read."""
    try:
        return files.read_record(path, shape)
    except (OSError, ValueError):
        return None


def digest(signature: dict[str, Any]) -> str:
    """The 16 hex digits by which a signature is found."""
    return hashlib.sha256(canonical(signature)).hexdigest()[:16]


def snapshot() -> dict[str, Any]:
    """`profile_cache.start` of the manifest, and what `caches inspect` prints."""
    return {
        "schema_version": "1",
        "taken_at": clock.utc(),
        **{cache: _describe(cache, STAGE_OF_CACHE[cache]) for cache in CACHES},
    }


# Each content file of the caches, by cache, with its size and modification time.
Listing = dict[str, dict[Path, tuple[int, int]]]


def listing(names: Iterable[str] = CACHES) -> Listing:
    return {
        cache: {path: (stat.st_size, stat.st_mtime_ns) for path, stat in cache_files(cache)}
        for cache in names
    }


def sizes(listed: Listing) -> dict[str, dict[str, int]]:
    """How much each cache holds: `size_bytes` and `file_count`."""
    return {
        cache: {
            "size_bytes": sum(size for size, _mtime in known.values()),
            "file_count": len(known),
        }
        for cache, known in listed.items()
    }


def changed(names: Iterable[str], before: Listing) -> list[Path]:
    """The files of these caches that are new or other ones since."""
    return new_files(listing(names), before)


def new_files(now: Listing, before: Listing) -> list[Path]:
    """The files of the first listing that the second lacks, or has otherwise."""
    return [
        path
        for cache, known in now.items()
        for path, state in known.items()
        if before[cache].get(path) != state
    ]


def note_use(served_identity: str) -> None:
    """Note that the server whose identity is among a record's `served` starts with that work."""
    for path in sorted(paths.PROFILES.glob(f"*/{RECORDS}/*.json")):
        with suppress(OSError, ValueError):
            served = files.read_record(path, {"served": list})
            if served is not None and served_identity in served["served"]:
                _note_use(path)


def _note_use(record: Path) -> None:
    # Beside the record, whose own time says when the work was done.
    with suppress(OSError):
        record.with_suffix(places.USED).touch(places.LOCK_MODE)


def driver_environment(driver_version: str | None) -> dict[str, str]:
    """Leads what the driver itself compiles to a folder for this driver: no other one reads it."""
    if driver_version is None:
        return {}
    folder = paths.PROFILES / _DRIVER_CACHE / re.sub(r"[^\w.]", "_", driver_version)
    return dict.fromkeys(CACHES[_DRIVER_CACHE], str(folder))


def settings(environment: dict[str, Any]) -> dict[str, Any]:
    """A server's environment but for where its caches are."""
    return {name: value for name, value in environment.items() if name not in CACHE_VARIABLES}


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
    record = files.read_valid(records[-1], RECORD_SHAPE)
    if not record:
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
