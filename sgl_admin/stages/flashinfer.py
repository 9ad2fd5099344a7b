"""FlashInfer's attention and sampling kernels, SGLang's own JIT kernels, and those in TileLang and
CuTe (NVIDIA GPUs only).

They are built when they are first called: those of sampling not before a request that samples.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.base import versions
from sgl_admin.records.caches import cache_files
from sgl_admin.sglang import ENGINE
from sgl_admin.stages.base import Context, Stage
from sgl_admin.stages.inputs import IGNORED_BY_KERNELS, Inputs


class FlashInfer(Stage):
    name = "flashinfer"
    depends_on = Inputs(
        software={
            "flashinfer": lambda: versions.installed("flashinfer-python"),
            "tvm_ffi": lambda: versions.installed("apache-tvm-ffi"),
            "cutlass_dsl": lambda: versions.installed("nvidia-cutlass-dsl"),
            "tilelang": lambda: versions.installed("tilelang"),
        },
        ignored_config=IGNORED_BY_KERNELS,
        inert_arguments=ENGINE.lengths,
    )
    failure_type = "request_failed"

    def run(self, context: Context) -> dict[str, Any]:
        sent = context.warmup.exercise(
            context.batch_sizes[:1],
            lambda done, total: context.progress(
                done, total, "requests", "greedy and sampled requests"
            ),
        )
        return {
            "warmup_requests": sent,
            "first_request_s": context.warmup.first_request_s,
            "first_sampled_request_s": context.warmup.first_sampled_request_s,
            "libraries": sum(
                path.suffix == ".so" for cache in self.caches for path, _ in cache_files(cache)
            ),
        }
