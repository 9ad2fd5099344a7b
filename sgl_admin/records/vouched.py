"""Whether a cache's files are what a signature vouches for, also where another user can write.

Only a file's owner can set its time back. So where no other user gets to it, its size and its
time show that it is the same; where one does, or did when it was recorded, only its digest does.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.records import compiled

_CHUNK = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Of a record: by file, and whether another user could write to one of them when it was made.
DIGESTS, EXPOSED = "digests", "exposed"


class Exposure:
    """Which files of the caches another user could write to or exchange. Folders are looked at
    once.
    """

    def __init__(self) -> None:
        self._trusted = (0, os.geteuid())
        self._folders: dict[Path, bool] = {}
        try:
            top = os.stat(paths.PROFILES)
        except OSError:
            self._closed = False
        else:
            self._closed = top.st_uid in self._trusted and not top.st_mode & 0o077

    def of(self, path: Path, status: os.stat_result) -> bool:
        if status.st_uid not in self._trusted:
            return True
        return not self._closed and (bool(status.st_mode & _OTHERS_WRITE) or self.at(path.parent))

    def at(self, folder: Path) -> bool:
        """Whether another user can exchange names in a folder of the caches, or in one above."""
        if folder not in self._folders:
            self._folders[folder] = self._is_open(folder) or (
                folder != paths.PROFILES
                and folder.is_relative_to(paths.PROFILES)
                and self.at(folder.parent)
            )
        return self._folders[folder]

    def forged(self, record: Path) -> bool:
        """Whether another user could have written a record: then it vouches for nothing."""
        if self._closed:
            return False
        try:
            status = os.lstat(record)
        except OSError:
            return False
        return (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid not in self._trusted
            or bool(status.st_mode & _OTHERS_WRITE)
            or self._is_open(record.parent)
        )

    def _is_open(self, folder: Path) -> bool:
        try:
            status = os.lstat(folder)
        except OSError:
            return True
        return (
            not stat.S_ISDIR(status.st_mode)
            or status.st_uid not in self._trusted
            or bool(status.st_mode & _OTHERS_WRITE)
        )


def describe(content: Iterable[Path]) -> tuple[dict[str, dict[str, Any]], bool]:
    """By name below the caches: the digest and the time of each file, as a record has them; and
    whether another user could write to one. Raises OSError.
    """
    exposure, exposed = Exposure(), False
    found: dict[str, dict[str, Any]] = {}
    names = list(content)
    for path, digest in zip(names, _digests(names), strict=True):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # Compilers remove what they need no more.
        exposed = exposed or exposure.of(path, status)
        found[str(path.relative_to(paths.PROFILES))] = {
            "sha256": digest,
            "mtime_ns": status.st_mtime_ns,
        }
    return found, exposed


def problem(record: dict[str, Any]) -> str | None:
    """The first file of a record that is gone or another one, in words; None where none is."""
    digests = record.get(DIGESTS)
    known: dict[str, Any] = digests if isinstance(digests, dict) else {}
    exposure, doubtful = Exposure(), []
    for name, size in record["files"].items():
        path = paths.PROFILES / name
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return f"{files.printable(name)} is missing"
        if compiled.is_rewritten(name):
            continue  # A build's own log, which the next one adds to.
        if status.st_size != size:
            return f"{files.printable(name)} has changed its size"
        noted = known.get(name)
        exposed = record.get(EXPOSED) is True or exposure.of(path, status)
        if not isinstance(noted, dict):
            # Records of 1.0.0 have no digests.
            if exposed:
                return f"{files.printable(name)} could be changed by other users, and has no digest"
        elif exposed or noted.get("mtime_ns") != status.st_mtime_ns:
            doubtful.append((name, noted.get("sha256")))
    for (name, digest), found in zip(
        doubtful, _digests([paths.PROFILES / name for name, _ in doubtful]), strict=True
    ):
        if found is None or found != digest:
            return f"{files.printable(name)} has changed its content"
    return None


def sha256(path: Path) -> str | None:
    """The digest of a regular file; None where it cannot be read."""
    try:
        status = os.stat(path)
        # A file that is read twice by one command is read once.
        return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except (OSError, ValueError):
        return None


@cache
def _sha256(path: Path, *_state: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0, opener=files.without_blocking) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError(f"{path} is not a file")
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digests(names: list[Path]) -> list[str | None]:
    if not names:
        return []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(sha256, names))
