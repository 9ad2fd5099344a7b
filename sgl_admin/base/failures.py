"""What any error of a stage is called, by the contract's list of types."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Explained, GpuUnavailable, StageFailure
from sgl_admin.base.locks import LockTimeout
from sgl_admin.contract.texts import one_line

# What a stage's error is called that nothing foresaw: most stages are a server's start.
OTHERWISE = "server_start_failed"
_BY_NUMBER = {
    errno.ENOSPC: "insufficient_disk",
    errno.EDQUOT: "insufficient_disk",
    errno.EACCES: "permissions_unexpected",
    errno.EPERM: "permissions_unexpected",
    errno.EROFS: "permissions_unexpected",
    errno.ENOMEM: "oom",
    errno.ENOLCK: "unsupported",
    errno.EADDRINUSE: "port_busy",
}


def from_error(error: BaseException, otherwise: str = OTHERWISE) -> StageFailure:
    """The failure that an error makes of its stage; `otherwise` is the type of one that nothing
    foresaw.
    """
    if (failure := _foreseen(error)) is not None:
        return failure
    if isinstance(error, OSError) and error.errno is not None:
        return StageFailure(otherwise, files.reason(error))
    return StageFailure(
        otherwise,
        f"{one_line(describe(error), 200)}: this is a bug in sgl-admin, please report it",
    )


def _foreseen(error: BaseException) -> StageFailure | None:
    if isinstance(error, StageFailure):
        return error
    if isinstance(error, LockTimeout):
        return StageFailure("lock_timeout", str(error))
    if isinstance(error, GpuUnavailable):
        return StageFailure("server_start_failed", str(error))
    if isinstance(error, MemoryError):
        return StageFailure(
            "oom", "sgl-admin's own process has no memory left: free some and run again"
        )
    if isinstance(error, OSError) and error.errno in _BY_NUMBER:
        return StageFailure(_BY_NUMBER[error.errno], files.reason(error))
    return None


def describe(error: BaseException) -> str:
    """The error as the last line of its traceback has it."""
    return "".join(traceback.format_exception_only(error)).strip()


def recorded(error: Exception, log: Path, otherwise: str = OTHERWISE) -> StageFailure:
    """As `from_error`; the traceback of an error that nothing foresaw goes to the run's log first,
    and the message names that.
    """
    failure = from_error(error, otherwise)
    if _foreseen(error) is not None:
        return failure
    lines = "".join(traceback.format_exception(error))
    try:
        with open(log, "a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(lines)
    except OSError:
        # Its message still says what it was.
        return failure
    where = paths.to_host(log) or os.fspath(log)
    return StageFailure(
        failure.error_type,
        f"{failure}; the traceback is in {where}",
        lines.splitlines()[-20:],
    )


def is_foreseen(error: Exception) -> bool:
    """Whether its message says enough without its traceback."""
    return isinstance(error, (Explained, OSError)) or _foreseen(error) is not None
