"""What the host side makes of the records of a run, and of records that are damaged or of another
run.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places, processes
from ansible_collections.slice_bench.sglang.plugins.module_utils._run_record import RecordError

from tests.contract import validators


class Records:
    """The contract's examples as files of a telemetry folder."""

    def __init__(self, telemetry: Path) -> None:
        self.telemetry = telemetry
        self.manifest = validators.example("manifest")
        self.result = validators.example("prep_result")
        self.run_id: str = self.manifest["container_run_id"]
        runs = telemetry / "container_runs"
        (runs / self.run_id).mkdir(parents=True)
        self.manifest_path = runs / f"{self.run_id}.json"
        self.result_path = runs / self.run_id / "prep_result.json"
        self.manifest["paths"]["host"].update(
            telemetry_root=str(telemetry), prep_result=str(self.result_path)
        )
        self.pointer = telemetry / places.POINTER
        self.pointer.write_text(
            f"CONTAINER_RUN_META_JSON=/telemetry/x.json\nCONTAINER_RUN_META_JSON_HOST={self.manifest_path}\n"
        )
        self.write()

    def write(self) -> None:
        self.manifest_path.write_text(json.dumps(self.manifest))
        self.result_path.write_text(json.dumps(self.result))

    def read(self) -> run_record.RunRecord | None:
        return run_record.read(str(self.telemetry))

    def refusal(self) -> str:
        with pytest.raises(RecordError) as caught:
            self.read()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def container(self, **changes: Any) -> dict[str, Any]:
        return {
            "id": self.manifest["container_id"],
            "name": "sglang-dev",
            "running": True,
            "status": "running",
            "pid": os.getpid(),
            "started_at": "2026-11-23T09:15:00.1Z",
            **changes,
        }


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


def test_the_pointer_leads_to_manifest_and_result(records: Records) -> None:
    found = records.read()
    assert found is not None and found.run_id == records.run_id
    assert found.manifest == records.manifest and found.prep_result == records.result
    assert found.paths["telemetry_root"] == str(records.telemetry)
    assert found.metrics_ready is records.result["telemetry_probe"]["ok"]


def test_a_proof_of_another_server_is_none_of_this_preps(records: Records) -> None:
    records.result["telemetry_probe"]["server"] = "sha256:" + "0" * 64
    records.write()
    found = records.read()
    assert found is not None and found.metrics_ready is False


def test_a_proof_of_a_release_that_names_no_server_is_read_as_before(records: Records) -> None:
    del records.result["telemetry_probe"]["server"], records.result["run"]["server"]["identity"]
    records.write()
    found = records.read()
    assert found is not None and found.metrics_ready is True


def test_no_pointer_is_no_run(records: Records) -> None:
    records.pointer.unlink()
    assert records.read() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"X=1\n",
        b"CONTAINER_RUN_META_JSON_HOST=relative.json\n",
        b"CONTAINER_RUN_META_JSON_HOST=/a/passwd\n",
    ],
)
def test_a_pointer_that_names_no_run_is_refused(records: Records, content: bytes) -> None:
    records.pointer.write_bytes(content)
    assert str(records.pointer) in records.refusal()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"CONTAINER_RUN_META_JSON_HOST=/a\0b/container-run-20261123T091500Z-3fa9c1d2.json",
    ],
)
def test_a_pointer_that_is_no_text_is_refused(records: Records, content: bytes) -> None:
    records.pointer.write_bytes(content)
    records.refusal()


def test_a_missing_manifest_is_refused(records: Records) -> None:
    records.manifest_path.unlink()
    assert f"{records.manifest_path}, which does not exist" in records.refusal()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(records: Records, content: bytes) -> None:
    records.manifest_path.write_bytes(content)
    assert str(records.manifest_path) in records.refusal()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.pop("schema_version"), "schema_version"),
        (lambda manifest: manifest.update(schema_version="2"), "schema_version"),
        (
            lambda manifest: manifest.update(
                container_run_id="container-run-20261123T091500Z-00000000"
            ),
            "container_run_id",
        ),
        (lambda manifest: manifest.pop("container_id"), "container_id"),
        (lambda manifest: manifest.update(services=[]), "services.prometheus.url"),
        (lambda manifest: manifest["services"].update(prometheus={}), "services.prometheus.url"),
        (lambda manifest: manifest.update(paths=None), "paths.container"),
        (lambda manifest: manifest["paths"].pop("host"), "paths.host"),
        (
            lambda manifest: manifest["paths"]["host"].update(run_dir="relative"),
            "paths.host.run_dir",
        ),
        (lambda manifest: manifest["paths"]["host"].update(prep_result=7), "prep_result"),
        (
            lambda manifest: manifest["paths"]["host"].update(prep_result="relative.json"),
            "prep_result",
        ),
        (lambda manifest: manifest.update(started_at="~"), "started_at is not a time"),
    ],
)
def test_a_manifest_that_breaks_the_contract_is_refused(
    records: Records, change: Callable[[Any], Any], words: str
) -> None:
    change(records.manifest)
    records.write()
    assert words in records.refusal()


@pytest.mark.parametrize("key", ["null", "missing, as in release 1.0.0"])
def test_before_the_first_prep_there_is_no_result(records: Records, key: str) -> None:
    for side in records.manifest["paths"].values():
        side["prep_result"] = None
        if key != "null":
            del side["prep_result"]
    records.write()
    found = records.read()
    assert found is not None and found.prep_result is None and found.metrics_ready is False


def test_a_result_of_another_run_counts_for_nothing(records: Records) -> None:
    records.result["run"]["run_id"] = "container-run-20261123T091500Z-00000000"
    records.write()
    found = records.read()
    assert found is not None and found.prep_result is None and found.metrics_ready is False


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("telemetry_probe"),
        lambda r: r.update(stages=[]),
        lambda r: r["telemetry_probe"].update(ok="yes"),
    ],
)
def test_a_result_that_breaks_the_contract_is_refused(
    records: Records, change: Callable[[Any], Any]
) -> None:
    change(records.result)
    records.write()
    assert str(records.result_path) in records.refusal()


@pytest.mark.parametrize("name", ["pointer", "manifest_path", "result_path"])
def test_a_pipe_in_a_files_place_is_told_and_not_waited_for(records: Records, name: str) -> None:
    path: Path = getattr(records, name)
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is not a file" in records.refusal()


def test_what_a_pointer_names_is_told_in_one_line_that_prints(records: Records) -> None:
    records.pointer.write_text(
        f"CONTAINER_RUN_META_JSON_HOST=/\x1b[31m{'x' * 9999}/{records.run_id}.json\n"
    )
    assert records.refusal().isprintable() and len(records.refusal()) < 1500


def test_a_file_of_any_size_is_not_swallowed(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "_MAX_BYTES", 100)
    records.pointer.write_bytes(b"x" * 101)
    assert "larger than 100 bytes" in records.refusal()


# --- whether the run is the live one --------------------------------------------------------------


def why_not(records: Records, container: dict[str, Any] | None) -> str | None:
    records.write()
    found = records.read()
    assert found is not None
    return run_record.not_live_because(found, container)


def test_the_live_run_is_told_by_its_first_process(records: Records) -> None:
    records.manifest["pid1"] = processes.identity(os.getpid())
    assert why_not(records, records.container(started_at="2036-01-01T00:00:00Z")) is None, (
        "a clock that jumps does not deceive"
    )


def test_an_earlier_run_of_the_same_container_is_told(records: Records) -> None:
    identity = processes.identity(os.getpid())
    assert identity is not None
    records.manifest["pid1"] = {**identity, "start_ticks": identity["start_ticks"] - 1}
    assert "earlier run of this container" in str(why_not(records, records.container()))
    records.manifest["pid1"] = {**identity, "boot_id": "another"}
    assert "earlier run of this container" in str(why_not(records, records.container()))


def test_without_the_hosts_proc_the_times_decide(records: Records) -> None:
    records.manifest["started_at"] = "2026-11-23T09:15:00Z"
    assert why_not(records, records.container(pid=0)) is None
    assert "earlier run" in str(
        why_not(records, records.container(pid=0, started_at="2026-11-23T09:15:01.000Z"))
    )


def test_no_container_another_or_a_stopped_one(records: Records) -> None:
    assert "there is no container" in str(why_not(records, None))
    assert "is exited" in str(why_not(records, records.container(running=False, status="exited")))
    assert "earlier container" in str(why_not(records, records.container(id="f" * 64)))


def test_a_container_that_docker_says_nothing_of_is_not_called_missing(records: Records) -> None:
    found = run_record.describe(str(records.telemetry), None, "no daemon answers")
    assert found["live"] is found["metrics_ready"] is False
    assert found["run_id"] == records.run_id
    assert found["reason"] == "whether container sglang-dev runs is unknown: no daemon answers"


class Locks:
    """The locks of a tree, each held as long as it is in `with`."""

    def __init__(self, folder: Path) -> None:
        self.profiles = folder / "profiles"
        self._folder = self.profiles / places.LOCKS
        self._folder.mkdir(parents=True)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        with open(self._folder / f"{name}.lock", "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


@pytest.fixture
def locks(tmp_path: Path, records: Records) -> Locks:
    made = Locks(tmp_path)
    host = records.manifest["paths"]["host"]
    host.update(profiles_root=str(made.profiles), run_dir=str(records.result_path.parent))
    records.manifest["pid1"] = processes.identity(os.getpid())
    records.write()
    return made


HELD = {places.LOCK_PREP: "a prep", places.LOCK_SERVING: "a server", places.LOCK_SMOKE: "a smoke"}
# What keeps the run from being read, or makes it another one.
DAMAGES: dict[str, Callable[[Records], Any]] = {
    "no pointer": lambda records: records.pointer.unlink(),
    "an empty pointer": lambda records: records.pointer.write_text(""),
    "no manifest": lambda records: records.manifest_path.unlink(),
    "half a manifest": lambda records: records.manifest_path.write_text("{"),
    "another schema": lambda records: records.manifest_path.write_text('{"schema_version": "2"}'),
    "half a result": lambda records: records.result_path.write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("lock", HELD)
def test_where_the_record_cannot_be_read_the_locks_tell(
    records: Records, locks: Locks, damage: str, lock: str
) -> None:
    DAMAGES[damage](records)
    container = records.container(mounts={"/profiles": str(locks.profiles)})
    describe = run_record.describe
    assert describe(str(records.telemetry), container)["in_use"] == []
    with locks.held(lock):
        for status in ("running", "paused"):
            [told] = describe(str(records.telemetry), {**container, "status": status})["in_use"]
            assert told.startswith(HELD[lock]) and f"{lock}.lock is held" in told
        # Nothing runs in these, also where a process holds the lock.
        for nobody in ({**container, "status": "exited"}, {**container, "mounts": {}}, None):
            assert describe(str(records.telemetry), nobody)["in_use"] == []


# What the records of a live run can say, or lack, while something runs.
RECORDS: dict[str, Callable[[Path], Any]] = {
    "no record": lambda run: None,
    "an empty one": lambda run: write_all(run, ""),
    "no JSON": lambda run: write_all(run, "{"),
    "a list": lambda run: write_all(run, "[]"),
    "no state": lambda run: write_all(run, "{}"),
    "a number as its state": lambda run: write_all(run, '{"state": 7}'),
    "one that ended": lambda run: write_all(
        run, json.dumps({**validators.example("job"), "state": "done"})
    ),
    "a server that was stopped": lambda run: write_all(run, '{"state": "stopped"}'),
}


def write_all(run: Path, text: str) -> None:
    for name in ("job.json", "server.json"):
        (run / name).write_text(text)


def used(records: Records, locks: Locks, **changes: Any) -> list[str]:
    container = records.container(mounts={"/profiles": str(locks.profiles)}, **changes)
    found = run_record.describe(str(records.telemetry), container)
    assert found["live"], found["reason"]
    told: list[str] = found["in_use"]
    return told


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("lock", HELD)
def test_what_goes_on_in_a_live_run_is_told_by_its_lock_whatever_its_records_say(
    records: Records, locks: Locks, record: str, lock: str
) -> None:
    RECORDS[record](records.result_path.parent)
    assert used(records, locks) == []
    with locks.held(lock):
        [told] = used(records, locks)
        assert told.startswith(HELD[lock]) and "docker exec sglang-dev sgl-admin" in told
    assert used(records, locks) == [], "a lock that is free"


def test_a_prep_that_its_record_names_is_told_once(records: Records, locks: Locks) -> None:
    job = {**validators.example("job"), "state": "running"}
    (records.result_path.parent / "job.json").write_text(json.dumps(job))
    container = records.container(mounts={"/profiles": str(locks.profiles)})
    with locks.held(places.LOCK_PREP):
        found = run_record.describe(str(records.telemetry), container)
    assert found["prep"]["prep_id"] == job["prep_id"] and found["in_use"] == []
    assert run_record.describe(str(records.telemetry), container)["prep"] is None, "killed"


@pytest.mark.parametrize("root", ["/", "/nowhere", "/a\0b", "/\ud800"])
def test_locks_are_where_docker_mounts_them_and_not_where_a_record_says(
    records: Records, locks: Locks, root: str
) -> None:
    records.manifest["paths"]["host"]["profiles_root"] = root
    records.manifest_path.write_text(json.dumps(records.manifest))
    with locks.held(places.LOCK_SERVING):
        assert len(used(records, locks)) == 1
    assert used(records, locks) == []


def file_for_folder(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("")


# What lies in a lock's place, or keeps it from being read.
STRANGE: dict[str, Callable[[Path], Any]] = {
    "a pipe": lambda lock: os.mkfifo(lock),
    "a folder": lambda lock: lock.mkdir(),
    "a link": lambda lock: lock.symlink_to("/dev/null"),
    "a link that leads nowhere": lambda lock: lock.symlink_to("nowhere"),
    "a file for its folder": lambda lock: file_for_folder(lock.parent),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_lock_that_cannot_be_read_counts_as_held(
    records: Records, locks: Locks, strange: str
) -> None:
    STRANGE[strange](locks.profiles / places.LOCKS / f"{places.LOCK_SERVING}.lock")
    assert any(told.startswith(HELD[places.LOCK_SERVING]) for told in used(records, locks))


def test_a_lock_that_may_not_be_read_counts_as_held(
    records: Records, locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError("no")

    with locks.held(places.LOCK_PREP):
        pass
    monkeypatch.setattr(run_record.safe_tree, "open_file_at", refuse)
    assert run_record._holder(locks.profiles / places.LOCKS / "prep.lock") is not None


def test_a_lock_whose_file_was_removed_is_told_by_the_process_that_holds_it(
    records: Records, locks: Locks
) -> None:
    lock = locks.profiles / places.LOCKS / f"{places.LOCK_SERVING}.lock"
    with locks.held(places.LOCK_SERVING):
        lock.unlink()
        [told] = used(records, locks)
        assert told.startswith(HELD[places.LOCK_SERVING])
        # A container whose processes cannot be seen from here.
        assert used(records, locks, pid=0, started_at=records.manifest["started_at"]) == []
    assert used(records, locks) == []


def test_whoever_only_looks_at_a_lock_holds_nobody_up(
    records: Records, locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        stack.enter_context(locks.held(places.LOCK_PREP))
        monkeypatch.setattr(run_record.time, "sleep", lambda _: stack.close())
        assert used(records, locks) == []


@pytest.mark.parametrize(
    "container", [None, {"id": "f" * 64, "running": False, "status": "exited"}]
)
@pytest.mark.parametrize("status", ["running", "paused"])
def test_a_run_that_is_live_in_another_container_names_it(
    records: Records, container: dict[str, Any] | None, status: str
) -> None:
    there = {records.manifest["container_id"]: records.container(name="sglang-gpu7", status=status)}
    run = run_record.describe(str(records.telemetry), container)
    run_record.note_elsewhere(run, container, there.get)
    assert run["elsewhere"] == "sglang-gpu7" and run["live"] is False
    assert run["reason"] == f"{records.run_id} is live in container sglang-gpu7"


@pytest.mark.parametrize(
    "there",
    [
        None,
        {"name": "x", "status": "exited"},
        {"name": "x", "status": "created"},
        {"name": "x", "status": "dead"},
    ],
)
def test_a_run_whose_container_is_gone_or_over_is_nowhere(
    records: Records, there: dict[str, Any] | None
) -> None:
    run = run_record.describe(str(records.telemetry), None)
    run_record.note_elsewhere(run, None, lambda name: there)
    assert run["elsewhere"] is None and "there is no container" in run["reason"]
    for container in (records.container(), records.container(running=False, status="paused")):
        # The container of the record is the one that is asked about.
        run = run_record.describe(str(records.telemetry), container)
        run_record.note_elsewhere(run, container, lambda name: pytest.fail("looked elsewhere"))
        assert run["elsewhere"] is None


def test_the_pointer_is_removed_once(records: Records) -> None:
    run_record.remove_pointer(str(records.telemetry))
    assert not records.pointer.exists()
    run_record.remove_pointer(str(records.telemetry))
    with pytest.raises(RecordError, match="cannot be removed"):
        run_record.remove_pointer(str(records.telemetry / "none"))
