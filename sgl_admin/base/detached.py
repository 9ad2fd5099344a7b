"""Begins a process of its own for work that outlives its caller: a prep, a smoke."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable

from sgl_admin.base import failures, logs, paths
from sgl_admin.base.errors import Explained, Refused
from sgl_admin.base.processes import ended
from sgl_admin.contract.exit_codes import EXIT_NO_RESULT
from sgl_admin.contract.texts import one_line, say

# Of the line in the run's log that says why such a process could not go on.
PREFIX = "sgl-admin: "


def begin(
    run_id: str, module: str, work_id: str, order: str, lock: int, visible: Callable[[], bool]
) -> None:
    """Begin `module` with the work's id and its order on standard input; it holds the lock from its
    first moment on.

    Returns once its record is `visible`: the next caller finds it. Raises Refused where it ends
    before.
    """
    with open(paths.log(run_id), "ab") as log:
        logged = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, work_id],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,
            cwd="/",
        )
    assert process.stdin is not None
    try:
        process.stdin.write(order.encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # It ended already, which is reported below.
    while True:
        ended = process.poll() is not None
        if visible():
            return
        if ended:
            break
        time.sleep(0.02)
    raise Refused(
        EXIT_NO_RESULT,
        f"{work_id} ended before it began: {_last_words(run_id, logged, process.returncode)};"
        f" the log is {paths.to_host(paths.log(run_id))}",
    )


def complain(error: Exception) -> None:
    """Say in such a process's log why it could not go on, where `begin` finds it."""
    if not failures.is_foreseen(error):
        traceback.print_exception(error)
    words = error if isinstance(error, Explained) else failures.from_error(error)
    say(f"{PREFIX}{words}", file=sys.stderr)


def _last_words(run_id: str, start: int, exit_code: int) -> str:
    """What the process says that stopped it, or how it ended and the last line of its traceback."""
    said = list(filter(str.strip, logs.last_lines(paths.log(run_id), start)))
    for line in reversed(said):
        if line.startswith(PREFIX):
            return line.removeprefix(PREFIX)
    return one_line(", ".join([ended(exit_code), *said[-1:]]), 300)
