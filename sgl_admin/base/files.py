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
    FILE_MODE,
    Shape,
    fsync_folder,
    read_bytes,
    read_json,
    read_record,
    sweep_temporaries,
    write_json,
    write_text,
)
from sgl_admin.contract.texts import printable

__all__ = [
    "FILE_MODE",
    "NO_SPACE",
    "Shape",
    "fsync_folder",
    "printable",
    "read_bytes",
    "read_json",
    "read_or_set_aside",
    "read_record",
    "reason",
    "sweep_temporaries",
    "write_json",
    "write_text",
]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def reason(error: OSError) -> str:
    """What went wrong, where on the host, and the remedy, for a person."""
    where = (
        (paths.to_host(error.filename) or str(error.filename))
        if error.filename
        else "a file system of the container"
    )
    if error.errno in NO_SPACE:
        return f"no space left on {where}: free some and run again"
    if error.errno == errno.EROFS:
        return f"{where} is on a read-only file system: mount it writable and run again"
    if error.errno == errno.EIO:
        return (
            f"{where} cannot be read or written (input/output error): check its disk (dmesg) and"
            " run again"
        )
    return f"{where}: {error.strerror or error}"


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
        warnings.append(f"{error}; set aside as {aside} and made anew")
        return None
