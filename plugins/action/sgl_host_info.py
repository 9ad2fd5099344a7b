# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs the module without Python's garbage collector on the controller. To pack a module, Ansible
makes a syntax tree of each file that it imports, and the collector would search all that Ansible
has in memory several times meanwhile (tests/bench/README.md).
"""

from __future__ import annotations

import gc
from typing import Any

from ..plugin_utils.told_action import ToldAction


class ActionModule(ToldAction):
    def act(self) -> dict[str, Any]:
        # This process ends with the task.
        gc.disable()
        answer: dict[str, Any] = self._execute_module(task_vars=self._vars)
        return answer
