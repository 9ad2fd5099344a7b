"""Which row of the releases' table counts for an installed SGLang, and what each row says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sgl_admin.sglang import releases
from sgl_admin.sglang.releases import RELEASES

# version -> the CUDA graphs' flag, the traces' flag, the folder of the MoE configurations
ROWS = {
    "0.5.3": ("--cuda-graph-bs", "--oltp-traces-endpoint", "srt/layers/moe/fused_moe_triton"),
    "0.5.9": ("--cuda-graph-bs", "--otlp-traces-endpoint", "srt/layers/moe/fused_moe_triton"),
    "0.5.17": (
        "--cuda-graph-bs-decode",
        "--otlp-traces-endpoint",
        "srt/layers/moe/moe_runner/triton_utils",
    ),
    "0.5.23": (
        "--cuda-graph-bs-decode",
        "--otlp-traces-endpoint",
        "srt/layers/moe/moe_runner/triton_utils",
    ),
}
MODULES = {
    "0.5.3": (
        "sglang.srt.layers.moe.fused_moe_triton",
        "sglang.srt.layers.moe.fused_moe_triton.fused_moe_triton_kernels",
    ),
    "0.5.9": (
        "sglang.srt.layers.moe.fused_moe_triton",
        "sglang.srt.layers.moe.fused_moe_triton.fused_moe_triton_kernels",
    ),
    "0.5.17": (
        "sglang.srt.layers.moe.moe_runner.triton_utils",
        "sglang.kernels.ops.moe.fused_moe_triton_kernels",
    ),
    "0.5.23": (
        "sglang.srt.layers.moe.moe_runner.triton_utils",
        "sglang.kernels.ops.moe.fused_moe_triton_kernels",
    ),
}
QWEN3_NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


# Whether `get_moe_configs` knows `down_moe`, and `_prepare_fused_moe_run` takes USE_TMA out of the
# up projection's configuration.
TMA = {
    "0.5.3": (False, False),
    "0.5.9": (True, False),
    "0.5.17": (True, False),
    "0.5.23": (True, True),
}


@pytest.mark.parametrize("version", ROWS)
def test_each_row_says_what_its_release_has(version: str) -> None:
    release, warning = releases.of(version)
    assert warning is None and ".".join(map(str, release.since)) == version
    assert (release.cuda_graph_flag, release.otlp_flag, release.moe_configs) == ROWS[version]
    package = release.fused_moe.rpartition(".")[0]
    assert (package, release.kernels) == MODULES[version]
    assert release.moe_look_up == f"{package}.fused_moe_triton_config"
    assert (release.down_files, release.up_tma) == TMA[version]


def test_every_row_is_tested_and_the_oldest_comes_first() -> None:
    assert [".".join(map(str, release.since)) for release in RELEASES] == list(ROWS)
    assert [release.since for release in RELEASES] == sorted(release.since for release in RELEASES)


@pytest.mark.parametrize(
    ("version", "row"),
    [("0.5.4", 0), ("0.5.8.post1", 0), ("0.5.9.post2", 1), ("0.5.10", 1), ("0.5.16", 1),
     ("0.5.18", 2), ("0.5.22rc1", 2), ("0.5.17+cu130", 2), ("0.5.23.post1", 3)],
)  # fmt: skip
def test_between_two_rows_the_older_one_counts(version: str, row: int) -> None:
    assert releases.of(version) == (RELEASES[row], None)


@pytest.mark.parametrize("version", ["0.5.24", "0.6.0", "1.0.0rc1", "0.5.100"])
def test_a_newer_release_is_taken_for_the_newest_with_a_warning(version: str) -> None:
    release, warning = releases.of(version)
    assert (
        release is RELEASES[-1]
        and warning is not None
        and f"SGLang {version} is newer" in warning
        and "0.5.23" in warning
    )


@pytest.mark.parametrize("version", ["0.5.2", "0.4.10.post2", "0.0.1"])
def test_an_older_release_is_taken_for_the_oldest_with_a_warning(version: str) -> None:
    release, warning = releases.of(version)
    assert (
        release is RELEASES[0]
        and warning is not None
        and f"SGLang {version} is older" in warning
        and "0.5.3" in warning
    )


@pytest.mark.parametrize(
    "version", ["0.0.0.dev0", "0.0.0", "0.0.0.dev1+gabcdef", "main", "5", "0.5"]
)
def test_a_version_that_says_nothing_is_taken_for_the_newest_with_a_warning(version: str) -> None:
    release, warning = releases.of(version)
    assert (
        release is RELEASES[-1]
        and warning is not None
        and re.search(rf"unknown SGLang version {re.escape(version)}, assuming", warning)
    )


@pytest.mark.parametrize("version", [None, ""])
def test_where_no_sglang_is_nothing_is_warned_of(version: str | None) -> None:
    assert releases.of(version) == (RELEASES[-1], None)


@pytest.mark.parametrize(
    ("version", "fused"), [("0.5.3", 0), ("0.5.9", 0), ("0.5.17", 1), ("0.5.23", 1)]
)
def test_qwen3_nexts_shared_expert_is_fused_since_0_5_17_and_never_against_a_flag(
    version: str, fused: int
) -> None:
    release, _ = releases.of(version)
    assert release.fused_shared_experts(QWEN3_NEXT, ("--tp", "2")) == fused
    assert release.fused_shared_experts(QWEN3_NEXT, ("--disable-shared-experts-fusion",)) == 0


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architectures": []},
        {"architectures": None},
        {"architectures": ["Qwen3NextForCausalLM"]},
    ],
)
def test_a_config_that_tells_nothing_has_no_fused_expert(config: dict[str, Any]) -> None:
    assert {release.fused_shared_experts(config, ()) for release in RELEASES} == {0}
