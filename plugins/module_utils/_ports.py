# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which TCP ports of this host are taken, and by whom: the container is on the host's network."""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterator

_LISTEN = "0A"


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


def holder(port: int) -> str:
    """The process that listens on `port`, as far as this user may see it: another user's is known
    by its uid alone.
    """
    for inode, uid in _listeners(port):
        found = _owner_of(f"socket:[{inode}]")
        return found or f"a process of {_user(uid)}"
    return "a process that cannot be seen from here"


def _listeners(port: int) -> Iterator[tuple[str, int]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as stream:
                lines = stream.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9], int(fields[7])


def _owner_of(link: str) -> str | None:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        folder = f"/proc/{pid}/fd"
        try:
            if any(os.readlink(f"{folder}/{name}") == link for name in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
                    return f"{stream.read().strip()} (pid {pid})"
        except OSError:
            # It has ended meanwhile, or is another user's.
            continue
    return None


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
