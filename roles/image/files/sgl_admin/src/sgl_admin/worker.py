"""The process that does a prep, detached from whoever asked: it inherits the prep lock and outlives the connection."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType

from sgl_admin import files, paths, run
from sgl_admin.errors import Interrupted
from sgl_admin.job import Job
from sgl_admin.prep import Prep
from sgl_admin.request import Request


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not cut the clean-up short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted()


def order(request: Request, warnings: list[str]) -> str:
    """What this process reads from its standard input: the request, and what was found and mended before."""
    return json.dumps({"request": request.to_json(), "warnings": warnings})


def main() -> int:
    """argv: the prep's id; standard input: the order. Standard output and error go to the run's log."""
    os.umask(0o002)
    given = json.load(sys.stdin)
    request = Request.from_json(given["request"])
    prep = Prep(run.live(), request, given["warnings"])
    prep.prep_id = sys.argv[1]
    job = Job(prep.run.run_id, request, prep.prep_id)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return prep.execute(job)[1]
    except BaseException as error:
        state = "interrupted" if isinstance(error, Interrupted) else "failed"
        job.update(state=state, exit_code=1, server=None, message=repr(error))
        raise


def sweep(run_id: str) -> None:
    """With the prep lock held: remove the temp files that a killed prep left."""
    for folder in (paths.run_dir(run_id), paths.run_dir(run_id) / "stages", paths.IN_PROGRESS):
        files.sweep_temporaries(folder)


if __name__ == "__main__":
    sys.exit(main())
