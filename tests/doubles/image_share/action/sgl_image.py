"""Stands for a host's Docker, where an image is a file in the folder `double_folder` and is built
in no time.

The variable `double` of a host may say `kind`, by which its inputs differ, `image`, what the image
is called there, and `build_fails`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

INPUTS_LABEL = "org.slice-bench.image-inputs"


class ActionModule(ActionBase):
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        known = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        host, told, folder = (
            known["inventory_hostname"],
            known.get("double", {}),
            Path(known["double_folder"]),
        )
        inputs = f"sha256:{told.get('kind', 'a') * 64}"
        there = folder / f"{host}.image"
        if there.exists():
            return {
                **result,
                "image": {"name": self._task.args["name"], "labels": {INPUTS_LABEL: inputs}},
                "inputs": inputs,
            }
        if self._task.check_mode:
            return {**result, "changed": True, "image": None, "inputs": inputs}
        with open(folder / "log", "a", encoding="utf-8") as log:
            log.write(f"{host} builds\n")
        if "build_fails" in told:
            return {**result, "failed": True, "msg": told["build_fails"], "inputs": inputs}
        there.touch()
        return {
            **result,
            "changed": True,
            "image": {"name": self._task.args["name"], "labels": {INPUTS_LABEL: inputs}},
            "inputs": inputs,
        }
