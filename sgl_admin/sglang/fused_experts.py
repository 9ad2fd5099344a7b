"""SGLang's fused experts as the tuner calls them.

Imported in the tuner's own process only: it imports the installed SGLang, and so torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_INVOKE, _LOOK_UP = "invoke_fused_moe_kernel", "get_moe_configs"

Table = Mapping[int, dict[str, Any]]


class FusedExperts:
    """As base.engine.FusedExperts says."""

    def __init__(
        self, module: str, configs: str, experts: int, everywhere: int, gated: bool
    ) -> None:
        """`module` holds the call; `configs` is the module that looks configurations up.

        Where there are more experts `everywhere` than here, SGLang compiles another kernel, which
        leaves out the tokens of the others.
        """
        _publish_server_args()
        self._module = importlib.import_module(module)
        self._configs = importlib.import_module(configs)
        self._invoke = getattr(self._module, _INVOKE)
        self._signature = inspect.signature(self._invoke)
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
    def reading(self, up: Table | None, down: Table | None) -> Iterator[None]:
        def look_up(*_: Any, down_moe: bool = False, **__: Any) -> dict[int, Any] | None:
            # Without a file for the down projection, SGLang takes the other one for it.
            table = (down or up) if down_moe else up
            # It takes what it finds out of the rows.
            return {size: dict(config) for size, config in table.items()} if table else None

        # Its own keeps what it has read for ever.
        real = getattr(self._configs, _LOOK_UP)
        setattr(self._configs, _LOOK_UP, look_up)
        try:
            yield
        finally:
            setattr(self._configs, _LOOK_UP, real)

    @contextmanager
    def recorded(self) -> Iterator[list[dict[str, Any]]]:
        kept: list[dict[str, Any]] = []

        def keep(*words: Any, **options: Any) -> None:
            kept.append(dict(self._signature.bind(*words, **options).arguments))

        setattr(self._module, _INVOKE, keep)
        try:
            yield kept
        finally:
            setattr(self._module, _INVOKE, self._invoke)

    def launch(self, recorded: Mapping[str, Any], config: dict[str, Any]) -> None:
        self._invoke(**{**recorded, "config": config})

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
