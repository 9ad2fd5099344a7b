"""Kills the Python process that loads it with SIGKILL, at the call that the environment names:
`SGL_TEST_KILL=copy_file_range:3`.

It stands for the kill that comes in the middle of a copy, at the same byte each time. It is loaded
through PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
from typing import Any

_name, _colon, _number = os.environ.get("SGL_TEST_KILL", "").partition(":")
_calls = 0
if _name:
    _real = getattr(os, _name)

    def _call(*arguments: Any, **options: Any) -> Any:
        global _calls
        _calls += 1
        if _calls == int(_number):
            os.kill(os.getpid(), signal.SIGKILL)
        return _real(*arguments, **options)

    setattr(os, _name, _call)
