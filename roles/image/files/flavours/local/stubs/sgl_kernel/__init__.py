"""A stand-in for sgl_kernel, whose wheels are CUDA only: SGLang on a CPU imports it and calls none
of its operators.

Nothing more may be added here: SGLang takes `sgl_kernel.scalar_type` for proof that the compiled
kernels are there.
"""

import platform

if platform.machine() == "aarch64":
    # On arm64 the server calls the first two at start, where with one rank they have nothing to do,
    # and describes the third to torch: that one is called by more than one rank.
    import torch

    _library = torch.library.Library("sgl_kernel", "DEF")
    _library.define("init_cpu_threads_env(str cpu_ids) -> str")
    _library.impl("init_cpu_threads_env", lambda cpu_ids: "", "CompositeExplicitAutograd")
    _library.define("initialize(int size, int rank) -> ()")
    _library.impl("initialize", lambda size, rank: None, "CompositeExplicitAutograd")
    _library.define("shm_allgather(Tensor data, int dim) -> Tensor")
