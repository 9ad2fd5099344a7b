# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The services of the container: their ports, readiness pages and scrape jobs.

How each is started is sgl-admin's (`sgl_admin.init.services`); which of them an image has, its
flavour says.
"""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
# The container's variable with the address that its services listen on.
ADDRESS_VARIABLE = "SGL_BIND_ADDRESS"
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
READY_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Port:
    """A TCP port: `name` is that of sgl_<name>_port and, in capitals, of SGL_<NAME>_PORT."""

    name: str
    default: int
    text: str
    # Its key among the service's own in the manifest.
    key: str = "port"

    @property
    def option(self) -> str:
        return f"sgl_{self.name}_port"

    @property
    def variable(self) -> str:
        return f"SGL_{self.name.upper()}_PORT"


@dataclass(frozen=True)
class Service:
    """A service. `page` of its first port answers 200 once it is ready, and then has `shows`.

    `priority`: started in this order, stopped in reverse. `version` is the command that prints
    its version. `gpu`: only hosts with GPUs have it. `surface` is its key in the manifest's
    telemetry_surfaces.
    """

    name: str
    ports: tuple[Port, ...]
    page: str
    priority: int
    surface: str
    version: tuple[str, ...]
    shows: str = ""
    ready_timeout_s: float = READY_TIMEOUT_S
    scraped: bool = True
    exporter: bool = False
    # Its manifest entry has the URL too.
    has_url: bool = False
    gpu: bool = False
    # An operator chooses more of it than where it listens.
    configured: bool = False

    @property
    def needed(self) -> bool:
        """Whether METRICS_READY stands on it: it keeps metrics, or has some of its own."""
        return self.scraped

    @property
    def program(self) -> str:
        return self.version[0]


SGLANG = Port("sglang", 30000, "Port of the SGLang server.")
SERVICES = (
    Service(
        "prometheus",
        (Port("prometheus", 9090, "Port of Prometheus."),),
        page="/-/ready",
        # Started first, so that it sees the others stop.
        priority=10,
        surface="sglang_metrics",
        version=("prometheus", "--version"),
        has_url=True,
        configured=True,
    ),
    Service(
        "jaeger",
        (
            Port("jaeger_ui", 16686, "Port of the pages and the query API of Jaeger.", "ui"),
            Port(
                "otlp_grpc",
                4317,
                "Port at which Jaeger takes traces, by gRPC; the server sends its own there.",
                "otlp_grpc",
            ),
            Port("otlp_http", 4318, "Port at which Jaeger takes traces, by HTTP.", "otlp_http"),
        ),
        page="/",
        priority=15,
        surface="tracing",
        version=("jaeger-all-in-one", "version"),
        scraped=False,
        has_url=True,
        gpu=True,
        configured=True,
    ),
    Service(
        "node_exporter",
        (Port("node_exporter", 9100, "Port of node_exporter."),),
        page="/metrics",
        priority=20,
        surface="node_metrics",
        version=("node_exporter", "--version"),
        exporter=True,
    ),
    Service(
        "dcgm_exporter",
        (Port("dcgm_exporter", 9400, "Port of dcgm-exporter."),),
        # Its /health says 200 also where it has no metrics of the GPUs.
        page="/metrics",
        shows="\nDCGM_FI_DEV_",
        priority=30,
        surface="dcgm_metrics",
        version=("dcgm-exporter", "--version"),
        # DCGM wakes each GPU first; without profiling metrics it is started a second time.
        ready_timeout_s=45.0,
        exporter=True,
        gpu=True,
    ),
)
BY_NAME = {service.name: service for service in SERVICES}
PORTS = (*(port for service in SERVICES for port in service.ports), SGLANG)
NAMES = tuple(BY_NAME)
EXPORTERS = tuple(service.name for service in SERVICES if service.exporter)
PROGRAMS = tuple(service.program for service in SERVICES)
SURFACES = tuple(service.surface for service in SERVICES)
SURFACE_STATES = ("running", "expected", "degraded", "failed", "unavailable")


def ports_of(gpu: bool) -> dict[str, Port]:
    """The ports by name that a host needs: all of them with GPUs, else those without them."""
    named = {
        port.name: port for service in SERVICES if gpu or not service.gpu for port in service.ports
    }
    return {**named, SGLANG.name: SGLANG}
