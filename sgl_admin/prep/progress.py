"""How far a prep is, in its job's record: who follows the job reads it there."""

from __future__ import annotations

import time

from sgl_admin.records.job import Job


class Progress:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._counted_from = time.monotonic()

    def stage(self, name: str, message: str) -> None:
        """A stage, or the proof, begins."""
        self._job.update(stage=name, done=0, total=0, eta_s=None, message=message)

    def steps(self, done: int, total: int, unit: str, message: str) -> None:
        if done == 0:
            self._counted_from = time.monotonic()
        # The rest is assumed to be as fast as what is done; after nothing there is no estimate.
        eta_s = None
        if done:
            elapsed_s = time.monotonic() - self._counted_from
            eta_s = round(elapsed_s / done * (total - done), 1)
        message = f"{message}: {done} of {total}"
        self._job.update(done=done, total=total, unit=unit, eta_s=eta_s, message=message)

    def batch_size(self, size: int) -> None:
        """A batch size is finished: it can be packed for other hosts."""
        finished = {*self._job.record.get("finished_batch_sizes", []), size}
        self._job.update(finished_batch_sizes=sorted(finished))

    def server_starting(self) -> None:
        self._job.update(2.0, message="waiting for the server to become healthy")
