"""What a quantised model's experts are on a GPU: the file that SGLang looks up, and each tensor
that it hands to its Triton kernel; else the reason why there is no tuning.

The configs are excerpts of the models' own config.json on Hugging Face. Each row names where the
shape is from: the `create_weights` and `get_triton_quant_info` of the method in SGLang's
srt/layers/quantization, the same in 0.5.17 and 0.5.23 where no release is named. The names marked
so are those of files that both releases ship.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest

from sgl_admin.base.engine import Lookup
from sgl_admin.contract.model.arguments import flag_value
from sgl_admin.moe import operands
from sgl_admin.moe import shape as shapes
from sgl_admin.moe.shape import MoeShape, Untunable
from sgl_admin.sglang import ENGINE, releases

H200 = "NVIDIA H200"
RELEASES = ("0.5.17", "0.5.23")
Config = dict[str, Any]


def scheme(kind: str, bits: int, strategy: str, by_token: bool, **more: Any) -> Config:
    """As llm-compressor writes it."""
    activations = {"dynamic": True, "num_bits": bits, "strategy": "token", "type": kind}
    weights = {"dynamic": False, "num_bits": bits, "strategy": strategy, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**weights, "type": kind, **more},
        "input_activations": activations if by_token else None,
    }
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


QWEN3_30B: Config = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "hidden_size": 2048,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
GLM_4_5: Config = {
    "architectures": ["Glm4MoeForCausalLM"],
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "hidden_size": 5120,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "quantization_config": scheme("float", 8, "channel", by_token=True),
}
GEMMA_4: Config = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "quantization_config": scheme("float", 8, "channel", by_token=True),
    "text_config": {
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "hidden_size": 2816,
        "hidden_activation": "gelu_pytorch_tanh",
        "dtype": "bfloat16",
    },
}
DEEPSEEK_R1: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "hidden_size": 7168,
    "torch_dtype": "bfloat16",
}
BLOCK_INT8 = {"quant_method": "blockwise_int8", "weight_block_size": [128, 128]}
KIMI_K2_THINKING: Config = {
    **DEEPSEEK_R1,
    "n_routed_experts": 384,
    "quantization_config": {
        **scheme("int", 4, "group", by_token=False, group_size=32, actorder=None),
        "format": "pack-quantized",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                   "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    },
}  # fmt: skip
KIMI_K2_5: Config = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "text_config": KIMI_K2_THINKING,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NEMOTRON_NANO: Config = {
    "architectures": ["NemotronHForCausalLM"],
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "hidden_size": 2688,
    "mlp_hidden_act": "relu2",
    "torch_dtype": "bfloat16",
}
NEMOTRON_SUPER: Config = {
    **NEMOTRON_NANO,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688,
    "hidden_size": 4096,
    "moe_latent_size": 1024,
}
MODELOPT_FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
WNA16 = ("--quantization", "moe_wna16")
TRITON = ("--moe-runner-backend", "triton")


def quantised(config: Config, declared: Config) -> Config:
    return {**config, "quantization_config": declared}


def shape_of(config: Config, args: tuple[str, ...] = (), version: str = "0.5.23") -> MoeShape:
    tp = int(flag_value(args, "--tp") or 1)
    return shapes.of(config, tp, "auto", args, releases.of(version)[0])


# Model: config, arguments, the file, and by the call's names the tensors and other arguments.
ROWS: dict[str, tuple[Config, tuple[str, ...], str, Config, Config]] = {
    # compressed_tensors_w8a8_fp8_moe.py; the name is that of a shipped file.
    "zai-org/GLM-4.5-FP8": (
        GLM_4_5,
        ("--tp", "8"),
        "E=161,N=192,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json",
        {"w1": ((161, 384, 5120), "float8_e4m3fn"), "w2": ((161, 5120, 192), "float8_e4m3fn"),
         "w1_scale": ((161, 384, 1), "float32"), "w2_scale": ((161, 5120, 1), "float32")},
        {"use_fp8_w8a8": True, "per_channel_quant": True, "block_shape": None},
    ),
    # The same method, for a model whose experts are in text_config; shipped for other GPUs.
    "RedHatAI/gemma-4-26B-A4B-it-FP8-dynamic": (
        GEMMA_4,
        (),
        "E=128,N=704,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json",
        {"w1": ((128, 1408, 2816), "float8_e4m3fn"), "w2": ((128, 2816, 704), "float8_e4m3fn"),
         "w1_scale": ((128, 1408, 1), "float32"), "w2_scale": ((128, 2816, 1), "float32")},
        {"use_fp8_w8a8": True, "per_channel_quant": True, "block_shape": None},
    ),
    # w8a8_fp8.py, asked for by the flag (`compatible_quantization_methods`), with EP.
    "RedHatAI/Qwen3-30B-A3B-FP8-dynamic": (
        quantised(QWEN3_30B, scheme("float", 8, "channel", by_token=True)),
        ("--tp", "4", "--ep-size", "4", "--quantization", "w8a8_fp8"),
        "E=32,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,per_channel_quant=True.json",
        {"w1": ((32, 1536, 2048), "float8_e4m3fn"), "w2": ((32, 2048, 768), "float8_e4m3fn"),
         "w1_scale": ((32, 1536, 1), "float32"), "w2_scale": ((32, 2048, 1), "float32")},
        {"use_fp8_w8a8": True, "per_channel_quant": True, "block_shape": None},
    ),
    # w8a8_int8.py
    "RedHatAI/Qwen3-30B-A3B-quantized.w8a8": (
        quantised(QWEN3_30B, scheme("int", 8, "channel", by_token=True)),
        ("--quantization", "w8a8_int8"),
        "E=128,N=768,device_name=NVIDIA_H200,dtype=int8_w8a8,per_channel_quant=True.json",
        {"w1": ((128, 1536, 2048), "int8"), "w2": ((128, 2048, 768), "int8"),
         "w1_scale": ((128, 1536, 1), "float32"), "w2_scale": ((128, 2048, 1), "float32")},
        {"use_int8_w8a8": True, "per_channel_quant": True, "block_shape": None},
    ),
    # blockwise_int8.py
    "meituan/DeepSeek-R1-Block-INT8": (
        quantised(DEEPSEEK_R1, BLOCK_INT8),
        ("--tp", "16"),
        "E=257,N=128,device_name=NVIDIA_H200,dtype=int8_w8a8,block_shape=[128, 128].json",
        {"w1": ((257, 256, 7168), "int8"), "w2": ((257, 7168, 128), "int8"),
         "w1_scale": ((257, 2, 56), "float32"), "w2_scale": ((257, 56, 1), "float32")},
        {"use_int8_w8a8": True, "block_shape": [128, 128]},
    ),
    # moe_wna16.py: N is in bytes of the packed weights.
    "Qwen/Qwen3-30B-A3B-GPTQ-Int4": (
        quantised(QWEN3_30B, GPTQ),
        WNA16,
        "E=128,N=384,device_name=NVIDIA_H200,dtype=int4_w4a16.json",
        {"w1": ((128, 1536, 1024), "uint8"), "w2": ((128, 2048, 384), "uint8"),
         "w1_scale": ((128, 1536, 16), "bfloat16"), "w2_scale": ((128, 2048, 6), "bfloat16")},
        {"use_int4_w4a16": True, "block_shape": [0, 128]},
    ),
    "Qwen/Qwen3-30B-A3B-GPTQ-Int8, 4 GPUs: groups of 64": (
        quantised(QWEN3_30B, {**GPTQ, "bits": 8}),
        (*WNA16, "--tp", "4"),
        "E=128,N=192,device_name=NVIDIA_H200,dtype=int8_w8a16.json",
        {"w1": ((128, 384, 2048), "uint8"), "w2": ((128, 2048, 192), "uint8"),
         "w1_scale": ((128, 384, 32), "bfloat16"), "w2_scale": ((128, 2048, 3), "bfloat16")},
        {"use_int8_w8a16": True, "block_shape": [0, 64]},
    ),
    "cognitivecomputations/Qwen3-30B-A3B-AWQ": (
        quantised(QWEN3_30B, AWQ),
        WNA16,
        "E=128,N=384,device_name=NVIDIA_H200,dtype=int4_w4a16.json",
        {"w1": ((128, 1536, 1024), "uint8"), "w2": ((128, 2048, 384), "uint8"),
         "w1_scale": ((128, 1536, 16), "bfloat16"), "w2_scale": ((128, 2048, 6), "bfloat16"),
         "w1_zp": ((128, 768, 16), "uint8"), "w2_zp": ((128, 1024, 6), "uint8")},
        {"use_int4_w4a16": True, "block_shape": [0, 128]},
    ),
    # compressed_tensors_wNa16_moe.py (`CompressedTensorsWNA16TritonMoE`); of a shipped file.
    "moonshotai/Kimi-K2-Thinking": (
        KIMI_K2_THINKING,
        ("--tp", "8", *TRITON),
        "E=384,N=128,device_name=NVIDIA_H200,dtype=int4_w4a16.json",
        {"w1": ((384, 512, 3584), "uint8"), "w2": ((384, 7168, 128), "uint8"),
         "w1_scale": ((384, 512, 224), "bfloat16"), "w2_scale": ((384, 7168, 8), "bfloat16")},
        {"use_int4_w4a16": True, "block_shape": [0, 32]},
    ),
    "moonshotai/Kimi-K2.5": (
        KIMI_K2_5,
        ("--tp", "8", *TRITON),
        "E=384,N=128,device_name=NVIDIA_H200,dtype=int4_w4a16.json",
        {"w1": ((384, 512, 3584), "uint8"), "w2": ((384, 7168, 128), "uint8"),
         "w1_scale": ((384, 512, 224), "bfloat16"), "w2_scale": ((384, 7168, 8), "bfloat16")},
        {"use_int4_w4a16": True, "block_shape": [0, 32]},
    ),
    # modelopt_quant.py (`num_shards`), with EP: E=16,N=1856 is a shipped shape.
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-FP8": (
        quantised(NEMOTRON_NANO, MODELOPT_FP8),
        ("--tp", "8", "--ep-size", "8"),
        "E=16,N=1856,device_name=NVIDIA_H200,dtype=fp8_w8a8.json",
        {"w1": ((16, 1856, 2688), "float8_e4m3fn"), "w2": ((16, 2688, 1856), "float8_e4m3fn"),
         "w1_scale": ((16,), "float32"), "w2_scale": ((16,), "float32"),
         "a1_scale": ((1,), "float32"), "a2_scale": ((1,), "float32")},
        {"use_fp8_w8a8": True, "block_shape": None},
    ),
    # unquant.py; the experts work in the latent size (models/nemotron_h.py).
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": (
        NEMOTRON_SUPER,
        (),
        "E=512,N=2688,device_name=NVIDIA_H200.json",
        {"w1": ((512, 2688, 1024), "bfloat16"), "w2": ((512, 1024, 2688), "bfloat16")},
        {},
    ),
    # fp8.py
    "deepseek-ai/DeepSeek-R1": (
        quantised(DEEPSEEK_R1, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        ("--tp", "8"),
        "E=257,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        {"w1": ((257, 512, 7168), "float8_e4m3fn"), "w2": ((257, 7168, 256), "float8_e4m3fn"),
         "w1_scale": ((257, 4, 56), "float32"), "w2_scale": ((257, 56, 2), "float32")},
        {"use_fp8_w8a8": True, "block_shape": [128, 128]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("name", ROWS)
def test_a_quantised_model_is_tuned_with_the_tensors_of_its_server(name: str, version: str) -> None:
    config, args, file, tensors, arguments = ROWS[name]
    shape = shape_of(config, args, version)
    assert ENGINE.moe.file_name(shape.lookup, H200) == file
    assert ENGINE.moe.lookup(file) == shape.lookup
    made = operands.of(shape)
    assert not made.weights.keys() & made.scales.keys()
    every = {**made.weights, **made.scales}
    assert {key: (each.shape, each.dtype) for key, each in every.items()} == tensors
    assert made.arguments == arguments
    assert MoeShape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize("name", ROWS)
def test_what_the_kernel_asserts_of_its_operands_holds(name: str) -> None:
    """`invoke_fused_moe_kernel` and `fused_experts_impl`, in both releases."""
    config, args, *_ = ROWS[name]
    shape = shape_of(config, args)
    made = operands.of(shape)
    for number, columns in (("1", shape.hidden_size), ("2", shape.intermediate)):
        weight = made.weights[f"w{number}"].shape
        packed = "use_int4_w4a16" in made.arguments
        assert weight[2] == (columns // 2 if packed else columns)
        scale = made.scales.get(f"w{number}_scale")
        if block := made.arguments.get("block_shape"):
            assert scale is not None and len(scale.shape) == 3
            assert scale.shape[2] == -(-columns // block[1])
            if block[0]:
                assert scale.shape[1] == -(-weight[1] // block[0])
    # Its N, of the file's name, is the last size of the second weight.
    assert shape.lookup.N == made.weights["w2"].shape[2]


@pytest.mark.parametrize("name", ROWS)
def test_only_a_kernel_with_descriptors_is_tried_with_tma(name: str) -> None:
    """`fused_moe_kernel_gptq_awq` has none, and does not write sorted rows (both releases)."""
    config, args, *_ = ROWS[name]
    shape = shape_of(config, args)
    assert shape.by_tma is not (str(shape.lookup.dtype).endswith("a16"))


REFUSED: dict[str, tuple[Config, tuple[str, ...], str, str]] = {
    "Marlin runs GPTQ by itself": (
        quantised(QWEN3_30B, GPTQ), (), "0.5.23", "only with --quantization moe_wna16"
    ),
    "and AWQ": (quantised(QWEN3_30B, AWQ), (), "0.5.17", "quantised by awq have no tuning"),
    "and compressed-tensors": (
        KIMI_K2_THINKING, ("--tp", "8"), "0.5.23", "without --moe-runner-backend triton"
    ),
    "8 bits of compressed-tensors": (
        quantised(QWEN3_30B, scheme("int", 8, "group", by_token=False, group_size=128)),
        TRITON, "0.5.23", "(int of 8 bits, scales by group, weights only)"
    ),
    "with an order of activations": (
        quantised(QWEN3_30B, {**GPTQ, "desc_act": True}), WNA16, "0.5.23", "with desc_act"
    ),
    "of 3 bits": (quantised(QWEN3_30B, {**GPTQ, "bits": 3}), WNA16, "0.5.23", "of 3 bits"),
    "one scale for a row": (
        quantised(QWEN3_30B, {**GPTQ, "group_size": -1}), WNA16, "0.5.23", "(group_size -1)"
    ),
    "zero points unknown": (
        quantised(QWEN3_30B, {key: value for key, value in GPTQ.items() if key != "sym"}),
        WNA16, "0.5.23", "zero points (sym)"
    ),
    "groups that do not divide": (
        quantised({**QWEN3_30B, "moe_intermediate_size": 720}, GPTQ), WNA16, "0.5.23",
        "groups of 128 (int4_w4a16) do not divide rows of 720 and 2048"
    ),
    "groups that compressed-tensors would not shrink": (
        {**KIMI_K2_THINKING, "moe_intermediate_size": 2064}, TRITON, "0.5.23",
        "groups of 32 (int4_w4a16) do not divide"
    ),
    # raises NotImplementedError on NVIDIA GPUs (get_moe_scheme)
    "int8 of compressed-tensors": (
        quantised(QWEN3_30B, scheme("int", 8, "channel", by_token=True)), (), "0.5.23",
        "without --quantization w8a8_int8"
    ),
    "another type than the flag's": (
        quantised(QWEN3_30B, scheme("int", 8, "channel", by_token=True)),
        ("--quantization", "w8a8_fp8"), "0.5.23", "with --quantization w8a8_fp8"
    ),
    "int8 in blocks of an unknown size": (
        quantised(QWEN3_30B, {"quant_method": "blockwise_int8"}), (), "0.5.23",
        "no weight_block_size"
    ),
    # create_weights makes room for a gate in each
    "compressed-tensors without a gate": (
        quantised(NEMOTRON_NANO, scheme("float", 8, "channel", by_token=True)), (), "0.5.23",
        "fuses only gated ones that are quantised by compressed-tensors"
    ),
    "FP8 without a gate before 0.5.23": (
        quantised(NEMOTRON_NANO, {"quant_method": "fp8"}), (), "0.5.17",
        "fuses only gated ones that are quantised by fp8"
    ),
    "online FP8 without a gate before 0.5.23": (
        NEMOTRON_NANO, ("--quantization", "fp8"), "0.5.17", "quantised by fp8"
    ),
    "quark": (quantised(QWEN3_30B, {"quant_method": "quark"}), (), "0.5.23", "quantised by quark"),
    "mxfp4": (quantised(QWEN3_30B, {"quant_method": "mxfp4"}), (), "0.5.23", "quantised by mxfp4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_tuner_does_not_run_is_refused_by_name(name: str) -> None:
    config, args, version, words = REFUSED[name]
    with pytest.raises(Untunable) as caught:
        shape_of(config, args, version)
    assert words in str(caught.value) and len(str(caught.value)) < 400


def test_fp8_without_a_gate_is_tuned_where_the_release_builds_it_so() -> None:
    """w13_num_shards of fp8.py, 0.5.23."""
    shape = shape_of(quantised(NEMOTRON_NANO, {"quant_method": "fp8"}))
    assert operands.of(shape).weights["w1"].shape == (128, 1856, 2688)


@pytest.mark.parametrize(
    ("config", "args", "other"),
    [
        (GLM_4_5, ("--tp", "8"), {"per_channel": False}),
        (QWEN3_30B, ("--quantization", "fp8"), {"per_channel": True}),
    ],
)
def test_a_server_that_scales_in_another_way_has_another_data_type(
    config: Config, args: tuple[str, ...], other: dict[str, Any]
) -> None:
    expected = shape_of(config, args)
    asked: Lookup = replace(expected.lookup, **other)
    assert shapes.seen(expected, [asked]) is None
    assert "of another data type" in shapes.mismatch(expected, [ENGINE.moe.file_name(asked, H200)])


@pytest.mark.parametrize("name", ROWS)
def test_integers_are_scaled_so_that_what_is_computed_stays_near_one(name: str) -> None:
    config, args, *_ = ROWS[name]
    shape = shape_of(config, args)
    made = operands.of(shape)
    for number, columns in (("1", shape.hidden_size), ("2", shape.intermediate)):
        weight, scale = made.weights[f"w{number}"], made.scales.get(f"w{number}_scale")
        deviation, factor = 1.0, weight.scale
        if weight.is_integer:
            assert scale is not None
            packed = shape.lookup.dtype == "int4_w4a16"
            deviation, factor = statistics.pstdev(range(16 if packed else 256)), scale.scale
        # A sum over a row.
        assert abs(deviation * factor * columns**0.5 - 1) < 0.02
