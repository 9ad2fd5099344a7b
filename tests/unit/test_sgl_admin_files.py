"""Contract files of sgl-admin: whole or absent, whatever kills the writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_admin.base import files, paths, rights

KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from sgl_admin.base import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_json(Path(sys.argv[1]), {"new": True})
"""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("variable", "mode"), [(None, 0o640), ("False", 0o640), ("True", 0o660), ("2", 0o640)]
)
def test_what_is_written_is_read_back_with_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, mode: int
) -> None:
    path = tmp_path / "deeper" / "record.json"
    if variable is not None:
        monkeypatch.setenv("SGL_GROUP_WRITABLE", variable)
    before = os.umask(0)
    try:
        rights.begin()
        files.write_json(path, {"wörd": [1, None]})
    finally:
        os.umask(before)
    assert files.read_json(path) == {"wörd": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == mode
    files.write_text(path, "A=1\n", mode=0o600)
    assert path.read_text() == "A=1\n" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert leftovers(path.parent) == []


def test_a_writer_killed_before_its_rename_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_json(path, {"new": False})
    source = str(Path(files.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_RENAME, str(path)],
        env={**os.environ, "PYTHONPATH": source},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert files.read_json(path) == {"new": False}
    assert len(leftovers(tmp_path)) == 1, "the writer died before it wrote"
    files.sweep_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    files.write_json(path, {"new": False})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"new": True})
    assert files.read_json(path) == {"new": False} and leftovers(tmp_path) == []


def test_a_write_that_fails_names_the_file_on_the_host(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system names none for a write or an fsync, and the temp file for the others."""
    path = paths.RUNS / "record.json"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.write_json(path, {})
    assert (
        files.reason(caught.value)
        == "no space left on /host/telemetry/container_runs/record.json: free some and run again"
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on /host/profiles/x: free some"),
        (errno.EDQUOT, "the disk quota for /host/profiles/x is used up: raise it, or free some"),
        (errno.ENOLCK, "/host/profiles/x is on a file system without locks: keep the root"),
        (errno.ESTALE, "the mount of /host/profiles/x is gone: mount it again"),
        (errno.ENOTCONN, "the mount of /host/profiles/x is gone: mount it again"),
        (errno.ENOMEM, "no memory left for /host/profiles/x: free some on the host"),
        (errno.EMFILE, "too many files are open for /host/profiles/x: raise the limit"),
        (errno.ENFILE, "too many files are open on the host for /host/profiles/x: raise"),
        (errno.EACCES, "no permission for /host/profiles/x: let the container's user use it"),
        (errno.EPERM, "no permission for /host/profiles/x: let the container's user use it"),
        (errno.EROFS, "/host/profiles/x is on a read-only file system: mount it writable"),
        (
            errno.EIO,
            "/host/profiles/x cannot be read or written (input/output error): check its disk",
        ),
        (errno.ELOOP, "/host/profiles/x: Too many levels of symbolic links"),
    ],
)
def test_reasons_name_the_place_and_the_remedy(container: Path, number: int, words: str) -> None:
    assert files.reason(OSError(number, os.strerror(number), str(paths.PROFILES / "x"))).startswith(
        words
    )
    assert files.reason(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    ("total", "left", "space", "words"),
    [
        (1000, 0, 10**6, "no inodes left on /host/profiles/new/x (df -i): remove some files"),
        (1000, 1, 10**6, "no space left on /host/profiles/new/x: free some"),
        (1000, 0, 0, "no space left on /host/profiles/new/x: free some"),
        # btrfs and some network file systems count none.
        (0, 0, 10**6, "no space left on /host/profiles/new/x: free some"),
    ],
)
def test_a_file_system_without_inodes_is_told_from_a_full_one(
    container: Path,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    left: int,
    space: int,
    words: str,
) -> None:
    def statvfs(folder: Path) -> SimpleNamespace:
        if "new" in Path(folder).parts:
            raise FileNotFoundError(folder)
        return SimpleNamespace(f_files=total, f_favail=left, f_bavail=space)

    monkeypatch.setattr(os, "statvfs", statvfs)
    full = OSError(errno.ENOSPC, "No space left on device", str(paths.PROFILES / "new" / "x"))
    assert files.reason(full).startswith(words)


def test_only_the_temporaries_of_the_named_file_are_swept(tmp_path: Path) -> None:
    for name in (".a.json.x1.tmp", ".b.json.x2.tmp", "a.json"):
        (tmp_path / name).touch()
    files.sweep_temporaries(tmp_path, "a.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.x2.tmp", "a.json"]


def test_the_order_is_file_then_rename_then_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        real_fsync(descriptor)

    def replace(old: str, new: Path) -> None:
        done.append("rename")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    files.write_json(tmp_path / "record.json", {})
    assert done == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_cannot_be_read_is_set_aside_and_never_deleted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    for number in (1, 2):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="record.json"):
            files.read_json(path)
        warnings: list[str] = []
        assert files.read_or_set_aside(path, {}, warnings) is None
        assert not path.exists()
        assert (tmp_path / f"record.json.corrupt-{number}").read_bytes() == content
        assert len(warnings) == 1 and f"record.json.corrupt-{number}" in warnings[0]


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert files.read_json(tmp_path / "none.json") is None
    assert (
        files.read_or_set_aside(tmp_path / "none.json", {"a": int}, warnings) is None
        and warnings == []
    )


def test_a_good_file_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"a": 1}))
    assert files.read_or_set_aside(path, {"a": int}, []) == {"a": 1} and path.exists()


@pytest.mark.parametrize("text", ["{}", '{"a": "1"}', '{"a": true}', '{"a": null}'])
def test_a_record_without_what_its_readers_need_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    warnings: list[str] = []
    assert files.read_or_set_aside(path, {"a": int}, warnings) is None
    assert (
        "has no valid a" in warnings[0] and (tmp_path / "record.json.corrupt-1").read_text() == text
    )


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)],
    ids=["pipe", "folder", "loop"],
)
def test_what_is_no_file_is_set_aside_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "record.json"
    make(path)
    with pytest.raises(ValueError, match="record.json is not a file"):
        files.read_json(path)
    warnings: list[str] = []
    assert files.read_or_set_aside(path, {}, warnings) is None and len(warnings) == 1
    assert not os.path.lexists(path) and os.path.lexists(tmp_path / "record.json.corrupt-1")


def test_a_number_of_too_many_digits_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"pid": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match="record.json is not valid JSON"):
        files.read_json(tmp_path / "record.json")


def test_half_of_a_surrogate_pair_is_written_and_read_back(tmp_path: Path) -> None:
    """The name of a file can hold one, and so can JSON."""
    document = {"files": {"triton/caf\udce9": 1}, "message": "\ud800"}
    files.write_json(tmp_path / "record.json", document)
    assert files.read_json(tmp_path / "record.json") == document
