# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Text from files, programs and other hosts, made fit for a message."""

from __future__ import annotations

import os


def printable(text: str) -> str:
    """One line without control characters: a terminal would obey those."""
    return "".join(character if character.isprintable() else "?" for character in text)


def one_line(text: object, limit: int = 500) -> str:
    """One printable line of at most `limit` characters; three dots stand for what is cut off."""
    # Cut first: some of this text is megabytes long.
    start = str(text)[: 8 * limit]
    words = "".join(character if character.isprintable() else " " for character in start).split()
    line = " ".join(words)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def path_line(path: str) -> str:
    """A path on one line; bytes that are not UTF-8 and unprintable characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
