# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model folder as Hugging Face lays it out: is it there, whole, visible in the container, and
does it fit the host's devices.

Nothing here writes. Weights are not read but for the header of each shard, which says how long the
file has to be.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import struct
from collections.abc import Iterator
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import records
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.records import (
    MODEL_CONFIG as CONFIG,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.records import (
    MODEL_INDEX as INDEX,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.texts import path_line

# The digests that a model came with (model_digests), and where the Hugging Face client keeps its
# own notes.
RECORD = ".sgl-model.json"
HUB_METADATA = ".cache/huggingface/download"
NAMED_SHARDS = 5
# Linux' own, with the NUL at the end.
_MAX_PATH = 4096
# The safetensors library's own limit for a header.
_MAX_HEADER = 100_000_000
# One index of a 512-expert model is 15 MB.
_MAX_JSON = 256 << 20
_DATA_END = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,19})\s*\]')
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[')
# How the architectures that SGLang knows call their number of experts.
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
# Where multimodal models keep the language model's part.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")


class ModelError(Exception):
    """The model cannot be served from here; the text names the thing and the remedy."""


class ModelMissing(ModelError):
    """There is no such folder."""


def _read(path: str) -> bytes:
    """The file's bytes. Raises OSError, also for what is not a regular file (a FIFO would
    block).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as handle:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file")
        data = handle.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise OSError(0, "larger than any such file is")
    return data


def json_object(path: str, data: bytes) -> dict[str, Any]:
    remedy = "copy or download the model again"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise ModelError(f"{path_line(path)} is not valid JSON ({exc}): {remedy}") from None
    if not isinstance(value, dict):
        raise ModelError(
            f"{path_line(path)} holds a JSON {type(value).__name__}, not an object: {remedy}"
        )
    return value


def model_identity(path: str) -> str:
    """The identity of the model in the folder ``path``.

    Raises OSError.
    """
    parts = [(CONFIG, _read(os.path.join(path, CONFIG)))]
    index = os.path.join(path, INDEX)
    if os.path.lexists(index):
        parts.append((INDEX, _read(index)))
    return records.model_identity(parts)


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


def _brief(value: object) -> str:
    """The value as JSON, cut to what fits into a sentence."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _language_part(config: dict[str, Any], depth: int = 2) -> Iterator[dict[str, Any]]:
    """The config and the parts of it that may describe the language model, outermost first."""
    yield config
    for key in _NESTED if depth else ():
        part = config.get(key)
        if isinstance(part, dict):
            yield from _language_part(part, depth - 1)


def _first(config: dict[str, Any], names: tuple[str, ...]) -> tuple[str, Any] | None:
    for part in _language_part(config):
        for name in names:
            if part.get(name) is not None:
                return name, part[name]
    return None


def is_moe(config: dict[str, Any]) -> bool:
    """True when some layer has more than one routed expert (a list counts per modality or
    layer).
    """
    for part in _language_part(config):
        for name in _EXPERTS:
            value = part.get(name)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and not isinstance(number, bool) and number > 1:
                    return True
    return False


def architecture(path: str, config: dict[str, Any]) -> str:
    """The first of ``architectures``, by which the server picks its code. Raises ModelError when
    there is none.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ModelError(
            f"{path_line(path)} names no architecture (architectures is {_brief(names)}): use the"
            " folder of a complete Hugging Face model"
        )
    return name


def check_heads(path: str, config: dict[str, Any], tp: int) -> None:
    """Raises ModelError when tp does not divide the attention heads, which the server would only
    say after minutes.
    """
    found = _first(config, _HEADS)
    if found is None:
        return
    name, heads = found
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
        raise ModelError(
            f"{path_line(path)} has {name} {_brief(heads)}, not a positive number: copy or download"
            " the model again"
        )
    if heads % tp:
        fitting = [str(number) for number in range(1, tp) if heads % number == 0]
        raise ModelError(
            f"tp {tp} does not divide the {_brief(heads)} attention heads ({name}) of"
            f" {path_line(path)}: set sgl_tp: {fitting[-1]}"
        )


def _is_file_name(name: str) -> bool:
    try:
        return 0 < len(os.fsencode(name)) < _MAX_PATH and "\0" not in name
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return False


def _shard_names(path: str, index: dict[str, Any]) -> list[str]:
    """The distinct files of the index's weight_map. Raises ModelError for what cannot be a file of
    the folder.
    """
    remedy = "copy or download the model again"
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path_line(path)} has no weight_map that names the shards: {remedy}")
    names: dict[str, None] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_file_name(name):
            raise ModelError(
                f"{path_line(path)} names {_brief(name)} as the file of {_brief(tensor)}: {remedy}"
            )
        names[name] = None
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ModelError(
                f"{path_line(path)} names the shard {_brief(name)}, which lies outside its folder:"
                " take the model from a trusted source"
            )
    return sorted(names)


def is_below(name: str) -> bool:
    """Whether a name that some file gives is a relative path that stays below its folder, in its
    one plain spelling.
    """
    return (
        _is_file_name(name)
        and not os.path.isabs(name)
        and os.path.normpath(name) == name
        and name.split("/")[0] not in ("..", ".")
    )


def weight_files(path: str) -> tuple[bytes | None, list[str]]:
    """The index, None where there is none, and the weight files: those that it names, else each
    ``*.safetensors`` of the folder.

    Raises ModelError for an index that cannot be used.
    """
    index = os.path.join(path, INDEX)
    if os.path.lexists(index):
        data = load(index)
        return data, _shard_names(index, json_object(index, data))
    try:
        names = os.listdir(path)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    return None, sorted(
        name for name in names if name.endswith(".safetensors") and not name.startswith(".")
    )


def several(problems: list[str], total: int, noun: str = "shards") -> str:
    """``2 of 9 shards: a, b``; of many only the first ones by name."""
    more = len(problems) - NAMED_SHARDS
    text = ", ".join(problems[:NAMED_SHARDS]) + (f" and {more} more" if more > 0 else "")
    return f"{len(problems)} of {total} {noun}: {text}"


def shard_problem(path: str, size: int) -> str | None:
    """What is wrong with a safetensors file of this size, or None. Raises OSError when it cannot be
    read.

    The header says where the last tensor ends; a download or copy that stopped is shorter. Nothing
    but the header is read.
    """
    if size == 0:
        return "empty"
    if size < 8:
        return "no safetensors file"
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > _MAX_HEADER:
            return "no safetensors file"
        header = handle.read(length)
    if len(header) < length:
        return f"cut off at {size} bytes"
    if not header.startswith(b"{"):
        return "no safetensors file"
    ends = _DATA_END.findall(header)
    if len(ends) < len(_OFFSETS.findall(header)):
        # One that no reader takes would leave the end of the file unknown.
        return "its header gives a tensor no place"
    wanted = 8 + length + max(map(int, ends), default=0)
    if size < wanted:
        return f"cut off: {size} of {wanted} bytes"
    return None


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
) -> dict[str, Any]:
    """Verify the model folder and describe it.

    ``root`` is the mounted directory that must hold it, as the container sees it; ``uid`` and
    ``gid`` who must be able to read it. Raises ModelMissing when there is no such folder and
    ModelError for all else.
    """
    check_devices(tp, device_count, device_name)
    root = os.path.normpath(root) if root else None
    path = _checked_path(path, root)
    shown = path_line(path)
    config_path = os.path.join(path, CONFIG)
    if CONFIG not in _names_in(path):
        raise ModelError(
            f"the model {shown} has no {CONFIG}: set sgl_model to the folder of a complete Hugging"
            " Face model"
        )
    config_data = load(config_path)
    config = json_object(config_path, config_data)
    arch = architecture(config_path, config)
    check_heads(config_path, config, tp)

    parts = [(CONFIG, config_data)]
    index_data, shards = weight_files(path)
    if index_data is not None:
        parts.append((INDEX, index_data))
    elif not shards:
        raise ModelError(
            f"the model {shown} has no *.safetensors file: use a model in the safetensors format,"
            " or finish its download"
        )
    required = [name for name, _data in parts]
    sizes = _check_shards(path, shards)
    for name in [*required, *shards]:
        _check_visible(os.path.join(path, name), root, uid, gid, path)
    return {
        "path": shown,
        "slug": os.path.basename(path),
        "missing": False,
        "identity": records.model_identity(parts),
        "architecture": arch,
        "moe": is_moe(config),
        "size_bytes": sum(sizes),
        "shards": len(shards),
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


def _names_in(path: str) -> list[str]:
    """What the model's folder holds. Raises ModelMissing where there is no such folder."""
    shown = path_line(path)
    try:
        info = os.stat(path)
        names = os.listdir(path) if stat.S_ISDIR(info.st_mode) else []
    except (FileNotFoundError, NotADirectoryError):
        what = "is a dangling symbolic link" if os.path.islink(path) else "does not exist"
        raise ModelMissing(
            f"the model {shown} {what}: put the model there, or set sgl_model to one that is there"
        ) from None
    except OSError as exc:
        raise unreadable(path, exc) from exc
    if not stat.S_ISDIR(info.st_mode):
        raise ModelError(
            f"the model {shown} is not a directory: set sgl_model to the folder that holds {CONFIG}"
        )
    return names


def may_have_digests(path: str) -> bool:
    """Whether the folder may hold recorded digests; told cheaply, for whoever needs model_digests
    only then.
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
        "identity": None,
        "architecture": None,
        "moe": None,
        "size_bytes": None,
        "shards": None,
    }


def unreadable(path: str, exc: OSError) -> ModelError:
    shown = path_line(path)
    if isinstance(exc, PermissionError):
        remedy = f"run `chmod -R u+rX,g+rX {shlex.quote(shown)}`, or run the task with become: true"
    else:
        remedy = "copy or download the model again"
    return ModelError(
        f"{shown} cannot be read by uid {os.geteuid()} ({exc.strerror or exc}): {remedy}"
    )


def load(path: str) -> bytes:
    try:
        return _read(path)
    except OSError as exc:
        raise unreadable(path, exc) from exc


def _check_shards(path: str, shards: list[str]) -> list[int]:
    """The sizes, in bytes. Raises ModelError that names the first shards which are missing or cut
    off, and how many there are.
    """
    sizes, missing, damaged = [], [], []
    for name in shards:
        file = os.path.join(path, name)
        try:
            info = os.stat(file)
            if not stat.S_ISREG(info.st_mode):
                damaged.append(f"{path_line(name)} (not a file)")
                continue
            problem = shard_problem(file, info.st_size)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(path_line(name))
            continue
        except OSError as exc:
            raise unreadable(file, exc) from exc
        if problem:
            damaged.append(f"{path_line(name)} ({problem})")
        sizes.append(info.st_size)
    if missing:
        raise ModelError(
            f"the model {path_line(path)} lacks {several(missing, len(shards))}: finish its copy or"
            f" download (the files that {INDEX} names)"
        )
    if damaged:
        raise ModelError(
            f"the model {path_line(path)} has damaged weights in {several(damaged, len(shards))}:"
            " copy or download these again"
        )
    return sizes


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
