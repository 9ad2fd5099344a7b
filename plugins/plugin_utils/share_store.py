# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's folder of shared work, for labs without a registry: each archive beside a record
of what it is.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..module_utils._contract import locks, records

# Nothing is written to for so long that is still being written.
_ABANDONED_S = 24 * 3600
# Archives and records are only renamed while the lock is held, or one is read.
_LOCK_S = 300.0
_KEYS = {"digest": str, "sha256": str, "bytes": int, "finished": bool}


class Store:
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()

    def archive(self, name: str) -> Path:
        return self.folder / f"{name}.tar"

    def find(self, name: str) -> tuple[dict[str, Any] | None, str | None]:
        """The record of an archive that is whole, and a warning where one was not: that is set
        aside.
        """
        if (record := self._whole(name)) is not None or not self._recorded(name):
            return record, None
        with self._alone():
            # Another process may have stored it again meanwhile, or set it aside.
            if (record := self._whole(name)) is not None or not self._recorded(name):
                return record, None
            archive = self.archive(name)
            aside = _free_name(archive)
            os.replace(archive, aside)
            self._path(name).unlink()
        return (
            None,
            (
                f"{archive} is not as it was stored (its sha256 digest is another): set aside as"
                f" {aside}, and made again"
            ),
        )

    def _whole(self, name: str) -> dict[str, Any] | None:
        record = self._record(name)
        try:
            stream = open(self.archive(name), "rb")
        except FileNotFoundError:
            return None
        with stream:
            if record is None or os.fstat(stream.fileno()).st_size != record["bytes"]:
                return None
            return (
                record
                if hashlib.file_digest(stream, "sha256").hexdigest() == record["sha256"]
                else None
            )

    def _recorded(self, name: str) -> bool:
        return self._record(name) is not None and self.archive(name).is_file()

    def _record(self, name: str) -> dict[str, Any] | None:
        try:
            return records.read_record(self._path(name), _KEYS)
        except (OSError, ValueError):
            return None

    def incoming(self, name: str) -> Path:
        """Where an archive is written before it is whole; each process has its own place."""
        # What is in it runs in the hosts' next servers: no other user reads or exchanges it.
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        self._sweep()
        return self.folder / f".{name}.{os.getpid()}.tmp"

    def _sweep(self) -> None:
        """Remove what controllers that were killed left. By age: processes of other machines share
        the folder.
        """
        for left in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()

    def put(self, name: str, written: Path, record: dict[str, Any]) -> None:
        """Store what lies at `incoming`. A kill in between leaves the old archive, or one that
        readers know to be incomplete.
        """
        with open(written, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        complete = {**record, "sha256": digest, "bytes": written.stat().st_size}
        with self._alone():
            self._path(name).unlink(missing_ok=True)
            os.replace(written, self.archive(name))
            records.write_json(self._path(name), complete)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process changes what an archive and its record are; the system takes the lock
        from one that ends. Raises LockTimeout.
        """
        with locks.held(str(self.folder / ".lock"), _LOCK_S):
            yield

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return aside
