"""Whether the services of the run are this container's own: the network is the host's, so another
process may answer in the place of one that ended.
"""

from __future__ import annotations

from typing import Any

from sgl_admin.base import ports
from sgl_admin.serving import services


def problem(manifest: dict[str, Any]) -> str | None:
    """Which port of the run's services another process answers at, who, and the remedy; None where
    none does. Without a container the services are the operator's own.
    """
    for service, host, numbers in services.addresses(manifest):
        for number in numbers:
            if who := services.stranger(host, number):
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
