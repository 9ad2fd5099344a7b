"""SGLang's distribution, and those that it brings."""

from __future__ import annotations

from pathlib import Path

from sgl_admin.base import versions

NAME = "sglang"


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
