"""Which process works at what, where several GPUs share a tuning: a lock for each piece of work,
which the kernel frees with the process that holds it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgl_admin.contract import locks


class Claims:
    def __init__(self, folder: Path | None = None, number: int = 0) -> None:
        """`folder` has the locks; without one no other process shares the work. `number` counts the
        processes.
        """
        self._folder = folder
        self.number = number

    @property
    def is_alone(self) -> bool:
        return self._folder is None

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether the work is this process's: as long as the block lasts."""
        if self._folder is None:
            yield True
            return
        self._folder.mkdir(exist_ok=True)
        descriptor = locks.open_file(str(self._folder / f"{name}.lock"))
        try:
            try:
                locks.take(descriptor, 0, name)
            except locks.LockTimeout:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)
