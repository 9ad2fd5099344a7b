"""How the tuner reaches SGLang's fused experts, with modules of no code in SGLang's place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
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
    """The modules that are imported, and what they are asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.published: list[str] = []
        self.override = ModuleType(RELEASE.moe_override)
        self._patch = patch
        self.override.__dict__.update(_config=None, override_config=self._override_config)
        self._module(RELEASE.moe_override, self.override)
        self._module(RELEASE.fused_moe, SimpleNamespace(fused_experts=self._fused_experts))
        self._module(f"{MOE}.moe_runner", SimpleNamespace(MoeRunnerConfig=RunnerConfig))
        self._module(f"{MOE}.topk", SimpleNamespace(StandardTopKOutput=lambda *words: words))
        self.server_args = SimpleNamespace(
            ServerArgs=lambda model_path: model_path,
            set_global_server_args_for_scheduler=self.published.append,
        )
        self._module("sglang.srt.server_args", self.server_args)

    def _module(self, name: str, module: Any) -> None:
        self._patch.setitem(sys.modules, name, module)

    @contextmanager
    def _override_config(self, config: dict[str, int]) -> Iterator[None]:
        """As SGLang's: what was set stays set when the call in it fails."""
        self.override.__dict__["_config"] = config
        yield
        self.override.__dict__["_config"] = None

    def _fused_experts(self, *words: Any, **options: Any) -> None:
        self.calls.append((words, options, self.override.__dict__["_config"]))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(monkeypatch)


def test_a_call_is_the_servers_with_the_configuration_that_is_tried(installed: Installed) -> None:
    experts = RELEASE.fused_experts(8)
    topk = experts.topk_output("weights", "ids", "logits")
    with experts.configured(CONFIG):
        experts.call("tokens", "w1", "w2", topk, use_fp8_w8a8=True)
    [(words, options, config)] = installed.calls
    assert words[:4] == ("tokens", "w1", "w2", ("weights", "ids", "logits"))
    assert words[4].given == (8, True), "of the parameters, those that this release knows"
    assert options == {"use_fp8_w8a8": True}
    assert config == CONFIG
    assert installed.published == ["dummy"]


def test_experts_of_other_ranks_and_a_missing_gate_are_told_to_the_release(
    installed: Installed,
) -> None:
    experts = RELEASE.fused_experts(8, 32, gated=False)
    experts.call("tokens", "w1", "w2", "topk")
    [(words, _, _)] = installed.calls
    assert (words[4].given, words[4].kind) == ((32, True), (False, "relu2"))


def test_a_configuration_whose_call_fails_is_taken_back(installed: Installed) -> None:
    experts = RELEASE.fused_experts(8)
    with pytest.raises(ValueError, match="no such tile"), experts.configured(CONFIG):
        raise ValueError("no such tile")
    assert installed.override.__dict__["_config"] is None


def test_a_release_without_the_servers_settings_needs_none(installed: Installed) -> None:
    del installed.server_args.set_global_server_args_for_scheduler
    RELEASE.fused_experts(8)
    assert installed.published == []
