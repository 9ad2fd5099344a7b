"""What a server died of while starting, by the last lines of its log."""

from __future__ import annotations

# What a server says as it dies, by what it dies of; the first that is found counts
# (docs/decisions/gpu-stages.md).
_DEATHS = (
    # DeepGEMM says only where it was writing (csrc/jit/compiler.hpp).
    ("insufficient_disk", ("no space left on device", "disk quota exceeded", "out.write(")),
    (
        "oom",
        ("out of memory", "outofmemoryerror", "not enough memory", "cudaerrormemoryallocation"),
    ),
    ("port_busy", ("address already in use",)),
    (
        "compile_failed",
        (
            "ninja exited with status",
            "ninja build failed",
            "failed to build jit module",
            "missingjitcacheerror",
            "nvcc compilation failed",
            "nvrtc error",
            "could not find nvcc",
            "no such file or directory: 'ninja'",
            "could not find cuda installation",
            "failed to find c compiler",
            "ptxaserror",
            "compilationerror",
            "passmanager::run failed",
            "inductorerror",
            "backendcompilerfailed",
        ),
    ),
    # Of the traceback alone: servers log the same words for every model that they cannot load.
    ("unsupported", ("importerror: can not import fa3",)),
)


def error_type(log_tail: list[str]) -> str:
    text = "\n".join(log_tail).lower()
    return next(
        (kind for kind, words in _DEATHS if any(word in text for word in words)),
        "server_start_failed",
    )
