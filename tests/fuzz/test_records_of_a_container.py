"""What sgl-admin finds on disk: whatever lies there, a command ends with its exit code and a
sentence, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from sgl_admin.base import files as contract_files
from sgl_admin.base import locks, paths, processes, versions
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.facts import devices
from sgl_admin.prep.plan import Plan, plan_prep
from sgl_admin.records import caches, job, run, served
from sgl_admin.serving import probe
from sgl_admin.stages import STAGES
from tests.contract import validators
from tests.fuzz.fuzzing import (
    encoded,
    files_of,
    folder,
    fuzz,
    kept,
    mostly,
    partly,
    put,
    reached,
    text,
    things,
)
from tests.unit.model_files import write_model

RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"
PREP_ID = validators.example("prep_result")["run"]["prep_id"]
CONFIG = b'{"architectures": ["Qwen3ForCausalLM"]}'
MODEL = "models/tiny"
GRAPH, KERNEL = "torchinductor/ab/graph.py", "triton/kernel.so"
FLAVOUR = {
    "flavour": "local",
    "server": {"args": ["--device", "cpu"], "env": {}, "batch_sizes": [1, 4]},
    "services": ["prometheus"],
}
MANIFEST = {
    "schema_version": "1",
    "container_run_id": RUN_ID,
    "services": {"prometheus": {"url": "http://127.0.0.1:9"}, "sglang": {"port": 31999}},
    "paths": {"container": {"run_dir": "/telemetry/x"}, "host": {}},
}


IDENTITY: str = validators.example("prepared")["identity"]
SERVED = f"sha256:{'5e' * 32}"


@contextmanager
def container() -> Iterator[Path]:
    """Every path of sgl_admin.base.paths under a folder of its own, on a host without a GPU, and
    nothing that leaves the process.
    """
    with folder() as inside, pytest.MonkeyPatch.context() as patch:
        for name, value in vars(paths).copy().items():
            if isinstance(value, Path):
                patch.setattr(paths, name, inside / value.relative_to("/"))
        roots = tuple(
            (inside / root.relative_to("/"), variable) for root, variable in paths._HOST_ROOTS
        )
        patch.setattr(paths, "_HOST_ROOTS", roots)
        for root, variable in roots:
            patch.setenv(variable, f"/host/{root.name}")
        for made in (
            *(paths.PROFILES / cache for cache in caches.CACHES),
            paths.LOCKS,
            paths.IN_PROGRESS,
            paths.RUNS,
            paths.LOGS,
        ):
            made.mkdir(parents=True)
        write_model(inside / MODEL, json.loads(CONFIG))
        put(paths.FLAVOUR, encoded(FLAVOUR))
        put(paths.log(RUN_ID), b"")
        patch.setattr(
            devices,
            "find",
            lambda visible: devices.Devices(name="cpu", count=1, cuda=False, cpu_isa="avx2"),
        )
        patch.setattr(versions, "installed", lambda name: "1.0")
        # The folder is another one for each example, and its name is in the server's command line.
        patch.setattr(served, "identity", lambda *_: IDENTITY)
        patch.setattr(served, "with_caches", lambda *_: SERVED)
        yield inside


@functools.cache
def _record() -> tuple[str, dict[str, Any]]:
    """Where the finished stage's record lies, and what it says."""
    with container() as inside:
        put(paths.PROFILES / GRAPH, b"x = 1\n")
        put(paths.PROFILES / KERNEL, b"12345")
        arguments = cli._parser().parse_args(["caches", "ensure", "--model", str(inside / MODEL)])
        live = run.Run(RUN_ID, MANIFEST)
        plan = plan_prep(live, request_cli.of(arguments, live))
        [stage] = [stage for stage in STAGES if stage.name == "inductor"]
        record = caches.SignatureRecord("inductor", stage.caches, stage.signature(plan.context))
        record.write(served=SERVED)
        return str(record.path.relative_to(inside)), json.loads(record.path.read_bytes())


def result() -> dict[str, Any]:
    example = validators.example("prep_result")
    return {
        **example,
        "run": {"run_id": RUN_ID, "prep_id": PREP_ID},
        "stages": {"inductor": {"status": "ok"}},
    }


def record_of_a_job(**changes: Any) -> dict[str, Any]:
    server = {"pgid": 4000000, "started_at": "2026-11-23T09:16:00Z", "start_ticks": "1"}
    return {
        **validators.example("job"),
        "prep_id": PREP_ID,
        "arguments": ["--model=/m"],
        "state": "done",
        "exit_code": 0,
        "server": server,
        **changes,
    }


RUNNING = record_of_a_job(state="running", exit_code=None)
RUN = f"telemetry/container_runs/{RUN_ID}"
LIVE, POINTER, NAMED, JOB = (
    "var/lib/sgl/run_id",
    "telemetry/container_run_meta.env",
    f"{RUN}.json",
    f"{RUN}/job.json",
)
RESULT, STAGE, SKIPPED = (
    f"{RUN}/prep_result.json",
    f"{RUN}/stages/inductor.json",
    f"{RUN}/stages/moe_tune.json",
)
PREPARED = f"{RUN}/prepared/{IDENTITY.removeprefix('sha256:')[:16]}.json"
RECORD, FINISHED = _record()
MARKER = "profiles/.in_progress/inductor.json"
STAGE_RECORD = {
    key: value for key, value in validators.example("stage").items() if key != "signature"
}
GOOD: dict[str, bytes | str] = {
    LIVE: f"{RUN_ID}\n".encode(),
    POINTER: f"CONTAINER_RUN_META_JSON=/telemetry/container_runs/{RUN_ID}.json\n".encode(),
    NAMED: encoded(MANIFEST),
    JOB: encoded(record_of_a_job()),
    RESULT: encoded(result()),
    PREPARED: encoded(validators.example("prepared")),
    STAGE: encoded(STAGE_RECORD),
    SKIPPED: encoded(STAGE_RECORD),
    f"profiles/{GRAPH}": b"x = 1\n",
    f"profiles/{KERNEL}": b"12345",
    RECORD: encoded(FINISHED),
    MARKER: "missing",
}
STRANGE: dict[str, st.SearchStrategy[Any]] = {
    LIVE: things(
        mostly(
            st.just(f"{RUN_ID}\n".encode()),
            text().map(lambda name: name.encode(errors="replace")),
            20,
        )
    ),
    POINTER: things(
        text().map(lambda name: f"CONTAINER_RUN_META_JSON=/a/{name}.json".encode(errors="replace"))
    ),
    NAMED: things(files_of(MANIFEST)),
    JOB: things(files_of(record_of_a_job()) | files_of(RUNNING) | st.just(encoded(RUNNING))),
    RESULT: things(files_of(result(), keys=["telemetry_probe", "ok", "run"])),
    PREPARED: things(
        files_of(
            validators.example("prepared"),
            keys=["telemetry_probe", "ok", "server", "identity", "run_id"],
        )
    ),
    STAGE: things(files_of(STAGE_RECORD)),
    SKIPPED: things(files_of(STAGE_RECORD)),
    f"profiles/{GRAPH}": things(st.binary(max_size=7)),
    RECORD: things(files_of(FINISHED, keys=["signature", "summary", "files"])),
    MARKER: things(
        files_of({"stage": "inductor", "owner_pid": 1, "started_at": "2026-11-23T09:15:00Z"})
    ),
}
# What is set aside when it cannot be read, by who reads it in a prep that has nothing to do.
RECORDS = (JOB, RESULT, PREPARED, STAGE, SKIPPED, RECORD)


class Outcome:
    """A command's exit code and what it printed, as a terminal that takes UTF-8 and nothing else
    would show it.
    """

    def __init__(self, *arguments: str) -> None:
        out, error = (
            io.TextIOWrapper(io.BytesIO(), "utf-8", errors)
            for errors in ("strict", "backslashreplace")
        )
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            self.code = cli.main(arguments)
        for stream in (out, error):
            stream.flush()
        self.out, self.error = (stream.buffer.getvalue().decode() for stream in (out, error))
        for line in self.error.split("\n"):
            assert line.isprintable() and len(line) < 20_000, line[:300]
        # A status that is no success is an answer on standard output.
        if self.code and not ("status" in arguments and self.out.strip()):
            # A prep that began says before what it will cost.
            words = [line for line in self.error.splitlines() if not line.startswith("prep-")]
            assert words and words[0].startswith("sgl-admin: ")


@contextmanager
def nothing_begins(answers: bool) -> Iterator[list[Plan]]:
    """No process is started and none is ended; the preps that would have been started."""
    begun: list[Plan] = []

    def end_group(group: int) -> None:
        assert type(group) is int and 1 < group <= 2**22, "it would end what is not its own"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_spawn", lambda plan, prep_id, lock: begun.append(plan))
        patch.setattr(processes, "end_group", end_group)
        lost = None if answers else "Prometheus does not answer"
        patch.setattr(probe, "lost", lambda url, proof: lost)
        patch.setattr(cli, "_START_PATIENCE_S", -1.0)
        yield begun


def parsed(thing: bytes | str) -> Any:
    """The document in a file, as a reader that trusts everything finds it; None where there is
    none.
    """
    try:
        found = json.loads(thing.decode("utf-8")) if isinstance(thing, bytes) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_warm(inside: Path, files: dict[str, Any]) -> bool:
    """Whether the stage's record vouches for what is there, for this server too, and no process
    died at it.
    """
    record = parsed(files[RECORD])
    sizes = {name: os.stat(inside / "profiles" / name).st_size for name in record["files"]}
    return (
        record["signature"] == FINISHED["signature"]
        and record["files"] == sizes
        and SERVED in record["served"]
        and files[MARKER] in ("missing", "loop")
    )


def is_proven(files: dict[str, Any]) -> bool:
    record = parsed(files[PREPARED])
    proof = record["telemetry_probe"]
    known = (record["run_id"], record["identity"], proof["server"])
    return proof["ok"] is True and known == (RUN_ID, IDENTITY, IDENTITY)


def nothing_lost(inside: Path, files: dict[str, Any]) -> None:
    """What could not be read lies there still, or beside where it was."""
    for name in RECORDS:
        if name in files and files[name] not in ("missing", "fifo") and parsed(files[name]) is None:
            path = inside / name
            assert files[name] in (
                kept(path),
                kept(path.with_name(f"{path.name}.corrupt-1")),
            ), f"{name} is gone"


@fuzz(
    deep=0.2,
    files=partly(GOOD, STRANGE),
    how=st.sampled_from(
        [
            ["--json"],
            [],
            ["--dry-run", "--json"],
            ["--dry-run"],
            ["--detach"],
            ["--json", "--probe", "never"],
        ]
    ),
    answers=mostly(st.just(True), st.just(False)),
    held=mostly(st.just(False), st.just(True), 90),
)
def test_a_prep_has_nothing_to_do_only_where_all_is_done(
    files: dict[str, Any], how: list[str], answers: bool, held: bool
) -> None:
    with container() as inside, nothing_begins(answers) as begun:
        for name, thing in files.items():
            put(inside / name, thing)
        lock = locks.try_lock(job.LOCK) if held else None
        outcome = Outcome("caches", "ensure", "--model", str(inside / MODEL), *how)
        if lock is not None:
            os.close(lock)
        nothing_lost(inside, files)
        assert outcome.code in ((0, 1, 4, 5) if not begun else (0, 1)), outcome.error
        if outcome.code in (4, 5) or begun:
            return
        if "--dry-run" in how:
            if "--json" in how:
                plan = json.loads(outcome.out.rpartition("\nRESULT_STATUS")[0])
                assert plan["telemetry_probe"] != "stands" or is_proven(files)
                assert plan["stages"]["inductor"]["status"] != "noop" or is_warm(inside, files)
            return
        assert outcome.code == 0, outcome.error
        reached()
        assert is_warm(inside, files)
        written = contract_files.read_json(paths.prep_result(RUN_ID)) or {}
        assert {name: stage["status"] for name, stage in written["stages"].items()}[
            "inductor"
        ] == "noop"
        if written["telemetry_probe"]["ok"] is True:
            assert is_proven(files)
        else:
            assert "never" in how
        validators.validate_job(contract_files.read_json(paths.job(RUN_ID)))


@fuzz(
    deep=0.25,
    files=partly(GOOD, {name: STRANGE[name] for name in (NAMED, JOB, RESULT)}),
    how=st.sampled_from([[], ["--json"], ["--watch"], ["--wait", "0"]]),
    held=st.booleans(),
)
def test_the_status_is_told_whatever_the_record_says(
    files: dict[str, Any], how: list[str], held: bool
) -> None:
    with container() as inside, nothing_begins(True):
        for name, thing in files.items():
            put(inside / name, thing)
        # A prep that runs is watched as long as it runs.
        lock = locks.try_lock(job.LOCK) if held and how != ["--watch"] else None
        outcome = Outcome("status", *how)
        if lock is not None:
            os.close(lock)
        nothing_lost(inside, {name: files[name] for name in (JOB, RESULT)})
        if outcome.code == cli.EXIT_NO_LIVE_RUN:
            return
        reached()
        if "--json" not in how:
            # The prep's own, 5 while it runs; 0 is for one that ended so.
            assert outcome.code in range(256)
            assert (
                outcome.code
                or not isinstance(kept(inside / JOB), bytes)
                or parsed(kept(inside / JOB))["exit_code"] == 0
            )
        else:
            assert outcome.code == 0, outcome.error
        if how == ["--json"]:
            found = json.loads(outcome.out)
            assert found["job"] is None or found["job"]["state"] != job.RUNNING or held
            if found["result"] is not None:
                assert found["result"]["run"]["prep_id"] == found["job"]["prep_id"] and found[
                    "result"
                ] == parsed(files[RESULT])
        else:
            assert outcome.out.rstrip("\n").isprintable()


@fuzz(
    deep=0.5,
    files=partly(GOOD, {name: STRANGE[name] for name in (RECORD, MARKER, f"profiles/{GRAPH}")}),
    how=st.sampled_from([[], ["--json"]]),
)
def test_caches_are_valid_only_while_their_record_vouches_for_them(
    files: dict[str, Any], how: list[str]
) -> None:
    with container() as inside:
        for name, thing in files.items():
            put(inside / name, thing)
        outcome = Outcome("caches", "inspect", *how)
        reached()
        assert outcome.code == 0, outcome.error
        assert all(kept(inside / name) == thing for name, thing in files.items()), "it only looks"
        if how:
            found = json.loads(outcome.out)["torchinductor"]
            assert (
                not found["valid"]
                or found["signature"] is None
                or (
                    found["signature"] == parsed(files[RECORD])["signature"]
                    and all(
                        os.stat(inside / "profiles" / name).st_size == size
                        for name, size in parsed(files[RECORD])["files"].items()
                    )
                )
            )


@fuzz(
    deep=0.07, files=partly(GOOD, {name: STRANGE[name] for name in (LIVE, POINTER, NAMED)}, most=1)
)
def test_a_run_is_live_only_when_the_pointer_names_it(files: dict[str, Any]) -> None:
    with container() as inside:
        for name in (LIVE, POINTER, NAMED):
            put(inside / name, files[name])
        try:
            found = run.live()
        except run.NoLiveRun as refusal:
            assert "start.yml" in str(refusal)
            return
        reached()
        manifest = parsed(files[NAMED])
        assert (
            found.manifest == manifest
            and manifest["container_run_id"] == found.run_id == files[LIVE].decode().strip()
        )
        assert f"/{found.run_id}.json" in files[POINTER].decode()
        found.add_prep_result_paths()
