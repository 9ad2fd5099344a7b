"""The files of the contract, and what goes wrong with them, in words; what cannot be read is set
aside, never deleted.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from sgl_admin.base import paths
from sgl_admin.contract.records import (
    Shape,
    create_beside,
    fsync_folder,
    read_bytes,
    read_json,
    read_record,
    sweep_temporaries,
    without_blocking,
    write_json,
    write_text,
)
from sgl_admin.contract.texts import printable

__all__ = [
    "NO_SPACE",
    "Shape",
    "create_beside",
    "fsync_folder",
    "printable",
    "read_bytes",
    "read_json",
    "read_or_set_aside",
    "read_record",
    "read_valid",
    "reason",
    "sweep_temporaries",
    "without_blocking",
    "write_json",
    "write_text",
]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_MOUNT = "the mount of {where} is gone: mount it again, and recreate the container"
_WORDS = {
    errno.ENOSPC: "no space left on {where}: free some and run again",
    errno.EROFS: "{where} is on a read-only file system: mount it writable and run again",
    errno.EIO: (
        "{where} cannot be read or written (input/output error): check its disk (dmesg) and run"
        " again"
    ),
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ENOMEM: "no memory left for {where}: free some on the host and run again",
    errno.EMFILE: "too many files are open for {where}: raise the limit (ulimit -n) and run again",
    errno.ENFILE: "too many files are open on the host for {where}: raise fs.file-max there",
    errno.EACCES: "no permission for {where}: let the container's user use it (chown)",
    errno.EPERM: "no permission for {where}: let the container's user use it (chown)",
}


def reason(error: OSError) -> str:
    """What went wrong, where on the host, and the remedy, for a person."""
    where = (
        (paths.to_host(error.filename) or str(error.filename))
        if error.filename
        else "a file system of the container"
    )
    if error.errno == errno.ENOSPC and error.filename and _has_no_inodes(error.filename):
        return f"no inodes left on {where} (df -i): remove some files and run again"
    if error.errno == errno.EDQUOT:
        return f"the disk quota for {where} is used up: raise it, or free some, and run again"
    if error.errno == errno.ENOLCK:
        return (
            f"{where} is on a file system without locks: keep the root (sgl_root) on a local one,"
            " or start the NFS server's lock service"
        )
    if (words := _WORDS.get(error.errno or 0)) is not None:
        return words.format(where=where)
    return f"{where}: {error.strerror or error}"


def _has_no_inodes(name: str | bytes) -> bool:
    """Whether what is full is the table of files, and not the space."""
    path = Path(os.fsdecode(name))
    for folder in (path, *path.parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        # Some file systems make inodes as they are wanted, and count none.
        return found.f_files > 0 and found.f_favail == 0 and found.f_bavail > 0
    return False


def read_valid(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """As `read_record`; empty where there is no such file, or none that can be read. Raises
    OSError.
    """
    try:
        return read_record(path, shape or {}) or {}
    except ValueError:
        return {}


def read_or_set_aside(path: Path, shape: Shape, warnings: list[str]) -> dict[str, Any] | None:
    """As `read_record`, but a file that cannot be read is renamed to `<name>.corrupt-<n>`, with a
    warning.
    """
    try:
        return read_record(path, shape)
    except ValueError as error:
        number = 1
        while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
            number += 1
        os.replace(path, aside)
        warnings.append(f"{error}; set aside as {aside} and made again")
        return None
