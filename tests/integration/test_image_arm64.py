"""The local flavour for arm64, built from the checkout and run: on x86-64 under emulation, on arm64
as it is.

What runs there: sgl-admin, the init, Prometheus, node_exporter, and in the slow lane the real
SGLang server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_parts as image_parts

from tests.contract import validators
from tests.integration.installation import ARM64, ARM64_IMAGE, Play, Site, docker, installation

# An image for another architecture is built under emulation, which takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.long]

# Every ELF file in the folders that the image adds, with the first bytes of each.
ELF_FILES = """
import json, os, sys
found = {}
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                with open(path, "rb") as stream:
                    head = stream.read(20)
                if head[:4] == b"\\x7fELF":
                    found[os.path.realpath(path)] = head.hex()
print(json.dumps(found))
"""


@dataclass
class Arm64Site(Site):
    """An installation whose image is for arm64, on whatever host."""

    container: str = "sglang-dev-arm64-test"

    @property
    def variables(self) -> dict[str, Any]:
        return {
            **super().variables,
            "sgl_image": ARM64_IMAGE,
            "sgl_image_platform": ARM64,
            "sgl_start_timeout": 180,
        }


@pytest.fixture(scope="module")
def site() -> Iterator[Arm64Site]:
    try:
        image_parts.need_emulator("arm64")
    except image_parts.ImageError as error:
        pytest.skip(f"{error} (scripts/test_tools_up.sh does it)")
    with installation(Arm64Site) as made:
        yield made


@pytest.fixture(scope="module")
def first(site: Arm64Site) -> Play:
    return site.must_play("start")


def test_the_image_is_one_for_arm64(site: Arm64Site, first: Play) -> None:
    found = json.loads(docker("image", "inspect", ARM64_IMAGE).stdout)[0]
    assert (found["Os"], found["Architecture"]) == ("linux", "arm64")
    assert site.docker_exec("uname", "-m").stdout.strip() == "aarch64"


def test_every_program_and_library_in_it_is_for_arm64(site: Arm64Site, first: Play) -> None:
    done = site.docker_exec(
        "/opt/sglang/bin/python", "-c", ELF_FILES, "/usr/local/bin", "/usr/bin", "/opt/sglang"
    )
    assert done.returncode == 0, done.stderr
    heads: dict[str, str] = json.loads(done.stdout)
    names = [Path(path).name for path in heads]
    assert (
        "prometheus" in names
        and "node_exporter" in names
        and "python3.11" in names
        and "libtorch_cpu.so" in names
    )
    assert any("tokenizers" in path for path in heads) and len(heads) > 200
    assert {
        path
        for path, head in heads.items()
        if image_parts.elf_architecture(bytes.fromhex(head)) != "arm64"
    } == set()


def test_sgl_admin_runs(site: Arm64Site, first: Play) -> None:
    done = site.admin("version")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "torchinductor" in json.loads(site.admin("caches", "inspect", "--json").stdout)


def test_the_init_publishes_a_run_with_its_services(site: Arm64Site, first: Play) -> None:
    manifest = site.manifest()
    validators.validate_manifest(manifest)
    assert manifest["architecture"] == "arm64" and site.pointer.exists()
    assert manifest["telemetry_surfaces"]["node_metrics"]["status"] == "running"
    assert (
        manifest["versions"]["prometheus"].startswith("3.")
        and manifest["versions"]["torch"] == "2.9.1"
    )
    answer = site.prometheus(
        f'/api/v1/query?query=up{{job="node_exporter",container_run="{site.run_id}"}}'
    )
    assert [sample["value"][1] for sample in answer["data"]["result"]] == ["1"]


def test_a_second_start_changes_nothing(site: Arm64Site, first: Play) -> None:
    assert site.must_play("start").changed == 0


def test_the_real_server_is_prepared_and_its_metrics_are_proven(
    site: Arm64Site, first: Play
) -> None:
    play = site.must_play("prep")
    assert "METRICS_READY: true" in play.output or '"METRICS_READY": true' in play.output
    result = site.result()
    assert (
        result["stages"]["inductor"]["status"] == "ok" and result["telemetry_probe"]["ok"] is True
    )
    assert result["run"]["run_id"] == site.run_id
