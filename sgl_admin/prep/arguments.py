"""The server's arguments, asked of the installed server's own parser before anything is done."""

from __future__ import annotations

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Refused
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.prep.plan import Plan
from sgl_admin.sglang import ENGINE


def refuse_unknown(plan: Plan) -> None:
    """Raises Refused (usage) where the installed server does not take the operator's arguments.

    Its parser is asked once: a prep that left a result was planned with arguments that it takes.
    """
    if not plan.request.server_args or _planned_before(plan):
        return
    arguments = plan.context.arguments
    if problem := ENGINE.argument_problem(arguments, plan.server_environment):
        raise Refused(EXIT_USAGE, problem)


def _planned_before(plan: Plan) -> bool:
    """Whether the run's latest prep had the same server. Its container, and so its SGLang, is this
    one.
    """
    try:
        result = files.read_record(paths.prep_result(plan.run.run_id), RESULT_SHAPE)
    except ValueError:
        return False
    if result is None or result["run"].get("run_id") != plan.run.run_id:
        return False
    server = result["run"].get("server")
    return isinstance(server, dict) and server.get("argv") == plan.server_argv
