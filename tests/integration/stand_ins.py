"""Images that stand for the bases of the gh200 flavour, and what tests do with images."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_build as image_build
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import (
    DOCKER_ARCHITECTURES,
)

from tests import upstream_packages as upstream
from tests.hosts.host import answer
from tests.integration.installation import IMAGE, ROOT, docker

BASE = "sglang-dev-gh200-test:base"
DCGM = "sglang-dev-gh200-test:dcgm"
DEBIAN = "sglang-base:bookworm"
ARM64_DEBIAN = f"{DEBIAN}-arm64"
RECIPE = json.loads(
    (ROOT / "roles/image/files/flavours/gh200/build.json").read_text(encoding="utf-8")
)
# The release that the replica has: its wheel and its kernels' come from the package index.
SGLANG = "0.5.23"
KERNELS = "sglang-kernel"
# Of SGLang's extra for tracing, which pins no version.
OPENTELEMETRY = {
    "opentelemetry_sdk": "1.36.0",
    "opentelemetry_exporter_otlp_proto_grpc": "1.36.0",
    "opentelemetry_exporter_otlp_proto_http": "1.36.0",
}
# What torch 2.14.1, which SGLang pins, requires on Linux.
TRITON = {"triton": "3.8.0"}


def host_architecture() -> str:
    return DOCKER_ARCHITECTURES[platform.machine()]


def docker_build(*arguments: str) -> None:
    image_build.docker_build(answer, "the build of a stand-in", list(arguments))


def put_packages(folder: Path, architecture: str) -> None:
    """What the replica's Dockerfile installs: SGLang's wheel, the names of its kernels' files for
    an architecture, and the packages of which it needs the version alone.
    """
    sglang = upstream.sources(SGLANG)
    kernels = upstream.kernel_files(KERNELS, str(sglang.required(KERNELS)), architecture)
    versions = {**sglang.pins(), **OPENTELEMETRY, **TRITON}
    folder.mkdir()
    shutil.copyfile(sglang.wheel, folder / sglang.wheel.name)
    (folder / "kernels.txt").write_text("\n".join(kernels), encoding="utf-8")
    (folder / "metadata.txt").write_text(
        "\n".join(f"{name}=={version}" for name, version in versions.items() if name != KERNELS),
        encoding="utf-8",
    )


def build(
    architecture: str = platform.machine(),
    base: str = BASE,
    dcgm: str = DCGM,
    debian: str = DEBIAN,
    local: str = IMAGE,
) -> None:
    """Both stand-ins; unchanged layers come from the build's cache. `architecture` says whose
    kernels the base has; both are for the architecture of the images `debian` and `local`.
    """
    described = json.loads(docker("image", "inspect", local).stdout)[0]
    with tempfile.TemporaryDirectory() as context:
        shutil.copytree(ROOT / "tests" / "doubles" / "gh200", context, dirs_exist_ok=True)
        put_packages(Path(context) / "packages", architecture)
        for target, name in (("base", base), ("dcgm", dcgm)):
            docker_build(
                "--platform",
                f"linux/{described['Architecture']}",
                "--target",
                target,
                "--tag",
                name,
                "--build-arg",
                f"DEBIAN={debian}",
                "--build-arg",
                f"LOCAL={local}",
                context,
            )


def pack(folder: Path, name: str, program: Path, architecture: str) -> str:
    """A release archive with a program in it, under the name that the recipe has for it; returns
    its digest.
    """
    entry = RECIPE["downloads"][name]
    file = (
        entry["url"].rpartition("/")[2].format(version=entry["version"], architecture=architecture)
    )
    with tarfile.open(folder / file, "w:gz") as archive:
        archive.add(program, f"{file.removesuffix('.tar.gz')}/{entry['program']}")
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


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
