"""A host whose Docker keeps images in containerd's store, as Docker 29 does by default: an image's
id is the digest of its index there, and its layers lie in containerd's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.containerd import ContainerdHost
from tests.hosts.host import (
    ROOT,
    STACK_IMAGE,
    STACK_IMAGES,
    STACK_VARIABLES,
    ansible,
    recap,
    write_inventory,
)

# A Debian sid is made once, and images of some GB are copied into it.
pytestmark = [pytest.mark.slow, pytest.mark.long]

START, STOP = (str(ROOT / "playbooks" / f"{name}.yml") for name in ("start", "stop"))


@pytest.fixture(scope="module")
def sid() -> Iterator[ContainerdHost]:
    with ContainerdHost("sglang-testhost-sid", "127.0.0.23", 2223) as made:
        made.load(*STACK_IMAGES)
        yield made


@pytest.fixture
def inventory(sid: ContainerdHost, tmp_path: Path) -> Path:
    return write_inventory(
        tmp_path / "hosts.yml", {"testhost": sid.inventory_vars("ops")}, STACK_VARIABLES
    )


def play(inventory: Path, playbook: str, **variables: Any) -> tuple[dict[str, int], str]:
    done = ansible("-i", str(inventory), "-e", json.dumps(variables), playbook, check=False)
    return recap(done.stdout)["testhost"], done.stdout + done.stderr


def test_the_host_is_one_with_containerds_store(sid: ContainerdHost) -> None:
    info = json.loads(sid.execute("docker", "info", "--format", "{{json .}}"))
    assert int(info["ServerVersion"].partition(".")[0]) >= 28
    assert ["driver-type", "io.containerd.snapshotter.v1"] in info["DriverStatus"]
    assert info["DockerRootDir"] == "/var/lib/docker"


def test_room_is_wanted_where_the_layers_go(sid: ContainerdHost, inventory: Path) -> None:
    counts, said = play(
        inventory, START, sgl_image="sglang-dev:none", sgl_space_gb={"docker": 1000000}
    )
    assert counts["failed"] == 1 and counts["changed"] == 0
    assert "/var/lib/containerd has" in said and "GB are wanted" in said


def test_a_host_is_started_twice_and_its_image_saved_and_loaded(
    sid: ContainerdHost, inventory: Path
) -> None:
    try:
        counts, said = play(inventory, START)
        assert counts["failed"] == 0 and counts["changed"] > 0, said
        counts, said = play(inventory, START)
        assert counts["failed"] == 0 and counts["changed"] == 0, said
        # An id that is an index's digest is the image's all the same, on the way that loads too.
        sid.execute("docker", "save", "--output", "/home/ops/image.tar", STACK_IMAGE)
        sid.execute("chmod", "a+r", "/home/ops/image.tar")
        loading = {"sgl_image_source": "load", "sgl_image_archive": "/home/ops/image.tar"}
        counts, said = play(inventory, START, **loading)
        assert counts["failed"] == 0, said
        counts, said = play(inventory, START, **loading)
        assert counts["failed"] == 0 and counts["changed"] == 0, said
    finally:
        play(inventory, STOP)
