"""The smallest model folder that is whole: config, one tensor, a tokenizer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"]}
# git-lfs' specification, https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)


def safetensors(tensors: Iterable[str] = ("model.norm.weight",)) -> bytes:
    """A safetensors file with these tensors, of four bytes each."""
    names = list(tensors)
    header = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * len(names))


def write_model(folder: Path, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "model.safetensors").write_bytes(safetensors())
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder
