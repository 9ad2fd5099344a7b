"""The server of an earlier prep, which this run may not have seen: planned again from what was
asked for then, and proven by the server itself once it runs.
"""

from __future__ import annotations

from sgl_admin.base import clock, locks
from sgl_admin.base.errors import Refused
from sgl_admin.base.files import printable
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_PROOF_FAILED
from sgl_admin.prep import worker
from sgl_admin.prep.execute import Execution, confirm_proof
from sgl_admin.prep.plan import Plan, plan_prep
from sgl_admin.records import job, remembered
from sgl_admin.records.run import Run
from sgl_admin.serving.server import Server

_PREPARE = "prepare it (playbooks/prep.yml)"


def plan(live: Run, profile: str = "") -> Plan:
    """The plan for a profile's server, or for that of the latest proven prep. Raises Refused where
    it was not prepared on this host, or what was prepared does not stand any more.
    """
    named = f"profile {printable(profile)}" if profile else "a server"
    try:
        request = remembered.read(profile, int(live.manifest["services"]["sglang"]["port"]))
    except ValueError as error:
        raise Refused(EXIT_NO_LIVE_RUN, f"{error}; {_PREPARE}") from error
    if request is None:
        raise Refused(
            EXIT_NO_LIVE_RUN, f"{named} was not prepared and proven on this host: {_PREPARE} first"
        )
    found = plan_prep(live, request)
    for decision in found.decisions:
        if decision.action == "run":
            raise Refused(
                EXIT_NO_LIVE_RUN,
                f"what was prepared for {named} does not stand any more"
                f" ({decision.stage.name}: {decision.explanation}): {_PREPARE} again",
            )
    return found


def prove(found: Plan, server: Server) -> None:
    """Have this run's records say that the server which runs is the prepared one, with a proof by
    its own metrics where the run has none. Raises Refused where a proof is impossible.
    """
    with locks.tried(job.LOCK) as lock:
        if lock is None:
            raise Refused(
                EXIT_BUSY,
                "the server runs, and is not proven, because a prep runs on this host: wait for its"
                " end (sgl-admin status --watch), and run this again",
            )
        run_id = found.run.run_id
        job.settle(run_id, [])
        worker.sweep(run_id)
        record = job.Job(run_id, found.request, clock.new_id("prep"), found.shown_request)
        result, exit_code = Execution(confirm_proof(found), record, server).run()
    if exit_code:
        reason = result["telemetry_probe"]["reason"]
        raise Refused(
            EXIT_PROOF_FAILED, f"the server runs, and its metrics are not proven: {reason}"
        )
