# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tiny random Qwen3 model, made on the spot with the standard library: no download, no
transformers.

It is a whole model folder (config, byte-level tokenizer, two safetensors shards with their index)
that transformers and SGLang load like any other, so a host without a model or a network can run the
real server. Its bytes are the same on every machine and with every Python: the weights come from
SHAKE-256, not from :mod:`random`, whose distributions may change between releases.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
from typing import Any

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 64, 2, 4, 2, 16, 128
# Each byte and each special token, and no row more: a random model would emit ids that the
# tokenizer does not know.
IDS = {content: 256 + place for place, content in enumerate(SPECIALS)}
VOCAB = 256 + len(IDS)
_STD = 0.02
_FLAGS = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def config() -> dict[str, Any]:
    """config.json. ``torch_dtype`` is the name that transformers before 4.56 reads; later ones read
    it too.
    """
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": IDS[END_OF_TEXT],
        "eos_token_id": IDS[IM_END],
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": _STD,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "max_window_layers": LAYERS,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB,
    }


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary (the GPT-2 table)."""
    printable_bytes = {
        *range(ord("!"), ord("~") + 1),
        *range(0xA1, 0xAC + 1),
        *range(0xAE, 0xFF + 1),
    }
    others = itertools.count(256)
    return [chr(byte if byte in printable_bytes else next(others)) for byte in range(256)]


def _tokenizer() -> dict[str, Any]:
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": content, **_FLAGS} for content, number in IDS.items()
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "added_tokens_decoder": {
            str(number): dict(sorted({"content": content, **_FLAGS}.items()))
            for content, number in IDS.items()
        },
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": IDS[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [IDS[IM_END], IDS[END_OF_TEXT]],
        "pad_token_id": IDS[END_OF_TEXT],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }


def tensors() -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight, in the order of the layers."""
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (VOCAB, HIDDEN))]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found += [
            (prefix + "input_layernorm.weight", (HIDDEN,)),
            (prefix + "self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)),
            (prefix + "self_attn.q_norm.weight", (HEAD_DIM,)),
            (prefix + "self_attn.k_norm.weight", (HEAD_DIM,)),
            (prefix + "post_attention_layernorm.weight", (HIDDEN,)),
            (prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)),
            (prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)),
            (prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)),
        ]
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (VOCAB, HIDDEN))]


def bfloat16(value: float) -> bytes:
    """The two little-endian bytes of the nearest bfloat16 (ties to even); finite values only."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


# The sum of four bytes is near enough to normal: mean 510, variance 4 * (256**2 - 1) / 12.
_NORMAL = [
    bfloat16(_STD * (total - 510) / (4 * (256**2 - 1) / 12) ** 0.5) for total in range(4 * 255 + 1)
]


def weights(name: str, shape: tuple[int, ...]) -> bytes:
    """The tensor's raw bytes: ones for a norm, else values of mean 0 and standard deviation
    0.02.
    """
    count = math.prod(shape)
    if name.endswith("norm.weight"):
        return bfloat16(1.0) * count
    # The zero is a part of what these bytes have been made from since the first release.
    noise = hashlib.shake_256(f"0\0{name}".encode()).digest(4 * count)
    return b"".join(
        map(
            _NORMAL.__getitem__,
            map(sum, zip(noise[0::4], noise[1::4], noise[2::4], noise[3::4])),
        )
    )


def safetensors(parts: list[tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file: 8 bytes little-endian header length, JSON header padded to 8 bytes, raw
    tensors without gaps.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, raw in parts:
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(part[2] for part in parts)])


def files() -> dict[str, bytes]:
    """Each file of the folder. The second shard starts at layer 1, so that no shard can be left
    out.
    """
    made = [(name, shape, weights(name, shape)) for name, shape in tensors()]
    cut = next(place for place, part in enumerate(made) if part[0].startswith("model.layers.1."))
    halves = (made[:cut], made[cut:])
    index = {
        "metadata": {"total_size": sum(len(part[2]) for part in made)},
        "weight_map": {part[0]: shard for shard, half in zip(SHARDS, halves) for part in half},
    }
    return {
        "config.json": _json_bytes(config()),
        "generation_config.json": _json_bytes(_generation_config()),
        "tokenizer.json": _json_bytes(_tokenizer()),
        "tokenizer_config.json": _json_bytes(_tokenizer_config()),
        INDEX: _json_bytes(index),
        **{shard: safetensors(half) for shard, half in zip(SHARDS, halves)},
    }
