# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The weight files that the server reads, and whether they are whole.

As SGLang's loader chooses them (`DefaultModelLoader._prepare_weights`,
`filter_duplicate_safetensors_files`): the safetensors files, of these only the index's where there
is one, else the PyTorch files.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..records import MODEL_INDEX, is_integer
from ..texts import path_line, read_json_text
from .config import language_parts
from .text import (
    AGAIN,
    POINTER_SIZE,
    ModelError,
    brief,
    is_pointer,
    json_object,
    pointer_remedy,
    read,
    several,
)

_PYTORCH_INDEX = "pytorch_model.bin.index.json"
_CONSOLIDATED = "consolidated.safetensors"
_CONSOLIDATED_INDEX = "consolidated.safetensors.index.json"
# PyTorch files that hold no weights (SGLang's `filter_files_not_needed_for_inference`).
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin")
# The digests of a model that was staged.
_STAGED = ".sgl-model.json"
_OTHER_FORMATS = (".gguf", ".pt", ".pth", ".h5", ".msgpack")
# Linux' own, with the NUL at the end.
_MAX_PATH = 4096
# The safetensors library's own limit for a header.
_MAX_HEADER = 100_000_000
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<of>\d{1,6})(?P<end>\.\w+)")
# What downloads leave while they last: huggingface_hub, wget and rsync, aria2, browsers.
_UNFINISHED = (".incomplete", ".part", ".aria2", ".crdownload")
# Where huggingface_hub keeps them: below the folder, or in the cache that a snapshot links to.
_DOWNLOADS = (".cache/huggingface/download", "../../blobs")
# PyTorch's files are ZIP archives, whose end has this mark at most a comment before the last byte.
_ZIP_START, _ZIP_END, _ZIP_TAIL = b"PK\x03\x04", b"PK\x05\x06", 22 + 65535
_LAYER = re.compile(r"^model\.(?:language_model\.)?layers\.(\d{1,6})\.", re.MULTILINE)


@dataclass(frozen=True)
class Weights:
    """The files that hold the weights, by their names below the model's folder."""

    files: list[str]
    index: str | None = None
    index_data: bytes | None = None
    # By file, the tensors that the index says it holds.
    tensors: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class Shards:
    """What the files turned out to be."""

    sizes: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    # Tensors that the index expects in a file, and that file does not hold.
    lacking: list[str] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    # Where no index says which file counts: all tensors, and the files that hold one again.
    tensors: set[str] = field(default_factory=set)
    repeating: list[str] = field(default_factory=list)


# --- which files ----------------------------------------------------------------------------------


def any_of(names: Collection[str]) -> bool:
    """Whether a folder holds anything of a model's weights, be it an index or a part of a file."""
    return any(
        name.endswith((".safetensors", ".bin", *_OTHER_FORMATS, *_UNFINISHED))
        or name in (MODEL_INDEX, _PYTORCH_INDEX, _CONSOLIDATED_INDEX)
        for name in names
    )


def find(folder: str, names: Collection[str]) -> Weights:
    """The weight files of a folder that holds `names`. Raises ModelError for an index that cannot
    be used, and OSError.
    """
    if MODEL_INDEX in names:
        return _indexed(folder, MODEL_INDEX)
    visible = sorted(name for name in names if not name.startswith("."))
    safetensors = [name for name in visible if name.endswith(".safetensors")]
    if safetensors == [_CONSOLIDATED, "model.safetensors"]:
        # Mistral's own format lies beside that of transformers.
        return Weights(["model.safetensors"])
    if safetensors:
        only_consolidated = all(name.startswith("consolidated") for name in safetensors)
        if only_consolidated and _CONSOLIDATED_INDEX in names:
            return _indexed(folder, _CONSOLIDATED_INDEX)
        return Weights(safetensors)
    if _PYTORCH_INDEX in names:
        return _indexed(folder, _PYTORCH_INDEX)
    return Weights(
        [name for name in visible if name.endswith(".bin") and not name.endswith(_NO_WEIGHTS)]
    )


def _indexed(folder: str, name: str) -> Weights:
    path = os.path.join(folder, name)
    data = read(path)
    tensors = _tensors(path, json_object(path, data))
    return Weights(sorted(tensors), name, data, tensors)


def _tensors(path: str, index: dict[str, Any]) -> dict[str, set[str]]:
    """The weight_map, by file. Raises ModelError for what cannot be a file of the folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path_line(path)} has no weight_map that names the shards: {AGAIN}")
    files: dict[str, set[str]] = {}
    # A large model has 150,000 tensors in a hundred files.
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in files:
            files[name].add(tensor)
            continue
        if not isinstance(name, str) or not _is_file_name(name):
            raise ModelError(
                f"{path_line(path)} names {brief(name)} as the file of {brief(tensor)}: {AGAIN}"
            )
        files[name] = {tensor}
    for name in files:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ModelError(
                f"{path_line(path)} names the shard {brief(name)}, which lies outside its folder:"
                " take the model from a trusted source"
            )
    return files


def _is_file_name(name: str) -> bool:
    try:
        return 0 < len(os.fsencode(name)) < _MAX_PATH and "\0" not in name
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return False


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


# --- whether they are whole -----------------------------------------------------------------------


def check(
    folder: str, names: Collection[str], weights: Weights, config: dict[str, Any]
) -> tuple[list[int], list[str]]:
    """The sizes of the files, and warnings. Raises ModelError where a server would not start, or
    would run on weights that were never set; OSError for what cannot be read.
    """
    shown = path_line(folder)
    if not weights.files:
        raise _no_weights(folder, names, "")
    found = _inspect(folder, weights)
    total = len(weights.files)
    if found.missing:
        raise _missing(folder, names, weights, found)
    if found.pointers:
        raise ModelError(
            f"the model {shown} has Git LFS pointers in place of {several(found.pointers, total)}:"
            f" {pointer_remedy(folder)}"
        )
    if found.damaged and all(name.endswith(".bin") for name in weights.files):
        raise _no_weights(folder, names, f" ({several(found.damaged, total, 'PyTorch files')})")
    if found.damaged:
        stage = "stage it again, or " if _STAGED in names else ""
        raise ModelError(
            f"the model {shown} has damaged weights in {several(found.damaged, total)}:"
            f" {stage}copy or download these again"
        )
    if found.lacking:
        raise ModelError(
            f"the model {shown} lacks tensors that {weights.index} names, in"
            f" {several(found.lacking, total)}: index and shards are of different downloads, so"
            f" {AGAIN}"
        )
    warnings = list(_check_splits(folder, weights)) if weights.index is None else []
    if found.repeating and not warnings:
        warnings.append(
            f"the model {shown} has tensors that an earlier file holds too, in"
            f" {several(found.repeating, total)}; without an index the server reads all files, and"
            " the last one counts: remove the files that do not belong to the model"
        )
    if why := _missing_layers(found.layers, config):
        warnings.append(f"the model {shown} {why}")
    return found.sizes, warnings


def _no_weights(folder: str, names: Collection[str], why: str) -> ModelError:
    """For a folder without weights that a server can read; what other formats hold is named."""
    others = sorted(name for name in names if name.endswith(_OTHER_FORMATS))
    held = f" (it has {path_line(others[0])})" if others and not why else why
    return ModelError(
        f"the model {path_line(folder)} has no *.safetensors file: use a model in the safetensors"
        f" format, or finish its download{held}"
    )


def _inspect(folder: str, weights: Weights) -> Shards:
    found = Shards()
    for name in weights.files:
        path = os.path.join(folder, name)
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            found.missing.append(_missing_name(path, name))
            continue
        if not stat.S_ISREG(info.st_mode):
            found.damaged.append(f"{path_line(name)} (not a file)")
            continue
        found.sizes.append(info.st_size)
        if info.st_size < POINTER_SIZE and is_pointer(read(path)):
            found.pointers.append(path_line(name))
            continue
        if problem := _shard_problem(path, info.st_size, weights.tensors.get(name), found):
            found.damaged.append(f"{path_line(name)} ({problem})")
    return found


def _missing_name(path: str, name: str) -> str:
    if not os.path.islink(path):
        return path_line(name)
    return f"{path_line(name)} (a link to {path_line(os.readlink(path))}, which is not there)"


def _shard_problem(path: str, size: int, expected: set[str] | None, found: Shards) -> str | None:
    """What is wrong with a weight file of this size, or None; its layers, and tensors that it lacks
    or repeats, are noted in `found`. Raises OSError when it cannot be read.
    """
    if size == 0:
        return "empty"
    if path.endswith(".bin"):
        return _pytorch_problem(path, size)
    header, problem = _header(path, size)
    if header is None or problem:
        return problem
    found.layers |= _layers(header)
    if expected is None:
        odd, names = found.tensors & header.keys(), found.repeating
        found.tensors |= header.keys()
    else:
        odd, names = expected - header.keys(), found.lacking
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        names.append(f"{path_line(os.path.basename(path))} ({brief(min(odd))[:60]}{more})")
    return None


def _header(path: str, size: int) -> tuple[dict[str, Any] | None, str | None]:
    """The header of a safetensors file, and what is wrong with it.

    The header says where the last tensor ends, and that is where the file ends: a download or copy
    that stopped is shorter. Nothing but the header is read.
    """
    if size < 8:
        return None, "no safetensors file"
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > _MAX_HEADER:
            return None, "no safetensors file"
        header = handle.read(length)
    if len(header) < length:
        return None, f"cut off at {size} bytes"
    if not header.startswith(b"{"):
        return None, "no safetensors file"
    try:
        tensors = read_json_text(header.decode("utf-8"))
    except ValueError:
        return None, "its header is not JSON"
    tensors.pop("__metadata__", None)
    end = 0
    for entry in tensors.values():
        offsets: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not _is_place(offsets):
            return None, "its header gives a tensor no place"
        end = max(end, offsets[1])
    expected = 8 + length + end
    if size < expected:
        return tensors, f"cut off: {size} of {expected} bytes"
    if size > expected:
        return tensors, f"longer than its header says: {size} instead of {expected} bytes"
    return tensors, None


def _is_place(offsets: Any) -> bool:
    if not isinstance(offsets, list) or len(offsets) != 2:
        return False
    start, end = offsets
    return is_integer(start) and is_integer(end) and 0 <= start <= end < 1 << 63


def _pytorch_problem(path: str, size: int) -> str | None:
    """The central directory at the end of the ZIP archive is what a cut file lacks. PyTorch's older
    format (before 1.6) has no mark of its end.
    """
    with open(path, "rb") as handle:
        if handle.read(4) != _ZIP_START:
            return None if size > POINTER_SIZE else "no PyTorch file"
        handle.seek(max(0, size - _ZIP_TAIL))
        return None if _ZIP_END in handle.read() else f"cut off at {size} bytes"


# --- what names say -------------------------------------------------------------------------------


def _missing(folder: str, names: Collection[str], weights: Weights, found: Shards) -> ModelError:
    shown = path_line(folder)
    text = several(found.missing, len(weights.files))
    if weights.index is None:
        return ModelError(f"the model {shown} lacks {text}: copy the linked files too (cp -L)")
    if other := _other_split(names, weights.files):
        named, present = other
        return ModelError(
            f"{weights.index} of {shown} names {named} shards, and the folder has the {present} of"
            " another split, all of them: the index is of another download, so take the one that"
            " belongs to these files"
        )
    remedy = "finish its copy or download"
    if all("(a link to" in name for name in found.missing):
        remedy = "copy the linked files too (cp -L), or finish the download"
    return ModelError(
        f"the model {shown} lacks {text}: {remedy} (the files that {weights.index} names)"
    )


def _other_split(names: Collection[str], expected: list[str]) -> tuple[int, int] | None:
    """How many files the index splits the weights into, and how many a whole split beside it has
    that the index does not name.
    """
    named = set(_splits(expected))
    for (stem, count, end), parts in _splits(names).items():
        others = [other[1] for other in named if (other[0], other[2]) == (stem, end)]
        if others and (stem, count, end) not in named and _is_whole(parts, count):
            return others[0], count
    return None


def _splits(names: Iterable[str]) -> dict[tuple[str, int, str], dict[int, str]]:
    """The parts that are there, by split: stem, number of parts and ending of names such as
    model-00001-of-00002.safetensors.
    """
    found: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in sorted(names):
        if match := _SPLIT.fullmatch(name):
            parts = found.setdefault((match["stem"], int(match["of"]), match["end"]), {})
            parts.setdefault(int(match["number"]), name)
    return found


def _is_whole(parts: dict[int, str], count: int) -> bool:
    """Splits count from 1; some old ones from 0."""
    first = 0 if 0 in parts else 1
    return parts.keys() >= set(range(first, first + count))


def _check_splits(folder: str, weights: Weights) -> Iterator[str]:
    """Without an index the names alone say how many there are. Yields warnings; raises
    ModelError.
    """
    shown = path_line(folder)
    splits = _splits(weights.files)
    whole = {split for split, parts in splits.items() if _is_whole(parts, split[1])}
    for split, parts in splits.items():
        if split in whole:
            continue
        stem, count, end = split
        missing = [
            path_line(_numbered(parts[min(parts)], number))
            for number in range(1, count + 1)
            if number not in parts
        ]
        if not any((stem, end) == (other[0], other[2]) for other in whole):
            raise ModelError(
                f"the model {shown} lacks {several(missing, count)}: finish its copy or download"
                " (there is no index, so the names of the files say how many there are)"
            )
        yield (
            f"the model {shown} has a part of a split into {count} files beside a whole one, and"
            " the server reads both: remove what does not belong to the model"
        )
    if splits and set(splits) == whole:
        return
    if not splits and (leftover := unfinished(folder)):
        raise ModelError(
            f"the model {shown} has an unfinished download ({path_line(leftover)}), and no index"
            " that says which files it needs: finish the download, or remove that file"
        )


def _numbered(sample: str, number: int) -> str:
    """The name of a part, with as many digits as another one."""
    before, after = sample.rsplit("-of-", 1)
    stem, digits = before.rsplit("-", 1)
    return f"{stem}-{number:0{len(digits)}d}-of-{after}"


def unfinished(folder: str) -> str | None:
    """A file that an unfinished download of the model left, by its name below the folder."""
    for place in ("", *_DOWNLOADS):
        try:
            names = os.listdir(os.path.join(folder, place))
        except OSError:
            continue
        for name in sorted(names):
            if name.endswith(_UNFINISHED):
                return os.path.join(place, name)
    return None


def _layers(tensors: Iterable[str]) -> set[int]:
    return set(map(int, set(_LAYER.findall("\n".join(tensors)))))


def _missing_layers(layers: set[int], config: dict[str, Any]) -> str | None:
    """What the config's number of layers says of the layers that the weights hold."""
    count = next(
        (
            part["num_hidden_layers"]
            for part in reversed(language_parts(config))
            if is_integer(part.get("num_hidden_layers"))
        ),
        0,
    )
    # A config that asks for more than any model has would make a list of no use.
    if not layers or count > 10_000:
        return None
    missing = sorted(set(range(count)) - layers)
    if not missing:
        return None
    numbers = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
    return (
        f"has no weights for {len(missing)} of the {count} layers that its config names"
        f" ({numbers}): compare its files with those of its source"
    )
