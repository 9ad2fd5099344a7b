"""What the init writes: Prometheus' and the supervisor's configuration, the user's entry, the
manifest, and the facts it rests on.
"""

from __future__ import annotations

import configparser
import errno
import http.server
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slice_bench.sglang.plugins.module_utils import _model_files as model_files

from sgl_admin.base import files, locks, paths, processes, versions
from sgl_admin.contract import places
from sgl_admin.contract.services import BY_NAME, SERVICES, SURFACES
from sgl_admin.facts import devices, image_facts, model
from sgl_admin.init import dcgm, publish, services, start, surfaces
from sgl_admin.init.services import Settings
from sgl_admin.records import job, run
from sgl_admin.sglang import releases
from tests.contract import validators
from tests.unit.model_files import CONFIG

RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"
ALL = ["prometheus", "node_exporter", "dcgm_exporter"]


def settings(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name in [name for name in os.environ if name.startswith("SGL_")]:
        if not name.startswith("SGL_HOST_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Settings.from_environment()


# --- Prometheus -----------------------------------------------------------------------------------


def test_each_target_carries_the_runs_label(monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(services.render_prometheus_config(settings(monkeypatch), RUN_ID, ALL))
    assert config["global"] == {"scrape_interval": "1s", "scrape_timeout": "1s"}
    found = {}
    for scraped in config["scrape_configs"]:
        (target,) = scraped["static_configs"]
        assert target["labels"] == {"container_run": RUN_ID}
        (found[scraped["job_name"]],) = target["targets"]
    assert found == {
        "prometheus": "127.0.0.1:9090",
        "node_exporter": "127.0.0.1:9100",
        "dcgm_exporter": "127.0.0.1:9400",
        "sglang": "127.0.0.1:30000",
    }
    assert "external_labels" not in config["global"]


def test_each_scrape_has_limits_far_above_what_exporters_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fake server's page of 900,000 series took a GB of memory."""
    config = yaml.safe_load(services.render_prometheus_config(settings(monkeypatch), RUN_ID, ALL))
    for scraped in config["scrape_configs"]:
        assert 10 * 438 < scraped["sample_limit"] < 900_000
        assert scraped["body_size_limit"] == "16MB"
        assert scraped["label_limit"] > 12 + 3
        assert scraped["label_name_length_limit"] and scraped["label_value_length_limit"]


@pytest.mark.parametrize(
    ("bind", "prometheus"),
    [("0.0.0.0", "127.0.0.1:19390"), ("::1", "[::1]:19390"), ("192.0.2.7", "192.0.2.7:19390")],
)
def test_targets_follow_the_settings(
    monkeypatch: pytest.MonkeyPatch, bind: str, prometheus: str
) -> None:
    given = settings(
        monkeypatch,
        SGL_BIND_ADDRESS=bind,
        SGL_PROMETHEUS_PORT="19390",
        SGL_SGLANG_PORT="31390",
        SGL_SCRAPE_INTERVAL="500ms",
    )
    config = yaml.safe_load(services.render_prometheus_config(given, RUN_ID, ["prometheus"]))
    found = {
        scraped["job_name"]: scraped["static_configs"][0]["targets"]
        for scraped in config["scrape_configs"]
    }
    assert found == {"prometheus": [prometheus], "sglang": ["127.0.0.1:31390"]}
    assert config["global"]["scrape_interval"] == "500ms"


# --- the supervisor -------------------------------------------------------------------------------


def test_the_supervisor_runs_each_service_and_the_record(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = start.render_supervisor_config(
        settings(monkeypatch), ["prometheus", "node_exporter"], RUN_ID
    )
    config = configparser.RawConfigParser()
    config.read_string(text)
    assert config.sections() == [
        "supervisord",
        "program:prometheus",
        "program:node_exporter",
        "program:run_record",
    ]
    assert config["supervisord"]["umask"] == "027" and config["supervisord"]["user"] == str(
        os.getuid()
    )
    priorities = {name: int(config[name]["priority"]) for name in config.sections()[1:]}
    assert max(priorities, key=lambda name: priorities[name]) == "program:run_record", (
        "it is ended first, while the services answer"
    )
    assert {config[name]["stdout_logfile"] for name in priorities} == {str(paths.log(RUN_ID))}
    command = shlex.split(config["program:prometheus"]["command"])
    assert (
        f"--storage.tsdb.path={paths.PROMETHEUS / RUN_ID}" in command
        and "--web.listen-address=127.0.0.1:9090" in command
    )
    command = shlex.split(config["program:node_exporter"]["command"])
    assert f"--collector.textfile.directory={paths.metrics(RUN_ID)}" in command
    assert int(config["program:run_record"]["stopwaitsecs"]) < 60, (
        "below the container's stop timeout"
    )


@pytest.mark.parametrize(("watch", "there"), [("True", True), ("False", False), ("", False)])
def test_the_watcher_runs_where_it_is_asked_for(
    container: Path, monkeypatch: pytest.MonkeyPatch, watch: str, there: bool
) -> None:
    text = start.render_supervisor_config(settings(monkeypatch, SGL_WATCH=watch), [], RUN_ID)
    config = configparser.RawConfigParser()
    config.read_string(text)
    assert config.has_section("program:watcher") is there
    if there:
        program = config["program:watcher"]
        assert shlex.split(program["command"])[1:] == ["-P", "-m", "sgl_admin.init.watcher", RUN_ID]
        assert int(program["priority"]) < int(config["program:run_record"]["priority"])
        assert program["autorestart"] == "true" and int(program["startretries"]) > 1000


def test_a_service_that_cannot_start_is_started_again_for_as_long_as_it_takes(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """supervisor 4 (process.py) waits a second longer before each try, and gives a program up for
    good after `startretries` of them, three by default: a port that was busy for 8 s.
    """
    text = start.render_supervisor_config(settings(monkeypatch), list(services.COMMANDS), RUN_ID)
    config = configparser.RawConfigParser()
    config.read_string(text)
    for name in (*services.COMMANDS, "run_record"):
        tries = int(config[f"program:{name}"]["startretries"])
        assert tries * (tries + 1) / 2 > 10 * 365 * 86400, f"{name} is given up within ten years"


def test_a_percent_sign_reaches_the_program(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = start.render_supervisor_config(
        settings(monkeypatch, SGL_TSDB_RETENTION_SIZE="50%"), ["prometheus"], RUN_ID
    )
    assert "retention.size=50%%" in text


def test_a_new_run_has_its_folders_and_no_pointer_yet(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "SUPERVISOR_CONFIG", paths.STATE / "supervisord.conf")
    first = start.begin_run(settings(monkeypatch), ["prometheus"])
    second = start.begin_run(settings(monkeypatch), ["prometheus"])
    assert first != second and paths.LIVE_RUN.read_text() == second + "\n"
    for run_id in (first, second):
        assert (
            (paths.run_dir(run_id) / "stages").is_dir()
            and paths.metrics(run_id).is_dir()
            and (paths.PROMETHEUS / run_id).is_dir()
            and (paths.JAEGER / run_id).is_dir()
        )
        assert run_id in (paths.run_dir(run_id) / "prometheus.yml").read_text()
        # Prometheus' own would be open to the group, of which any member could hold it.
        lock = paths.PROMETHEUS / run_id / places.PROMETHEUS_LOCK
        assert stat.S_IMODE(lock.stat().st_mode) == places.LOCK_MODE
    assert not paths.POINTER.exists()


# --- what only a flavour for GPUs has -------------------------------------------------------------

GPU_FLAVOUR = json.loads(
    (
        Path(__file__).resolve().parents[2] / "roles/image/files/flavours/gh200/flavour.json"
    ).read_text()
)


def test_jaeger_keeps_its_traces_under_the_run(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(
        monkeypatch,
        SGL_BIND_ADDRESS="192.0.2.7",
        SGL_OTLP_GRPC_PORT="4417",
        SGL_TRACE_RETENTION="24h",
    )
    command = services.COMMANDS["jaeger"](given, RUN_ID)
    assert command[:3] == ["env", "SPAN_STORAGE_TYPE=badger", "jaeger-all-in-one"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in command[3:])
    assert (
        Path(flags["badger.directory-key"]).parent
        == Path(flags["badger.directory-value"]).parent
        == paths.JAEGER / RUN_ID
    )
    assert flags["badger.ephemeral"] == "false" and flags["badger.span-store-ttl"] == "24h"
    assert (
        flags["collector.otlp.grpc.host-port"] == "192.0.2.7:4417"
        and flags["query.http-server.host-port"] == "192.0.2.7:16686"
    )
    listens = {name: value for name, value in flags.items() if name.endswith("host-port")}
    assert {
        value
        for name, value in listens.items()
        if value not in ("192.0.2.7:4417", "192.0.2.7:4318", "192.0.2.7:16686")
    } == {"127.0.0.1:0"}, "the network is the host's: nothing else may take a port that has a name"


@pytest.mark.parametrize(
    ("bind", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:4417"),
        ("0.0.0.0", "127.0.0.1:4417"),
        ("::1", "[::1]:4417"),
        ("::", "127.0.0.1:4417"),
    ],
)
def test_the_server_sends_its_traces_to_jaeger(
    container: Path,
    image: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    bind: str,
    endpoint: str,
) -> None:
    files.write_json(paths.FLAVOUR, GPU_FLAVOUR)
    monkeypatch.setattr(versions, "installed", lambda name: "1.36.0")
    given = settings(monkeypatch, SGL_BIND_ADDRESS=bind, SGL_OTLP_GRPC_PORT="4417")
    manifest = publish.build_manifest(RUN_ID, given, threading.Event())
    for version, flag in (
        ("0.5.3", "--oltp-traces-endpoint"),
        ("0.5.17", "--otlp-traces-endpoint"),
    ):
        assert releases.of(version)[0].tracing_arguments(manifest) == [
            "--enable-trace",
            flag,
            endpoint,
        ]
    manifest["telemetry_surfaces"]["tracing"]["status"] = "failed"
    assert releases.of("0.5.17")[0].tracing_arguments(manifest) == []


def test_a_server_that_cannot_send_traces_is_not_told_to(
    container: Path, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_json(paths.FLAVOUR, GPU_FLAVOUR)
    monkeypatch.setattr(
        versions, "installed", lambda name: None if name == "opentelemetry-sdk" else "1.36.0"
    )
    manifest = publish.build_manifest(RUN_ID, settings(monkeypatch), threading.Event())
    surface = manifest["telemetry_surfaces"]["tracing"]
    assert (
        surface["status"] == "degraded"
        and "its Python lacks opentelemetry-sdk" in surface["details"]
    )
    assert f"tracing: {surface['details']}" in manifest["warnings"]
    assert releases.of("0.5.17")[0].tracing_arguments(manifest) == []


def test_a_service_of_a_later_release_is_passed_over(container: Path) -> None:
    files.write_json(
        paths.FLAVOUR, {"flavour": "local", "services": ["prometheus", "of a later release"]}
    )
    assert services.of_image() == ["prometheus"]


STATUS = (
    "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
    "CapBnd:\t{bounding}\nNoNewPrivs:\t{sealed}\n"
)


@pytest.mark.parametrize(
    ("bounding", "sealed", "host_engine", "problem", "profiling"),
    [
        ("0000000000200000", 0, False, "", True),
        ("0000000000000000", 0, False, "", False),
        # Root's own default set, without SYS_ADMIN.
        ("00000000a80425fb", 0, False, "", False),
        ("0000000000200000", 1, False, "", False),
        ("0000000000000000", 1, True, "", True),
        # Two engines would profile one GPU.
        ("0000000000200000", 0, False, "a host engine of DCGM 3", False),
    ],
)
def test_whether_dcgm_may_profile(
    bounding: str, sealed: int, host_engine: bool, problem: str, profiling: bool
) -> None:
    choice = dcgm.choose(STATUS.format(bounding=bounding, sealed=sealed), host_engine, problem)
    assert (choice.host_engine, choice.profiling) == (host_engine, profiling)
    assert choice.reason == ("" if profiling else problem or "profiling metrics need SYS_ADMIN")


def test_a_kernel_that_says_nothing_of_capabilities_gives_none() -> None:
    assert dcgm.choose("Name:\tx\n", False, "").profiling is False


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("default-counters", "dcp-metrics-included"):
        (tmp_path / f"{name}.csv").write_text(
            f"# {name}\nDCGM_FI_DEV_GPU_UTIL, gauge, x\nDCGM_FI_PROF_DRAM_ACTIVE, gauge, x\n"
        )
    monkeypatch.setattr(dcgm, "COUNTERS", tmp_path)


@pytest.mark.parametrize(
    ("choice", "program", "listed", "remote"),
    [
        (dcgm.Choice(False, True), dcgm.PRIVILEGED, "dcp-metrics-included", False),
        (dcgm.Choice(False, False), dcgm.PLAIN, "default-counters", False),
        (dcgm.Choice(True, True), dcgm.PLAIN, "dcp-metrics-included", True),
    ],
)
def test_the_exporter_that_is_started(
    container: Path,
    counters: None,
    monkeypatch: pytest.MonkeyPatch,
    choice: dcgm.Choice,
    program: str,
    listed: str,
    remote: bool,
) -> None:
    argv = dcgm.command(choice, settings(monkeypatch, SGL_DCGM_EXPORTER_PORT="9410"))
    assert (
        argv[0] == program
        and "--address=127.0.0.1:9410" in argv
        and (f"--remote-hostengine-info=127.0.0.1:{5555}" in argv) is remote
    )
    text = (paths.STATE / "dcgm-counters.csv").read_text()
    assert (
        text.startswith(f"# {listed}\n")
        and "DCGM_FI_DEV_GPU_UTIL" in text
        and ("DCGM_FI_PROF_" in text) is choice.profiling
    )


@pytest.mark.parametrize(
    ("answers", "found", "words"),
    [
        ("exit 0", True, ""),
        # dcgmi 4 that asks an nv-hostengine of DCGM 3.
        (
            "echo 'Error: unable to connect to host engine: version mismatch' >&2; exit 1",
            False,
            "(Error: unable to connect to host engine: version mismatch)",
        ),
        ("exit 3", False, "(exit code 3)"),
    ],
)
def test_what_has_the_engines_port_is_asked_whether_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, found: bool, words: str
) -> None:
    dcgmi = tmp_path / "dcgmi"
    dcgmi.write_text(f"#!/bin/sh\n{answers}\n")
    dcgmi.chmod(0o755)
    monkeypatch.setattr(dcgm, "DCGMI", str(dcgmi))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dcgm, "HOST_ENGINE_PORT", holder.getsockname()[1])
        assert dcgm.host_engine() == (False, "")
        holder.listen()
        answers_, problem = dcgm.host_engine()
        assert answers_ is found and words in problem and bool(problem) is not found
        assert found or "systemctl stop nvidia-dcgm" in problem
        monkeypatch.setattr(dcgm, "DCGMI", str(tmp_path / "none"))
        assert dcgm.host_engine()[0] is False


# The pages and the last words of dcgm-exporter 4.4.1-4.5.2, by what goes wrong with profiling: the
# messages are those of pkg/cmd/app.go and internal/pkg/collector/collector_factory.go, the error
# behind the first that of a GPU without the profiling module.
_DEV, _PROF = 'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 0', 'DCGM_FI_PROF_DRAM_ACTIVE{gpu="0"} 0.1'
_NO_DCP = (
    'level=info msg="Not collecting DCP metrics: This request is serviced by a module of DCGM that'
    ' is not currently loaded"'
)
_NO_GPU = (
    'level=info msg="Not collecting GPU metrics; error watching fields: Feature not supported"'
)
_DEAD = (
    "level=fatal msg=\"DCGM collector for entity type 'GPU' cannot be initialized; err: setting"
    ' not configured"'
)
EXPORTER = """#!{python}
import http.server, sys, time
port = int(next(word for word in sys.argv if word.startswith("--address")).rpartition(":")[2])
collectors = next(word for word in sys.argv if word.startswith("--collectors")).partition("=")[2]
said, page, code = {said!r}, {page!r}, {code!r}
if "PROF" not in open(collectors).read():
    said, page, code = "plain", {plain!r}, None
print(said, flush=True)
if code is not None:
    sys.exit(code)
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((page if self.path == "/metrics" else "KO").encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", port), Pages).serve_forever()
"""


@pytest.mark.parametrize(
    ("said", "page", "code", "profiling", "reason"),
    [
        ("", f"{_DEV}\n{_PROF}\n", None, True, ""),
        (_NO_DCP, f"{_DEV}\n", None, False,
         "no profiling metrics: This request is serviced by a module of DCGM that is not currently"
         " loaded"),
        ("", f"{_DEV}\n", None, False, "no profiling metrics: dcgm-exporter gives none"),
        (_NO_GPU, "", None, False,
         "no profiling metrics: dcgm-exporter had no metrics of the GPUs with them (error watching"
         " fields: Feature not supported)"),
        (_DEAD, "", 1, False,
         "no profiling metrics: dcgm-exporter ended with exit code 1 with them (DCGM collector for"
         " entity type 'GPU' cannot be initialized; err: setting not configured)"),
    ],
    ids=["profiles", "unsupported", "silent", "empty page", "ends"],
)  # fmt: skip
def test_dcgm_is_ready_with_metrics_of_the_gpus_and_says_why_it_does_not_profile(
    container: Path,
    counters: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    page: str,
    code: int | None,
    profiling: bool,
    reason: str,
) -> None:
    for name in ("PLAIN", "PRIVILEGED"):
        script = tmp_path / name
        script.write_text(
            EXPORTER.format(
                python=sys.executable, said=said, page=page, code=code, plain=f"# x\n{_DEV}\n"
            )
        )
        script.chmod(0o755)
        monkeypatch.setattr(dcgm, name, str(script))
    for name, value in (("_PATIENCE_S", (10.0, 0.5, 0.3)), ("_POLL_S", 0.02)):
        monkeypatch.setattr(dcgm, name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = settings(monkeypatch, SGL_DCGM_EXPORTER_PORT=port)
    running: list[dcgm.Exporter] = []
    started = dcgm.Exporter.__enter__

    def begin(exporter: dcgm.Exporter) -> dcgm.Exporter:
        running.append(exporter)
        return started(exporter)

    monkeypatch.setattr(dcgm.Exporter, "__enter__", begin)
    thread = threading.Thread(target=dcgm.run, args=(dcgm.Choice(False, True), given), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not publish.is_ready(BY_NAME["dcgm_exporter"], given):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = dcgm.chosen()
    finally:
        running[-1]._process.kill()
        thread.join(timeout=10)
    assert found == dcgm.Choice(False, profiling, reason or found.reason, settled=True)
    assert not thread.is_alive() and len(running) == (2 if not page else 1)


def test_an_exporter_without_metrics_of_the_gpus_is_not_ready(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health says 200 whatever is collected."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'DCGM_EXP_XID_ERRORS_COUNT{gpu="0"} 0\n')

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dcgm = BY_NAME["dcgm_exporter"]
        assert publish.answers("127.0.0.1", server.server_port, dcgm) is False
        assert publish.answers("127.0.0.1", server.server_port, replace(dcgm, shows="")) is True
        server.shutdown()


def test_the_manifest_tells_what_dcgm_may_do(
    container: Path, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_json(paths.FLAVOUR, GPU_FLAVOUR)
    monkeypatch.setattr(versions, "installed", lambda name: "1.36.0")

    def surfaces(**note: Any) -> tuple[dict[str, str], list[str]]:
        files.write_json(paths.STATE / "dcgm-exporter.json", note)
        manifest = publish.build_manifest(RUN_ID, settings(monkeypatch), threading.Event())
        validators.validate_manifest(json.loads(json.dumps(manifest).replace(str(container), "")))
        assert manifest["telemetry_surfaces"]["tracing"]["status"] == "running"
        return manifest["telemetry_surfaces"]["dcgm_metrics"], manifest["warnings"]

    example = validators.example("manifest")
    assert surfaces() == (example["telemetry_surfaces"]["dcgm_metrics"], example["warnings"])
    assert surfaces(host_engine=False, profiling=True) == (
        {"status": "running", "details": "dcgm-exporter at 127.0.0.1:9400"},
        [],
    )
    found, warnings = surfaces(host_engine=True, profiling=True)
    assert (
        found["status"] == "running"
        and "nv-hostengine of the host" in found["details"]
        and warnings == []
    )
    found, warnings = surfaces(host_engine=False, profiling=False, reason="no module")
    assert found == {"status": "degraded", "details": "no module"}
    assert warnings == ["dcgm_metrics: no module"]


# --- identity and ports ---------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        given = settings(monkeypatch, SGL_NODE_EXPORTER_PORT=str(port))
        with pytest.raises(
            SystemExit,
            match=(
                f"node_exporter cannot listen on 127.0.0.1:{port}.*stop what holds it, or set"
                " another port"
            ),
        ):
            start.refuse_busy_ports(given, ["node_exporter"])
    start.refuse_busy_ports(given, ["node_exporter"])


# --- the manifest ---------------------------------------------------------------------------------


IS_READY = publish.is_ready


@pytest.fixture
def image(container: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An image's facts and flavour, and services that answer at once."""
    example = validators.example("manifest")
    facts = {
        key: example[key]
        for key in (
            "flavour",
            "architecture",
            "image_inputs",
            "base_image",
            "git_revision",
            "versions",
        )
    }
    files.write_json(paths.IMAGE_FACTS, facts)
    flavour = {
        "flavour": "local",
        "services": ["prometheus", "node_exporter"],
        "unavailable": {"jaeger": "it is not there"},
    }
    files.write_json(paths.FLAVOUR, flavour)
    monkeypatch.setattr(publish, "is_ready", lambda *_: True)
    monkeypatch.setattr(publish, "container_id", lambda: example["container_id"])
    for name in ("container_name", "image", "image_id"):
        monkeypatch.setenv(f"SGL_{name.upper()}", example[name])
    return facts


def test_the_manifest_keeps_the_contract(container: Path, image: dict[str, Any]) -> None:
    manifest = publish.build_manifest(RUN_ID, Settings.from_environment(), threading.Event())
    # The schema knows the real mounts: the temporary folder that stands for the container's root
    # goes.
    manifest = json.loads(json.dumps(manifest).replace(str(container), ""))
    validators.validate_manifest(manifest)
    assert {
        name: surface["status"] for name, surface in manifest["telemetry_surfaces"].items()
    } == {
        **dict.fromkeys(SURFACES, "unavailable"),
        "sglang_metrics": "expected",
        "node_metrics": "running",
    }
    assert manifest["telemetry_surfaces"]["tracing"]["details"] == "it is not there"
    assert manifest["warnings"] == []
    assert {side: manifest["paths"][side]["prep_result"] for side in ("container", "host")} == {
        "container": None,
        "host": None,
    }
    assert manifest["paths"]["host"]["profiles_root"] == "/host/profiles"


def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no service have time to start."""
    hasty = tuple(replace(service, ready_timeout_s=0.05) for service in SERVICES)
    monkeypatch.setattr(surfaces, "SERVICES", hasty)
    for service in hasty:
        monkeypatch.setitem(BY_NAME, service.name, service)


def test_a_service_that_does_not_answer_is_failed_and_warned_of(
    container: Path, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_no_time(monkeypatch)
    monkeypatch.setattr(
        publish, "is_ready", lambda service, settings: service.name == "node_exporter"
    )
    monkeypatch.setattr(publish.ports, "stranger", lambda *_: None)
    manifest = publish.build_manifest(RUN_ID, Settings.from_environment(), threading.Event())
    validators.validate_manifest(json.loads(json.dumps(manifest).replace(str(container), "")))
    assert manifest["telemetry_surfaces"]["sglang_metrics"]["status"] == "failed"
    assert manifest["exporters_state"]["node_exporter"] == "running"
    assert (
        len(manifest["warnings"]) == 1
        and "Prometheus did not become ready" in manifest["warnings"][0]
    )


def test_an_exporter_of_somebody_else_is_failed_and_named(
    container: Path, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_no_time(monkeypatch)
    monkeypatch.setattr(publish, "is_ready", IS_READY)
    monkeypatch.setattr(publish, "answers", lambda *_: True)
    chosen = Settings.from_environment()
    number = chosen.ports[BY_NAME["node_exporter"].ports[0].name]
    monkeypatch.setattr(
        publish.ports, "stranger", lambda host, port: "a fake" if port == number else None
    )
    manifest = publish.build_manifest(RUN_ID, chosen, threading.Event())
    assert manifest["exporters_state"]["node_exporter"] == "failed"
    said = (
        f"port {number} is answered by a fake instead of this container's node_exporter: stop that"
    )
    assert manifest["telemetry_surfaces"]["node_metrics"]["details"].startswith(said)
    assert any(said in warning for warning in manifest["warnings"])


def test_a_stop_while_starting_does_not_wait_for_the_services(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "answers", lambda *_: False)
    ending = threading.Event()
    ending.set()
    assert publish.wait_for_services(["prometheus"], settings(monkeypatch), ending) == {
        "prometheus": "failed"
    }


def test_the_end_of_a_run_ends_its_prep(live_run: str, tmp_path: Path) -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(1,"
        " flush=True); signal.pause()"
    )
    prep = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert prep.stdout is not None and prep.stdout.readline() == b"1\n"
    request = job.Request("/models/m", 1, {}, (), "auto", "auto", (), 1.0, 1.0, 30000)
    record = job.Job(live_run, request, "prep-20261123T091600Z-77aa01bc")
    record.update(pid=prep.pid, pid_start_ticks="another")
    publish.end_work(live_run)
    assert prep.poll() is None, "a process that only has the same number was ended"
    record.update(pid=prep.pid, pid_start_ticks=processes.start_time(prep.pid))
    publish.end_work(live_run)
    assert prep.wait(60) == 0


def test_a_run_without_a_prep_ends(live_run: str) -> None:
    publish.end_work(live_run)
    assert run.pointed_run() == live_run


# --- what a killed container left -----------------------------------------------------------------


def test_what_a_killed_container_left_is_tidied(live_run: str) -> None:
    request = job.Request("/models/m", 1, {}, (), "auto", "auto", (), 1.0, 1.0, 30000)
    job.Job(live_run, request, "prep-20261123T091600Z-77aa01bc").update()
    stages = paths.run_dir(live_run) / "stages"
    stages.mkdir()
    paths.metrics(live_run).mkdir()
    left = [
        paths.STATE / ".passwd.x.tmp",
        paths.TELEMETRY / f".{paths.POINTER.name}.x.tmp",
        paths.RUNS / f".{live_run}.json.x.tmp",
        paths.run_dir(live_run) / ".job.json.x.tmp",
        stages / ".inductor.json.x.tmp",
        paths.metrics(live_run) / ".perf.prom.x.tmp",
    ]
    for path in left:
        path.touch()
    start.tidy()
    assert [path for path in left if path.exists()] == []
    assert (files.read_json(paths.job(live_run)) or {})["state"] == "interrupted"


def test_what_another_container_may_be_writing_is_left_alone(live_run: str) -> None:
    temporary = paths.run_dir(live_run) / ".job.json.x.tmp"
    temporary.parent.mkdir(exist_ok=True)
    temporary.touch()
    held = locks.try_lock(job.LOCK)
    assert held is not None
    try:
        start.tidy()
    finally:
        os.close(held)
    assert temporary.exists()


def test_what_cannot_be_tidied_keeps_no_run_from_starting(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(paths.RUNS))

    monkeypatch.setattr(files, "sweep_temporaries", refuse)
    start.tidy()
    assert (
        "WARNING" in (said := capsys.readouterr().out)
        and "/host/telemetry/container_runs is on a read-only file system" in said
    )


# --- a full disk ----------------------------------------------------------------------------------


def test_a_run_is_published_as_soon_as_there_is_space(
    container: Path,
    image: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusals = 3
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(publish, "_RETRY_S", 0.01)
    publish.publish(RUN_ID, threading.Event())
    assert run.pointed_run() == RUN_ID
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        (
            f"run_record: ERROR: {RUN_ID} is not published yet: no space left on"
            f" /host/telemetry/container_runs/{RUN_ID}.json: free some and run again"
        ),
        f"run_record: {RUN_ID} is published",
    ]


@pytest.mark.parametrize(("group_writable", "mode"), [(False, 0o640), (True, 0o660)])
def test_the_pointer_is_its_owners_alone_and_the_manifest_the_groups_too(
    container: Path, image: dict[str, Any], group_writable: bool, mode: int
) -> None:
    os.umask(places.umask(group_writable))
    publish.publish(RUN_ID, threading.Event())
    modes = [path.stat().st_mode & 0o777 for path in (paths.POINTER, paths.manifest(RUN_ID))]
    assert modes == [0o600, mode]


def test_a_run_that_cannot_be_published_can_be_ended(
    container: Path, image: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = threading.Event()

    def write_text(*_: object, **__: object) -> None:
        ending.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_text", write_text)
    publish.publish(RUN_ID, ending)
    assert not paths.POINTER.exists()


def test_only_the_runs_own_pointer_is_taken_back(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.withdraw("container-run-20261123T091500Z-00000000")
    assert run.pointed_run() == live_run

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        publish.withdraw(live_run)
    assert not paths.POINTER.exists() and "the pointer is not taken back" in capsys.readouterr().out
    publish.withdraw(live_run)
    assert capsys.readouterr().out == ""


# --- facts: devices, versions, model --------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "isa"),
    [
        ("x86_64", "flags\t\t: fpu sse2 avx2 avx512f amx_tile\n", "amx"),
        ("x86_64", "flags\t\t: fpu sse2 avx2 avx512f\n", "avx512"),
        ("x86_64", "processor: 0\nflags\t\t: fpu sse2 avx2\nflags : avx512f\n", "avx2"),
        ("x86_64", "flags\t\t: fpu sse2 avx2x\n", "sse2"),
        ("x86_64", "", "sse2"),
        ("aarch64", "Features\t: fp asimd sve\n", "sve"),
        ("aarch64", "Features\t: fp asimd\n", "neon"),
    ],
)
def test_cpu_isa(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, cpuinfo: str, isa: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(
        devices,
        "open",
        lambda path, **options: open(tmp_path / "cpuinfo", **options),
        raising=False,
    )
    assert devices._cpu_isa() == isa


def test_this_machine_has_a_device() -> None:
    found = devices.find()
    assert (
        found.count >= 1 and found.cpu_arch == platform.machine() and (found.cuda or found.cpu_isa)
    )


def test_versions_are_those_of_the_metadata() -> None:
    wanted: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        wanted.setdefault(versions._normal(distribution.metadata["Name"]), distribution.version)
    assert len(wanted) > 5 and "pytest" in wanted
    assert {name: versions.installed(name) for name in wanted} == wanted
    assert (
        versions.installed("PyYAML")
        == versions.installed("py.yaml".replace(".", ""))
        == importlib.metadata.version("PyYAML")
    )
    assert versions.installed("no-such-distribution") is None


def test_a_programs_version() -> None:
    assert (
        image_facts.binary_version(
            [sys.executable, "-c", "print('prometheus, version 3.5.3 (branch: x)')"]
        )
        == "3.5.3"
    )
    assert image_facts.binary_version(["/no/such/program"]) is None


def test_both_sides_compute_the_same_identity(model_folder: Path) -> None:
    def both() -> str:
        mine = model.identity(model_folder)
        assert mine == model_files.inspect_model(str(model_folder))["identity"]
        return mine

    first = both()
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    second = both()
    (model_folder / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 7}))
    (model_folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert len({first, second, both()}) == 3


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({}, False),
        ({"num_experts": 512}, True),
        ({"num_local_experts": 8}, True),
        ({"n_routed_experts": 0}, False),
        ({"num_experts": None}, False),
    ],
)
def test_experts(model_folder: Path, config: dict[str, Any], experts: bool) -> None:
    (model_folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    loaded = model.load(str(model_folder))
    assert loaded.has_experts is experts and loaded.slug == "qwen3-tiny"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "[" * 100_000])
def test_a_model_that_cannot_be_used_is_named(model_folder: Path, content: str | None) -> None:
    (model_folder / "config.json").unlink()
    if content is not None:
        (model_folder / "config.json").write_text(content)
    with pytest.raises(model.UnusableModel, match=str(model_folder)):
        model.load(str(model_folder))
    with pytest.raises(model.UnusableModel, match="no model folder"):
        model.load(str(model_folder / "deeper"))


@pytest.mark.parametrize(
    "line",
    [
        "14 13 254:0 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/sda rw",
        "631 620 0:70 /containers/storage/overlay-containers/{id}/userdata/hostname /etc/hostname"
        " rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw",
        "620 542 0:138 / / rw - overlay overlay rw,lowerdir=/var/lib/containers/storage/overlay/"
        "{layer}/diff,fsync=volatile",
    ],
    ids=["Docker 28.2", "Podman 5.8", "a layer alone"],
)
def test_the_container_is_known_by_the_files_mounted_for_it(tmp_path: Path, line: str) -> None:
    own, layer = "0f" * 32, "a1" * 32
    (tmp_path / "mountinfo").write_text(line.format(id=own, layer=layer) + "\n")
    found = publish.container_id(tmp_path / "mountinfo")
    assert found == (own if own in line.format(id=own, layer=layer) else "unknown")
