"""Versions of installed packages, from their metadata: importing torch to learn its version
would take a second.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path


def installed(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    return _distributions().get(_normal(distribution))


@functools.cache
def _distributions() -> dict[str, str]:
    """Name -> version, from the names of the `.dist-info` folders on sys.path.

    importlib.metadata would say the same, but costs 60 ms to import: a fifth of what a converged
    prep may take.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                project, _, version = name.removesuffix(".dist-info").partition("-")
                found.setdefault(_normal(project), version)
    return found


def cuda_runtime() -> str | None:
    """The CUDA that the installed torch is built for, `13.0`: from its version, `2.11.0+cu130`, or
    its runtime's; None by default.
    """
    local = (installed("torch") or "").partition("+")[2]
    if named := re.fullmatch(r"cu(\d+)(\d)", local):
        return f"{named[1]}.{named[2]}"
    for distribution in (
        "nvidia-cuda-runtime",
        "nvidia-cuda-runtime-cu13",
        "nvidia-cuda-runtime-cu12",
    ):
        if version := installed(distribution):
            return ".".join(version.split(".")[:2])
    return None


def package_folder(package: str) -> Path | None:
    """Where a package that is not imported here would be imported from; None where it is not
    installed.

    Python's own finders are asked: SGLang's images install SGLang editable, which leaves no folder
    of it on sys.path.
    """
    import importlib.util

    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
