"""A prep outlives what its host's connections and Docker daemon do: on a host with systemd, sshd
and a Docker daemon of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.leftovers import settled
from tests.hosts.host import (
    FAULT_IMAGE,
    ROOT,
    STACK_VARIABLES,
    TestHost,
    ansible,
    recap,
    start_ansible,
    write_inventory,
)
from tests.integration.installation import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]

PREP, STOP = (str(ROOT / "playbooks" / f"{name}.yml") for name in ("prep", "stop"))
TREE = "/home/ops/slow"


class Host:
    """The test host as ops sees it, with an installation whose server takes its time."""

    def __init__(self, machine: TestHost, folder: Path, ready_s: int) -> None:
        self.machine = machine
        self.container = "sglang-dev-slow"
        variables: dict[str, Any] = {
            **STACK_VARIABLES,
            "sgl_image": FAULT_IMAGE,
            "sgl_container": self.container,
            "sgl_root": TREE,
            "sgl_prometheus_port": 19890,
            "sgl_node_exporter_port": 19899,
            "sgl_sglang_port": 31890,
            "sgl_scrape_interval": "200ms",
            "sgl_environment": {"SGL_TEST_SERVER": "1", "SGL_TEST_SERVER_READY_S": str(ready_s)},
        }
        self.inventory = str(
            write_inventory(
                folder / "hosts.yml", {"testhost": machine.inventory_vars("ops")}, variables
            )
        )

    def record(self, name: str) -> dict[str, Any] | None:
        """A record of the live run; None while there is none."""
        pointer = self.machine.execute(
            "cat", f"{TREE}/telemetry/container_run_meta.env", check=False
        )
        found = dict(line.partition("=")[::2] for line in pointer.splitlines()).get(
            "CONTAINER_RUN_META_JSON_HOST"
        )
        text = found and self.machine.execute(
            "cat", f"{found.removesuffix('.json')}/{name}.json", check=False
        )
        return json.loads(text) if text else None

    def job_with_server(self) -> dict[str, Any] | None:
        job = self.record("job")
        return job if job and job["state"] == "running" and job["server"] else None

    def leftovers(self) -> list[str]:
        return settled(self._left_now)

    def _left_now(self) -> list[str]:
        script = f"find {TREE} -name '*.tmp' -o -path '*/.in_progress/*'"
        found = self.machine.execute("sh", "-c", script).splitlines()
        servers = self.machine.execute("docker", "top", self.container, "-eo", "args", check=False)
        return found + [
            line
            for line in servers.splitlines()
            if "sglang.launch_server" in line or "sglang::" in line
        ]


@pytest.fixture
def host(machine: TestHost, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(machine, tmp_path, request.param)
    yield made
    ansible("-i", made.inventory, STOP)
    machine.execute("rm", "-rf", TREE)


@pytest.mark.parametrize("host", [150], indirect=True)
def test_connection_that_is_cut(host: Host) -> None:
    """The prep of minutes goes on without it; the next run attaches within 2 s, and ends with that
    prep's result.
    """
    first = start_ansible("-i", host.inventory, PREP)
    job = wait_for(
        lambda: found if (found := host.job_with_server()) and found["elapsed_s"] > 8 else None,
        "the prep to be followed",
    )
    host.machine.execute("pkill", "-KILL", "-f", "^sshd: ops")
    output, error = first.communicate(timeout=120)
    assert first.returncode == 4, output + error
    assert (
        f"{job['prep_id']} goes on by itself" in output + error
        and "run this again" in output + error
    ), output + error
    still = host.record("job")
    assert still is not None and (still["state"], still["prep_id"]) == ("running", job["prep_id"])

    second = start_ansible("-i", host.inventory, PREP)
    assert second.stdout is not None
    asked = attached = 0.0
    lines = []
    for line in second.stdout:
        lines.append(line)
        if "TASK [slice_bench.sglang.provider_prep" in line and "Warm the caches" in line:
            asked = time.monotonic()
        if f"attached to {job['prep_id']}" in line:
            attached = time.monotonic()
    said = "".join(lines)
    assert second.wait() == 0, said
    print(f"attached after {attached - asked:.2f} s")
    assert asked and attached and attached - asked < 2.0, said
    result = host.record("prep_result")
    assert (
        result is not None
        and result["run"]["prep_id"] == job["prep_id"]
        and result["telemetry_probe"]["ok"] is True
    )
    assert result["run"]["duration_s"] > 120, "the prep was no slow one"
    assert host.leftovers() == []


@pytest.mark.parametrize("host", [15], indirect=True)
def test_docker_daemon_that_is_restarted(host: Host) -> None:
    """It ends the container in order, and starts it again: a new run, in which the next prep does
    what is missing.
    """
    first = start_ansible("-i", host.inventory, PREP)
    job = wait_for(host.job_with_server, "the prep's server")
    host.machine.execute("systemctl", "restart", "docker")
    output, error = first.communicate(timeout=240)
    assert first.returncode == 2 and "Traceback" not in output, output + error
    assert job["prep_id"] in output and "run this again" in output.replace(
        "run it again", "run this again"
    ), output
    second = ansible("-i", host.inventory, PREP)
    assert (
        recap(second.stdout)["testhost"]["failed"] == 0 and "METRICS_READY: true" in second.stdout
    )
    result = host.record("prep_result")
    assert (
        result is not None
        and result["run"]["prep_id"] != job["prep_id"]
        and result["run"]["run_id"] != job["run_id"]
    )
    assert host.leftovers() == []
