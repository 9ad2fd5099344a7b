"""A test host whose Docker keeps images in containerd's store: Debian sid's docker.io (28.5.2) with
the feature `containerd-snapshotter`, which is Docker 29's default.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Self

from ansible_collections.slice_bench.sglang.plugins.module_utils._image_build import ImageBuild

from tests.hosts.host import (
    START_LIMIT_S,
    HostError,
    TestHost,
    answer,
    build_host_image,
    build_images,
    run,
)

SID_BASE = "sglang-base:sid"


def _make_base() -> None:
    """A sid base from the mirror that this machine takes bookworm from. It needs root."""
    if run("docker", "image", "inspect", SID_BASE, check=False).returncode == 0:
        return
    mirror = ImageBuild(answer, SID_BASE, "local", "", None, "bookworm", "/tmp").host_mirror()
    folder = Path(tempfile.mkdtemp(prefix="sid-"))
    try:
        root = str(folder / "root")
        run("debootstrap", "--variant=minbase", "sid", root, *([mirror] if mirror else []))
        # A frozen mirror has a sid index past its date; its signature is checked all the same.
        settings = folder / "root/etc/apt/apt.conf.d/99frozen"
        settings.write_text('Acquire::Check-Valid-Until "false";\n', encoding="ascii")
        archive = str(folder / "root.tar")
        run("tar", "--directory", root, "--create", "--file", archive, ".")
        run("docker", "import", archive, SID_BASE)
    finally:
        shutil.rmtree(folder)


# sid's systemd (258 and later) knows no control groups of version 1, which this machine may have:
# what it would start is started without it. Docker takes a containerd that runs already.
_SERVICES = """
set -e
ssh-keygen -A
mkdir -p /run/sshd /etc/docker
echo '{"features": {"containerd-snapshotter": true}}' > /etc/docker/daemon.json
containerd > /var/log/containerd.log 2>&1 &
while [ ! -S /run/containerd/containerd.sock ]; do sleep 0.1; done
dockerd > /var/log/dockerd.log 2>&1 &
exec /usr/sbin/sshd -D
"""


class ContainerdHost(TestHost):
    image = "sglang-testhost-sid"
    packages = "docker.io docker-cli docker-buildx"
    log = "/var/log/dockerd.log"
    volumes: tuple[str, ...] = ("/var/lib/docker", "/var/lib/containerd")
    command = ("sh", "-c", _SERVICES)

    def __enter__(self) -> Self:
        build_images()
        _make_base()
        build_host_image(self.image, SID_BASE, self.packages)
        self.up()
        return self

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while run("docker", "exec", self.name, "docker", "version", check=False).returncode:
            if time.monotonic() > deadline:
                end = run("docker", "exec", self.name, "tail", self.log, check=False).stdout
                raise HostError(f"docker is not up in {self.name}:\n{end}")
            time.sleep(0.2)
