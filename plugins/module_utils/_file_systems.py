# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the file systems below a host's folders allow: how much may still be written, and whether
Docker's daemon, which is root, gets to the folders that a container mounts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ._contract.texts import path_line

_MOUNTS = "/proc/self/mountinfo"
# With root_squash, which is NFS's default, the server maps root to an anonymous user.
_NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs")


@dataclass(frozen=True)
class Room:
    """What may still be written. `inodes` is None where a file system makes them as needed."""

    device: int
    free: int
    inodes: int | None
    read_only: bool


@dataclass(frozen=True)
class Mount:
    point: str
    kind: str
    options: frozenset[str]


def existing(path: str) -> str:
    """The folder at `path`, or the nearest above it in which it will be made. Raises OSError for
    what cannot be seen.
    """
    while True:
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                return path
        except (FileNotFoundError, NotADirectoryError):
            pass
        above = os.path.dirname(path)
        if above == path:
            return path
        path = above


def room(path: str) -> Room:
    """Raises OSError where the file system does not say."""
    folder = existing(path)
    found = os.statvfs(folder)
    return Room(
        device=os.stat(folder).st_dev,
        free=found.f_bavail * found.f_frsize,
        inodes=found.f_favail if found.f_files else None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


def without_locks(path: str) -> str | None:
    """Why the folder at `path`, or the nearest above it, has no locks, which tell what runs."""
    try:
        descriptor = os.open(existing(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return None
        return (
            f"{path_line(path)} is on a file system without locks ({error.strerror}): set"
            " sgl_profiles_root on a local one, or start the NFS server's lock service"
        )
    finally:
        os.close(descriptor)
    return None


def mounts(source: str = _MOUNTS) -> list[Mount]:
    """This process's mounts in the order in which they were made; none where it may not look."""
    try:
        with open(source, encoding="utf-8", errors="surrogateescape") as lines:
            return [mount for line in lines if (mount := _mount(line)) is not None]
    except OSError:
        return []


def _mount(line: str) -> Mount | None:
    """A line of mountinfo, as proc(5) describes it."""
    before, dash, after = line.partition(" - ")
    fields, last = before.split(), after.split()
    if not dash or len(fields) < 6 or len(last) < 2:
        return None
    point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
    options = ",".join([fields[5], *last[2:3]])
    return Mount(point, last[0], frozenset(options.split(",")))


def mount_of(path: str, known: Iterable[Mount]) -> Mount | None:
    """The mount that a path lies on; of two on one point, the later."""
    found = None
    for mount in known:
        below = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if below and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def closed_to_root(paths: Iterable[str], known: list[Mount]) -> Iterator[tuple[str, str, bool]]:
    """Folders above `paths` that Docker's daemon cannot enter: the folder, why, and whether that is
    certain. A folder that is mounted itself only has to be reached.
    """
    reasons: dict[str, tuple[str, bool] | None] = {}
    for path in paths:
        for folder in _above(path):
            first = folder not in reasons
            if first:
                mount = mount_of(folder, known)
                reasons[folder] = None if mount is None else _reason(folder, mount)
            if (reason := reasons[folder]) is not None:
                if first:
                    yield (path_line(folder), *reason)
                break


def _above(path: str) -> list[str]:
    """The folders on the way to a path, the outermost first."""
    above = []
    while (parent := os.path.dirname(path)) != path:
        above.append(parent)
        path = parent
    return above[::-1]


def _reason(folder: str, mount: Mount) -> tuple[str, bool] | None:
    options = dict(option.partition("=")[::2] for option in mount.options)
    if mount.kind == "fuse" or mount.kind.startswith("fuse."):
        private = not {"allow_other", "allow_root"} & set(options)
        if private and options.get("user_id", "0") != "0":
            return f"is on {mount.kind}, mounted for one user alone", True
        return None
    if mount.kind not in _NETWORK:
        return None
    if os.geteuid() == 0:
        # What holds for this process holds for the daemon.
        return None if os.access(folder, os.X_OK) else (f"is on {mount.kind}, closed to root", True)
    if options.get("sec", "").startswith("krb5"):
        return f"is on {mount.kind} with Kerberos, for which root has no ticket", False
    try:
        mode = os.stat(folder).st_mode
    except OSError:
        return None
    if mode & stat.S_IXOTH:
        return None
    return (
        f"is on {mount.kind} with mode {mode & 0o7777:04o}, which root_squash keeps root out of",
        False,
    )
