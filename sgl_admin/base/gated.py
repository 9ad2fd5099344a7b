"""Starts a process that becomes what it is for only at a word (gate.py): once it is noted, so that
a kill in between leaves none behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

GATE = Path(__file__).with_name("gate.py")


def start(
    argv: list[str], inherits: tuple[int, ...], **options: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, in a group of its own, and the descriptor that takes its word. Options and
    errors are those of Popen.
    """
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
