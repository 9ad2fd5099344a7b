"""How the tuner reaches SGLang's fused experts, with modules of no code in SGLang's place."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_admin.sglang import releases

MOE = "sglang.srt.layers.moe"
RELEASE, _ = releases.of("0.5.17")
CONFIG = {"BLOCK_SIZE_M": 16}


class RunnerConfig:
    def __init__(
        self, num_experts: int, inplace: bool, is_gated: bool = True, activation: str = "silu"
    ) -> None:
        self.given = (num_experts, inplace)
        self.kind = (is_gated, activation)


class Installed:
    """The modules that are imported, and what they are asked. The call does what SGLang's does
    (0.5.17, fused_moe.py): it looks both configurations up and launches two kernels with them.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.launched: list[dict[str, Any]] = []
        self.published: list[str] = []
        self.configs = SimpleNamespace(get_moe_configs=lambda *words, **options: {1: {"own": 1}})
        self._patch = patch
        self._module(RELEASE.moe_look_up, self.configs)
        self.moe = SimpleNamespace(
            fused_experts=self._fused_experts, invoke_fused_moe_kernel=self._invoke
        )
        self._module(RELEASE.fused_moe, self.moe)
        self._module(f"{MOE}.moe_runner", SimpleNamespace(MoeRunnerConfig=RunnerConfig))
        self._module(f"{MOE}.topk", SimpleNamespace(StandardTopKOutput=lambda *words: words))
        self.server_args = SimpleNamespace(
            ServerArgs=lambda model_path: model_path,
            set_global_server_args_for_scheduler=self.published.append,
        )
        self._module("sglang.srt.server_args", self.server_args)

    def _module(self, name: str, module: Any) -> None:
        self._patch.setitem(sys.modules, name, module)

    def _invoke(self, A: str, config: Any, b_use_tma: bool = False) -> None:
        self.launched.append({"A": A, "config": config, "b_use_tma": b_use_tma})

    def _fused_experts(self, *words: Any, **options: Any) -> None:
        self.calls.append((words, options))
        up = self.configs.get_moe_configs(8, 64, None, 0, 0, per_channel_quant=False)
        down = self.configs.get_moe_configs(8, 64, None, 0, 0, down_moe=True)
        tma = bool(down and down[64].pop("USE_TMA", False))
        self.moe.invoke_fused_moe_kernel("tokens", up and up[64])
        self.moe.invoke_fused_moe_kernel("middle", down and down[64], b_use_tma=tma)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(monkeypatch)


def test_a_call_is_the_servers_with_the_files_that_are_tried(installed: Installed) -> None:
    experts = RELEASE.fused_experts(8)
    topk = experts.topk_output("weights", "ids", "logits")
    down = {64: {"BLOCK_SIZE_M": 16, "USE_TMA": True}}
    for _ in range(2):
        with experts.reading({64: CONFIG}, down):
            experts.call("tokens", "w1", "w2", topk, use_fp8_w8a8=True)
    words, options = installed.calls[0]
    assert words[:4] == ("tokens", "w1", "w2", ("weights", "ids", "logits"))
    assert words[4].given == (8, True), "of the parameters, those that this release knows"
    assert options == {"use_fp8_w8a8": True} and installed.published == ["dummy"]
    expected = [
        {"A": "tokens", "config": CONFIG, "b_use_tma": False},
        {"A": "middle", "config": CONFIG, "b_use_tma": True},
    ]
    assert installed.launched == expected * 2, "SGLang takes USE_TMA out of what it is given"
    assert installed.configs.get_moe_configs() == {1: {"own": 1}}, "its own is back"


@pytest.mark.parametrize(("up", "config"), [(None, None), ({64: CONFIG}, CONFIG)])
def test_without_a_file_of_its_own_the_down_projection_has_the_other_one(
    installed: Installed, up: Any, config: Any
) -> None:
    experts = RELEASE.fused_experts(8)
    with experts.reading(up, None):
        experts.call("tokens", "w1", "w2", "topk")
    assert [each["config"] for each in installed.launched] == [config, config]


def test_a_recorded_call_launches_nothing_until_it_is_asked_to(installed: Installed) -> None:
    experts = RELEASE.fused_experts(8)
    with experts.recorded() as kernels, experts.reading({64: CONFIG}, None):
        experts.call("tokens", "w1", "w2", "topk")
    assert installed.launched == [] and [each["A"] for each in kernels] == ["tokens", "middle"]
    experts.launch(kernels[1], {"BLOCK_SIZE_M": 64})
    [launched] = installed.launched
    assert launched == {"A": "middle", "config": {"BLOCK_SIZE_M": 64}, "b_use_tma": False}


def test_experts_of_other_ranks_and_a_missing_gate_are_told_to_the_release(
    installed: Installed,
) -> None:
    experts = RELEASE.fused_experts(8, 32, gated=False)
    with experts.reading(None, None):
        experts.call("tokens", "w1", "w2", "topk")
    [(words, _)] = installed.calls
    assert (words[4].given, words[4].kind) == ((32, True), (False, "relu2"))


def test_what_is_replaced_is_put_back_when_a_call_fails(installed: Installed) -> None:
    experts = RELEASE.fused_experts(8)
    before = installed.moe.invoke_fused_moe_kernel
    with (
        pytest.raises(ValueError, match="no such tile"),
        experts.reading({64: CONFIG}, None),
        experts.recorded(),
    ):
        raise ValueError("no such tile")
    assert installed.configs.get_moe_configs() == {1: {"own": 1}}
    assert installed.moe.invoke_fused_moe_kernel == before


def test_a_release_without_the_servers_settings_needs_none(installed: Installed) -> None:
    del installed.server_args.set_global_server_args_for_scheduler
    RELEASE.fused_experts(8)
    assert installed.published == []
