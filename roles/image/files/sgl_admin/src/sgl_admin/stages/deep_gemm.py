"""DeepGEMM's compiled FP8 matrix kernels (NVIDIA GPUs only)."""

from sgl_admin.stages.base import Stage


class DeepGemm(Stage):
    name = "deep_gemm"
    caches = ("deep_gemm",)
