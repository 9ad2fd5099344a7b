# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Are a model's bytes the ones that were published: digests that were recorded, against what this
host has read of its files.

Two files in the model's folder. The record travels with the model and says what its files must be;
without one, what the Hugging Face client noted when it downloaded them serves. The memo says what
this host has read, and holds for as long as a file's size, modification time and inode are the
same, so an unchanged model is never read twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import _model_files as model_files
from ._contract.records import fsync_folder, is_integer
from ._contract.texts import path_line
from ._model_files import HUB_METADATA, RECORD, ModelError, several

MEMO = ".sgl-verified.json"
# What staging keeps beside a model that is on its way.
STATE, SOURCE_MEMO, HUB_STATE, HUB_LOG = (
    ".sgl-staging.json",
    ".sgl-source.json",
    ".sgl-hub.json",
    ".sgl-hub.log",
)
OURS = frozenset(
    name + end
    for name in (RECORD, MEMO, STATE, SOURCE_MEMO, HUB_STATE, HUB_LOG)
    for end in ("", ".tmp")
)
_UNFINISHED = (".part", ".incomplete")
_TEMPORARY = re.compile(r"(.+)\.([0-9]+)\.tmp")
SHA256, GIT_SHA1 = "sha256", "git_sha1"

# Bytes done and bytes in all.
Progress = Callable[[int, int], None]

_HEX = {SHA256: re.compile("[0-9a-f]{64}"), GIT_SHA1: re.compile("[0-9a-f]{40}")}
_BUFFER = 4 << 20
_MOST_JOBS = 16
# A killed run loses what it read in this time; a memo for each of hundreds of small files would
# cost more than reading them.
_SAVE_EVERY_S = 1.0
_REPORT_EVERY_S = 0.5
# A file that was written this short a time ago may change again within the same tick of its
# modification time.
_TICK_NS = 20_000_000
# A full reading that was interrupted longer ago begins again.
_FULL_LASTS_S = 86400.0


class Digest(NamedTuple):
    """What a file has to be. ``kind`` is SHA256 or GIT_SHA1 (git's name of a blob, which the hub
    has for small files).
    """

    kind: str
    value: str
    size: int | None


@dataclass
class Record:
    """The recorded digests of a folder; ``origin`` is ``record``, ``hub`` or, where there are none,
    None.
    """

    origin: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Digest] = field(default_factory=dict)


class Entry(NamedTuple):
    """What was read of a file: its size in bytes, modification time and inode then, and its
    digests.
    """

    size: int
    mtime_ns: int
    inode: int
    sha256: str
    git_sha1: str | None

    def is_of(self, info: os.stat_result) -> bool:
        return self[:3] == (info.st_size, info.st_mtime_ns, info.st_ino)

    def digest(self, kind: str) -> str | None:
        return self.sha256 if kind == SHA256 else self.git_sha1


@dataclass
class Verification:
    """What is known of a model's files; sizes in bytes. ``recorded`` is False where no digest is
    there to hold them against.
    """

    recorded: bool
    files: int = 0
    bytes_total: int = 0
    bytes_done: int = 0
    # Of bytes_done, what this call has read.
    bytes_read: int = 0
    done: bool = True
    unverified: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    # With the size that the file has.
    size_changed: dict[str, int] = field(default_factory=dict)
    # What was read is not what was recorded.
    damaged: list[str] = field(default_factory=list)
    # Files that count and of which the record says nothing.
    unrecorded: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # The record was written by this call.
    wrote_record: bool = False

    @property
    def verified(self) -> bool:
        """Every file that counts is, as far as this host has read it, what was recorded."""
        wrong = (
            self.unverified or self.missing or self.size_changed or self.damaged or self.unrecorded
        )
        return self.recorded and self.done and not wrong

    @property
    def sound(self) -> bool:
        """Nothing is known to be wrong, though not everything may have been read."""
        return not (self.missing or self.size_changed or self.damaged)


@dataclass(frozen=True)
class Slice:
    """What one slice came to; ``bytes_moved`` is what it copied or read itself."""

    done: bool
    bytes_done: int
    bytes_total: int
    bytes_moved: int = 0


def is_digest(kind: str, value: object) -> bool:
    return isinstance(value, str) and _HEX[kind].fullmatch(value) is not None


def is_number(value: object) -> bool:
    return is_integer(value) and value >= 0


def is_ours(name: str) -> bool:
    """Whether the file of this name is one of ours, or one of them that is being written."""
    temporary = _TEMPORARY.fullmatch(name)
    return name in OURS or bool(temporary and temporary[1] in OURS)


def may_count(name: str) -> bool:
    """Whether a record may name this file: below the folder, and none of ours, which change."""
    return model_files.is_below(name) and not is_ours(os.path.basename(name))


# --- the record -----------------------------------------------------------------------------------


def read_record(path: str) -> Record:
    """The digests that the model in ``path`` came with. Raises ModelError for an invalid
    record.
    """
    file = os.path.join(path, RECORD)
    if not os.path.lexists(file):
        found = {**_from_cache(path), **_from_metadata(path)}
        return Record("hub", {"kind": "hub"}, found) if found else Record()
    why = f"{path_line(file)} is no valid record of digests"
    remedy = "stage the model again, or remove that file to take the model as it is"
    document = model_files.json_object(file, model_files.load(file))
    files, source = document.get("files"), document.get("source")
    if (
        document.get("schema_version") != "1"
        or not isinstance(files, dict)
        or not isinstance(source, dict)
    ):
        raise ModelError(f"{why} of schema 1: {remedy}")
    digests: dict[str, Digest] = {}
    for name, value in files.items():
        kinds = [kind for kind in _HEX if isinstance(value, dict) and kind in value]
        if not may_count(name) or not kinds or not is_number(value.get("size")):
            raise ModelError(f"{why}: its entry {path_line(name)[:80]!r} cannot be used: {remedy}")
        if not is_digest(kinds[0], value[kinds[0]]):
            raise ModelError(f"{why}: {path_line(name)[:80]} has an invalid digest: {remedy}")
        digests[name] = Digest(kinds[0], value[kinds[0]], value["size"])
    return Record("record" if digests else None, source, digests)


def _from_metadata(path: str) -> dict[str, Digest]:
    """What `hf download --local-dir` notes of each file: commit, etag and time, a line each. Of
    files that are gone it says nothing.
    """
    found: dict[str, Digest] = {}
    top = os.path.join(path, HUB_METADATA)
    for folder, _folders, names in os.walk(top):
        for name in names:
            inside = os.path.relpath(os.path.join(folder, name.removesuffix(".metadata")), top)
            there = may_count(inside) and os.path.lexists(os.path.join(path, inside))
            if not there or not name.endswith(".metadata"):
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError, ModelError):
                lines = model_files.load(os.path.join(folder, name)).decode("ascii").splitlines()
                if digest := _etag(lines[1].strip() if len(lines) > 1 else ""):
                    found[inside] = digest
    return found


def _from_cache(path: str) -> dict[str, Digest]:
    """The hub client's own cache: each file of a snapshot is a link to a blob, whose name is its
    etag.
    """
    found: dict[str, Digest] = {}
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # of what is no link
                folder, etag = os.path.split(os.readlink(entry.path))
                digest = _etag(etag) if os.path.basename(folder) == "blobs" else None
                if digest and may_count(entry.name):
                    found[entry.name] = digest
    return found


def _etag(text: str) -> Digest | None:
    """An etag of 64 digits is the SHA-256 of a large file, one of 40 git's name of a small one."""
    return next((Digest(kind, text, None) for kind in _HEX if is_digest(kind, text)), None)


def write_record(path: str, source: dict[str, Any], files: dict[str, Entry]) -> None:
    """Write the record of ``files``. Raises ModelError where it cannot be written."""
    document = {
        "schema_version": "1",
        "source": source,
        "recorded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": {
            name: {"sha256": entry.sha256, "size": entry.size}
            for name, entry in sorted(files.items())
        },
    }
    try:
        write_json(os.path.join(path, RECORD), document)
    except OSError as error:
        raise ModelError(
            f"{path_line(path)}/{RECORD} cannot be written ({error.strerror}): run the task as the"
            " folder's owner or with become: true"
        ) from error


def write_json(file: str, document: dict[str, Any]) -> None:
    """Replace a file whole, for the owner of its folder. Raises OSError."""
    # Each process has its own, so that two that write the same do not meet.
    folder, temporary = os.path.dirname(file), f"{file}.{os.getpid()}.tmp"
    owner = os.stat(folder)
    for name in os.listdir(folder):
        left = _TEMPORARY.fullmatch(name)
        if (
            left
            and left[1] == os.path.basename(file)
            and (left[2] == str(os.getpid()) or not os.path.exists(f"/proc/{left[2]}"))
        ):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with os.fdopen(fd, "w", encoding="ascii") as stream:
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            # Who may write in a folder may write its record.
            os.fchmod(fd, 0o644 | owner.st_mode & 0o020)
            json.dump(document, stream, indent=1)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_folder(folder)


# --- the memo -------------------------------------------------------------------------------------


class Memo:
    """What this host has read, in the file ``file``. One that cannot be used counts as empty: then
    the files are read again.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.entries: dict[str, Entry] = {}
        self.full_since: float | None = None
        # Where the file cannot be written, the memo is for this process alone.
        self.is_kept = True
        self._saved_at = 0.0
        with contextlib.suppress(ModelError):
            document = model_files.json_object(file, model_files.load(file))
            since, files = document.get("full_since"), document.get("files")
            if (
                isinstance(since, (int, float))
                and not isinstance(since, bool)
                and 0 <= time.time() - since < _FULL_LASTS_S
            ):
                self.full_since = since
            if document.get("schema_version") == "1" and isinstance(files, dict):
                self.entries = {
                    name: entry for name, value in files.items() if (entry := _entry(value))
                }

    def save(self) -> None:
        """Raises OSError."""
        if not self.is_kept:
            return
        files = {
            name: {key: value for key, value in entry._asdict().items() if value is not None}
            for name, entry in sorted(self.entries.items())
        }
        full = {"full_since": self.full_since} if self.full_since is not None else {}
        try:
            write_json(self.file, {"schema_version": "1", **full, "files": files})
        except FileNotFoundError:
            if not os.path.lexists(
                self.file
            ):  # else another process has renamed what was to be renamed
                raise
        self._saved_at = time.monotonic()

    def note(self, name: str, entry: Entry) -> None:
        """Raises OSError."""
        self.entries[name] = entry
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def vouches(self, name: str, info: os.stat_result, kind: str | None = None) -> Entry | None:
        """The entry, where the file is as it was when it was read and, where ``kind`` is given,
        that digest of it is known.
        """
        entry = self.entries.get(name)
        if entry is None or not entry.is_of(info) or (kind and entry.digest(kind) is None):
            return None
        return entry


def _entry(value: object) -> Entry | None:
    if not isinstance(value, dict) or not all(
        is_number(value.get(key)) for key in ("size", "mtime_ns", "inode")
    ):
        return None
    git = value.get("git_sha1")
    if not is_digest(SHA256, value.get("sha256")) or not (git is None or is_digest(GIT_SHA1, git)):
        return None
    return Entry(value["size"], value["mtime_ns"], value["inode"], value["sha256"], git)


# --- reading --------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The reading is to end at once."""


@dataclass
class _Reading:
    """One parallel reading of a folder's files: a queue, the largest first, and what came of it."""

    folder: str
    memo: Memo
    queue: deque[tuple[str, bool]]
    deadline: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    bytes_read: int = 0
    error: BaseException | None = None

    def work(self) -> None:
        """A thread's part: file after file, until there are none, the time is over or something
        failed.
        """
        buffer = memoryview(bytearray(_BUFFER))
        try:
            # At least one, so that there is an end however little time is given.
            while True:
                name, with_git = self.queue.popleft()
                entry = self._read(os.path.join(self.folder, name), with_git, buffer)
                with self.lock:
                    self.memo.note(name, entry)
                if time.monotonic() >= self.deadline or self.stop.is_set():
                    return
        except (IndexError, _Stopped):
            pass
        except BaseException as error:  # told by the thread that waits
            self.error = self.error or error
            self.stop.set()

    def wait(
        self, threads: list[threading.Thread], progress: Progress | None, before: int, total: int
    ) -> None:
        """Report progress until all threads have ended. Raises the first error of theirs."""
        for thread in threads:
            while thread.is_alive():
                thread.join(_REPORT_EVERY_S)
                if progress:
                    progress(before + self.bytes_read, total)
        if self.error:
            raise self.error
        if progress:
            progress(before + self.bytes_read, total)

    def _read(self, file: str, with_git: bool, buffer: memoryview) -> Entry:
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb", buffering=0) as handle:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise ModelError(f"{path_line(file)} is not a file: stage the model again")
                if 0 <= time.time_ns() - before.st_mtime_ns < _TICK_NS:
                    time.sleep(_TICK_NS / 1e9)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                sha256 = hashlib.sha256()
                git = (
                    hashlib.sha1(b"blob %d\0" % before.st_size, usedforsecurity=False)
                    if with_git
                    else None
                )
                while count := handle.readinto(buffer):
                    if self.stop.is_set():
                        raise _Stopped
                    sha256.update(buffer[:count])
                    if git:
                        git.update(buffer[:count])
                    with self.lock:
                        self.bytes_read += count
                entry = Entry(
                    before.st_size,
                    before.st_mtime_ns,
                    before.st_ino,
                    sha256.hexdigest(),
                    git.hexdigest() if git else None,
                )
                if not entry.is_of(os.fstat(fd)):
                    raise ModelError(
                        f"{path_line(file)} changed while it was read: run this again once nothing"
                        " writes to the model"
                    )
                return entry
        except OSError as error:
            raise model_files.unreadable(file, error) from error


def read_files(
    folder: str,
    infos: Mapping[str, os.stat_result],
    kinds: Mapping[str, str],
    memo: Memo,
    *,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> Slice:
    """Read into ``memo`` those of the files that it does not vouch for, several at a time, for
    ``budget_s`` seconds: then none but the first files is begun.

    ``kinds`` says for which files git's digest is wanted. The memo is saved at least each second
    and on the way out, also by an exception. Raises ModelError; OSError where it cannot be saved.
    """
    unread = {
        name: info.st_size
        for name, info in infos.items()
        if not memo.vouches(name, info, kinds.get(name))
    }
    total = sum(info.st_size for info in infos.values())
    before = total - sum(unread.values())
    if not unread:
        return Slice(True, total, total)
    largest_first = sorted(unread, key=lambda name: -unread[name])
    queue = deque((name, kinds.get(name) == GIT_SHA1) for name in largest_first)
    reading = _Reading(
        folder, memo, queue, time.monotonic() + budget_s if budget_s is not None else float("inf")
    )
    number = min(len(queue), len(os.sched_getaffinity(0)), _MOST_JOBS)
    threads = [threading.Thread(target=reading.work, daemon=True) for _ignored in range(number)]
    try:
        for thread in threads:
            thread.start()
        reading.wait(threads, progress, before, total)
    except BaseException:
        reading.stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        with contextlib.suppress(OSError):
            memo.save()
        raise
    memo.save()
    return Slice(not queue, before + reading.bytes_read, total, reading.bytes_read)


# --- verification ---------------------------------------------------------------------------------


def model_names(path: str) -> Iterator[str]:
    """The names, relative to ``path``, of all files of a model: none of ours, no unfinished
    download, no hidden folder's.
    """
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not is_ours(name) and not name.endswith(_UNFINISHED):
                yield os.path.relpath(os.path.join(folder, name), path)


def counting_files(path: str, record: Record) -> list[str]:
    """The files that have to be there: config, index, the weights, and what the record names.
    Raises ModelError.
    """
    weights = model_files.weight_files(path)
    names = {model_files.CONFIG, *map(os.path.normpath, weights.files), *record.files}
    if weights.index is not None:
        names.add(weights.index)
    return sorted(names)


def _look(
    path: str, record: Record, memo: Memo, names: list[str] | None = None
) -> tuple[Verification, dict[str, os.stat_result]]:
    """What the file system and the memo say of the files that count; the stat of each that is there
    and of the right size.
    """
    found = Verification(recorded=bool(record.files))
    infos: dict[str, os.stat_result] = {}
    for name in names or counting_files(path, record):
        found.files += 1
        wanted = record.files.get(name)
        try:
            info = os.stat(os.path.join(path, name))
        except (FileNotFoundError, NotADirectoryError):
            found.missing.append(name)
            continue
        except OSError as error:
            raise model_files.unreadable(os.path.join(path, name), error) from error
        found.bytes_total += info.st_size
        if not stat.S_ISREG(info.st_mode):
            found.missing.append(name)
            continue
        if wanted and wanted.size is not None and wanted.size != info.st_size:
            found.size_changed[name] = info.st_size
            continue
        infos[name] = info
        entry = memo.vouches(name, info, wanted.kind if wanted else None)
        found.bytes_done += info.st_size if entry else 0
        if wanted is None:
            found.unrecorded.append(name)
        elif entry is None:
            found.unverified.append(name)
        elif entry.digest(wanted.kind) != wanted.value:
            found.damaged.append(name)
    if not found.recorded:
        found.unrecorded = []
    return found, infos


def quick(path: str, *, must_be_sound: bool = False) -> Verification:
    """What is known without reading a file's content: is each file there, of its size, and vouched
    for by the memo.

    Raises ModelError for what cannot be inspected: an unreadable folder, an invalid index or
    record; with ``must_be_sound`` also for files that are known to be missing or damaged.
    """
    path = os.path.normpath(path)
    record, memo = read_record(path), Memo(os.path.join(path, MEMO))
    found = _look(path, record, memo)[0]
    if must_be_sound:
        raise_problems(path, found, record, memo)
    return found


def verify(path: str, *, full: bool = False, budget_s: float | None = None) -> Verification:
    """Read whatever the memo does not vouch for, or with ``full`` everything.

    After ``budget_s`` seconds no file is begun; call again until ``done``: a full reading goes on
    too, within a day. A memo that cannot be written is a warning, and then there is no budget, as
    nothing would be kept. Without any recorded digest ``full`` records what it read, and else
    nothing is read. Raises ModelError that names the files which are not what they were.
    """
    path = os.path.normpath(path)
    record = read_record(path)
    memo = Memo(os.path.join(path, MEMO))
    names = None
    if full and not record.files:  # all of the model is recorded, not only what a server needs
        names = sorted({*counting_files(path, record), *model_names(path)})
    found, infos = _look(path, record, memo, names)
    if found.missing or found.size_changed or not (found.unverified or full):
        raise_problems(path, found, record, memo)
        return found
    warnings = _begin_reading(memo, full)
    if not full:
        infos = {name: info for name, info in infos.items() if name in record.files}
    kinds = {name: digest.kind for name, digest in record.files.items()}
    try:
        part = read_files(path, infos, kinds, memo, budget_s=None if warnings else budget_s)
        if part.done and memo.full_since is not None:
            memo.full_since = None
            memo.save()
    except OSError as error:
        raise ModelError(
            f"{path_line(memo.file)} cannot be written ({error.strerror}): free space there, and"
            " run this again"
        ) from error
    found, infos = _look(path, record, memo, names)
    wrote = False
    if part.done:
        raise_problems(path, found, record, memo)
        if full and (found.unrecorded or not found.recorded):
            write_record(
                path,
                record.source or {"kind": "first use"},
                {name: memo.entries[name] for name in infos},
            )
            found, wrote = _look(path, read_record(path), memo)[0], True
    found.done, found.bytes_read = part.done, part.bytes_moved
    found.warnings, found.wrote_record = warnings, wrote
    return found


def _begin_reading(memo: Memo, full: bool) -> list[str]:
    """Save the memo to read into once; where it cannot be, it is for this call alone, with a
    warning.
    """
    if not full:
        memo.full_since = None
    elif memo.full_since is None:
        memo.entries, memo.full_since = {}, time.time()
    try:
        memo.save()
    except OSError as error:
        memo.is_kept = False
        return [
            f"{path_line(memo.file)} cannot be written ({error.strerror}), so the model is read"
            " again each time: make its folder writable"
        ]
    return []


def raise_problems(path: str, found: Verification, record: Record, memo: Memo) -> None:
    """Raises ModelError where files are missing, of another size or damaged; up to five by name,
    with what was expected and found.
    """
    problems = [f"{path_line(name)} (missing)" for name in found.missing]
    problems += [
        f"{path_line(name)} ({size} bytes, not {record.files[name].size})"
        for name, size in found.size_changed.items()
    ]
    problems += [difference(name, record.files[name], memo.entries[name]) for name in found.damaged]
    if problems:
        raise ModelError(
            f"the model {path_line(path)} has missing or damaged files,"
            f" {several(problems, found.files, 'files')}: stage it again (only these are copied)"
        )


def difference(name: str, wanted: Digest, entry: Entry) -> str:
    return (
        f"{path_line(name)} ({wanted.kind} {wanted.value[:12]}... expected,"
        f" {str(entry.digest(wanted.kind))[:12]}... found)"
    )
