"""Starts a process that becomes what it is for only at a word (gate.py): once it is noted, so that
a kill in between leaves none behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgl_admin.base.command import Command
from sgl_admin.contract import disclosure

GATE, DISGUISE = (Path(__file__).with_name(name) for name in ("gate.py", "disguise.py"))


def start(
    command: Command, inherits: tuple[int, ...], **options: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, in a group of its own, and the descriptor that takes its word. Options and
    errors are those of Popen.
    """
    with _argv(command) as (argv, descriptors):
        return _start(argv, (*descriptors, *inherits), **options)


@contextmanager
def _argv(command: Command) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """The command line that everybody may see, and the descriptors that it needs: with values that
    are not shown, the one on which they come (disguise.py).
    """
    if not (hidden := command.hidden):
        yield command.argv, ()
        return
    order = {
        "argv": command.argv,
        "forms": disclosure.forms(hidden),
        "instead": disclosure.NOT_SHOWN,
    }
    # A file in memory, as a pipe would be full before anybody reads it.
    descriptor = os.memfd_create("command")
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as stream:
            json.dump(order, stream)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield [command.argv[0], str(DISGUISE), str(descriptor), *command.shown_argv], (descriptor,)
    finally:
        os.close(descriptor)


def _start(
    argv: list[str], inherits: tuple[int, ...], **options: Any
) -> tuple[subprocess.Popen[bytes], int]:
    waits, word = os.pipe()
    try:
        command = [sys.executable, "-I", "-S", str(GATE), str(os.getpid()), str(waits), *argv]
        return (
            subprocess.Popen(
                command, pass_fds=(waits, *inherits), start_new_session=True, **options
            ),
            word,
        )
    except BaseException:
        os.close(word)
        raise
    finally:
        os.close(waits)
