"""Whether the services of the run are this container's own: the network is the host's, so another
process may answer in the place of one that ended.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import Any

from sgl_admin.base import paths, ports
from sgl_admin.contract.services import LOOPBACK, SERVICES


def problem(manifest: dict[str, Any]) -> str | None:
    """Which port of the run's services another process answers at, who, and the remedy; None where
    none does. Without a container the services are the operator's own.
    """
    if paths.ROOT_VARIABLE in os.environ:
        return None
    described, surfaces = manifest["services"], manifest.get("telemetry_surfaces", {})
    host = urllib.parse.urlsplit(described["prometheus"]["url"]).hostname or LOOPBACK
    for service in SERVICES:
        if surfaces.get(service.surface, {}).get("status", "unavailable") == "unavailable":
            continue
        for port in service.ports:
            number = described[service.name][port.key]
            if who := ports.stranger(host, number):
                return (
                    f"port {number} is answered by {who} instead of this container's"
                    f" {service.name}: stop that process, and start the container again"
                    " (playbooks/start.yml)"
                )
    return None
