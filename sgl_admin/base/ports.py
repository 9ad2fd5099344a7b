"""Who holds a port. The network is the host's, so it may be a process that this container cannot
see.
"""

from __future__ import annotations

import os
from pathlib import Path

_LISTEN = "0A"


def holder(port: int) -> str:
    """The process of this container that listens on `port`, or else what the kernel tells of
    another one: its user.
    """
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return (
                    _process_with(f"socket:[{fields[9]}]")
                    or f"a process of uid {fields[7]} outside this container"
                )
    return "a process that cannot be seen from here"


def _process_with(link: str) -> str | None:
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(entry) == link for entry in folder.iterdir()):
                return (
                    f"{(folder.parent / 'comm').read_text().strip()} (pid {folder.parent.name} in"
                    " this container)"
                )
        except OSError:
            # It has ended meanwhile.
            continue
    return None
