"""The records of a prep: one file for each stage, then the aggregate prep_result.json, then its
paths in the manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sgl_admin.base import clock, files, paths, versions
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract.exit_codes import EXIT_PROOF_FAILED
from sgl_admin.contract.records import RESULT_SHAPE
from sgl_admin.contract.texts import one_line
from sgl_admin.prep.plan import Decision, Plan
from sgl_admin.records import prepared, remembered
from sgl_admin.sglang import ENGINE

Record = dict[str, Any]

_STAGE_SHAPE: files.Shape = {
    "stage": str,
    "ran": bool,
    "status": str,
    "status_code": int,
    "artifacts": dict,
    "errors": list,
}


# The artifact of stage `perf` that the aggregate has under the same name.
_PERF_PROBE = "perf_probe"
# So many files a record names.
_MOST_NAMED = 200
_MESSAGE = 400


@dataclass(frozen=True)
class NewFiles:
    """Files that a prep made: in the caches, and in the container outside of them."""

    cached: list[str]
    outside: list[str]

    @property
    def warning(self) -> str | None:
        if not self.outside:
            return None
        shown = ", ".join(map(files.printable, self.outside[:5]))
        more = f" and {len(self.outside) - 5} more" if len(self.outside) > 5 else ""
        return (
            f"the server left files outside of the caches, which a new container lacks: {shown}"
            f"{more}; lead what writes them to a folder of /profiles (sgl_server_env)"
        )

    def to_json(self) -> Record:
        below = f"{paths.PROFILES}/"
        return {
            "in_caches": len(self.cached),
            "cache_files": [
                files.printable(path.removeprefix(below)) for path in self.cached[:_MOST_NAMED]
            ],
            "outside": len(self.outside),
            "outside_files": [files.printable(path) for path in self.outside[:_MOST_NAMED]],
        }


@dataclass(frozen=True)
class Outcome:
    """What came of an executed plan."""

    prep_id: str
    started_at: str
    duration_s: float
    stages: dict[str, Record]
    proof: Record
    # Why the server could not be ended.
    cleanup_failure: str | None
    sizes_before: dict[str, dict[str, int]]
    sizes_after: dict[str, dict[str, int]]
    warnings: list[str]
    new_files: NewFiles
    # The run's services as they are now (serving/services.py).
    services: Record
    # Where each start of the server went (sglang/startup.py).
    server_starts: list[Record]

    @property
    def failed(self) -> list[Record]:
        return [stage for stage in self.stages.values() if stage["status"] == "error"]

    @property
    def done(self) -> list[str]:
        """The stages whose caches are whole."""
        return [name for name, stage in self.stages.items() if stage["status"] in ("ok", "noop")]

    @property
    def status(self) -> str:
        if not self.failed:
            return "ok"
        wanted = [stage for stage in self.stages.values() if stage["status"] != "skipped"]
        return "error" if len(self.failed) == len(wanted) else "partial"

    @property
    def errors(self) -> list[str]:
        errors = [
            f"{stage['stage']}: {message}" for stage in self.failed for message in stage["errors"]
        ]
        if self.cleanup_failure:
            errors.append(f"cleanup_failed: {self.cleanup_failure}")
        return errors

    def exit_code(self, probe_wanted: bool) -> int:
        if self.failed:
            return int(self.failed[0]["status_code"])
        return EXIT_PROOF_FAILED if probe_wanted and not self.proof["ok"] else 0

    def message(self, exit_code: int) -> str:
        """One line that says how the prep ended: what failed, where something did."""
        if not exit_code:
            return self.status
        failed = [
            f"{stage['stage']} failed, {stage['error_type']}: {'; '.join(stage['errors'])}"
            for stage in self.failed
        ]
        if not failed:
            return one_line(f"METRICS_READY is not proven: {self.proof['reason']}", _MESSAGE)
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{one_line(failed[0], _MESSAGE - len(more))}{more}"


def stage_record(decision: Decision) -> Record:
    """The record of a stage at its start; of one that does not run, it is all there is to say."""
    now = clock.utc()
    return {
        "schema_version": "1",
        "stage": decision.stage.name,
        "ran": decision.action == "run",
        "status": "ok" if decision.action == "run" else decision.action,
        "status_code": 0,
        "reason": decision.reason,
        "started_at": now,
        "finished_at": now,
        "duration_s": 0.0,
        "key": decision.key,
        "signature": decision.signature,
        "artifacts": {},
        "error_type": None,
        "warnings": [],
        "errors": [],
        "log_tail": [],
    }


def error_fields(failure: StageFailure) -> Record:
    """What a failure changes in its stage's record."""
    return {
        "status": "error",
        "error_type": failure.error_type,
        "errors": [str(failure)],
        "log_tail": failure.log_tail,
    }


def write_stage(run_id: str, record: Record, warnings: list[str]) -> None:
    """A skipped stage keeps the record of what it did before."""
    path = paths.stage_file(run_id, record["stage"])
    earlier = files.read_or_set_aside(path, _STAGE_SHAPE, warnings)
    if earlier is None or record["status"] != "skipped":
        files.write_json(path, record)


def aggregate(plan: Plan, outcome: Outcome) -> Record:
    section = _run_section(plan, outcome)
    return {
        "schema_version": "1",
        "status": outcome.status,
        "run": section,
        "profiles": _profiles(plan, outcome, section),
        "stages": {name: _without_perf_probe(stage) for name, stage in outcome.stages.items()},
        "telemetry_probe": outcome.proof,
        "perf_probe": _perf_probe(outcome.stages),
        "services": outcome.services,
        "errors": outcome.errors,
        "warnings": outcome.warnings,
        "profile_cache": {"before": outcome.sizes_before, "after": outcome.sizes_after},
        "new_files": outcome.new_files.to_json(),
        "server_starts": outcome.server_starts,
        "start_advice": []
        if section["server"]["start_env"]
        else ENGINE.start_advice(outcome.server_starts, len(outcome.new_files.cached)),
    }


def _without_perf_probe(stage: Record) -> Record:
    """A stage's record without what the aggregate has beside the stages."""
    artifacts = {key: value for key, value in stage["artifacts"].items() if key != _PERF_PROBE}
    return {**stage, "artifacts": artifacts}


def _perf_probe(stages: dict[str, Record]) -> Record:
    """PERF_READY: what stage `perf` found, or why it found nothing."""
    stage = stages.get("perf")
    found = (stage or {"artifacts": {}})["artifacts"].get(_PERF_PROBE)
    if found is not None:
        return {**found}
    if stage is None or stage["status"] == "skipped":
        reason = "no measurement was asked for (--perf skip)"
    else:
        reason = "; ".join(stage["errors"]) or "the stage left no measurement"
    return {"ok": False, "verdict": None, "measured_at": None, "reason": reason}


def write(plan: Plan, document: Record) -> None:
    """The record of the prepared server, the aggregate, and then its paths in the manifest."""
    run, section = plan.run, document["run"]
    prepared.write(run.run_id, section, document["telemetry_probe"], plan.command)
    files.write_json(paths.prep_result(run.run_id), document)
    run.add_prep_result_paths()
    if document["status"] == "ok" and document["telemetry_probe"]["ok"] is True:
        remembered.write(plan.request, int(run.manifest["services"]["sglang"]["port"]))


def _profiles(plan: Plan, outcome: Outcome, section: Record) -> Record:
    """What the latest prep of each profile of this run came to."""
    # One that cannot be read is replaced by this one.
    found = files.read_valid(paths.prep_result(plan.run.run_id), RESULT_SHAPE).get("profiles")
    known: Record = dict(found) if isinstance(found, dict) else {}
    if not plan.request.profile:
        return known
    return {
        **known,
        plan.request.profile: {
            "prep_id": outcome.prep_id,
            "status": outcome.status,
            "model": plan.request.model,
            "identity": plan.server,
            "stages": {name: stage["status"] for name, stage in outcome.stages.items()},
            "metrics_ready": outcome.proof["ok"] is True,
            "reason": outcome.proof["reason"],
            "finished_at": section["finished_at"],
        },
    }


def _run_section(plan: Plan, outcome: Outcome) -> Record:
    found, model = plan.context.devices, plan.context.model
    return {
        "run_id": plan.run.run_id,
        "prep_id": outcome.prep_id,
        "profile": plan.request.profile or None,
        "model": plan.request.model,
        "model_slug": model.slug,
        "model_identity": model.identity,
        "tp": plan.request.tp,
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
        "started_at": outcome.started_at,
        "finished_at": clock.utc(),
        "duration_s": outcome.duration_s,
        "settings": _settings(plan),
        "server": {
            **plan.command.shown,
            "identity": plan.server,
            "served": plan.context.served_identity,
            "chosen": [choice.to_json() for choice in plan.context.choices],
            "start_env": plan.start_environment(outcome.done),
        },
    }


def _settings(plan: Plan) -> Record:
    request = plan.request
    return {
        "source": "flags",
        "stages": request.stages,
        "moe_batch_sizes": list(request.moe_batch_sizes),
        "moe_dtype": request.moe_dtype,
        "moe_fusion": request.moe_fusion,
        "cuda_graph_batch_sizes": list(plan.context.batch_sizes),
        "warmup_port": request.warmup_port,
        "write_mode": "atomic",
    }
