"""A sharded model of any size: config, tokenizer, index, and safetensors files of random bytes,
which no server loads.

It stands for a model of tens of gigabytes, where only its files are looked at and not what a server
makes of them.
"""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model

INDEX = "model.safetensors.index.json"
_CHUNK = 8 << 20


def shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def make_model(folder: Path, shards: int, shard_bytes: int, seed: int = 0) -> list[Path]:
    """Make the model in ``folder``; returns its shards, each with one tensor of ``shard_bytes``
    bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = random.Random(seed)
    config = {"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 16, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "seed": seed}))
    names = [shard_name(number, shards) for number in range(shards)]
    index = {
        "metadata": {"total_size": shards * shard_bytes},
        "weight_map": {f"layer.{number}": name for number, name in enumerate(names)},
    }
    (folder / INDEX).write_text(json.dumps(index))
    for number, name in enumerate(names):
        header = json.dumps(
            {
                f"layer.{number}": {
                    "dtype": "U8",
                    "shape": [shard_bytes],
                    "data_offsets": [0, shard_bytes],
                }
            }
        ).encode()
        with (folder / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(header)) + header)
            for begin in range(0, shard_bytes, _CHUNK):
                stream.write(made.randbytes(min(_CHUNK, shard_bytes - begin)))
    return [folder / name for name in names]


def make_tiny_model(folder: Path) -> None:
    """The tiny model, which a server loads, where every user can read it."""
    folder.mkdir()
    folder.chmod(0o755)
    for name, content in tiny_model.files().items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)


def flip(file: Path, offset: int = -1, *, keep_time: bool = False) -> None:
    """Change one byte where it lies, as a bad disk does it (which keeps the time) or a bad program;
    an empty file has none.
    """
    before = file.stat()
    if not before.st_size:
        return
    with file.open("r+b") as stream:
        stream.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    """Each file of the model, without the records beside it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".sgl-")
    }
