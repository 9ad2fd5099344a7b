"""What a prep plans, does and records, with stages that stand for the real ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import clock, files, gated, locks, paths, processes, versions
from sgl_admin.base.command import Command
from sgl_admin.base.errors import GpuUnavailable, Interrupted, StageFailure
from sgl_admin.base.locks import LockTimeout
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.contract import exit_codes, records, stages
from sgl_admin.contract.exit_codes import EXIT_PROOF_FAILED
from sgl_admin.facts import devices
from sgl_admin.prep import execute as execute_module
from sgl_admin.prep import plan as plan_module
from sgl_admin.prep.execute import Execution, confirm_proof
from sgl_admin.prep.plan import Decision, Plan, plan_prep
from sgl_admin.records import caches, prepared, run
from sgl_admin.records import job as job_module
from sgl_admin.records.job import Job
from sgl_admin.serving import probe, server, warmup
from sgl_admin.stages import STAGES
from sgl_admin.stages.base import Context, Stage
from tests.contract import validators
from tests.unit.model_files import safetensors

NAMES = stages.NAMES
# What callers of a release know: flag and exit code of each stage, in their order.
RELEASED = {
    "deep_gemm": ("--deep-gemm", 10),
    "moe_tune": ("--moe", 11),
    "flashinfer": ("--flashinfer", 12),
    "inductor": ("--inductor", 13),
}


class FakeStage(Stage):
    """Stands for a stage: it writes one file into each of its caches, or fails on demand."""

    def __init__(self, name: str) -> None:
        self.name = name
        [real] = [stage for stage in STAGES if stage.name == name]
        self.failure_type = real.failure_type
        self.failure: BaseException | None = None
        self.reason: str | None = None
        self.during: Callable[[Context], None] = lambda context: None
        self.runs = 0

    @property
    def contract(self) -> stages.Stage:
        """Every one is ensured where no mode is named."""
        return replace(super().contract, default="ensure")

    def skip_reason(self, context: Context) -> str | None:
        return self.reason

    def signature(self, context: Context) -> dict[str, Any]:
        return {
            **super().signature(context),
            **validators.example("prep_result")["stages"][self.name].get("signature", {}),
        }

    def run(self, context: Context) -> dict[str, Any]:
        self.runs += 1
        self.during(context)
        if self.failure:
            raise self.failure
        for cache in self.caches:
            (paths.PROFILES / cache / "kernel").write_text(self.name)
        return self.standing(context)

    def standing(self, context: Context) -> dict[str, Any]:
        artifacts: dict[str, Any] = validators.example("prep_result")["stages"][self.name][
            "artifacts"
        ]
        return {key: value for key, value in artifacts.items() if key != "files"}


class FakeWarmup:
    """Stands for the warm-up server: it is never started, and its tokens are taken for granted."""

    closed = 0
    close_failure: StageFailure | None = None
    # What keeps a server from starting.
    obstacle: StageFailure | None = None

    def __init__(self, *_: object) -> None:
        type(self).closed = 0
        self.starts: list[dict[str, object]] = []

    def make_way(self) -> None:
        if self.obstacle:
            raise self.obstacle

    def ensure_requests(self, batch_sizes: tuple[int, ...]) -> object:
        return object()

    def close(self) -> None:
        type(self).closed += 1
        failure, type(self).close_failure = type(self).close_failure, None
        if failure:
            raise failure


class World:
    """Fake stages, a fake proof, and preps over them."""

    def __init__(self, model: Path, run_id: str) -> None:
        self.model = model
        self.run_id = run_id
        self.stages = {name: FakeStage(name) for name in NAMES}
        self.proof: dict[str, Any] | StageFailure = {"ok": True}
        self.prometheus_answers = True

    def plan(self, *arguments: str) -> Plan:
        parsed = cli._parser().parse_args(
            ["caches", "ensure", "--model", str(self.model), *arguments]
        )
        live = run.live()
        return plan_prep(live, request_cli.of(parsed, live))

    def execution(self, *arguments: str) -> Execution:
        """One that has not begun, as the process of a prep has it."""
        plan = confirm_proof(self.plan(*arguments))
        return Execution(plan, Job(self.run_id, plan.request, clock.new_id("prep")))

    def execute(self, *arguments: str) -> tuple[dict[str, Any], int]:
        """A prep; every record that it wrote is held to the contract."""
        result, exit_code = self.execution(*arguments).run()
        assert files.read_json(paths.prep_result(self.run_id)) == result
        validators.validate_prep_result(result)
        validators.validate_job(self.job())
        for name in NAMES:
            validators.validate_stage(files.read_json(paths.stage_file(self.run_id, name)))
        assert self.job()["exit_code"] == exit_code
        assert not list(paths.IN_PROGRESS.iterdir()), "a marker was left"
        return result, exit_code

    def job(self) -> dict[str, Any]:
        return files.read_json(paths.job(self.run_id)) or {}

    def prove(self, run_id: str, url: str, ledger: object, timeout_s: float) -> dict[str, Any]:
        if isinstance(self.proof, StageFailure):
            raise self.proof
        found = probe.unproven(run_id, url, "127.0.0.1:31999", "nothing came", 98)
        if self.proof["ok"]:
            window = {"since": 1.0, "until": 2.0, "baseline": 0.0}
            found.update(ok=True, reason=None, sample_count=3, tokens_seen=98, window=window)
        return found

    def lost(self, url: str, proof: dict[str, Any]) -> str | None:
        return None if self.prometheus_answers else f"Prometheus at {url} does not answer"


@pytest.fixture
def world(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(model_folder, live_run)
    monkeypatch.setattr(
        devices,
        "find",
        lambda visible: devices.Devices(name="cpu", count=1, cuda=False, cpu_isa="avx2"),
    )
    for module in (plan_module, request_cli):
        monkeypatch.setattr(module, "STAGES", tuple(made.stages.values()))
    monkeypatch.setattr(execute_module, "Warmup", FakeWarmup)
    monkeypatch.setattr(probe, "prove", made.prove)
    monkeypatch.setattr(probe, "lost", made.lost)
    monkeypatch.setattr(versions, "installed", lambda name: "1.0")
    return made


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {name: stage["status"] for name, stage in result["stages"].items()}


def each(status: Any, **others: Any) -> dict[str, Any]:
    """What is true of every stage but these."""
    return {**dict.fromkeys(NAMES, status), **others}


def until(name: str, before: Any, after: Any) -> dict[str, Any]:
    """What is true of the stages before this one, and of it and those after it."""
    at = NAMES.index(name)
    return {other: before if number < at else after for number, other in enumerate(NAMES)}


def decision(plan: Plan, name: str) -> Decision:
    return next(decision for decision in plan.decisions if decision.stage.name == name)


def following(name: str) -> stages.Stage:
    return stages.STAGES[NAMES.index(name) + 1]


def test_the_stages_are_the_contracts_in_their_order() -> None:
    assert tuple(stage.contract for stage in STAGES) == stages.STAGES


def test_a_released_stage_keeps_its_flag_and_its_exit_code() -> None:
    public = {stage.name: (stage.flag, stage.exit_code) for stage in stages.STAGES}
    assert [(name, public[name]) for name in public if name in RELEASED] == [*RELEASED.items()]


def test_every_stage_has_tests() -> None:
    """Those of the released ones are in test_gpu_stages; another one has a file of its own."""
    there = {path.name for path in Path(__file__).parent.iterdir()}
    others = [name for name in NAMES if name not in RELEASED]
    assert [name for name in others if f"test_stage_{name}.py" not in there] == []


def test_no_exit_code_has_two_meanings() -> None:
    commands = [code for name, code in vars(exit_codes).items() if name.startswith("EXIT_")]
    codes = [*commands, *(stage.exit_code for stage in stages.STAGES)]
    assert len(codes) == len(set(codes)) > len(RELEASED)
    assert set(commands) == set(exit_codes.MEANINGS)
    # What a shell says of a program that it cannot start, or that a signal ended, is at 126 on.
    assert {code for code in codes if code > 125} == {exit_codes.EXIT_SIGINT}


def test_first_everything_runs_then_nothing(world: World) -> None:
    result, exit_code = world.execute()
    assert (statuses(result), result["status"], exit_code) == (each("ok"), "ok", 0)
    assert (
        result["telemetry_probe"]["ok"] is True
        and result["telemetry_probe"]["prep_id"] == result["run"]["prep_id"]
    )
    assert world.job()["state"] == "done"
    assert world.plan().nothing_to_do
    again, exit_code = world.execute()
    assert (statuses(again), again["status"], exit_code) == (each("noop"), "ok", 0)
    assert {name: stage.runs for name, stage in world.stages.items()} == each(1)
    assert {stage["reason"] for stage in again["stages"].values()} == {"valid_signature"}
    for name, stage in world.stages.items():
        assert again["stages"][name]["artifacts"]["files"]["count"] == len(stage.caches)
    assert again["telemetry_probe"] == result["telemetry_probe"], (
        "the proof is carried forward unchanged"
    )
    written = files.read_json(paths.manifest(world.run_id)) or {}
    assert written["paths"]["container"]["prep_result"] == str(paths.prep_result(world.run_id))


def test_stage_files_are_written_before_the_aggregate_and_that_before_the_manifest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = files.write_text

    def write_text(path: Path, *arguments: Any, **options: Any) -> None:
        order.append(path.name)
        real(path, *arguments, **options)

    for module in (files, records):
        monkeypatch.setattr(module, "write_text", write_text)
    world.execute()
    wanted = [
        *(f"{name}.json" for name in NAMES if True),
        "prep_result.json",
        f"{world.run_id}.json",
    ]
    # Each stage's marker has the stage's name too, and comes before its file.
    assert [path for path in order if path in wanted] == [
        *(f"{name}.json" for name in NAMES for _ in range(2)),
        "prep_result.json",
        f"{world.run_id}.json",
    ]


def test_skips_have_their_reasons(world: World) -> None:
    world.stages["moe_tune"].reason = "no_moe_layers"
    result, exit_code = world.execute("--moe", "ensure", "--inductor", "ensure")
    assert (
        statuses(result) == each("skipped", inductor="ok")
        and exit_code == 0
        and result["status"] == "ok"
    )
    reasons = {name: stage["reason"] for name, stage in result["stages"].items()}
    assert reasons == each("requested", moe_tune="no_moe_layers", inductor=None)


def test_a_stage_that_was_not_asked_for_keeps_its_record(world: World) -> None:
    world.execute()
    world.execute("--inductor", "ensure")
    assert (files.read_json(paths.stage_file(world.run_id, "flashinfer")) or {})["status"] == "ok"


@pytest.mark.parametrize("stage", stages.STAGES, ids=NAMES)
def test_one_failed_stage_makes_partial_and_its_exit_code(
    world: World, stage: stages.Stage
) -> None:
    world.stages[stage.name].failure = StageFailure("tuner_failed", "it broke", ["last line"])
    result, exit_code = world.execute()
    assert (result["status"], exit_code) == ("partial", stage.exit_code)
    failed = result["stages"][stage.name]
    assert (failed["status"], failed["status_code"], failed["error_type"]) == (
        "error",
        stage.exit_code,
        "tuner_failed",
    )
    assert failed["errors"] == ["it broke"] and failed["log_tail"] == ["last line"]
    assert result["errors"] == [f"{stage.name}: it broke"]
    assert statuses(result) == each("ok", **{stage.name: "error"}), "stages are independent"
    assert world.job()["state"] == "failed"
    # What failed is not vouched for; what did not, is.
    planned = {decision.stage.name: decision.action for decision in world.plan().decisions}
    assert planned == each("noop", **{stage.name: "run"})


def test_the_first_of_several_failures_gives_the_exit_code(world: World) -> None:
    for name in ("moe_tune", "inductor"):
        world.stages[name].failure = StageFailure("oom", "no memory")
    result, exit_code = world.execute()
    assert (result["status"], exit_code, statuses(result)) == (
        "partial",
        11,
        each("ok", moe_tune="error", inductor="error"),
    )


def test_all_failed_is_error(world: World) -> None:
    for stage in world.stages.values():
        stage.failure = StageFailure("server_start_failed", "no")
    result, exit_code = world.execute()
    assert (result["status"], exit_code) == ("error", stages.STAGES[0].exit_code)


def test_the_only_wanted_one_failed_is_error(world: World) -> None:
    world.stages["flashinfer"].failure = StageFailure("compile_failed", "no")
    result, exit_code = world.execute("--flashinfer", "ensure")
    assert (result["status"], exit_code) == ("error", 12)


def test_a_wanted_proof_that_fails_ends_with_6(world: World) -> None:
    world.proof = {"ok": False}
    result, exit_code = world.execute()
    assert (result["status"], exit_code, world.job()["state"]) == ("ok", 6, "failed")
    assert (
        result["telemetry_probe"]["ok"] is False
        and result["telemetry_probe"]["reason"] == "nothing came"
    )
    assert not world.plan().nothing_to_do, "a proof that failed is made again"


def test_a_failed_stage_goes_before_a_failed_proof(world: World) -> None:
    world.proof = {"ok": False}
    world.stages["inductor"].failure = StageFailure("oom", "no memory")
    assert world.execute()[1] == 13


def test_a_server_that_cannot_be_asked_is_no_proof(world: World) -> None:
    world.proof = StageFailure("port_busy", "port 31999 is taken")
    result, exit_code = world.execute()
    assert (
        exit_code == 6 and result["telemetry_probe"]["reason"] == "port_busy: port 31999 is taken"
    )


def test_no_proof_is_asked_for(world: World) -> None:
    world.proof = StageFailure("request_failed", "must not be asked")
    result, exit_code = world.execute("--probe", "never")
    assert (
        exit_code == 0
        and result["telemetry_probe"]["ok"] is False
        and "never" in result["telemetry_probe"]["reason"]
    )
    assert world.plan("--probe", "never").nothing_to_do
    assert not world.plan().nothing_to_do


def test_a_proof_can_be_asked_for_again(world: World) -> None:
    first, _ = world.execute()
    again, _ = world.execute("--probe", "always")
    assert again["telemetry_probe"]["prep_id"] == again["run"]["prep_id"] != first["run"]["prep_id"]
    assert statuses(again) == each("noop")


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (LockTimeout("lock"), "lock_timeout"),
        (OSError(errno.ENOSPC, "No space left on device", "/profiles/x"), "insufficient_disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "insufficient_disk"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/profiles/x"),
            "permissions_unexpected",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/profiles/x"), "permissions_unexpected"),
        (OSError(errno.EPERM, "Operation not permitted", "/profiles/x"), "permissions_unexpected"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (OSError(errno.ENOLCK, "No locks available", "/profiles/.locks/x.lock"), "unsupported"),
        (MemoryError(), "oom"),
        (GpuUnavailable("NVML does not answer: GPU is lost"), "server_start_failed"),
        (StageFailure("gpu_busy", "x"), "gpu_busy"),
        # What nothing foresaw: by what the stage does, and never a compiler's fault.
        (RuntimeError("whatever"), "request_failed"),
        (TimeoutError("timed out"), "request_failed"),
        (OSError(errno.EIO, "Input/output error", "/profiles/x"), "request_failed"),
        (KeyError("x"), "request_failed"),
    ],
)
def test_any_error_gets_a_type_of_the_contracts_list(
    world: World, error: Exception, error_type: str
) -> None:
    world.stages["inductor"].failure = error
    result, _ = world.execute("--inductor", "ensure")
    stage = result["stages"]["inductor"]
    assert stage["error_type"] == error_type and len(stage["errors"][0]) < 400
    validators.validate_stage(stage)


def test_the_traceback_of_an_error_that_nothing_foresaw_is_in_the_runs_log(world: World) -> None:
    world.stages["inductor"].failure = KeyError("some_key\x1b[31m")
    result, _ = world.execute("--inductor", "ensure")
    [message] = result["stages"]["inductor"]["errors"]
    assert "KeyError: 'some_key" in message and "\x1b" not in message
    log = paths.log(world.run_id)
    assert message.endswith(f"the traceback is in {paths.to_host(log)}")
    assert "Traceback (most recent call last):" in log.read_text()


@pytest.mark.parametrize(
    ("stage", "error", "words"),
    [
        (None, None, "ok"),
        ("inductor", StageFailure("oom", "no memory"), "inductor failed, oom: no memory"),
        ("moe_tune", OSError(errno.ENOSPC, "x", "/p"), "moe_tune failed, insufficient_disk: no sp"),
    ],
)
def test_the_jobs_last_message_says_what_failed(
    world: World, stage: str | None, error: Exception | None, words: str
) -> None:
    if stage is not None:
        world.stages[stage].failure = error
    world.execute()
    record = world.job()
    assert record["message"].startswith(words) and len(record["message"]) <= 400
    assert f"{record['state']}: {words}" in job_module.describe(record)


def test_the_job_says_that_the_proof_failed_and_why(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.proof = {"ok": False}
    _, exit_code = world.execute()
    assert exit_code == EXIT_PROOF_FAILED
    assert cli.main(["status"]) == EXIT_PROOF_FAILED
    assert "failed: METRICS_READY is not proven: nothing came (" in capsys.readouterr().out


def test_what_is_interrupted_ends_and_the_rest_is_not_begun(world: World) -> None:
    world.stages["moe_tune"].failure = Interrupted()
    result, exit_code = world.execute()
    assert (
        statuses(result) == until("moe_tune", "ok", "error")
        and exit_code == 11
        and result["status"] == "partial"
    )
    assert {name: stage.runs for name, stage in world.stages.items()} == {
        **until("moe_tune", 1, 0),
        "moe_tune": 1,
    }
    assert {name: stage["error_type"] for name, stage in result["stages"].items()} == until(
        "moe_tune", None, "interrupted"
    )
    assert {name: stage["status_code"] for name, stage in result["stages"].items()} == {
        name: stages.BY_NAME[name].exit_code if status == "error" else 0
        for name, status in statuses(result).items()
    }
    assert world.job()["state"] == "interrupted" and result["telemetry_probe"]["ok"] is False
    assert FakeWarmup.closed >= 1


def test_an_interruption_while_the_proof_is_awaited_is_told_as_one(world: World) -> None:
    world.proof = Interrupted()
    result, exit_code = world.execute()
    assert (world.job()["state"], exit_code) == ("interrupted", 6)
    assert result["telemetry_probe"]["ok"] is False


def interrupted_when_it_writes(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> tuple[dict[str, Any], int]:
    """A prep that is told to stop, twice, while it writes the file `name`."""
    made = world.execution()
    real = files.write_text

    def write_text(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == name and path.parent != paths.IN_PROGRESS:
            made.interrupt()
            made.interrupt()
        real(path, *arguments, **options)

    for module in (files, records):
        monkeypatch.setattr(module, "write_text", write_text)
    result, exit_code = made.run()
    assert files.read_json(paths.prep_result(world.run_id)) == result
    validators.validate_prep_result(result)
    validators.validate_job(world.job())
    assert world.job()["exit_code"] == exit_code and not list(paths.IN_PROGRESS.iterdir())
    return result, exit_code


def test_an_interruption_between_two_stages_ends_with_a_result(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, exit_code = interrupted_when_it_writes(world, monkeypatch, "moe_tune.json")
    cut = following("moe_tune")
    assert statuses(result) == until(cut.name, "ok", "error") and exit_code == cut.exit_code
    assert {name: stage.runs for name, stage in world.stages.items()} == until(cut.name, 1, 0)
    assert world.job()["state"] == "interrupted" and result["telemetry_probe"]["ok"] is False


def test_an_interruption_while_the_result_is_written_does_not_take_it_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, exit_code = interrupted_when_it_writes(world, monkeypatch, "prep_result.json")
    assert (
        statuses(result) == each("ok")
        and exit_code == 0
        and result["telemetry_probe"]["ok"] is True
    )


def test_an_interruption_of_the_clean_up_does_not_cut_it_short(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.execution()
    closed: list[bool] = []

    def close(self: FakeWarmup) -> None:
        made.interrupt()
        closed.append(True)

    monkeypatch.setattr(FakeWarmup, "close", close)
    made.run()
    assert closed == [True] and world.job()["state"] == "interrupted"


def test_an_interruption_cuts_a_stage_short(world: World) -> None:
    made = world.execution()
    world.stages["moe_tune"].during = lambda context: made.interrupt()
    result, exit_code = made.run()
    assert statuses(result) == until("moe_tune", "ok", "error") and exit_code == 11
    assert not (paths.PROFILES / "moe_configs" / "kernel").exists() and not list(
        paths.IN_PROGRESS.iterdir()
    )


# --- a full disk ----------------------------------------------------------------------------------


def full_disk(monkeypatch: pytest.MonkeyPatch, refused: Callable[[Path], bool]) -> None:
    """Every contract file that `refused` says is refused for want of space; as the system does it,
    without a name.
    """
    real = files.os.replace

    def replace(old: str, new: Path) -> None:
        if refused(Path(new)):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(old, new)

    monkeypatch.setattr(files.os, "replace", replace)


@pytest.mark.parametrize(
    "name", ["deep_gemm.json", "prep_result.json", "container-run-20261123T091500Z-3fa9c1d2.json"]
)
def test_a_disk_that_is_full_for_a_record_ends_the_prep_with_its_reason(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    full_disk(monkeypatch, lambda path: path.name == name and path.parent != paths.IN_PROGRESS)
    made = world.execution()
    with pytest.raises(OSError, match="No space left"):
        made.run()
    job = world.job()
    validators.validate_job(job)
    assert (job["state"], job["exit_code"], job["server"]) == ("failed", 1, None)
    assert (
        job["message"].startswith("no space left on /host/telemetry/container_runs/")
        and name in job["message"]
    )
    assert FakeWarmup.closed == 1 and not [path for path in paths.TELEMETRY.rglob("*.tmp")]
    monkeypatch.undo()


def test_a_disk_that_stays_full_ends_the_prep_and_its_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.execution()
    made.job.update()
    full_disk(monkeypatch, lambda path: True)
    with pytest.raises(OSError, match="No space left"):
        made.run()
    assert world.job()["state"] == "running", "nothing could be written"
    warnings: list[str] = []
    monkeypatch.setattr(files.os, "replace", os.rename)
    job_module.settle(world.run_id, warnings)
    assert world.job()["state"] == "interrupted" and len(warnings) == 1


def test_a_stage_without_space_fails_and_names_the_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(
        monkeypatch,
        lambda path: path.parent.name == ".signatures" and path.name.startswith("flashinfer"),
    )
    result, exit_code = world.execute()
    failed = result["stages"]["flashinfer"]
    assert exit_code == 12 and failed["error_type"] == "insufficient_disk"
    assert failed["errors"][0].startswith(
        "no space left on /host/profiles/flashinfer/.signatures/flashinfer-"
    )


def test_a_proof_without_space_is_no_proof(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_requests(self: FakeWarmup, batch_sizes: tuple[int, ...]) -> object:
        raise OSError(errno.ENOSPC, "No space left on device", str(paths.job(world.run_id)))

    monkeypatch.setattr(FakeWarmup, "ensure_requests", ensure_requests)
    result, exit_code = world.execute()
    assert exit_code == 6 and result["telemetry_probe"]["reason"].startswith(
        "insufficient_disk: no space left on /host/telemetry/"
    )


def test_a_server_that_will_not_end_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FakeWarmup, "close_failure", StageFailure("cleanup_failed", "group 7 outlived SIGKILL")
    )
    result, _ = world.execute()
    assert "cleanup_failed: group 7 outlived SIGKILL" in result["errors"]


def test_a_stage_holds_its_lock_and_leaves_its_marker_while_it_works(world: World) -> None:
    seen: list[tuple[bool, bool]] = []

    def during(context: Context) -> None:
        seen.append(
            (locks.try_lock("inductor") is None, (paths.IN_PROGRESS / "inductor.json").exists())
        )

    world.stages["inductor"].during = during
    world.execute()
    assert seen == [(True, True)]


def test_the_work_of_a_killed_owner_is_done_again(world: World) -> None:
    world.execute()
    files.write_json(paths.IN_PROGRESS / "inductor.json", {"stage": "inductor", "owner_pid": 1})
    result, _ = world.execute()
    assert statuses(result) == each("noop", inductor="ok")
    assert any("killed before it finished" in warning for warning in result["warnings"])


def test_a_corrupt_aggregate_costs_the_proof_and_nothing_else(world: World) -> None:
    world.execute()
    paths.prep_result(world.run_id).write_text("{")
    result, _ = world.execute()
    assert statuses(result) == each("noop") and result["telemetry_probe"]["ok"] is True
    assert any("corrupt-1" in warning for warning in result["warnings"])


def test_a_corrupt_signature_record_is_set_aside_when_the_stage_runs(world: World) -> None:
    world.execute()
    record = decision(world.plan(), "inductor").record.path
    record.write_text("{")
    plan = world.plan()
    assert decision(plan, "inductor").action == "run" and record.read_text() == "{"
    assert [found.path for found in plan.unreadable] == [record]
    result, _ = world.execute()
    assert statuses(result) == each("noop", inductor="ok")
    aside = record.with_name(f"{record.name}.corrupt-1")
    assert aside.read_text() == "{" and files.read_json(record) is not None
    assert [warning for warning in result["warnings"] if "set aside" in warning] == [
        next(warning for warning in result["warnings"] if str(aside) in warning)
    ]


def test_a_proof_does_not_stand_where_prometheus_does_not_answer(world: World) -> None:
    world.execute()
    world.prometheus_answers = False
    assert world.plan().nothing_to_do, "planning asks nobody"
    again = confirm_proof(world.plan())
    assert again.probe_wanted and not again.nothing_to_do
    assert any("http://127.0.0.1:9 does not answer" in warning for warning in again.warnings)
    world.proof = {"ok": False}
    result, exit_code = world.execute()
    assert exit_code == EXIT_PROOF_FAILED and result["telemetry_probe"]["ok"] is False
    # Once it answers again the proof is made again, and stands.
    world.proof, world.prometheus_answers = {"ok": True}, True
    assert world.execute()[1] == 0 and world.plan().nothing_to_do


def test_the_proof_of_another_run_is_none_of_this_ones(world: World) -> None:
    world.execute()
    assert world.plan().nothing_to_do
    (record,) = prepared.folder(world.run_id).iterdir()
    document = files.read_json(record) or {}
    files.write_json(record, {**document, "run_id": "container-run-20261123T091500Z-00000000"})
    assert world.plan().probe_wanted


def test_another_request_in_the_same_run_has_no_proof_until_its_own(world: World) -> None:
    """Each keeps its own: the first request's stands again afterwards."""
    first, _ = world.execute()
    other = ("--server-arg=--max-running-requests", "--server-arg=8")
    result, exit_code = world.execute(*other, "--probe", "never")
    assert exit_code == 0 and result["telemetry_probe"]["ok"] is False
    assert result["telemetry_probe"]["server"] == result["run"]["server"]["identity"]
    assert any("the prepared server changes" in warning for warning in result["warnings"])
    assert world.plan(*other).probe_wanted
    world.proof = {"ok": False}
    result, exit_code = world.execute(*other)
    assert exit_code == EXIT_PROOF_FAILED and result["telemetry_probe"]["ok"] is False
    assert world.plan().nothing_to_do, "the first one's proof stands"
    again, exit_code = world.execute()
    assert exit_code == 0 and again["telemetry_probe"] == first["telemetry_probe"]
    world.proof = {"ok": True}
    world.execute(*other)
    assert world.plan().nothing_to_do and world.plan(*other).nothing_to_do


def test_a_model_that_changes_under_its_proof_is_proven_again(world: World) -> None:
    for name, content in (
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer_config.json", "{}"),
        ("hf_quant_config.json", '{"quantization": {"quant_algo": "FP8"}}'),
        ("model.safetensors", safetensors(["a"]).decode()),
        ("model.safetensors", safetensors(["b"]).decode()),
        ("chat_template.jinja", "{{ messages }}"),
        ("config.json", '{"architectures": ["Qwen3ForCausalLM"], "sliding_window": 4}'),
    ):
        world.execute()
        assert world.plan().nothing_to_do
        (world.model / name).write_text(content)
        assert world.plan().probe_wanted, (name, content)


def test_a_corrupt_record_of_a_prepared_server_is_set_aside(world: World) -> None:
    world.execute()
    (record,) = prepared.folder(world.run_id).iterdir()
    record.write_text("{")
    assert world.plan().probe_wanted
    result, exit_code = world.execute()
    assert exit_code == 0 and any(str(record) in warning for warning in result["warnings"])
    assert files.read_json(record)


def test_progress_is_counted_and_estimated(world: World) -> None:
    job = made = world.execution().job
    made.steps(0, 4, "requests", "warm-up requests")
    assert job.record["eta_s"] is None and job.record["message"] == "warm-up requests: 0 of 4"
    made._counted_from -= 10
    made.steps(1, 4, "requests", "warm-up requests")
    assert (job.record["done"], job.record["total"]) == (1, 4) and job.record[
        "eta_s"
    ] == pytest.approx(30, abs=2)
    line = job_module.describe({**job.record, "stage": "inductor"})
    assert (
        line.startswith(f"{job.record['prep_id']} running: inductor: warm-up requests: 1 of 4 (")
        and "about 30 s left" in line
    )


def test_a_dry_run_tells_and_does_nothing(world: World) -> None:
    before = sorted(paths.PROFILES.rglob("*"))
    plan = world.plan("--inductor", "ensure").to_json()
    assert plan["would_change"] is True and plan["telemetry_probe"] == "would_run"
    inductor, skipped = (
        plan["stages"]["inductor"],
        {
            "status": "skipped",
            "reason": "requested",
            "key": None,
            "signature": None,
        },
    )
    assert (inductor["status"], inductor["reason"]) == (
        "would_run",
        "no finished work with this signature",
    )
    assert (
        inductor["key"] == caches.digest(inductor["signature"])
        and plan["stages"]["deep_gemm"] == skipped
    )
    assert sorted(paths.PROFILES.rglob("*")) == before and not paths.job(world.run_id).exists()
    world.execute()
    plan = world.plan().to_json()
    assert plan["would_change"] is False and plan["telemetry_probe"] == "stands"
    assert {stage["status"] for stage in plan["stages"].values()} == {"noop"}
    assert json.dumps(plan)


def test_the_real_inductor_signature_follows_what_changes_its_cache(world: World) -> None:
    [real] = [stage for stage in STAGES if stage.name == "inductor"]
    signature = real.signature(world.plan().context)
    assert (
        signature["cpu_isa"] == "avx2"
        and signature["batch_sizes"] == [1, 4]
        and signature["tp"] == 1
    )
    assert (
        real.signature(world.plan("--server-timeout", "9", "--moe-dtype", "fp8").context)
        == signature
    )
    (world.model / "config.json").write_text('{"architectures": ["Other"]}')
    assert real.signature(world.plan().context) != signature


def test_without_a_gpu_only_inductor_applies(world: World) -> None:
    context = world.plan().context
    reasons = {stage.name: stage.skip_reason(context) for stage in STAGES if stage.name in RELEASED}
    assert reasons == {**dict.fromkeys(RELEASED, "no_cuda_device"), "inductor": None}


# --- the warm-up and its server -------------------------------------------------------------------


class FakeServer:
    """Stands for a server: it counts, and answers until it is stopped or told to wait."""

    def __init__(self, *_: object) -> None:
        self.asked: list[float] = []
        self.started = 0
        self.stopped = threading.Event()
        self.start_failure: StageFailure | None = None
        self.log_failure: OSError | None = None
        self.hang_from = 10**9
        self.hanging = threading.Semaphore(0)
        self.group = 77

    def start(self) -> None:
        self.started += 1
        if self.start_failure:
            raise self.start_failure

    def wait_healthy(self, timeout_s: float, tick: object) -> None:
        pass

    def metrics_page(self) -> str:
        return ""

    def own_lines(self) -> Iterator[str]:
        if self.log_failure:
            raise self.log_failure
        return iter(["[2026-11-28 14:00:17] Load weight end. elapsed=1.84 s, type=X"])

    def prompt_tokens(self) -> float:
        return 5.0

    def complete(self, prompt: str, temperature: float, max_tokens: int = 16) -> int:
        self.asked.append(temperature)
        if len(self.asked) >= self.hang_from:
            self.hanging.release()
            assert self.stopped.wait(60), "the server was not stopped"
            raise StageFailure("request_failed", "the server went away")
        return 7

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def fake_server(container: Path) -> FakeServer:
    return FakeServer()


def new_warmup(fake: Any) -> tuple[warmup.Warmup, list[int | None]]:
    groups: list[int | None] = []
    return warmup.Warmup("r", fake, 1.0, groups.append, lambda: None), groups


def test_each_batch_size_is_asked_greedy_and_sampled_of_one_server(fake_server: FakeServer) -> None:
    made, groups = new_warmup(fake_server)
    assert made.exercise((1, 4)) == 12
    assert sorted(fake_server.asked) == [0.0] * 6 + [0.8] * 6
    assert made.ledger.tokens == 84 and made.ledger.baseline == 5.0
    assert made.ensure_requests((1,)) is made.ledger and len(fake_server.asked) == 12, (
        "tokens were sent already"
    )
    made.close()
    assert fake_server.started == 1 and groups == [77, None]


@pytest.mark.parametrize(
    ("failure", "phases"),
    [(None, [{"phase": "weights", "seconds": 1.84}]), (OSError(5, "Input/output error"), [])],
)
def test_where_a_start_went_is_kept_and_its_log_never_fails_it(
    fake_server: FakeServer, failure: OSError | None, phases: list[Any]
) -> None:
    fake_server.log_failure = failure
    made, _ = new_warmup(fake_server)
    made.start()
    [start] = made.starts
    assert start["phases"] == phases
    times = [start["first_request_s"]]
    made.exercise((1,))
    times.append(start["first_request_s"])
    assert made.starts == [start] and times[0] is None and times[1] >= 0
    made.rest()
    made.exercise((1,))
    assert len(made.starts) == 2, "each start is told"


def test_a_server_that_does_not_start_is_tried_once(fake_server: FakeServer) -> None:
    fake_server.start_failure = StageFailure("oom", "no memory")
    made, _ = new_warmup(fake_server)
    for _ in range(2):
        with pytest.raises(StageFailure, match="no memory"):
            made.ensure_requests((1,))
    assert fake_server.started == 1


def test_an_interruption_does_not_wait_for_requests_in_flight(
    fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may compile for minutes; a container that stops has one. The first two are asked
    alone, before the pool.
    """
    fake_server.hang_from = 3
    made, _ = new_warmup(fake_server)

    class Pool(warmup.ThreadPoolExecutor):
        def map(self, *arguments: Any, **options: Any) -> Any:
            super().map(*arguments, **options)
            assert fake_server.hanging.acquire(timeout=60)
            raise Interrupted

    monkeypatch.setattr(warmup, "ThreadPoolExecutor", Pool)
    with pytest.raises(Interrupted):
        made.exercise((1,))
    assert fake_server.stopped.is_set()


def test_a_server_that_cannot_be_recorded_is_tried_once(fake_server: FakeServer) -> None:
    def refuse(group: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fake: Any = fake_server
    made = warmup.Warmup("r", fake, 1.0, refuse, lambda: None)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            made.ensure_requests((1,))
    assert fake_server.started == 1
    with pytest.raises(OSError, match="No space"):
        made.close()
    assert fake_server.stopped.is_set(), "it is ended first"


def real_server(log: Path, *argv: str, port: int = 9) -> server.Server:
    log.touch()
    return server.Server(Command.public(list(argv), {}), port, log)


@pytest.mark.parametrize(
    ("words", "error_type"),
    [("CUDA out of memory", "oom"), ("no such file", "server_start_failed")],
)
def test_a_server_that_dies_while_starting_is_told_with_its_last_words(
    tmp_path: Path, words: str, error_type: str
) -> None:
    (tmp_path / "log").write_text("older lines\n")
    made = real_server(tmp_path / "log", "/bin/sh", "-c", f"echo {words}; exit 3")
    made.start()
    with pytest.raises(StageFailure, match="exit code 3") as caught:
        made.wait_healthy(60, lambda: None)
    assert caught.value.error_type == error_type and caught.value.log_tail == [words]
    made.stop()


KILLED_AS_IT_STARTS = """
import os, signal, subprocess, sys
from pathlib import Path
from sgl_admin.serving import server
real = subprocess.Popen
def popen(*arguments, **options):
    print(real(*arguments, **options).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
subprocess.Popen = popen
from sgl_admin.base.command import Command
server.Server(Command.public(["/bin/sleep", "600"], {}), 9, Path(sys.argv[1])).start()
"""


def test_a_server_ends_with_who_started_it_even_when_nobody_noted_it(tmp_path: Path) -> None:
    source = str(Path(server.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AS_IT_STARTS, str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while processes.group_is_running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.group_is_running(int(done.stdout))


def test_a_server_begins_only_when_it_is_noted(tmp_path: Path) -> None:
    made = real_server(tmp_path / "log", "/usr/bin/touch", str(tmp_path / "begun"))
    made.start()
    time.sleep(0.3)
    assert not (tmp_path / "begun").exists()
    with pytest.raises(StageFailure, match="exit code 0"):
        made.wait_healthy(60, lambda: None)
    assert (tmp_path / "begun").exists()
    made.stop()


@pytest.mark.parametrize(
    ("parent", "word"), [(-1, b"1"), (os.getpid(), b"")], ids=["another", "as told"]
)
def test_a_server_whose_prep_is_gone_does_not_begin(
    tmp_path: Path, parent: int, word: bytes
) -> None:
    waits, given = os.pipe()
    os.write(given, word)
    os.close(given)
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(gated.GATE),
            str(parent),
            str(waits),
            "/usr/bin/touch",
            str(tmp_path / "begun"),
        ],
        pass_fds=(waits,),
        check=False,
    )
    os.close(waits)
    assert done.returncode == 1 and not (tmp_path / "begun").exists()


def test_a_server_that_never_gets_healthy_is_told(tmp_path: Path) -> None:
    made = real_server(tmp_path / "log", "/bin/sleep", "600")
    made.start()
    group = made.group
    assert group is not None
    try:
        with pytest.raises(StageFailure) as caught:
            made.wait_healthy(0.0, lambda: None)
        assert caught.value.error_type == "server_unhealthy_timeout"
    finally:
        made.stop()
    assert not processes.group_is_running(group)


def test_a_busy_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        made = real_server(tmp_path / "log", "/bin/sleep", "600", port=holder.getsockname()[1])
        with pytest.raises(StageFailure, match=str(holder.getsockname()[1])) as caught:
            made.start()
    assert caught.value.error_type == "port_busy" and made.group is None
