"""A double of the exporters of a host with two GPUs on which a server works.

It stands for SGLang with data parallelism, priority scheduling and metrics of all its schedulers
(labels of SGLang 0.5.23; with the prefix `sglang_` as a newer client library names them), for
dcgm-exporter 4.4.1-4.5.2 and for node_exporter 1.11: no GPU is here. The names and labels are
theirs, the values are made up so that a query has one right answer; a counter grows by its rate
from the start on.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Series:
    """`rate` is what a counter grows by in a second."""

    name: str
    labels: str
    value: float
    rate: float = 0.0


_MODEL = 'model_name="m",engine_type="unified"'
# Of two schedulers of the first replica and one of the second.
_RANKS = [
    f'{_MODEL},tp_rank="{tp}",pp_rank="0",moe_ep_rank="{tp}",dp_rank="{dp}"'
    for tp, dp in ((0, 0), (1, 0), (2, 1))
]
# Each replica's total, which the label priority="" marks, and its shares.
_REQUESTS = [
    (_RANKS[rank], priority, running, queued)
    for rank, counts in (
        (0, ((3, 2), (2, 1), (1, 1))),
        (1, ((3, 2), (2, 1), (1, 1))),
        (2, ((4, 0), (4, 0), (0, 0))),
    )
    for priority, (running, queued) in zip(("", "1", "5"), counts, strict=True)
]
# Requests a second whose first token came within so many seconds.
_FIRST_TOKEN = {"0.1": 5.0, "0.5": 9.0, "1.0": 10.0, "+Inf": 10.0}


def sglang(prefix: str) -> list[Series]:
    """A server's series, with the prefix `sglang:` or `sglang_`."""
    found = [
        *(
            Series("prompt_tokens_total", f'{_MODEL},is_streaming="{streaming}"', 1000, 50)
            for streaming in ("true", "false")
        ),
        *(
            Series("generation_tokens_total", f'{_MODEL},is_streaming="{streaming}"', 500, 20)
            for streaming in ("true", "false")
        ),
        *(
            Series("num_running_reqs", f'{labels},priority="{priority}"', running)
            for labels, priority, running, _ in _REQUESTS
        ),
        *(
            Series("num_queue_reqs", f'{labels},priority="{priority}"', queued)
            for labels, priority, _, queued in _REQUESTS
        ),
        *(
            Series("token_usage", labels, usage)
            for labels, usage in zip(_RANKS, (0.4, 0.4, 0.25), strict=True)
        ),
        *(
            Series(
                "time_to_first_token_seconds_bucket",
                f'{_MODEL},is_streaming="{streaming}",le="{edge}"',
                0,
                rate / 2,
            )
            for edge, rate in _FIRST_TOKEN.items()
            for streaming in ("true", "false")
        ),
    ]
    return [
        Series(f"{prefix}{series.name}", series.labels, series.value, series.rate)
        for series in found
    ]


def dcgm() -> list[Series]:
    values = {
        "DCGM_FI_DEV_GPU_UTIL": (90, 30),
        "DCGM_FI_DEV_FB_USED": (60000, 20000),
        "DCGM_FI_DEV_FB_FREE": (20000, 60000),
        "DCGM_FI_DEV_POWER_USAGE": (500, 120),
        "DCGM_FI_DEV_GPU_TEMP": (61, 40),
        "DCGM_FI_DEV_XID_ERRORS": (0, 79),
    }
    labels = (
        'gpu="{0}",UUID="GPU-{0}",pci_bus_id="00000009:0{0}:00.0",device="nvidia{0}",modelName="NVIDIA'
        ' GH200 480GB",Hostname="h"'
    )
    return [
        Series(name, labels.format(gpu), value)
        for name, both in values.items()
        for gpu, value in enumerate(both)
    ]


def node() -> list[Series]:
    """Two processors, of which one works and one waits for a disk; a quarter of the memory used; a
    folder outside the roots is full; stage perf warned.
    """
    busy = {"user": (0.75, 0.0), "system": (0.25, 0.0), "idle": (0.0, 0.5), "iowait": (0.0, 0.5)}
    roots = {
        "/telemetry": 50,
        "/profiles": 50,
        "/models": 20,
        "/home/devuser/.cache/huggingface": 20,
        "/etc/hosts": 0,
    }
    disk = 'device="/dev/sda1",device_error="",fstype="ext4",mountpoint="{}"'
    return [
        *(
            Series("node_cpu_seconds_total", f'cpu="{cpu}",mode="{mode}"', 100, rates[cpu])
            for mode, rates in busy.items()
            for cpu in (0, 1)
        ),
        Series("node_memory_MemTotal_bytes", "", 8e9),
        Series("node_memory_MemAvailable_bytes", "", 6e9),
        *(Series("node_filesystem_size_bytes", disk.format(root), 1e11) for root in roots),
        *(
            Series("node_filesystem_avail_bytes", disk.format(root), free * 1e9)
            for root, free in roots.items()
        ),
        *_perf(),
        *(
            Series("sgl_watch_disturbed", f'kind="{kind}"', value)
            for kind, value in (("cpu", 1), ("throttled", 0))
        ),
    ]


def _perf(expires_s: float = 1e11) -> list[Series]:
    """What node_exporter reads of stage perf: a copy that is 6% slower than before."""
    shortfall = (("gemm_bf16", "data_sheet", -0.2), ("hbm_copy", "history", 0.06))
    return [
        *(
            Series("sgl_perf_verdict", f'verdict="{verdict}"', value)
            for verdict, value in (("pass", 0), ("warn", 1), ("fail", 0))
        ),
        Series("sgl_perf_expires_timestamp_seconds", "", expires_s),
        Series("sgl_perf_operations_per_second", 'measurement="gemm_bf16"', 7.8e14),
        Series("sgl_perf_bytes_per_second", 'measurement="hbm_copy"', 4e12),
        Series("sgl_perf_bytes_per_second", 'measurement="h2d"', 5.5e10),
        Series("sgl_perf_tokens_per_second", 'measurement="decode"', 170),
        Series("sgl_perf_duration_seconds", 'measurement="first_token"', 0.02),
        *(
            Series(
                "sgl_perf_shortfall_ratio",
                f'measurement="{measurement}",reference="{reference}"',
                ratio,
            )
            for measurement, reference, ratio in (*shortfall, ("hbm_copy", "data_sheet", -0.1))
        ),
    ]


class MetricsExporter:
    """`with MetricsExporter(series) as exporter:` serves them at exporter.port until the block
    ends.
    """

    def __init__(self, series: list[Series]) -> None:
        self.series = series
        self._began = time.monotonic()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port: int = self._server.server_port

    def __enter__(self) -> MetricsExporter:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def page(self) -> str:
        elapsed_s = time.monotonic() - self._began
        lines = [
            f"{series.name}{{{series.labels}}} {series.value + series.rate * elapsed_s}"
            for series in self.series
        ]
        return "\n".join(lines) + "\n"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(double.page().encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
