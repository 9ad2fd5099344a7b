"""Batch sizes of an MoE tuning are shared as they come, and add up: export and import of the stage
moe_tune.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.base.engine import Lookup
from sgl_admin.contract import stages
from sgl_admin.contract.exit_codes import EXIT_ARCHIVE, EXIT_NO_RESULT
from sgl_admin.moe import config_files
from sgl_admin.records import archive as archives
from sgl_admin.sglang import ENGINE
from sgl_admin.share import incoming
from sgl_admin.stages import moe_tune
from tests.unit.sharing import (
    ALL,
    KILLED,
    UNDISTURBED,
    Answer,
    Host,
    admin,
    as_before,
    content,
    disturbed,
    manifest,
    nothing_taken,
    on_a_gpu,
    replaced,
    resigned,
    tree,
    wipe,
)
from tests.unit.test_gpu_stages import (
    NEXT,
    UNKNOWN,
    World,
    configuration,
    file_name,
    measured,
    port,
    world,
)

__all__ = ["port", "world"]

FILE = f"moe_configs/configs/triton_3_6_0/{file_name()}"
DOWN = FILE.replace(".json", "_down.json")
TUNED, READ = f"moe_configs/.tuned/{file_name()}", f"moe_configs/.tuned/read-{file_name()}"
BUILT_IN = {32: configuration(32, 7), 64: configuration(64, 7)}


class MoeHost(Host):
    """A host with a GPU and a model with experts; its tuning is done by hand, as the stage does
    it.
    """

    file: Path

    def tune(self, *sizes: int, tuned: int = 1) -> None:
        """Find a configuration for each of these batch sizes, which tells in which tuning it was
        found.
        """
        context = self.prep().context
        shape = moe_tune._expected(context)
        for size in sizes:
            config_files.add(
                moe_tune._path(context, shape),
                moe_tune._tuning(context, shape),
                size,
                configuration(size, tuned),
            )

    def finish_tuning(self, *sizes: int, tuned: int = 1) -> None:
        """Also have a server say that it reads them, and vouch for them."""
        self.tune(*sizes, tuned=tuned)
        context = self.prep().context
        shape = moe_tune._expected(context)
        files.write_json(
            moe_tune._proof(context, shape),
            {"schema_version": "1", **moe_tune._what_is_read(context, shape)},
        )
        os.utime(moe_tune._path(context, shape), ns=(10**18, 10**18 + 5))
        path = moe_tune._path(context, shape)
        config_files.filled(path, moe_tune._tuning(context, shape), moe_tune._largest(context))
        self.record("moe_tune").write(moe_tune._files(path))

    def give(self, *words: str) -> bytes:
        assert self.share("export", self.file, *words).code == 0
        return self.file.read_bytes()

    def take(self, archive: bytes, *words: str) -> Answer:
        return self.send(self.file, archive, *words)

    def refuses(self, archive: bytes, *words: str) -> str:
        """Holds this host to take nothing; returns why."""
        with nothing_taken():
            answer = self.take(archive, *words)
        status, why = answer.status("moe_tune")
        assert (
            (answer.code, status) == (EXIT_ARCHIVE, "refused")
            and why is not None
            and why.isprintable()
        )
        return why

    def tunings(self) -> dict[int, int]:
        """In which tuning each batch size of the file was found."""
        return {
            size: config["GROUP_SIZE_M"]
            for size, config in config_files.read(paths.PROFILES / FILE).items()
        }

    def sizes(self) -> list[int]:
        """For which batch sizes the record says that they were tuned here."""
        found: list[int] = (files.read_json(paths.PROFILES / TUNED) or {"batch_sizes": []})[
            "batch_sizes"
        ]
        return found

    def plan(self, *words: str) -> tuple[str, str | None]:
        """What a dry run says of the stage."""
        found = admin(
            "caches", "ensure", *self.words, *words, "--dry-run", "--json"
        ).out.rpartition("\nRESULT_STATUS")[0]
        stage = json.loads(found)["stages"]["moe_tune"]
        return stage["status"], stage["reason"]


@pytest.fixture
def host(
    live_run: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MoeHost:
    on_a_gpu(monkeypatch)
    (model_folder / "config.json").write_text(json.dumps(NEXT))
    made = MoeHost(model_folder, "--moe", "ensure", "--moe-batch-sizes=16,64")
    made.file = tmp_path / "moe.tar"
    return made


def test_after_a_finished_tuning_is_taken_nothing_is_left_to_do(host: MoeHost) -> None:
    host.finish_tuning(16, 64)
    assert host.plan()[0] == "noop"
    before, archive = content(tree()), host.give()
    part = manifest(archive)["stages"]["moe_tune"]
    assert part["finished"] is True and [entry["path"] for entry in part["files"]] == sorted(
        [FILE, DOWN, TUNED, READ]
    )
    wipe()
    answer = host.take(archive)
    assert answer.code == 0 and answer.status("moe_tune") == ("imported", None)
    assert content(tree()) == before and host.plan() == ("noop", "valid_signature")
    assert (paths.PROFILES / FILE).stat().st_mtime_ns == 10**18 + 5, "a server's caches are by it"
    assert (
        host.give() != archive and manifest(host.give())["stages"]["moe_tune"]["finished"] is True
    )
    assert host.take(archive).status("moe_tune")[0] == "standing"


def test_both_projections_rows_and_what_was_measured_are_shared(host: MoeHost) -> None:
    """Also where this host has rows of its own already."""

    def add(size: int, stages: int) -> None:
        context = host.prep().context
        shape = moe_tune._expected(context)
        up = {**configuration(size), "num_stages": stages}
        config_files.add(
            moe_tune._path(context, shape),
            moe_tune._tuning(context, shape),
            size,
            up,
            {**up, "USE_TMA": True},
            measured(size),
        )

    path = paths.PROFILES / FILE
    add(16, 3)
    host.finish_tuning(64)
    archive, rows = host.give(), config_files.rows(path)
    wipe()
    add(128, 4)
    assert host.take(archive).code == 0
    taken = config_files.rows(path)
    assert {size: taken[size] for size in rows} == rows and rows[16].by_tma and taken[128].by_tma
    tuning = moe_tune._tuning(host.prep().context, moe_tune._expected(host.prep().context))
    assert config_files.gains(path, tuning) == {16: measured(16), 128: measured(128)}
    assert config_files.filled_to(path, tuning) == 16384


def test_all_stages_of_a_model_with_experts_are_one_archive(host: MoeHost) -> None:
    host.words = tuple(word for word in host.words if word not in ("--moe", "ensure"))
    host.finish_tuning(16, 64)
    for stage, found in ALL.items():
        host.finish(stage, found)
    before, archive = content(tree()), host.give()
    wipe()
    answer = host.take(archive)
    assert answer.code == 0 and {
        name: answer.status(name) for name in answer.document["stages"]
    } == dict.fromkeys(stages.SHARED, ("imported", None))
    ensured = host.ensured()
    assert content(tree()) == before and {ensured[name] for name in stages.SHARED} == {"noop"}


# --- as they come


@pytest.mark.parametrize("alive", [True, False])
def test_what_is_tuned_so_far_is_shared_while_the_tuning_goes_on(
    host: MoeHost, alive: bool
) -> None:
    host.tune(16)
    marker = paths.IN_PROGRESS / "moe_tune.json"
    files.write_json(marker, {"stage": "moe_tune", "owner_pid": os.getpid(), "started_at": "x"})
    lock = locks.try_lock("moe_tune") if alive else None
    archive = host.give()
    if lock is not None:
        os.close(lock)
    part = manifest(archive)["stages"]["moe_tune"]
    assert part["finished"] is False and [entry["path"] for entry in part["files"]] == sorted(
        [FILE, DOWN, TUNED]
    )
    wipe()
    answer = host.take(archive)
    assert answer.code == 0 and answer.status("moe_tune") == ("imported", "what is finished so far")
    assert (host.tunings(), host.sizes()) == ({16: 1}, [16]) and not (
        paths.PROFILES / READ
    ).exists()
    assert not list((paths.PROFILES / "moe_configs").glob(".signatures/*.json")), (
        "nothing vouches for what is not all"
    )
    assert marker.exists(), "the tuning that died here is still to be finished"
    marker.unlink()
    assert host.plan()[0] == "would_run"


@pytest.mark.parametrize("finished", [True, False])
def test_a_killed_tuning_keeps_its_work_until_another_hosts_takes_its_place(
    host: MoeHost, finished: bool
) -> None:
    host.finish_tuning(16, 64) if finished else host.tune(16)
    archive = host.give()
    wipe()
    context = host.prep().context
    journal = (
        config_files.work(moe_tune._tuning(context, moe_tune._expected(context))) / "journal.jsonl"
    )
    journal.parent.mkdir(parents=True)
    journal.touch()
    host.take(archive)
    assert journal.exists() is not finished and journal.parent.exists() is not finished


def test_a_tuning_that_is_all_there_but_in_progress_is_not_finished(host: MoeHost) -> None:
    host.finish_tuning(16, 64)
    (paths.IN_PROGRESS / "moe_tune.json").write_text("{}")
    assert manifest(host.give())["stages"]["moe_tune"]["finished"] is False
    (paths.IN_PROGRESS / "moe_tune.json").unlink()
    assert manifest(host.give())["stages"]["moe_tune"]["finished"] is True
    assert (
        manifest(host.give("--moe-batch-sizes=16,64,128"))["stages"]["moe_tune"]["finished"]
        is False
    ), "not of what is asked for"
    (paths.PROFILES / READ).unlink()
    assert manifest(host.give())["stages"]["moe_tune"]["finished"] is False, (
        "no server has said that it reads them"
    )
    assert manifest(host.give("--moe-fusion=skip"))["stages"]["moe_tune"]["finished"] is True, (
        "none is to say it"
    )


def test_nothing_is_packed_before_the_first_batch_size_is_tuned(host: MoeHost) -> None:
    answer = host.share("export", host.file)
    assert answer.code == EXIT_NO_RESULT and "moe_tune: nothing of it is finished" in answer.error
    files.write_text(paths.PROFILES / FILE, json.dumps(BUILT_IN))
    assert host.share("export", host.file).code == EXIT_NO_RESULT, (
        "what came with SGLang is not this host's work"
    )


def test_a_batch_size_that_is_added_while_it_is_packed_is_in_the_archive(
    host: MoeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.tune(16)
    real, tries = archives.write, []

    def write(*arguments: Any) -> None:
        tries.append(0)
        if len(tries) == 1:
            host.tune(64)
        real(*arguments)

    monkeypatch.setattr(archives, "write", write)
    archive = host.give()
    wipe()
    assert host.take(archive).code == 0 and len(tries) == 2 and host.sizes() == [16, 64]


def test_a_batch_size_of_which_the_record_tells_not_yet_is_not_taken(host: MoeHost) -> None:
    """The tuner writes the file first: what lies there then is as good as not found."""
    host.tune(16)
    record = (paths.PROFILES / TUNED).read_bytes()
    host.tune(64)
    (paths.PROFILES / TUNED).write_bytes(record)
    archive = host.give()
    wipe()
    host.tune(32, tuned=2)
    assert host.take(archive).code == 0 and (host.tunings(), host.sizes()) == (
        {16: 1, 32: 2},
        [16, 32],
    )


# --- they add up


def test_own_batch_sizes_stay_and_others_come_to_them(host: MoeHost) -> None:
    host.finish_tuning(16, 64, tuned=2)
    archive = host.give()
    wipe()
    host.tune(64, 128, tuned=1)
    own = (paths.PROFILES / FILE).stat().st_mtime_ns
    assert host.take(archive).code == 0
    assert (host.tunings(), host.sizes()) == ({16: 2, 64: 1, 128: 1}, [16, 64, 128])
    assert not (paths.PROFILES / READ).exists(), "no server has read a file with these three"
    assert (paths.PROFILES / FILE).stat().st_mtime_ns >= own, "it is none of the other host's"
    assert host.record("moe_tune").problem([]) is None
    assert host.plan() == ("would_run", "no server has said yet that it reads the configurations")
    assert host.plan("--moe-fusion", "skip")[0] == "noop"


def test_a_proof_of_the_same_batch_sizes_is_taken_and_another_one_not(host: MoeHost) -> None:
    host.finish_tuning(16, 64, tuned=2)
    archive = host.give()
    wipe()
    host.tune(64, tuned=1)
    answer = host.take(archive)
    assert answer.status("moe_tune") == ("imported", None) and host.tunings() == {16: 2, 64: 1}
    assert host.plan()[0] == "noop", "a server that reads the one reads the other"
    wipe()
    document = {
        "schema_version": "1",
        "tuning": manifest(archive)["stages"]["moe_tune"]["signature"],
    }
    for sizes in ([16], [16, 64, 128], None, [64, 16]):
        said = json.dumps({**document, "batch_sizes": sizes}).encode()
        assert host.take(replaced(archive, "moe_tune", READ, said)).code == 0
        assert not (paths.PROFILES / READ).exists() and host.plan()[0] == "would_run"
        wipe()
    other = {**document, "batch_sizes": [16, 64], "tuning": {**document["tuning"], "tp": 2}}
    answer = host.take(replaced(archive, "moe_tune", READ, json.dumps(other).encode()))
    assert not (paths.PROFILES / READ).exists()
    assert answer.status("moe_tune") == (
        "imported",
        "something is still to be done: no server has said yet that it reads the configurations",
    )


def test_two_hosts_that_tuned_one_half_each_come_to_the_same(host: MoeHost) -> None:
    host.tune(16, tuned=1)
    one = host.give()
    wipe()
    host.tune(64, tuned=2)
    other = host.give()
    assert host.take(one).code == 0
    first = (paths.PROFILES / FILE).read_bytes(), (paths.PROFILES / TUNED).read_bytes()
    wipe()
    assert host.take(one).code == 0 and host.take(other).code == 0
    found = (paths.PROFILES / FILE).read_bytes(), (paths.PROFILES / TUNED).read_bytes()
    assert (
        found[0] == first[0]
        and json.loads(found[1]) == json.loads(first[1])
        and host.tunings() == {16: 1, 64: 2}
    )
    assert (
        host.take(one).code == host.take(other).code == 0
        and (paths.PROFILES / FILE).read_bytes() == found[0]
    )


def built_in() -> None:
    """Lay there what came with SGLang, as `place_built_in` does."""
    files.write_text(paths.PROFILES / FILE, json.dumps(BUILT_IN))
    files.write_json(
        paths.PROFILES / "moe_configs/.built_in.json",
        {
            "schema_version": "1",
            "sglang": "0.5.17",
            "files": [str(Path(FILE).relative_to("moe_configs/configs"))],
        },
    )


@pytest.mark.parametrize("here", ["nothing", "built in", "own"])
def test_what_came_with_sglang_stays_in_the_file(host: MoeHost, here: str) -> None:
    built_in()
    host.finish_tuning(16, 64)
    assert host.tunings() == {16: 1, 32: 7, 64: 1} and host.plan()[0] == "noop"
    archive, found = host.give(), (paths.PROFILES / FILE).read_bytes()
    wipe()
    if here != "nothing":
        built_in()
    if here == "own":
        host.tune(64)
    assert host.take(archive).status("moe_tune") == ("imported", None)
    assert (
        (paths.PROFILES / FILE).read_bytes() == found
        and host.sizes() == [16, 64]
        and host.plan()[0] == "noop"
    )
    record = files.read_json(paths.PROFILES / "moe_configs/.built_in.json") or {"files": []}
    assert record["files"] == [], "it is this host's own file from now on"


def test_a_tuning_of_fewer_configurations_is_another_one(host: MoeHost) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    assert host.refuses(archive, "--moe-sample", "5").startswith(
        "its signature differs in configurations: made for "
    )
    host.words = (*host.words, "--moe-sample", "5")
    host.tune(16, tuned=3)
    host.words = host.words[:-2]
    assert host.take(archive).code == 0 and host.tunings() == {
        16: 1,
        64: 1,
    }, "of this tuning there was none"


# --- what a server asked for


@pytest.fixture
def asked(host: MoeHost, model_folder: Path) -> MoeHost:
    """A host whose model is of an unknown architecture: its server asked for 513 experts,
    its config tells 512.
    """
    (model_folder / "config.json").write_text(json.dumps(UNKNOWN))
    config_files.remember(moe_tune._settings(host.prep().context), lookup())
    host.finish_tuning(16, 64)
    return host


def lookup(experts: int = 513) -> Lookup:
    found = ENGINE.moe.lookup(file_name(experts))
    assert found is not None
    return found


def remembered(host: MoeHost) -> Lookup | None:
    return config_files.remembered(moe_tune._settings(host.prep().context))


def test_what_a_server_of_the_same_settings_asked_for_is_learned(asked: MoeHost) -> None:
    key = manifest(asked.give())["stages"]["moe_tune"]["key"]
    archive = asked.give()
    part = manifest(archive)["stages"]["moe_tune"]
    assert part["signature"]["E"] == 513 and part["hints"]["lookup"] == file_name(device="*")
    wipe()
    assert asked.decision("moe_tune").signature["E"] == 512  # type: ignore[index]
    assert asked.prep().to_json()["stages"]["moe_tune"]["key"] == key, "it is found all the same"
    assert asked.take(archive).status("moe_tune") == ("imported", None)
    assert asked.plan()[0] == "noop" and remembered(asked) == lookup()
    assert asked.record("moe_tune").signature["E"] == 513


@pytest.mark.parametrize(
    "hints",
    [
        {},
        {"settings": "0" * 16},
        {"lookup": None},
        {"lookup": 5},
        {"lookup": "../../x.json"},
        {"lookup": file_name(512, "*")},
        {"lookup": file_name(511, "*")},
        {"lookup": file_name(device="*").replace("N=512", "N=513")},
        {"lookup": file_name(device="*").replace(".json", "_down.json")},
        {"settings": None},
        {"settings": ["x"]},
        {"settings": "../../x"},
    ],
)
def test_hints_of_other_settings_or_of_another_form_teach_nothing(
    asked: MoeHost, hints: dict[str, Any]
) -> None:
    archive = asked.give()
    document = manifest(archive)
    part = document["stages"]["moe_tune"]
    part["hints"] = {**part["hints"], **hints} if hints else {}
    wipe()
    assert asked.refuses(resigned(archive, document)).startswith(
        "its signature differs in E: made for 513, and this host wants 512; "
    )
    assert remembered(asked) is None


def test_what_this_hosts_own_server_asked_for_counts_more(asked: MoeHost) -> None:
    archive = asked.give()
    wipe()
    config_files.remember(moe_tune._settings(asked.prep().context), lookup(514))
    assert asked.refuses(archive).startswith(
        "its signature differs in E: made for 513, and this host wants 514; "
    )
    assert remembered(asked) == lookup(514)


def test_a_tuning_that_fits_other_settings_is_taken_and_teaches_nothing(host: MoeHost) -> None:
    config_files.remember(moe_tune._settings(host.prep().context), lookup())
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    host.words = (*host.words, "--server-arg=--kv-cache-dtype", "--server-arg=fp8_e5m2")
    assert host.take(archive).status("moe_tune") == ("imported", None), "the kernel is the same"
    assert remembered(host) is None and not list(
        (paths.PROFILES / "moe_configs/.tuned").glob("lookup-*")
    )
    assert manifest(host.give())["stages"]["moe_tune"]["hints"] == {}


def test_more_in_the_hints_is_not_kept(asked: MoeHost) -> None:
    archive = asked.give()
    document = manifest(archive)
    document["stages"]["moe_tune"]["hints"]["more"] = {"x": "\ud800"}
    wipe()
    assert asked.take(resigned(archive, document)).code == 0 and remembered(asked) == lookup()
    for path in (paths.PROFILES / "moe_configs").rglob("*.json"):
        assert b"more" not in path.read_bytes()


# --- what is refused


def test_each_field_of_the_signature_counts(host: MoeHost) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    signature = manifest(archive)["stages"]["moe_tune"]["signature"]
    assert {
        "E",
        "N",
        "triton",
        "dtype",
        "block_shape",
        "tp",
        "device_name",
        "cpu_arch",
        "configurations",
    } <= set(signature)
    for field, value in signature.items():
        document = manifest(archive)
        document["stages"]["moe_tune"]["signature"][field] = f"{value}0"
        name = {"cpu_arch": "CPU architecture", "device_name": "GPU"}.get(field, field)
        assert host.refuses(resigned(archive, document)).startswith(
            f"its signature differs in {name}: made for "
        )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"moe_configs/configs/triton_3_6_0/{file_name(512)}", "is no file of this tuning"),
        (f"moe_configs/configs/triton_3_5_1/{file_name()}", "is no file of this tuning"),
        ("moe_configs/configs/x", "is no file of this tuning"),
        ("moe_configs/.built_in.json", "is no file of this tuning"),
        ("moe_configs/.tuned/lookup-0123456789abcdef.json", "is no file of this tuning"),
        ("moe_configs/.tuned/\x1b[31m", "moe_configs/.tuned/?[31m is no file of this tuning"),
        ("triton/x", "triton is not a folder of this stage (moe_configs)"),
    ],
)
def test_a_file_that_is_not_of_this_tuning_is_refused(host: MoeHost, name: str, why: str) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    host.tune(128)
    assert why in host.refuses(replaced(archive, "moe_tune", name, b"{}"))


@pytest.mark.parametrize("name", [FILE, TUNED])
def test_a_tuning_without_one_of_its_files_is_refused(host: MoeHost, name: str) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    document = manifest(archive)
    part = document["stages"]["moe_tune"]
    part["files"] = [entry for entry in part["files"] if entry["path"] != name]
    wipe()
    assert host.refuses(resigned(archive, document)) == f"{name} is not among its files"


@pytest.mark.parametrize("name", [FILE, TUNED, READ])
def test_files_that_hold_something_else_vouch_for_nothing(host: MoeHost, name: str) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    for torn in (
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"16": 5}',
        b'{"batch_sizes": {"16": 1}}',
    ):
        wipe()
        host.tune(64, tuned=3)
        answer = host.take(replaced(archive, "moe_tune", name, torn))
        assert answer.code == 0 and "something is still to be done: " in str(
            answer.status("moe_tune")[1]
        )
        assert host.plan()[0] == "would_run" and not list(paths.INCOMING.iterdir())
        assert host.tunings() == ({16: 1, 64: 3} if name == READ else {64: 3}), (
            "this host's own stands"
        )
        wipe()
        assert host.take(replaced(archive, "moe_tune", name, torn)).code == 0
        assert host.plan()[0] == "would_run" and host.tunings() == (
            {16: 1, 64: 1} if name == READ else {}
        )
        assert name == READ or not (paths.PROFILES / FILE).exists()


# --- killed at any moment


def put(host: MoeHost, archive: bytes) -> tuple[str, ...]:
    """Have the archive lie where a command takes it from; returns that command."""
    host.file.write_bytes(archive)
    return ("caches", "import", str(host.file), *host.words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.long) for how in ("raises", "full"))]
)
@pytest.mark.parametrize("own", [(), (64,)])
def test_wherever_an_import_ends_the_next_command_finds_all_or_nothing_of_it(
    asked: MoeHost, how: str, own: tuple[int, ...]
) -> None:
    host, archive = asked, asked.give()
    wipe()
    if own:
        config_files.remember(moe_tune._settings(host.prep().context), lookup())
        host.tune(*own, tuned=3)
    old, words = tree(), put(host, archive)
    with as_before() as restore:
        assert admin(*words).code == 0 and host.plan()[0] == "noop"
        new, seen = timeless(), set()
        for number in range(1, 500):
            restore()
            code, said = disturbed(number, how, *words)
            if code == UNDISTURBED:
                break
            assert code == KILLED if how != "full" else code in (0, EXIT_NO_RESULT), (number, said)
            if number % 2:
                assert admin("caches", "ensure", *host.words, "--detach", "--standing").code == 0
            else:
                assert host.take(b"").code == EXIT_ARCHIVE
                put(host, archive)
            assert tree() == old or timeless() == new, number
            seen.add(tree() == old)
    assert number > 60 and seen == {True, False}


def timeless() -> dict[str, Any]:
    """The caches' content, without when this host's own file was put together, which its record
    tells too.
    """
    found: dict[str, Any] = {
        name: thing._replace(mtime_ns=0) for name, thing in content(tree()).items()
    }
    for name in [name for name in found if "/.signatures/" in name]:
        del (record := json.loads(found[name].content))["summary"]["latest_mtime_iso"]
        for digest in record["digests"].values():
            del digest["mtime_ns"]
        found[name] = record
    return found


def test_an_import_that_was_killed_is_finished_with_what_it_learned(
    asked: MoeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = asked.give()
    wipe()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(incoming, "_place", lambda folder: 1 / 0)
        asked.take(archive)
    assert remembered(asked) is None and not (paths.PROFILES / FILE).exists(), "nothing before all"
    assert asked.take(b"").code == EXIT_ARCHIVE
    assert remembered(asked) == lookup() and asked.plan()[0] == "noop"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda part: part.update(hints={"settings": 5, "lookup": 5}),
        lambda part: part.update(hints={"lookup": file_name()}),
        lambda part: part.update(
            files=[entry for entry in part["files"] if "/configs/" not in entry["path"]]
        ),
        lambda part: part.update(files=[{**part["files"][0], "path": "moe_configs/x"}]),
    ],
)
def test_a_commit_record_of_another_form_ends_in_nothing(
    host: MoeHost, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, Any]], None]
) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(incoming, "_place", lambda folder: 1 / 0)
        host.take(archive)
    [record] = paths.INCOMING.glob("*/commit.json")
    document = json.loads(record.read_bytes())
    spoil(document["stages"]["moe_tune"])
    record.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    assert host.take(b"").code == EXIT_ARCHIVE and not list(paths.INCOMING.iterdir())


def test_temporary_files_of_a_killed_import_are_removed(
    host: MoeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.finish_tuning(16, 64)
    archive = host.give()
    wipe()
    folders = ("moe_configs/.signatures", "moe_configs/.tuned", str(Path(FILE).parent))
    left = [paths.PROFILES / folder / ".x.json.abc.tmp" for folder in folders]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert host.take(archive).code == 0 and not any(path.exists() for path in left)


# --- with real preps


@pytest.mark.slow
def test_a_host_takes_what_another_one_tuned_and_starts_no_server(
    world: World, tmp_path: Path
) -> None:
    world.config(UNKNOWN)
    words = (
        "--model",
        str(world.model),
        "--probe",
        "never",
        "--port",
        str(world.port),
        "--moe-batch-sizes=16,64",
    )
    host = MoeHost(world.model, *words[2:])
    host.file = tmp_path / "caches.tar"
    world.execute("--moe-batch-sizes=16,64")
    servers, archive = len(world.starts()), host.give()
    assert {
        name: part["finished"] for name, part in manifest(archive)["stages"].items()
    } == dict.fromkeys(stages.SHARED, True)
    wipe()
    answer = host.take(archive)
    assert answer.code == 0 and {answer.status(name) for name in answer.document["stages"]} == {
        ("imported", None)
    }
    result, exit_code = world.execute("--moe-batch-sizes=16,64")
    assert exit_code == 0 and {stage["status"] for stage in result["stages"].values()} == {"noop"}
    assert len(world.starts()) == servers and len(world.tunings) == 1
    # One size more is tuned here, and the file with all of them is read by a server.
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16,64,128")
    assert result["stages"]["moe_tune"]["artifacts"]["new_batch_sizes"] == [
        128
    ] and world.tuned_sizes()[1:] == [[128]]
    assert result["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is True


@pytest.mark.slow
def test_a_tuning_shares_each_batch_size_while_it_goes_on(world: World, tmp_path: Path) -> None:
    host = MoeHost(
        world.model, "--moe", "ensure", "--moe-batch-sizes=16,64", "--port", str(world.port)
    )
    host.file = tmp_path / "caches.tar"
    given: dict[int, bytes | int] = {}

    def at(size: int) -> None:
        given[size] = host.give() if given else host.share("export", host.file).code

    world.at = at
    world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    assert given[16] == EXIT_NO_RESULT, "nothing was tuned yet"
    archive = given[64]
    assert (
        isinstance(archive, bytes) and manifest(archive)["stages"]["moe_tune"]["finished"] is False
    )
    wipe()
    assert host.take(archive).status("moe_tune") == ("imported", "what is finished so far")
    world.at = lambda size: None
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    assert (
        world.tuned_sizes() == [[16, 64], [64]] and result["stages"]["moe_tune"]["status"] == "ok"
    )
