"""Reads a model's weights into the page cache while its server imports its modules.

SGLang opens the weights after its imports, so a disk is idle until then. On an H200, with 16 GB of
weights that were not in memory, loading them took 3.9 s in place of 13.3 s (docs/benchmarks).
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sgl_admin.base.processes import is_running
from sgl_admin.contract.model.arguments import reads_weights

_THREADS, _BLOCK = 8, 8 << 20
# Of the memory that the kernel can give away. More would push out what was read first.
_SHARE = 0.8


def begin(model: str, arguments: Sequence[str], group: int, ticks: str | None) -> None:
    """Begin it beside the server of this process group, in a process that ends with that server.
    `ticks` are those of its leader, as `processes.start_time` says them.
    """
    if ticks is not None and os.path.isdir(model) and reads_weights(arguments):
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, model, str(group), ticks],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )


def read(model: str, group: int, ticks: str) -> int:
    """Read all weights; returns how many bytes that was. Nothing is read where they do not fit into
    memory, and no more once the server is gone. What is in memory already is read again: only a
    file's owner may ask the kernel what is. Raises OSError.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(model), "*.safetensors")))
    if sum(map(os.path.getsize, paths)) > _SHARE * _available():
        return 0
    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(
            pool.map(lambda block: _read(*block) if is_running(group, ticks) else 0, _blocks(paths))
        )


def _blocks(paths: Sequence[str]) -> Iterator[tuple[str, int]]:
    for path in paths:
        for offset in range(0, os.path.getsize(path), _BLOCK):
            yield path, offset


def _read(path: str, offset: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return len(os.pread(descriptor, _BLOCK, offset))
    finally:
        os.close(descriptor)


def _available() -> int:
    """Bytes, by the kernel's MemAvailable; page cache that may go is in it."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        found = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024


if __name__ == "__main__":
    read(sys.argv[1], int(sys.argv[2]), sys.argv[3])
