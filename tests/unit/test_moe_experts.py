"""Experts as servers split and build them: the configs of real models, the server's arguments, and
each place that says how the experts are quantised.

The numbers are those of the models' config.json on Hugging Face; the expected names are those that
SGLang's own configurations have (0.5.23, srt/layers/moe/moe_runner/triton_utils/configs) or that
its models ask for (srt/models, FusedMoE.__init__).
"""

from __future__ import annotations

from typing import Any

import pytest

from sgl_admin.base.engine import Lookup
from sgl_admin.moe import shape as shapes
from sgl_admin.moe.shape import MoeShape, Untunable
from sgl_admin.sglang import ENGINE, releases

QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "hidden_size": 2048,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
NEMOTRON_NANO: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "intermediate_size": 1856,
    "hidden_size": 2688,
    "mlp_hidden_act": "relu2",
    "torch_dtype": "bfloat16",
}
NEMOTRON_SUPER = {
    **NEMOTRON_NANO,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688,
    "hidden_size": 4096,
    "moe_latent_size": 1024,
}
DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "hidden_size": 7168,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def shape_of(
    config: dict[str, Any],
    *args: str,
    tp: int = 1,
    version: str = "0.5.23",
    modelopt: dict[str, Any] | None = None,
) -> MoeShape:
    return shapes.of(config, tp, "auto", args, releases.of(version)[0], modelopt)


def why_not(config: dict[str, Any], *args: str, **more: Any) -> str:
    with pytest.raises(Untunable) as caught:
        shape_of(config, *args, **more)
    return str(caught.value)


# --- by architecture ------------------------------------------------------------------------------

# Name: config, E, N, K, chosen, gated.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int, bool]]] = {
    "Qwen3-30B-A3B": (QWEN3_30B, (128, 768, 2048, 8, True)),
    "Qwen3-Omni-30B-A3B": (
        {
            "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
            "thinker_config": {"text_config": {**QWEN3_30B, "architectures": None}},
            "talker_config": {"text_config": {"num_experts": 64, "moe_intermediate_size": 384}},
        },
        (128, 768, 2048, 8, True),
    ),
    "Nemotron-3-Nano": (NEMOTRON_NANO, (128, 1856, 2688, 6, False)),
    "Nemotron-3-Super": (NEMOTRON_SUPER, (512, 2688, 1024, 22, False)),
    "ERNIE-4.5-21B-A3B": (
        {
            "architectures": ["Ernie4_5_MoeForCausalLM"],
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_intermediate_size": 1536,
            "moe_num_shared_experts": 2,
            "intermediate_size": 12288,
            "hidden_size": 2560,
        },
        (64, 1536, 2560, 6, True),
    ),
    "ERNIE-4.5-VL-28B-A3B": (
        {
            "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
            "moe_num_experts": [64, 64],
            "moe_k": 6,
            "moe_intermediate_size": [1536, 512],
            "hidden_size": 2560,
        },
        (64, 1536, 2560, 6, True),
    ),
    "Kimi-Linear-48B-A3B": (
        {
            "architectures": ["KimiLinearForCausalLM"],
            "num_experts": 256,
            "num_experts_per_token": 8,
            "moe_intermediate_size": 1024,
            "intermediate_size": 9216,
            "hidden_size": 2304,
        },
        (256, 1024, 2304, 8, True),
    ),
    "Kimi-K2": ({**DEEPSEEK, "n_routed_experts": 384}, (384, 2048, 7168, 8, True)),
    "DeepSeek-V3": (DEEPSEEK, (257, 2048, 7168, 8, True)),
    "DeepSeek-VL2": (
        {
            "architectures": ["DeepseekVL2ForCausalLM"],
            "language_config": {
                "n_routed_experts": 64,
                "num_experts_per_tok": 6,
                "moe_intermediate_size": 1408,
                "hidden_size": 2048,
            },
        },
        (64, 1408, 2048, 6, True),
    ),
    "Mixtral-8x7B": (
        {
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 14336,
            "hidden_size": 4096,
        },
        (8, 14336, 4096, 2, True),
    ),
    "Llama-4-Scout": (
        {
            "architectures": ["Llama4ForConditionalGeneration"],
            "text_config": {
                "num_local_experts": 16,
                "num_experts_per_tok": 1,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "hidden_size": 5120,
            },
        },
        (16, 8192, 5120, 1, True),
    ),
    "Step3": (
        {
            "architectures": ["Step3VLForConditionalGeneration"],
            "text_config": {
                "moe_num_experts": 48,
                "moe_top_k": 3,
                "moe_intermediate_size": 5120,
                "intermediate_size": 18432,
                "hidden_size": 7168,
            },
        },
        (48, 5120, 7168, 3, True),
    ),
    "Hunyuan-A13B": (
        {
            "architectures": ["HunYuanMoEV1ForCausalLM"],
            "num_experts": 64,
            "moe_topk": [8] * 32,
            "moe_intermediate_size": [3072] * 32,
            "intermediate_size": 3072,
            "hidden_size": 4096,
        },
        (64, 3072, 4096, 8, True),
    ),
    "DBRX": (
        {
            "architectures": ["DbrxForCausalLM"],
            "d_model": 6144,
            "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 10752},
        },
        (16, 10752, 6144, 4, True),
    ),
    "Gemma-4-26B-A4B": (
        {
            "architectures": ["Gemma4ForConditionalGeneration"],
            "text_config": {
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
                "intermediate_size": 2112,
                "hidden_size": 2816,
                "hidden_activation": "gelu_pytorch_tanh",
            },
        },
        (128, 704, 2816, 8, True),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_experts_of_real_architectures(name: str) -> None:
    config, expected = MODELS[name]
    found = shape_of(config)
    assert (
        found.lookup.E, found.lookup.N, found.hidden_size, found.chosen, found.gated
    ) == expected  # fmt: skip


def test_an_old_release_fuses_only_gated_experts() -> None:
    assert shape_of(NEMOTRON_NANO, version="0.5.9").gated is False
    assert "no gate, and this SGLang fuses only gated ones" in why_not(
        NEMOTRON_NANO, version="0.5.3"
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_act": "xielu"}, "the experts' activation xielu has no tuning here"),
        ({"zero_expert_num": 256}, r"some of the model's experts do nothing"),
        ({"n_routed_experts": 64}, "two numbers of experts"),
        ({"num_experts_per_tok": 129}, "take 129 of 128 experts"),
        ({"moe_intermediate_size": [768, 512]}, "layers of experts differ"),
        ({"architectures": ["GptOssForCausalLM"]}, "biases and an activation of their own"),
        ({"expert_dtype": "fp4"}, "data type fp4 have no tuning"),
    ],
)
def test_experts_that_are_not_understood_are_not_tuned(config: dict[str, Any], words: str) -> None:
    assert words in why_not({**QWEN3_30B, **config})


# --- the split ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tp", "args", "expected"),
    [
        (QWEN3_30B, 4, ("--ep-size", "4"), (32, 768)),
        (QWEN3_30B, 4, ("--ep", "4"), (32, 768)),
        (QWEN3_30B, 4, ("--expert-parallel-size=4",), (32, 768)),
        (QWEN3_30B, 4, ("--ep-size", "2"), (64, 384)),
        (QWEN3_30B, 4, ("--ep-size", "4", "--ep-size", "1"), (128, 192)),
        (QWEN3_30B, 8, ("--ep-size", "4", "--moe-dp-size", "2"), (32, 768)),
        (QWEN3_30B, 1, ("--tp-size", "4", "--ep-size", "4"), (32, 768)),
        (QWEN3_30B, 4, ("--ep-size", "4", "--ep-num-redundant-experts", "4"), (33, 768)),
        (QWEN3_30B, 4, ("--moe-a2a-backend", "none"), (128, 192)),
        # E=16,N=1856 and E=32,N=1856 are among SGLang's own configurations.
        (NEMOTRON_NANO, 8, ("--ep-size", "8"), (16, 1856)),
        (NEMOTRON_NANO, 4, ("--ep-size", "4"), (32, 1856)),
        # The shared expert stays apart there.
        (DEEPSEEK, 8, ("--ep-size", "8"), (32, 2048)),
        (DEEPSEEK, 8, (), (257, 256)),
    ],
)
def test_expert_parallelism_divides_the_experts_and_leaves_their_size(
    config: dict[str, Any], tp: int, args: tuple[str, ...], expected: tuple[int, int]
) -> None:
    found = shape_of(config, *args, tp=tp)
    assert (found.lookup.E, found.lookup.N) == expected


def test_a_shared_expert_that_is_fused_is_on_every_rank() -> None:
    config = {
        **QWEN3_30B,
        "architectures": ["Qwen3NextForCausalLM"],
        "num_experts": 512,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }
    found = shape_of(config, "--ep-size", "4", tp=4)
    assert (found.lookup.E, found.lookup.N, found.routed, found.ranks) == (129, 512, 128, 4)


@pytest.mark.parametrize(
    ("tp", "args", "words"),
    [
        (4, ("--moe-a2a-backend", "deepep"), "with --moe-a2a-backend deepep the experts are run"),
        (4, ("--moe-a2a-backend=flashinfer",), "look up no MoE configuration"),
        (1, ("--moe-runner-backend", "deep_gemm"), "not run by the Triton kernel"),
        (1, ("--moe-runner-backend", "flashinfer_cutlass"), "not run by the Triton kernel"),
        (1, ("--enable-deterministic-inference",), "looks up no MoE configuration"),
        (8, ("--dwdp-size", "8"), "while it starts"),
        (4, ("--ep-size", "3"), "cannot be divided among 3 parts"),
        (3, ("--ep-size", "3"), "128 experts cannot be divided among 3 ranks"),
        (4, ("--ep-size", "four"), "--ep-size four is not a number of GPUs"),
        (4, ("--ep-size", "0"), "--ep-size 0 is not a number of GPUs"),
        (1, ("--quantization", "awq"), "quantises by --quantization awq have no tuning"),
        (1, ("--quantization", "w8a8_int8"), "quantises by --quantization w8a8_int8 have no"),
        (1, ("--dtype", "float32"), "32 bits"),
    ],
)
def test_a_server_that_looks_nothing_up_is_not_tuned_for_and_the_reason_is_true(
    tp: int, args: tuple[str, ...], words: str
) -> None:
    assert words in why_not(QWEN3_30B, *args, tp=tp)


def test_what_the_arguments_change_is_changed_here_too() -> None:
    found = shape_of(QWEN3_30B, "--json-model-override-args", '{"num_experts_per_tok": 4}')
    assert found.chosen == 4
    assert shape_of(QWEN3_30B, "--json-model-override-args", "{").chosen == 8
    assert shape_of(QWEN3_30B, "--quantization", "fp8").lookup.dtype == "fp8_w8a8"
    assert shape_of(QWEN3_30B, "--dtype", "half").torch_dtype == "float16"
    assert shape_of(QWEN3_30B, "--moe-runner-backend", "triton") == shape_of(QWEN3_30B)


# --- quantisation ---------------------------------------------------------------------------------


def compressed(weights: dict[str, Any], activations: object = True, **more: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, **weights},
        "input_activations": {"num_bits": 8, "type": "float", "dynamic": True}
        if activations
        else None,
    }
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


BLOCK = {"strategy": "block", "block_structure": [128, 128]}
TYPES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str | None, object]] = {
    "fp8 by block": ({"quantization_config": FP8_BLOCK}, None, "fp8_w8a8", (128, 128)),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, None, "fp8_w8a8", None),
    "ModelOpt's file": ({}, {"quantization": {"quant_algo": "FP8"}}, "fp8_w8a8", None),
    "ModelOpt's file, flat": ({}, {"quant_algo": "FP8"}, "fp8_w8a8", None),
    "ModelOpt in config": (
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        None,
        "fp8_w8a8",
        None,
    ),
    "config before ModelOpt's file": (
        {"quantization_config": FP8_BLOCK},
        {"quantization": {"quant_algo": "NVFP4"}},
        "fp8_w8a8",
        (128, 128),
    ),
    "compressed by block": (
        {"quantization_config": compressed(BLOCK)},
        None,
        "fp8_w8a8",
        (128, 128),
    ),
    "compressed by tensor": (
        {"quantization_config": compressed({"strategy": "tensor"})},
        None,
        "fp8_w8a8",
        None,
    ),
    "compression_config": ({"compression_config": compressed(BLOCK)}, None, "fp8_w8a8", (128, 128)),
    "shared experts and gates kept": (
        {
            "quantization_config": {
                **FP8_BLOCK,
                "modules_to_not_convert": [
                    "model.layers.0.mlp.gate",
                    "model.layers.0.mlp.shared_experts.up_proj",
                    "model.layers.0.mlp.shared_expert_gate",
                ],
            }
        },
        None,
        "fp8_w8a8",
        (128, 128),
    ),
}


@pytest.mark.parametrize("row", TYPES)
@pytest.mark.parametrize("nested", [False, True])
def test_each_place_that_says_how_experts_are_quantised(row: str, nested: bool) -> None:
    config, modelopt, dtype, block = TYPES[row]
    whole = {**QWEN3_30B, **config}
    if nested and "compression_config" not in config:
        whole = {"architectures": ["X"], "text_config": whole}
    lookup = shape_of(whole, modelopt=modelopt).lookup
    assert (lookup.dtype, lookup.block_shape) == (dtype, block)


NO_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "awq": ({"quant_method": "awq"}, "quantised by awq have no tuning"),
    "int4": (
        compressed({"num_bits": 4, "type": "int", "strategy": "group"}, activations=False),
        "compressed-tensors (int of 4 bits, scales by group, weights only)",
    ),
    "int8": (
        compressed({"type": "int", "strategy": "channel"}),
        "compressed-tensors (int of 8 bits, scales by channel) without --quantization w8a8_int8",
    ),
    "fp8 by channel": (
        compressed({"strategy": "channel"}),
        "compressed-tensors (float of 8 bits, scales by channel) without a scale for each token",
    ),
    "fp8 of weights alone": (compressed({"strategy": "tensor"}, activations=False), "weights only"),
    "nvfp4": (
        compressed({"num_bits": 4, "strategy": "tensor_group"}),
        "compressed-tensors (float of 4 bits, scales by tensor_group)",
    ),
    "no group of theirs": (
        {"quant_method": "compressed-tensors", "config_groups": {}},
        "has 0 groups for the experts",
    ),
    "experts left out": (
        {**FP8_BLOCK, "modules_to_not_convert": ["model.layers.3.mlp.experts"]},
        "leaves experts out (modules_to_not_convert: model.layers.3.mlp.experts)",
    ),
    "experts left out by a pattern": (
        compressed(BLOCK, ignore=["re:.*mlp\\.experts\\..*"]),
        "leaves experts out (ignore: re:.*mlp",
    ),
    "blocks of 32": (
        {"quant_method": "fp8", "weight_block_size": [1, 32]},
        "no launch configuration fits scales of blocks of (1, 32)",
    ),
    "ModelOpt's NVFP4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "quantised by modelopt_nvfp4 have no tuning",
    ),
}


@pytest.mark.parametrize("row", NO_TYPES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantisation_without_a_tuning_is_named(row: str, nested: bool) -> None:
    declared, words = NO_TYPES[row]
    whole = {**QWEN3_30B, "quantization_config": declared}
    assert words in why_not({"architectures": ["X"], "text_config": whole} if nested else whole)


# --- what the server asked for --------------------------------------------------------------------


def name_of(lookup: Lookup) -> str:
    return ENGINE.moe.file_name(lookup, "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ([], "its experts are not run by the Triton kernel (--moe-runner-backend)"),
        ([name_of(Lookup(32, 768, None, None))], "builds or splits its experts in another way"),
        ([name_of(Lookup(128, 768, "int8_w8a16", None))], "of another data type"),
        ([name_of(Lookup(128, 768, "int4_w4a16", (0, 128)))], "of another data type"),
        ([name_of(Lookup(128, 768, "fp8_w8a8", (128, 128)))], "of another data type"),
        ([name_of(Lookup(128, 768, "fp8_w8a8", None, True))], "of another data type"),
        (
            [name_of(Lookup(128, 768, None, None))[:-5] + "_down.json"],
            "a file of that name has no tuning here",
        ),
        ([name_of(Lookup(131, 768, None, None))], "builds or splits its experts in another way"),
    ],
)
def test_a_lookup_of_other_experts_is_no_tuning_and_the_reason_is_true(
    asked: list[str], reason: str
) -> None:
    expected = shape_of(QWEN3_30B)
    lookups = [lookup for name in asked if (lookup := ENGINE.moe.lookup(name)) is not None]
    assert shapes.seen(expected, lookups) is None
    assert reason in shapes.mismatch(expected, asked)


def test_of_several_lookups_the_expected_one_counts() -> None:
    expected = shape_of(QWEN3_30B)
    other = Lookup(129, 768, None, None)
    assert shapes.seen(expected, [other, expected.lookup]) == expected
    found = shapes.seen(expected, [other])
    assert found is not None and (found.shared, found.rows_per_token) == (1, 9)


@pytest.mark.parametrize("config", [NEMOTRON_SUPER, QWEN3_30B])
def test_the_tuners_process_gets_the_whole_shape(config: dict[str, Any]) -> None:
    shape = shape_of(config, "--ep-size", "4", tp=4)
    assert MoeShape.from_json(shape.to_json()) == shape and shape.ranks == 4
