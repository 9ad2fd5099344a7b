"""DeepGEMM's compiled FP8 matrix kernels (NVIDIA GPUs only).

The server compiles them for every shape of its model while it starts; a model without block-scaled
FP8 weights needs none.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.records.caches import cache_files
from sgl_admin.sglang import ENGINE
from sgl_admin.stages.base import Context, Stage
from sgl_admin.stages.inputs import IGNORED_BY_KERNELS, Inputs


class DeepGemm(Stage):
    name = "deep_gemm"
    depends_on = Inputs(
        software={"deep_gemm": ENGINE.deep_gemm_version},
        ignored_config=IGNORED_BY_KERNELS,
        inert_arguments=ENGINE.lengths,
    )

    def run(self, context: Context) -> dict[str, Any]:
        context.progress(0, 1, "servers", "the server starts, and compiles DeepGEMM's kernels")
        context.warmup.start()
        return {
            "server_ready_s": context.warmup.ready_s,
            "kernels": sum(path.name.endswith(".cubin") for path, _ in cache_files("deep_gemm")),
        }
