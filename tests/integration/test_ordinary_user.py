"""What a playbook makes belongs to the service user, whichever user runs it: over SSH, on a host
with its own Docker daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hosts.host import ROOT, STACK_VARIABLES, UIDS, TestHost, ansible, recap, write_inventory

PREP = str(ROOT / "playbooks" / "prep.yml")

pytestmark = pytest.mark.slow


def prepared_twice(inventory: Path) -> str:
    """Prep from nothing and again, which must change nothing; returns what the first run said."""
    first = ansible("-i", str(inventory), PREP).stdout
    assert recap(first)["testhost"]["changed"] > 0
    assert "METRICS_READY: true" in first
    second = ansible("-i", str(inventory), PREP).stdout
    assert recap(second)["testhost"]["changed"] == 0, second
    assert "METRICS_READY: true" in second
    return first


def check_tree(machine: TestHost, root: str, container: str, uid: int) -> None:
    files = machine.execute(
        "find", f"{root}/telemetry", f"{root}/profiles", "-type", "f"
    ).splitlines()
    # The run's files and the warm cache are there: an empty tree would belong to anyone.
    assert f"{root}/telemetry/container_run_meta.env" in files
    assert any(name.startswith(f"{root}/profiles/torchinductor/") for name in files)
    assert machine.not_owned(uid, root) == []
    assert machine.execute("docker", "exec", container, "id", "-u").strip() == str(uid)


def test_user_in_the_docker_group(machine: TestHost, tmp_path: Path) -> None:
    """No root, no sudo: ops may use Docker and owns its home."""
    variables: dict[str, Any] = {**STACK_VARIABLES, "sgl_container": "sglang-dev-ops"}
    inventory = write_inventory(
        tmp_path / "hosts.yml", {"testhost": machine.inventory_vars("ops")}, variables
    )
    prepared_twice(inventory)
    check_tree(machine, "/home/ops/sglang-observability", "sglang-dev-ops", UIDS["ops"])


def test_user_without_permission_for_docker(machine: TestHost, tmp_path: Path) -> None:
    inventory = write_inventory(
        tmp_path / "hosts.yml", {"testhost": machine.inventory_vars("bench")}, STACK_VARIABLES
    )
    before = machine.execute("find", "/home/bench", "-not", "-path", "*/.ansible*")
    refused = ansible("-i", str(inventory), PREP, check=False)
    assert refused.returncode != 0 and recap(refused.stdout)["testhost"]["changed"] == 0
    assert (
        "no permission to use Docker: add the user to the docker group"
        in refused.stdout + refused.stderr
    ), refused.stdout
    assert machine.execute("find", "/home/bench", "-not", "-path", "*/.ansible*") == before


def test_root_for_a_service_user(machine: TestHost, tmp_path: Path) -> None:
    """Root connects and prepares for bench, who is not in the docker group; root owns nothing of
    it.
    """
    root = "/home/bench/sglang-observability"
    variables: dict[str, Any] = {
        **STACK_VARIABLES,
        "sgl_container": "sglang-dev-bench",
        "sgl_user": "bench",
        "sgl_root": root,
        # Beside the stack of the test before: they share the host's network.
        "sgl_prometheus_port": 19090,
        "sgl_node_exporter_port": 19100,
        "sgl_sglang_port": 31000,
    }
    inventory = write_inventory(
        tmp_path / "hosts.yml", {"testhost": machine.inventory_vars("root")}, variables
    )
    prepared_twice(inventory)
    check_tree(machine, root, "sglang-dev-bench", UIDS["bench"])
