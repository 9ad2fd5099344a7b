"""The stages of a prep, in their order. A new stage is a new file here, a line in STAGES and an
entry in the contract.
"""

from __future__ import annotations

from sgl_admin.stages.base import Context, Stage
from sgl_admin.stages.deep_gemm import DeepGemm
from sgl_admin.stages.flashinfer import FlashInfer
from sgl_admin.stages.inductor import Inductor
from sgl_admin.stages.moe_tune import MoeTune
from sgl_admin.stages.perf import Perf

STAGES: tuple[Stage, ...] = (DeepGemm(), MoeTune(), FlashInfer(), Inductor(), Perf())

__all__ = ["STAGES", "Context", "Stage"]
