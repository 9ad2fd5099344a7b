"""What can be observed in this run, and what is missing: `telemetry_surfaces` of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sgl_admin.contract.services import LOOPBACK, SERVICES, SGLANG, Service
from sgl_admin.init import dcgm
from sgl_admin.init.services import Settings
from sgl_admin.sglang import ENGINE

Surface = dict[str, str]


@dataclass(frozen=True)
class Observed:
    """`states` of the image's services, why the flavour lacks the others, and their versions."""

    states: dict[str, str]
    unavailable: dict[str, str]
    versions: dict[str, Any]
    settings: Settings


def describe(observed: Observed) -> tuple[dict[str, Surface], list[str]]:
    """`telemetry_surfaces` and `warnings` of the manifest."""
    surfaces = {service.surface: _surface(service, observed) for service in SERVICES}
    warnings = [
        f"{name}: {surface['details']}"
        for name, surface in surfaces.items()
        if surface["status"] == "failed"
    ]
    if surfaces["tracing"]["status"] == "degraded":
        warnings.append(f"tracing: {surfaces['tracing']['details']}")
    if surfaces["dcgm_metrics"]["status"] == "degraded":
        warnings.append(dcgm.warning(dcgm.chosen()))
    return surfaces, warnings


def _surface(service: Service, observed: Observed) -> Surface:
    state = observed.states.get(service.name)
    if service.name == "prometheus":
        return _server_metrics(service, state, observed.settings)
    if state is None:
        why = observed.unavailable.get(service.name, f"this image has no {service.name}")
        return {"status": "unavailable", "details": why}
    if state == "failed":
        return {"status": "failed", "details": f"{service.name} did not answer {_late(service)}"}
    if lacks := _lacks(service, observed):
        return {"status": "degraded", "details": lacks}
    return {"status": "running", "details": _running(service, observed)}


def _server_metrics(prometheus: Service, state: str | None, settings: Settings) -> Surface:
    """The server's own metrics: they are there once it runs, if Prometheus is."""
    if state != "running":
        return {
            "status": "failed",
            "details": f"Prometheus did not become ready {_late(prometheus)}",
        }
    address = f"{LOOPBACK}:{settings.ports[SGLANG.name]}"
    return {
        "status": "expected",
        "details": f"scraped at {address} once the server runs with {ENGINE.metrics_flag}",
    }


def _late(service: Service) -> str:
    return f"within {service.ready_timeout_s:.0f} s of the start; the run's log says why"


def _running(service: Service, observed: Observed) -> str:
    settings = observed.settings
    if service.name == "jaeger":
        grpc, http = settings.ports["otlp_grpc"], settings.ports["otlp_http"]
        return f"Jaeger {observed.versions['jaeger']}, OTLP gRPC {grpc}, HTTP {http}"
    by_host = service.name == "dcgm_exporter" and dcgm.chosen().host_engine
    engine = ", by the nv-hostengine of the host" if by_host else ""
    return f"{service.program} at {settings.address(service.ports[0].name)}{engine}"


def _lacks(service: Service, observed: Observed) -> str | None:
    """What a service that runs cannot do, in words."""
    if service.name == "dcgm_exporter" and not dcgm.chosen().profiling:
        return dcgm.chosen().reason
    if service.name == "jaeger" and (missing := ENGINE.missing_tracing_packages()):
        return (
            f"{_running(service, observed)}; the server sends no traces, as its Python lacks"
            f" {' and '.join(missing)}"
        )
    return None
