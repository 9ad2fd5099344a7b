# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes one line for each call to a host, a module or a plain command, into the file that
SGL_BENCH_CALLS names.

Counted where an action plugin hands it to the host, so one that calls several times counts as many,
and a task that never leaves the controller (set_fact, debug, include_tasks) counts nothing. Task
results alone would tell neither.
"""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: count_modules
type: aggregate
short_description: Count the calls to hosts
description: Writes their names, one a line, into a file.
requirements: [the environment variable SGL_BENCH_CALLS, the path of that file]
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "count_modules"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        path = os.environ.get("SGL_BENCH_CALLS")
        if path is None:
            self.disabled = True
            return
        execute, command = ActionBase._execute_module, ActionBase._low_level_execute_command
        # The commands by which Ansible carries a module over are part of that module's call.
        inside = False

        def count(name: str) -> None:
            # The workers are forks of the process that loads this: each appends its line in one
            # write.
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, f"{name}\n".encode())
            finally:
                os.close(descriptor)

        def module(
            self: ActionBase, module_name: str | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            nonlocal inside
            count(module_name or self._task.action)
            inside = True
            try:
                return execute(self, module_name, *args, **kwargs)
            finally:
                inside = False

        def plain_command(self: ActionBase, *args: Any, **kwargs: Any) -> Any:
            if not inside:
                count(self._task.action)
            return command(self, *args, **kwargs)

        ActionBase._execute_module = module
        ActionBase._low_level_execute_command = plain_command
