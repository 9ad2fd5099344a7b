"""One line that says how a prep ended: what failed, where something did."""

from __future__ import annotations

from sgl_admin.contract.texts import one_line
from sgl_admin.prep.result import Outcome

_MESSAGE = 400


def message(outcome: Outcome, exit_code: int) -> str:
    if not exit_code:
        return outcome.status
    failed = [
        f"{stage['stage']} failed, {stage['error_type']}: {'; '.join(stage['errors'])}"
        for stage in outcome.failed
    ]
    if not failed:
        return one_line(f"METRICS_READY is not proven: {outcome.proof['reason']}", _MESSAGE)
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return f"{one_line(failed[0], _MESSAGE - len(more))}{more}"
