"""Models of real shapes: one with four layers and no weights, for a server with `--load-format
dummy`, and one with all its layers and random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS = 4
# Of Qwen/Qwen3-Next-80B-A3B-Instruct-FP8's config.json, all but the number of layers.
_QWEN3_NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# Of Qwen/Qwen3-8B's config.json.
_QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
_SHARDS = 8
_UNQUANTISED = (
    "linear_attn.conv1d",
    "linear_attn.in_proj_ba",
    "linear_attn.in_proj_a",
    "linear_attn.in_proj_b",
    "mlp.gate",
    "mlp.shared_expert_gate",
    "input_layernorm",
)
_WORDS = 2000


def write_qwen3_next_fp8(folder: Path) -> Path:
    """The FP8 model; returns its folder."""
    plain = [
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in _UNQUANTISED),
    ]
    quantisation = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": plain,
    }
    return _write(folder, {**_QWEN3_NEXT, "quantization_config": quantisation})


def write_qwen3_four_layers(folder: Path) -> Path:
    """A dense bfloat16 model; returns its folder."""
    return _write(folder, {**_QWEN3_8B, "num_hidden_layers": LAYERS})


def write_qwen3_8b(folder: Path) -> Path:
    """The bfloat16 model with random weights, 16.4 GB, made on the GPU; returns its folder."""
    import torch
    from safetensors.torch import save_file

    _write(folder, _QWEN3_8B)
    weights = list(_shapes(_QWEN3_8B))
    weight_map = {}
    for shard in range(_SHARDS):
        file = f"model-{shard + 1:05d}-of-{_SHARDS:05d}.safetensors"
        tensors = {}
        for name, shape in weights[shard::_SHARDS]:
            tensors[name] = torch.randn(shape, dtype=torch.bfloat16, device="cuda").mul_(0.02).cpu()
            weight_map[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights of a dense Qwen3, as `transformers` names them."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = (head * config[f"num_{what}_heads"] for what in ("attention", "key_value"))
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "lm_head.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, query),
            "self_attn.q_norm": (head,),
            "self_attn.k_norm": (head,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def _write(folder: Path, config: dict[str, Any]) -> Path:
    """A config, and a tokenizer that knows its words by number; returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {
        "<bos>": 0,
        "<eos>": 1,
        "<unk>": 2,
        **{f"w{number}": number for number in range(3, _WORDS)},
    }
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "model_max_length": 40960,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))
    return folder
