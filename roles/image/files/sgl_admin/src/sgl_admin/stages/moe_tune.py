"""Tuned launch configurations of the fused mixture-of-experts kernel (NVIDIA GPUs only)."""

from sgl_admin.stages.base import Context, Stage


class MoeTune(Stage):
    name = "moe_tune"
    caches = ("moe_configs",)

    @property
    def option(self) -> str:
        return "moe"

    def skip_reason(self, context: Context) -> str | None:
        return super().skip_reason(context) or (None if context.model.has_experts else "no_moe_layers")
