"""First contact: a GH200 with `inventories/gh200` as shipped reaches METRICS_READY. The inventory's
variables stay as they are; its hosts.yml gets the one host's name with the way to it, and the
model's folder lies where the shipped profile looks for it.

Stand-ins, none of which is a variable of the collection:

- the host (tests/hosts/gh200.py, tests/doubles/gh200_host): its Python says aarch64, and QEMU runs
  the arm64 programs; nvidia-smi, the NVIDIA container toolkit and NVML are doubles; Docker's disk
  is a tmpfs that says 200 GB;
- SGLang's image and dcgm-exporter's, under the names that the recipe has: the replicas of
  tests/doubles/gh200 for arm64, with the kernels of the aarch64 wheel, and with the double of the
  server (tests/doubles/gpu_server) in the place of sglang.launch_server;
- github.com, for the files of Jaeger's release: its program is a double, its digest is not pinned
  for arm64 and is read from the release's sums file over TLS;
- Prometheus and node_exporter, whose archives' digests are pinned: Debian's programs lie where an
  earlier build would have left the unpacked ones;
- the model: the shapes of Qwen3-Next-80B-A3B-FP8, and one tensor.

Real: the inventory, the profile, every role, module and stage, the build, Docker, SSH, the init,
Prometheus, node_exporter, the wheels, which the controller brings, as the host has no pip. Not
shown here: a Grace kernel, a GPU, SGLang's own server and its parser of arguments, which need
torch, and the registries.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_parts as image_parts

from tests.fixtures.make_tree import MODEL
from tests.hosts.gh200 import GITHUB, Gh200Host
from tests.hosts.host import BASE as DEBIAN
from tests.hosts.host import IMAGE as HOST_IMAGE
from tests.hosts.host import ROOT, UIDS, ansible, build_host_image, recap, run
from tests.integration.installation import ARM64, ARM64_IMAGE, make_image
from tests.integration.stand_ins import (
    ARM64_DEBIAN,
    RECIPE,
    SGLANG,
    build,
    docker_build,
    pack,
    take_file,
)
from tests.unit.model_files import write_model

# Programs of another architecture are built and run under emulation, which takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.long]

NAME = "gh200-01.example.com"
PREP = str(ROOT / "playbooks" / "prep.yml")
REPLICA, DCGM, SERVED = (f"sglang-dev-first-test:{tag}" for tag in ("replica", "dcgm", "base"))
HOME = "/home/ops"
TREE = f"{HOME}/sglang-observability"
MODEL_NAME = "Qwen/Qwen3-Next-80B-A3B-Thinking-FP8"
STAGES = ("deep_gemm", "flashinfer", "inductor")
# The replica with the double of the server, which an NVML on /opt/driver describes a GPU to.
SERVED_DOCKERFILE = f"""
FROM {REPLICA}
COPY sglang/__init__.py sglang/launch_server.py /sgl-workspace/sglang/python/sglang/
ENV SGL_TEST_NVML=/opt/driver/nvml.json
"""


def build_bases(folder: Path) -> None:
    build("aarch64", REPLICA, DCGM, ARM64_DEBIAN, ARM64_IMAGE)
    shutil.copytree(ROOT / "tests" / "doubles" / "gpu_server" / "sglang", folder / "sglang")
    (folder / "Dockerfile").write_text(SERVED_DOCKERFILE, encoding="utf-8")
    docker_build("--platform", "linux/arm64", "--tag", SERVED, str(folder))


def bring_bases(host: Gh200Host) -> None:
    """Under the names by which the recipe has them."""
    host.load(SERVED, DCGM)
    for made, wanted in ((SERVED, RECIPE["base"]), (DCGM, RECIPE["stages"]["DCGM_IMAGE"])):
        host.execute("docker", "tag", made, wanted)
        host.execute("docker", "image", "rm", made)


def bring_programs(host: Gh200Host, folder: Path) -> str:
    """What the build fetches; returns the digest of Jaeger's archive."""
    for name, (image, path) in {
        "prometheus": (ARM64_IMAGE, "/usr/local/bin/prometheus"),
        "node_exporter": (ARM64_IMAGE, "/usr/local/bin/node_exporter"),
        "jaeger": (REPLICA, "/opt/stand-in/service"),
    }.items():
        take_file(image, path, folder / name)
    for name in ("prometheus", "node_exporter"):
        entry = RECIPE["downloads"][name]
        place = f"{HOME}/.cache/slice_bench.sglang/programs/{entry['sha256']['arm64'][:16]}"
        host.put({f"{place}/{entry['program']}": (folder / name, 0o755)}, UIDS["ops"])
    host.execute("chown", "--recursive", "ops:ops", f"{HOME}/.cache")
    entry = RECIPE["downloads"]["jaeger"]
    digest = pack(folder, "jaeger", folder / "jaeger", "arm64")
    url, sums = (
        entry[key].format(version=entry["version"], architecture="arm64") for key in ("url", "sums")
    )
    name = url.rpartition("/")[2]
    served = {url: folder / name, sums: f"{digest}  {name}\n".encode()}
    host.put(
        {f"{GITHUB}/{at.partition('github.com/')[2]}": (of, 0o644) for at, of in served.items()}
    )
    return digest


def bring_model(host: Gh200Host, folder: Path) -> None:
    files = write_model(folder, MODEL).iterdir()
    host.put(
        {f"{TREE}/models/{MODEL_NAME}/{path.name}": (path, 0o644) for path in files}, UIDS["ops"]
    )
    host.execute("chown", "--recursive", "ops:ops", TREE)


def shipped_inventory(folder: Path, host: Gh200Host) -> Path:
    shutil.copytree(ROOT / "inventories" / "gh200", folder)
    hosts = {"sglang": {"hosts": {NAME: host.inventory_vars()}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Gh200Host, str]]:
    """The host, and the digest of the archive of Jaeger that its github.com has."""
    try:
        image_parts.need_emulator("arm64")
    except image_parts.ImageError as error:
        pytest.skip(f"{error} (scripts/test_tools_up.sh does it)")
    build_host_image(HOST_IMAGE, DEBIAN)
    make_image(ARM64_IMAGE, platform=ARM64)
    (tmp_path / "base").mkdir()
    build_bases(tmp_path / "base")
    made = Gh200Host("sglang-testhost-gh200", "127.0.0.25", 2225)
    made.up()
    try:
        bring_bases(made)
        bring_model(made, tmp_path / "model")
        yield made, bring_programs(made, tmp_path)
    finally:
        made.down()
        run("docker", "image", "rm", "--force", SERVED, REPLICA, DCGM, check=False)


def record(host: Gh200Host, name: str) -> Any:
    [folder] = host.execute("sh", "-c", f"ls -d {TREE}/telemetry/container_runs/*/").split()
    return json.loads(host.execute("cat", f"{folder}{name}"))


def test_the_shipped_inventory_takes_a_gh200_to_metrics_ready(
    site: tuple[Gh200Host, str], tmp_path: Path
) -> None:
    host, jaeger = site
    inventory = shipped_inventory(tmp_path / "gh200", host)
    reports = {"SGL_REPORT_DIR": str(tmp_path / "reports")}
    done = ansible("-i", str(inventory), PREP, env=reports)
    said = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert re.search(r"METRICS_READY['\"]?: true", said, re.IGNORECASE), said[-6000:]
    # The digest that the user did not look up.
    assert f"pin it with sgl_image_downloads: {{jaeger: {{sha256: {jaeger}}}}}" in said
    result = record(host, "prep_result.json")
    assert {name: result["stages"][name]["status"] for name in STAGES} == dict.fromkeys(
        STAGES, "ok"
    )
    about = result["run"]
    assert (about["device_name"], about["compute_capability"]) == ("NVIDIA GH200 480GB", "9.0")
    assert (about["cpu_arch"], about["sglang_version"]) == ("aarch64", SGLANG)
    assert result["telemetry_probe"]["ok"] is True
    # The argument that the user did not give: arm64's kernels have no FlashAttention 3.
    [chosen] = about["server"]["chosen"]
    assert chosen["arguments"] == ["--attention-backend", "flashinfer"]
    again = ansible("-i", str(inventory), PREP, env=reports).stdout
    assert recap(again)[NAME]["changed"] == 0, again[-6000:]
