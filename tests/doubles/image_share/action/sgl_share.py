"""Stands for the way by which hosts give and take an image: what was given is a file in the folder
`double_folder`.

The variable `double` of a host may say `give_fails`, or `unreachable` where it no longer
answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        known = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        host = self._task.delegate_to or known["inventory_hostname"]
        told, folder = known["hostvars"][host].get("double", {}), Path(known["double_folder"])
        [item] = self._task.args["items"]
        given = folder / f"{item['name']}.given"
        if self._task.args["state"] == "taken":
            if not given.exists():
                return {**result, "items": {item["name"]: {"status": "absent"}}}
            (folder / f"{host}.image").touch()
            return {**result, "changed": True, "items": {item["name"]: {"status": "loaded"}}}
        with open(folder / "log", "a", encoding="utf-8") as log:
            log.write(f"{host} gives {item['image']}\n")
        if "unreachable" in told:
            raise AnsibleConnectionFailure(told["unreachable"])
        if "give_fails" in told or not (folder / f"{host}.image").exists():
            return {
                **result,
                "failed": True,
                "msg": told.get("give_fails", f"image {item['image']} is not on this host"),
            }
        given.touch()
        return {**result, "changed": True, "items": {item["name"]: {"status": "given"}}}
