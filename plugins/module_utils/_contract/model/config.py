# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What config.json says: the architecture, the language model's part, the attention heads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..records import is_integer
from ..texts import path_line
from .text import AGAIN, ModelError, brief

# Where multimodal models keep the language model's part, in the order in which SGLang prefers them
# (get_hf_text_config).
_LANGUAGE = ("thinker_config", "llm_config", "language_config", "text_config")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_DEPTH = 3


def language_parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config and the parts of it that describe the language model, outermost first."""
    parts = [config]
    while len(parts) < _DEPTH:
        inner = next(
            (parts[-1][key] for key in _LANGUAGE if isinstance(parts[-1].get(key), dict)), None
        )
        if inner is None:
            break
        parts.append(inner)
    return parts


def all_parts(config: dict[str, Any], depth: int = _DEPTH) -> Iterator[dict[str, Any]]:
    """The config and every part of it that some architecture describes its language model in."""
    yield config
    for key in _LANGUAGE if depth > 1 else ():
        part = config.get(key)
        if isinstance(part, dict):
            yield from all_parts(part, depth - 1)


def architecture(path: str, config: dict[str, Any]) -> str:
    """The first of ``architectures``, by which the server picks its code. Raises ModelError when
    there is none.
    """
    name = architecture_name(config)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        names = brief(config.get("architectures"))
        raise ModelError(
            f"{path_line(path)} names no architecture (architectures is {names}): use the"
            " folder of a complete Hugging Face model"
        )
    return name


def architecture_name(config: dict[str, Any]) -> str:
    """As the config has it; empty where it has none."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) else ""


def check_heads(path: str, config: dict[str, Any], tp: int) -> None:
    """Raises ModelError when tp does not divide the attention heads, which the server would only
    say after minutes.
    """
    found = next(
        (
            (name, part[name])
            for part in reversed(language_parts(config))
            for name in _HEADS
            if part.get(name) is not None
        ),
        None,
    )
    if found is None:
        return
    name, heads = found
    if not is_integer(heads) or heads < 1:
        raise ModelError(
            f"{path_line(path)} has {name} {brief(heads)}, not a positive number: {AGAIN}"
        )
    if heads % tp:
        fitting = [str(number) for number in range(1, tp) if heads % number == 0]
        raise ModelError(
            f"tp {tp} does not divide the {brief(heads)} attention heads ({name}) of"
            f" {path_line(path)}: set sgl_tp: {fitting[-1]}"
        )
