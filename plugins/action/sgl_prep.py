# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Follows a prep by short round trips and shows its progress, so that a lost connection loses nothing but the view."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase

# At least one line in so many seconds while a prep runs.
_HEARTBEAT_S = 15.0


class ActionModule(ActionBase):
    _requires_connection = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if not key.startswith("poll_")}
        result = self._module(arguments, task_vars)
        shown, shown_at = "", 0.0
        while result.get("running") and not result.get("failed"):
            line = progress(result["job"])
            if line != shown or time.monotonic() - shown_at >= _HEARTBEAT_S:
                self._display.display(f"{(task_vars or {}).get('inventory_hostname', 'localhost')}: {line}")
                shown, shown_at = line, time.monotonic()
            result = self._module({**arguments, "poll_prep_id": result["prep_id"]}, task_vars)
        return result

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(module_name="slice_bench.sglang.sgl_prep", module_args=arguments, task_vars=task_vars)
        return answer


def progress(job: dict[str, Any]) -> str:
    """One line of a job's record: stage, message, seconds so far and, where there is one, the estimate of what is left."""
    left = f", about {job['eta_s']:.0f} s left" if job.get("eta_s") else ""
    return f"{job.get('stage') or 'prep'}: {job.get('message')} ({job.get('elapsed_s', 0):.0f} s{left})"
