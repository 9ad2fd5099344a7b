"""Runs a module of this package in a process of its own, which gets its order as JSON on standard
input and tells what it does in lines on a descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_admin.base import gated
from sgl_admin.base.command import Command
from sgl_admin.base.processes import end_group

# This package's, so that the process finds it where this one did.
_SOURCES = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Worker:
    """The process, and the descriptor from which its lines are read."""

    process: subprocess.Popen[bytes]
    stream: int


@contextlib.contextmanager
def working(
    module: str,
    order: Any,
    environment: Mapping[str, str],
    log: Path,
    on_group: Callable[[int | None], None],
) -> Iterator[Worker]:
    """The process of the module, whose one argument is the descriptor to tell on; its output goes
    to the end of the log. At the end of the block it has ended, and so has all of its group.

    `on_group` gets the group before the process does anything, and None once it has ended.
    """
    stream, tells = os.pipe()
    try:
        try:
            process = _begin(module, order, environment, log, on_group, tells)
        finally:
            os.close(tells)
        try:
            yield Worker(process, stream)
        finally:
            # What it began is of its group, and outlives it where it crashed.
            end_group(process.pid, process.poll)
            process.wait()
            on_group(None)
    finally:
        os.close(stream)


def obey(work: Callable[[dict[str, Any], Callable[..., None]], int]) -> int:
    """The side of such a process: it reads its order and does `work(order, tell)`, where `tell`
    sends a line of JSON. Returns the exit code.
    """
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as stream:

        def tell(**line: Any) -> None:
            stream.write(json.dumps(line) + "\n")
            stream.flush()

        return work(json.load(sys.stdin), tell)


def _begin(
    module: str,
    order: Any,
    environment: Mapping[str, str],
    log: Path,
    on_group: Callable[[int | None], None],
    tells: int,
) -> subprocess.Popen[bytes]:
    python_path = os.pathsep.join(filter(None, (_SOURCES, os.environ.get("PYTHONPATH"))))
    with open(log, "ab") as output:
        process, word = gated.start(
            Command.public([sys.executable, "-P", "-m", module, str(tells)], {}),
            (tells,),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment, "PYTHONPATH": python_path},
            cwd="/",
        )
    assert process.stdin is not None
    try:
        on_group(process.pid)
        os.write(word, b"1")
        process.stdin.write(json.dumps(order).encode())
        process.stdin.flush()
    except BrokenPipeError:
        pass  # It has ended already, which is seen at once.
    except BaseException:
        # Nothing else would end it: it is not noted, or waits for its order for ever.
        end_group(process.pid, process.poll)
        raise
    finally:
        os.close(word)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return process
