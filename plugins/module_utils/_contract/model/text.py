# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text files of a model, read as the server reads them."""

from __future__ import annotations

import codecs
import json
import os
import shlex
import stat
from typing import Any

from ..records import without_blocking
from ..texts import path_line, read_json_text

AGAIN = "copy or download the model again"
# One index of a 512-expert model is 15 MB.
MAX_JSON = 256 << 20
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer begins so, and is shorter
# than 1024 bytes.
_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "UTF-8 with such a mark"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class ModelError(Exception):
    """The model cannot be served from here; the text names the thing and the remedy."""


class ModelMissing(ModelError):
    """There is no such folder."""


def read(path: str) -> bytes:
    """The file's bytes. Raises OSError, also for what is not a regular file (a FIFO would
    block).
    """
    with open(path, "rb", opener=without_blocking) as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(0, "not a regular file", path)
        data = handle.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise OSError(0, "larger than any such file is", path)
    return data


def unreadable(path: str, exc: OSError) -> ModelError:
    """For a file or folder that cannot be read."""
    shown = path_line(path)
    if isinstance(exc, FileNotFoundError) and os.path.islink(path):
        return ModelError(
            f"{shown} is a link to {path_line(os.readlink(path))}, which is not there: copy the"
            " linked files too (cp -L)"
        )
    if isinstance(exc, PermissionError):
        remedy = _permission_remedy(path)
    else:
        remedy = AGAIN
    return ModelError(
        f"{shown} cannot be read by uid {os.geteuid()} ({exc.strerror or exc}): {remedy}"
    )


def _permission_remedy(path: str) -> str:
    quoted = shlex.quote(path_line(path))
    if os.getuid() != os.geteuid():
        # Root acts as the service user: its own rights would not help.
        return (
            f"let that user read it and enter the folders above it (setfacl -R -m"
            f" u:{os.geteuid()}:rX {quoted}), or copy it to where that user can read"
        )
    return f"run `chmod -R u+rX,g+rX {quoted}`, or run the task with become: true"


def is_pointer(data: bytes) -> bool:
    return len(data) < POINTER_SIZE and data.startswith(_POINTER)


def pointer_remedy(folder: str) -> str:
    """What turns the Git LFS pointers of a folder into files."""
    shown = path_line(folder)
    if os.path.lexists(os.path.join(folder, ".git")):
        return f"run `git lfs pull` in {shown}"
    return (
        f"run `git lfs pull` in the clone that {shown} was copied from and copy it again, or"
        " download the model"
    )


def json_object(path: str, data: bytes) -> dict[str, Any]:
    """The JSON object in a file's bytes. Raises ModelError.

    The server opens its JSON files as UTF-8 (transformers, SGLang), so no other encoding will do;
    of a repeated key the last one counts, and NaN is a number, as there.
    """
    shown = path_line(path)
    if is_pointer(data):
        raise ModelError(
            f"{shown} is a Git LFS pointer: {pointer_remedy(os.path.dirname(path) or '.')}"
        )
    if other := _other_encoding(data):
        raise ModelError(
            f"{shown} is not valid JSON for the server, which reads UTF-8 without a byte order mark"
            f" (it is {other}): save it so, or {AGAIN}"
        )
    try:
        value = read_json_text(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ModelError(
            f"{shown} is not valid JSON (byte {data[exc.start]:#04x} at {exc.start} is not UTF-8):"
            f" save it as UTF-8, or {AGAIN}"
        ) from None
    except ValueError as exc:
        raise ModelError(f"{shown} is not valid JSON ({exc}): {AGAIN}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{shown} holds a JSON {type(value).__name__}, not an object: {AGAIN}")
    return value


def _other_encoding(data: bytes) -> str | None:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    # JSON begins with an ASCII character: a NUL beside it is one half of a wider one.
    return "UTF-16" if b"\0" in data[:2] else None


def brief(value: object) -> str:
    """The value as JSON, cut to what fits into a sentence."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


NAMED = 5


def several(problems: list[str], total: int, noun: str = "shards") -> str:
    """``2 of 9 shards: a, b``; of many only the first ones by name."""
    more = len(problems) - NAMED
    text = ", ".join(problems[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(problems)} of {total} {noun}: {text}"
