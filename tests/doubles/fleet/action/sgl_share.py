"""Stands for the relay: what a host gives is a file in one folder, and what is taken becomes a file
of the host that takes it.

A host whose variable `double` says `share_unreachable` is away when it is to give.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

BYTES = 1000


class ActionModule(ActionBase):
    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        known = task_vars or {}
        result: dict[str, Any] = {**super().run(tmp, task_vars), "changed": False}
        base = Path(known["double_folder"])
        host = self._task.delegate_to or known["inventory_hostname"]
        if away := known["hostvars"][host]["double"].get("share_unreachable"):
            raise AnsibleConnectionFailure(away)
        self._host = base / host
        self._store = base / "store"
        self._store.mkdir(exist_ok=True)
        self._sizes = [int(size) for size in known.get("double_sizes", [])]
        do = self._give if self._task.args["state"] == "given" else self._take
        return {**result, "items": {item["name"]: do(item) for item in self._task.args["items"]}}

    def _give(self, item: dict[str, Any]) -> dict[str, Any]:
        if self._sizes and item["stage"] == "moe_tune":
            return self._give_sizes(item)
        finished, part = (
            (self._host / item["stage"]).exists(),
            (self._host / f"{item['stage']}-part").exists(),
        )
        if (self._store / item["name"]).exists():
            return {"status": "there", "digest": digest(item["name"])}
        if not finished and not part:
            return {"status": "unfinished"}
        name = item["name"] if finished else f"{item['name']}-partial"
        (self._store / name).touch()
        return {"status": "given", "digest": digest(name), "bytes": BYTES, "finished": finished}

    def _give_sizes(self, item: dict[str, Any]) -> dict[str, Any]:
        have = sorted(path.name for path in self._host.glob("moe_tune-size-*"))
        finished = len(have) == len(self._sizes)
        name = item["name"] if finished or item.get("whole") is False else f"{item['name']}-partial"
        (self._store / name).write_text("\n".join(have), encoding="utf-8")
        return {"status": "given", "digest": digest(name), "bytes": BYTES, "finished": finished}

    def _take(self, item: dict[str, Any]) -> dict[str, Any]:
        for name, finished in ((item["name"], True), (f"{item['name']}-partial", False)):
            if (self._store / name).exists():
                self._host.mkdir(exist_ok=True)
                if self._sizes and item["stage"] == "moe_tune":
                    sizes = (self._store / name).read_text(encoding="utf-8").splitlines()
                    for size in sizes:
                        (self._host / size).touch()
                    finished = len(sizes) == len(self._sizes)
                (self._host / f"{item['stage']}{'' if finished else '-part'}").touch()
                about = {
                    "digest": digest(name),
                    "bytes": BYTES,
                    "files": 1,
                    "from": f"controller:{self._store / name}.tar",
                }
                return {"status": "imported", "finished": finished, **about}
        return {"status": "absent"}


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
