"""Contract files: whole or absent, whenever the writer dies; and what cannot be read is set aside,
never deleted.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgl_admin.base import paths

FILE_MODE = 0o664
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)


def write_text(path: Path, text: str, mode: int = FILE_MODE) -> None:
    """Replace `path` by a temp file, fsync, rename, fsync of the folder. Raises OSError that names
    `path`; then a whole file stands.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        try:
            # Half of a surrogate pair, which a name and a JSON text can hold, is written as JSON
            # escapes it.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's error names the file that was to be written: of a write or an fsync it names
    none, of a rename the temp file.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


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


def write_json(path: Path, document: dict[str, Any], mode: int = FILE_MODE) -> None:
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what a killed `write_text` of a file `name` left in `folder`; the caller knows that
    none writes there now.
    """
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises OSError, and ValueError where it is no file: a pipe would wait for
    its writer, maybe for ever.
    """
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError(f"{path} is not a file")
            return stream.read()
    except OSError as error:
        if error.errno in _NO_FILE:
            raise ValueError(f"{path} is not a file") from error
        raise


def printable(text: str) -> str:
    """Text of a file or a name, for a person: one line, without what a terminal would take for a
    command.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`, or None where there is no such file. Raises ValueError where it is not
    a JSON object.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
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
        if (
            key not in document
            or not isinstance(document[key], kind)
            or (kind is int and isinstance(document[key], bool))
        ):
            raise ValueError(f"{path} has no valid {key}")
    return document


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
