"""The action sgl_share without Ansible around it, between hosts that are folders.

`Fleet` stands for hosts, their connections and one registry. What a host has made is in `work`. The
steps of the module are real down to `Host`, in whose place `HostDouble` stands for Docker and
sgl-admin. What hosts were asked for is in `asked`.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.action import sgl_share
from ansible_collections.slice_bench.sglang.plugins.module_utils._shared_work import ShareError
from ansible_collections.slice_bench.sglang.plugins.modules.sgl_share import _step

REGISTRY = "registry.example/team/caches"


@dataclass
class Work:
    """What a host has of an item."""

    content: bytes
    finished: bool = True
    # What an import says beside `imported`.
    reason: str | None = None


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Fleet:
    folder: Path
    work: dict[str, dict[str, Work]] = field(default_factory=dict)
    registry: dict[str, tuple[bytes, str | None, bool]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # A step that fails on every host, and the transfer that breaks in the middle.
    failing: str | None = None
    breaks: bool = False
    # How many archives have lain on a host at once.
    most: int = 0

    @property
    def store(self) -> Path:
        """The controller's folder."""
        return self.folder / "controller"

    def remote(self, host: str) -> Path:
        """A host's temporary files."""
        return self.folder / host

    def run(
        self,
        host: str,
        state: str,
        *items: dict[str, Any],
        check_mode: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """What the action answers for a host."""
        arguments = {
            "state": state,
            "items": list(items),
            "directory": str(self.store),
            "prep": {"model": "/models/m"},
            **options,
        }
        action = ShareAction(
            self,
            host,
            {name: value for name, value in arguments.items() if value is not None},
            check_mode,
        )
        try:
            return action.run(None, {"inventory_hostname": host})
        finally:
            # As Ansible does after each task.
            action.cleanup()

    def steps(self, host: str | None = None) -> list[str]:
        """The steps that hosts were asked for since the last look, or those of one host."""
        found = [step for name, step in self.asked if host in (None, name)]
        self.asked.clear()
        return found


class ShareAction(sgl_share.ActionModule):
    def __init__(
        self, fleet: Fleet, host: str, arguments: dict[str, Any], check_mode: bool
    ) -> None:
        self._fleet, self._host = fleet, host
        self._task = SimpleNamespace(
            args=arguments, check_mode=check_mode, async_val=0, action="sgl_share", delegate_to=None
        )
        self._connection = SimpleNamespace(
            _shell=SimpleNamespace(tmpdir=None, join_path=lambda *parts: "/".join(parts))
        )
        self._connection.fetch_file = self._fetch_file
        self._display = SimpleNamespace(warning=fleet.warnings.append)
        self._load_name = "sgl_share"

    def _execute_module(
        self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        assert module_name == "slice_bench.sglang.sgl_share"
        self._fleet.asked.append((self._host, module_args["step"]))
        given = {**dict.fromkeys(("path", "reference", "digest", "signature")), **module_args}
        try:
            if module_args["step"] == self._fleet.failing:
                raise ShareError("it broke here: run this again")
            return _step(HostDouble(self._fleet, self._host), given)  # type: ignore[arg-type]
        except ShareError as error:
            return {"failed": True, "msg": str(error)}

    # --- the connection

    def _make_tmp_path(self, remote_user: str | None = None) -> str:
        folder = self._fleet.remote(self._host)
        folder.mkdir()
        self._connection._shell.tmpdir = str(folder)
        return str(folder)

    def _remove_tmp_path(self, tmp_path: str | None, force: bool = False) -> None:
        if tmp_path:
            self._fleet.most = max(self._fleet.most, len(list(Path(tmp_path).iterdir())))
            shutil.rmtree(tmp_path)
            self._connection._shell.tmpdir = None

    def _fixup_perms2(
        self, remote_paths: Any, remote_user: str | None = None, execute: bool = True
    ) -> None:
        assert all(Path(path).exists() for path in remote_paths)

    def _transfer_file(self, local_path: str, remote_path: str) -> str:
        self._copy(local_path, remote_path)
        return remote_path

    def _fetch_file(self, remote_path: str, local_path: str) -> None:
        self._copy(remote_path, local_path)

    def _copy(self, source: str, target: str) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2] if self._fleet.breaks else content)
        if self._fleet.breaks:
            raise OSError(5, "the connection broke", target)


class HostDouble:
    def __init__(self, fleet: Fleet, host: str) -> None:
        self._fleet = fleet
        self._work = fleet.work.setdefault(host, {})

    def pack(self, item: dict[str, Any], path: str) -> dict[str, Any] | None:
        self._fleet.requests.append(item["request"])
        work = self._work.get(item["image"] or item["name"])
        if work is None:
            return None
        Path(path).write_bytes(work.content)
        return {
            "digest": digest(work.content),
            "bytes": len(work.content),
            "finished": work.finished,
        }

    def push(
        self,
        item: dict[str, Any],
        path: str | None,
        reference: str,
        archive_digest: str | None,
        signature: str | None,
    ) -> str:
        work = self._work[item["image"] or item["name"].removesuffix("-partial")]
        content = Path(path).read_bytes() if path else work.content
        source = f"{reference.rpartition(':')[0]}@{digest(content)}"
        self._fleet.registry[reference] = self._fleet.registry[source] = (
            content,
            signature,
            work.finished,
        )
        return source

    def look(self, reference: str) -> str | None:
        found = self._fleet.registry.get(reference)
        return f"{reference.rpartition(':')[0]}@{digest(found[0])}" if found else None

    def fetch(self, item: dict[str, Any], reference: str, path: str) -> dict[str, Any] | None:
        found = self._fleet.registry.get(reference)
        if found is None:
            return None
        if item["kind"] == "image":
            self._work[item["image"]] = Work(found[0])
        else:
            Path(path).write_bytes(found[0])
        return {
            "source": self.look(reference) if "@" not in reference else reference,
            "digest": digest(found[0]),
            "signature": found[1],
        }

    def take(self, item: dict[str, Any], path: str, wanted: str | None) -> dict[str, Any]:
        self._fleet.requests.append(item["request"])
        content = Path(path).read_bytes()
        if wanted and digest(content) != wanted:
            raise ShareError(f"{item['name']} is not taken: another digest")
        if item["kind"] == "image":
            self._work[item["image"]] = Work(content)
            return {"digest": wanted, "stages": {}}
        name = item["name"].removesuffix("-partial")
        standing = name in self._work and self._work[name].finished
        made = next(
            (
                each[name]
                for each in self._fleet.work.values()
                if name in each and each[name].content == content
            ),
            Work(content),
        )
        if not standing:
            self._work[name] = made
        stage = {
            "status": "standing" if standing else "imported",
            "reason": made.reason,
            "finished": made.finished,
            "files": 1,
            "bytes": len(content),
        }
        return {"stages": {name.partition("-")[0]: stage}}
