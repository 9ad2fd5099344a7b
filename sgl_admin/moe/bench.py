"""The fused experts on the GPU: which kernels a configuration launches, and how long it takes.

Runs in the tuner's own process: it imports torch, Triton and the installed engine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton

from sgl_admin.base.engine import Release
from sgl_admin.moe.compiling import Launch
from sgl_admin.moe.search import CannotRun
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.space import Config

# Calls in one CUDA graph: enough that its own start does not count.
_CALLS = 10
_LOOK_CALLS, _LOOK_REPLAYS = 3, 3
_EXPERTS_AT_ONCE = 64
# Different choices of experts, as each batch makes its own.
_ROUTINGS = 8


class FusedExperts:
    """One layer's experts with random weights, called as the server calls them."""

    def __init__(self, shape: MoeShape, release: Release) -> None:
        """Raises torch.cuda.OutOfMemoryError."""
        self._shape = shape
        self._device = torch.device("cuda", torch.cuda.current_device())
        torch.manual_seed(0)
        everywhere = shape.routed * shape.ranks + shape.shared
        self._experts = release.fused_experts(shape.lookup.E, everywhere, shape.gated)
        self._weights = self._make_weights()
        self._inputs: dict[int, tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], Any]] = {}

    def _make_weights(self) -> dict[str, Any]:
        lookup, hidden = self._shape.lookup, self._shape.hidden_size
        dtype = getattr(torch, self._shape.torch_dtype)
        first = 2 * lookup.N if self._shape.gated else lookup.N
        shapes = {"w1": (lookup.E, first, hidden), "w2": (lookup.E, hidden, lookup.N)}
        made: dict[str, Any] = {}
        for name, (experts, rows, columns) in shapes.items():
            weight = torch.empty(
                (experts, rows, columns),
                dtype=dtype if lookup.dtype is None else torch.float8_e4m3fn,
                device=self._device,
            )
            # Some experts at a time: a whole layer in 16 bits would not always fit beside it.
            for part in weight.split(_EXPERTS_AT_ONCE):
                part.copy_(
                    torch.randn(part.shape, dtype=torch.float16, device=self._device)
                    .mul_(columns**-0.5)
                    .to(weight.dtype)
                )
            made[name] = weight
            if lookup.dtype is not None:
                made[f"{name}_scale"] = self._scale(experts, rows, columns)
        if lookup.dtype is not None:
            made["use_fp8_w8a8"] = True
            made["block_shape"] = list(lookup.block_shape) if lookup.block_shape else None
            if lookup.block_shape is None:
                made.update(
                    {f"a{number}_scale": torch.ones(1, device=self._device) for number in (1, 2)}
                )
        return made

    def _scale(self, experts: int, rows: int, columns: int) -> torch.Tensor:
        if self._shape.lookup.block_shape is None:
            return torch.rand(experts, device=self._device) + 0.5
        n, k = self._shape.lookup.block_shape
        return (
            torch.rand((experts, math.ceil(rows / n), math.ceil(columns / k)), device=self._device)
            + 0.5
        )

    def _input(self, size: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], Any]:
        """Tokens, a copy to restore them from, choices of experts, and the choice that a call
        reads.
        """
        if size not in self._inputs:
            # Those of one batch size at a time: the large ones are large.
            self._inputs.clear()
            shape = self._shape
            dtype = getattr(torch, shape.torch_dtype)
            tokens = torch.randn((size, shape.hidden_size), dtype=dtype, device=self._device)
            routed, everywhere = shape.routed, shape.routed * shape.ranks
            choices = []
            for _ in range(_ROUTINGS):
                chosen = (
                    torch.rand((size, everywhere), device=self._device)
                    .topk(shape.chosen, dim=1)
                    .indices
                )
                # As SGLang's dispatcher names the experts of other ranks.
                chosen[chosen >= routed] = -1
                # Every token takes the shared experts, which are the last ones.
                always = torch.arange(routed, shape.lookup.E, device=self._device).expand(
                    size, shape.shared
                )
                choices.append(torch.cat((chosen, always), dim=1).to(torch.int32).contiguous())
            weights = torch.full(
                (size, shape.rows_per_token), 1 / shape.rows_per_token, device=self._device
            )
            logits = torch.zeros((size, everywhere), device=self._device)
            self._inputs[size] = (
                tokens,
                tokens.clone(),
                choices,
                self._experts.topk_output(weights, choices[0].clone(), logits),
            )
        return self._inputs[size]

    def _call(self, size: int) -> None:
        tokens, restored, _, topk = self._input(size)
        # In place is how the server calls; without fresh tokens the values would run away.
        tokens.copy_(restored)
        weights = self._weights
        self._experts.call(
            tokens, weights["w1"], weights["w2"], topk,
            **{name: value for name, value in weights.items() if name not in ("w1", "w2")},
        )  # fmt: skip

    def warm(self, sizes: Sequence[int], config: Config) -> None:
        """Everything beside the tuned kernel is compiled now: SGLang's and torch's own just-in-time
        kernels build behind a lock.
        """
        for size in sizes:
            with self._experts.configured(config):
                self._call(size)
        torch.cuda.synchronize()

    def launches(self, size: int, config: Config) -> list[Launch]:
        """The Triton kernels that a call with this configuration launches and that are not loaded
        yet; nothing is compiled or launched.
        """
        found: list[Launch] = []

        # Triton names the arguments.
        def hook(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
            found.append(
                Launch(f"{fn.name} {key}", fn.module, fn.name, compile["specialization_data"])
            )
            # Neither compile nor launch.
            return True

        with self._experts.configured(config), _cache_hook(hook):
            self._call(size)
        return found

    def look(self, size: int, config: Config, hopeless_us: float) -> float:
        try:
            with self._experts.configured(config):
                self._call(size)
                started, ended = (
                    torch.cuda.Event(enable_timing=True),
                    torch.cuda.Event(enable_timing=True),
                )
                started.record()
                self._call(size)
                ended.record()
                torch.cuda.synchronize()
                us = started.elapsed_time(ended) * 1000
                if us > hopeless_us:
                    return us
                graph = self._graph(size, _LOOK_CALLS)
            return statistics.median(
                self._replay(size, graph, _LOOK_CALLS, turn) for turn in range(_LOOK_REPLAYS)
            )
        except (
            triton.runtime.errors.OutOfResources,
            triton.runtime.errors.PTXASError,
            AssertionError,
            ValueError,
        ) as error:
            raise CannotRun(f"{type(error).__name__}: {str(error)[:200]}") from error

    def compare(self, size: int, configs: Sequence[Config], turns: int) -> list[float]:
        graphs = []
        for config in configs:
            with self._experts.configured(config):
                self._call(size)
                graphs.append(self._graph(size, _CALLS))
        taken: list[list[float]] = [[] for _ in configs]
        for turn in range(turns):
            # Each turn begins with another one, so that none always follows the same.
            for place in range(len(graphs)):
                number = (place + turn) % len(graphs)
                taken[number].append(self._replay(size, graphs[number], _CALLS, turn))
        return [statistics.median(times) for times in taken]

    def _graph(self, size: int, calls: int) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                self._call(size)
        torch.cuda.synchronize()
        graph.replay()
        return graph

    def _replay(self, size: int, graph: torch.cuda.CUDAGraph, calls: int, turn: int) -> float:
        """Microseconds of one call."""
        _, _, choices, topk = self._input(size)
        topk.topk_ids.copy_(choices[turn % len(choices)])
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        return started.elapsed_time(ended) * 1000 / calls


@contextmanager
def _cache_hook(hook: Any) -> Iterator[None]:
    """Triton's hook before it compiles."""
    from triton import knobs

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = hook
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before
