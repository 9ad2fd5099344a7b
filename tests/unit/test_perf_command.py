"""`sgl-admin perf`: the stage alone, for the server that was prepared."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.commands import main as cli
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_OK, EXIT_USAGE
from sgl_admin.contract.stages import BY_NAME
from sgl_admin.perf import table
from sgl_admin.prep.execute import Execution
from sgl_admin.prep.plan import Plan
from sgl_admin.records import job, remembered
from sgl_admin.records.job import Job
from sgl_admin.serving import benchmark_server
from tests.contract import validators
from tests.unit.sharing import admin
from tests.unit.test_sgl_admin_prep import World, world  # noqa: F401 - a fixture

TOO_SLOW = BY_NAME["perf"].exit_code


@pytest.fixture
def probe(world: World, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:  # noqa: F811
    """What the stage finds. The process of a prep is this one."""
    found: dict[str, Any] = validators.example("prep_result")["perf_probe"]
    standing = world.stages["perf"].standing
    monkeypatch.setattr(
        world.stages["perf"],
        "standing",
        lambda context: {**standing(context), "perf_probe": found, "warnings": []},
    )

    def spawn(plan: Plan, prep_id: str, lock: int) -> None:
        Execution(plan, Job(plan.run.run_id, plan.request, prep_id, plan.shown_request)).run()

    monkeypatch.setattr(cli, "_spawn", spawn)
    return found


def prepare(world: World, *words: str) -> dict[str, int]:  # noqa: F811
    """A prep without the stage; how often each stage has run by then."""
    world.execute("--perf", "skip", *_others(), *words)
    return runs(world)


def _others() -> list[str]:
    return [
        word for name, stage in BY_NAME.items() if name != "perf" for word in (stage.flag, "ensure")
    ]


def runs(world: World) -> dict[str, int]:  # noqa: F811
    return {name: stage.runs for name, stage in world.stages.items()}


def result(world: World) -> dict[str, Any]:  # noqa: F811
    found = files.read_json(paths.prep_result(world.run_id)) or {}
    validators.validate_prep_result(found)
    return found


def test_the_stage_alone_is_run_once_and_then_stands(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    before = prepare(world)
    answer = admin("perf")
    assert answer.code == EXIT_OK, answer.error
    assert runs(world) == {**before, "perf": 1}
    lines = answer.out.splitlines()
    assert lines[:-1] == list(table.lines(probe))
    assert lines[-1] == f"PERF_STATUS warn perf:ok {probe['reason']}"
    again = admin("perf")
    assert again.code == EXIT_OK and "perf:noop" in again.out
    assert runs(world) == {**before, "perf": 1}
    assert admin("perf", "--rebuild").code == EXIT_OK
    assert runs(world) == {**before, "perf": 2}


def test_the_prepared_server_stays_the_one_that_is_started(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    prepare(world, "--profile", "one", "--cuda-graph-bs", "2")
    kept, before = remembered.read("one", 31999), result(world)["run"]["server"]
    prepare(world, "--profile", "two", "--cuda-graph-bs", "4")
    other = result(world)["run"]["server"]
    assert other["identity"] != before["identity"]
    assert admin("perf").code == EXIT_OK
    assert result(world)["run"]["server"] == other
    assert admin("perf", "one").code == EXIT_OK
    now = result(world)
    assert (now["run"]["profile"], now["run"]["server"]) == ("one", before)
    assert remembered.read("one", 31999) == kept and now["telemetry_probe"]["ok"] is True


def test_json_is_the_probe(world: World, probe: dict[str, Any]) -> None:  # noqa: F811
    prepare(world)
    *document, last = admin("perf", "--json").out.splitlines()
    assert json.loads("\n".join(document)) == probe and last.startswith("PERF_STATUS warn")


def test_a_host_that_is_too_slow_has_the_stages_exit_code(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    """The prep itself warns only."""
    probe.update(ok=False, verdict="fail")
    prepare(world)
    answer = admin("perf")
    assert answer.code == TOO_SLOW
    assert answer.out.splitlines()[-1] == f"PERF_STATUS fail perf:ok {probe['reason']}"


def test_a_measurement_that_fails_is_told(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    prepare(world)
    world.stages["perf"].failure = RuntimeError("a GPU was lost")
    answer = admin("perf")
    assert answer.code == TOO_SLOW
    assert answer.out.splitlines()[-1].startswith("PERF_STATUS unknown perf:error")


def test_nothing_is_measured_where_nothing_was_prepared(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    answer = admin("perf")
    assert answer.code == EXIT_NO_LIVE_RUN and "playbooks/prep.yml" in answer.error
    prepare(world)
    (paths.PROFILES / world.stages["inductor"].caches[0] / "kernel").unlink()
    answer = admin("perf")
    assert answer.code == EXIT_NO_LIVE_RUN and "does not stand any more (inductor" in answer.error
    assert runs(world)["perf"] == 0


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        (benchmark_server.SERVES, "stop it first (sgl-admin server stop)"),
        (job.LOCK, "another prep is starting"),
    ],
    ids=["server", "prep"],
)
def test_what_would_disturb_a_measurement_is_named(
    world: World,  # noqa: F811
    probe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    lock: str,
    words: str,
) -> None:
    monkeypatch.setattr(cli, "_START_PATIENCE_S", 0.0)
    prepare(world)
    with locks.locked(lock, 1):
        answer = admin("perf")
    assert answer.code == EXIT_BUSY and words in answer.error and runs(world)["perf"] == 0


def test_a_verdict_that_stands_is_told_beside_a_server_too(
    world: World,  # noqa: F811
    probe: dict[str, Any],
) -> None:
    prepare(world)
    assert admin("perf").code == EXIT_OK
    with locks.locked(benchmark_server.SERVES, 1):
        assert admin("perf").code == EXIT_OK
        assert admin("perf", "--rebuild").code == EXIT_BUSY


def test_a_flag_that_is_not_its_own_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        admin("perf", "--moe", "ensure")
    assert ended.value.code == EXIT_USAGE


def test_the_table_has_a_row_for_each_measurement_with_its_worst_reference() -> None:
    def judged(reference: str, percent: float, verdict: str) -> dict[str, Any]:
        return {
            "name": "triad",
            "reference": reference,
            "value": 11.62,
            "expected": 12.5,
            "percent": percent,
            "verdict": verdict,
        }

    rows = list(
        table.lines(
            {
                "verdict": "warn",
                "measurements": [
                    {"name": "triad", "value": 11.62, "unit": "GB/s", "spread_percent": 0.51},
                    {"name": "h2d", "value": 55.0, "unit": "GB/s", "spread_percent": None},
                ],
                "skipped": [{"name": "decode", "reason": "1 of 64 tokens"}],
                "judgements": [
                    judged("the data sheet's floor", -3.0, "pass"),
                    judged("the host's own history", 7.04, "warn"),
                ],
                "findings": [{"verdict": "warn", "sentence": "GPU 0 was throttled"}],
            }
        )
    )
    assert rows == [
        "measurement      value unit      scatter  beside its reference",
        "triad            11.62 GB/s         0.5%  warn: 7.0% worse than the host's own history"
        " (12.5)",
        "h2d                 55 GB/s               no reference",
        "decode       not measured: 1 of 64 tokens",
        "warn: GPU 0 was throttled",
    ]
    assert list(table.lines({"verdict": None, "reason": "it was skipped"})) == [
        "not measured: it was skipped"
    ]
