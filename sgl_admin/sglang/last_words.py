"""Which lines of a dead server's log say why it died.

A healthy server logs the same words as a dying one: exceptions that it handled, warnings of a full
cache, hints about memory. What counts is what a process said as it ended: the exception of its
traceback, or a line that is written outside any logger just before the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# torch puts the rank before each line of an uncaught exception (torch/distributed/c10d_logger.py).
_RANK = re.compile(r"\[rank\d+\]: ?")
# How loggers begin a line: SGLang's and uvicorn's time stamp, a level, glog's letter and date.
_LOGGED = re.compile(
    r"\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d|(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[ :]|\[?[IWEF]\d{3,4} "
)
# SGLang's processes log their uncaught exception in these words (run_scheduler_process and its
# likes), multiprocessing prints the other ones.
_FATAL = re.compile(r"\bhit an exception: *$")
_PROCESS = re.compile(r"Process \S+:$")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception)(?::|$)")
# What a process says as it ends without a traceback: argparse, uvicorn, the C++ runtime, the
# Python interpreter, the dynamic loader, DeepGEMM before it throws.
_BARE = re.compile(
    r"\S+: error: |.*\bERROR: +\[Errno \d+\] |\[Errno \d+\] |terminate called |Fatal Python error: "
    r"|\S+: No module named |\S+: error while loading shared libraries: |(?:NVCC|NVRTC)\b.*failed: "
)
# A child that ended, as SGLang's SubprocessWatchdog and its launcher say it.
_CHILD = re.compile(r"\bcrashed with exit code -?\d+|scheduler died during init\w* \(exit code: ")
# Said by those that lost a process which died before them, or that are being ended.
_CONSEQUENCE = re.compile(
    r"connection (closed|reset) by peer|remote process exit(ed|ing)|broken ?pipe|eoferror"
    r"|cancellederror|keyboardinterrupt|connectionreseterror|recvvalue failed"
    r"|\bother ranks that did",
    re.IGNORECASE,
)
# SGLang's parent process says these after any death of a child, and kills itself with SIGKILL.
_NOISE = re.compile(
    r"Received sigquit|SIGQUIT received|kill_process_tree called|crash dump already performed"
    r"|destroy_process_group\(\) was not called|resource_tracker: There appear to be"
    r"|If exit code is -9|^Killed$"
)
# The most that one statement's message may hold: ninja's output is part of its exception.
_MOST_LINES = 400
# A process that logs so much after an exception has handled it; its helpers may say less than that
# as they are ended.
_LIVED_ON = 3


@dataclass
class Statement:
    """What one process said as it died. `lines` are its exceptions with their messages, the first
    one first; `last` is the line of the exception that ended it.
    """

    # A process said it at its end for certain; else it may be an exception that was handled.
    certain: bool
    lines: list[str] = field(default_factory=list)
    last: str = ""
    # How many logged lines came after it.
    followed_by: int = 0

    @property
    def of_child(self) -> bool:
        return _CHILD.search(self.last) is not None

    @property
    def is_consequence(self) -> bool:
        # Its message too: NCCL says on its second line that the other side is gone.
        own = self.lines[self.lines.index(self.last) :] if self.last in self.lines else [self.last]
        return any(_CONSEQUENCE.search(line) for line in own)

    def was_handled(self, by_signal: bool) -> bool:
        """Whether it is an exception that ended nothing: a signal did, or there is more to read."""
        is_exception = _EXCEPTION.match(self.last) is not None
        return is_exception and (by_signal or self.followed_by >= _LIVED_ON)

    def add(self, line: str, exception: bool = False) -> None:
        if len(self.lines) < _MOST_LINES:
            self.lines.append(line)
        if exception:
            self.last = line


def statements(log: Iterable[str], by_signal: bool = False) -> list[list[Statement]]:
    """What may be the cause of the death, the likeliest group first; the groups that hold anything.
    `by_signal` where a signal ended the server's own process.

    The processes that say for certain that they died themselves, in their order; then what the
    parent says of children that were killed; then the last exception that may be one's end; then
    those that were taken along.
    """
    lines = [_plain(line) for line in log]
    found = _statements(lines)
    certain = [one for one in found if one.certain and not one.of_child]
    others = [one for one in found if not one.certain and not one.was_handled(by_signal)]
    groups = [
        [one for one in certain if not one.is_consequence],
        [one for one in found if one.of_child],
        [one for one in others[-1:] if not one.is_consequence],
        [one for one in certain if one.is_consequence],
    ]
    return [group for group in groups if group] or [_last_line(lines)]


def ended_itself(log: Iterable[str]) -> bool:
    """Whether the server killed itself, as SGLang does once a child has failed."""
    return any("sigquit" in line.lower() or "kill_process_tree" in line for line in log)


def _plain(line: str) -> str:
    return _RANK.sub("", _COLOUR.sub("", line), count=1).rstrip()


def _statements(lines: list[str]) -> list[Statement]:
    reader = _Reader()
    found: list[Statement] = []
    for line in lines:
        found += reader.read(line)
        if found and _LOGGED.match(line) and not _NOISE.search(line):
            found[-1].followed_by += 1
    return [*found, *reader.close()]


class _Reader:
    """Reads lines in their order; what was said is complete at the line after it."""

    def __init__(self) -> None:
        self._statement: Statement | None = None
        # Among the files and lines of a traceback, before its exception.
        self._in_traceback = False
        self._chained = False
        self._process = False

    def close(self) -> Iterator[Statement]:
        if self._statement is not None and self._statement.last:
            yield self._statement
        self._statement, self._in_traceback, self._chained = None, False, False

    def read(self, line: str) -> Iterator[Statement]:
        head, is_traceback, _ = line.partition(_TRACEBACK)
        if is_traceback:
            if not (self._chained and self._statement is not None):
                yield from self.close()
                self._statement = Statement(certain=self._process or bool(_FATAL.search(head)))
            self._in_traceback, self._chained = True, False
        elif self._in_traceback:
            self._read_traceback(line)
        elif line in _CHAINED:
            self._chained = True
        elif _CHILD.search(line):
            yield from self.close()
            yield Statement(certain=True, lines=[line], last=line)
        elif self._statement is not None and not _LOGGED.match(line) and not _PROCESS.match(line):
            self._statement.add(line)
        else:
            yield from self.close()
            if _EXCEPTION.match(line) or _BARE.match(line):
                self._statement = Statement(certain=False)
                self._statement.add(line, exception=True)
        if line:
            self._process = _PROCESS.match(line) is not None

    def _read_traceback(self, line: str) -> None:
        # Several processes write into one log: a logged line between is another's.
        if not line or line[0].isspace() or _LOGGED.match(line):
            return
        assert self._statement is not None
        self._statement.add(line, exception=True)
        self._in_traceback = False


def _last_line(lines: list[str]) -> list[Statement]:
    """The last line that says something; a logged one is no cause, but the last that was heard."""
    for line in reversed(lines):
        if line.strip() and not _NOISE.search(line):
            logged = _LOGGED.match(line) is not None
            return [Statement(certain=False, lines=[] if logged else [line], last=line)]
    return []
