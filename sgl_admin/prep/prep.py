"""One prep: plan, stages, proof, records. Stage files are written first, then the aggregate, then
the manifest's paths.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sgl_admin.base import clock, files, paths, versions
from sgl_admin.base.errors import EXIT_PROOF_FAILED, EXIT_USAGE, Interrupted, Refused, StageFailure
from sgl_admin.base.interruption import Interruptible
from sgl_admin.base.locks import locked
from sgl_admin.facts import devices, gpu_fit, model
from sgl_admin.moe import config_files
from sgl_admin.records import caches
from sgl_admin.records.caches import SignatureRecord, dead_owner
from sgl_admin.records.job import Job
from sgl_admin.records.request import Request
from sgl_admin.records.run import RESULT_SHAPE, Run
from sgl_admin.serving import probe
from sgl_admin.serving.warmup import Warmup
from sgl_admin.sglang import ENGINE
from sgl_admin.stages import FIRST_STATUS_CODE, STAGES, Context, Stage

_LOCK_TIMEOUT_S = 3600.0
_STAGE_SHAPE: files.Shape = {
    "stage": str,
    "ran": bool,
    "status": str,
    "status_code": int,
    "artifacts": dict,
    "errors": list,
}


@dataclass(frozen=True)
class Decision:
    """What a prep does about a stage: `run`, `noop` or `skipped`."""

    stage: Stage
    action: str
    reason: str | None
    signature: dict[str, Any] | None

    @property
    def record(self) -> SignatureRecord:
        assert self.signature is not None
        return SignatureRecord(self.stage.name, self.stage.caches, self.signature)


class Prep(Interruptible):
    def __init__(self, run: Run, request: Request, warnings: Iterable[str] = ()) -> None:
        """`warnings` are those of what was found and mended before.

        Raises model.UnusableModel, ValueError (tp does not fit) and RuntimeError (NVML does not
        answer).
        """
        self.run = run
        self.request = request
        self.prep_id = clock.new_id("prep")
        self.warnings = list(warnings)
        self._started = time.monotonic()
        self._started_at = clock.utc()
        self._job: Job | None = None
        self._counted_from = self._started
        flavour = files.read_json(paths.FLAVOUR) or {}
        self._environment: dict[str, str] = {
            **flavour["server"]["env"],
            **dict(line.split("=", 1) for line in request.server_env),
        }
        if devices.VISIBLE in self._environment:
            # What the server will see is what this prep is for.
            os.environ[devices.VISIBLE] = self._environment[devices.VISIBLE]
        loaded, found = model.load(request.model), devices.find()
        gpu_fit.check(found, request.tp, self._warn)
        self._release, unknown = ENGINE.release()
        if unknown:
            self._warn(unknown)
        if found.cuda:
            self._environment = {
                **ENGINE.gpu_environment(config_files.root()),
                **self._environment,
            }
        sizes = request.cuda_graph_batch_sizes
        arguments = [
            *flavour["server"]["args"],
            *self._release.tracing_arguments(run.manifest),
            *self._release.cuda_graph_arguments(sizes),
            *request.server_args,
        ]
        argv = ENGINE.command(request.model, request.tp, request.warmup_port, arguments)
        self._argv = argv
        self._warmup = Warmup(
            run.run_id,
            argv,
            self._environment,
            request.warmup_port,
            request.server_timeout_s,
            self._server_changed,
            self._server_starting,
            self._make_gpu_ready if found.cuda else lambda: None,
        )
        self.context = Context(
            request,
            loaded,
            found,
            sizes or tuple(flavour["server"]["batch_sizes"]),
            self._warmup,
            self._progress,
            tuple(arguments),
            tuple(self._environment.items()),
            self._release,
            self._server_changed,
            self._batch_size_finished,
        )
        self.plan = [self._decide(stage) for stage in STAGES]
        self._previous = (
            files.read_or_set_aside(paths.prep_result(run.run_id), RESULT_SHAPE, self.warnings)
            or {}
        )
        self.probe_wanted = request.probe == "always" or (
            request.probe == "auto" and not self._proof_stands()
        )

    @property
    def nothing_to_do(self) -> bool:
        return not self.probe_wanted and all(decision.action != "run" for decision in self.plan)

    def _decide(self, stage: Stage) -> Decision:
        mode = self.request.stages[stage.name]
        if mode == "skip":
            return Decision(stage, "skipped", "requested", None)
        if reason := stage.skip_reason(self.context):
            return Decision(stage, "skipped", reason, None)
        if stage.unsupported(self.context):
            return Decision(stage, "run", None, None)
        decision = Decision(stage, "run", None, stage.signature(self.context))
        if dead_owner(stage.name):
            self._warn(f"an earlier {stage.name} was killed before it finished; it is done again")
            return decision
        if (
            mode == "ensure"
            and decision.record.problem(self.warnings) is None
            and stage.lacking(self.context) is None
        ):
            return Decision(stage, "noop", "valid_signature", decision.signature)
        return decision

    def _standing_proof(self) -> dict[str, Any] | None:
        # A result that was copied from another run carries that run's proof.
        if self._previous.get("run", {}).get("run_id") != self.run.run_id:
            return None
        proof: dict[str, Any] = self._previous["telemetry_probe"]
        return proof if proof.get("ok") is True else None

    def _proof_stands(self) -> bool:
        if self._standing_proof() is None:
            return False
        if not probe.answers(self._prometheus_url):
            self.warnings.append(
                f"Prometheus at {self._prometheus_url} does not answer: the proof of before does"
                " not count, and is made anew"
            )
            return False
        return True

    @property
    def _prometheus_url(self) -> str:
        url: str = self.run.manifest["services"]["prometheus"]["url"]
        return url

    def dry_run(self) -> dict[str, Any]:
        """The plan, as `caches ensure --dry-run --json` prints it."""
        return {
            "schema_version": "1",
            "dry_run": True,
            "would_change": not self.nothing_to_do,
            "stages": {
                decision.stage.name: {
                    "status": "would_run" if decision.action == "run" else decision.action,
                    "reason": (
                        decision.reason
                        or (self._why(decision) if decision.action == "run" else None)
                    ),
                    "key": self._key(decision),
                    "signature": decision.signature,
                    **(
                        {"missing_batch_sizes": sizes}
                        if (sizes := self._missing_batch_sizes(decision)) is not None
                        else {}
                    ),
                }
                for decision in self.plan
            },
            "telemetry_probe": (
                "would_run"
                if self.probe_wanted
                else "skipped"
                if self.request.probe == "never"
                else "stands"
            ),
            "warnings": self.warnings,
        }

    def _key(self, decision: Decision) -> str | None:
        """By which other hosts' work of this stage is found; none where it has no signature."""
        return decision.stage.key(self.context) if decision.signature is not None else None

    def _missing_batch_sizes(self, decision: Decision) -> list[int] | None:
        return (
            decision.stage.missing_batch_sizes(self.context)
            if decision.signature is not None
            else None
        )

    def _why(self, decision: Decision) -> str | None:
        stage = decision.stage
        return (
            stage.unsupported(self.context)
            or decision.record.problem([])
            or stage.lacking(self.context)
        )

    def execute(self, job: Job) -> tuple[dict[str, Any], int]:
        """Do what is planned; returns the aggregate, which is on disk by then, and the exit code.
        Raises OSError where it cannot be.
        """
        try:
            return self._execute(job)
        except BaseException as error:
            job.abandon(error)
            raise

    def _execute(self, job: Job) -> tuple[dict[str, Any], int]:
        self._job = job
        job.update()
        before = caches.sizes()
        results: dict[str, dict[str, Any]] = {}
        try:
            for number, decision in enumerate(self.plan):
                result = (
                    self._interrupted_before(decision)
                    if self._interrupted
                    else self._stage(decision)
                )
                if result["status"] == "error":
                    result["status_code"] = FIRST_STATUS_CODE + number
                    self._interrupted = self._interrupted or result["error_type"] == "interrupted"
                results[decision.stage.name] = result
                self._write_stage(decision, result)
            proof = self._proof()
        finally:
            cleanup = self._close_server()
        after = before if self.nothing_to_do else caches.sizes()
        aggregate = {
            **self._aggregate(results, proof, cleanup),
            "profile_cache": {"before": before, "after": after},
        }
        files.write_json(paths.prep_result(self.run.run_id), aggregate)
        self.run.add_prep_result_paths()
        failed = [
            result["status_code"] for result in results.values() if result["status"] == "error"
        ]
        exit_code = (
            failed[0]
            if failed
            else EXIT_PROOF_FAILED
            if self.probe_wanted and not proof["ok"]
            else 0
        )
        state = "interrupted" if self._interrupted else "failed" if exit_code else "done"
        job.update(
            state=state,
            stage=None,
            exit_code=exit_code,
            eta_s=0,
            server=None,
            message=f"{aggregate['status']}",
        )
        return aggregate, exit_code

    def _stage(self, decision: Decision) -> dict[str, Any]:
        started, started_at = time.monotonic(), clock.utc()
        result: dict[str, Any] = {
            "schema_version": "1",
            "stage": decision.stage.name,
            "ran": decision.action == "run",
            "status": "ok" if decision.action == "run" else decision.action,
            "status_code": 0,
            "reason": decision.reason,
            "started_at": started_at,
            "finished_at": started_at,
            "duration_s": 0.0,
            "key": self._key(decision),
            "signature": decision.signature,
            "artifacts": {},
            "error_type": None,
            "warnings": [],
            "errors": [],
            "log_tail": [],
        }
        if decision.action == "noop":
            result["artifacts"] = {
                **decision.stage.standing(self.context),
                "files": decision.record.summary(),
            }
        if decision.action == "run":
            assert self._job is not None
            self._job.update(
                stage=decision.stage.name,
                done=0,
                total=0,
                eta_s=None,
                message=f"stage {decision.stage.name}",
            )
            try:
                result["artifacts"], result["signature"] = self._work(decision)
            except Exception as error:
                failure = as_stage_failure(error)
                result.update(
                    status="error",
                    error_type=failure.error_type,
                    errors=[str(failure)],
                    log_tail=failure.log_tail,
                )
            result.update(finished_at=clock.utc(), duration_s=round(time.monotonic() - started, 3))
        return result

    def _work(self, decision: Decision) -> tuple[dict[str, Any], dict[str, Any]]:
        """The stage's work under its lock, with a marker that outlives only a process that is
        killed outright.

        Returns the artifacts, and the signature of what was done.
        """
        stage = decision.stage
        marker = paths.IN_PROGRESS / f"{stage.name}.json"
        with ExitStack() as held:
            with self._may_be_interrupted():
                held.enter_context(locked(stage.name, _LOCK_TIMEOUT_S))
            assert self._job is not None
            owner = {
                "stage": stage.name,
                "owner_pid": self._job.record["pid"],
                "started_at": clock.utc(),
                "run_id": self.run.run_id,
            }
            files.write_json(marker, owner)
            try:
                with self._may_be_interrupted():
                    if self.request.stages[stage.name] == "rebuild":
                        self._clear(stage)
                    artifacts = stage.run(self.context)
                # What the stage learned of the server may have changed what its work depends on.
                record = SignatureRecord(stage.name, stage.caches, stage.signature(self.context))
                artifacts["files"] = record.write(stage.content(self.context))
            finally:
                marker.unlink()
        return artifacts, record.signature

    @staticmethod
    def _clear(stage: Stage) -> None:
        for cache in stage.caches:
            for entry in (paths.PROFILES / cache).iterdir():
                (
                    shutil.rmtree(entry)
                    if entry.is_dir() and not entry.is_symlink()
                    else entry.unlink()
                )

    def _interrupted_before(self, decision: Decision) -> dict[str, Any]:
        if decision.action != "run":
            return self._stage(decision)
        failure = Interrupted()
        result = self._stage(Decision(decision.stage, "skipped", None, decision.signature))
        return {
            **result,
            "status": "error",
            "error_type": failure.error_type,
            "errors": [f"not begun: {failure}"],
        }

    def _write_stage(self, decision: Decision, result: dict[str, Any]) -> None:
        """A stage that was not asked for keeps the record of what it did before."""
        path = paths.stage_file(self.run.run_id, decision.stage.name)
        if (
            files.read_or_set_aside(path, _STAGE_SHAPE, self.warnings) is not None
            and decision.action == "skipped"
        ):
            return
        files.write_json(path, result)

    def _proof(self) -> dict[str, Any]:
        url = self._prometheus_url
        if not self.probe_wanted:
            return self._standing_proof() or {
                **probe.unproven(self.run.run_id, url, "no proof was asked for (--probe never)"),
                "prep_id": self.prep_id,
            }
        assert self._job is not None
        try:
            with self._may_be_interrupted():
                self._job.update(
                    stage="telemetry_probe",
                    done=0,
                    total=0,
                    eta_s=None,
                    message="waiting for Prometheus to account for the tokens sent",
                )
                ledger = self._warmup.ensure_requests(self.context.batch_sizes[:1])
                proof = probe.prove(self.run.run_id, url, ledger, self.request.probe_timeout_s)
        except (StageFailure, OSError) as error:
            self._interrupted = self._interrupted or isinstance(error, Interrupted)
            proof = probe.failure(self.run.run_id, url, as_stage_failure(error))
        return {**proof, "prep_id": self.prep_id}

    def _close_server(self) -> str | None:
        try:
            self._warmup.close()
        except StageFailure as failure:
            return str(failure)
        return None

    def _aggregate(
        self, results: dict[str, dict[str, Any]], proof: dict[str, Any], cleanup: str | None
    ) -> dict[str, Any]:
        wanted = [result for result in results.values() if result["status"] != "skipped"]
        failed = [result for result in wanted if result["status"] == "error"]
        found, request = self.context.devices, self.request
        errors = [
            f"{result['stage']}: {message}" for result in failed for message in result["errors"]
        ]
        if cleanup:
            errors.append(f"cleanup_failed: {cleanup}")
        return {
            "schema_version": "1",
            "status": "ok" if not failed else "error" if len(failed) == len(wanted) else "partial",
            "run": {
                "run_id": self.run.run_id,
                "prep_id": self.prep_id,
                "model": request.model,
                "model_slug": self.context.model.slug,
                "model_identity": self.context.model.identity,
                "tp": request.tp,
                "device_name": found.name,
                "device_count": found.count,
                "compute_capability": found.compute_capability,
                "cpu_arch": found.cpu_arch,
                "cuda": found.cuda_version,
                "driver_version": found.driver_version,
                "torch_version": versions.installed("torch"),
                "triton_version": versions.installed("triton"),
                "flashinfer_version": versions.installed("flashinfer-python"),
                "deep_gemm_version": ENGINE.deep_gemm_version(),
                "sglang_version": ENGINE.version(),
                "sglang_commit": "unknown",
                "started_at": self._started_at,
                "finished_at": clock.utc(),
                "duration_s": round(time.monotonic() - self._started, 3),
                "settings": {
                    "source": "flags",
                    "stages": request.stages,
                    "moe_batch_sizes": list(request.moe_batch_sizes),
                    "moe_dtype": request.moe_dtype,
                    "moe_fusion": request.moe_fusion,
                    "cuda_graph_batch_sizes": list(self.context.batch_sizes),
                    "warmup_port": request.warmup_port,
                    "write_mode": "atomic",
                },
                "server": {"argv": self._argv, "env": self._environment},
            },
            "stages": results,
            "telemetry_probe": proof,
            "errors": errors,
            "warnings": self.warnings,
        }

    def _warn(self, warning: str) -> None:
        """Once: the process that plans a prep and the one that does it find the same."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _progress(self, done: int, total: int, unit: str, message: str) -> None:
        assert self._job is not None
        if done == 0:
            self._counted_from = time.monotonic()
        # What is left takes as long as what is done took; after nothing there is no telling.
        eta_s = (
            round((time.monotonic() - self._counted_from) / done * (total - done), 1)
            if done
            else None
        )
        self._job.update(
            done=done, total=total, unit=unit, eta_s=eta_s, message=f"{message}: {done} of {total}"
        )

    def _batch_size_finished(self, size: int) -> None:
        """Other hosts may have it: whoever follows the job can pack it."""
        if self._job:
            self._job.update(
                finished_batch_sizes=sorted(
                    {*self._job.record.get("finished_batch_sizes", []), size}
                )
            )

    def _server_changed(self, group: int | None) -> None:
        if self._job:
            self._job.server(group)

    def _make_gpu_ready(self) -> None:
        """What a server on a GPU needs before it starts. Raises StageFailure."""
        gpu_fit.check_free_space()
        gpu_fit.wait_until_free()
        config_files.make_ready(self._environment[ENGINE.moe.variable], self._release)

    def _server_starting(self) -> None:
        if self._job:
            self._job.update(2.0, message="waiting for the server to become healthy")


def planned(run: Run, request: Request, warnings: Iterable[str] = ()) -> Prep:
    """The prep of a command. Raises Refused (usage) where it cannot be done on this host, and
    model.UnusableModel.
    """
    try:
        return Prep(run, request, warnings)
    except (ValueError, RuntimeError) as error:
        raise Refused(EXIT_USAGE, str(error)) from error


def as_stage_failure(error: Exception) -> StageFailure:
    """Any error of a stage by the contract's list of types."""
    if isinstance(error, StageFailure):
        return error
    if isinstance(error, TimeoutError):
        return StageFailure("lock_timeout", str(error))
    if isinstance(error, OSError) and error.errno in files.NO_SPACE:
        return StageFailure("insufficient_disk", files.reason(error))
    if isinstance(error, PermissionError):
        return StageFailure("permissions_unexpected", str(error))
    return StageFailure("compile_failed", repr(error))
