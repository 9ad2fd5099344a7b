"""Makes `import ansible_collections.slice_bench.sglang...` mean this checkout in every test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest_plugins = ["tests.hosts.fixtures"]

ROOT = Path(__file__).resolve().parent
COLLECTIONS = ROOT / ".ansible" / "collections"

# ansible_collections is a namespace package: this adds to the one that the Python package "ansible"
# installs, and comes before it.
sys.path.insert(0, str(COLLECTIONS))


def pytest_configure() -> None:
    link = COLLECTIONS / "ansible_collections" / "slice_bench" / "sglang"
    if link.resolve() != ROOT:
        raise pytest.UsageError(
            f"{link} does not lead to this checkout: run `make setup`, which makes that link."
        )
