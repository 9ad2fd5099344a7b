"""Who listens on a port, and who answers there. The network is the host's, so it may be a process
that this container cannot see.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from sgl_admin.contract import listeners
from sgl_admin.contract.listeners import Connection, Listener
from sgl_admin.contract.services import ANY_ADDRESS

_POLL_S = 0.005
# A connection is in the kernel's table a moment before the process that accepts it has its
# descriptor, and longer where that process has to wait for a processor; and one that ends is there
# a moment longer.
_SETTLED_S = 1.0


def holder(port: int) -> str:
    """The process of this container that listens on `port`, or else what the kernel knows of
    another one: its user.
    """
    for listener in listeners.listeners(port):
        pid = listener.pid()
        if pid is None:
            return _outside(listener.uid)
        return f"{listeners.command(pid)} (pid {pid} in this container)"
    return "a process that cannot be seen from here"


def held_by_group(host: str, port: int, group: int) -> bool | None:
    """Whether the process that answers at an IP address and port is of this process group, or of
    the session that it leads; None where no process answers.
    """
    return _held(host, port, lambda pid: _is_of(pid, group))


def held_here(host: str, port: int) -> bool | None:
    """Whether the process that answers at an IP address and port can be seen from here: in a
    container, one of its own. None where no process answers.
    """
    return _held(host, port, lambda pid: True)


def stranger(host: str, port: int) -> str | None:
    """The process outside of this container that answers at an address and port; None where one of
    this container does, or none at all.
    """
    host = socket.gethostbyname(host) if ":" not in host else host
    # Twice, as a listener that just ends is seen without its process.
    for _ in range(2):
        if held_here(host, port) is not False or _may_be_closed_to_us(host, port):
            return None
    return holder(port)


def answered_here(connection: socket.socket, timeout_s: float) -> bool:
    """Whether a process of this container has the other end of a connection. Raises TimeoutError
    where no process accepts it in time.
    """
    own, other = (_plain(end) for end in (connection.getsockname(), connection.getpeername()))
    deadline = time.monotonic() + timeout_s
    accepted: float | None = None
    while (now := time.monotonic()) < deadline:
        for end in listeners.connections(other[1]):
            if (end.own, end.other) == (other, own) and end.link is not None:
                accepted = accepted or now
                if any(end.link in listeners.descriptors(pid) for pid in listeners.pids()):
                    return True
        if accepted is not None and now - accepted > _SETTLED_S:
            return False
        time.sleep(_POLL_S)
    if accepted is not None:
        return False
    raise TimeoutError(f"no process accepts a connection to {other[0]}:{other[1]}")


def intruder(port: int) -> str | None:
    """The process outside of this container that has the other end of a connection which one of
    this container, such as Prometheus, has to the port; None without one.

    Who has accepted it keeps it, also where his listener is gone and the server listens.
    """
    found = _taken(port)
    deadline = time.monotonic() + _SETTLED_S
    while found and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        found &= _taken(port)
    return next((_outside(uid) for _end, uid in found), None)


def _taken(port: int) -> set[tuple[tuple[str, int], int]]:
    """Own ends of such connections, with the uid of who has the other one."""
    ends = listeners.connections(port)
    servers = {(end.own, end.other): end for end in ends if end.own[1] == port and end.link}
    pairs = [(end, servers.get((end.other, end.own))) for end in ends if end.other[1] == port]
    if not any(server for _client, server in pairs):
        return set()
    ours = set().union(*map(listeners.descriptors, listeners.pids()))
    return {
        (client.own, server.uid)
        for client, server in pairs
        if server is not None and client.link in ours and server.link not in ours
        if not _may_be_closed(server)
    }


def visitor(group: int, public: int) -> str | None:
    """Who outside of this container is connected to a port at which a process of this group
    listens, and to which; None without one. The `public` port is for others.
    """
    found = _visitors(group, public)
    if found:
        # A process that has just begun is not among those that were looked at.
        time.sleep(_POLL_S)
        found &= _visitors(group, public)
    return next((f"{who} is connected to port {port}" for port, _end, who in found), None)


def _visitors(group: int, public: int) -> set[tuple[int, tuple[str, int], str]]:
    """Port, own end and description of each of them."""
    members = (pid for pid in listeners.pids() if _is_of(pid, group))
    inner = listeners.ports_of(set().union(*map(listeners.descriptors, members))) - {public}
    ends = {(end.own, end.other): end for end in listeners.connections(*inner)} if inner else {}
    accepted = [(own, other) for own, other in ends if own[1] in inner]
    if not accepted:
        return set()
    ours = set().union(*map(listeners.descriptors, listeners.pids()))
    found: set[tuple[int, tuple[str, int], str]] = set()
    for own, other in accepted:
        client = ends.get((other, own))
        if client is None:
            found.add((own[1], other, f"address {other[0]}"))
        elif client.link not in ours and not _may_be_closed(client):
            found.add((own[1], other, _outside(client.uid)))
    return found


def _outside(uid: int) -> str:
    return f"a process of uid {uid} outside this container"


def _plain(end: tuple[object, ...]) -> tuple[str, int]:
    """The address and port of a socket, as a row of the kernel's table has them."""
    address, number = end[:2]
    assert isinstance(address, str) and isinstance(number, int)
    return listeners.plain(address), number


def _may_be_closed_to_us(host: str, port: int) -> bool:
    """Whether it may be a process of this container that no other may look into: dcgm-exporter with
    its file capability. The kernel says whose socket it is; no other user's is taken for it.
    """
    return all(map(_may_be_closed, _answering(host, port)))


def _may_be_closed(one: Listener | Connection) -> bool:
    return one.uid == os.geteuid() and any(
        not os.access(f"/proc/{pid}/fd", os.R_OK) and _owner(pid) in (0, os.geteuid())
        for pid in listeners.pids()
    )


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _held(host: str, port: int, counts: Callable[[int], bool]) -> bool | None:
    """Several sockets may share a port: all of them have to be held by processes that count."""
    wanted = {listener.link for listener in _answering(host, port)}
    if not wanted:
        return None
    held = {
        link
        for pid in listeners.pids()
        if counts(pid)
        for link in wanted & listeners.descriptors(pid)
    }
    return held == wanted


def _answering(host: str, port: int) -> list[Listener]:
    """The kernel takes a socket of this very address before one of all addresses."""
    found = list(listeners.listeners(port))
    exact = listeners.plain(host)
    return [one for one in found if one.address == exact] or [
        one for one in found if one.address in ANY_ADDRESS
    ]


def _is_of(pid: int, group: int) -> bool:
    try:
        return group in (os.getpgid(pid), os.getsid(pid))
    except OSError:
        return False
