"""Which server a proof or a warm cache is of: a digest of all that makes its process what it is.

What goes in: the files of its model and of whatever else its command line or its settings name,
the command line, the environment, and the image. What is not known not to matter counts, so a
doubt makes two servers of one, never one of two.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl_admin.base import files, keyed, paths
from sgl_admin.contract.records import canonical, sha256

# Weights are known by size, time of change and samples of their content; all else is read whole.
_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|ckpt|h5|msgpack|onnx|npz)$", re.IGNORECASE)
_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES, _SAMPLES = 1 << 12, 16
_MAX_FILES = 20_000
# Variables of the container or of the caller that no server's work depends on.
_INDIFFERENT = re.compile(
    r"(SGL_|SSH_|XDG_|LC_|SUDO_|DBUS_|PYTEST_|LESS).*"
    r"|_|HOSTNAME|HOME|USER|LOGNAME|MAIL|PWD|OLDPWD|SHLVL|SHELL|TERM|COLUMNS|LINES|LANG|LANGUAGE"
    # What Python prints about itself.
    r"|PYTHON(PROFILEIMPORTTIME|UNBUFFERED|DONTWRITEBYTECODE|FAULTHANDLER|VERBOSE|WARNINGS)"
    r"|LS_COLORS|EDITOR|PAGER|INVOCATION_ID|JOURNAL_STREAM|container"
)


def identity(argv: Sequence[str], environment: Mapping[str, str], image: str) -> str:
    """`sha256:` and the digest of a server: its command line, what it has in its environment beside
    this process's own, and its image. It is made with the tree's key, as any of these may hold a
    secret. Raises OSError where a file that it names cannot be read.
    """
    named = sorted({path for word in (*argv[1:], *environment.values()) for path in paths_in(word)})
    known = {
        "argv": list(argv),
        "environment": {**_inherited(), **environment},
        "image": image,
        "files": {path: fingerprint(Path(path)) for path in named},
    }
    return keyed.sha256(canonical(known))


def with_caches(
    model: Mapping[str, Any], argv: Sequence[str], environment: Mapping[str, str], image: str
) -> str:
    """`sha256:` and the digest of a server as far as its compiled code goes. Hosts agree on it: a
    model is known by its identity and its configuring files, not by when its weights were copied.
    Values that are not shown come as keyed digests, so with any of them no other host agrees.
    """
    known = {
        "model": dict(model),
        "argv": list(argv),
        "environment": dict(environment),
        "image": image,
    }
    return sha256(canonical(known))


def image() -> str:
    """The identity of the image that this process runs in; of a machine without one, nothing."""
    facts = files.read_json(paths.IMAGE_FACTS) or {}
    base = facts.get("base_image")
    return json.dumps([facts.get("image_inputs"), base], sort_keys=True)


def fingerprint(place: Path) -> str:
    """The digest of a file, or of all files below a folder. Raises OSError."""
    if not place.is_dir():
        return sha256(canonical(_file(place)))
    return sha256(canonical({str(path.relative_to(place)): _file(path) for path in _below(place)}))


def paths_in(word: str) -> Iterator[str]:
    """The files and folders that a word of a command line names, such as a chat template: alone,
    behind `=`, or within JSON. Caches are left out: they are what a prep changes.
    """
    # A server begins in its user's home.
    home = Path(os.environ.get("HOME", "/"))
    for part in (*re.split(r"""[=,;:"'\s\[\]{}]+""", word), word, word.partition("=")[2]):
        try:
            # POSIX lets two slashes at the beginning stand as they are; Linux means one by them.
            place = Path(re.sub("^//", "/", os.path.normpath(home / part)))
            known = place.exists()
        except (OSError, ValueError):
            # No path can be such a word.
            continue
        if known and not home.is_relative_to(place) and not place.is_relative_to(paths.PROFILES):
            yield str(place)


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not _INDIFFERENT.fullmatch(name)}


def _below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        # Hidden ones are of a checkout or a download, not of the model.
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [Path(place, name) for name in sorted(names) if name[0] != "."]
        if len(found) > _MAX_FILES:
            raise OSError(0, f"more than {_MAX_FILES} files to identify a server by", str(folder))
    return found


def _file(path: Path) -> list[Any]:
    """What a file is known by; links count as what they lead to."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ["missing"]
    if not stat.S_ISREG(status.st_mode):
        return ["special", stat.S_IFMT(status.st_mode)]
    if status.st_size <= _WHOLE_BYTES and not _WEIGHTS.search(path.name):
        return [status.st_size, hashlib.sha256(files.read_bytes(path)).hexdigest()]
    return [status.st_size, status.st_mtime_ns, _sampled(path, status.st_size)]


def _sampled(path: Path, size: int) -> str:
    """The digest of pieces of a file at equal distances, its beginning and its end among them."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for number in range(_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
