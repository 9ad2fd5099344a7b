"""Logs of servers and of their preps, which may be larger than the memory: none is read whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from sgl_admin.contract.texts import printable

# The most that is read for last words, and of one line.
TAIL_BYTES = 1 << 16
# The longest line that is kept.
_LINE = 1000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


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
            yield line.decode(errors="replace").rstrip("\r\n")


def _readable(line: str) -> str:
    """Without colours and control characters, and not longer than anyone reads."""
    plain = _COLOUR.sub("", line).replace("\t", "    ")
    return printable(plain if len(plain) <= _LINE else f"{plain[: _LINE - 3]}...")
