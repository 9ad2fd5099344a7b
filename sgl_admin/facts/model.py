"""The model that a prep is for: its slug, its identity, its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base.errors import Explained
from sgl_admin.contract import records
from sgl_admin.contract.model import experts, folder
from sgl_admin.contract.model.text import ModelError, ModelMissing, unreadable


class UnusableModel(Explained):
    """The model's folder or its config cannot be used (exit code 2)."""


@dataclass(frozen=True)
class Model:
    path: str
    slug: str
    identity: str
    config: dict[str, Any]
    # ModelOpt's hf_quant_config.json, where the model has one.
    modelopt: dict[str, Any] | None = None
    # What a server may survive.
    warnings: tuple[str, ...] = ()

    @property
    def has_experts(self) -> bool:
        return experts.has_experts(self.config)


def load(path: str, arguments: Sequence[str] = ()) -> Model:
    """The model in a folder, for a server with these arguments. Raises UnusableModel, and
    PermissionError.
    """
    try:
        found = folder.load(path, arguments, config_alone=True)
    except ModelMissing:
        raise UnusableModel(
            f"no model folder at {path} in the container; put it under the host's models folder"
            " (mounted at /models)"
        ) from None
    except ModelError as error:
        raise UnusableModel(str(error)) from error
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError):
            raise UnusableModel(f"{path!r} is no name of a folder ({error})") from error
        raise UnusableModel(str(unreadable(str(error.filename or path), error))) from error
    return Model(
        found.path,
        Path(path).name,
        records.model_identity(found.parts),
        found.config,
        found.modelopt,
        tuple(found.warnings),
    )
