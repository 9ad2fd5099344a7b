# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Locks that other users cannot hold: any process that can open a file, even to read it, can hold
its flock. /proc/locks says which one does.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .places import LOCK_MODE
from .texts import path_line, printable

_POLL_S = 0.1
_TABLE = "/proc/locks"


class LockTimeout(TimeoutError):
    """Another process holds a lock for longer than was waited for; the message says which."""


def open_file(path: str, dir_fd: int | None = None) -> int:
    """The descriptor of a lock's file. It is made where it is missing, and closed to other users
    where it is this one's. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, LOCK_MODE, dir_fd=dir_fd)
    try:
        info = os.fstat(descriptor)
        # A file with a second name may be anybody's.
        mine = info.st_uid == os.geteuid() and info.st_nlink == 1
        if mine and stat.S_IMODE(info.st_mode) & ~LOCK_MODE:
            os.fchmod(descriptor, LOCK_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def held(path: str, timeout_s: float) -> Iterator[None]:
    """Have the lock of a file by its path, which is made where it is missing. Raises as `open_file`
    and `take` do.
    """
    descriptor = open_file(path)
    try:
        take(descriptor, timeout_s, path_line(path))
        yield
    finally:
        os.close(descriptor)


def take(descriptor: int, timeout_s: float, what: str) -> None:
    """Have the lock of an open file; it goes with the descriptor. Raises LockTimeout, which names
    `what` is held and who holds it, and OSError where the file system has no locks.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockTimeout(
                    f"{what} is held by {holder(descriptor)} for more than {timeout_s:.0f} s: wait"
                    " until it ends, or end it, and run again"
                ) from None
        time.sleep(min(_POLL_S, max(timeout_s, 0.01)))


def holder(descriptor: int) -> str:
    """The process that holds the lock of an open file, with its user and its name, as far as /proc
    shows it: a container sees its own processes alone.
    """
    number = _holder_pid(os.fstat(descriptor))
    if number is None:
        return "another process"
    try:
        uid = os.stat(f"/proc/{number}").st_uid
        with open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as stream:
            name = printable(stream.read().rstrip("\n"))
    except OSError:
        return f"pid {number}"
    return f"pid {number} of uid {uid} ({name})"


def _holder_pid(info: os.stat_result) -> int | None:
    """Lines are such as `1: FLOCK  ADVISORY  WRITE 712 08:01:5242 0 EOF`; one that only waits has
    `->` after its number.
    """
    try:
        with open(_TABLE, encoding="ascii", errors="replace") as stream:
            rows = [line.split() for line in stream]
    except OSError:
        return None
    device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}"
    # Some file systems, as btrfs and overlayfs, give their files another device than the kernel's
    # own: then the inode alone has to tell, and does where it is the only one.
    locks = {
        tuple(row[5].rpartition(":")[::2]): int(row[4])
        for row in rows
        if len(row) == 8 and row[1] == "FLOCK" and row[4].isdecimal()
    }
    inode = str(info.st_ino)
    if (device, inode) in locks:
        return locks[device, inode] or None
    same = [pid for (_device, number), pid in locks.items() if number == inode]
    return same[0] or None if len(same) == 1 else None
