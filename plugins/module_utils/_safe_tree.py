# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How root touches a tree that another user may write.

There are two ways. Work that needs no privilege runs as the tree's owner (:func:`acting_as`), so a
link leads no further than the owner could go. Everything else goes by directory descriptors:
:func:`open_folder` walks from ``/`` component by component, and follows a link only where root
alone could have placed it. Type and owner are checked on the descriptor, never on the name.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import grp
import os
import pwd
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ._contract import trees

TEMP_PREFIX = ".sgl-new-"
_FOLDER = trees.FOLDER
# As many as the kernel follows in one look-up.
_MAX_LINKS = 40
_ENCODINGS = ("ascii", "utf-8", "latin-1", "idna")


class UntrustedLink(OSError):
    """A link lies where another user could have placed it."""

    def __init__(self, path: str) -> None:
        super().__init__(
            errno.ELOOP,
            "it is a symbolic link that another user can change, which root does not follow",
            path,
        )


# --- who acts -------------------------------------------------------------------------------------


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Work with the rights of a user, where the process is root and that user is not.

    The real and the saved user stay root's: the user can neither signal nor trace the process.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    # Python loads these when they are first used, maybe from a folder that the user cannot enter.
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    try:
        os.setgroups(_groups(uid, gid))
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Inside :func:`acting_as`: work as root again, for a program such as Docker's client."""
    real, effective, _saved = os.getresuid()
    if real != 0 or effective == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.seteuid(0)
    try:
        os.setegid(os.getresgid()[0])
        yield
    finally:
        os.setgroups(groups)
        os.setegid(group)
        os.seteuid(effective)


def _groups(uid: int, gid: int) -> list[int]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return [gid]
    return os.getgrouplist(name, gid)


# --- folders --------------------------------------------------------------------------------------


def only_root_writes(info: os.stat_result) -> bool:
    """Whether only root and this process's own user can change the names in a folder.
    Root's own group counts as root.
    """
    others = 0o002 if info.st_gid == 0 else 0o022
    return info.st_uid in (0, os.geteuid()) and not info.st_mode & others


def open_folder(path: str) -> int:
    """The descriptor of a folder, with each component opened on its own.

    A link is followed where only root can write the folder that holds it, or where it is root's
    own in a sticky folder such as ``/tmp``. Raises UntrustedLink, and OSError.
    """
    if not os.path.isabs(path):
        raise ValueError(f"{path} is not an absolute path")
    left = _components(path)
    followed = 0
    descriptor = os.open("/", _FOLDER)
    try:
        while left:
            name = left.pop()
            try:
                below = os.open(name, _FOLDER, dir_fd=descriptor)
            except OSError as error:
                target = _trusted_target(descriptor, name, path, error)
                followed += 1
                if followed > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from error
                left += _components(target)
                if not target.startswith("/"):
                    continue
                below = os.open("/", _FOLDER)
            os.close(descriptor)
            descriptor = below
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _trusted_target(folder: int, name: str, path: str, error: OSError) -> str:
    """Where a link leads that is not opened as a folder. Raises the error for anything else."""
    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
        raise error
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        raise error
    holder = os.fstat(folder)
    sticky = bool(holder.st_mode & stat.S_ISVTX) and holder.st_uid == 0
    ours = info.st_uid in (0, os.geteuid())
    # A process without privilege follows what its user could follow anyway.
    if os.geteuid() == 0 and not (only_root_writes(holder) or (sticky and ours)):
        raise UntrustedLink(path)
    return os.readlink(name, dir_fd=folder)


# --- who else can exchange a path -----------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A folder on the way to a path, in which another user can exchange what the path goes on
    with. ``by_group`` says that only members of the folder's group can.
    """

    path: str
    info: os.stat_result
    by_group: bool = False


def exchangeable(path: str, uid: int) -> Iterator[Holder]:
    """The folders above a path in which someone can exchange the next component, other than root,
    the user ``uid``, this process's user and who became root by sudo.

    Docker, and every program that gets the path, looks it up again: a user who can exchange a
    component decides what they open. The look-up ends at what is missing. Raises OSError.
    """
    trusted = {0, uid, os.geteuid()}
    if os.environ.get("SUDO_UID", "").isdecimal():
        trusted.add(int(os.environ["SUDO_UID"]))
    left = _components(path)
    holder, followed = "/", 0
    while left:
        name = left.pop()
        if name == "..":
            holder = os.path.dirname(holder)
            continue
        info, below = os.lstat(holder), os.path.join(holder, name)
        try:
            entry: os.stat_result | None = os.lstat(below)
        except FileNotFoundError:
            entry = None
        found = _exchanged_by(Holder(holder, info), entry, trusted)
        if found is not None:
            yield found
        if entry is None:
            return
        if not stat.S_ISLNK(entry.st_mode):
            holder = below
            continue
        followed += 1
        if followed > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(below)
        left += _components(target)
        holder = "/" if target.startswith("/") else holder


def _components(path: str) -> list[str]:
    """The components of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _exchanged_by(holder: Holder, entry: os.stat_result | None, trusted: set[int]) -> Holder | None:
    info = holder.info
    if info.st_uid not in trusted:
        return holder
    if not info.st_mode & 0o022:
        return None
    if info.st_mode & stat.S_ISVTX:
        # There only the owner of an entry, and of the folder, can rename it.
        return holder if entry is not None and entry.st_uid not in trusted else None
    if info.st_mode & 0o002:
        return holder
    return None if info.st_gid == 0 or _private(info.st_gid) else Holder(holder.path, info, True)


def _private(gid: int) -> bool:
    """Whether a group is one user's own, as ``useradd`` makes it: of the user's name, and without
    further members.
    """
    try:
        group = grp.getgrgid(gid)
        user = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    return user.pw_gid == gid and not {*group.gr_mem} - {group.gr_name}


@contextlib.contextmanager
def folder(path: str, below: str | None = None) -> Iterator[int]:
    """:func:`open_folder`, closed at the end; no link at all is followed below ``below``."""
    descriptor = open_folder(path if below is None else below)
    try:
        if below is not None and path != below:
            for name in os.path.relpath(path, below).split("/"):
                inner = os.open(name, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(parent: int, name: str, uid: int, gid: int, mode: int) -> None:
    """Make one folder that has this owner and mode from its first moment, whatever the umask.

    It is made under a temporary name beside and renamed when finished: a kill leaves an empty
    folder of such a name (:func:`is_temporary`), never one of the wrong owner, and the next run
    that makes the folder removes that. Raises OSError; :func:`another_made` tells that from
    another run's work.
    """
    for found in names(parent, "."):
        if is_temporary(found, name):
            with contextlib.suppress(OSError):
                os.rmdir(found, dir_fd=parent)
    # Its own in each run: one must not give its name to what another has only begun.
    temporary = f"{TEMP_PREFIX}{name}.{secrets.token_hex(4)}"
    os.mkdir(temporary, 0o700, dir_fd=parent)
    try:
        new = os.open(temporary, _FOLDER, dir_fd=parent)
        try:
            _hand_over_new(new, uid, gid, mode)
        finally:
            os.close(new)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(temporary, dir_fd=parent)
        raise


def is_temporary(found: str, name: str) -> bool:
    """Whether a folder has a name under which :func:`make_folder` begins the folder `name`."""
    return found.startswith(f"{TEMP_PREFIX}{name}.")


def another_made(error: OSError) -> bool:
    """Whether :func:`make_folder` failed because another run makes the same folder."""
    return error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE)


def _hand_over_new(new: int, uid: int, gid: int, mode: int) -> None:
    """Who may write the parent can exchange what was made in it: only an empty folder of this
    process's own is given away.
    """
    info = os.fstat(new)
    if (
        info.st_uid != os.geteuid()
        or stat.S_IMODE(info.st_mode) & 0o777 != 0o700
        or os.listdir(new)
    ):
        raise OSError(errno.ESTALE, "another user replaced the folder while it was made")
    if (info.st_uid, info.st_gid) != (uid, gid):
        os.fchown(new, uid, gid)
    os.fchmod(new, mode)


def change_mode(descriptor: int, uid: int, gid: int, mode: int) -> bool:
    """Set the mode of an open folder of this owner; False where it has another owner."""
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (uid, gid):
        return False
    os.fchmod(descriptor, mode)
    return True


def close_files(holder: int, uid: int, bits: int) -> None:
    """Take these permission bits from the files of this owner in an open folder, and from nothing
    else. Raises OSError.
    """
    with os.scandir(holder) as found:
        names = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
    for name in names:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=holder)
        except OSError as error:
            # Services remove files meanwhile; one that its owner may not read grants nothing.
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES):
                continue
            raise
        try:
            info = os.fstat(descriptor)
            if stat.S_ISREG(info.st_mode) and info.st_uid == uid and info.st_mode & bits:
                os.fchmod(descriptor, stat.S_IMODE(info.st_mode) & ~bits)
        finally:
            os.close(descriptor)


def names(parent: int, name: str) -> list[str]:
    """What a folder holds. Raises OSError."""
    descriptor = os.open(name, _FOLDER, dir_fd=parent)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def exists(parent: int, name: str) -> bool:
    """Whether something has this name, a link that leads nowhere too. Raises OSError."""
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


Visit = Callable[[int, str, str, os.stat_result], bool]


def walk(top: int, path: str, visit: Visit, depth: int = 0) -> None:
    """Call ``visit`` with each entry below an open folder: the open folder that holds it, its path,
    its name and its own stat. A folder is entered where it returns True.

    Live services remove entries meanwhile. Raises OSError with the path of a folder that cannot be
    read.
    """
    if depth > trees.MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, f"it is more than {trees.MAX_DEPTH} folders deep", path)
    inside = []
    with os.scandir(top) as found:
        for entry in found:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            entry_path = f"{path}/{entry.name}"
            if visit(top, entry_path, entry.name, info) and stat.S_ISDIR(info.st_mode):
                inside.append((entry.name, entry_path))
    for name, entry_path in inside:
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=top)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            error.filename = entry_path
            raise
        try:
            walk(descriptor, entry_path, visit, depth + 1)
        finally:
            os.close(descriptor)


# --- files ----------------------------------------------------------------------------------------


def open_file(path: str, below: str | None = None) -> int:
    """The descriptor of a regular file, to read: no link is followed as the last component, and a
    pipe, a socket or a device is refused and never waited for.

    ``below`` is a folder below which no link is followed at all. Raises FileNotFoundError,
    UntrustedLink, OSError, and ValueError for what is not a file.
    """
    parent, name = os.path.split(path)
    with folder(parent, below) as holder:
        return open_file_at(holder, name, path)


def open_file_at(holder: int, name: str, path: str) -> int:
    """:func:`open_file` in an open folder."""
    # The type is looked at before the opening too: opening a device can act already.
    if not stat.S_ISREG(os.stat(name, dir_fd=holder, follow_symlinks=False).st_mode):
        raise ValueError(f"{path} is not a file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=holder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a file")
    return descriptor


def read_file(path: str, limit: int, below: str | None = None) -> bytes:
    """The content of a regular file. Raises as :func:`open_file`, and ValueError above the
    limit.
    """
    with open(open_file(path, below), "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return content


def unlink(path: str) -> None:
    """Remove a file for good, where it is there. Raises OSError."""
    parent, name = os.path.split(path)
    with folder(parent) as holder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=holder)
        os.fsync(holder)
