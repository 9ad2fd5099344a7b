"""What the watcher sees now, for Prometheus: a file of the run as that of stage `perf`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sgl_admin.base import paths
from sgl_admin.perf import metrics
from sgl_admin.perf.conditions import KINDS, Condition, Moment
from sgl_admin.perf.metrics import Family, Samples

SAMPLED, DISTURBED = "sgl_watch_sample_timestamp_seconds", "sgl_watch_disturbed"
OTHERS, FREQUENCY = "sgl_watch_others_cpu_ratio", "sgl_watch_cpu_frequency_hertz"
CLOCK, THROTTLED = "sgl_watch_gpu_clock_hertz", "sgl_watch_gpu_throttled"
# Of a GPU: the field of its sample, the metric and its help.
_OF_GPU = (
    ("power_w", "sgl_watch_gpu_power_watts", "Power that a GPU draws."),
    ("temperature_c", "sgl_watch_gpu_temperature_celsius", "Temperature of a GPU."),
    (
        "uncorrectable",
        "sgl_watch_gpu_uncorrectable_errors",
        "Uncorrectable ECC errors of a GPU since its driver was loaded.",
    ),
)
_MHZ = 1e6


def path(run_id: str) -> Path:
    return paths.metrics(run_id) / "watch.prom"


def render(moment: Moment, held: Iterable[Condition], others_percent: float | None) -> str:
    families = _families(moment, {each.kind for each in held}, others_percent)
    return metrics.exposition(family for family in families if family[2])


def _families(moment: Moment, held: set[str], others_percent: float | None) -> Iterator[Family]:
    yield SAMPLED, "When the watcher last sampled the host.", [("", moment.wall_s)]
    yield (
        DISTURBED,
        "1 while something of that kind disturbs the host, or while it cannot be watched.",
        [(f'{{kind="{kind}"}}', float(kind in held)) for kind in KINDS],
    )
    if others_percent is not None:
        yield (
            OTHERS,
            "Part of all CPUs that processes outside of the container have.",
            [("", others_percent / 100)],
        )
    frequencies = {"mean": moment.cpus.mean_hz, "least": moment.cpus.least_hz}
    yield (
        FREQUENCY,
        "Frequency of the CPUs.",
        [(f'{{of="{of}"}}', hz) for of, hz in frequencies.items() if hz is not None],
    )
    gpus = moment.sample.gpus
    clocks: Samples = []
    throttled: Samples = []
    for index, gpu in enumerate(gpus):
        throttled += [(f'{{gpu="{index}",reason="{each}"}}', 1.0) for each in gpu.throttles]
        for name, mhz in (("sm", gpu.sm_mhz), ("memory", gpu.memory_mhz)):
            if mhz is not None:
                clocks.append((f'{{gpu="{index}",clock="{name}"}}', _MHZ * mhz))
    yield CLOCK, "Clock of a GPU.", clocks
    yield THROTTLED, "1 while that holds the clocks of a GPU down.", throttled
    for field, name, text in _OF_GPU:
        values = [(index, getattr(gpu, field)) for index, gpu in enumerate(gpus)]
        yield (
            name,
            text,
            [(f'{{gpu="{index}"}}', float(value)) for index, value in values if value is not None],
        )
