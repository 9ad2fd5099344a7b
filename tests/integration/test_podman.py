"""A host that has root's Podman in place of Docker: prepared, prepared again, stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.host import (
    ROOT,
    STACK_IMAGES,
    STACK_VARIABLES,
    UIDS,
    ansible,
    recap,
    write_inventory,
)
from tests.hosts.podman import PodmanHost

# A Debian sid is made once, images of some GB are copied into it, and a real server starts.
pytestmark = [pytest.mark.slow, pytest.mark.long]

TREE = "/home/bench/sglang-observability"


@pytest.fixture(scope="module")
def podman() -> Iterator[PodmanHost]:
    with PodmanHost("sglang-testhost-podman", "127.0.0.24", 2224) as made:
        made.load(*STACK_IMAGES)
        yield made


def play(host: PodmanHost, folder: Path, name: str, **variables: Any) -> tuple[dict[str, int], str]:
    inventory = write_inventory(
        folder / "hosts.yml",
        {"testhost": host.inventory_vars("root")},
        {**STACK_VARIABLES, "sgl_user": "bench"},
    )
    playbook = str(ROOT / "playbooks" / f"{name}.yml")
    done = ansible("-i", str(inventory), "-e", json.dumps(variables), playbook, check=False)
    return recap(done.stdout)["testhost"], done.stdout + done.stderr


def test_a_host_with_podman_is_prepared_twice_and_stopped(
    podman: PodmanHost, tmp_path: Path
) -> None:
    said = podman.execute("docker", "version", "--format", "{{json .Server}}")
    assert "Podman Engine" in said and podman.execute("pgrep", "dockerd", check=False) == ""
    try:
        counts, said = play(podman, tmp_path, "prep")
        assert counts["failed"] == 0 and "METRICS_READY: true" in said, said
        assert podman.not_owned(UIDS["bench"], TREE) == []
        counts, said = play(podman, tmp_path, "prep")
        assert counts["failed"] == counts["changed"] == 0 and "METRICS_READY: true" in said, said
        # Other settings replace the container, by renames.
        counts, said = play(podman, tmp_path, "start", sgl_tsdb_retention_size="2GB")
        assert counts["failed"] == 0 and counts["changed"] > 0, said
        names = podman.execute("podman", "ps", "--all", "--format", "{{.Names}}").split()
        assert names == ["sglang-dev"]
    finally:
        counts, said = play(podman, tmp_path, "stop", sgl_stop_force=True)
    assert counts["failed"] == 0, said
    assert podman.execute("podman", "ps", "--all", "--quiet") == ""


def test_an_image_is_not_built_by_podman(podman: PodmanHost, tmp_path: Path) -> None:
    """Its socket has no BuildKit; the image comes by a pull or an archive."""
    counts, said = play(podman, tmp_path, "image", sgl_image="sglang-dev:other")
    assert counts["failed"] == 1 and "BuildKit" in said, said
