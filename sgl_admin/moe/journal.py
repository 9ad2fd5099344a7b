"""What a tuning has found so far, a line for each finding, so that one that was killed goes on
where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sgl_admin.base import files
from sgl_admin.contract.texts import read_json_text
from sgl_admin.moe.tables import Pair, pair_of

# All journals of a tuning; a host with one GPU has one.
JOURNALS = "journal*.jsonl"


@dataclass(frozen=True)
class Settled:
    """The row of a batch size, and what was measured for it (verdict.py)."""

    pair: Pair
    row: dict[str, Any]


class Findings:
    """What the lines of a journal say, by number of the trial in its space, or by the key of a
    pair.
    """

    def __init__(self) -> None:
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
        # Sizes at which something was measured.
        self.begun: set[int] = set()
        # What was being measured when the last line was written.
        self.open: tuple[int, int | str] | None = None
        # Whether the last of them was of the tuning that is asked for.
        self.is_known = False

    def read(self, content: bytes, tuning: dict[str, Any]) -> None:
        for line in _lines(content):
            if line.get("tuning") is not None:
                self.is_known = line["tuning"] == tuning
            elif self.is_known:
                self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        try:
            match line:
                case {"measuring": [int(size), int() | str() as number]}:
                    self.open = (size, number)
                    self.begun.add(size)
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


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    for line in content.decode(errors="replace").splitlines():
        try:
            found = read_json_text(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


@dataclass
class _Other:
    """The journal of another process, as far as it was read."""

    findings: Findings
    inode: int = 0
    read_to: int = 0


class Journal(Findings):
    """Findings of one tuning on one GPU. Its one writer appends; the last line may be torn. What
    the other journals of its folder have settled is among them.
    """

    def __init__(self, path: Path, tuning: dict[str, Any], beside: Iterable[Path] = ()) -> None:
        """Opens the journal at `path`, or begins it where it is of another tuning. `beside` are
        those of the processes that work at the same time.
        """
        super().__init__()
        self.path = path
        self._tuning = tuning
        try:
            self.read(files.read_bytes(path), tuning)
        except (FileNotFoundError, ValueError):
            pass
        if not self.is_known:
            self.__dict__.update(vars(Findings()))
            files.write_text(path, json.dumps({"tuning": tuning}) + "\n")
        self._stream: TextIO | None = None
        self._others: dict[Path, _Other] = {}
        self._beside = set(beside) - {path}
        # Sizes that one of them has begun: it goes on with them, also after its process crashed.
        self.begun_beside: set[int] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take up what the other processes have written since."""
        for path in sorted(self.path.parent.glob(JOURNALS)):
            if path != self.path:
                other = self._others.setdefault(path, _Other(Findings()))
                self._read_more(path, other)
                self._adopt(other.findings)
        begun = {
            size
            for path in self._beside & self._others.keys()
            for size in self._others[path].findings.begun
        }
        self.begun_beside = begun - set(self.best)

    def _read_more(self, path: Path, other: _Other) -> None:
        try:
            inode, content = path.stat().st_ino, files.read_bytes(path)
        except (FileNotFoundError, ValueError):
            return
        if inode != other.inode:
            # Its process has begun it again.
            other.findings, other.inode, other.read_to = Findings(), inode, 0
        # A line that is being written is left for the next time.
        whole = content.rfind(b"\n") + 1
        other.findings.read(content[other.read_to : whole], self._tuning)
        other.read_to = whole

    def _adopt(self, other: Findings) -> None:
        self.dropped_launches.update(other.dropped_launches)
        self.dropped.update(other.dropped)
        self.checked |= other.checked
        for size in other.best.keys() - self.best.keys():
            self.best[size] = other.best[size]
            self.looks[size] = dict(other.looks.get(size, {}))

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
