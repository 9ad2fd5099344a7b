# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who listens on a TCP port, and whose its connections are, by the kernel's tables (Linux,
Documentation/networking/proc_net_tcp), for the host and for the container.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .texts import one_line

_ESTABLISHED, _LISTEN = "01", "0A"
# Of a connection that is not accepted yet.
_NO_INODE = "0"


@dataclass(frozen=True)
class Listener:
    # As `plain` writes it.
    address: str
    inode: str
    uid: int

    @property
    def link(self) -> str:
        """As a descriptor's link in /proc names it."""
        return f"socket:[{self.inode}]"

    def pid(self) -> int | None:
        """A process that has it open; None where none can be seen from here."""
        return next((pid for pid in pids() if self.link in descriptors(pid)), None)


@dataclass(frozen=True)
class Connection:
    """One end of a connection; where both ends are on this host, each is one."""

    own: tuple[str, int]
    other: tuple[str, int]
    inode: str
    uid: int

    @property
    def link(self) -> str | None:
        """As a descriptor's link in /proc names it; None where it is not accepted yet."""
        return None if self.inode == _NO_INODE else f"socket:[{self.inode}]"


def listeners(port: int) -> Iterator[Listener]:
    for fields in _rows(_LISTEN, port):
        address, number = _end(fields[1])
        if number == port:
            yield Listener(address, fields[9], int(fields[7]))


def connections(*ports: int) -> list[Connection]:
    """The ends of this host that have one of these ports, or are connected to it."""
    return [
        Connection(_end(fields[1]), _end(fields[2]), fields[9], int(fields[7]))
        for fields in _rows(_ESTABLISHED, *ports)
    ]


def ports_of(links: set[str]) -> set[int]:
    """The ports at which one of these sockets listens."""
    return {
        int(fields[1].rpartition(":")[2], 16)
        for fields in _rows(_LISTEN)
        if f"socket:[{fields[9]}]" in links
    }


def _rows(state: str, *ports: int) -> Iterator[list[str]]:
    """The connections of this state that have one of these ports at either end; where none is
    given, all. A host may have thousands of others, whose addresses cost more to read than the
    text of a port.
    """
    wanted = tuple(f":{port:04X}" for port in ports) or ""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == state and (fields[1].endswith(wanted) or fields[2].endswith(wanted)):
                yield fields


def _end(text: str) -> tuple[str, int]:
    """The address and port of a row, such as `0100007F:7530`."""
    address, _colon, number = text.rpartition(":")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    # Each 32 bits in the machine's own order.
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return plain(packed), int(number, 16)


def plain(address: str | bytes) -> str:
    """The one text of an IP address; that of IPv4 where it is one within IPv6. Raises
    ValueError.
    """
    found = ipaddress.ip_address(address)
    return str(getattr(found, "ipv4_mapped", None) or found)


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def descriptors(pid: int) -> set[str]:
    """What a process has open, as links; none where it ended meanwhile or is another user's."""
    links = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            # One that is closed meanwhile hides none of the others.
            with contextlib.suppress(OSError):
                links.add(os.readlink(entry.path))
    return links


def command(pid: int) -> str:
    """The name of a process's program; any user gives his own what name he likes."""
    try:
        return one_line(Path(f"/proc/{pid}/comm").read_text(errors="replace"))
    except OSError:
        return "a process"
