# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Begins a smoke in the container and follows it by short polls, showing each test as it ends."""

from __future__ import annotations

import time
from typing import Any

from ..module_utils._prep_client import AdminError
from ..module_utils._smoke_client import SmokeClient, failure, test_line
from ..plugin_utils.admin_action import BROKEN_ANSWER, AdminAction, breaks_the_contract

_HEARTBEAT_S = 10.0
_POLL_S = 2.0
ARGUMENT_SPEC: dict[str, Any] = {
    "container": {"type": "str", "default": "sglang-dev"},
    "scenario": {"type": "dict", "required": True},
    "server_timeout": {"type": "float", "default": 1800},
}


class ActionModule(AdminAction):
    def act(self) -> dict[str, Any]:
        _ignored, given = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        if self._task.check_mode:
            return {"changed": True, "msg": "the smoke would be run"}
        client = SmokeClient(self.call, given["container"])
        try:
            summary = self._follow(client, given)
            problem = failure(summary)
            outcome = {
                "changed": True,
                "summary": summary,
                "path": summary["summary"]["container_path"],
                "path_on_host": summary["summary"].get("host_path"),
                "tests": {
                    test["name"]: test["error"]["kind"] if test["error"] else test["status"]
                    for test in summary["tests"]
                },
                "exit_code": summary["exit_code"] if isinstance(summary["exit_code"], int) else 1,
            }
        except AdminError as error:
            return {"failed": True, "msg": str(error), "exit_code": error.exit_code}
        except BROKEN_ANSWER as error:
            return {"failed": True, "msg": breaks_the_contract(error)}
        return {**outcome, "failed": True, "msg": problem} if problem else outcome

    def _follow(self, client: SmokeClient, given: dict[str, Any]) -> dict[str, Any]:
        summary = client.start(given["scenario"], given["server_timeout"])
        shown, began = 0, time.monotonic()
        shown_at = began
        while True:
            ended = [test for test in summary["tests"] if test["status"] != "not_run"]
            for test in ended[shown:]:
                self.say(test_line(test))
            if len(ended) > shown:
                shown, shown_at = len(ended), time.monotonic()
            if summary["state"] != "running":
                return summary
            if time.monotonic() - shown_at >= _HEARTBEAT_S:
                shown_at = time.monotonic()
                waiting = (
                    "waiting for the server to become healthy"
                    if not shown and summary["model"] is None
                    else "waiting for an answer"
                )
                self.say(f"{summary['smoke_id']}: {waiting} ({shown_at - began:.0f} s)")
            summary = client.follow(summary["smoke_id"], _POLL_S)
