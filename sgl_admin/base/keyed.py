"""Digests of values that are not shown. They are made with a key of this tree, which only its owner
reads: without the key, a value cannot be found by trying what it may be.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from sgl_admin.base import files, paths
from sgl_admin.contract import places

_MODE = 0o600
_KEY = re.compile(r"[0-9a-f]{64}")


def place() -> Path:
    return paths.TELEMETRY / places.DIGEST_KEY


def ensure() -> None:
    """Have the tree's key, once. Raises OSError."""
    if _read() is None:
        files.write_text(place(), secrets.token_hex(32), mode=_MODE)


def digest(text: str) -> str:
    """`keyed:` and the digest of a value that is not shown."""
    return f"keyed:{_hmac(text.encode(errors='surrogateescape'))}"


def sha256(content: bytes) -> str:
    """`sha256:` and the keyed digest of a document that may hold such values."""
    return f"sha256:{_hmac(content)}"


def admin_key() -> str:
    """The key of the admin calls of this tree's servers. It follows from the tree's own, so who
    reads that one can say it.
    """
    return _hmac(b"the admin calls of the server")


def words(real: Iterable[str], shown: Iterable[str]) -> list[str]:
    """A command line whose values that are not shown are digests."""
    keyed: list[str] = []
    for word, form in zip(real, shown, strict=True):
        flag, equals, value = word.partition("=")
        if word == form:
            keyed.append(word)
        elif equals and form.startswith(f"{flag}="):
            keyed.append(f"{flag}={digest(value)}")
        else:
            keyed.append(digest(word))
    return keyed


def environment(real: Mapping[str, str], shown: Mapping[str, str]) -> dict[str, str]:
    """An environment whose values that are not shown are digests."""
    return {name: value if shown[name] == value else digest(value) for name, value in real.items()}


def _hmac(content: bytes) -> str:
    key = _read() or _passing()
    return hmac.new(key.encode(), content, hashlib.sha256).hexdigest()


def _read() -> str | None:
    try:
        text = files.read_bytes(place(), 128).decode("ascii", "replace")
    except (FileNotFoundError, ValueError):
        return None
    return text if _KEY.fullmatch(text) else None


@functools.cache
def _passing() -> str:
    """Where the tree has none yet, nothing was recorded that a digest could be compared with."""
    return secrets.token_hex(32)
