"""The archive of finished caches: a tar file whose every byte follows from its manifest, so that
the same content is the same archive.

Its first member is the manifest, named by its own digest; each other one is the content of a file,
named by that content's digest. A reader knows from the manifest what every block has to be, and
takes nothing else: no link, no device, no other owner, no other name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sgl_admin.base import files, paths
from sgl_admin.contract.records import canonical, sha256
from sgl_admin.contract.texts import read_json_text
from sgl_admin.records.caches import RECORDS, WORK

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_MODE = 0o644
# Some 200,000 files; a manifest that claims to be longer is refused.
_LONGEST_MANIFEST = 64 << 20
_CHUNK = 1 << 20
# Smaller files go out in one call with their header.
_SMALL = 1 << 18
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}
# Both are printed, and of another release maybe.
_STAGE, _KEY = re.compile(r"[a-z][a-z0-9_]{0,39}"), re.compile(r"[0-9a-f]{16}")


class Broken(Exception):
    """What is read is not an archive as it was written; the message says where and why."""


class Changed(Exception):
    """A file was written to or removed while it was packed."""


@dataclass(frozen=True)
class Entry:
    """A file: its path below /profiles, and what it has to be."""

    path: str
    sha256: str
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True)
class Part:
    """A stage's work."""

    stage: str
    # By which the work is found among hosts that have not learned yet what a server asks for.
    key: str
    signature: dict[str, Any]
    # Whether all of it is there: batch sizes of an MoE tuning are shared as they come.
    finished: bool
    # What a host has to know beside its own settings to come to this signature.
    hints: dict[str, Any]
    files: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True)
class Manifest:
    parts: tuple[Part, ...]

    @cached_property
    def content(self) -> bytes:
        stages = {
            part.stage: {key: value for key, value in asdict(part).items() if key != "stage"}
            for part in self.parts
        }
        return canonical({"schema_version": "1", "stages": stages})

    @cached_property
    def digest(self) -> str:
        """It stands for every byte of the archive."""
        return sha256(self.content)

    def blobs(self) -> dict[str, list[Entry]]:
        """The files of each content, in the order of the archive."""
        found: dict[str, list[Entry]] = {}
        # As the manifest has them: its readers know no other order of the stages.
        for part in sorted(self.parts, key=lambda part: part.stage):
            for entry in part.files:
                found.setdefault(entry.sha256, []).append(entry)
        return found


# --- writing -------------------------------------------------------------------------------------


def entries(names: Iterable[Path]) -> tuple[Entry, ...]:
    """What these files are now, by path; each is read whole. Raises Changed, OSError."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return tuple(pool.map(_entry, sorted(names)))


def portable_mode(mode: int) -> int:
    """A file's mode for every host: its owner's bits, and for others the same without writing. A
    host takes from it what its own umask takes.
    """
    owner = mode & 0o700
    shared = owner & 0o500
    return owner | shared >> 3 | shared >> 6


def _entry(name: Path) -> Entry:
    if not name.is_relative_to(paths.PROFILES):
        raise Changed(f"{files.printable(str(name))} is not in the caches")
    relative = str(name.relative_to(paths.PROFILES))
    if (why := _unsafe(relative)) is not None:
        raise Changed(f"{files.printable(relative)} {why}")
    # hashlib.file_digest came with Python 3.11.
    digest = hashlib.sha256()
    with _opened(relative) as (stream, status):
        buffer = memoryview(bytearray(min(status.st_size + 1, _CHUNK)))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return Entry(
        relative,
        digest.hexdigest(),
        status.st_size,
        status.st_mtime_ns,
        portable_mode(status.st_mode),
    )


@contextmanager
def _opened(path: str) -> Iterator[tuple[FileIO, os.stat_result]]:
    """A file of the caches, and its state before it is read. Raises Changed where it is no regular
    file, or another one afterwards; OSError.
    """
    name = files.printable(path)
    try:
        stream = open(paths.PROFILES / path, "rb", buffering=0, opener=_as_it_is)
    except (FileNotFoundError, NotADirectoryError):
        raise Changed(f"{name} is gone") from None
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise
        raise Changed(f"{name} is not a file") from None
    with stream:
        before = os.fstat(stream.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise Changed(f"{name} is not a file")
        yield stream, before
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Changed(f"{name} was written to")


def _as_it_is(name: str, flags: int) -> int:
    """Through no link, and without waiting for the writer of a pipe."""
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def write(manifest: Manifest, stream: BinaryIO) -> None:
    """The archive goes to `stream`, which has no buffer. Raises Changed where a file is not any
    more what the manifest says, OSError.
    """
    content = manifest.content
    header = _header(f"manifest-{manifest.digest.partition(':')[2]}.json", len(content))
    _write_all(stream, header + content + _padding(len(content)))
    for digest, found in manifest.blobs().items():
        _write_blob(stream, _header(f"files/{digest}", found[0].size), found[0])
    _write_all(stream, _END)


def _write_blob(stream: BinaryIO, header: bytes, entry: Entry) -> None:
    with _opened(entry.path) as (source, now):
        if (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns):
            raise Changed(f"{files.printable(entry.path)} was written to")
        if entry.size <= _SMALL:
            content = source.read(entry.size)
            if len(content) != entry.size:
                raise Changed(f"{files.printable(entry.path)} was cut")
            _write_all(stream, header + content + _padding(entry.size))
            return
        _write_all(stream, header)
        offset = 0
        while offset < entry.size:
            sent = _send(stream, source, offset, entry.size - offset)
            if not sent:
                raise Changed(f"{files.printable(entry.path)} was cut")
            offset += sent
    _write_all(stream, _padding(entry.size))


def _send(stream: BinaryIO, source: BinaryIO, offset: int, count: int) -> int:
    """Bytes that went over; 0 at the source's end."""
    try:
        return os.sendfile(stream.fileno(), source.fileno(), offset, count)
    except OSError as error:
        # What is opened for appending takes none (sendfile(2)).
        if error.errno != errno.EINVAL:
            raise
    content = os.pread(source.fileno(), min(_CHUNK, count), offset)
    _write_all(stream, content)
    return len(content)


def _write_all(stream: BinaryIO, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def size_of(manifest: Manifest) -> int:
    """Bytes of the archive."""
    members = [len(manifest.content), *(found[0].size for found in manifest.blobs().values())]
    return sum(_BLOCK + size + len(_padding(size)) for size in members) + len(_END)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, _MODE
    # GNU's form takes a size beyond 8 GiB.
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


# --- reading -------------------------------------------------------------------------------------


class Reader:
    """Reads an archive once, from its beginning to its end."""

    def __init__(self, stream: BinaryIO) -> None:
        """Reads the manifest. Raises Broken, OSError."""
        self._stream = stream
        self._buffer = bytearray(_CHUNK)
        block = self._take(_BLOCK, "its manifest")
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Broken(
                f"it does not begin with a manifest ({error}): it is no archive of `sgl-admin"
                " caches export`"
            ) from None
        if not member.name.startswith("manifest-") or not 0 < member.size <= _LONGEST_MANIFEST:
            raise Broken(
                f"it begins with {files.printable(member.name[:80])} of {member.size} bytes, not"
                " with a manifest"
            )
        self._check(block, member.name, member.size, "the manifest")
        content = self._take(member.size, "its manifest")
        self._padding(member.size)
        digest = hashlib.sha256(content).hexdigest()
        if member.name != f"manifest-{digest}.json":
            raise Broken("its manifest is not the one that its name says: it was changed")
        self.manifest = parse(content)

    def read(self, receive: Callable[[list[Entry]], BinaryIO | None]) -> None:
        """Verify all that follows; `receive` says where the content of these files goes, if
        anywhere. Raises Broken, OSError.
        """
        for digest, found in self.manifest.blobs().items():
            name, size = f"files/{digest}", found[0].size
            what = files.printable(found[0].path)
            self._check(self._take(_BLOCK, what), name, size, what)
            target = receive(found)
            try:
                self._copy(size, digest, target, what)
            finally:
                if target is not None:
                    target.close()
            self._padding(size)
        if self._take(len(_END), "its end") != _END:
            raise Broken("it holds more than its manifest names")
        if self._stream.read(1):
            raise Broken("it goes on after its end")

    def _copy(self, size: int, digest: str, target: BinaryIO | None, what: str) -> None:
        found, left = hashlib.sha256(), size
        while left:
            view = memoryview(self._buffer)[: min(left, _CHUNK)]
            count = self._stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise Broken(f"it ends in the middle of {what}")
            found.update(view[:count])
            if target is not None:
                _write_all(target, view[:count])
            left -= count
        if found.hexdigest() != digest:
            raise Broken(
                f"the content of {what} has another digest than the manifest says: it was changed"
            )

    def _take(self, size: int, what: str) -> bytes:
        parts, left = [], size
        while left:
            part = self._stream.read(min(left, _CHUNK))
            if not part:
                raise Broken(f"it ends before {what} does")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _padding(self, size: int) -> None:
        padding = _padding(size)
        if padding and self._take(len(padding), "a member") != padding:
            raise Broken("something lies between its members")

    @staticmethod
    def _check(block: bytes, name: str, size: int, what: str) -> None:
        if block != _header(name, size):
            raise Broken(f"where {what} is due, it has {_describe(block, name, size)}")


def _describe(block: bytes, name: str, size: int) -> str:
    """How a header differs from the one that is due."""
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return "its end" if not any(block) else f"no header of a tar file ({error})"
    called = files.printable(member.name[:120])
    if member.type != tarfile.REGTYPE:
        return f"{_KINDS.get(member.type, 'something else than a file')}, {called}"
    if (member.uid, member.gid, member.uname, member.gname) != (0, 0, "", ""):
        return f"a file of another owner ({member.uid}:{member.gid}), {called}"
    if member.name != name:
        return f"another file, {called}"
    if member.size != size:
        return f"{member.size} bytes where the manifest says {size}"
    return "a header that export did not write"


def parse(content: bytes) -> Manifest:
    """A manifest's bytes. Raises Broken."""
    try:
        document = read_json_text(content.decode())
    except ValueError as error:
        raise Broken(f"its manifest is not JSON: {str(error)[:200]}") from None
    if (
        not isinstance(document, dict)
        or document.get("schema_version") != "1"
        or not isinstance(document.get("stages"), dict)
    ):
        raise Broken("its manifest is of another form: it is from another release, or no manifest")
    manifest = Manifest(tuple(_part(stage, found) for stage, found in document["stages"].items()))
    _check_entries(entry for part in manifest.parts for entry in part.files)
    try:
        same = manifest.content == content
    except ValueError:
        same = False
    if not same:
        raise Broken("its manifest is not written as export writes one")
    return manifest


def _check_entries(entries: Iterable[Entry]) -> None:
    """Raises Broken where the files of a manifest contradict each other."""
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    for entry in entries:
        if sizes.setdefault(entry.sha256, entry.size) != entry.size:
            raise Broken(
                f"its manifest gives one content two sizes ({files.printable(entry.path)})"
            )
        if entry.path in seen:
            raise Broken(f"its manifest names {files.printable(entry.path)} twice")
        seen.add(entry.path)
    for path in seen:
        for folder in map(str, PurePosixPath(path).parents):
            if folder in seen:
                raise Broken(
                    f"its manifest names {files.printable(folder)} as a file and as a folder"
                )


def _part(stage: str, found: Any) -> Part:
    kinds = {"key": str, "signature": dict, "finished": bool, "hints": dict, "files": list}
    if not _has(found, kinds):
        raise Broken(f"its manifest has no valid stage {files.printable(stage[:40])}")
    if not _STAGE.fullmatch(stage) or not _KEY.fullmatch(found["key"]) or not found["files"]:
        raise Broken(
            f"its manifest has a stage {files.printable(stage[:40])} of another form: its name, its"
            " key, or it has no files"
        )
    return Part(stage, **{**found, "files": tuple(_entry_of(each) for each in found["files"])})


def _entry_of(found: Any) -> Entry:
    kinds = {"path": str, "sha256": str, "size": int, "mtime_ns": int, "mode": int}
    if not _has(found, kinds):
        raise Broken("its manifest has a file without path, sha256, size, mtime_ns and mode")
    entry = Entry(**found)
    name = files.printable(entry.path[:120])
    if (why := _unsafe(entry.path)) is not None:
        raise Broken(f"its manifest names {name}, which {why}")
    if len(entry.sha256) != 64 or not set(entry.sha256) <= set("0123456789abcdef"):
        raise Broken(f"its manifest has no digest of {name}")
    if (
        not 0 <= entry.size < 2**63
        or not 0 <= entry.mtime_ns < 2**63
        or not 0 <= entry.mode <= 0o777
    ):
        raise Broken(f"its manifest has a size, a time or a mode of {name} that no file has")
    return entry


def _has(found: Any, kinds: dict[str, type]) -> bool:
    """Whether it is an object of just these keys and types; true is no integer."""
    return isinstance(found, dict) and {key: type(value) for key, value in found.items()} == kinds


def _unsafe(path: str) -> str | None:
    """Why no file of a cache has such a path; None where one may."""
    steps = path.split("/")
    if len(_encodable(path).encode()) > 3000 or any(
        len(_encodable(step).encode()) > 255 for step in steps
    ):
        return "is longer than a path can be"
    if "\0" in path or _encodable(path) != path:
        return "is no text that can name a file"
    if len(steps) < 2 or any(step in ("", ".", "..") for step in steps):
        return "leads out of the caches"
    if RECORDS in steps or WORK in steps:
        return "is a record of another host, or of work in progress"
    return None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
