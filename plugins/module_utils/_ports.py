# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Addresses and TCP ports of this host: whether a service can listen there, and who does already.
The container is on the host's network.
"""

from __future__ import annotations

import errno
import pwd
import socket
from collections.abc import Iterable

from ._contract import listeners, services

_UNPRIVILEGED = "/proc/sys/net/ipv4/ip_unprivileged_port_start"


def of_container(environment: Iterable[str]) -> tuple[str | None, dict[str, int]]:
    """Where a container's services listen, by its environment: their address, and ports by name."""
    settings = dict(line.partition("=")[::2] for line in environment)
    numbers = {port.name: settings.get(port.variable, "") for port in services.PORTS}
    return settings.get(services.ADDRESS_VARIABLE), {
        name: int(number)
        for name, number in numbers.items()
        if number.isascii() and number.isdigit()
    }


def not_ours(address: str) -> str | None:
    """Why no service can listen on an address of this host; None where one can."""
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return f"{address}, which this host cannot resolve"
    for family, kind, protocol, _name, place in found:
        try:
            with socket.socket(family, kind, protocol) as trial:
                trial.bind(place)
        except OSError:
            return f"{address}, which is no address of this host"
    return None


def first_unprivileged() -> int:
    """The first port at which a program without capabilities may listen."""
    try:
        with open(_UNPRIVILEGED, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):
        return 0


def taken(address: str, port: int) -> str | None:
    """Who holds `port` where a service would listen on `address`; None where it is free, or the
    address is not this host's.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
        # As the services do: a connection of the past that lingers is no holder.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except PermissionError:
            return None
        except OSError as error:
            return holder(port) if error.errno == errno.EADDRINUSE else None
    return None


def taken_beside(address: str, port: int, own: str) -> str | None:
    """Which process other than the service that listens on `own` holds `port` at `address`; None
    where there is none.
    """
    for listener in listeners.listeners(port):
        place = listener.address
        ours = place == own or own in services.ANY_ADDRESS
        if not ours and _overlap(place, address):
            return _shown(listener)
    return None


def _overlap(place: str, other: str) -> bool:
    return place == other or place in services.ANY_ADDRESS or other in services.ANY_ADDRESS


def holder(port: int) -> str:
    """The process that listens on `port`, as far as this user may see it: another user's is known
    by its uid alone.
    """
    for listener in listeners.listeners(port):
        return _shown(listener)
    return "a process that cannot be seen from here"


def _shown(listener: listeners.Listener) -> str:
    pid = listener.pid()
    if pid is None:
        return f"a process of {_user(listener.uid)}"
    return f"{listeners.command(pid)} (pid {pid})"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
