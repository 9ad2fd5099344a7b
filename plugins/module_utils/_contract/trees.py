# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing by directory descriptors: no link is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Each level of a walk holds a descriptor.
MAX_DEPTH = 200
_BLOCK = 512
_NO_FOLDER = (errno.ELOOP, errno.ENOTDIR)


def remove_tree(parent: int, name: str, depth: int = 0) -> None:
    """Remove a name and all below it, following nothing. Raises OSError."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, f"it is more than {MAX_DEPTH} folders deep", name)
    try:
        inside = os.open(name, FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        for entry in os.listdir(inside):
            remove_tree(inside, entry, depth + 1)
    finally:
        os.close(inside)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _statuses(parent: int, name: str, depth: int = 0) -> Iterator[os.stat_result]:
    """Of a name and of all below it that is there. Raises OSError, also where a link has taken a
    folder's place meanwhile.
    """
    if depth > MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, f"it is more than {MAX_DEPTH} folders deep", name)
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    yield info
    if not stat.S_ISDIR(info.st_mode):
        return
    try:
        inside = os.open(name, FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(inside):
            yield from _statuses(inside, entry, depth + 1)
    finally:
        os.close(inside)


def allocated(parent: int, name: str) -> int:
    """The bytes on disk that a name and all below it take. Raises OSError."""
    # Removing one of several names frees nothing.
    return sum(
        info.st_blocks * _BLOCK
        for info in _statuses(parent, name)
        if stat.S_ISDIR(info.st_mode) or info.st_nlink == 1
    )


def latest_change(parent: int, name: str) -> float:
    """When a name, or anything below it, was last modified; 0 where it is gone. Raises OSError."""
    return max((info.st_mtime for info in _statuses(parent, name)), default=0.0)


@contextlib.contextmanager
def opened(open_folder: Callable[[], int]) -> Iterator[int | None]:
    """A folder as `open_folder` opens it; None where it is not there. Raises OSError."""
    try:
        descriptor = open_folder()
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def inner(parent: int, *names: str) -> Iterator[int | None]:
    """A folder below an open one, by its names on the way; None where it is not there. Raises
    OSError, for a link too.
    """
    descriptor = os.dup(parent)
    try:
        for name in names:
            try:
                below = os.open(name, FOLDER, dir_fd=descriptor)
            except FileNotFoundError:
                yield None
                return
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)
