"""Contract files: whole or absent, whenever the writer dies; and what cannot be read is set aside, never deleted."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_MODE = 0o664


def write_text(path: Path, text: str, mode: int = FILE_MODE) -> None:
    """Replace `path` by a temp file, fsync, rename, fsync of the folder. Raises OSError; then the old file still stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, document: dict[str, Any], mode: int = FILE_MODE) -> None:
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Remove what a killed `write_text` left in `folder`; the caller holds the lock of that folder's writers."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where there is no such file. Raises ValueError where it is not a JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


# A record's keys that its readers build on, and the types of their values.
Shape = Mapping[str, type | tuple[type, ...]]


def read_record(path: Path, shape: Shape) -> dict[str, Any] | None:
    """As `read_json`, and ValueError where a key of `shape` is missing or of another type."""
    document = read_json(path)
    if document is None:
        return None
    for key, kind in shape.items():
        if key not in document or not isinstance(document[key], kind) or (kind is int and isinstance(document[key], bool)):
            raise ValueError(f"{path} has no valid {key}")
    return document


def read_or_set_aside(path: Path, shape: Shape, warnings: list[str]) -> dict[str, Any] | None:
    """As `read_record`, but a file that cannot be read is renamed to `<name>.corrupt-<n>`, with a warning."""
    try:
        return read_record(path, shape)
    except ValueError as error:
        number = 1
        while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
            number += 1
        os.replace(path, aside)
        warnings.append(f"{error}; set aside as {aside} and made anew")
        return None
