# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tokenizer's files: which of them count, and whether the server can read them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Any

from ..texts import path_line
from .text import AGAIN, POINTER_SIZE, ModelError, is_pointer, json_object, pointer_remedy, read

_CONFIG = "tokenizer_config.json"
_FAST = "tokenizer.json"
# Each of these is a tokenizer by itself: transformers, SentencePiece, tiktoken (Qwen, Kimi),
# Mistral's tekken, SGLang's reader of Grok's.
_ALONE = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+\w*)?|.*\.tiktoken|tiktoken\.model|tekken\.json|"
    r"tokenizer\.tok\.json|spiece\.model|sentencepiece\.bpe\.model|vocab\.txt"
)
_PAIR = ("vocab.json", "merges.txt")
# They belong to a tokenizer, and a server that cannot read them does not start.
_BESIDE = (_CONFIG, "special_tokens_map.json", "added_tokens.json")
# A server may do without these.
_OPTIONAL = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
_NEEDED = "tokenizer.json, tokenizer.model, tekken.json, or vocab.json with merges.txt"


def any_of(names: Collection[str]) -> bool:
    """Whether a folder holds anything of a tokenizer."""
    return any(_ALONE.fullmatch(name) or name in (*_PAIR, *_BESIDE) for name in names)


def check(folder: str, names: Collection[str]) -> Iterator[str]:
    """Warnings. Raises ModelError where a server cannot start with what is there, and OSError."""
    own = sorted(name for name in names if _ALONE.fullmatch(name))
    pair = [name for name in _PAIR if name in names]
    counting = [*own, *pair, *(name for name in _BESIDE if name in names)]
    if pointers := [name for name in counting if _is_pointer(os.path.join(folder, name))]:
        raise ModelError(
            f"the tokenizer of {path_line(folder)} is incomplete ({', '.join(pointers)}: Git LFS"
            f" pointers): {pointer_remedy(folder)}"
        )
    documents = {
        name: _document(folder, name)
        for name in counting
        if name.endswith(".json") and name != "tekken.json"
    }
    for name in own:
        if not os.path.getsize(os.path.join(folder, name)):
            raise ModelError(f"{path_line(os.path.join(folder, name))} is empty: {AGAIN}")
    if not own and not _has_own_code(names, documents.get(_CONFIG)):
        _check_pair(folder, pair)
    if _FAST in documents and not isinstance(documents[_FAST].get("model"), dict):
        yield f"{path_line(os.path.join(folder, _FAST))} has no model, so no server can read it"
    for name in _OPTIONAL:
        if name in names and (why := _unreadable(folder, name)):
            yield why


def _check_pair(folder: str, pair: list[str]) -> None:
    if len(pair) == len(_PAIR):
        return
    shown = path_line(folder)
    if pair:
        (missing,) = set(_PAIR) - set(pair)
        raise ModelError(
            f"the tokenizer of {shown} is incomplete: {pair[0]} has no {missing} beside it: copy or"
            " download it too"
        )
    raise ModelError(
        f"{shown} has no tokenizer ({_NEEDED}): copy or download its files too, or give the server"
        " another folder's (--tokenizer-path in sgl_server_args)"
    )


def _has_own_code(names: Collection[str], config: dict[str, Any] | None) -> bool:
    """Whether the model brings a tokenizer's code, which may have files of any name."""
    auto_map = (config or {}).get("auto_map")
    return (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map) or any(
        name.startswith("tokenization_") and name.endswith(".py") for name in names
    )


def _is_pointer(path: str) -> bool:
    return os.path.getsize(path) < POINTER_SIZE and is_pointer(read(path))


def _document(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    return json_object(path, read(path))


def _unreadable(folder: str, name: str) -> str | None:
    path = os.path.join(folder, name)
    if not name.endswith(".json"):
        return f"{path_line(path)} is a Git LFS pointer" if _is_pointer(path) else None
    try:
        json_object(path, read(path))
    except ModelError as error:
        return str(error)
    return None
