"""The model that a prep is for: its slug, its identity and what its config says of experts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base import files
from sgl_admin.base.errors import Explained
from sgl_admin.contract import records

# How the architectures that SGLang knows call their number of experts, and the language model's
# part of a config.
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_LANGUAGE = ("text_config", "llm_config", "language_config", "thinker_config")


class UnusableModel(Explained):
    """The model's folder or its config cannot be used (exit code 2)."""


@dataclass(frozen=True)
class Model:
    path: str
    slug: str
    identity: str
    config: dict[str, Any]

    @property
    def has_experts(self) -> bool:
        parts = (self.config, language_part(self.config))
        return any(
            type(part.get(key)) is int and part[key] > 0 for part in parts for key in EXPERTS
        )


def language_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config: multimodal models keep it in a config of its own."""
    return next((config[key] for key in _LANGUAGE if isinstance(config.get(key), dict)), config)


def load(path: str) -> Model:
    folder = Path(path)
    try:
        present = folder.is_dir()
    except PermissionError:
        raise
    except OSError:
        # Such a name no folder can have.
        present = False
    if not present:
        raise UnusableModel(
            f"no model folder at {path} in the container; put it under the host's models folder"
            " (mounted at /models)"
        )
    try:
        config = json.loads(files.read_bytes(folder / "config.json").decode("utf-8"))
        known_as = identity(folder)
    except FileNotFoundError:
        raise UnusableModel(
            f"{path} has no config.json: not a model folder, or not a whole one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableModel(f"the config or the index of {path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UnusableModel(f"{path}/config.json does not hold a JSON object")
    return Model(path=str(folder), slug=folder.name, identity=known_as, config=config)


def identity(folder: Path) -> str:
    """The model's identity, as the host computes it too. Raises OSError and ValueError."""
    parts = []
    for name in (records.MODEL_CONFIG, records.MODEL_INDEX):
        try:
            parts.append((name, files.read_bytes(folder / name)))
        except FileNotFoundError:
            continue
    return records.model_identity(parts)
