"""Images that stand for the bases of the gh200 flavour, and what tests do with images."""

from __future__ import annotations

import os
import platform
import subprocess
import tarfile
from pathlib import Path

from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import build_client
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import (
    DOCKER_ARCHITECTURES,
)

from tests.integration.installation import IMAGE, ROOT, docker

BASE = "sglang-dev-gh200-test:base"
DCGM = "sglang-dev-gh200-test:dcgm"
DEBIAN = "sglang-base:bookworm"


def host_architecture() -> str:
    return DOCKER_ARCHITECTURES[platform.machine()]


def run(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stdout, done.stderr


def docker_build(*arguments: str) -> None:
    done = subprocess.run(
        [*build_client(run), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def build() -> None:
    """Both stand-ins; unchanged layers come from the build's cache."""
    for target, name in (("base", BASE), ("dcgm", DCGM)):
        docker_build(
            "--target",
            target,
            "--tag",
            name,
            "--build-arg",
            f"DEBIAN={DEBIAN}",
            "--build-arg",
            f"LOCAL={IMAGE}",
            str(ROOT / "tests" / "doubles" / "gh200"),
        )


def take_file(image: str, path: str, target: Path) -> None:
    """Copy a file out of an image."""
    container = docker("create", "--entrypoint", "/none", image).stdout.strip()
    try:
        copied = subprocess.run(
            ["docker", "cp", f"{container}:{path}", "-"], capture_output=True, check=True
        )
    finally:
        docker("rm", container)
    packed = target.with_suffix(".tar")
    packed.write_bytes(copied.stdout)
    with tarfile.open(packed) as archive:
        content = archive.extractfile(archive.getmembers()[0])
        assert content is not None
        target.write_bytes(content.read())
    packed.unlink()
    target.chmod(0o755)
