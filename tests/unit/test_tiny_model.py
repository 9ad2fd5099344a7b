"""The tiny model: its files are what the formats ask for, and the same each time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model
from hypothesis import given
from hypothesis import strategies as st


def read_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_bytes_are_those_of_every_release_and_machine() -> None:
    digest = hashlib.sha256(
        b"".join(data for _, data in sorted(tiny_model.files().items()))
    ).hexdigest()
    assert digest == "d521530622518668ea20a6f4cd54802d2978cfe1288d18a2c4108c850e85ec77"


def test_shards_are_valid_safetensors_and_the_index_covers_them() -> None:
    files = tiny_model.files()
    index = json.loads(files[tiny_model.INDEX])
    seen, total = {}, 0
    for shard in tiny_model.SHARDS:
        header, data = read_safetensors(files[shard])
        assert header.pop("__metadata__") == {"format": "pt"}
        assert struct.unpack("<Q", files[shard][:8])[0] % 8 == 0
        end = 0
        for name, tensor in header.items():
            start, stop = tensor["data_offsets"]
            assert start == end, "no gap between tensors"
            assert stop - start == 2 * math.prod(tensor["shape"]) and tensor["dtype"] == "BF16"
            end = stop
            seen[name] = tuple(tensor["shape"])
            assert index["weight_map"][name] == shard
            if name.endswith("norm.weight"):
                assert data[start:stop] == b"\x80\x3f" * (len(data[start:stop]) // 2)
        assert end == len(data)
        total += end
    assert seen == dict(tiny_model.tensors())
    assert set(index["weight_map"]) == set(seen) and index["metadata"]["total_size"] == total
    assert set(index["weight_map"].values()) == set(tiny_model.SHARDS)


def test_shapes_follow_the_config() -> None:
    config = tiny_model.config()
    shapes = dict(tiny_model.tensors())
    assert (
        shapes["model.embed_tokens.weight"]
        == shapes["lm_head.weight"]
        == (config["vocab_size"], config["hidden_size"])
    )
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        assert shapes[prefix + "self_attn.q_proj.weight"] == (
            config["num_attention_heads"] * config["head_dim"],
            config["hidden_size"],
        )
        assert shapes[prefix + "self_attn.k_proj.weight"] == (
            config["num_key_value_heads"] * config["head_dim"],
            config["hidden_size"],
        )
        assert shapes[prefix + "self_attn.q_norm.weight"] == (config["head_dim"],)
        assert shapes[prefix + "mlp.down_proj.weight"] == (
            config["hidden_size"],
            config["intermediate_size"],
        )
    assert f"model.layers.{config['num_hidden_layers']}.input_layernorm.weight" not in shapes


def test_weights_have_mean_zero_and_standard_deviation_two_hundredths() -> None:
    raw = tiny_model.weights("model.embed_tokens.weight", (259, 64))
    values = [
        struct.unpack("<f", b"\0\0" + raw[place : place + 2])[0] for place in range(0, len(raw), 2)
    ]
    mean = sum(values) / len(values)
    assert abs(mean) < 0.001
    assert math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) == pytest.approx(
        0.02, rel=0.05
    )


@given(st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32))
def test_bfloat16_rounds_to_the_nearest(value: float) -> None:
    rounded = struct.unpack("<f", b"\0\0" + tiny_model.bfloat16(value))[0]
    # 8 bits of significand; below the smallest normal number the step is constant
    assert abs(rounded - value) <= max(abs(value) * 2**-8, 2.0**-134)


def test_tokenizer_maps_each_byte_and_the_special_tokens() -> None:
    files = tiny_model.files()
    tokenizer, settings = (
        json.loads(files["tokenizer.json"]),
        json.loads(files["tokenizer_config.json"]),
    )
    assert (
        sorted(tokenizer["model"]["vocab"].values()) == list(range(256))
        and tokenizer["model"]["merges"] == []
    )
    # Of the byte-level table: printable ASCII stands for itself, a space is U+0120, a newline
    # U+010A.
    assert {tokenizer["model"]["vocab"][character] for character in "A~\u0120\u010a"} == {
        65,
        126,
        32,
        10,
    }
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert added == {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    assert {
        int(number): token["content"] for number, token in settings["added_tokens_decoder"].items()
    } == {number: content for content, number in added.items()}
    config, generation = (
        json.loads(files["config.json"]),
        json.loads(files["generation_config.json"]),
    )
    assert config["eos_token_id"] == added[settings["eos_token"]] == generation["eos_token_id"][0]
    assert config["vocab_size"] == 256 + len(added)
