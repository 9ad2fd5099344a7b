"""The server's arguments, asked of the installed server's own parser before anything is done."""

from __future__ import annotations

from typing import Any

from sgl_admin.base import files
from sgl_admin.base.command import SETTINGS
from sgl_admin.base.errors import Refused
from sgl_admin.contract import disclosure
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.prep.plan import Plan
from sgl_admin.records import prepared
from sgl_admin.sglang import ENGINE


def refuse_unknown(plan: Plan) -> None:
    """Raises Refused (usage) where the installed server does not take the operator's arguments.

    Its parser is asked once: a prep that left a result was planned with arguments that it takes.
    """
    if not plan.request.server_args or _planned_before(plan):
        return
    arguments = plan.context.arguments
    if problem := ENGINE.argument_problem(arguments, plan.server_environment):
        raise Refused(EXIT_USAGE, disclosure.masked(problem, plan.command.hidden))


def _planned_before(plan: Plan) -> bool:
    """Whether an earlier prep of the run had the same server. The run's container, and so its
    SGLang, is this one.
    """
    run_id = plan.run.run_id
    for path in prepared.folder(run_id).glob("*.json"):
        record = files.read_valid(path, prepared.SHAPE)
        if record and record["run_id"] == run_id and _same_arguments(plan.command.shown, record):
            return True
    return False


def _same_arguments(shown: dict[str, Any], record: dict[str, Any]) -> bool:
    return all(shown.get(name) == record.get(name) for name in ("argv", SETTINGS))
