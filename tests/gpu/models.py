"""Models of real shapes with four layers and no weights, for a server with `--load-format
dummy`.
"""

from __future__ import annotations

import json
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
    """The FP8 model, and a tokenizer that knows its words by number; returns its folder."""
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
        ("config.json", {**_QWEN3_NEXT, "quantization_config": quantisation}),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))
    return folder
