"""`sgl-admin server start PROFILE`: the server of an earlier prep in a run that has not seen it,
which a reboot begins, and the proof that this server makes itself.
"""

from __future__ import annotations

import json
import shutil
import stat
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.contract import places
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN, EXIT_PROOF_FAILED
from sgl_admin.records import caches, job, prepared, remembered, run
from sgl_admin.serving import benchmark_server, server
from sgl_admin.sglang import ENGINE
from tests.contract import validators
from tests.unit.sharing import Answer, admin
from tests.unit.test_sgl_admin_prep import World, world  # noqa: F401 - a fixture

NEXT_RUN = "container-run-20261124T091500Z-4fb9c1d2"


class Started:
    """Stands for the start of servers: each is healthy at once, and none is a process."""

    def __init__(self) -> None:
        self.commands: list[Any] = []

    def start(self, live: run.Run, wanted: Any) -> tuple[dict[str, Any], bool]:
        self.commands.append(wanted.command)
        record = {
            "server_id": "server-20261124T091500Z-4fb9c1d2",
            "state": "running",
            "pgid": 1,
            "log_start": 0,
            "port": wanted.port,
            **wanted.command.shown,
        }
        return record, True

    def wait(self, *_: object) -> tuple[None, bool]:
        return None, True


@pytest.fixture
def started(world: World, monkeypatch: pytest.MonkeyPatch) -> Started:  # noqa: F811
    found = Started()
    monkeypatch.setattr(benchmark_server, "start", found.start)
    monkeypatch.setattr(benchmark_server, "wait", found.wait)
    monkeypatch.setattr(server.Server, "complete", lambda *_: 7)
    monkeypatch.setattr(server.Server, "prompt_tokens", lambda _: 5.0)
    return found


def reboot() -> None:
    """The container is started again: a new run, and nothing of the old one in its records."""
    manifest = files.read_json(paths.manifest(run.live().run_id)) or {}
    manifest["container_run_id"] = NEXT_RUN
    files.write_json(paths.manifest(NEXT_RUN), manifest)
    files.write_text(paths.LIVE_RUN, NEXT_RUN + "\n")
    files.write_text(paths.POINTER, run.pointer_text(NEXT_RUN), mode=0o600)
    paths.log(NEXT_RUN).touch()


def start(*words: str) -> Answer:
    return admin("server", "start", *words)


def result() -> dict[str, Any]:
    found = files.read_json(paths.prep_result(run.live().run_id)) or {}
    validators.validate_prep_result(found)
    return found


def test_each_profile_is_started_by_its_name_in_the_next_run_too(
    world: World,  # noqa: F811
    started: Started,
) -> None:
    for name, size in (("lab/one", "2"), ("two", "4")):
        assert world.execute("--profile", name, "--cuda-graph-bs", size)[1] == 0
    identities = {name: row["identity"] for name, row in result()["profiles"].items()}
    assert len(set(identities.values())) == 2
    runs = {name: stage.runs for name, stage in world.stages.items()}
    reboot()
    for name in ("two", "lab/one"):
        assert start(name).code == 0
        found = result()
        assert found["run"]["profile"] == name
        assert found["telemetry_probe"]["ok"] is True
        assert found["run"]["server"]["identity"] == identities[name]
        assert found["profiles"][name]["identity"] == identities[name]
        record = files.read_json(prepared.path(NEXT_RUN, identities[name])) or {}
        validators.validate_prepared(record)
        assert record["profile"] == name
    assert set(result()["profiles"]) == {"lab/one", "two"}
    assert {name: stage.runs for name, stage in world.stages.items()} == runs, "no stage is done"
    first, second = (ENGINE.port(command.argv) for command in started.commands)
    assert first == second and started.commands[0].argv != started.commands[1].argv


def test_a_start_is_known_by_the_records_of_the_caches_that_it_uses(world: World) -> None:  # noqa: F811
    """What a prune keeps, where only servers were started for long."""
    world.execute()
    identity = result()["run"]["server"]["identity"]
    for named in (None, identity):
        for path in paths.PROFILES.rglob(f"*{places.USED}"):
            path.unlink()
        caches.note_use(benchmark_server.prepared(run.live(), named).served)
        records = set(paths.PROFILES.glob(f"*/{places.SIGNATURES}/*.json"))
        used = {path.with_suffix(".json") for path in paths.PROFILES.rglob(f"*{places.USED}")}
        assert used == records != set()


def test_after_a_reboot_the_latest_is_started_without_a_name(
    world: World,  # noqa: F811
    started: Started,
) -> None:
    world.execute("--cuda-graph-bs", "2")
    before = result()["run"]["server"]
    reboot()
    told = admin("ready", "--json").document
    assert told["ready"] is False and "sgl-admin server start" in told["reason"]
    validators.validate_readiness(told)
    assert start().code == 0
    assert result()["run"]["server"]["argv"] == before["argv"]
    assert result()["run"]["run_id"] == NEXT_RUN


def test_without_a_prep_before_a_reboot_the_prep_is_named(world: World) -> None:  # noqa: F811
    reason = admin("ready", "--json").document["reason"]
    assert "playbooks/prep.yml" in reason and "server start" not in reason


def test_a_profile_whose_caches_do_not_stand_is_not_started(
    world: World,  # noqa: F811
    started: Started,
) -> None:
    world.execute("--profile", "one")
    cache = next(iter(world.stages["inductor"].caches))
    shutil.rmtree(paths.PROFILES / cache)
    reboot()
    answer = start("one")
    assert answer.code == EXIT_NO_LIVE_RUN and started.commands == []
    assert "profile one does not stand any more (inductor: " in answer.error
    assert "playbooks/prep.yml" in answer.error


@pytest.mark.parametrize("name", ["other", "../one", "-", "a b"])
def test_a_profile_that_was_never_proven_is_refused_by_its_name(
    name: str,
    world: World,  # noqa: F811
    started: Started,
) -> None:
    world.execute("--profile", "one")
    answer = start("--", name)
    assert answer.code == EXIT_NO_LIVE_RUN and started.commands == []
    assert f"profile {name} was not prepared and proven" in answer.error


def test_a_prep_without_a_proof_is_not_remembered(world: World) -> None:  # noqa: F811
    world.execute("--profile", "one", "--probe", "never")
    assert remembered.read("one", 31999) is None and not remembered.any_profile()


def test_a_server_that_cannot_be_proven_says_why_and_goes_on(
    world: World,  # noqa: F811
    started: Started,
) -> None:
    world.execute("--profile", "one")
    reboot()
    world.proof = {"ok": False}
    answer = start("one")
    assert answer.code == EXIT_PROOF_FAILED
    assert "the server runs, and its metrics are not proven: nothing came" in answer.error


def test_while_a_prep_runs_the_proof_waits(world: World, started: Started) -> None:  # noqa: F811
    world.execute("--profile", "one")
    reboot()
    with locks.locked(job.LOCK, 1):
        answer = start("one")
    assert answer.code == EXIT_BUSY and "a prep runs on this host" in answer.error


def test_what_is_remembered_is_its_owners_and_is_written_once(world: World) -> None:  # noqa: F811
    world.execute("--profile", "one")
    kept = sorted(paths.PREPARED.iterdir())
    assert len(kept) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    before = [path.stat().st_ino for path in kept]
    world.execute("--profile", "one")
    assert [path.stat().st_ino for path in kept] == before


@pytest.mark.parametrize("content", ["", "{", '{"profile": "one"}', '{"profile": 1}'])
def test_a_request_that_cannot_be_read_names_its_file_and_the_prep(
    content: str,
    world: World,  # noqa: F811
    started: Started,
) -> None:
    world.execute("--profile", "one")
    for path in paths.PREPARED.iterdir():
        path.write_text(content)
    answer = start("one")
    assert answer.code == EXIT_NO_LIVE_RUN and started.commands == []
    assert str(paths.PREPARED) in answer.error and "playbooks/prep.yml" in answer.error


def test_another_port_of_the_next_run_is_the_servers_too(world: World) -> None:  # noqa: F811
    world.execute("--profile", "one")
    found = remembered.read("one", 32000)
    assert found is not None and found.warmup_port == 32000
    assert json.loads(found.to_json())["profile"] == "one"


def test_what_was_rebuilt_is_kept_the_next_time(world: World) -> None:  # noqa: F811
    world.execute("--profile", "one", "--inductor", "rebuild")
    found = remembered.read("one", 31999)
    assert found is not None and found.stages["inductor"] == "ensure"
