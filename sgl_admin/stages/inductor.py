"""What the server compiles by torch.compile: TorchInductor's graphs and the Triton kernels among
them.

The server is started and asked, greedy and sampled, at each batch size that it serves: sampling has
kernels of its own, and a warm-up that is only greedy leaves them to the first user.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.base import versions
from sgl_admin.sglang import ENGINE
from sgl_admin.stages.base import Context, Stage


class Inductor(Stage):
    name = "inductor"
    failure_type = "request_failed"

    def skip_reason(self, context: Context) -> str | None:
        return None

    def signature(self, context: Context) -> dict[str, Any]:
        return {
            **super().signature(context),
            "cpu_isa": context.devices.cpu_isa,
            "cuda": versions.cuda_runtime() if context.devices.cuda else None,
            "torch": versions.installed("torch"),
            "triton": versions.installed("triton"),
            "model_identity": context.model.identity,
            "tp": context.request.tp,
            "batch_sizes": list(context.batch_sizes),
            "kernel_arguments": ENGINE.kernel_arguments(context.arguments),
        }

    def run(self, context: Context) -> dict[str, Any]:
        requests = context.warmup.exercise(
            context.batch_sizes,
            lambda done, total: context.progress(done, total, "requests", "warm-up requests"),
        )
        return {"warmup_requests": requests}
