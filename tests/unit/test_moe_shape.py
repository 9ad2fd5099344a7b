"""What shape a server is expected to fuse its experts in, and the file that SGLang looks up for
it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_admin.base.engine import Lookup
from sgl_admin.moe import shape as shapes
from sgl_admin.moe import space
from sgl_admin.moe.shape import MoeShape, Untunable
from sgl_admin.sglang import ENGINE, releases
from tests.gpu import models

GH200 = "NVIDIA GH200 480GB"
# As SGLang 0.5.17 and 0.5.23 ask for Qwen3-Next-80B-A3B-Instruct-FP8 on one GH200.
QWEN3_NEXT_FILE = (
    "E=513,N=512,device_name=NVIDIA_GH200_480GB,dtype=fp8_w8a8,block_shape=[128, 128].json"
)
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "hidden_size": 2048,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def qwen3_next(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (models.write_qwen3_next_fp8(tmp_path) / "config.json").read_text()
    )
    return found


def shape_of(
    config: dict[str, Any],
    version: str = "0.5.17",
    tp: int = 1,
    dtype: str = "auto",
    args: tuple[str, ...] = (),
) -> MoeShape:
    return shapes.of(config, tp, dtype, args, releases.of(version)[0])


@pytest.mark.parametrize("version", ["0.5.17", "0.5.23"])
def test_qwen3_next_has_its_shared_expert_fused(qwen3_next: dict[str, Any], version: str) -> None:
    found = shape_of(qwen3_next, version)
    assert found == MoeShape(
        Lookup(513, 512, "fp8_w8a8", (128, 128)),
        hidden_size=2048,
        chosen=10,
        shared=1,
        torch_dtype="bfloat16",
    )
    assert (
        found.rows_per_token == 11 and ENGINE.moe.file_name(found.lookup, GH200) == QWEN3_NEXT_FILE
    )


@pytest.mark.parametrize(
    ("version", "args"),
    [("0.5.3", ()), ("0.5.9", ()), ("0.5.16", ()), ("0.5.17", ("--disable-shared-experts-fusion",)),
     ("0.5.23", ("--tp", "1", "--disable-shared-experts-fusion"))],
)  # fmt: skip
def test_qwen3_next_keeps_its_shared_expert_apart_in_older_releases_and_by_flag(
    qwen3_next: dict[str, Any], version: str, args: tuple[str, ...]
) -> None:
    found = shape_of(qwen3_next, version, args=args)
    assert (found.lookup.E, found.shared, found.rows_per_token) == (512, 0, 10)


def test_a_shared_expert_of_another_size_is_not_fused(qwen3_next: dict[str, Any]) -> None:
    assert shape_of({**qwen3_next, "shared_expert_intermediate_size": 1024}).lookup.E == 512
    assert shape_of({**qwen3_next, "shared_expert_intermediate_size": 0}).lookup.E == 512


@pytest.mark.parametrize(
    ("architecture", "shared", "fused"),
    [("DeepseekV3ForCausalLM", 1, 1), ("DeepseekV32ForCausalLM", 1, 1),
     ("Glm4MoeForCausalLM", 1, 1), ("DeepseekV3ForCausalLM", 2, 0),
     ("DeepseekV2ForCausalLM", 1, 0), ("Qwen3MoeForCausalLM", 1, 0)],
)  # fmt: skip
@pytest.mark.parametrize("version", ["0.5.3", "0.5.9", "0.5.17", "0.5.23"])
def test_one_shared_expert_is_fused_where_every_release_does(
    architecture: str, shared: int, fused: int, version: str
) -> None:
    config = {
        "architectures": [architecture],
        "n_routed_experts": 256,
        "n_shared_experts": shared,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "hidden_size": 7168,
    }
    found = shape_of(config, version)
    assert (found.lookup.E, found.rows_per_token) == (256 + fused, 8 + fused)


@pytest.mark.parametrize(("tp", "size"), [(1, 512), (2, 256), (4, 128)])
def test_tensor_parallelism_divides_the_intermediate_size_alone(
    qwen3_next: dict[str, Any], tp: int, size: int
) -> None:
    found = shape_of(qwen3_next, tp=tp)
    assert (found.lookup.E, found.lookup.N, found.hidden_size) == (513, size, 2048)


def test_an_intermediate_size_that_the_gpus_cannot_share_is_told(
    qwen3_next: dict[str, Any],
) -> None:
    with pytest.raises(Untunable, match="512 cannot be divided among 3 GPUs"):
        shape_of(qwen3_next, tp=3)


def test_unquantised_experts_have_no_data_type_in_the_name() -> None:
    found = shape_of(QWEN3)
    assert found.lookup == Lookup(128, 768, None, None)
    assert (
        ENGINE.moe.file_name(found.lookup, "NVIDIA H100 80GB HBM3")
        == "E=128,N=768,device_name=NVIDIA_H100_80GB_HBM3.json"
    )


@pytest.mark.parametrize(
    ("kept", "used"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float16"}, "float16"),
        ({}, "bfloat16"),
        ({"torch_dtype": "float32"}, "bfloat16"),
    ],
)
def test_the_data_type_of_activations_is_the_configs_or_bfloat16(
    kept: dict[str, str], used: str
) -> None:
    config = {key: value for key, value in QWEN3.items() if key != "torch_dtype"}
    assert shape_of({**config, **kept}).torch_dtype == used


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_a_multimodal_models_experts_are_those_of_its_language_model(key: str) -> None:
    nested = {name: value for name, value in QWEN3.items() if name != "architectures"}
    # The picture encoder's sizes are not the experts'.
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "hidden_size": 64,
        "intermediate_size": 7,
        key: nested,
    }
    found = shape_of(config)
    assert (found.lookup, found.hidden_size, found.chosen) == (
        Lookup(128, 768, None, None),
        2048,
        8,
    )


@pytest.mark.parametrize("missing", ["num_experts", "num_experts_per_tok", "hidden_size"])
def test_a_config_that_does_not_tell_its_experts_is_told(missing: str) -> None:
    with pytest.raises(Untunable, match="does not give the shape of its experts"):
        shape_of({key: value for key, value in QWEN3.items() if key != missing})


@pytest.mark.parametrize("strange", [0, -1, True, "128", None, 1.5, [128]])
def test_a_number_of_experts_that_is_none_is_told(strange: object) -> None:
    with pytest.raises(Untunable, match="does not give the shape of its experts"):
        shape_of({**QWEN3, "num_experts": strange})


@pytest.mark.parametrize("method", ["awq", "gptq", "int8", "mxfp4", None])
def test_experts_of_another_quantisation_are_named(method: str | None) -> None:
    with pytest.raises(Untunable, match=f"quantised by {method} have no tuning"):
        shape_of({**QWEN3, "quantization_config": {"quant_method": method}})


def test_fp8_without_blocks_has_no_block_shape_in_the_name() -> None:
    found = shape_of({**QWEN3, "quantization_config": {"quant_method": "fp8"}})
    assert (
        ENGINE.moe.file_name(found.lookup, GH200)
        == "E=128,N=768,device_name=NVIDIA_GH200_480GB,dtype=fp8_w8a8.json"
    )


@pytest.mark.parametrize(
    "block", [[128], [128, 0], [128, "128"], "128", [128, 128, 128], [True, 128]]
)
def test_a_block_shape_that_is_none_is_told(block: object) -> None:
    with pytest.raises(Untunable, match="weight_block_size"):
        shape_of(
            {**QWEN3, "quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
        )


def test_a_wanted_data_type_must_be_the_models(qwen3_next: dict[str, Any]) -> None:
    assert shape_of(qwen3_next, dtype="fp8_w8a8") == shape_of(qwen3_next)
    assert shape_of(QWEN3, dtype="bf16") == shape_of(QWEN3)
    with pytest.raises(Untunable, match="--moe-dtype bf16: the model's experts are fp8_w8a8"):
        shape_of(qwen3_next, dtype="bf16")
    with pytest.raises(
        Untunable, match=r"--moe-dtype fp8_w8a8: the model's experts are not quantised \(bf16\)"
    ):
        shape_of(QWEN3, dtype="fp8_w8a8")


# --- names ----------------------------------------------------------------------------------------

LOOKUPS = st.builds(
    Lookup,
    st.integers(1, 4096),
    st.integers(1, 65536),
    st.none() | st.sampled_from(["fp8_w8a8", "int8_w8a16"]),
    st.none() | st.tuples(st.integers(1, 1024), st.integers(1, 1024)),
    st.booleans(),
)
DEVICES = st.sampled_from([GH200, "NVIDIA H100 80GB HBM3", "NVIDIA_H200", "*", "dtype=x"])


@settings(derandomize=True)
@given(lookup=LOOKUPS, device=DEVICES)
def test_what_a_name_says_is_read_back(lookup: Lookup, device: str) -> None:
    name = ENGINE.moe.file_name(lookup, device)
    assert ENGINE.moe.lookup(name) == lookup
    assert ENGINE.moe.lookup(name.replace(".json", "_down.json")) is None
    assert ENGINE.moe.lookup(name.replace(".json", ",per_channel_quant=False.json")) is None


@pytest.mark.parametrize(
    ("name", "lookup"),
    [
        ("E=512,N=128,device_name=NVIDIA_H200.json", Lookup(512, 128, None, None)),
        (
            "E=256,N=128,device_name=NVIDIA_H20-3e,dtype=fp8_w8a8,block_shape=[128, 128].json",
            Lookup(256, 128, "fp8_w8a8", (128, 128)),
        ),
        (
            "E=8,N=14336,device_name=AMD_Instinct_MI300X,dtype=int8_w8a16.json",
            Lookup(8, 14336, "int8_w8a16", None),
        ),
        ("E=1,N=2,device_name=x,block_shape=[1,2].json", Lookup(1, 2, None, (1, 2))),
        ("E=,N=2,device_name=x.json", None),
        ("E=1,N=2,device_name=.json", None),
        ("E=1,N=2,device_name=x.json.tmp", None),
        (f"E={'9' * 5000},N=2,device_name=x.json", None),
        ("README.md", None),
    ],
)
def test_names_of_sglangs_are_read(name: str, lookup: Lookup | None) -> None:
    assert ENGINE.moe.lookup(name) == lookup


@settings(derandomize=True)
@given(lookup=LOOKUPS, shared=st.integers(0, 1))
def test_a_shape_outlasts_json(lookup: Lookup, shared: int) -> None:
    shape = MoeShape(lookup, 2048, 10, shared, "bfloat16")
    assert MoeShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_what_the_server_asks_for_has_the_last_word(qwen3_next: dict[str, Any]) -> None:
    expected = shape_of(qwen3_next)
    apart = Lookup(512, 512, "fp8_w8a8", (128, 128))
    # As a release that does not fuse the shared expert would ask; a draft model's experts are
    # others.
    found = shapes.seen(expected, [Lookup(8, 64, None, None), apart])
    assert found == MoeShape(apart, 2048, 10, 0, "bfloat16") and found.rows_per_token == 10
    assert shapes.seen(expected, [expected.lookup]) == expected
    more = shapes.seen(shape_of(qwen3_next, "0.5.9"), [expected.lookup])
    assert more is not None and more.rows_per_token == 11


def test_lookups_of_other_experts_are_no_shape_of_these(qwen3_next: dict[str, Any]) -> None:
    expected = shape_of(qwen3_next)
    assert shapes.seen(expected, []) is None
    assert (
        shapes.seen(
            expected,
            [Lookup(513, 256, "fp8_w8a8", (128, 128)), Lookup(511, 512, "fp8_w8a8", (128, 128))],
        )
        is None
    )


# --- the space ------------------------------------------------------------------------------------


def test_blocks_of_128_leave_two_thirds_of_the_space() -> None:
    assert len(space.configs(None)) == 396
    found = space.configs((128, 128))
    assert len(found) == 264 and {config["BLOCK_SIZE_K"] for config in found} == {64, 128}
    assert len({space.key(config) for config in found}) == 264


def test_a_tile_fits_the_registers_of_its_warps_and_keeps_them_busy() -> None:
    for config in space.configs(None):
        elements = config["BLOCK_SIZE_M"] * config["BLOCK_SIZE_N"] // config["num_warps"]
        # An accumulator of 32 bits in a thread's 255 registers.
        assert elements // 32 <= 128
        assert config["num_warps"] == 4 or elements >= 256
    tiles = {(each["BLOCK_SIZE_M"], each["BLOCK_SIZE_N"]) for each in space.configs(None)}
    assert len(tiles) == 19 and (256, 256) not in tiles and {(128, 256), (256, 128)} < tiles


def test_a_signature_of_an_earlier_release_names_as_many_configurations() -> None:
    """As its space had: the product of all values, cut to the blocks."""
    assert space.earlier_count(None) == 1920 and space.earlier_count((128, 128)) == 1280
    assert space.earlier_count((128, 128), 32) == 32
    assert space.earlier_count((64, 64), 5000) == 640


def test_each_trial_is_there_once_and_each_is_a_variant_of_one_that_is_tried_first() -> None:
    coarse = space.configs((128, 128))
    for up_tma, down_tma, streams in ((False, False, 2), (False, True, 4), (True, True, 6)):
        trials = space.trials(coarse, up_tma, down_tma)
        assert len(trials) == 264 * 4 * streams == len({repr(trial) for trial in trials})
        first = [trial for trial in trials if space.is_coarse(trial)]
        assert {trial.config["GROUP_SIZE_M"] for trial in first} == {32}
        assert {trial.part for trial in first} == {space.UP, space.DOWN}


@pytest.mark.parametrize(
    ("rows", "heights"),
    [(0.02, {16, 32}), (10, {16, 32}), (20, {16, 32, 64}), (80, {16, 32, 64, 128, 256}),
     (320, {64, 128, 256}), (100_000, {128, 256})],
)  # fmt: skip
def test_a_tile_is_as_high_as_suits_the_rows_of_an_expert(rows: float, heights: set[int]) -> None:
    found = {
        config["BLOCK_SIZE_M"] for config in space.configs(None) if space.in_window(config, rows)
    }
    assert found == heights


@pytest.mark.parametrize("block", [None, (128, 128)])
def test_a_sample_is_the_same_every_time_and_of_the_space(block: tuple[int, int] | None) -> None:
    whole, sample = space.configs(block), space.configs(block, 160)
    assert len(sample) == 160 and sample == space.configs(block, 160)
    assert [config for config in whole if config in sample] == sample
    assert {config["BLOCK_SIZE_M"] for config in sample} == {
        16,
        32,
        64,
        128,
        256,
    }, "of no corner of the space alone"


def test_a_sample_as_large_as_the_space_is_the_space() -> None:
    assert space.configs(None, 396) == space.configs(None, 5000) == space.configs(None)


def test_what_compiles_longest_comes_first() -> None:
    ordered = sorted(space.configs(None), key=space.compile_order)
    assert {"BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 256, "num_stages": 5}.items() <= ordered[0].items()
    assert {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "num_stages": 2}.items() <= ordered[-1].items()
