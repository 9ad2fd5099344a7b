# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Text from files, programs and other hosts, made fit for a message."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from typing import TypeGuard

_MINUTE_S, _HOUR_S = 60, 3600
# No prep takes a year.
_LONGEST_S = 365 * 24 * _HOUR_S


def printable(text: str) -> str:
    """One line without control characters: a terminal would obey those."""
    return "".join(character if character.isprintable() else "?" for character in text)


def say(text: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line. Whatever is in the text, a terminal is given nothing to obey, and a reader of
    the output no second line.
    """
    _write(printable(str(text)) + "\n", sys.stdout if file is None else file, flush)


def say_lines(text: object, file: TextIO | None = None) -> None:
    """Print a text of several lines, of which all but the first are indented: none passes for a
    line that a reader looks for.
    """
    first, *more = str(text).split("\n")
    say(first, file)
    for line in more:
        say(f"    {line}", file)


def say_json(document: object, indent: int | None = None) -> None:
    """Print a document, in ASCII; JSON leaves one control character as it is."""
    _write(json.dumps(document, indent=indent).replace("\x7f", "\\u007f") + "\n", sys.stdout)


def _write(text: str, stream: TextIO, flush: bool = False) -> None:
    """Raises OSError that names the stream: one that is full names no file of its own."""
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except OSError as error:
        error.filename = f"the standard {'output' if stream is sys.stdout else 'error'}"
        raise


def unwritten() -> str | None:
    """At the end of a program: why its standard output could not be written; None where it was.

    Python would end with a traceback and an exit code of its own then.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer is written at the end once more.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return (
            f"the standard output cannot be written ({error.strerror}): free some space where it"
            " goes, or send it elsewhere, and ask again"
        )
    return None


# More than a record, an answer or a model's configuration needs, and far from Python's limit.
_DEEPEST = 100


def read_json_text(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text of a file, a program or another host. Raises ValueError, also where
    it is nested so deep that a walk through it would exceed Python's recursion limit.
    """
    too_deep = f"it is nested more than {_DEEPEST} levels deep"
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _depth in range(_DEEPEST + 1):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return value
    raise ValueError(too_deep)


def clean(value: Any) -> Any:
    """A document of texts that may be shown, with the lines that they have."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "\n".join(printable(line.replace("\t", "    ")) for line in value.split("\n"))
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def one_line(text: object, limit: int = 500) -> str:
    """One printable line of at most `limit` characters; three dots stand for what is cut off."""
    # Cut first: some of this text is megabytes long.
    start = str(text)[: 8 * limit]
    words = "".join(character if character.isprintable() else " " for character in start).split()
    line = " ".join(words)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def is_duration(value: Any) -> TypeGuard[float]:
    """Whether a value that was read from JSON is a number of seconds that a person can be shown."""
    return isinstance(value, (int, float)) and value is not True and 0 <= value <= _LONGEST_S


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"


def path_line(path: str) -> str:
    """A path on one line; bytes that are not UTF-8 and unprintable characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
