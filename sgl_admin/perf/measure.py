"""The measurements, by torch: the same code for every device. Each is repeated for some seconds,
as a GPU at its power limit is slower than in a burst.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Of a GPU and of a CPU, the rows and columns of the matrices that are multiplied.
_GPU_SIZE, _CPU_SIZE = 8192, 1024
_MIB = 1 << 20
_HBM, _LINK, _HOST = 1024 * _MIB, 256 * _MIB, 128 * _MIB
# A rate is of windows of so many seconds.
_WINDOW_S = 0.25
# A link never exceeds its rate, and the host's other traffic takes some of it at times: on an H100
# windows differed by 15%, and the medians of three runs by 3%.
_LINK_QUANTILE = 0.9
# The first compute capability that multiplies FP8.
_FP8_SINCE = (8, 9)


@dataclass(frozen=True)
class Work:
    """One measurement: `prepare` returns what is repeated, `amount` is what one call does, in the
    measurement's unit for each second.
    """

    name: str
    seconds: float
    amount: float
    prepare: Callable[[], Callable[[], Any]]
    # Why it cannot be measured here.
    missing: str | None = None
    # Of the windows' rates, from the lowest on, the one that counts.
    quantile: float = 0.5


def rate(work: Work, synchronise: Callable[[], None]) -> tuple[float, float]:
    """The rate at the work's quantile, and by how many percent the rates scatter (from the 10th to
    the 90th percentile).
    """
    call = work.prepare()
    call()
    synchronise()
    began = time.perf_counter()
    call()
    synchronise()
    calls = max(1, int(_WINDOW_S / max(time.perf_counter() - began, 1e-6)))
    rates: list[float] = []
    end = time.perf_counter() + work.seconds
    while time.perf_counter() < end or len(rates) < 3:
        began = time.perf_counter()
        for _number in range(calls):
            call()
        synchronise()
        rates.append(calls * work.amount / (time.perf_counter() - began))
    low, chosen, high = (_at(rates, quantile) for quantile in (0.1, work.quantile, 0.9))
    return chosen, 100 * (high - low) / chosen


def _at(rates: list[float], quantile: float) -> float:
    return sorted(rates)[round(quantile * (len(rates) - 1))]


def on_cpu(torch: Any) -> Iterator[Work]:
    size = _CPU_SIZE
    yield Work(
        "gemm_fp32",
        3.0,
        2 * size**3 / 1e12,
        lambda: _gemm(torch, "cpu", torch.float32, size),
    )
    yield _triad(torch, 2.0)


def on_gpus(torch: Any, count: int) -> Iterator[Work]:
    """All of them at once, so that the slowest decides; amounts are of one."""
    devices = [f"cuda:{index}" for index in range(count)]
    size, amount = _GPU_SIZE, 2 * _GPU_SIZE**3 / 1e12
    capability = torch.cuda.get_device_capability(0)
    lacks = None if capability >= _FP8_SINCE else "the GPU does not multiply FP8"

    def each(
        prepare: Callable[..., Callable[[], Any]], *settings: Any
    ) -> Callable[[], Callable[[], None]]:
        """Prepares the same for every device."""
        return lambda: _in_turn([prepare(torch, device, *settings) for device in devices])

    yield Work("gemm_bf16", 10.0, amount, each(_gemm, torch.bfloat16, size))
    yield Work("gemm_fp8", 10.0, amount, each(_gemm_fp8, size), lacks)
    yield Work("hbm_copy", 3.0, 2 * _HBM / 1e9, each(_copy))
    yield Work("hbm_read", 3.0, _HBM / 1e9, each(_read))
    for name, to_device in (("h2d", True), ("d2h", False)):
        yield Work(name, 3.0, _LINK / 1e9, each(_link, to_device), quantile=_LINK_QUANTILE)
    if count > 1:
        bus = 2 * (count - 1) / count * _LINK / 1e9
        yield Work("allreduce", 4.0, bus, lambda: _allreduce(torch, devices))
    yield _triad(torch, 3.0)


def _in_turn(calls: list[Callable[[], Any]]) -> Callable[[], None]:
    def call() -> None:
        for each in calls:
            each()

    return call


def _gemm(torch: Any, device: str, dtype: Any, size: int) -> Callable[[], Any]:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _number in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return lambda: torch.mm(left, right, out=out)


def _gemm_fp8(torch: Any, device: str, size: int) -> Callable[[], Any]:
    left, right = (
        torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _number in range(2)
    )
    scale = torch.ones((), device=device)
    # cuBLASLt takes the right one by columns only.
    return lambda: torch._scaled_mm(
        left, right.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
    )


def _copy(torch: Any, device: str) -> Callable[[], Any]:
    source, target = (torch.zeros(_HBM // 4, device=device) for _number in range(2))
    return lambda: target.copy_(source)


def _read(torch: Any, device: str) -> Callable[[], Any]:
    source = torch.zeros(_HBM // 4, device=device)
    return lambda: source.sum()


def _link(torch: Any, device: str, to_device: bool) -> Callable[[], Any]:
    host = torch.zeros(_LINK // 4, pin_memory=True)
    there = torch.zeros(_LINK // 4, device=device)
    target, source = (there, host) if to_device else (host, there)
    return lambda: target.copy_(source, non_blocking=True)


def _allreduce(torch: Any, devices: list[str]) -> Callable[[], Any]:
    tensors = [torch.zeros(_LINK // 4, device=device) for device in devices]
    return lambda: torch.cuda.nccl.all_reduce(tensors)


def _triad(torch: Any, seconds: float) -> Work:
    def prepare() -> Callable[[], Any]:
        one, two, out = (
            torch.zeros(_HOST // 8, dtype=torch.float64).fill_(number) for number in (1, 2, 0)
        )
        return lambda: torch.add(one, two, alpha=3.0, out=out)

    return Work("triad", seconds, 3 * _HOST / 1e9, prepare)
