"""SGLang's distribution, and those that it brings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from sgl_admin.base import versions

NAME = "sglang"
_FLASHINFER = "flashinfer-python"
# They hold kernels that are built for one version of it.
_FLASHINFER_KERNELS = ("flashinfer-cubin", "flashinfer-jit-cache")
# FlashInfer compares no versions with the first, and reads cubins from the second.
_FLASHINFER_UNCHECKED = ("FLASHINFER_DISABLE_VERSION_CHECK", "FLASHINFER_CUBIN_DIR")
_WRITES_NONE = "PYTHONDONTWRITEBYTECODE"


def version() -> str | None:
    return versions.installed(NAME)


def folder() -> Path | None:
    """Where SGLang would be imported from; None where it is not installed."""
    return versions.package_folder(NAME)


def deep_gemm_version() -> str | None:
    """DeepGEMM's version: its own distribution's, or the one that SGLang builds of it."""
    return (
        versions.installed("deep_gemm")
        or versions.installed("sgl-deep-gemm")
        or versions.installed("sgl-kernel")
        or versions.installed("sglang-kernel")
    )


def mismatch(environment: Mapping[str, str]) -> str | None:
    """Why FlashInfer would not take the kernels that came with it, as jit/env.py of 0.7.2 compares
    versions; None where it would.
    """
    own = versions.installed(_FLASHINFER)
    if own is None or any(environment.get(name) for name in _FLASHINFER_UNCHECKED):
        return None
    for name in _FLASHINFER_KERNELS:
        # A suffix says for which CUDA it was built.
        version = versions.installed(name)
        if version is not None and version.partition("+")[0] != own.partition("+")[0]:
            return (
                f"{_FLASHINFER} is {own} and {name} {version}: FlashInfer refuses the latter, or"
                " downloads and compiles what it holds; take an image in which they agree"
                " (sgl_image_base)"
            )
    return None


def byte_code_environment(folder: Path) -> dict[str, str]:
    """Leads Python to keep byte code below this folder, where the image has none of SGLang and the
    server's user cannot write it beside the sources: every start would compile it once more.
    """
    package = versions.package_folder(NAME)
    if package is None or os.access(package, os.W_OK):
        return {}
    main = package / "launch_server.py"
    if not main.exists() or Path(importlib.util.cache_from_source(str(main))).exists():
        return {}
    # Below a prefix, Python reads none of what is beside the sources: with this variable set, which
    # some images do, each start would compile all packages, 5 s more on an H200.
    writes = {_WRITES_NONE: ""} if os.environ.get(_WRITES_NONE) else {}
    return {"PYTHONPYCACHEPREFIX": str(folder), **writes}
