"""Logs of servers and of their preps, which may be larger than the memory: none is read whole."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sgl_admin.contract.texts import printable

# The most that is read for last words, and of one line.
TAIL_BYTES = 1 << 16
# The longest line that is kept.
_LINE = 1000
# A hole has whole pages; the disk's use is counted in blocks.
_PAGE, _BLOCK = 4096, 512
_FREED = b"\n[the middle of this log was freed to keep it within sgl_log_size]"
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def size(log: Path) -> int:
    """Where the next line of a log will begin, in bytes."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def last_lines(log: Path, start: int, lines: int = 20, most_bytes: int = TAIL_BYTES) -> list[str]:
    """The last lines of what a log holds from `start` on, in bytes, fit for a terminal."""
    with open(log, "rb") as stream:
        # A server that served for days has written more than anyone wants to read for its last
        # words.
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - most_bytes))
        text = stream.read(most_bytes).decode(errors="replace")
    return [_readable(line) for line in text.splitlines()[-lines:]]


def lines_from(log: Path, start: int) -> Iterator[str]:
    """All lines that a log holds from `start` on, in bytes, one after the other. A line that is
    longer than any of interest comes in parts.
    """
    with open(log, "rb") as stream:
        stream.seek(start)
        while line := stream.readline(TAIL_BYTES):
            if line.startswith(b"\0") and not (line := _after_hole(stream, line)):
                continue
            yield line.decode(errors="replace").rstrip("\r\n")


def bound(log: Path, most_bytes: int) -> None:
    """Free the middle of a log that takes more of the disk than this; its beginning and its end
    stay.

    The server and others have the file open and note where in it their words begin, so it is
    neither renamed nor cut: it gets a hole. Raises OSError.
    """
    with open(log, "r+b", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        start = _aligned(most_bytes // 8)
        end = _aligned(status.st_size - most_bytes // 2)
        if status.st_blocks * _BLOCK <= most_bytes or end <= start:
            return
        # A whole page, so that no line goes over into the hole.
        os.pwrite(stream.fileno(), _FREED.ljust(_PAGE - 1) + b"\n", start)
        _punch(stream.fileno(), start + _PAGE, end - start - _PAGE)


def _aligned(offset: int) -> int:
    return offset // _PAGE * _PAGE


def _punch(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE, which Python does not have.
    Raises OSError.
    """
    if length <= 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(
        descriptor, 0x01 | 0x02, ctypes.c_longlong(offset), ctypes.c_longlong(length)
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _after_hole(stream: BinaryIO, line: bytes) -> bytes:
    """What a line has that begins in a hole, without the hole; the stream goes on behind it."""
    if rest := line.lstrip(b"\0"):
        return rest
    at = stream.tell()
    try:
        stream.seek(os.lseek(stream.fileno(), at, os.SEEK_DATA))
    except OSError as error:
        # There is nothing behind it.
        if error.errno != errno.ENXIO:
            raise
        stream.seek(0, os.SEEK_END)
    return b""


def _readable(line: str) -> str:
    """Without colours and control characters, and not longer than anyone reads."""
    plain = _COLOUR.sub("", line).replace("\t", "    ")
    return printable(plain if len(plain) <= _LINE else f"{plain[: _LINE - 3]}...")
