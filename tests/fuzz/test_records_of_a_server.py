"""The records of a benchmark's server and of a smoke, as `sgl-admin server` and `sgl-admin smoke`
read them: whatever lies there.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from sgl_admin.records import smokes as record
from sgl_admin.serving import server
from tests.contract import validators
from tests.fuzz.fuzzing import encoded, files_of, fuzz, mostly, partly, put, reached, things
from tests.fuzz.test_records_of_a_container import (
    GOOD,
    RESULT,
    RUN,
    RUN_ID,
    Outcome,
    container,
    nothing_begins,
    result,
)

SMOKE_ID = "smoke-20261123T095000Z-5be01a77"
SERVER, SUMMARY = f"{RUN}/server.json", f"{RUN}/smokes/{SMOKE_ID}/summary.json"
# No process has that number: the kernel gives none so high on a host of usual settings.
NOBODY = 4194303
STARTED: dict[str, Any] = {
    "schema_version": "1",
    "server_id": "server-20261123T095000Z-5be01a77",
    "run_id": RUN_ID,
    "state": "running",
    "pgid": NOBODY,
    "start_ticks": "1",
    "argv": ["python", "-m", "sglang.launch_server", "--port", "9"],
    "env": {"A": "1"},
    "model": "/models/m",
    "port": 9,
    "log": f"/telemetry/logs/{RUN_ID}.log",
    "log_start": 0,
    "started_at": "2026-11-23T09:50:00Z",
}
RUNS: dict[str, Any] = {
    **validators.example("smoke_summary"),
    "state": "running",
    "pid": NOBODY,
    "exit_code": None,
}
RUNS["server"] = {**RUNS["server"], "pgid": NOBODY, "start_ticks": "1"}
PREPARED = {
    **result(),
    "run": {
        **result()["run"],
        "model": "/models/m",
        "server": {"argv": STARTED["argv"], "env": {}},
    },
}
FILES = {**GOOD, RESULT: encoded(PREPARED), SERVER: encoded(STARTED), SUMMARY: encoded(RUNS)}
STRANGE = {
    RESULT: things(files_of(PREPARED, keys=["run", "server", "argv", "env"])),
    SERVER: things(files_of(STARTED)),
    SUMMARY: things(files_of(RUNS) | files_of({**RUNS, "state": "done", "exit_code": 0})),
}


@fuzz(
    deep=0.3,
    files=partly(FILES, STRANGE),
    words=st.sampled_from(
        [("server", "status"), ("server", "status", "--json"), ("server", "stop"),
         ("server", "start", "--dry-run"), ("smoke", "status"), ("smoke", "status", "--json")],
    ),
)  # fmt: skip
def test_what_lies_there_is_told_and_no_stranger_is_ended(
    files: dict[str, Any], words: tuple[str, ...]
) -> None:
    with container() as inside, nothing_begins(True), pytest.MonkeyPatch.context() as patch:
        for name, thing in files.items():
            put(inside / name, thing)
        # No server answers here, and none is waited for.
        patch.setattr(server.Server, "healthy", lambda self: False)
        outcome = Outcome(*words)
        if words == ("smoke", "status"):
            # That of the smoke; 8 and any other number may stand in its record.
            assert outcome.code in range(256), outcome.error
        else:
            assert outcome.code in (0, 1, 4, 5, 7), outcome.error
        # The status of a server that is not healthy is an answer too.
        if outcome.code and not (words[1] == "status" and outcome.out):
            return
        reached()
        if "--json" in words:
            found = json.loads(outcome.out)
            # Its process is gone, or was never: nothing of it runs.
            told = found["smoke"] if words[0] == "smoke" else found["server"]
            assert told is None or told["state"] != record.RUNNING
        else:
            assert (
                all(line.isprintable() for line in outcome.out.splitlines()) and outcome.out.strip()
            )


@fuzz(deep=0.04, content=mostly(files_of(RUNS, most=1), files_of({**RUNS, "tests": []}), 60))
def test_a_smoke_that_nobody_runs_is_interrupted(content: bytes) -> None:
    with container() as inside, nothing_begins(True):
        for name, thing in {**FILES, SUMMARY: content}.items():
            put(inside / name, thing)
        outcome = Outcome("smoke", "status", "--json")
        assert outcome.code == 0, outcome.error
        found = json.loads(outcome.out)["smoke"]
        if found is None:
            return
        reached()
        assert found["state"] != record.RUNNING
