"""A model's folder as the host and the container read it: whatever lies there, it is described when
it is whole and refused otherwise.
"""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import (
    ModelError,
    inspect_model,
)
from hypothesis import strategies as st

from sgl_admin.facts import model
from tests.fuzz.fuzzing import (
    documents,
    encoded,
    files_of,
    folder,
    fuzz,
    mostly,
    one_line,
    put,
    reached,
    text,
    things,
)

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_attention_heads": 16,
    "num_experts": 128,
    "text_config": {
        "num_experts": 8,
        "num_attention_heads": 4,
        "text_config": {"n_routed_experts": [0, 2]},
    },
}
INDEX: dict[str, Any] = {
    "metadata": {"total_size": 80},
    "weight_map": {"a.weight": SHARDS[0], "b.weight": SHARDS[1]},
}
HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]},
    "b.weight": {"dtype": "F32", "shape": [10], "data_offsets": [40, 80]},
}
TOKENIZER = b'{"model": {}}'


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    """A safetensors file: length and header, spoiled or not, and as much data as it says, more or
    less.
    """
    header = draw(mostly(st.just(encoded(HEADER)), files_of(HEADER)))
    length = draw(
        mostly(
            st.just(len(header)),
            st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]) | st.integers(0, 400),
        )
    )
    return (
        struct.pack("<Q", length)[: draw(mostly(st.just(8), st.integers(0, 8)))]
        + header
        + b"\0" * draw(mostly(st.just(80), st.integers(0, 90)))
    )


def names() -> st.SearchStrategy[Any]:
    strange = [
        "../config.json",
        "/etc/passwd",
        ".",
        "config.json",
        "x/y",
        "a\0b",
        "\ud800",
        "\udcff",
        "a\nb",
        "z" * 300,
    ]
    return mostly(st.sampled_from(SHARDS), st.sampled_from(strange) | text() | documents(), 90)


def indexes() -> st.SearchStrategy[bytes | str]:
    named = st.dictionaries(text(), names(), min_size=1, max_size=4).map(
        lambda weights: encoded({"weight_map": weights})
    )
    return mostly(
        things(mostly(st.just(encoded(INDEX)), files_of(INDEX, keys=["weight_map"]))), named
    )


def lay_out(path: Path, *contents: bytes | str) -> None:
    """Config, index, two shards, tokenizer."""
    names = ("config.json", "model.safetensors.index.json", *SHARDS, "tokenizer.json")
    for name, content in zip(names, contents, strict=True):
        put(path / name, content)


def shard_of(header: dict[str, Any]) -> bytes:
    content = encoded(header)
    return struct.pack("<Q", len(content)) + content + b"\0" * 80


def is_whole(path: Path) -> bool:
    """The same question, answered by reading each header as JSON."""
    index = path / "model.safetensors.index.json"
    shards = (
        set(json.loads(index.read_bytes())["weight_map"].values())
        if index.exists()
        else {file.name for file in path.glob("*.safetensors")}
    )
    for name in shards:
        content = (path / name).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        try:
            tensors = json.loads(content[8 : 8 + length])
            ends = [
                tensor["data_offsets"][1]
                for key, tensor in tensors.items()
                if key != "__metadata__"
            ]
            wanted = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            # No header that a server could read.
            return False
        if len(content) != wanted:
            return False
    return bool(shards)


@fuzz(
    deep=0.1,
    config=things(mostly(st.just(encoded(CONFIG)), files_of(CONFIG, keys=list(CONFIG)), 60)),
    index=indexes() | st.just("missing"),
    first=things(shards()),
    second=things(shards()),
    tp=st.sampled_from([1, 2, 3, 16]),
    uid=st.sampled_from([None, 0, 65534]),
)
def test_a_model_is_described_only_when_it_is_whole(
    config: bytes | str,
    index: bytes | str,
    first: bytes | str,
    second: bytes | str,
    tp: int,
    uid: int | None,
) -> None:
    with folder() as root:
        path = root / "org" / "model"
        path.mkdir(parents=True)
        lay_out(path, config, index, first, second, TOKENIZER)
        os.chmod(root, 0o755)
        try:
            found = inspect_model(
                str(path), tp=tp, device_count=16, root=str(root), uid=uid, gid=uid
            )
        except ModelError as error:
            one_line(str(error))
            assert ": " in str(error), "without its remedy"
            return
        reached()
        assert is_whole(path)
        written = json.loads((path / "config.json").read_bytes())
        assert found["architecture"] == written["architectures"][0] and re.fullmatch(
            "[A-Za-z0-9_]+", found["architecture"]
        )
        assert (
            isinstance(found["moe"], bool) and found["identity"] == model.load(str(path)).identity
        )
        json.dumps(found)


@fuzz(
    deep=0.1,
    config=things(mostly(st.just(encoded(CONFIG)), files_of(CONFIG, keys=list(CONFIG)), 60)),
    index=indexes() | st.just("missing"),
    first=things(shards()),
    second=things(shards()),
    tokenizer=things(mostly(st.just(TOKENIZER), files_of({"model": {}}, keys=["model"]), 60)),
    arguments=st.sampled_from(
        [(), ("--load-format", "dummy"), ("--skip-tokenizer-init",), ("--tokenizer-path=/x",)]
    ),
)
def test_the_host_and_the_container_give_the_same_verdict(
    config: bytes | str,
    index: bytes | str,
    first: bytes | str,
    second: bytes | str,
    tokenizer: bytes | str,
    arguments: tuple[str, ...],
) -> None:
    with folder() as root:
        path = root / "model"
        path.mkdir()
        lay_out(path, config, index, first, second, tokenizer)
        host, container = verdicts(path, arguments)
        # A config alone describes a model for a plan; no host serves it.
        if os.listdir(path) != ["config.json"] or isinstance(container, str):
            assert host == container
        if isinstance(host, str):
            one_line(host)
            return
        reached()


# Many ways to the one folder: hypothesis draws nothing twice, so one name would be few examples.
WAYS = st.lists(st.sampled_from([".", "", "model/.."]), max_size=12).map(
    lambda steps: "/".join([*steps, "model"])
)


@fuzz(
    deep=0.3,
    name=mostly(WAYS, text() | st.sampled_from(["m" * 300, "no\0ne", "caf\udce9"])),
)
def test_a_name_that_no_folder_has_is_named(name: str) -> None:
    with folder() as root:
        path = root / "model"
        path.mkdir()
        shard = shard_of(HEADER)
        lay_out(path, encoded(CONFIG), encoded(INDEX), shard, shard, TOKENIZER)
        try:
            found = model.load(f"{root}/{name}")
        except model.UnusableModel as error:
            assert root.name in str(error)
            return
        reached()
        assert isinstance(found.config, dict) and isinstance(found.has_experts, bool)


def verdicts(path: Path, arguments: tuple[str, ...]) -> tuple[Any, Any]:
    """What both worlds say: the identity and whether there are experts, or why not."""
    answers: list[Any] = []
    try:
        found = inspect_model(str(path), server_args=arguments)
        answers.append((found["identity"], found["moe"]))
    except ModelError as error:
        # How the heads fit the GPUs is a question of the host's alone.
        if "not a positive number" in str(error):
            return None, None
        answers.append(str(error))
    try:
        loaded = model.load(str(path), arguments)
        answers.append((loaded.identity, loaded.has_experts))
    except model.UnusableModel as error:
        answers.append(str(error))
    return answers[0], answers[1]
