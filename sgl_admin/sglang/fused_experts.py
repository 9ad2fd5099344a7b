"""SGLang's fused experts as the tuner calls them.

Imported in the tuner's own process only: it imports the installed SGLang, and so torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FusedExperts:
    """As base.engine.FusedExperts says."""

    def __init__(
        self, module: str, override: str, experts: int, everywhere: int, gated: bool
    ) -> None:
        """`module` holds the call; `override` is the package whose `override_config` it heeds.

        Where there are more experts `everywhere` than here, SGLang compiles another kernel, which
        leaves out the tokens of the others.
        """
        _publish_server_args()
        self._module = importlib.import_module(module)
        # Where the configuration is overridden is a package that the module belongs to.
        self._override = importlib.import_module(override)
        runner = importlib.import_module("sglang.srt.layers.moe.moe_runner")
        wanted: dict[str, Any] = {
            "num_experts": everywhere,
            "num_local_experts": experts,
            "inplace": True,
        }
        if not gated:
            wanted.update(is_gated=False, activation="relu2")
        known = inspect.signature(runner.MoeRunnerConfig).parameters
        self._runner_config = runner.MoeRunnerConfig(
            **{name: value for name, value in wanted.items() if name in known}
        )
        self._topk_output = importlib.import_module("sglang.srt.layers.moe.topk").StandardTopKOutput

    @contextmanager
    def configured(self, config: dict[str, int]) -> Iterator[None]:
        try:
            with self._override.override_config(dict(config)):
                yield
        finally:
            # SGLang's own context manager leaves it in place when the call in it fails.
            setattr(self._override, "_config", None)  # noqa: B010 - a name of SGLang's

    def topk_output(self, weights: Any, ids: Any, logits: Any) -> Any:
        return self._topk_output(weights, ids, logits)

    def call(self, tokens: Any, w1: Any, w2: Any, topk_output: Any, **quantisation: Any) -> None:
        self._module.fused_experts(tokens, w1, w2, topk_output, self._runner_config, **quantisation)


def _publish_server_args() -> None:
    """SGLang's kernels read settings of a server, from 0.5.17 on also where none is: its defaults,
    of no model.
    """
    module = importlib.import_module("sglang.srt.server_args")
    publish = getattr(module, "set_global_server_args_for_scheduler", None)
    if publish is not None:
        publish(module.ServerArgs(model_path="dummy"))
