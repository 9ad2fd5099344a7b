"""Which of the server's arguments choose kernels; all others (context length, memory, ports, names)
change no cache.
"""

from __future__ import annotations

# By how their names begin.
_KERNEL_FLAGS = (
    "--attention-backend",
    "--prefill-attention-backend",
    "--decode-attention-backend",
    "--sampling-backend",
    "--kv-cache-dtype",
    "--moe-",
    "--fp8-gemm",
    "--fp4-gemm",
    "--quantization",
    "--dtype",
    "--enable-torch-compile",
    "--torch-compile",
    "--speculative-",
    "--disable-cuda-graph",
    "--disable-shared-experts-fusion",
    "--ep-size",
    "--ep",
    "--expert-parallel-size",
    "--page-size",
    "--mamba",
    "--linear-attn",
    "--chunked-prefill-size",
    "--enable-deterministic",
    "--device",
    "--grammar-backend",
    "--json-model-override-args",
)


def kernel_arguments(arguments: tuple[str, ...]) -> list[str]:
    """With their values, sorted."""
    chosen: list[str] = []
    taking = False
    for word in arguments:
        if word.startswith("--"):
            taking = word.partition("=")[0].startswith(_KERNEL_FLAGS)
            if taking:
                chosen.append(word)
        elif taking:
            chosen[-1] += f" {word}"
    return sorted(chosen)
