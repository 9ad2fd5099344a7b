"""Work that can be told to stop at any moment: what takes long is cut short, and records are
written to their end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sgl_admin.base.errors import Interrupted


class Interruptible:
    _interrupted = False
    _interruptible = False

    def interrupt(self) -> None:
        """From a signal's handler, once or more often."""
        first, self._interrupted = not self._interrupted, True
        if first and self._interruptible:
            raise Interrupted()

    @contextmanager
    def _may_be_interrupted(self) -> Iterator[None]:
        """Around what takes long and writes no record. Raises Interrupted."""
        self._interruptible = True
        try:
            if self._interrupted:
                raise Interrupted()
            yield
        finally:
            self._interruptible = False
