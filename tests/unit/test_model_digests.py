"""Digests of a model: what was read is not read again, what differs is named, and no record makes a
wrong model a verified one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_digests import (
    MEMO,
    RECORD,
    quick,
    verify,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_staging import (
    read_source,
    survey,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.model_folder import INDEX, flip, make_model

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_model(tmp_path / "model", SHARDS, 50_000)
    return tmp_path / "model"


@pytest.fixture
def recorded(path: Path) -> Path:
    assert verify(str(path), full=True).wrote_record
    return path


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each core reads a file."""
    monkeypatch.setattr(model_digests, "_MOST_JOBS", 1)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        verify(str(path), **options)
    text = str(caught.value)
    assert "\n" not in text and ": " in text
    return text


def size_of(path: Path) -> int:
    return sum(
        file.stat().st_size for file in path.iterdir() if file.name not in model_digests.OURS
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shard(path: Path, number: int = 1) -> Path:
    return path / f"model-0000{number}-of-0000{SHARDS}.safetensors"


# --- records --------------------------------------------------------------------------------------


def test_without_a_record_only_a_full_reading_makes_one(path: Path) -> None:
    found = verify(str(path))
    assert not found.recorded and not found.verified and found.bytes_read == 0
    assert sorted(os.listdir(path)) == [
        "config.json",
        *(shard(path, n).name for n in range(1, 5)),
        INDEX,
        "tokenizer.json",
    ]
    found = verify(str(path), full=True)
    assert (
        found.wrote_record
        and found.recorded
        and found.verified
        and found.bytes_read == size_of(path)
    )
    record = json.loads((path / RECORD).read_bytes())
    assert record["schema_version"] == "1" and record["source"] == {"kind": "first use"}
    wanted = {
        file.name: {"sha256": sha256(file), "size": file.stat().st_size}
        for file in path.iterdir()
        if file.name not in (RECORD, MEMO)
    }
    assert record["files"] == wanted


def test_what_was_read_is_not_read_again(recorded: Path) -> None:
    assert quick(str(recorded)).verified
    assert verify(str(recorded)).bytes_read == 0
    os.utime(shard(recorded))
    assert quick(str(recorded)).unverified == [shard(recorded).name]
    found = verify(str(recorded))
    assert found.verified and found.bytes_read == shard(recorded).stat().st_size


def test_quick_reads_no_weights(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "sha256", None)
    assert quick(str(recorded)).verified


def test_a_copy_is_not_vouched_for(recorded: Path, tmp_path: Path) -> None:
    """The memo travels with a copy that keeps the times, but the inodes are others."""
    shutil.copytree(recorded, tmp_path / "copy", copy_function=shutil.copy2)
    found = quick(str(tmp_path / "copy"))
    assert (
        found.recorded
        and not found.verified
        and found.sound
        and len(found.unverified) == found.files
    )


def test_a_flipped_byte_is_found_and_named(recorded: Path) -> None:
    expected = sha256(shard(recorded, 3))
    flip(shard(recorded, 3))
    text = refused(recorded)
    assert shard(recorded, 3).name in text and shard(recorded, 2).name not in text
    assert (
        expected[:12] in text
        and sha256(shard(recorded, 3))[:12] in text
        and "only these are copied" in text
    )
    assert quick(str(recorded)).damaged == [shard(recorded, 3).name]
    # It is known by now: nothing is read to say so again.
    shard(recorded, 3).chmod(0o664)
    assert refused(recorded) == text


def test_only_a_full_reading_finds_what_a_bad_disk_does(recorded: Path) -> None:
    flip(shard(recorded, 2), keep_time=True)
    assert verify(str(recorded)).verified
    assert shard(recorded, 2).name in refused(recorded, full=True)
    assert not quick(str(recorded)).verified


def test_missing_and_cut_files_are_named_without_reading(recorded: Path) -> None:
    shard(recorded, 1).unlink()
    os.truncate(shard(recorded, 2), 100)
    (recorded / "tokenizer.json").unlink()
    os.utime(shard(recorded, 3))
    found = quick(str(recorded))
    assert found.missing == [shard(recorded, 1).name, "tokenizer.json"] and found.size_changed == {
        shard(recorded, 2).name: 100
    }
    text = refused(recorded)
    assert (
        "3 of 7 files" in text and "tokenizer.json (missing)" in text and "100 bytes, not" in text
    )
    assert quick(str(recorded)).unverified == [shard(recorded, 3).name]


def test_a_shard_that_the_record_leaves_out_is_not_verified(recorded: Path) -> None:
    record = json.loads((recorded / RECORD).read_bytes())
    del record["files"][shard(recorded).name]
    (recorded / RECORD).write_text(json.dumps(record))
    found = verify(str(recorded))
    assert found.unrecorded == [shard(recorded).name] and not found.verified
    assert verify(str(recorded), full=True).verified


def test_an_index_that_names_a_shard_too_many_is_found(recorded: Path) -> None:
    index = json.loads((recorded / INDEX).read_bytes())
    index["weight_map"]["more"] = "model-00009-of-00009.safetensors"
    (recorded / INDEX).write_text(json.dumps(index))
    assert "model-00009-of-00009.safetensors" in quick(str(recorded)).missing


def test_hub_metadata_serves_where_there_is_no_record(path: Path) -> None:
    folder = path / model_digests.HUB_METADATA
    folder.mkdir(parents=True)
    for file in path.iterdir():
        if file.is_file():
            data = file.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            etag = sha256(file) if file.suffix == ".safetensors" else git
            (folder / f"{file.name}.metadata").write_text(f"{'c' * 40}\n{etag}\n1760000000.5\n")
    assert quick(str(path)).recorded and not quick(str(path)).verified
    assert verify(str(path)).verified and quick(str(path)).verified
    assert not (path / RECORD).exists()
    (path / "tokenizer.json").write_text("{}")
    assert "git_sha1" in refused(path)
    (path / "tokenizer.json").unlink()
    assert verify(str(path)).verified, "a file that no server needs may be removed"
    flip(shard(path))
    assert shard(path).name in refused(path)


def test_the_hubs_cache_tells_the_digests_by_its_links(path: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / ("c" * 40), tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in path.iterdir():
        blob = blobs / sha256(file)
        file.rename(blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    assert verify(str(snapshot)).verified
    flip(blobs / sha256(snapshot / "tokenizer.json"))
    assert "tokenizer.json" in refused(snapshot)


def test_a_link_of_the_hubs_cache_that_vanishes_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"a.json": "../../blobs/" + "a" * 64, "b.json": "../../blobs/" + "b" * 40}
    for name, target in {**names, "c.json": "../" + "c" * 64, "d.json": "blobs/d"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "e.json").write_text("{}")
    assert model_digests.read_record(str(tmp_path)).files.keys() == names.keys()
    readlink = os.readlink
    for gone in names:

        def late(path: str, gone: str = gone) -> str:
            if os.path.basename(path) == gone:
                raise FileNotFoundError(path)
            return readlink(path)

        monkeypatch.setattr(os, "readlink", late)
        known = model_digests.read_record(str(tmp_path)).files
        assert known.keys() == names.keys() - {gone}


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_at_a_time")
def test_slices_come_to_the_end_and_read_nothing_twice(path: Path) -> None:
    reads = []
    for _ in range(20):
        found = verify(str(path), full=True, budget_s=0)
        reads.append(found.bytes_read)
        if found.done:
            break
        assert not found.verified and found.bytes_done == sum(reads)
    assert (
        found.done and found.verified and sum(reads) == size_of(path) and len(reads) == SHARDS + 3
    )


@pytest.mark.usefixtures("one_at_a_time")
def test_a_full_reading_after_a_quick_one_reads_all(recorded: Path) -> None:
    verify(str(recorded), full=True, budget_s=0)
    verify(str(recorded))
    assert verify(str(recorded), full=True).bytes_read == size_of(recorded)


@pytest.mark.usefixtures("one_at_a_time")
def test_progress_is_told_and_goes_on_from_what_was_read(path: Path, tmp_path: Path) -> None:
    files, memo = survey(str(path)), str(tmp_path / "memo.json")
    told: list[tuple[int, int]] = []
    part, _known = read_source(str(path), files, memo, budget_s=0)
    assert not part.done and 0 < part.bytes_done == part.bytes_moved < part.bytes_total
    read_source(str(path), files, memo, progress=lambda done, total: told.append((done, total)))
    assert all(part.bytes_done <= done <= total == size_of(path) for done, total in told)
    assert told[-1] == (size_of(path), size_of(path))


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("moment", range(1, 8))
def test_a_reading_that_breaks_off_keeps_what_it_read(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """An exception in the middle, as an interrupt of the user is one."""
    note, count = model_digests.Memo.note, 0

    def breaking(memo: Any, name: str, entry: Any) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise KeyboardInterrupt
        note(memo, name, entry)

    monkeypatch.setattr(model_digests.Memo, "note", breaking)
    with pytest.raises(KeyboardInterrupt):
        verify(str(recorded), full=True)
    monkeypatch.undo()
    left = len(quick(str(recorded)).unverified)
    assert left == SHARDS + 3 - (moment - 1)
    assert verify(str(recorded)).verified


def test_a_killed_reading_loses_at_most_what_is_being_read(recorded: Path) -> None:
    """SIGKILL after the fourth file; each is noted at once here, where a second of reading would be
    too much to make.
    """
    program = (
        "import os, signal, sys\nsys.path.insert(0, sys.argv[1] + '/.ansible/collections')\nfrom"
        " ansible_collections.slice_bench.sglang.plugins.module_utils import _model_digests as"
        " m\nm._SAVE_EVERY_S, m._MOST_JOBS, note, seen = 0, 1, m.Memo.note, []\n"
        "def noted(memo, name, entry):\n    note(memo, name, entry)\n    seen.append(name)\n"
        "    len(seen) == 4 and"
        " os.kill(os.getpid(), signal.SIGKILL)\nm.Memo.note = noted\nm.verify(sys.argv[2],"
        " full=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(ROOT), str(recorded)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(quick(str(recorded)).unverified) == SHARDS + 3 - 4
    found = verify(str(recorded), full=True)
    assert found.verified and found.bytes_read < size_of(recorded), "the full reading goes on"


def test_two_processes_that_write_the_same_do_not_meet(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writes and renames its file after this one has written its own, and before it
    renames it.
    """
    file = path / MEMO
    rename = os.rename

    def late(source: str, target: str) -> None:
        monkeypatch.undo()
        child = os.fork()
        if not child:
            model_digests.write_json(str(file), {"by": "other"})
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert json.loads(file.read_bytes()) == {"by": "other"}
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    model_digests.write_json(str(file), {"by": "this"})
    assert json.loads(file.read_bytes()) == {"by": "this"}


def test_what_a_killed_writer_left_goes_and_is_no_file_of_the_model(path: Path) -> None:
    before = list(model_digests.model_names(str(path)))
    with subprocess.Popen(["true"]) as ended:
        pass
    left, other = path / f"{MEMO}.{ended.pid}.tmp", path / f"{MEMO}.{os.getppid()}.tmp"
    for file in (left, other):
        file.write_text("{")
    assert list(model_digests.model_names(str(path))) == before and not model_digests.may_count(
        left.name
    )
    model_digests.write_json(str(path / MEMO), {})
    assert not left.exists() and other.exists()


@pytest.mark.usefixtures("one_at_a_time")
def test_a_memo_that_cannot_be_written_is_a_warning(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recorded / MEMO).unlink()

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(model_digests, "write_json", refuse)
    found = verify(str(recorded), budget_s=0)
    assert found.done and found.bytes_read == size_of(recorded) and "Read-only" in found.warnings[0]
    flip(shard(recorded))
    assert shard(recorded).name in refused(recorded)


def test_a_file_that_changes_while_it_is_read_is_no_verdict(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fstat, seen = os.fstat, []

    def changing(fd: int) -> os.stat_result:
        info = fstat(fd)
        seen.append(info)
        if len(seen) == 2:
            os.utime(f"/proc/self/fd/{fd}")
            return fstat(fd)
        return info

    os.utime(shard(recorded), (1, 1))
    monkeypatch.setattr(model_digests.os, "fstat", changing)
    # Each small file that is loaded as a whole is looked at too: count from the reading on.
    for reading in (model_digests.model_files.text, model_digests.model_files.weights):
        monkeypatch.setattr(reading, "read", lambda path: Path(path).read_bytes())
    assert "changed while it was read" in refused(recorded)


# --- records that no stager wrote -----------------------------------------------------------------

SHA = st.sampled_from(["a" * 64, "A" * 64, "a" * 63, "", "b" * 40])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 2**70)
    | st.text(max_size=5)
    | SHA
    | st.floats()
    | st.lists(st.integers(), max_size=2)
)
NAMES = st.sampled_from(
    [
        "config.json",
        INDEX,
        RECORD,
        MEMO,
        "../x",
        "/etc/passwd",
        ".",
        "",
        "a//b",
        "x\0",
        "\ud800",
        "config.json/x",
        "n" * 5000,
    ]
)
FILES = st.dictionaries(
    NAMES | st.text(max_size=4),
    VALUES | st.dictionaries(st.sampled_from(["sha256", "git_sha1", "size"]), VALUES),
    max_size=4,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "schema_version": st.sampled_from(["1", "2", 1, None]),
        "source": VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
        "files": FILES | VALUES,
        "full_since": VALUES,
    },
)
BYTES = (
    st.binary(max_size=30)
    | DOCUMENTS.map(lambda value: json.dumps(value).encode())
    | st.just(b"[" * 100_000)
)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    record=st.none() | BYTES,
    memo=st.none() | BYTES,
    metadata=st.none() | st.binary(max_size=120),
    full=st.booleans(),
)
def test_no_record_and_no_memo_is_a_traceback_or_a_wrong_verdict(
    tmp_path_factory: pytest.TempPathFactory,
    record: bytes | None,
    memo: bytes | None,
    metadata: bytes | None,
    full: bool,
) -> None:
    path = tmp_path_factory.mktemp("hostile")
    make_model(path, 1, 10)
    for name, data in (
        (RECORD, record),
        (MEMO, memo),
        (f"{model_digests.HUB_METADATA}/config.json.metadata", metadata),
    ):
        if data is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    try:
        looked = quick(str(path))
        found = verify(str(path), full=full)
    except ModelError as error:
        assert str(error).isprintable()
        return
    finally:
        had_record = (path / RECORD).exists()
    assert not looked.verified, "nobody has recorded the digests of all files"
    assert not found.verified or (full and had_record)
    shutil.rmtree(path)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_a_verified_model_has_the_recorded_bytes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever happens to the files and the two records in between: verified means that the digests
    are those of the record.
    """
    path = tmp_path_factory.mktemp("any")
    files = [*make_model(path, 2, 20), path / "config.json", path / INDEX]
    verify(str(path), full=True)
    original = json.loads((path / RECORD).read_bytes())["files"]
    for _ in range(data.draw(st.integers(1, 4))):
        file = data.draw(st.sampled_from(files))
        step = data.draw(
            st.sampled_from(["flip", "touch", "cut", "remove", "forget", "swap", "verify", "full"])
        )
        if not file.exists() or (step == "flip" and not file.stat().st_size):
            continue
        if step == "flip":
            flip(file)
        elif step == "touch":
            os.utime(file)
        elif step == "cut":
            os.truncate(file, data.draw(st.integers(0, file.stat().st_size)))
        elif step == "remove":
            file.unlink()
        elif step == "forget":
            (path / MEMO).unlink(missing_ok=True)
        elif step == "swap" and files[0].exists() and files[1].exists():
            files[0].rename(path / "aside")
            files[1].rename(files[0])
            (path / "aside").rename(files[1])
        else:
            try:
                verify(str(path), full=step == "full")
            except ModelError as error:
                assert str(error).isprintable()
    try:
        verified = verify(str(path)).verified
    except ModelError:
        verified = False
    same = all(
        (path / name).exists() and sha256(path / name) == value["sha256"]
        for name, value in original.items()
    )
    assert verified == same
    shutil.rmtree(path)
