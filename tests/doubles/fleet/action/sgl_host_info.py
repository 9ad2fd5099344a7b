"""Stands for the look at a host before anything changes: a host is fine, is refused, or does not
answer, as its variable `double` says.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        told = (task_vars or {}).get("double", {})
        if "unreachable" in told:
            raise AnsibleConnectionFailure(told["unreachable"])
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        if "refused" in told:
            return {**result, "failed": True, "msg": told["refused"]}
        # From an earlier run, which a host may have been ready in.
        run = {
            "live": True,
            "run_id": None,
            "metrics_ready": True,
            "manifest": MANIFEST,
            "paths": MANIFEST["paths"]["container"],
        }
        return {
            **result,
            "tree": {
                "foreign": [],
                "incomplete": False,
                "paths": {"telemetry": "/t", "profiles": "/p"},
            },
            "devices": {"count": 1, "name": "NVIDIA GH200 480GB", "cuda": True},
            "run": run if told.get("ready_before") else {"live": False, "run_id": None},
            "model": {"identity": None, "path": "/models/x"},
        }


MANIFEST = {
    "paths": {
        "container": {"run_dir": "/telemetry/container_runs/x", "log_file": "/telemetry/logs/x.log"}
    },
    "services": {"prometheus": {"url": "http://127.0.0.1:9090"}},
}
