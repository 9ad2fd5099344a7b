"""The services of the container: one entry each, whatever the flavour; a flavour names those that
it has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sgl_admin.base import files, paths

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 15.0
ANY = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Settings:
    """What the container's environment says of the services."""

    bind: str
    prometheus_port: int
    node_exporter_port: int
    dcgm_exporter_port: int
    sglang_port: int
    jaeger_ui_port: int
    otlp_grpc_port: int
    otlp_http_port: int
    retention_size: str
    trace_retention: str
    scrape_interval: str

    @classmethod
    def from_environment(cls) -> Settings:
        def port(name: str, default: int) -> int:
            return int(os.environ.get(f"SGL_{name}_PORT", default))

        return cls(
            bind=os.environ.get("SGL_BIND_ADDRESS", LOOPBACK),
            prometheus_port=port("PROMETHEUS", 9090),
            node_exporter_port=port("NODE_EXPORTER", 9100),
            dcgm_exporter_port=port("DCGM_EXPORTER", 9400),
            sglang_port=port("SGLANG", 30000),
            jaeger_ui_port=port("JAEGER_UI", 16686),
            otlp_grpc_port=port("OTLP_GRPC", 4317),
            otlp_http_port=port("OTLP_HTTP", 4318),
            retention_size=os.environ.get("SGL_TSDB_RETENTION_SIZE", "10GB"),
            trace_retention=os.environ.get("SGL_TRACE_RETENTION", "72h"),
            scrape_interval=os.environ.get("SGL_SCRAPE_INTERVAL", "1s"),
        )

    def address(self, port: int) -> str:
        return f"[{self.bind}]:{port}" if ":" in self.bind else f"{self.bind}:{port}"

    @property
    def reachable(self) -> str:
        """The address at which a program of this container reaches a service."""
        return LOOPBACK if self.bind in ANY else self.bind


@dataclass(frozen=True)
class Service:
    """A program under the supervisor: its command, the ports that it must find free, and the page
    of the first that says it is up.
    """

    command: Callable[[Settings, str], list[str]]
    ports: Callable[[Settings], tuple[int, ...]]
    ready_path: str
    # Started first, ended last: Prometheus should see the others go.
    priority: int
    # Seconds that its start may take.
    ready_timeout_s: float = READY_TIMEOUT_S


def _prometheus(settings: Settings, run_id: str) -> list[str]:
    return [
        "prometheus",
        f"--config.file={prometheus_config(run_id)}",
        f"--storage.tsdb.path={paths.PROMETHEUS / run_id}",
        f"--storage.tsdb.retention.size={settings.retention_size}",
        f"--web.listen-address={settings.address(settings.prometheus_port)}",
        "--log.level=warn",
    ]


def _node_exporter(settings: Settings, run_id: str) -> list[str]:
    # Debian turns two collectors on that find nothing to read in a container and say so at each
    # scrape.
    return [
        "node_exporter",
        f"--web.listen-address={settings.address(settings.node_exporter_port)}",
        "--no-collector.systemd",
        "--collector.textfile.directory=",
        "--log.level=warn",
    ]


def _jaeger(settings: Settings, run_id: str) -> list[str]:
    """Jaeger 1.73.0, all in one process. Its storage lies under the run, so that traces outlive the
    container.
    """
    storage = paths.JAEGER / run_id
    # Ports that nobody here asks for: whichever is free, as the network is the host's.
    unused = f"{LOOPBACK}:0"
    return [
        "env", "SPAN_STORAGE_TYPE=badger", "jaeger-all-in-one",
        "--badger.ephemeral=false",
        f"--badger.directory-key={storage / 'key'}",
        f"--badger.directory-value={storage / 'data'}",
        f"--badger.span-store-ttl={settings.trace_retention}",
        f"--query.http-server.host-port={settings.address(settings.jaeger_ui_port)}",
        f"--query.grpc-server.host-port={unused}",
        "--collector.otlp.enabled=true",
        f"--collector.otlp.grpc.host-port={settings.address(settings.otlp_grpc_port)}",
        f"--collector.otlp.http.host-port={settings.address(settings.otlp_http_port)}",
        f"--collector.grpc-server.host-port={unused}",
        f"--collector.http-server.host-port={unused}",
        f"--admin.http.host-port={unused}",
        "--log-level=warn",
    ]  # fmt: skip


def _dcgm_exporter(settings: Settings, run_id: str) -> list[str]:
    return [sys.executable, "-P", "-m", "sgl_admin.init.dcgm"]


SERVICES = {
    "prometheus": Service(
        _prometheus, lambda settings: (settings.prometheus_port,), "/-/ready", 10
    ),
    "jaeger": Service(
        _jaeger,
        lambda settings: (
            settings.jaeger_ui_port,
            settings.otlp_grpc_port,
            settings.otlp_http_port,
        ),
        "/",
        15,
    ),
    "node_exporter": Service(
        _node_exporter, lambda settings: (settings.node_exporter_port,), "/metrics", 20
    ),
    # DCGM wakes each GPU first.
    "dcgm_exporter": Service(
        _dcgm_exporter, lambda settings: (settings.dcgm_exporter_port,), "/health", 30, 30.0
    ),
}


def of_image() -> list[str]:
    """The services that this image has."""
    return [name for name in (files.read_json(paths.FLAVOUR) or {})["services"] if name in SERVICES]


def prometheus_config(run_id: str) -> Path:
    return paths.run_dir(run_id) / "prometheus.yml"


def render_prometheus_config(settings: Settings, run_id: str, services: list[str]) -> str:
    """The run's label stands on each target: Prometheus does not apply external_labels to local
    queries.
    """
    targets = {"prometheus": settings.prometheus_port}
    if "node_exporter" in services:
        targets["node_exporter"] = settings.node_exporter_port
    if "dcgm_exporter" in services:
        targets["dcgm_exporter"] = settings.dcgm_exporter_port
    targets["sglang"] = settings.sglang_port
    lines = [
        "global:",
        f"  scrape_interval: {settings.scrape_interval}",
        f"  scrape_timeout: {settings.scrape_interval}",
        # A clock that is set back must not stop the storing of samples for as long.
        "storage:",
        "  tsdb:",
        "    out_of_order_time_window: 2h",
        "scrape_configs:",
    ]
    for name, port in targets.items():
        # The server itself always listens on loopback: sgl-admin starts it so.
        address = (
            f"{LOOPBACK}:{port}"
            if name == "sglang"
            else settings.address(port).replace("0.0.0.0", LOOPBACK)  # noqa: S104
        )
        lines += [
            f"  - job_name: {name}",
            "    static_configs:",
            f"      - targets: ['{address}']",
            f"        labels: {{container_run: {run_id}}}",
        ]
    return "\n".join(lines) + "\n"
