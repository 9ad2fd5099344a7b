"""Carries a plan out: the stages under their locks, with one server for all of them, then the
proof, then the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from sgl_admin.base import clock, failures, files, paths
from sgl_admin.base.errors import Interrupted, StageFailure
from sgl_admin.base.interruption import Interruptible
from sgl_admin.base.locks import locked
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.moe import config_files
from sgl_admin.prep import result
from sgl_admin.prep.plan import Decision, Plan
from sgl_admin.prep.result import NewFiles, Outcome, Record
from sgl_admin.records import caches, compiled, rebuilding
from sgl_admin.records.job import Job
from sgl_admin.serving import probe, services
from sgl_admin.serving.server import Server
from sgl_admin.serving.warmup import OfRunning, Warmup
from sgl_admin.sglang import ENGINE
from sgl_admin.stages import Stage

_LOCK_TIMEOUT_S = 3600.0


def confirm_proof(plan: Plan) -> Plan:
    """The plan after asking Prometheus whether it stands by the recorded proof; where it does not,
    the proof is made again.
    """
    if plan.probe_wanted or plan.standing_proof is None:
        return plan
    problem = _lost(plan, plan.standing_proof)
    if problem is None:
        plan = replace(plan, services=services.states(plan.run.manifest))
        problem = services.obstacle(plan.services or {})
    if problem is None:
        return plan
    if plan.request.probe == "never":
        return replace(plan, standing_proof=None)
    return replace(plan, probe_wanted=True).with_warning(f"{problem}: the proof is made again")


def _lost(plan: Plan, proof: Record) -> str | None:
    """Why a proof of before does not stand; None where it does."""
    return services.intrusion(plan.run.manifest) or probe.lost(plan.prometheus_url, proof)


def set_aside(plan: Plan, warnings: list[str]) -> None:
    """Rename the records that the plan could not read; each gets a warning that names its new
    place.
    """
    for record in plan.unreadable:
        files.read_or_set_aside(record.path, record.shape, warnings)


class Execution(Interruptible):
    """One execution of a plan whose proof is confirmed (`confirm_proof`)."""

    def __init__(self, plan: Plan, job: Job, running: Server | None = None) -> None:
        """`running` is the plan's server where another command has started it: it is asked, and
        goes on.
        """
        self.plan = plan
        self.job = job
        self._warnings = list(plan.warnings)
        self._started, self._started_at = time.monotonic(), clock.utc()
        # What the caches, and the container outside of them, held before anything ran.
        self._cached: caches.Listing = {}
        self._outside: compiled.Outside = {}
        self._warmup = (
            self._own_server() if running is None else OfRunning(plan.run.run_id, running)
        )
        # What a server makes is set aside for a rebuild; a tuning replaces its own piece by piece.
        self._rebuilds = [
            decision
            for decision in plan.decisions
            if decision.action == "run"
            and decision.signature is not None
            and decision.stage.server_made
            and plan.request.stages[decision.stage.name] == "rebuild"
        ]
        self._context = replace(
            plan.context,
            warmup=self._warmup,
            progress=job.steps,
            on_group=job.server,
            on_batch_size=job.batch_size,
        )

    def _own_server(self) -> Warmup:
        plan, run_id = self.plan, self.plan.run.run_id
        return Warmup(
            run_id,
            Server(plan.command, plan.request.warmup_port, paths.log(run_id)),
            plan.request.server_timeout_s,
            self.job.server,
            self.job.server_starting,
            self._make_gpu_ready if plan.context.devices.cuda else lambda: None,
        )

    def run(self) -> tuple[Record, int]:
        """Returns the aggregate, which is on disk by then, and the exit code. Raises OSError where
        a record cannot be written.
        """
        try:
            return self._run()
        except BaseException as error:
            self.job.abandon(error)
            raise

    def _run(self) -> tuple[Record, int]:
        self.job.update()
        set_aside(self.plan, self._warnings)
        self._cached = caches.listing()
        before = caches.sizes(self._cached)
        if not self.plan.nothing_to_do:
            self._outside = compiled.outside()
        try:
            stages = self._run_stages()
            proof = self._proof()
        finally:
            cleanup_failure = self._close_server()
        self._record_late_files(stages)
        after = self._cached if self.plan.nothing_to_do else caches.listing()
        new_files = self._new_files(after)
        known = self.plan.services if self.plan.nothing_to_do else None
        alive = services.states(self.plan.run.manifest) if known is None else known
        self._warnings += [
            problem for problem in services.problems(alive) if problem not in self._warnings
        ]
        outcome = Outcome(
            self.job.record["prep_id"],
            self._started_at,
            round(time.monotonic() - self._started, 3),
            stages,
            proof,
            cleanup_failure,
            before,
            caches.sizes(after),
            self._warnings,
            new_files,
            alive,
            self._warmup.starts,
        )
        document = result.aggregate(self.plan, outcome)
        result.write(self.plan, document)
        exit_code = outcome.exit_code(self.plan.probe_wanted)
        self._end_job(outcome.message(exit_code), exit_code)
        return document, exit_code

    def _end_job(self, message: str, exit_code: int) -> None:
        self.job.update(
            state="interrupted" if self._interrupted else "failed" if exit_code else "done",
            stage=None,
            exit_code=exit_code,
            eta_s=0,
            server=None,
            message=message,
        )

    # --- stages

    def _run_stages(self) -> dict[str, Record]:
        records = {}
        try:
            for decision in self.plan.decisions:
                record = self._stage(decision)
                if record["status"] == "error":
                    record["status_code"] = decision.stage.contract.exit_code
                    self._interrupted = self._interrupted or record["error_type"] == "interrupted"
                records[decision.stage.name] = record
                result.write_stage(self.plan.run.run_id, record, self._warnings)
        finally:
            # What a rebuild that failed did not replace.
            rebuilding.put_back()
        return records

    def _stage(self, decision: Decision) -> Record:
        if decision.action == "run":
            return self._not_begun(decision) if self._interrupted else self._run_stage(decision)
        record = result.stage_record(decision)
        if decision.action == "noop":
            if (work := decision.taken_over) is not None:
                identity = self._context.served_identity
                decision.record.write(work.files, served=identity, seconds=work.seconds)
            else:
                decision.record.settle()
                decision.record.used()
            record["artifacts"] = {
                **decision.stage.standing(self._context),
                "files": decision.record.summary(),
            }
            self._warn_of(record)
        return record

    def _warn_of(self, record: Record) -> None:
        """A stage's warnings are also among the prep's."""
        record["warnings"] = record["artifacts"].pop("warnings", [])
        self._warnings += [each for each in record["warnings"] if each not in self._warnings]

    @staticmethod
    def _not_begun(decision: Decision) -> Record:
        failure = Interrupted()
        return {
            **result.stage_record(decision),
            **result.error_fields(failure),
            "ran": False,
            "errors": [f"not begun: {failure}"],
        }

    def _run_stage(self, decision: Decision) -> Record:
        record = result.stage_record(decision)
        started = time.monotonic()
        self.job.stage(decision.stage.name, f"stage {decision.stage.name}")
        try:
            record["artifacts"], record["signature"] = self._work(decision.stage)
            self._warn_of(record)
        except Exception as error:
            log = paths.log(self.plan.run.run_id)
            failure = failures.recorded(error, log, decision.stage.failure_type)
            record.update(result.error_fields(failure))
            record["artifacts"] = failure.artifacts
        duration_s = round(time.monotonic() - started, 3)
        record.update(finished_at=clock.utc(), duration_s=duration_s)
        return record

    def _work(self, stage: Stage) -> tuple[Record, dict[str, Any]]:
        """The stage's work under its lock. Returns the artifacts, and the signature of what was
        done.
        """
        started = time.monotonic()
        with ExitStack() as lock:
            with self._may_be_interrupted():
                lock.enter_context(locked(stage.name, _LOCK_TIMEOUT_S))
            with self._marked(stage):
                with self._may_be_interrupted():
                    self._begin_rebuilds()
                    artifacts = stage.run(self._context)
                # What the stage learned from the server may have changed its signature.
                signature = stage.signature(self._context)
                record = stage.record(signature)
                made = caches.changed(stage.caches, self._cached) if stage.server_made else None
                if made is not None:
                    artifacts["compiled_files"] = len(made)
                artifacts["files"] = record.write(
                    stage.content(self._context),
                    self._context.served_identity,
                    made,
                    round(time.monotonic() - started, 3),
                )
                rebuilding.replaced(record)
        return artifacts, signature

    def _record_late_files(self, records: dict[str, Record]) -> None:
        """What the server compiled after a stage was recorded is part of that stage's work too."""
        for decision in self.plan.decisions:
            stage, record = decision.stage, records[decision.stage.name]
            if not stage.server_made or record["status"] not in ("ok", "noop"):
                continue
            vouched = stage.record(record["signature"])
            recorded = set(vouched.content())
            made = caches.changed(stage.caches, self._cached)
            if recorded.issuperset(made):
                continue
            with locked(stage.name, _LOCK_TIMEOUT_S):
                summary = vouched.write(None, self._context.served_identity, made)
            record["artifacts"]["files"] = summary
            result.write_stage(self.plan.run.run_id, record, self._warnings)

    def _new_files(self, cached: caches.Listing) -> NewFiles:
        """What this prep compiled, and where; a warning says what a new container would lack."""
        if self.plan.nothing_to_do:
            return NewFiles([], [])
        found = NewFiles(
            sorted(map(str, caches.new_files(cached, self._cached))),
            compiled.new_outside(compiled.outside(), self._outside),
        )
        if warning := found.warning:
            self._warnings.append(warning)
        return found

    def _begin_rebuilds(self) -> None:
        """Before the first server starts: set aside what it is to make again for any stage, once
        nothing that is known beforehand keeps it from starting. Raises StageFailure.
        """
        if self._rebuilds:
            self._warmup.make_way()
            while self._rebuilds:
                record = self._rebuilds.pop(0).record
                rebuilding.set_aside(record, record.own(self._warnings))

    @contextmanager
    def _marked(self, stage: Stage) -> Iterator[None]:
        """The stage's marker, which stays only where this process is killed outright."""
        marker = paths.IN_PROGRESS / f"{stage.name}.json"
        owner = {
            "stage": stage.name,
            "owner_pid": self.job.record["pid"],
            "started_at": clock.utc(),
            "run_id": self.plan.run.run_id,
        }
        files.write_json(marker, owner)
        try:
            yield
        finally:
            marker.unlink()

    # --- proof and server

    def _proof(self) -> Record:
        plan = self.plan
        if not plan.probe_wanted and plan.standing_proof is not None:
            return plan.standing_proof
        if plan.probe_wanted:
            proof = self._make_proof()
        else:
            reason = "no proof was asked for (--probe never)"
            proof = probe.unproven(*self._asked, reason)
        if proof is plan.standing_proof:
            return proof
        return {**proof, "server": plan.server, "prep_id": self.job.record["prep_id"]}

    @property
    def _asked(self) -> tuple[str, str, str]:
        """Of which run, which Prometheus is asked, and for the server of which address."""
        return self.plan.run.run_id, self.plan.prometheus_url, self.plan.server_address

    def _make_proof(self) -> Record:
        plan = self.plan
        try:
            with self._may_be_interrupted():
                self.job.stage(
                    "telemetry_probe", "waiting for Prometheus to account for the tokens sent"
                )
                alive = services.wait(plan.run.manifest)
                if (dead := services.obstacle(alive)) is not None:
                    return probe.unproven(*self._asked, dead)
                if (proof := self._proof_of_before()) is not None:
                    return proof
                ledger = self._warmup.ensure_requests(plan.context.batch_sizes[:1])
                proof = probe.prove(
                    plan.run.run_id, plan.prometheus_url, ledger, plan.request.probe_timeout_s
                )
            if proof["ok"] and (problem := services.intrusion(plan.run.manifest)):
                return probe.unproven(*self._asked, problem, proof["tokens_expected"])
            return proof
        except (StageFailure, OSError) as error:
            self._interrupted = self._interrupted or isinstance(error, Interrupted)
            failure = failures.from_error(error)
            return probe.unproven(*self._asked, f"{failure.error_type}: {failure}")

    def _proof_of_before(self) -> Record | None:
        """The earlier proof, where it stands after all: a service came back meanwhile."""
        proof = self.plan.standing_proof
        if proof is None or self.plan.request.probe == "always":
            return None
        return proof if _lost(self.plan, proof) is None else None

    def _close_server(self) -> str | None:
        try:
            self._warmup.close()
        except StageFailure as failure:
            return str(failure)
        return None

    def _make_gpu_ready(self) -> None:
        """What a server on a GPU needs before it starts. Raises StageFailure."""
        environment, release = self.plan.server_environment, self.plan.context.release
        gpu_fit.check_free_space()
        visible = environment.get(devices.VISIBLE)
        gpu_fit.wait_until_free(visible)
        held = gpu_fit.held_memory(self.plan.context.devices, visible)
        if held and held not in self._warnings:
            self._warnings.append(held)
        config_files.make_ready(environment[ENGINE.moe.variable], release)
