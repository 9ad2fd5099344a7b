"""FlashInfer's attention and sampling kernels, and SGLang's own JIT kernels (NVIDIA GPUs only)."""

from sgl_admin.stages.base import Stage


class FlashInfer(Stage):
    name = "flashinfer"
    caches = ("flashinfer", "tvm_ffi")
