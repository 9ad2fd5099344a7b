# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of a host tree may go, and its removal, for the host and for the container alike.

Locks say what is in use, and what cannot be read counts as in use. Whatever goes is renamed into
a folder aside first: a prune that is killed leaves whole records, and the next one removes the
rest.
Everything goes by directory descriptors, and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import locks, places, records, trees


@dataclass(frozen=True)
class Kind:
    """Something that grows: how many of it are kept, or for how many days, what it is called in a
    summary, and its bound as the manual describes it. `in_tree`: it lies in the host tree.
    """

    name: str
    default: int
    words: str
    text: str
    counted: bool = False
    in_tree: bool = False


KINDS = (
    Kind(
        "runs",
        30,
        "runs",
        "How many runs, with their samples, traces and logs.",
        counted=True,
        in_tree=True,
    ),
    Kind(
        "caches",
        90,
        "cache files",
        "For how many days since a prep or a server last used them, kernel caches.",
        in_tree=True,
    ),
    Kind(
        "journals",
        30,
        "tuning journals",
        "For how many days, what tunings that did not finish had found.",
        in_tree=True,
    ),
    Kind(
        "builds",
        90,
        "downloads for image builds",
        "For how many days, downloads for image builds.",
    ),
    Kind(
        "images",
        2,
        "images",
        "How many images of ours beside those that are named or used.",
        counted=True,
    ),
    Kind("reports", 200, "reports", "How many reports, on the controller.", counted=True),
    Kind(
        "shared",
        90,
        "shared archives",
        "For how many days since they were last used, archives in O(sgl_cache_dir).",
    ),
)
A_DAY_S = 86400
# What a prune has renamed and not removed yet.
ASIDE = ".pruned"
LOCK = "prune"
# Tuned configurations are small, and cost hours: they stay.
_PRUNED_CACHES = tuple(cache for cache in places.CACHES if cache != places.MOE_CONFIGS)
_RECORD_END = ".record"
_MOST_POINTER, _MOST_RECORD = 1 << 16, 1 << 28
_RUN_NAME = re.compile(rf"({records.RUN_ID.pattern})(?:\.json|\.log(?:\.\d+)?)?")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class PruneError(Exception):
    """Nothing can be pruned; the message says why, with the remedy."""


@dataclass
class Freed:
    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size


@dataclass
class Summary:
    """What goes, by kind, and sentences about what stays although it is beyond its bound."""

    freed: dict[str, Freed] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    def of(self, kind: str) -> Freed:
        return self.freed.setdefault(kind, Freed())

    def to_json(self) -> dict[str, Any]:
        return {
            "freed": {
                kind: {"count": freed.count, "bytes": freed.bytes}
                for kind, freed in self.freed.items()
                if freed.count
            },
            "bytes": sum(freed.bytes for freed in self.freed.values()),
            "kept": self.kept,
        }


def bounds(given: Mapping[str, Any]) -> dict[str, int]:
    """What is kept, of each kind: the default where sgl_keep does not name it."""
    return {
        **{kind.name: kind.default for kind in KINDS},
        **{name: int(value) for name, value in given.items()},
    }


# What each kind, and what else goes, is called where a person reads it.
WORDS = {
    **{kind.name: kind.words for kind in KINDS},
    "tree": "parts of the host tree",
    "leftovers": "leftovers of a killed prune",
}


def lines(summary: Mapping[str, Any], dry_run: bool) -> list[str]:
    """A summary, as `to_json` gives it, for a person."""
    found = [
        f"{WORDS.get(kind, kind)}: {freed['count']} ({size(freed['bytes'])})"
        for kind, freed in summary["freed"].items()
    ]
    verb = "would free" if dry_run else "freed"
    return [*found, f"{verb} {size(summary['bytes'])}", *summary["kept"]]


def size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


class Tree:
    """The open folders of a host tree; `profiles` is None where there is none."""

    def __init__(
        self, telemetry: int | None, profiles: int | None, keep: Mapping[str, int], now: float
    ) -> None:
        self._telemetry = telemetry
        self._profiles = profiles
        self._keep = keep
        self._now = now

    def prune(self, dry_run: bool, live: Iterable[str] = ()) -> Summary:
        """`live` are runs that the caller knows to be in use. Raises PruneError where another
        prune runs, and OSError.
        """
        summary = Summary()
        with self._alone(dry_run):
            if self._telemetry is not None:
                self._empty_aside(self._telemetry, summary, dry_run)
                self._prune_runs(self._telemetry, set(live), summary, dry_run)
            if self._profiles is not None:
                self._prune_profiles(self._profiles, summary, dry_run)
        return summary

    def _old(self, kind: str, changed: float) -> bool:
        return changed < self._now - self._keep[kind] * A_DAY_S

    @contextlib.contextmanager
    def _alone(self, dry_run: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._profiles is not None and not dry_run:
                folder = stack.enter_context(trees.inner(self._profiles, places.LOCKS))
                if folder is not None:
                    descriptor = locks.open_file(f"{LOCK}.lock", dir_fd=folder)
                    stack.callback(os.close, descriptor)
                    _take(descriptor, "another prune runs on this host: wait until it ends")
            yield

    # --- runs

    def _prune_runs(self, telemetry: int, live: set[str], summary: Summary, dry_run: bool) -> None:
        found = _runs(telemetry)
        # Run ids are in the order of time. The newest one may be about to start.
        beyond = found[: -max(1, self._keep["runs"])]
        if not beyond:
            return
        pointed, problem = self._pointed_run(telemetry)
        if problem is not None:
            summary.kept.append(f"{len(beyond)} runs beyond the bound stay: {problem}")
            return
        for run_id in beyond:
            if run_id in live or run_id == pointed:
                summary.kept.append(f"{run_id} stays: it is the live run")
            elif _run_in_use(telemetry, run_id):
                summary.kept.append(f"{run_id} stays: one of its services runs")
            else:
                self._prune_run(telemetry, run_id, summary, dry_run)

    def _pointed_run(self, telemetry: int) -> tuple[str | None, str | None]:
        """The run that the pointer names, or why it is not known which run is live."""
        try:
            text = records.read_bytes(Path(places.POINTER), _MOST_POINTER, _inside(telemetry))
        except FileNotFoundError:
            held = None if self._profiles is None else _held(self._profiles, places.RUN_LOCKS)
            return None, held and f"there is no pointer, and the lock {held} is held"
        except (OSError, ValueError) as error:
            return None, f"the pointer {places.POINTER} cannot be read ({error})"
        named = records.parse_pointer(text.decode("utf-8", "replace")).get(records.POINTER_KEY, "")
        run_id = os.path.basename(named).removesuffix(".json")
        if not records.RUN_ID.fullmatch(run_id):
            return None, f"the pointer {places.POINTER} names no run"
        return run_id, None

    def _prune_run(self, telemetry: int, run_id: str, summary: Summary, dry_run: bool) -> None:
        """The manifest goes first: without it, no reader takes what is left for a run."""
        parts = [
            (places.RUNS, f"{run_id}.json"),
            (places.RUNS, run_id),
            *((places.LOGS, name) for name in self._logs(telemetry, run_id)),
            (places.PROMETHEUS, run_id),
            (places.JAEGER, run_id),
        ]
        size = 0
        try:
            for folder, name in parts:
                with trees.inner(telemetry, folder) as descriptor:
                    if descriptor is None:
                        continue
                    size += trees.allocated(descriptor, name)
                    if not dry_run:
                        _set_aside(descriptor, name, telemetry)
            if not dry_run:
                _remove_aside(telemetry)
        except OSError as error:
            summary.kept.append(f"{run_id} is not removed: {_reason(error)}")
            return
        summary.of("runs").add(size)

    @staticmethod
    def _logs(telemetry: int, run_id: str) -> list[str]:
        with trees.inner(telemetry, places.LOGS) as folder:
            names = [] if folder is None else os.listdir(folder)
        return sorted(name for name in names if name.startswith(f"{run_id}.log"))

    @staticmethod
    def _empty_aside(top: int, summary: Summary, dry_run: bool) -> None:
        """What a killed prune had renamed and not removed."""
        with trees.inner(top, ASIDE) as folder:
            if folder is None:
                return
            for name in os.listdir(folder):
                summary.of("leftovers").add(trees.allocated(folder, name))
        if not dry_run:
            _remove_aside(top)

    # --- caches and journals

    def _prune_profiles(self, profiles: int, summary: Summary, dry_run: bool) -> None:
        with contextlib.ExitStack() as stack:
            held = _held(profiles) if dry_run else _hold_all(profiles, stack)
            if held:
                summary.kept.append(
                    f"caches and tuning journals stay: the lock {held} is held, so they are in use"
                )
                return
            self._prune_caches(profiles, summary, dry_run)
            self._prune_journals(profiles, summary, dry_run)

    def _prune_caches(self, profiles: int, summary: Summary, dry_run: bool) -> None:
        """The records of work that no prep and no server has used for long, and the files that no
        other record names.
        """
        try:
            kept, old = self._records(profiles)
        except (OSError, ValueError) as error:
            summary.kept.append(f"caches stay: a record of what they hold cannot be read ({error})")
            return
        named = {name for listed in kept for name in listed}
        if not dry_run:
            for cache, name, _listed in old:
                with trees.inner(profiles, cache, places.SIGNATURES) as folder:
                    if folder is not None:
                        _set_aside(folder, name, profiles, _RECORD_END)
                        _set_aside(folder, _used(name), profiles)
        left, listed_aside = self._records_aside(profiles)
        gone = {name for *_where, listed in old for name in listed} | listed_aside
        for name in sorted(gone - named):
            self._prune_file(profiles, name, summary, dry_run)
        if not dry_run and left | bool(old):
            _remove_aside(profiles)

    def _records(
        self, profiles: int
    ) -> tuple[list[dict[str, Any]], list[tuple[str, str, dict[str, Any]]]]:
        """What the records name that were used lately, and the others with their places. Raises
        OSError and ValueError.
        """
        kept: list[dict[str, Any]] = []
        old = []
        for cache in places.CACHES:
            with trees.inner(profiles, cache, places.SIGNATURES) as folder:
                if folder is None:
                    continue
                for name in sorted(os.listdir(folder)):
                    if not name.endswith(".json"):
                        continue
                    listed = _listed(folder, name)
                    used = max(trees.latest_change(folder, each) for each in (name, _used(name)))
                    if cache in _PRUNED_CACHES and self._old("caches", used):
                        old.append((cache, name, listed))
                    else:
                        kept.append(listed)
        return kept, old

    @staticmethod
    def _records_aside(profiles: int) -> tuple[bool, set[str]]:
        """Whether there is a folder aside, and what the records there name."""
        names: set[str] = set()
        with trees.inner(profiles, ASIDE) as folder:
            if folder is None:
                return False, names
            for name in os.listdir(folder):
                if name.endswith(_RECORD_END):
                    with contextlib.suppress(OSError, ValueError):
                        names |= set(_listed(folder, name))
        return True, names

    def _prune_file(self, profiles: int, name: str, summary: Summary, dry_run: bool) -> None:
        """A file of a cache, and the folders that are empty without it. A file that was written
        since is in use, and stays.
        """
        *folders, last = name.split("/")
        if not folders or folders[0] not in _PRUNED_CACHES or {"", ".", ".."} & {*folders, last}:
            return
        try:
            with trees.inner(profiles, *folders) as folder:
                if folder is None:
                    return
                info = os.stat(last, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISREG(info.st_mode) or not self._old("caches", info.st_mtime):
                    return
                size = trees.allocated(folder, last)
                if not dry_run:
                    os.unlink(last, dir_fd=folder)
            if not dry_run:
                _remove_empty(profiles, folders)
        except FileNotFoundError:
            return
        except OSError as error:
            summary.kept.append(f"{name} is not removed: {_reason(error)}")
            return
        summary.of("caches").add(size)

    def _prune_journals(self, profiles: int, summary: Summary, dry_run: bool) -> None:
        """What tunings that were not finished had found, each in a folder of its own."""
        try:
            with trees.inner(profiles, places.MOE_CONFIGS, places.TUNING) as folder:
                if folder is None:
                    return
                for name in sorted(os.listdir(folder)):
                    if not self._old("journals", trees.latest_change(folder, name)):
                        continue
                    size = trees.allocated(folder, name)
                    if not dry_run:
                        _set_aside(folder, name, profiles)
                    summary.of("journals").add(size)
            if not dry_run:
                _remove_aside(profiles)
        except OSError as error:
            summary.kept.append(f"tuning journals stay: {_reason(error)}")


# --- what is in use -------------------------------------------------------------------------------


def used_by(telemetry: int | None = None, profiles: int | None = None) -> str | None:
    """What uses these open folders of a tree, in words; None where nothing does."""
    if profiles is not None and (held := _held(profiles)):
        return f"the lock {held} is held"
    if telemetry is not None:
        for run_id in _runs(telemetry):
            if _run_in_use(telemetry, run_id):
                return f"a service of {run_id} runs"
    return None


def _runs(telemetry: int) -> list[str]:
    found = set()
    for folder in places.TELEMETRY_FOLDERS:
        with trees.inner(telemetry, folder) as descriptor:
            names = [] if descriptor is None else os.listdir(descriptor)
        found |= {match[1] for name in names if (match := _RUN_NAME.fullmatch(name))}
    return sorted(found)


def _run_in_use(telemetry: int, run_id: str) -> bool:
    """Prometheus holds a lock on the file `lock` of its storage (tsdb/fileutil/flock_unix.go),
    and Jaeger's badger one on each of its two folders (dir_lock_unix.go).
    """
    return (
        _is_held(telemetry, places.PROMETHEUS, run_id, places.PROMETHEUS_LOCK)
        or _is_held(telemetry, places.JAEGER, run_id, "key")
        or _is_held(telemetry, places.JAEGER, run_id, "data")
    )


# --- files ----------------------------------------------------------------------------------------


def _take(descriptor: int, refusal: str) -> None:
    """Raises PruneError where another process holds the lock, or the file system has none."""
    try:
        locks.take(descriptor, 0, refusal)
    except locks.LockTimeout:
        raise PruneError(f"{refusal} ({locks.holder(descriptor)})") from None
    except OSError as error:
        raise PruneError(
            f"the file system of profiles has no locks ({error.strerror}), so nothing tells what"
            " is in use: mount it with locks (NFS: without nolock), or remove by hand after"
            " playbooks/stop.yml"
        ) from error


def _held(profiles: int, names: Iterable[str] | None = None) -> str | None:
    """The first of the tree's locks, or of these, that some process holds."""
    try:
        with trees.inner(profiles, places.LOCKS) as folder:
            if folder is None:
                return None
            known = _lock_files(folder) if names is None else [f"{name}.lock" for name in names]
            return next((name for name in known if _is_held(folder, name)), None)
    except OSError:
        return places.LOCKS


def _hold_all(profiles: int, stack: contextlib.ExitStack) -> str | None:
    """Hold all locks, so that neither a prep nor a server begins; or the first that is held by
    another process.
    """
    try:
        with trees.inner(profiles, places.LOCKS) as folder:
            if folder is None:
                return None
            for name in sorted({f"{places.LOCK_PREP}.lock", *_lock_files(folder)}):
                descriptor = locks.open_file(name, dir_fd=folder)
                stack.callback(os.close, descriptor)
                try:
                    locks.take(descriptor, 0, name)
                except OSError:
                    return name
    except OSError:
        return places.LOCKS
    return None


def _lock_files(folder: int) -> list[str]:
    return sorted(
        name for name in os.listdir(folder) if name.endswith(".lock") and name != f"{LOCK}.lock"
    )


def _is_held(top: int, *way: str) -> bool:
    """Whether some process holds the flock of what lies at `way` below an open folder. What cannot
    be asked counts as held.
    """
    *folders, last = way
    try:
        with trees.inner(top, *folders) as folder:
            if folder is None:
                return False
            descriptor = os.open(last, _READ, dir_fd=folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _inside(folder: int) -> records.Opener:
    """Opens a file of an open folder, and no link."""
    return lambda name, flags: os.open(name, flags | _READ, dir_fd=folder)


def _listed(folder: int, name: str) -> dict[str, Any]:
    """The files that a signature's record names. Raises OSError, and ValueError where it is no
    such record.
    """
    document = records.read_json(Path(name), _MOST_RECORD, _inside(folder))
    listed = (document or {}).get("files")
    if not isinstance(listed, dict):
        raise ValueError(f"{name} names no files")
    return listed


def _used(name: str) -> str:
    return name[: -len(".json")] + places.USED


def _set_aside(folder: int, name: str, top: int, ending: str = "") -> None:
    """Rename what goes into the folder aside at the top of the tree. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(ASIDE, 0o700, dir_fd=top)
    with trees.inner(top, ASIDE) as aside:
        if aside is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ASIDE)
        target = f"{secrets.token_hex(8)}{ending}"
        try:
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=aside)
        except FileNotFoundError:
            return
        except OSError as error:
            # A folder of the tree may be a disk of its own.
            if error.errno != errno.EXDEV:
                raise
            trees.remove_tree(folder, name)
            return
        os.fsync(folder)


def _remove_aside(top: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        trees.remove_tree(top, ASIDE)


def _remove_empty(top: int, folders: list[str]) -> None:
    """The folders on the way to a file that hold nothing, up to the cache."""
    for depth in range(len(folders), 1, -1):
        with trees.inner(top, *folders[: depth - 1]) as above:
            if above is None:
                return
            try:
                os.rmdir(folders[depth - 1], dir_fd=above)
            except OSError:
                return


def _reason(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}"
