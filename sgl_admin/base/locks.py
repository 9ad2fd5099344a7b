"""Locks that die with their owner: flock on files under /profiles/.locks, shared by every container
of the host.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sgl_admin.base import paths


class LockTimeout(TimeoutError):
    """Another process holds a lock for longer than was waited for."""


def try_lock(name: str) -> int | None:
    """A descriptor that holds the lock as long as it is open in some process, or None where another
    holds it.
    """
    paths.LOCKS.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(paths.LOCKS / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def held(name: str) -> bool:
    """Whether some process holds the lock. Creates no file: a lock without one is free."""
    try:
        descriptor = os.open(paths.LOCKS / f"{name}.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def acquire(name: str, timeout_s: float) -> int:
    """A descriptor that holds the lock `name`; raises LockTimeout when another holds it for longer
    than `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while (descriptor := try_lock(name)) is None:
        if time.monotonic() > deadline:
            raise LockTimeout(
                f"{paths.LOCKS / name}.lock is held by another process for more than"
                f" {timeout_s:.0f} s"
            )
        time.sleep(0.1)
    return descriptor


@contextmanager
def locked(name: str, timeout_s: float) -> Iterator[None]:
    """Holds the lock `name`; raises LockTimeout as `acquire` does."""
    descriptor = acquire(name, timeout_s)
    try:
        yield
    finally:
        os.close(descriptor)
