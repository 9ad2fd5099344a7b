# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Signs shared work and reports on the controller, and verifies shared work there, by minisign.
What is signed of an archive is its name and its digest.
"""

from __future__ import annotations

import base64
import binascii
import shutil
import subprocess
import tempfile
from pathlib import Path

_REMEDY = "`apt-get install minisign` on the controller"


class SignatureError(Exception):
    """The signature could not be made, or is not that of the key; the message says why and what to
    do.
    """


def sign(name: str, digest: str, key: str) -> str:
    """The signature as one word. The key is a file of `minisign -G -W`, which has no password.
    Raises SignatureError.
    """
    with tempfile.TemporaryDirectory() as folder:
        statement = _statement(Path(folder), name, digest)
        signature = statement.with_suffix(".minisig")
        _minisign(
            "-S", "-s", key, "-m", str(statement), "-x", str(signature), "-t", f"sgl-caches {name}"
        )
        return base64.b64encode(signature.read_bytes()).decode()


def sign_file(path: Path, key: str) -> None:
    """Write the signature of a file beside it, as `minisign -V -m FILE` looks for it. Raises
    SignatureError.
    """
    _minisign("-S", "-s", key, "-m", str(path), "-t", path.name)


def verify(name: str, digest: str | None, signature: str | None, key: str) -> None:
    """Raises SignatureError where this is not the signature of `key`, a public one, for this name
    and digest.
    """
    if not signature or not digest:
        raise SignatureError(
            f"{name} is not signed, and sgl_cache_verify_key is set: remove it there, and"
            " publish it again with sgl_cache_sign_key"
        )
    with tempfile.TemporaryDirectory() as folder:
        statement = _statement(Path(folder), name, digest)
        written = statement.with_suffix(".minisig")
        try:
            written.write_bytes(base64.b64decode(signature, validate=True))
            _minisign("-V", "-p", key, "-m", str(statement), "-x", str(written))
        except (SignatureError, binascii.Error, ValueError) as error:
            raise SignatureError(
                f"the signature of {name} is not one of {key}: {error}; it is not taken"
            ) from error


def _statement(folder: Path, name: str, digest: str) -> Path:
    path = folder / "statement"
    path.write_text(f"{name} {digest}\n", encoding="utf-8")
    return path


def _minisign(*words: str) -> None:
    binary = shutil.which("minisign")
    if binary is None:
        raise SignatureError(
            "minisign is not there, and sgl_cache_sign_key or sgl_cache_verify_key is set:"
            f" {_REMEDY}"
        )
    done = subprocess.run(
        [binary, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).replace("\n", " ")
        if "password" in said.lower():
            said = (
                "the key has a password, which cannot be entered here: make a key without one by"
                " `minisign -G -W`"
            )
        raise SignatureError(f"minisign: {said or f'exit code {done.returncode}'}")
