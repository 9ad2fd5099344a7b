# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who listens on a TCP port, by the kernel's tables (Linux, Documentation/networking/proc_net_tcp),
for the host and for the container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    # In hexadecimal, as the kernel writes it: each 32 bits in the machine's own order.
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
                yield Listener(address, fields[9], int(fields[7]))


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
