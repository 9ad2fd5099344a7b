"""What a tuning has found so far, a line for each finding, so that one that was killed goes on
where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sgl_admin.base import files
from sgl_admin.contract.texts import read_json_text
from sgl_admin.moe.tables import Pair, pair_of


@dataclass(frozen=True)
class Settled:
    """The row of a batch size, and what was measured for it (verdict.py)."""

    pair: Pair
    row: dict[str, Any]


class Journal:
    """Findings of one tuning, by number of the trial in its space, or by the key of a pair. Its one
    writer appends; the last line may be torn.
    """

    def __init__(self, path: Path, tuning: dict[str, Any]) -> None:
        """Opens the journal at `path`, or begins it where it is of another tuning."""
        self.path = path
        # launch -> why it cannot be used: its compiler took too long, or crashed.
        self.dropped_launches: dict[str, str] = {}
        # (batch size, trial or pair) -> why it cannot be used: it hung, it crashed, or it does not
        # fit the GPU.
        self.dropped: dict[tuple[int, int | str], str] = {}
        # batch size -> trial -> microseconds of a first look.
        self.looks: dict[int, dict[int, float]] = {}
        self.best: dict[int, Settled] = {}
        # Neighbouring batch sizes between which the rows were checked.
        self.checked: set[tuple[int, int]] = set()
        # What was being measured when the last line was written.
        self.open: tuple[int, int | str] | None = None
        known = False
        for line in self._lines():
            if line.get("tuning") is not None:
                known = line["tuning"] == tuning
            elif known:
                self._take(line)
        if not known:
            self.__dict__.update(dropped_launches={}, dropped={}, looks={}, best={}, open=None)
            self.checked = set()
            files.write_text(path, json.dumps({"tuning": tuning}) + "\n")
        self._stream: TextIO | None = None

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            content = files.read_bytes(self.path).decode(errors="replace")
        except (FileNotFoundError, ValueError):
            return
        for line in content.splitlines():
            try:
                found = read_json_text(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found

    def _take(self, line: dict[str, Any]) -> None:
        try:
            match line:
                case {"measuring": [int(size), int() | str() as number]}:
                    self.open = (size, number)
                case {"measured": int()}:
                    self.open = None
                case {"batch_size": int(size), "trial": int(number), "us": float(us)}:
                    self.looks.setdefault(size, {})[number] = us
                    self.open = None
                case {
                    "batch_size": int(size), "trial": int() | str() as number, "dropped": str(why)
                }:  # fmt: skip
                    self.dropped[size, number] = why
                    self.open = None
                case {"launch": str(launch), "dropped": str(why)}:
                    self.dropped_launches[launch] = why
                case {"batch_size": int(size), "best": best, "row": dict(row)}:
                    self.best[size] = Settled(pair_of(best), row)
                    self.open = None
                case {"checked": [int(low), int(high)]}:
                    self.checked.add((low, high))
        except (TypeError, ValueError):
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

    def measuring(self, size: int, number: int | str) -> None:
        self._write({"measuring": [size, number]})

    def measured(self, size: int) -> None:
        self._write({"measured": size})

    def look(self, size: int, number: int, us: float) -> None:
        self._write({"batch_size": size, "trial": number, "us": float(us)})

    def drop(self, size: int, number: int | str, why: str) -> None:
        self._write({"batch_size": size, "trial": number, "dropped": why})

    def drop_launch(self, launch: str, why: str) -> None:
        self._write({"launch": launch, "dropped": why})

    def check(self, low: int, high: int) -> None:
        self._write({"checked": [low, high]})

    def settle(self, size: int, settled: Settled) -> None:
        """The row of a batch size; on disk before this returns."""
        self._write({"batch_size": size, "best": settled.pair.to_json(), "row": settled.row})
        assert self._stream is not None
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
