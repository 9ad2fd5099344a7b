# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who listens on a TCP port, by the kernel's tables (Linux, Documentation/networking/proc_net_tcp),
for the host and for the container.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


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


def listeners(port: int) -> Iterator[Listener]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            address, _colon, number = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(number, 16) == port:
                words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
                # Each 32 bits in the machine's own order.
                packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                yield Listener(plain(packed), fields[9], int(fields[7]))


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
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            links.add(os.readlink(entry.path))
    except OSError:
        pass
    return links


def command(pid: int) -> str:
    """The name of a process's program."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "a process"
