"""How each service of the container is started, and what Prometheus scrapes. The services
themselves are in the contract; a flavour names those that its image has.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sgl_admin.base import files, paths
from sgl_admin.contract import options
from sgl_admin.contract.services import ANY_ADDRESS, BY_NAME, LOOPBACK, PORTS, SERVICES, SGLANG
from sgl_admin.perf import windows


@dataclass(frozen=True)
class Settings:
    """What the container's environment says of the services; `ports` by the contract's names."""

    bind: str
    ports: dict[str, int]
    retention_size: str
    trace_retention: str
    scrape_interval: str
    log_size: str = ""
    watch: bool = False

    @property
    def log_bytes(self) -> int:
        """What the run's log takes at most."""
        text = self.log_size or str(options.BY_NAME["sgl_log_size"].default)
        size = re.fullmatch(r"(\d+)([KMGTPE]?)i?B", text)
        if size is None:
            raise ValueError(f"sgl_log_size is {text!r}")
        return int(size[1]) << 10 * (" KMGTPE".index(size[2]) if size[2] else 0)

    @classmethod
    def from_environment(cls) -> Settings:
        return cls(
            bind=_variable("sgl_bind_address"),
            ports={port.name: int(_variable(port.option)) for port in PORTS},
            retention_size=_variable("sgl_tsdb_retention_size"),
            trace_retention=_variable("sgl_trace_retention"),
            scrape_interval=_variable("sgl_scrape_interval"),
            log_size=_variable("sgl_log_size"),
            watch=windows.is_wanted(),
        )

    def address(self, port: str) -> str:
        """Where the service with this port listens: address and number."""
        number = self.ports[port]
        return f"[{self.bind}]:{number}" if ":" in self.bind else f"{self.bind}:{number}"

    @property
    def reachable(self) -> str:
        """The address at which a program of this container reaches a service."""
        return LOOPBACK if self.bind in ANY_ADDRESS else self.bind


def _variable(name: str) -> str:
    option = options.BY_NAME[name]
    return os.environ.get(option.variable, str(option.default))


def _prometheus(settings: Settings, run_id: str) -> list[str]:
    return [
        "prometheus",
        f"--config.file={prometheus_config(run_id)}",
        f"--storage.tsdb.path={paths.PROMETHEUS / run_id}",
        f"--storage.tsdb.retention.size={settings.retention_size}",
        f"--web.listen-address={settings.address('prometheus')}",
        "--log.level=warn",
    ]


def _node_exporter(settings: Settings, run_id: str) -> list[str]:
    # Debian turns a collector on that finds nothing to read in a container, and says so at each
    # scrape; its textfile collector reads another folder.
    return [
        "node_exporter",
        f"--web.listen-address={settings.address('node_exporter')}",
        "--no-collector.systemd",
        f"--collector.textfile.directory={paths.metrics(run_id)}",
        "--log.level=warn",
    ]


def _jaeger(settings: Settings, run_id: str) -> list[str]:
    """Jaeger 1.73.0, all in one process. Its storage lies under the run, so that traces outlive the
    container.
    """
    storage = paths.JAEGER / run_id
    # Ports that are unused here: whichever is free, as the network is the host's.
    unused = f"{LOOPBACK}:0"
    return [
        "env", "SPAN_STORAGE_TYPE=badger", "jaeger-all-in-one",
        "--badger.ephemeral=false",
        f"--badger.directory-key={storage / 'key'}",
        f"--badger.directory-value={storage / 'data'}",
        f"--badger.span-store-ttl={settings.trace_retention}",
        f"--query.http-server.host-port={settings.address('jaeger_ui')}",
        f"--query.grpc-server.host-port={unused}",
        "--collector.otlp.enabled=true",
        f"--collector.otlp.grpc.host-port={settings.address('otlp_grpc')}",
        f"--collector.otlp.http.host-port={settings.address('otlp_http')}",
        f"--collector.grpc-server.host-port={unused}",
        f"--collector.http-server.host-port={unused}",
        f"--admin.http.host-port={unused}",
        "--log-level=warn",
    ]  # fmt: skip


def _dcgm_exporter(settings: Settings, run_id: str) -> list[str]:
    return [sys.executable, "-P", "-m", "sgl_admin.init.dcgm"]


# Each service's argument list, for a run.
COMMANDS: dict[str, Callable[[Settings, str], list[str]]] = {
    "prometheus": _prometheus,
    "jaeger": _jaeger,
    "node_exporter": _node_exporter,
    "dcgm_exporter": _dcgm_exporter,
}


# Of each scrape: a page above them is dropped as a whole, and its target is down. A node_exporter
# on 2 cores has 438 samples, 58 KB and 12 labels; 72 cores, 8 GPUs and a server with histograms for
# each rank stay below a tenth. Prometheus knows all of them since 2.28.
_LIMITS = {
    "sample_limit": "50000",
    "body_size_limit": "16MB",
    "label_limit": "64",
    "label_name_length_limit": "256",
    "label_value_length_limit": "4096",
}


def of_image() -> list[str]:
    """The services that this image has."""
    return [name for name in (files.read_json(paths.FLAVOUR) or {})["services"] if name in BY_NAME]


def prometheus_config(run_id: str) -> Path:
    return paths.run_dir(run_id) / "prometheus.yml"


def render_prometheus_config(settings: Settings, run_id: str, services: list[str]) -> str:
    """The run's label stands on each target: Prometheus does not apply external_labels to local
    queries.
    """
    scraped = [service for service in SERVICES if service.scraped and service.name in services]
    # The server itself always listens on loopback: sgl-admin starts it so.
    targets = {service.name: _target(settings, service.ports[0].name) for service in scraped}
    targets[SGLANG.name] = f"{LOOPBACK}:{settings.ports[SGLANG.name]}"
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
    for name, address in targets.items():
        lines += [
            f"  - job_name: {name}",
            *(f"    {limit}: {value}" for limit, value in _LIMITS.items()),
            "    static_configs:",
            f"      - targets: ['{address}']",
            f"        labels: {{container_run: {run_id}}}",
        ]
    return "\n".join(lines) + "\n"


def _target(settings: Settings, port: str) -> str:
    return settings.address(port).replace(ANY_ADDRESS[0], LOOPBACK)
