"""The parts of the collection that the front uses itself, so that both say the same."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from slice_bench.playbook import CHECKOUT


def part(name: str) -> ModuleType:
    """A module of the collection's plugins, such as plugin_utils.report_fleet."""
    folder = str(CHECKOUT / ".ansible" / "collections")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"ansible_collections.slice_bench.sglang.plugins.{name}")
