"""The parts of the collection that the front uses itself, so that both say the same."""

from __future__ import annotations

import sys
from types import ModuleType

from slice_bench.playbook import CHECKOUT


def report_fleet() -> ModuleType:
    """What sums up a report."""
    _findable()
    from ansible_collections.slice_bench.sglang.plugins.plugin_utils import report_fleet

    return report_fleet


def docker_cli() -> ModuleType:
    """What asks Docker, and says what its failures mean."""
    _findable()
    from ansible_collections.slice_bench.sglang.plugins.module_utils import _docker_cli

    return _docker_cli


def profile_files() -> ModuleType:
    """What finds and reads profiles."""
    _findable()
    from ansible_collections.slice_bench.sglang.plugins.plugin_utils import profile_files

    return profile_files


def _findable() -> None:
    folder = str(CHECKOUT / ".ansible" / "collections")
    if folder not in sys.path:
        sys.path.insert(0, folder)
