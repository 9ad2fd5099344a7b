"""What the server compiles by torch.compile: TorchInductor's graphs and the Triton kernels among
them.

The server is started and asked, greedy and sampled, at each batch size that it serves: sampling has
kernels of its own, and a warm-up that is only greedy leaves them to the first user.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.base import versions
from sgl_admin.stages.base import Context, Stage
from sgl_admin.stages.inputs import Inputs


class Inductor(Stage):
    name = "inductor"
    depends_on = Inputs(
        software={
            "torch": lambda: versions.installed("torch"),
            "triton": lambda: versions.installed("triton"),
        },
        facts={
            "cpu_isa": lambda context: context.devices.cpu_isa,
            "batch_sizes": lambda context: list(context.batch_sizes),
        },
    )
    failure_type = "request_failed"

    def skip_reason(self, context: Context) -> str | None:
        return None

    def run(self, context: Context) -> dict[str, Any]:
        requests = context.warmup.exercise(
            context.batch_sizes,
            lambda done, total: context.progress(done, total, "requests", "warm-up requests"),
        )
        return {"warmup_requests": requests}
