#!/usr/bin/env python3
"""Three test hosts and a registry, for the molecule scenario `fleet`: `python -m tests.hosts.fleet
up|down FOLDER`.

The registry has the product's image as if a host had given it, and the fault image beside it. The
hosts reach it on their own loopback, by a remote forward of the SSH connection that Ansible keeps
to them.
"""

from __future__ import annotations

import json
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.faults.fault_site import build_fault_image
from tests.hosts.host import FAULT_IMAGE, STACK_IMAGE, TestHost, build_images, run
from tests.hosts.registry import Registry

PORT = 19655
REPOSITORY = f"127.0.0.1:{PORT}/sgl"
FAULT_REFERENCE = f"{REPOSITORY}:faults"
# The last one's port is unused.
NAMES, ADDRESSES = ("fleet-1", "fleet-2", "fleet-3"), ("127.0.0.31", "127.0.0.32", "127.0.0.33")
UNREACHABLE = {
    "ansible_host": "127.0.0.34",
    "ansible_port": 2234,
    "ansible_user": "ops",
    "ansible_ssh_common_args": "-o ConnectTimeout=3",
}
_INPUTS_LABEL = "org.slice-bench.image-inputs"


class Fleet:
    """Its hosts and its registry; everything that another process needs to reach them is in
    `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(folder / "registry", PORT)
        self.hosts = [
            TestHost(f"sglang-{name}", address, 2231 + number, folder / name)
            for number, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True))
        ]

    def host_vars(self) -> dict[str, dict[str, Any]]:
        """How Ansible reaches each host."""
        found = {
            name: host.inventory_vars("ops") for name, host in zip(NAMES, self.hosts, strict=True)
        }
        for variables in found.values():
            variables["ansible_ssh_common_args"] += f" -R {PORT}:{self.registry.address}"
        return found

    def up(self) -> None:
        build_images()
        build_fault_image(STACK_IMAGE, FAULT_IMAGE)
        self.registry.start()
        with ThreadPoolExecutor() as pool:
            started = [pool.submit(host.up) for host in self.hosts]
            self._push(FAULT_IMAGE, FAULT_REFERENCE)
            self._push(STACK_IMAGE, f"{REPOSITORY}:{shared_name()}")
            for each in started:
                each.result()

    def down(self) -> None:
        for host in self.hosts:
            host.down()
        self.registry.remove()

    @staticmethod
    def _push(image: str, reference: str) -> None:
        run("docker", "tag", image, reference)
        try:
            run("docker", "push", "--quiet", reference)
        finally:
            run("docker", "rmi", reference, check=False)


def shared_name() -> str:
    """By which name hosts find the product's image: roles/image/tasks/share.yml."""
    labels = json.loads(run("docker", "image", "inspect", STACK_IMAGE).stdout)[0]["Config"][
        "Labels"
    ]
    return f"image-{labels[_INPUTS_LABEL].partition(':')[2][:16]}-{platform.machine()}"


if __name__ == "__main__":
    fleet = Fleet(Path(sys.argv[2]))
    {"up": fleet.up, "down": fleet.down}[sys.argv[1]]()
