# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Records on disk: safe reading, atomic writing, the pointer, and a model's identity.

Readers trust nothing: the files lie in folders that a service writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .texts import read_json_text

if TYPE_CHECKING:
    from typing import TypeGuard

RUN_ID = re.compile(r"container-run-\d{8}T\d{6}Z-[0-9a-f]{8}")
POINTER_KEY, POINTER_KEY_HOST = "CONTAINER_RUN_META_JSON", "CONTAINER_RUN_META_JSON_HOST"
# What readers of a prep's aggregate build on.
RESULT_SHAPE = {
    "status": str,
    "run": dict,
    "stages": dict,
    "telemetry_probe": dict,
    "errors": list,
    "warnings": list,
}
# In the summary of a stage's files: the longest time that the work took on this host.
MADE_IN = "made_in_s"
# The files that say which model a folder holds.
MODEL_CONFIG, MODEL_INDEX = "config.json", "model.safetensors.index.json"

# A record's keys that its readers build on, and the types of their values.
Shape = Mapping[str, Any]
# Opens a file by name and flags, as `open` wants it.
Opener = Callable[[str, int], int]
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)


def read_bytes(path: Path, limit: int | None = None, opener: Opener | None = None) -> bytes:
    """The content of a regular file.

    Raises OSError, and ValueError for anything else (a pipe would block) and above `limit` bytes.
    """
    try:
        with open(path, "rb", opener=opener or without_blocking) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError(f"{path} is not a file")
            content = stream.read() if limit is None else stream.read(limit + 1)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise ValueError(f"{path} is not a file") from error
        raise
    if limit is not None and len(content) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return content


def without_blocking(name: str, flags: int) -> int:
    """An opener for `open`: a pipe in a file's place would wait for its writer."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_json(
    path: Path, limit: int | None = None, opener: Opener | None = None
) -> dict[str, Any] | None:
    """The JSON object in `path`, or None where there is no such file.

    Raises OSError, and ValueError where the content is anything else.
    """
    try:
        content = read_bytes(path, limit, opener)
    except FileNotFoundError:
        return None
    return parse_json(path, content)


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object that was read from `path`. Raises ValueError where it is anything else."""
    try:
        document = read_json_text(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def read_record(path: Path, shape: Shape) -> dict[str, Any] | None:
    """As `read_json`; ValueError too where a key of `shape` is missing or of another type."""
    document = read_json(path)
    if document is None:
        return None
    for key, kind in shape.items():
        if key not in document or not _is(document[key], kind):
            raise ValueError(f"{path} has no valid {key}")
    return document


def _is(value: object, kind: Any) -> bool:
    return is_integer(value) if kind is int else isinstance(value, kind)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value that was read from JSON is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def write_json(path: Path, document: dict[str, Any], mode: int | None = None) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", mode)


def write_text(path: Path, text: str, mode: int | None = None, durable: bool = True) -> None:
    """Replace `path` by temporary file, fsync, rename and fsync of the folder. Without a mode the
    process's umask decides who may read it. What is replaced each second is not `durable`: it is
    whole too, and costs no fsync.

    Raises OSError that names `path`; the old file stands then, or the new one, whole.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = create_beside(path)
        try:
            # Half of a surrogate pair, as names and JSON may hold, is escaped as JSON does it.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                if mode is not None:
                    os.fchmod(stream.fileno(), mode)
                stream.write(text)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            fsync_folder(path.parent)


def create_beside(path: Path) -> tuple[int, Path]:
    """A new file that is to take this name when it is whole, open for writing, and its own name.
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, 0o666), temporary


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors name the file: a failed write names none, a failed rename the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def fsync_folder(folder: Path | str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path, name: str = "*") -> None:
    """Remove the temporary files of killed writers of `name`; the caller holds off all others."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def pointer_text(manifest: Path, on_host: str | None) -> str:
    return f"{POINTER_KEY}={manifest}\n{POINTER_KEY_HOST}={on_host}\n"


def parse_pointer(text: str) -> dict[str, str]:
    """Keys and values of a pointer's lines."""
    return dict(line.partition("=")[::2] for line in text.splitlines() if line.strip())


def canonical(document: Any) -> bytes:
    """A document as JSON, always the same bytes for the same document: digests are of them."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def sha256(content: bytes) -> str:
    """`sha256:` and the digest."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def model_identity(parts: Iterable[tuple[str, bytes]]) -> str:
    """`sha256:` and the digest over MODEL_CONFIG and, where there is one, MODEL_INDEX.

    Each part goes in as name, NUL, length in decimal, NUL, bytes.
    """
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"sha256:{digest.hexdigest()}"
