"""The process that does a prep, detached from its caller: it inherits the prep lock and outlives
the connection.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable

from sgl_admin.base import detached, files, paths, rights
from sgl_admin.prep.execute import Execution, confirm_proof
from sgl_admin.prep.plan import plan_prep
from sgl_admin.records import caches, prepared, run
from sgl_admin.records.job import Job
from sgl_admin.records.request import Request


def order(request: Request, warnings: Iterable[str]) -> str:
    """What this process reads from its standard input: the request, and the warnings so far."""
    return json.dumps({"request": request.to_json(), "warnings": list(warnings)})


def main() -> int:
    """argv: the prep's id; standard input: the order. Standard output and error go to the run's
    log.
    """
    rights.begin()
    prep_id, document = sys.argv[1], json.load(sys.stdin)
    request = Request.from_json(document["request"])
    try:
        live = run.live()
        plan = confirm_proof(plan_prep(live, request, document["warnings"]))
        execution = Execution(plan, Job(live.run_id, request, prep_id, plan.shown_request))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: execution.interrupt())
        return execution.run()[1]
    except Exception as error:
        detached.complain(error)
        return 1


def sweep(run_id: str) -> None:
    """With the prep lock held: remove the temp files that a killed prep of this run left, in its
    records and in the caches'.
    """
    files.sweep_temporaries(paths.RUNS, f"{run_id}.json")
    records = [paths.PROFILES / cache / caches.RECORDS for cache in caches.CACHES]
    for record in (paths.job(run_id), paths.prep_result(run_id)):
        files.sweep_temporaries(record.parent, record.name)
    written = [paths.run_dir(run_id) / "stages", paths.metrics(run_id), prepared.folder(run_id)]
    for folder in (*written, paths.PREPARED, paths.IN_PROGRESS, *records):
        files.sweep_temporaries(folder)


if __name__ == "__main__":
    sys.exit(main())
