"""Pointer, manifest, prep_result and job as the host reads them: whatever lies there, a run is live
and ready only when it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places, processes
from hypothesis import strategies as st

from tests.contract import validators
from tests.fuzz.fuzzing import (
    damaged,
    encoded,
    files_of,
    folder,
    fuzz,
    mostly,
    one_line,
    partly,
    put,
    reached,
    text,
    things,
)

RUN_ID: str = validators.example("manifest")["container_run_id"]
OTHER = "container-run-20261123T091600Z-00000000"
# The example's folders are renamed to the example's folder of the test.
ROOT = "/home/ubuntu/sglang-observability"
CONTAINER: dict[str, Any] = {
    "id": validators.example("manifest")["container_id"],
    "name": "sglang-dev",
    "running": True,
    "status": "running",
    "pid": os.getpid(),
    "started_at": "2026-11-23T09:14:59.1Z",
}


def manifest() -> dict[str, Any]:
    """The example with what is read here, so that no unread field is spoiled."""
    kept = (
        "schema_version",
        "container_run_id",
        "container_id",
        "container_name",
        "started_at",
        "image_id",
        "services",
        "paths",
    )
    example = validators.example("manifest")
    return {**{key: example[key] for key in kept}, "pid1": processes.identity(os.getpid())}


def prep_result() -> dict[str, Any]:
    example = validators.example("prep_result")
    run = {"run_id": RUN_ID, "server": {"identity": example["run"]["server"]["identity"]}}
    return {**example, "run": run, "stages": {"inductor": {"status": "ok"}}}


def job() -> dict[str, Any]:
    return {**validators.example("job"), "arguments": ["--model=/models/m"]}


@st.composite
def pointers(draw: st.DrawFn) -> bytes:
    """The pointer's lines, some of them others, in any order."""
    manifests = f"{ROOT}/telemetry/container_runs"
    named = st.sampled_from(
        [f"{manifests}/{RUN_ID}.json"] * 6
        + [f"{manifests}/{OTHER}.json", f"{manifests}/{RUN_ID}", "", "relative.json"]
    )
    host = draw(mostly(named, text().map(lambda name: f"/{name}/{RUN_ID}.json")))
    lines = [
        f"CONTAINER_RUN_META_JSON=/telemetry/container_runs/{RUN_ID}.json",
        f"CONTAINER_RUN_META_JSON_HOST={host}",
    ]
    lines += draw(
        st.lists(
            text() | st.sampled_from(["CONTAINER_RUN_META_JSON_HOST", "X=1", "=", ""]), max_size=2
        )
    )
    return (
        "\n".join(draw(st.permutations(lines))) + draw(st.sampled_from(["\n", "", "\r\n"]))
    ).encode(errors="replace")


def containers() -> st.SearchStrategy[dict[str, Any] | None]:
    changes: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
        [{}] * 6
        + [
            {"id": "f" * 64},
            {"running": False, "status": "exited"},
            {"pid": 0},
            {"pid": 0, "started_at": "2026-11-23T09:15:01Z"},
        ]
    )
    return mostly(changes.map(lambda change: {**CONTAINER, **change}), st.none(), 95)


def lay(root: Path, files: dict[str, bytes | str]) -> None:
    for name, thing in files.items():
        put(
            root / name,
            thing.replace(ROOT.encode(), str(root).encode()) if isinstance(thing, bytes) else thing,
        )


def parsed(path: Path | str) -> Any:
    """What a reader that trusts everything finds in a file; None where it finds nothing."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def is_live(root: Path, container: dict[str, Any] | None) -> bool:
    """The same question, answered from what was laid there and nothing else."""
    assert container is not None and container["running"] is True
    lines = (root / "telemetry" / places.POINTER).read_text().splitlines()
    named = [
        line.removeprefix("CONTAINER_RUN_META_JSON_HOST=")
        for line in lines
        if line.startswith("CONTAINER_RUN_META_JSON_HOST=")
    ][-1]
    found = parsed(named)
    same = (
        found["container_run_id"] == Path(named).stem and found["container_id"] == container["id"]
    )
    if container["pid"] and isinstance(found.get("pid1"), dict):
        return bool(same and found["pid1"] == processes.identity(container["pid"]))
    # To the second; what is no time sorts after every one.
    return bool(
        same
        and container["started_at"][:19] <= found["started_at"]
        and found["started_at"].startswith("2")
    )


def is_ready(found: dict[str, Any]) -> bool:
    result = parsed(found["paths"]["host"]["prep_result"])
    server = result["run"].get("server")
    identity = server.get("identity") if isinstance(server, dict) else None
    return (
        result["telemetry_probe"]["ok"] is True
        and result["run"]["run_id"] == found["container_run_id"]
        and result["telemetry_probe"].get("server") == identity
    )


RUNS = "telemetry/container_runs"
POINTER, MANIFEST = f"telemetry/{places.POINTER}", f"{RUNS}/{RUN_ID}.json"
RESULT, JOB, LOCK = (
    f"{RUNS}/{RUN_ID}/prep_result.json",
    f"{RUNS}/{RUN_ID}/job.json",
    "profiles/.locks/prep.lock",
)


@fuzz(
    deep=0.25,
    files=partly(
        {
            POINTER: f"CONTAINER_RUN_META_JSON_HOST={ROOT}/{MANIFEST}\n".encode(),
            MANIFEST: encoded(manifest()),
            RESULT: encoded(prep_result()),
            JOB: encoded(job()),
            LOCK: b"",
        },
        {
            POINTER: things(damaged(pointers())),
            MANIFEST: things(files_of(manifest())),
            RESULT: things(files_of(prep_result())),
            JOB: things(files_of(job())),
            LOCK: things(st.just(b"")),
        },
    ),
    held=st.booleans(),
    container=containers(),
)
def test_a_run_is_live_and_ready_only_when_its_records_say_so(
    files: dict[str, bytes | str], held: bool, container: dict[str, Any] | None
) -> None:
    with folder() as root:
        lay(root, files)
        with open(root / LOCK, "rb") if files[LOCK] == b"" else contextlib.nullcontext() as lock:
            if held and lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            found = run_record.describe(str(root / "telemetry"), container)
        json.dumps(found)
        assert found["live"] is (found["reason"] is None)
        if not found["live"]:
            one_line(found["reason"])
            assert found["metrics_ready"] is False and found["prep"] is None
            return
        reached()
        assert is_live(root, container)
        assert found["metrics_ready"] is (
            found["prep_result"] is not None and is_ready(found["manifest"])
        )
        if found["prep"] is not None:
            # A lock that cannot be read counts as held.
            assert files[LOCK] != "missing" and (held or files[LOCK] != b"")
            assert parsed(root / JOB)["state"] == "running"
            assert all(isinstance(word, str) for word in found["prep"]["arguments"])
