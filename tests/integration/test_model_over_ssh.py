"""A model of the controller, sent to a host by a real rsync over a real SSH connection, with the
settings of Ansible's own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.model_folder import contents, make_model, shard_name
from tests.hosts.host import UIDS, TestHost, ansible, recap, write_inventory

pytestmark = pytest.mark.slow
SHARDS = 3
PLAY = """
- hosts: sglang
  gather_facts: false
  tasks:
    - name: Stage
      slice_bench.sglang.sgl_model_stage: {arguments}
"""


class Lab:
    """One model of the controller, and its place on a host, reached as one user."""

    def __init__(self, machine: TestHost, user: str, owner: str, folder: Path) -> None:
        self.machine = machine
        self.source = folder / "a lab's model"
        make_model(self.source, SHARDS, 4 << 20)
        self.root = f"/home/{owner}/models-{user}"
        self.place = f"{self.root}/org/m"
        machine.execute("install", "-d", "-o", owner, "-g", owner, self.root)
        self._inventory = write_inventory(
            folder / "hosts.yml", {"testhost": machine.inventory_vars(user)}, {}
        )
        self._arguments: dict[str, Any] = {
            **{
                "path": self.place,
                "models_root": self.root,
                "source": "controller",
                "from": str(self.source),
            },
            **{"owner_uid": UIDS[owner], "owner_gid": UIDS[owner]},
        }
        self._play = folder / "stage.yml"

    def stage(self, *flags: str) -> tuple[int, str]:
        """Tasks that changed something, and what was said."""
        self._play.write_text(PLAY.format(arguments=json.dumps(self._arguments)))
        done = ansible("-i", str(self._inventory), str(self._play), *flags)
        return recap(done.stdout)["testhost"]["changed"], done.stdout

    def digests(self) -> dict[str, str]:
        listed = self.machine.execute(
            "find",
            self.place,
            "-type",
            "f",
            "-not",
            "-name",
            ".sgl-*",
            "-exec",
            "sha256sum",
            "{}",
            "+",
        )
        return {
            path.removeprefix(f"{self.place}/"): digest
            for digest, path in (line.split("  ", 1) for line in listed.splitlines())
        }

    def wanted(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(data).hexdigest() for name, data in contents(self.source).items()
        }


@pytest.mark.parametrize(("user", "owner"), [("ops", "ops"), ("root", "bench")])
def test_a_model_of_the_controller(
    machine: TestHost, tmp_path: Path, user: str, owner: str
) -> None:
    lab = Lab(machine, user, owner, tmp_path)
    assert lab.stage("--check")[0] == 1
    assert machine.execute("find", lab.root, "-mindepth", "1").strip() == ""
    changed, said = lab.stage()
    assert changed == 1 and "model org/m: sending" in said, said
    assert lab.digests() == lab.wanted() and machine.not_owned(UIDS[owner], lab.place) == []
    changed, said = lab.stage()
    assert changed == 0 and "sending" not in said

    shard = f"{lab.place}/{shard_name(1, SHARDS)}"
    machine.execute(
        "python3",
        "-c",
        f"f = open({shard!r}, 'r+b'); f.seek(-1, 2); b = f.read(); f.seek(-1, 2);"
        " f.write(bytes([b[0] ^ 1]))",
    )
    changed, _said = lab.stage()
    assert changed == 1 and lab.digests() == lab.wanted()
    # But for its lock, which is free, nothing of the staging is left.
    assert [
        name
        for name in machine.execute("find", f"{lab.root}/.staging", "-type", "f").splitlines()
        if "/lock." not in name
    ] == []
