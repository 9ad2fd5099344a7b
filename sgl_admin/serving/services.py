"""Whether the services of the run are alive now: the manifest says how they started."""

from __future__ import annotations

import http.client
import os
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

from sgl_admin.base import paths, ports
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
    for service, host, port in _of(manifest):
        reason = _problem(service, host, port)
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
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", service.page)
        response = connection.getresponse()
        # Read to its end: a connection closed before is an error line in the service's log.
        text = response.read()
        return response.status == 200 and service.shows.encode() in b"\n" + text
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _of(manifest: dict[str, Any]) -> Iterator[tuple[Service, str, int]]:
    """Each service that the run has, with its address. A manifest is but a file: what it does not
    say properly of a service, it does not say.
    """
    surfaces, described = manifest.get("telemetry_surfaces"), manifest.get("services")
    if not isinstance(surfaces, dict) or not isinstance(described, dict):
        return
    host = _host(described)
    for service in SERVICES:
        surface, entry = surfaces.get(service.surface), described.get(service.name)
        if not isinstance(surface, dict) or surface.get("status") == "unavailable":
            continue
        port = entry.get(service.ports[0].key) if isinstance(entry, dict) else None
        if is_integer(port) and 0 < port < 2**16:
            yield service, host, port


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
    # Without a container the services are the operator's own.
    if paths.ROOT_VARIABLE in os.environ:
        return None
    try:
        ours = ports.held_here(host, port) is not False
    except ValueError:
        # The manifest names no IP address, which the init writes: whose it is cannot be told.
        ours = False
    if not ours:
        return f"{where} is answered by {ports.holder(port)} instead of {service.name}"
    return None
