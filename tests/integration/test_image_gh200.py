"""The gh200 flavour, from the Dockerfile, the recipe and the roles that a GPU host uses, with
stand-ins for what is not available here.

Stand-ins (tests/doubles/gh200): a replica of SGLang's image with the real package's files,
NVIDIA's dcgm-exporter image, Jaeger's program. Real: Prometheus, node_exporter, the build, the
init, Docker's capabilities. What only the real ones can show is not shown here: that their programs
run, and a GPU.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract import validators
from tests.integration.installation import (
    IMAGE,
    Play,
    Site,
    docker,
    installation,
    port_is_free,
    wait_for,
)
from tests.integration.stand_ins import (
    BASE,
    DCGM,
    SGLANG,
    build,
    docker_build,
    host_architecture,
    pack,
    put_packages,
    take_file,
)

pytestmark = pytest.mark.slow

GH200_IMAGE = "sglang-dev-gh200-test:gh200"
PORTS = {"dcgm_exporter": 19640, "jaeger_ui": 19686, "otlp_grpc": 19617, "otlp_http": 19618}
SYS_ADMIN = 1 << 21


@dataclass
class Gh200Site(Site):
    """An installation of the gh200 flavour on a host without a GPU: the container starts, and
    nothing is prepared.
    """

    container: str = "sglang-dev-gh200-test"
    archives: Path = Path("/nonexistent")
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ports |= PORTS

    @property
    def variables(self) -> dict[str, Any]:
        return {
            **super().variables,
            **{f"sgl_{name}_port": port for name, port in self.ports.items()},
            "sgl_flavour": "gh200",
            # The stand-ins for the bases are small.
            "sgl_space_gb": {"docker": 8},
            # There is none here.
            "sgl_gpus": False,
            "sgl_image": GH200_IMAGE,
            "sgl_image_base": BASE,
            "sgl_image_dcgm": DCGM,
            "sgl_image_downloads": self.digests,
            "sgl_download_dir": str(self.archives),
            "sgl_image_build_dir": str(self.archives.parent / "build"),
            "sgl_trace_retention": "36h",
        }

    def page(self, port: str, path: str) -> Any:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.ports[port]}{path}", timeout=5
        ) as answer:
            return json.load(answer)

    def told(self, service: str) -> dict[str, Any]:
        """What a stand-in says of its start."""
        return wait_for(lambda: self._told(service), f"{service} to answer")

    def _told(self, service: str) -> Any:
        try:
            return self.page(service, "/stand-in")
        except OSError:
            return None


@pytest.fixture(scope="module")
def site(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gh200Site]:
    build()
    programs, archives = (
        tmp_path_factory.mktemp("programs"),
        tmp_path_factory.mktemp("gh200") / "archives",
    )
    archives.mkdir()
    taken = {
        "prometheus": (IMAGE, "/usr/local/bin/prometheus"),
        "node_exporter": (IMAGE, "/usr/local/bin/node_exporter"),
        "jaeger": (BASE, "/opt/stand-in/service"),
    }
    for name, (source, path) in taken.items():
        take_file(source, path, programs / name)
    digests = {
        name: {"sha256": pack(archives, name, programs / name, host_architecture())}
        for name in taken
    }
    shutil.rmtree(programs)
    with installation(Gh200Site, archives=archives, digests=digests) as made:
        yield made
    # The build's cache keeps their layers.
    docker("image", "rm", "--force", GH200_IMAGE, BASE, DCGM, check=False)


@pytest.fixture(scope="module")
def first(site: Gh200Site) -> Play:
    return site.must_play("start")


@pytest.fixture
def started(site: Gh200Site, first: Play) -> Gh200Site:
    """The container without any capability."""
    site.must_play("start")
    return site


def test_the_image_is_built_and_its_container_publishes_a_run(site: Gh200Site, first: Play) -> None:
    assert first.changed > 0
    manifest = site.manifest()
    validators.validate_manifest(manifest)
    assert manifest["flavour"] == "gh200" and manifest["architecture"] == host_architecture()
    base = json.loads(docker("image", "inspect", BASE).stdout)[0]
    assert manifest["base_image"] == {"name": BASE, "digest": base["Id"]}
    assert manifest["versions"]["sglang"] == SGLANG and manifest["versions"]["jaeger"] == "1.73.0"
    assert manifest["versions"]["dcgm_exporter"].startswith("4.4.1")
    assert manifest["services"]["jaeger"] == {
        "ui": 19686,
        "otlp_grpc": 19617,
        "otlp_http": 19618,
        "url": "http://127.0.0.1:19686",
    }


def test_a_second_start_changes_nothing(started: Gh200Site) -> None:
    for flags in ((), ("--check", "--diff")):
        assert started.must_play("start", *flags).changed == 0


def test_the_base_images_own_python_and_paths_stay_in_use(started: Gh200Site) -> None:
    script = (
        "import os, sys, supervisor, pynvml; print(sys.executable, supervisor.__file__,"
        " pynvml.__file__, os.environ['PATH'])"
    )
    python, supervisor, pynvml, path = started.docker_exec(
        "/opt/sglang/bin/python", "-c", script
    ).stdout.split()
    assert (
        python == "/opt/sglang/bin/python"
        and supervisor.startswith("/opt/sgl-packages/")
        and pynvml.startswith("/opt/sgl-packages/")
    )
    assert path.startswith("/opt/sglang/bin:/usr/local/cuda/bin:")
    assert started.docker_exec("printenv", "CUDA_HOME").stdout.strip() == "/usr/local/cuda"
    # What was added comes last: a package that the base has is not put out of use.
    script = "import sys; print(sys.path[-1])"
    assert (
        started.docker_exec("/opt/sglang/bin/python", "-c", script).stdout.strip()
        == "/opt/sgl-packages"
    )
    # What the base bakes in root's home can be read, and packages have their byte code.
    assert started.docker_exec("cat", "/root/.cache/sglang/kernels.lock").stdout == "[]\n"
    script = (
        "import importlib.util as u, os; print(os.path.exists(u.find_spec('supervisor').cached))"
    )
    assert started.docker_exec("/opt/sglang/bin/python", "-c", script).stdout == "True\n"
    assert started.admin("version").returncode == 0
    assert "libdcgm.so.4" in started.docker_exec("/sbin/ldconfig", "--print-cache").stdout


def test_sglang_is_found_where_its_image_installs_it(started: Gh200Site) -> None:
    """Editable, below /sgl-workspace: no folder on Python's path has it."""
    script = (
        "from sgl_admin.base import versions; from sgl_admin.sglang import releases;"
        " print(versions.package_folder('sglang'), releases.installed()[1],"
        " releases.installed()[0].built_in_moe_configs().is_dir())"
    )
    done = started.docker_exec(
        "/opt/sglang/bin/python", "-c", script, options=("--env=PYTHONPATH=/opt/sgl-admin",)
    )
    assert done.stdout == "/sgl-workspace/sglang/python/sglang None True\n", done.stderr


@pytest.mark.parametrize(("architecture", "has_fa3"), [("x86_64", True), ("aarch64", False)])
def test_the_replica_has_the_kernels_of_an_architecture(
    architecture: str, has_fa3: bool, tmp_path: Path
) -> None:
    put_packages(tmp_path / "packages", architecture)
    names = (tmp_path / "packages" / "kernels.txt").read_text(encoding="utf-8").splitlines()
    assert any(name.startswith("sgl_kernel/flash_ops") for name in names) is has_fa3
    assert any(name.startswith("sgl_kernel/sm90/") for name in names)


def test_without_the_capability_profiling_metrics_are_left_out_with_a_warning(
    started: Gh200Site,
) -> None:
    manifest = started.manifest()
    assert {
        name: surface["status"] for name, surface in manifest["telemetry_surfaces"].items()
    } == {
        "sglang_metrics": "expected",
        "tracing": "running",
        "node_metrics": "running",
        "dcgm_metrics": "degraded",
    }
    assert (
        manifest["telemetry_surfaces"]["dcgm_metrics"]["details"]
        == "profiling metrics need SYS_ADMIN"
    )
    assert manifest["warnings"] == [
        "dcgm-exporter lacks cap_sys_admin; start container with --cap-add SYS_ADMIN for profiling"
        " metrics"
    ]
    assert manifest["exporters_state"] == {"node_exporter": "running", "dcgm_exporter": "running"}
    told = started.told("dcgm_exporter")
    assert (
        int(told["capabilities"], 16) == 0
        and told["uid"] == started.owner[0]
        and told["program"] == "/usr/local/bin/dcgm-exporter"
    )
    assert "remote-hostengine-info" not in told["flags"]
    assert metrics(started) == {"DCGM_FI_DEV_GPU_UTIL"}


def metrics(site: Gh200Site) -> set[str]:
    """The names of DCGM's metrics that Prometheus holds of this run, once it has scraped them."""
    query = (
        f'/api/v1/series?match[]={{container_run="{site.run_id}"'
        ',job="dcgm_exporter",__name__=~"DCGM_.*"}'
    )
    return wait_for(
        lambda: {series["__name__"] for series in site.prometheus(query)["data"]}, "DCGM's metrics"
    )


def test_with_the_capability_dcgm_exporter_has_it_and_nothing_else_does(started: Gh200Site) -> None:
    started.must_play("start", variables={"sgl_capabilities": ["SYS_ADMIN"]})
    manifest = started.manifest()
    assert (
        manifest["telemetry_surfaces"]["dcgm_metrics"]["status"] == "running"
        and manifest["warnings"] == []
    )
    told = started.told("dcgm_exporter")
    assert int(told["capabilities"], 16) == SYS_ADMIN and told["uid"] == started.owner[0]
    assert metrics(started) == {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"}
    assert int(started.told("jaeger_ui")["capabilities"], 16) == 0
    status = started.docker_exec("cat", "/proc/self/status").stdout
    assert "CapEff:\t0000000000000000" in status
    found = started.inspect()
    assert found is not None and found["HostConfig"]["CapAdd"] in (["SYS_ADMIN"], ["CAP_SYS_ADMIN"])


@contextmanager
def listener(port: int) -> Iterator[None]:
    server = http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.skipif(
    not port_is_free(5555), reason="an nv-hostengine, or something else, has its port here"
)
@pytest.mark.parametrize("engine", [True, False], ids=["nv-hostengine", "something else"])
def test_the_hosts_own_engine_is_used_where_it_answers(started: Gh200Site, engine: bool) -> None:
    with listener(5555):
        started.must_play(
            "start", variables={"sgl_environment": {"STAND_IN_HOST_ENGINE": "1" if engine else ""}}
        )
        flags = started.told("dcgm_exporter")["flags"]
        surface = started.manifest()["telemetry_surfaces"]["dcgm_metrics"]
    assert flags.get("remote-hostengine-info") == ("127.0.0.1:5555" if engine else None)
    assert surface["status"] == ("running" if engine else "degraded")
    assert ("nv-hostengine of the host" in surface["details"]) is engine


def test_jaeger_keeps_its_traces_under_the_run(started: Gh200Site) -> None:
    told = started.told("jaeger_ui")
    assert (
        told["storage"] == "badger"
        and told["flags"]["badger.ephemeral"] == "false"
        and told["flags"]["badger.span-store-ttl"] == "36h"
    )
    folder = started.telemetry / "jaeger" / started.run_id
    assert (
        told["flags"]["badger.directory-key"] == f"/telemetry/jaeger/{started.run_id}/key"
        and (folder / "key").is_dir()
    )
    assert told["flags"]["collector.otlp.http.host-port"] == "127.0.0.1:19618"
    # Where the server sends them (tests/integration/test_traces.py).
    assert (
        started.manifest()["services"]["jaeger"]["otlp_grpc"] == 19617
        and told["flags"]["collector.otlp.grpc.host-port"] == "127.0.0.1:19617"
    )


def test_a_host_without_nvidias_container_toolkit_is_told_what_to_install(
    started: Gh200Site,
) -> None:
    if "nvidia" in docker("info", "--format", "{{json .Runtimes}}").stdout:
        pytest.skip("this host has the toolkit")
    play = started.play("start", variables={"stack_gpus": True, "sgl_ulimits": []})
    assert (
        play.code != 0
        and "install the NVIDIA Container Toolkit" in play.text
        and "could not select device driver" in play.text
    )


def test_a_base_for_another_architecture_is_refused_before_anything_is_built(
    site: Gh200Site, first: Play, tmp_path: Path
) -> None:
    other = "arm64" if host_architecture() == "amd64" else "amd64"
    name = f"sglang-dev-gh200-test-{other}:base"
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    docker_build("--platform", f"linux/{other}", "--tag", name, str(tmp_path))
    try:
        play = site.play("start", variables={"sgl_image_base": name})
    finally:
        docker("image", "rm", "--force", name)
    assert (
        play.code != 0
        and f"{name} cannot be pulled; the one that is here is for {other}" in play.text
        and "set sgl_image_base" in play.text
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prometheus": {"sha256": "0" * 64}}, "is another file than the one wanted"),
        ({"jaeger": {"version": "1.74.0"}},
         "the digest of jaeger-1.74.0-linux-"),
        ({"grafana": {}}, "sgl_image_downloads has 'grafana'"),
    ],
)  # fmt: skip
def test_an_archive_that_is_not_the_wanted_one_is_refused(
    site: Gh200Site, first: Play, given: dict[str, Any], said: str
) -> None:
    variables = {
        "sgl_image_downloads": {**site.digests, **given},
        "sgl_image_require_digests": True,
    }
    play = site.play("start", variables=variables)
    assert play.code != 0 and said in play.text, play.text


def test_it_stops_in_order(started: Gh200Site) -> None:
    started.must_play("stop")
    assert [name for name, port in started.ports.items() if not port_is_free(port)] == []
    assert not started.pointer.exists()
