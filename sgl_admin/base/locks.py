"""Locks that die with their owner: flock on files under /profiles/.locks, shared by every container
of the host.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgl_admin.base import paths
from sgl_admin.contract import locks, places
from sgl_admin.contract.locks import LockTimeout

__all__ = ["LockTimeout", "acquire", "held", "holder", "locked", "tried", "try_lock"]


def _open(name: str) -> int:
    """The lock's file, in a folder that other users cannot enter."""
    try:
        return locks.open_file(str(_path(name)))
    except FileNotFoundError:
        paths.LOCKS.mkdir(places.LOCK_RIGHTS.new, parents=True, exist_ok=True)
    return locks.open_file(str(_path(name)))


def _path(name: str) -> Path:
    return paths.LOCKS / f"{name}.lock"


def try_lock(name: str) -> int | None:
    """A descriptor that holds the lock as long as it is open in some process, or None where another
    holds it.
    """
    descriptor = _open(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def held(name: str) -> bool:
    """Whether some process holds the lock. Creates no file: a lock without one is free."""
    try:
        descriptor = os.open(_path(name), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(name: str) -> str:
    """Who holds the lock, for a message."""
    descriptor = _open(name)
    try:
        return locks.holder(descriptor)
    finally:
        os.close(descriptor)


def acquire(name: str, timeout_s: float) -> int:
    """A descriptor that holds the lock `name`; raises LockTimeout when another holds it for longer
    than `timeout_s` seconds.
    """
    descriptor = _open(name)
    try:
        locks.take(descriptor, timeout_s, paths.to_host(_path(name)) or str(_path(name)))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def tried(name: str) -> Iterator[int | None]:
    """As `try_lock`, for the block alone."""
    descriptor = try_lock(name)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def locked(name: str, timeout_s: float) -> Iterator[None]:
    """Holds the lock `name`; raises LockTimeout as `acquire` does."""
    descriptor = acquire(name, timeout_s)
    try:
        yield
    finally:
        os.close(descriptor)
