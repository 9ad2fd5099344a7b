"""What a tuning has found so far, a line for each finding, so that one that was killed goes on
where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sgl_admin.base import files
from sgl_admin.moe.space import Config


class Journal:
    """Findings of one tuning, by number of configuration in its space. Its one writer appends; the
    last line may be torn.
    """

    def __init__(self, path: Path, tuning: dict[str, Any]) -> None:
        """Opens the journal at `path`, or begins it where it is of another tuning."""
        self.path = path
        # launch -> why it cannot be used: its compiler took too long, or crashed.
        self.dropped_launches: dict[str, str] = {}
        # (batch size, configuration) -> why it cannot be used: it hung, it crashed, or it does not
        # fit the GPU.
        self.dropped: dict[tuple[int, int], str] = {}
        # batch size -> configuration -> microseconds of a first look.
        self.looks: dict[int, dict[int, float]] = {}
        self.best: dict[int, tuple[Config, float]] = {}
        # What was being measured when the last line was written.
        self.open: tuple[int, int] | None = None
        known = False
        for line in self._lines():
            if line.get("tuning") is not None:
                known = line["tuning"] == tuning
            elif known:
                self._take(line)
        if not known:
            self.__dict__.update(dropped_launches={}, dropped={}, looks={}, best={}, open=None)
            files.write_text(path, json.dumps({"tuning": tuning}) + "\n")
        self._stream: TextIO | None = None

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            content = files.read_bytes(self.path).decode(errors="replace")
        except (FileNotFoundError, ValueError):
            return
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found

    def _take(self, line: dict[str, Any]) -> None:
        try:
            match line:
                case {"measuring": [int(size), int(number)]}:
                    self.open = (size, number)
                case {"batch_size": int(size), "configuration": int(number), "us": float(us)}:
                    self.looks.setdefault(size, {})[number] = us
                    self.open = None
                case {"batch_size": int(size), "configuration": int(number), "dropped": str(why)}:
                    self.dropped[size, number] = why
                    self.open = None
                case {"launch": str(launch), "dropped": str(why)}:
                    self.dropped_launches[launch] = why
                case {"batch_size": int(size), "best": dict(config), "us": float(us)}:
                    self.best[size] = (config, us)
                    self.open = None
        except TypeError:
            return

    def _write(self, line: dict[str, Any]) -> None:
        self._take(line)
        if self._stream is None:
            # What follows a torn line would be lost with it.
            torn = not files.read_bytes(self.path).endswith(b"\n")
            # Open as long as the tuning.
            self._stream = open(self.path, "a", encoding="utf-8")
            self._stream.write("\n" * torn)
        self._stream.write(json.dumps(line) + "\n")
        # Into the kernel's hands: what kills this process does not take it along.
        self._stream.flush()

    def measuring(self, size: int, number: int) -> None:
        self._write({"measuring": [size, number]})

    def look(self, size: int, number: int, us: float) -> None:
        self._write({"batch_size": size, "configuration": number, "us": float(us)})

    def drop(self, size: int, number: int, why: str) -> None:
        self._write({"batch_size": size, "configuration": number, "dropped": why})

    def drop_launch(self, launch: str, why: str) -> None:
        self._write({"launch": launch, "dropped": why})

    def settle(self, size: int, config: Config, us: float) -> None:
        """The best configuration of a batch size; on disk before this returns."""
        self._write({"batch_size": size, "best": config, "us": float(us)})
        assert self._stream is not None
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
