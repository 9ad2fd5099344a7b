"""Begins a process of its own for work that outlives whoever asked for it: a prep, a smoke."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from sgl_admin.base import paths
from sgl_admin.base.errors import Refused
from sgl_admin.contract.exit_codes import EXIT_NO_RESULT

# Of the line in the run's log that says why such a process could not go on.
PREFIX = "sgl-admin: "


def begin(
    run_id: str, module: str, work_id: str, order: str, lock: int, visible: Callable[[], bool]
) -> None:
    """Begin `module` with the work's id and its order on standard input; it holds the lock from its
    first moment on.

    Returns once its record is `visible`: whoever asks after it next finds it. Raises Refused where
    it ends before.
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
        pass  # It ended already, and is told of below.
    while True:
        ended = process.poll() is not None
        if visible():
            return
        if ended:
            break
        time.sleep(0.02)
    said = paths.log(run_id).read_bytes()[logged:].decode(errors="replace").splitlines()
    why = [line.removeprefix(PREFIX) for line in said if line.startswith(PREFIX)] or [
        f"exit code {process.returncode}"
    ]
    raise Refused(
        EXIT_NO_RESULT,
        f"{work_id} ended before it began: {why[-1]}; the log is"
        f" {paths.to_host(paths.log(run_id))}",
    )
