# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packs the build context of the image: the role's files, one flavour, and sgl_admin."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ..module_utils._contract.records import sha256

SGL_ADMIN = Path(__file__).resolve().parents[2] / "sgl_admin"


def pack(context: str, flavour: str, package: Path = SGL_ADMIN) -> bytes:
    """The build context as a tar archive.

    Equal content gives equal bytes: names are sorted, and neither times nor owners are kept.
    Raises AnsibleActionFail for a flavour that `context` does not have.
    """
    flavours = os.path.join(context, "flavours")
    known = sorted(os.listdir(flavours)) if os.path.isdir(flavours) else []
    if flavour not in known or not os.path.isfile(os.path.join(flavours, flavour, "flavour.json")):
        raise AnsibleActionFail(
            f"no image flavour {flavour!r} in {context}: set sgl_flavour to one of"
            f" {', '.join(known) or 'none'}"
        )
    others = [os.path.join(flavours, name) for name in known if name != flavour]
    entries = {
        **dict(_files(context, "", others)),
        **dict(_files(str(package), package.name, [])),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in sorted(entries.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            with open(path, "rb") as stream:
                content = stream.read()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _files(folder: str, prefix: str, without: list[str]) -> Iterator[tuple[str, str]]:
    """Name in the archive and path of each file below `folder`; a linked folder is packed whole."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name
            for name in folders
            if name != "__pycache__" and os.path.join(place, name) not in without
        ]
        for name in names:
            path = os.path.join(place, name)
            yield os.path.join(prefix, os.path.relpath(path, folder)), path


def digest(archive: bytes, options: dict[str, Any]) -> str:
    """sha256 over the packed context and the options that make another image."""
    inputs = archive + json.dumps(options, sort_keys=True).encode()
    return sha256(inputs)
