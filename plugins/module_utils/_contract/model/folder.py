# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model's folder: what it holds, and why a server cannot start with it, or should not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..records import MODEL_CONFIG, MODEL_INDEX
from ..texts import path_line
from . import tokenizer, weights
from .arguments import reads_tokenizer, reads_weights
from .config import architecture, architecture_name
from .text import ModelError, ModelMissing, json_object, read

# ModelOpt's own file: which parts of the model are quantised, and how.
MODELOPT_CONFIG = "hf_quant_config.json"
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Reading:
    """A model that a server can be started with."""

    path: str
    config: dict[str, Any]
    # The files that name it, with their bytes: config and, where there is one, the index.
    parts: list[tuple[str, bytes]]
    # ModelOpt's file, where the model has one.
    modelopt: dict[str, Any] | None
    files: list[str] = field(default_factory=list)
    size_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return architecture_name(self.config)

    @property
    def required(self) -> list[str]:
        """The names of all files that a server needs."""
        return [*(part[0] for part in self.parts), *self.files]


def load(path: str, arguments: Sequence[str] = (), config_alone: bool = False) -> Reading:
    """Read the model in the folder `path`, for a server with these arguments.

    With `config_alone` a folder without any weights and tokenizer will do, as a description of a
    model: it is enough for a plan, and a server of it ends at once.

    Raises ModelMissing where there is no such folder, ModelError for a model that no server could
    be started with, or only on weights that were never set, and OSError for what cannot be read.
    """
    names = names_in(path)
    if MODEL_CONFIG not in names:
        raise _not_a_model(path, names)
    config_path = os.path.join(path, MODEL_CONFIG)
    config_data = read(config_path)
    config = json_object(config_path, config_data)
    parts = [(MODEL_CONFIG, config_data)]
    modelopt = _modelopt(path, names)
    if config_alone and not (weights.any_of(names) or tokenizer.any_of(names)):
        return Reading(path, config, parts, modelopt)
    architecture(config_path, config)
    files: list[str] = []
    sizes: list[int] = []
    warnings: list[str] = []
    if not reads_weights(arguments):
        if MODEL_INDEX in names:
            parts.append((MODEL_INDEX, read(os.path.join(path, MODEL_INDEX))))
    else:
        found = weights.find(path, names)
        if found.index == MODEL_INDEX and found.index_data is not None:
            parts.append((MODEL_INDEX, found.index_data))
        sizes, warnings = weights.check(path, names, found, config)
        files = found.files
    if reads_tokenizer(arguments):
        warnings.extend(tokenizer.check(path, names))
    return Reading(path, config, parts, modelopt, files, sum(sizes), warnings)


def names_in(path: str) -> list[str]:
    """What the model's folder holds. Raises ModelMissing where there is no such folder, and
    OSError.
    """
    shown = path_line(path)
    try:
        info = os.stat(path)
        names = os.listdir(path) if stat.S_ISDIR(info.st_mode) else []
    except (FileNotFoundError, NotADirectoryError):
        problem = "is a dangling symbolic link" if os.path.islink(path) else "does not exist"
        raise ModelMissing(
            f"the model {shown} {problem}: put the model there, or set sgl_model to one that is"
            " there"
        ) from None
    if not stat.S_ISDIR(info.st_mode):
        raise ModelError(
            f"the model {shown} is not a directory: set sgl_model to the folder that holds"
            f" {MODEL_CONFIG}"
        )
    return names


def _modelopt(path: str, names: list[str]) -> dict[str, Any] | None:
    if MODELOPT_CONFIG not in names:
        return None
    file = os.path.join(path, MODELOPT_CONFIG)
    return json_object(file, read(file))


# --- folders that only contain a model ------------------------------------------------------------


def _not_a_model(path: str, names: list[str]) -> ModelError:
    shown = path_line(path)
    inside = sorted(_models_inside(path, names))
    if len(inside) == 1:
        is_cache = f"{_SNAPSHOTS}/" in inside[0]
        kind = "is a Hugging Face cache" if is_cache else f"has no {MODEL_CONFIG}"
        return ModelError(
            f"{shown} {kind}, and the model is in {path_line(inside[0])} below it: set sgl_model to"
            f" that folder ({path_line(os.path.join(path, inside[0]))})"
        )
    if inside:
        return ModelError(
            f"{shown} has no {MODEL_CONFIG}, and {len(inside)} models are below it"
            f" ({', '.join(path_line(name) for name in inside[:3])}): set sgl_model to one of these"
        )
    if os.path.isdir(os.path.join(path, _SNAPSHOTS)):
        return ModelError(
            f"{shown} is the root of a Hugging Face cache whose download is not finished (no"
            f" {_SNAPSHOTS}/*/{MODEL_CONFIG}): finish the download, and set sgl_model to the folder"
            f" {_SNAPSHOTS}/<revision>"
        )
    if "params.json" in names:
        return ModelError(
            f"the model {shown} is in Mistral's own format (params.json, no {MODEL_CONFIG}): use"
            " the files in the format of transformers"
        )
    return ModelError(
        f"the model {shown} has no {MODEL_CONFIG}: set sgl_model to the folder of a complete"
        " Hugging Face model"
    )


def _models_inside(path: str, names: list[str]) -> Iterator[str]:
    """Models below a folder: the revision that a cache calls its main one, or all; else those one
    step down.
    """
    snapshots = os.path.join(path, _SNAPSHOTS)
    if _SNAPSHOTS in names:
        revisions = _models_in(snapshots)
        main = _main_revision(path)
        chosen = [main] if main in revisions else revisions
        yield from (os.path.join(_SNAPSHOTS, str(revision)) for revision in chosen)
        return
    for name in names:
        below = os.path.join(path, name)
        if name.startswith("models--") and os.path.isdir(below):
            yield from (
                os.path.join(name, inside) for inside in _models_inside(below, [_SNAPSHOTS])
            )
    yield from _models_in(path)


def _models_in(path: str) -> list[str]:
    try:
        names = os.listdir(path)
    except OSError:
        return []
    return [
        name
        for name in sorted(names)
        if not name.startswith(".") and os.path.isfile(os.path.join(path, name, MODEL_CONFIG))
    ]


def _main_revision(path: str) -> str | None:
    try:
        return read(os.path.join(path, "refs", "main")).decode("ascii").strip()
    except (OSError, ValueError):
        return None
