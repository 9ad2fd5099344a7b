"""Whether the run's services are alive now, and whether this container is what answers for them:
the manifest says how they started.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, TypeGuard

from sgl_admin.base import http_client, paths, ports
from sgl_admin.contract.records import is_integer
from sgl_admin.contract.services import LOOPBACK, READY_TIMEOUT_S, SERVICES, Service

_POLL_S = 0.2
_ANSWER_S = 2.0
_REMEDY = "the run's log says why; it is started again and again until it comes up"

# By service: `state` (running or failed), `needed`, and `reason`.
States = dict[str, dict[str, Any]]


def states(manifest: dict[str, Any]) -> States:
    """Of the services that this image has; asks each of them."""
    found: States = {}
    for service, host, numbers in addresses(manifest):
        reason = _problem(service, host, numbers[0])
        state = "running" if reason is None else "failed"
        found[service.name] = {"state": state, "needed": service.needed, "reason": reason}
    return found


def problems(found: States) -> list[str]:
    """What is to be said of those that are dead."""
    return [f"{state['reason']}: {_REMEDY}" for state in found.values() if state["reason"]]


def obstacle(found: States) -> str | None:
    """Why METRICS_READY cannot hold: a service is dead that it stands on; None where none is."""
    dead = [state["reason"] for state in found.values() if state["needed"] and state["reason"]]
    return f"{'; '.join(dead)}: {_REMEDY}" if dead else None


def wait(manifest: dict[str, Any], timeout_s: float = READY_TIMEOUT_S) -> States:
    """The states as soon as none that is needed is dead, or after so many seconds: one that ended
    is being started again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = states(manifest)
        if obstacle(found) is None or time.monotonic() >= deadline:
            return found
        time.sleep(_POLL_S)


def answers(host: str, port: int, service: Service) -> bool:
    """Whether its page says 200 and shows what it must."""
    try:
        # Read to its end: a connection closed before is an error line in the service's log.
        status, text = http_client.ask(host, port, service.page, _ANSWER_S)
    except http_client.NO_ANSWER:
        return False
    return status == 200 and service.shows.encode() in b"\n" + text


def addresses(manifest: dict[str, Any]) -> Iterator[tuple[Service, str, list[int]]]:
    """Each service that the run has, with its host and its ports, that of its page first. A
    manifest is but a file: what it does not say properly of a service, it does not say.
    """
    surfaces, described = manifest.get("telemetry_surfaces"), manifest.get("services")
    if not isinstance(surfaces, dict) or not isinstance(described, dict):
        return
    host = _host(described)
    for service in SERVICES:
        surface, entry = surfaces.get(service.surface), described.get(service.name)
        if not isinstance(surface, dict) or surface.get("status") == "unavailable":
            continue
        ports_of = entry if isinstance(entry, dict) else {}
        numbers = [ports_of.get(port.key) for port in service.ports]
        if _is_port(numbers[0]):
            yield service, host, [number for number in numbers if _is_port(number)]


def _is_port(number: Any) -> TypeGuard[int]:
    return is_integer(number) and 0 < number < 2**16


def stranger(host: str, port: int) -> str | None:
    """The process outside of this container that answers there; None where one of this container
    does, or none at all. Without a container the services are the operator's own.
    """
    if paths.ROOT_VARIABLE in os.environ:
        return None
    try:
        return ports.stranger(host, port)
    except (OSError, ValueError):
        # The manifest lacks the address that the init writes: whose it is stays unknown.
        return ports.holder(port)


def intrusion(manifest: dict[str, Any]) -> str | None:
    """Which port of the run's services a process outside of this container answers at, who, and
    the remedy; None where none does: the network is the host's, so another may answer in the place
    of one that ended.
    """
    for service, host, numbers in addresses(manifest):
        for number in numbers:
            if who := stranger(host, number):
                return (
                    f"port {number} is answered by {who} instead of this container's"
                    f" {service.name}: stop that process, and start the container again"
                    " (playbooks/start.yml)"
                )
            if who := ports.intruder(number):
                return (
                    f"{who} answers a connection to port {number} that it took before this"
                    f" container's {service.name} was there: stop that process, and start the"
                    " container again (playbooks/start.yml)"
                )
    return None


def _host(described: dict[str, Any]) -> str:
    """The address at which the run's services are reached: that of Prometheus."""
    prometheus = described.get("prometheus")
    url = prometheus.get("url") if isinstance(prometheus, dict) else None
    try:
        return urllib.parse.urlsplit(url if isinstance(url, str) else "").hostname or LOOPBACK
    except ValueError:
        return LOOPBACK


def _problem(service: Service, host: str, port: int) -> str | None:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not answers(host, port, service):
        return f"{service.name} does not answer at {where}"
    who = stranger(host, port)
    return f"{where} is answered by {who} instead of {service.name}" if who else None
