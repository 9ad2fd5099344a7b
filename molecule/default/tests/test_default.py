"""What SLICE-Bench and an operator find after `playbooks/prep.yml`, run twice."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

import pytest

from sgl_admin.contract import stages as contract
from slice_bench.commands import status_line
from tests.contract import validators

testinfra_hosts = ["local://"]


def listening_on(host: Any, port: int) -> set[str]:
    """The addresses on which something listens on a TCP port."""
    lines = host.check_output("ss --listening --tcp --numeric --no-header").splitlines()
    addresses = [line.split()[3].rpartition(":") for line in lines]
    return {address for address, _colon, found in addresses if found == str(port)}


def test_container_runs_as_the_owner_of_the_tree(host: Any, stack: Any) -> None:
    owner = stack.root.stat()
    inspected = json.loads(host.check_output("docker container inspect %s", stack.container))[0]
    assert inspected["State"]["Running"]
    assert inspected["Config"]["User"] == f"{owner.st_uid}:{owner.st_gid}"
    # Not only what was asked for: every process of the container, and a bare exec, has that uid.
    assert host.check_output("docker exec %s id -u", stack.container) == str(owner.st_uid)
    processes = host.check_output("docker top %s -eo uid,pid,comm", stack.container).splitlines()[
        1:
    ]
    assert {int(line.split()[0]) for line in processes} == {owner.st_uid}
    assert {"prometheus", "node_exporter"} <= {line.split()[2] for line in processes}


def test_pointer_is_private_and_names_the_run(stack: Any) -> None:
    owner = stack.root.stat()
    found = stack.pointer.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == (owner.st_uid, owner.st_gid)


def test_manifest_keeps_the_contract(host: Any, stack: Any) -> None:
    validators.validate_manifest(stack.manifest)
    inspected = json.loads(host.check_output("docker container inspect %s", stack.container))[0]
    assert stack.manifest["container_id"] == inspected["Id"]
    assert stack.manifest["container_name"] == stack.container
    assert (
        stack.manifest["services"]["prometheus"]["url"]
        == f"http://127.0.0.1:{stack.ports['prometheus']}"
    )


def test_metrics_are_ready(stack: Any) -> None:
    validators.validate_prep_result(stack.prep_result)
    assert stack.prep_result["status"] == "ok"
    assert stack.prep_result["run"]["run_id"] == stack.manifest["container_run_id"]
    assert stack.prep_result["telemetry_probe"]["ok"] is True


def test_second_run_did_no_work(stack: Any) -> None:
    """The idempotence step ran just before: nothing was left to warm, on a machine without a GPU or
    with one.
    """
    stages = stack.prep_result["stages"]
    assert tuple(stages) == contract.NAMES
    assert {
        name: stage["status"]
        for name, stage in stages.items()
        if stage["status"] not in ("noop", "skipped")
    } == {}
    assert stages["inductor"]["status"] == "noop"
    assert not any(stage["ran"] for stage in stages.values())


@pytest.mark.parametrize("service", ["prometheus", "node_exporter"])
def test_services_listen_on_the_loopback_only(host: Any, stack: Any, service: str) -> None:
    assert listening_on(host, stack.ports[service]) == {"127.0.0.1"}


def test_no_server_is_left_running(host: Any, stack: Any) -> None:
    assert listening_on(host, stack.ports["sglang"]) == set()


def test_everything_belongs_to_the_owner(host: Any, stack: Any) -> None:
    owner = stack.root.stat()
    folders = [str(stack.root / name) for name in ("telemetry", "profiles")]
    # At least the run's files and the warm cache: an empty tree would prove nothing.
    assert sum(len(files) for folder in folders for _path, _folders, files in os.walk(folder)) > 20
    foreign = host.check_output(
        "find %s %s -not ( -uid %s -gid %s ) -printf %s".replace("(", r"\(").replace(")", r"\)"),
        *folders, str(owner.st_uid), str(owner.st_gid), "%u:%g %p\\n",
    )  # fmt: skip
    assert foreign == ""


def test_sgl_admin_by_hand(host: Any, stack: Any) -> None:
    """The call as scripts make it: a bare exec, without -u."""
    done = host.run(
        "docker exec %s sgl-admin caches ensure --json --model /models/tiny/qwen3-tiny --tp 1"
        " --flashinfer ensure --inductor ensure",
        stack.container,
    )
    assert done.rc == 0, done.stdout + done.stderr
    *_before, result_json, result_status = done.stdout.splitlines()
    name, path = result_json.split(" ")
    assert name == "RESULT_JSON"
    assert path == stack.manifest["paths"]["container"]["prep_result"]
    assert result_status == status_line(
        "ok", {**dict.fromkeys(contract.NAMES, "skipped"), "inductor": "noop"}
    )
