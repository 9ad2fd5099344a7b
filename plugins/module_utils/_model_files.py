# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model folder as Hugging Face lays it out: is it there, whole (`_contract.model` reads it, as in
the container), visible in the container, and does it fit the host's devices.

Nothing here writes. Weights are not read but for the header of each shard, which says how long the
file has to be.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Sequence
from typing import Any

from ._contract import records
from ._contract.model import experts, folder, text, weights
from ._contract.model.config import check_heads
from ._contract.model.text import ModelError, ModelMissing, json_object, several, unreadable
from ._contract.model.weights import is_below
from ._contract.texts import path_line

# Imported for those who import this module.
__all__ = ["ModelMissing", "is_below", "json_object", "several"]

CONFIG = records.MODEL_CONFIG
# The digests that a model came with (model_digests), and where the Hugging Face client keeps its
# own notes.
RECORD = ".sgl-model.json"
HUB_METADATA = ".cache/huggingface/download"


def check_devices(tp: int, device_count: int, device_name: str) -> None:
    """Raises ModelError when tensor parallelism wants more devices than the host has (no GPU: the
    CPU is one device).
    """
    if tp < 1:
        raise ModelError(f"tp {tp} is not a number of devices: set sgl_tp to 1 or more")
    devices = max(device_count, 1)
    name = device_name or "CPU"
    if tp > devices:
        fits = "1" if devices == 1 else f"{devices} or less"
        raise ModelError(
            f"tp {tp} needs {tp} devices, this host has {devices} ({name}): set sgl_tp: {fits}, or"
            f" use a host that has {tp} devices"
        )


def weight_files(path: str) -> weights.Weights:
    """The weight files that the server reads.

    Raises ModelError for an index that cannot be used.
    """
    try:
        return weights.find(path, os.listdir(path))
    except OSError as exc:
        raise unreadable(path, exc) from exc


def outside_mount(path: str, root: str) -> str | None:
    """Why ``path`` will not resolve in a container that sees only ``root``, mounted at another
    place; None when it will.

    A relative link that stays below root resolves there too; an absolute one, or one that leaves
    root, dangles.
    """
    if path != root and not path.startswith(root.rstrip("/") + "/"):
        return f"is not below {path_line(root)}"
    parts = [part for part in os.path.relpath(path, root).split("/") if part != "."]
    done: list[str] = []
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            if not done:
                return f"leads out of {path_line(root)} by a symbolic link"
            done.pop()
            continue
        here = os.path.join(root, *done, part)
        try:
            target = os.readlink(here)
        except OSError:
            done.append(part)
            continue
        links += 1
        if os.path.isabs(target):
            return (
                f"is reached by the absolute symbolic link {path_line(here)} -> {path_line(target)}"
            )
        if links > 40:
            return f"is reached by symbolic links in a circle at {path_line(here)}"
        parts = [step for step in target.split("/") if step not in ("", ".")] + parts
    return None


def denied(path: str, uid: int, gid: int, root: str) -> str | None:
    """The first thing on the way from root to path that uid:gid may not enter or read by its mode
    bits; None when all is open.

    Access control lists are not looked at, so only a denial that the mode bits alone decide is
    reported. Raises OSError.
    """
    if uid == 0:
        return None
    steps = [root]
    for part in os.path.relpath(path, root).split("/"):
        if part != ".":
            steps.append(os.path.join(steps[-1], part))
    for step in steps:
        info = os.stat(step)
        shift = 6 if info.st_uid == uid else 3 if info.st_gid == gid else 0
        need = (0o5 if step == path else 0o1) if stat.S_ISDIR(info.st_mode) else 0o4
        if (info.st_mode >> shift) & need != need:
            return step
    return None


def inspect_model(
    path: str,
    *,
    tp: int = 1,
    device_count: int = 1,
    device_name: str = "",
    root: str | None = None,
    uid: int | None = None,
    gid: int | None = None,
    server_args: Sequence[str] = (),
    warn: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Verify the model folder and describe it.

    ``root`` is the mounted directory that must hold it, as the container sees it; ``uid`` and
    ``gid`` who must be able to read it; ``server_args`` how the server is started, and ``warn``
    gets what it may survive. Raises ModelMissing when there is no such folder and ModelError for
    all else.
    """
    check_devices(tp, device_count, device_name)
    root = os.path.normpath(root) if root else None
    path = _checked_path(path, root)
    try:
        found = folder.load(path, server_args)
    except OSError as exc:
        raise unreadable(os.fspath(exc.filename or path), exc) from exc
    check_heads(os.path.join(path, CONFIG), found.config, tp)
    for name in found.required:
        _check_visible(os.path.join(path, name), root, uid, gid, path)
    for warning in found.warnings:
        warn(warning)
    return {
        "path": path_line(path),
        "slug": os.path.basename(path),
        "missing": False,
        "identity": records.model_identity(found.parts),
        "architecture": found.architecture,
        "moe": experts.has_experts(found.config),
        "size_bytes": found.size_bytes,
        "shards": len(found.files),
    }


def _checked_path(path: str, root: str | None) -> str:
    """The normal form of the model's path. Raises ModelError where it is not absolute, or the
    container does not see it.
    """
    if not os.path.isabs(path) or "\0" in path:
        raise ModelError(
            f"model '{path_line(path)}' is not an absolute path: set sgl_model to a folder below"
            " the models root"
        )
    path = os.path.normpath(path)
    if root is not None and (why := outside_mount(path, root)):
        raise ModelError(
            f"the container cannot see the model: {path_line(path)} {why}: move or copy the model"
            f" to a folder below {path_line(root)}"
        )
    return path


def may_have_digests(path: str) -> bool:
    """Whether the folder may hold recorded digests: a cheap check, for callers that load
    model_digests only then.
    """
    notes = (RECORD, HUB_METADATA)
    # The client's cache is made of links whose targets are named by their digests.
    return any(os.path.lexists(os.path.join(path, name)) for name in notes) or os.path.islink(
        os.path.join(path, CONFIG)
    )


def missing_model(path: str) -> dict[str, Any]:
    """What is known of a model that is not there yet; the keys of :func:`inspect_model`."""
    path = os.path.normpath(path)
    return {
        "path": path_line(path),
        "slug": os.path.basename(path),
        "missing": True,
        **dict.fromkeys(("identity", "architecture", "moe", "size_bytes", "shards")),
    }


def load(path: str) -> bytes:
    try:
        return text.read(path)
    except OSError as exc:
        raise unreadable(path, exc) from exc


def _check_visible(
    file: str, root: str | None, uid: int | None, gid: int | None, folder: str
) -> None:
    if root is not None and (why := outside_mount(file, root)):
        raise ModelError(
            f"the container cannot see {path_line(file)}: it {why}: put the file itself there"
            " (cp -L)"
        )
    if uid is None:
        return
    try:
        closed = denied(file, uid, -1 if gid is None else gid, root or folder)
    except OSError as exc:
        raise unreadable(file, exc) from exc
    if closed:
        inside = closed == folder or closed.startswith(folder + "/")
        command = (
            f"chmod -R a+rX {shlex.quote(path_line(folder))}"
            if inside
            else f"chmod a+rx {shlex.quote(path_line(closed))}"
        )
        raise ModelError(
            f"{path_line(closed)} cannot be read by uid {uid}, as which the server runs: run"
            f" `{command}`"
        )
