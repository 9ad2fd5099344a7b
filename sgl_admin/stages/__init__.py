"""The stages of a prep, in their order. A new stage is a new file here and a line in STAGES."""

from __future__ import annotations

from sgl_admin.stages.base import Context, Stage
from sgl_admin.stages.deep_gemm import DeepGemm
from sgl_admin.stages.flashinfer import FlashInfer
from sgl_admin.stages.inductor import Inductor
from sgl_admin.stages.moe_tune import MoeTune

# The exit code of a stage that failed is 10 plus its place here.
STAGES: tuple[Stage, ...] = (DeepGemm(), MoeTune(), FlashInfer(), Inductor())
FIRST_STATUS_CODE = 10

__all__ = ["FIRST_STATUS_CODE", "STAGES", "Context", "Stage"]
