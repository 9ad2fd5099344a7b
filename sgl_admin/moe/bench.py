"""The fused experts on the GPU: which kernels a configuration launches, and how long it takes.

Runs in the tuner's own process: it imports torch, Triton and the installed engine.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton

from sgl_admin.base.engine import Release
from sgl_admin.moe import operands
from sgl_admin.moe.compiling import Launch
from sgl_admin.moe.operands import Tensor
from sgl_admin.moe.search import CannotRun
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.space import DOWN, UP, UP_SORTED, USE_TMA, Config, Trial
from sgl_admin.moe.tables import Pair

# How a token's experts are drawn, in turn: all as likely as the others, and some of them sought
# after, as a trained router has it (the spread of log-normal popularity).
ROUTING = ("uniform", "skewed")
_SKEW = 1.0
# Choices of experts: each batch makes its own, and their weights must not stay in the GPU's cache.
_DRAWS = 10
_LOOK_CALLS, _LOOK_REPLAYS = 3, 3
# Calls in one CUDA graph: enough that its own start does not count, and no more than this takes.
_FEWEST_CALLS, _GRAPH_US = 2, 4000.0
_EXPERTS_AT_ONCE = 64
_ERRORS = (
    triton.runtime.errors.OutOfResources,
    triton.runtime.errors.PTXASError,
    triton.CompilationError,
    AssertionError,
    ValueError,
)
# Of no space, and never loaded: which kernels it would launch tells batch sizes apart.
_PROBE = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 32,
    "BLOCK_SIZE_K": 64,
    "GROUP_SIZE_M": 2,
    "num_warps": 4,
    "num_stages": 1,
}
# Of no space either: what a call compiles beside its configured kernels is warmed with it, and then
# no configuration is loaded already, nor the probe.
_WARM = {**_PROBE, "GROUP_SIZE_M": 1}

Tables = Mapping[str, tuple[Mapping[int, Config] | None, Mapping[int, Config] | None]]


@dataclass
class _Input:
    """Tokens, a copy to restore them from, and choices of experts."""

    tokens: torch.Tensor
    restored: torch.Tensor
    choices: list[Any]


class FusedExperts:
    """One layer's experts with random weights, called as the server calls them."""

    def __init__(self, shape: MoeShape, release: Release, rivals: Tables) -> None:
        """`rivals`: tables of both projections by name; of None are the engine's own defaults.
        Raises torch.cuda.OutOfMemoryError.
        """
        self._shape = shape
        self._device = torch.device("cuda", torch.cuda.current_device())
        torch.manual_seed(0)
        everywhere = shape.routed * shape.ranks + shape.shared
        self._experts = release.fused_experts(shape.lookup.E, everywhere, shape.gated)
        self._tables = rivals
        self._weights = self._make_weights()
        self._inputs: dict[int, _Input] = {}
        # What the kernels of one size, height and layout are launched with.
        self._kept: tuple[Any, list[list[dict[str, Any]]]] = (None, [])
        self._known: dict[str, Launch] = {}

    def _make_weights(self) -> dict[str, Any]:
        wanted = operands.of(self._shape)
        made: dict[str, Any] = dict(wanted.arguments)
        for name, tensor in wanted.weights.items():
            weight = torch.empty(
                tensor.shape, dtype=getattr(torch, tensor.dtype), device=self._device
            )
            # Some experts at a time: a whole layer in 16 bits would not always fit beside it.
            for part in weight.split(_EXPERTS_AT_ONCE):
                part.copy_(self._random(tensor, part.shape).to(weight.dtype))
            made[name] = weight
        for name, tensor in wanted.scales.items():
            made[name] = self._scale(tensor)
        return made

    def _random(self, tensor: Tensor, shape: torch.Size) -> torch.Tensor:
        """Normal, or integers of the whole range."""
        if not tensor.is_integer:
            return torch.randn(shape, dtype=torch.float16, device=self._device).mul_(tensor.scale)
        dtype = getattr(torch, tensor.dtype)
        limits = torch.iinfo(dtype)
        return torch.randint(limits.min, limits.max + 1, shape, dtype=dtype, device=self._device)

    def _scale(self, tensor: Tensor) -> torch.Tensor:
        """Each of another size, or, where there is one number for all, just that."""
        if tensor.shape == (1,):
            return torch.ones(1, device=self._device)
        if tensor.is_integer:
            return self._random(tensor, torch.Size(tensor.shape))
        numbers = (torch.rand(tensor.shape, device=self._device) + 0.5).mul_(tensor.scale)
        return numbers.to(getattr(torch, tensor.dtype))

    def _input(self, size: int) -> _Input:
        if size not in self._inputs:
            # Those of one batch size at a time: the large ones are large.
            self._inputs.clear()
            self._kept = (None, [])
            shape = self._shape
            dtype = getattr(torch, shape.torch_dtype)
            tokens = torch.randn((size, shape.hidden_size), dtype=dtype, device=self._device)
            everywhere = shape.routed * shape.ranks
            weights = torch.full(
                (size, shape.rows_per_token), 1 / shape.rows_per_token, device=self._device
            )
            logits = torch.zeros((size, everywhere), device=self._device)
            self._inputs[size] = _Input(
                tokens,
                tokens.clone(),
                [
                    self._experts.topk_output(weights, self._draw(size, number), logits)
                    for number in range(_DRAWS)
                ],
            )
        return self._inputs[size]

    def _draw(self, size: int, number: int) -> torch.Tensor:
        shape = self._shape
        routed, everywhere = shape.routed, shape.routed * shape.ranks
        # Of a Gumbel distribution, so that the likelihood of an expert is its popularity.
        noise = -torch.log(-torch.log(torch.rand((size, everywhere), device=self._device)))
        if ROUTING[number % len(ROUTING)] == "skewed":
            noise = noise + _SKEW * torch.randn(everywhere, device=self._device)
        chosen = noise.topk(shape.chosen, dim=1).indices
        # As SGLang's dispatcher names the experts of other ranks.
        chosen[chosen >= routed] = -1
        # Every token takes the shared experts, which are the last ones.
        always = torch.arange(routed, shape.lookup.E, device=self._device).expand(
            size, shape.shared
        )
        return torch.cat((chosen, always), dim=1).to(torch.int32).contiguous()

    def _call(self, size: int, draw: int = 0) -> None:
        given = self._input(size)
        # In place is how the server calls; without fresh tokens the values would run away.
        given.tokens.copy_(given.restored)
        weights = self._weights
        self._experts.call(
            given.tokens, weights["w1"], weights["w2"], given.choices[draw % _DRAWS],
            **{name: value for name, value in weights.items() if name not in ("w1", "w2")},
        )  # fmt: skip

    def _launched_by(self, size: int, pair: Pair) -> AbstractContextManager[None]:
        return self._experts.reading({size: pair.up}, {size: pair.down})

    def warm(self, sizes: Sequence[int]) -> None:
        """Everything beside the tuned kernel is compiled now: SGLang's and torch's own just-in-time
        kernels build behind a lock.
        """
        for size in sizes:
            self.check(size, Pair(_WARM, _WARM))

    # --- kernels

    def group(self, size: int) -> str:
        trials = [Trial(part, _PROBE) for part in (UP, DOWN)]
        keys = sorted(key for trial in trials for key in self.launches(size, trial))
        return hashlib.sha256("".join(keys).encode()).hexdigest()

    def launches(self, size: int, trial: Trial) -> list[str]:
        """The Triton kernels that are not loaded yet, by their keys; nothing is compiled or
        launched. Raises CannotRun.
        """
        found: list[Launch] = []

        # Triton names the arguments.
        def hook(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
            found.append(
                Launch(f"{fn.name} {key}", fn.module, fn.name, compile["specialization_data"])
            )
            # Neither compile nor launch.
            return True

        with _refusals():
            recorded = self._recorded(size, trial)[0]
            with _cache_hook(hook):
                self._experts.launch(recorded, _keywords(trial.config))
        self._known.update({launch.key: launch for launch in found})
        return [launch.key for launch in found]

    def known(self, key: str) -> Launch:
        return self._known[key]

    def _recorded(self, size: int, trial: Trial) -> list[dict[str, Any]]:
        """What the kernel of a trial is launched with, for some choices of experts."""
        by_tma = bool(trial.config.get(USE_TMA))
        down_tma = by_tma if trial.part == DOWN else trial.part == UP_SORTED
        up_tma = by_tma and trial.part != DOWN
        what = (size, trial.config["BLOCK_SIZE_M"], up_tma, down_tma)
        if self._kept[0] != what:
            # What is recorded of another one is let go first.
            self._kept = (None, [])
            up = {**_PROBE, "BLOCK_SIZE_M": what[1]}
            pair = Pair({**up, USE_TMA: True} if up_tma else up, {**up, USE_TMA: down_tma})
            calls = []
            for draw in range(_LOOK_CALLS):
                with self._experts.recorded() as kernels, self._launched_by(size, pair):
                    self._call(size, draw)
                # No kernel has written what the down projection reads. SGLang 0.5.23 hands it over
                # in FP8, for which torch draws no numbers.
                read = kernels[1]["A"]
                read.copy_(torch.randn(read.shape, device=read.device))
                calls.append(kernels)
            self._kept = (what, calls)
        return [kernels[1 if trial.part == DOWN else 0] for kernels in self._kept[1]]

    def rivals(self, size: int) -> dict[str, Pair]:
        found = {}
        for name, (up, down) in self._tables.items():
            with self._experts.recorded() as kernels, self._experts.reading(up, down):
                self._call(size)
            found[name] = Pair(*(_with_tma(recorded) for recorded in kernels[:2]))
        return found

    # --- times

    def look(self, size: int, trial: Trial, hopeless_us: float) -> float:
        recorded = self._recorded(size, trial)
        config = _keywords(trial.config)

        def call(number: int) -> None:
            self._experts.launch(recorded[number % len(recorded)], config)

        with _refusals():
            call(0)
            us = self._once(call)
            if us > hopeless_us:
                return us
            graph = self._graph(call, _LOOK_CALLS)
            return statistics.median(
                self._replay(graph) / _LOOK_CALLS for _ in range(_LOOK_REPLAYS)
            )

    def check(self, size: int, pair: Pair) -> None:
        with _refusals(), self._launched_by(size, pair):
            self._call(size)
            torch.cuda.synchronize()

    def compare(self, size: int, pairs: Sequence[Pair], turns: int) -> list[list[float]]:
        # The looks' tensors are large.
        self._kept = (None, [])

        def call(number: int) -> None:
            self._call(size, number)

        pool = torch.cuda.graph_pool_handle()
        graphs: list[torch.cuda.CUDAGraph] = []
        calls = _DRAWS
        for pair in pairs:
            with self._launched_by(size, pair):
                if not graphs:
                    # The graphs of a turn are of one length.
                    calls = max(_FEWEST_CALLS, min(_DRAWS, int(_GRAPH_US / self._once(call))))
                graphs.append(self._graph(call, calls, pool))
        taken: list[list[float]] = [[] for _ in pairs]
        for turn in range(turns):
            # Each turn begins with another one, so that none always follows the same.
            for place in range(len(graphs)):
                number = (place + turn) % len(graphs)
                taken[number].append(self._replay(graphs[number]) / calls)
        return taken

    def _once(self, call: Callable[[int], None]) -> float:
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started.record()
        call(0)
        ended.record()
        torch.cuda.synchronize()
        return float(started.elapsed_time(ended)) * 1000

    def _graph(
        self, call: Callable[[int], None], calls: int, pool: Any = None
    ) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Graphs that are never replayed at once share their memory.
        with torch.cuda.graph(graph, pool=pool):
            for number in range(calls):
                call(number)
        torch.cuda.synchronize()
        graph.replay()
        return graph

    def _replay(self, graph: torch.cuda.CUDAGraph) -> float:
        """Microseconds of a graph."""
        return self._once(lambda _: graph.replay())


def _keywords(config: Config) -> Config:
    """What the kernel takes: USE_TMA is the engine's."""
    return {name: value for name, value in config.items() if name != USE_TMA}


def _with_tma(recorded: Mapping[str, Any]) -> Config:
    """The configuration of a recorded kernel as a file has it."""
    config = _keywords(recorded["config"])
    return {**config, USE_TMA: True} if recorded.get("b_use_tma") else config


@contextmanager
def _refusals() -> Iterator[None]:
    """Raises CannotRun where a kernel is refused and the GPU goes on."""
    try:
        yield
    except _ERRORS as error:
        raise CannotRun(f"{type(error).__name__}: {str(error)[:200]}") from error
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Fails too where the kernel was not refused but broke what all of the process shares.
        torch.cuda.synchronize()
        raise CannotRun(f"{type(error).__name__}: {str(error)[:200]}") from error


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
