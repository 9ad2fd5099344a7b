"""Finished caches are packed for other hosts: `sgl-admin caches export` and `verify`, over the real
stages.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.commands import main as cli
from sgl_admin.commands import share as share_cli
from sgl_admin.contract import stages
from sgl_admin.contract.exit_codes import EXIT_ARCHIVE, EXIT_NO_RESULT, EXIT_USAGE
from sgl_admin.facts import devices
from sgl_admin.prep.plan import Plan
from sgl_admin.records import archive as archives
from sgl_admin.records import caches
from sgl_admin.records.archive import Broken, Changed, Reader
from tests.unit.sharing import (
    ALL,
    CPU,
    INDUCTOR,
    Host,
    admin,
    content,
    lay,
    manifest,
    members,
    nothing_taken,
    on_a_gpu,
    tree,
    wipe,
)

# More than goes out in one call with its header.
LARGE = bytes(range(256)) * 3000


@pytest.fixture
def host(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(devices, "find", lambda visible: CPU)
    return Host(model_folder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "caches.tar"


def test_what_is_taken_is_what_was_packed_and_ensure_has_nothing_to_do(
    host: Host, file: Path
) -> None:
    host.finish("inductor", {**INDUCTOR, "triton/large.so": LARGE})
    before = content(tree())
    packed = host.share("export", file)
    assert (
        packed.code == 0
        and packed.document["lacking"] == {}
        and packed.document["bytes"] == file.stat().st_size
    )
    assert (
        packed.document["stages"]["inductor"]["files"] == 6
        and packed.document["stages"]["inductor"]["finished"] is True
    )
    wipe()
    assert host.ensured()["inductor"] == "would_run"
    taken = host.share("import", file, "--digest", packed.document["digest"])
    assert (
        taken.code == 0
        and taken.status() == ("imported", None)
        and taken.document["warnings"] == []
    )
    assert content(tree()) == before and host.ensured()["inductor"] == "noop"
    assert host.share("import", file).status() == ("standing", "this host's own work stands")
    again = file.with_name("again.tar")
    assert (
        host.share("export", again).document["digest"] == packed.document["digest"]
        and again.read_bytes() == file.read_bytes()
    )


def test_every_stage_goes_with_its_own_files_and_none_of_another(
    host: Host, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    for stage, found in ALL.items():
        host.finish(stage, found)
    before = content(tree())
    packed = host.share("export", file)
    named = {
        name: [entry["path"] for entry in part["files"]]
        for name, part in manifest(file.read_bytes())["stages"].items()
    }
    assert named == {name: sorted(found) for name, found in ALL.items()}
    assert packed.document["lacking"] == {}, "a model without experts lacks no tuning"
    wipe()
    taken = host.share("import", file)
    assert {
        name: stage["status"] for name, stage in taken.document["stages"].items()
    } == dict.fromkeys(named, "imported")
    assert content(tree()) == before
    assert host.ensured() == {
        **dict.fromkeys(stages.NAMES, "skipped"),
        **dict.fromkeys(ALL, "noop"),
    }


def test_any_reader_of_tar_files_finds_what_the_manifest_says(host: Host, file: Path) -> None:
    host.finish()
    digest = host.share("export", file).document["digest"].removeprefix("sha256:")
    [first, *blobs] = members(file.read_bytes())
    assert (
        first[0].name == f"manifest-{digest}.json"
        and hashlib.sha256(first[1]).hexdigest() == digest
    )
    entries = json.loads(first[1])["stages"]["inductor"]["files"]
    for entry in entries:
        path = paths.PROFILES / entry["path"]
        status = path.stat()
        assert (entry["size"], entry["mtime_ns"], entry["mode"]) == (
            status.st_size,
            status.st_mtime_ns,
            archives.portable_mode(status.st_mode),
        )
        assert (f"files/{entry['sha256']}", path.read_bytes()) in [
            (made.name, found) for made, found in blobs
        ]
    assert len(blobs) == 4 < len(entries) == 5, "one content lies there once"
    assert {(made.uid, made.gid, made.uname, made.gname) for made, _ in [first, *blobs]} == {
        (0, 0, "", "")
    }
    assert {(made.mtime, made.mode) for made, _ in [first, *blobs]} == {(0, 0o644)}


# --- the same content is the same archive


def test_the_order_of_creation_changes_no_byte(host: Host, file: Path) -> None:
    host.finish()
    one = host.share("export", file).document["digest"], file.read_bytes()
    kept = {name: (paths.PROFILES / name).stat() for name in INDUCTOR}
    wipe()
    for name in reversed(INDUCTOR):
        lay(name, INDUCTOR[name], kept[name].st_mtime_ns, kept[name].st_mode & 0o777)
    host.vouch()
    assert (host.share("export", file).document["digest"], file.read_bytes()) == one


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.utime(path, ns=(5, 10**18 + 77)),
        lambda path: path.chmod(0o600),
        lambda path: lay("triton/AB12/empty.json", b"x"),
        lambda path: lay("triton/new", b""),
    ],
    ids=["mtime", "mode", "content", "file"],
)
def test_any_difference_is_another_archive(
    host: Host, file: Path, change: Callable[[Path], object]
) -> None:
    host.finish()
    one = host.share("export", file).document["digest"]
    change(paths.PROFILES / "triton/AB12/kernel.so")
    host.vouch()
    assert host.share("export", file).document["digest"] != one


def test_when_it_was_packed_and_read_changes_nothing(host: Host, file: Path) -> None:
    host.finish()
    one = host.share("export", file).document["digest"]
    for name in INDUCTOR:
        # The time of the last access, and of the last change of the inode.
        status = (paths.PROFILES / name).stat()
        os.utime(paths.PROFILES / name, ns=(status.st_atime_ns + 10**9, status.st_mtime_ns))
    assert host.share("export", file).document["digest"] == one


# --- nothing in progress, nothing half


@pytest.mark.parametrize("alive", [True, False])
def test_a_stage_in_progress_is_not_packed(host: Host, file: Path, alive: bool) -> None:
    host.finish()
    files.write_json(
        paths.IN_PROGRESS / "inductor.json",
        {"stage": "inductor", "owner_pid": os.getpid(), "started_at": "x"},
    )
    lock = locks.try_lock("inductor") if alive else None
    answer = host.share("export", file)
    assert (
        answer.code == EXIT_NO_RESULT
        and "nothing to export: inductor: nothing of it is finished" in answer.error
    )
    assert not file.exists()
    if lock is not None:
        os.close(lock)
    (paths.IN_PROGRESS / "inductor.json").unlink()
    assert host.share("export", file).code == 0


def test_what_stands_beside_a_stage_in_progress_is_packed_and_the_other_told(
    host: Host, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    for stage, found in ALL.items():
        host.finish(stage, found)
    (paths.IN_PROGRESS / "flashinfer.json").write_text("torn")
    (paths.PROFILES / "deep_gemm/cache/kernel.fp8/kernel.cubin").write_bytes(b"another size")
    answer = host.share("export", file)
    packed = set(answer.document["stages"])
    assert answer.code == 0 and packed == set(manifest(file.read_bytes())["stages"])
    assert packed == ALL.keys() - {"deep_gemm", "flashinfer"}
    assert answer.document["lacking"] == dict.fromkeys(
        ("deep_gemm", "flashinfer"), "nothing of it is finished"
    )


def test_nothing_is_packed_where_nothing_was_done(host: Host, file: Path) -> None:
    answer = host.share("export", file)
    assert (
        answer.code == EXIT_NO_RESULT and "nothing to export" in answer.error and answer.out == ""
    )
    host.finish()
    answer = host.share("export", file, "--moe", "ensure")
    assert answer.code == EXIT_NO_RESULT and "every stage is skipped here" in answer.error
    assert list(file.parent.glob("*.tar*")) == []


def test_of_two_models_each_has_its_own_archive(host: Host, file: Path) -> None:
    host.finish()
    other = paths.MODELS / "other"
    shutil.copytree(host.words[1], other)
    (other / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert Host(other).share("export", file).code == EXIT_NO_RESULT
    Host(other).finish("inductor", {"torchinductor/other.py": b"y"})
    assert [
        entry["path"]
        for entry in manifest(packed(Host(other), file))["stages"]["inductor"]["files"]
    ] == ["torchinductor/other.py"]
    assert len(manifest(packed(host, file))["stages"]["inductor"]["files"]) == len(INDUCTOR)


def packed(host: Host, file: Path) -> bytes:
    assert host.share("export", file).code == 0
    return file.read_bytes()


# --- written to meanwhile


def changing(
    monkeypatch: pytest.MonkeyPatch, times: int, change: Callable[[], object]
) -> list[int]:
    """Have something change after it was looked at and before it is packed, the first so many
    times; the tries that were made.
    """
    tries: list[int] = []
    real = archives.write

    def write(*arguments: Any) -> None:
        tries.append(len(tries))
        if len(tries) <= times:
            change()
        real(*arguments)

    monkeypatch.setattr(archives, "write", write)
    return tries


@pytest.mark.parametrize(
    "name", ["triton/AB12/kernel.so", "triton/large.so", "triton/AB12/empty.json"]
)
def test_a_file_that_is_written_to_meanwhile_is_packed_as_it_is_then(
    host: Host, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    host.finish("inductor", {**INDUCTOR, "triton/large.so": LARGE})
    found = paths.PROFILES / name
    size = found.stat().st_size

    def change() -> None:
        found.write_bytes(b"y" * (size or 1))
        host.vouch()

    tries = changing(monkeypatch, 1, change)
    assert host.share("export", file).code == 0 and len(tries) == 2
    assert b"y" * (size or 1) in [found for _, found in members(file.read_bytes())]
    assert admin("caches", "verify", str(file)).code == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()), "was written to"),
        (lambda path: path.write_bytes(b"shorter"), "was written to"),
        (lambda path: path.unlink(), "is gone"),
        (lambda path: shutil.rmtree(path.parent), "is gone"),
        (
            lambda path: (
                path.rename(path.with_name("aside")).parent.joinpath(path.name).symlink_to("aside")
            ),
            "is not a file",
        ),
        (
            lambda path: path.rename(path.with_name("aside")).parent.joinpath(path.name).mkdir(),
            "is not a file",
        ),
        (
            lambda path: os.mkfifo(path.rename(path.with_name("aside")).with_name(path.name)),
            "is not a file",
        ),
    ],
    ids=["written", "cut", "gone", "folder gone", "link", "folder", "pipe"],
)
def test_what_changes_at_every_try_is_told_and_the_old_archive_stands(
    host: Host,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    why: str,
) -> None:
    file.write_bytes(b"the old one")
    real = share_cli._pack

    def pack(plan: Plan) -> Any:
        shutil.rmtree(paths.PROFILES / "triton", ignore_errors=True)
        host.finish()
        return real(plan)

    monkeypatch.setattr(share_cli, "_pack", pack)
    tries = changing(monkeypatch, 9, lambda: change(paths.PROFILES / "triton/AB12/kernel.so"))
    answer = host.share("export", file)
    assert answer.code == EXIT_NO_RESULT and len(tries) == 3
    assert (
        "triton/AB12/" in answer.error
        and f" {why} while it was packed; run this again" in answer.error
    )
    assert file.read_bytes() == b"the old one" and list(file.parent.glob(".*.tmp")) == []


@pytest.mark.parametrize("name", ["triton/small", "triton/large"])
def test_a_file_that_is_written_to_while_it_is_read_is_told(
    container: Path, file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = lay(name, LARGE if "large" in name else b"small")
    part = archives.Part("inductor", "0" * 16, {}, True, {}, archives.entries([path]))
    real_send, real_write = os.sendfile, archives._write_all

    def touched() -> None:
        path.write_bytes(path.read_bytes())

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        touched()
        return real_send(out, source, offset, count)

    def write_all(stream: Any, content: bytes) -> None:
        if b"small" in content:
            touched()
        real_write(stream, content)

    monkeypatch.setattr(os, "sendfile", sendfile)
    monkeypatch.setattr(archives, "_write_all", write_all)
    with open(file, "wb", buffering=0) as stream, pytest.raises(Changed, match="was written to"):
        archives.write(archives.Manifest((part,)), stream)


def test_a_file_that_changes_while_its_digest_is_made_is_told(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = lay("triton/kernel.so", b"x"), os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        path.write_bytes(b"y")
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(Changed, match="triton/kernel.so was written to"):
        archives.entries([path])


# --- what cannot be packed


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"triton/\xff.so", "triton/?.so is no text that can name a file"),
        (b"triton/.signatures/x.so", "a record of another host"),
        (b"moe_configs/.tuning/x.json", "a record of another host"),
    ],
)
def test_a_name_that_no_archive_takes_is_told(
    host: Host, file: Path, name: bytes, why: str
) -> None:
    lay(os.fsdecode(name), b"x")
    host.vouch("inductor", [paths.PROFILES / os.fsdecode(name)])
    answer = host.share("export", file)
    assert answer.code == EXIT_NO_RESULT and why in answer.error


def test_a_record_that_names_a_file_outside_of_the_caches_packs_nothing(
    host: Host, file: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    host.finish()
    record = files.read_json(host.record().path) or {}
    for name in (str(secret), f"triton/../../../{secret.name}"):
        files.write_json(host.record().path, {**record, "files": {name: 8}})
        answer = host.share("export", file)
        assert answer.code == EXIT_NO_RESULT and not file.exists()
        assert (
            "is not in the caches" in answer.error
            or "nothing of it is finished" in answer.error
            or "leads out" in answer.error
        )


def test_a_file_that_is_a_link_is_not_packed(host: Host, file: Path, tmp_path: Path) -> None:
    host.finish()
    (tmp_path / "secret").write_bytes(INDUCTOR["triton/AB12/kernel.so"])
    (paths.PROFILES / "triton/AB12/kernel.so").unlink()
    (paths.PROFILES / "triton/AB12/kernel.so").symlink_to(tmp_path / "secret")
    answer = host.share("export", file)
    assert answer.code == EXIT_NO_RESULT and "triton/AB12/kernel.so is not a file" in answer.error


# --- where it goes


@pytest.mark.parametrize("mode", ["w", "a"])
def test_to_standard_output_the_archive_goes_alone(host: Host, file: Path, mode: str) -> None:
    host.finish(content={**INDUCTOR, "triton/AB12/kernel.so": LARGE})
    packed(host, file)
    streamed, error = file.with_name("streamed"), io.StringIO()
    with (
        open(streamed, mode) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(error),
    ):
        assert cli.main(["caches", "export", "-", *host.words, "--json"]) == 0
    assert streamed.read_bytes() == file.read_bytes()
    summary = json.loads(error.getvalue())
    assert (
        summary["bytes"] == file.stat().st_size
        and summary["stages"]["inductor"]["finished"] is True
    )
    with open(streamed) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stream)
        assert (
            json.loads(admin("caches", "verify", "-", "--json").out)["digest"] == summary["digest"]
        )


def test_what_changes_while_it_is_streamed_ends_the_stream(
    host: Host, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.finish()
    tries = changing(monkeypatch, 9, lambda: os.utime(paths.PROFILES / "triton/AB12/kernel.so"))
    error = io.StringIO()
    with (
        open(file, "w") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(error),
    ):
        assert cli.main(["caches", "export", "-", *host.words]) == EXIT_NO_RESULT
    assert len(tries) == 1 and "run this again" in error.getvalue(), (
        "what is sent cannot be taken back"
    )
    assert admin("caches", "verify", str(file)).code == EXIT_ARCHIVE


def test_an_archive_that_cannot_be_written_is_told_and_leaves_nothing(
    host: Host, tmp_path: Path
) -> None:
    host.finish()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in (tmp_path / "none" / "x.tar", folder):
        answer = host.share("export", name)
        assert answer.code == EXIT_NO_RESULT and str(name.parent) in answer.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["container", "folder"] and not list(
        folder.iterdir()
    )


def test_people_are_told_in_lines(host: Host, file: Path) -> None:
    host.finish()
    answer = admin("caches", "export", str(file), *host.words)
    digest = host.share("export", file).document["digest"]
    key = host.record().path.stem.rpartition("-")[2]
    assert (
        answer.out
        == admin("caches", "verify", str(file)).out
        == f"inductor           5 files        0.0 MiB  {key}\n{digest}\n"
    )
    assert key == caches.digest(host.record().signature)


# --- reading


def test_verify_needs_no_host_and_changes_nothing(
    host: Host, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.finish()
    archive = packed(host, file)
    monkeypatch.delattr(devices, "find")
    shutil.rmtree(paths.STATE)
    with nothing_taken():
        answer = admin("caches", "verify", str(file), "--json")
    assert answer.code == 0 and answer.document["bytes"] == len(archive)
    assert answer.document["stages"]["inductor"]["signature"]["device_name"] == "cpu"


def test_another_archive_than_the_expected_one_is_refused(host: Host, file: Path) -> None:
    host.finish()
    digest = host.share("export", file).document["digest"]
    for given in (digest, digest.removeprefix("sha256:"), digest.upper()):
        assert (
            host.share("import", file, "--digest", given).code
            == admin("caches", "verify", str(file), "--digest", given).code
            == 0
        )
    for given in (digest[:-1], "sha256:" + "0" * 64, "", "sha256:"):
        for answer in (
            host.share("import", file, "--digest", given),
            admin("caches", "verify", str(file), "--digest", given),
        ):
            assert (
                answer.code == EXIT_ARCHIVE
                and f"it is {digest}, and {given} was expected" in answer.error
            )


@pytest.mark.parametrize("thing", ["missing", "folder"])
def test_what_is_no_file_is_refused_as_usage(host: Host, file: Path, thing: str) -> None:
    if thing == "folder":
        file.mkdir()
    for answer in (host.share("import", file), admin("caches", "verify", str(file))):
        assert answer.code == EXIT_USAGE and f"{file}: " in answer.error


@pytest.fixture
def small(host: Host, file: Path) -> bytes:
    """An archive that is small enough to try each byte of it."""
    host.finish("inductor", {"triton/a": b"one", "triton/b": b"", "triton/c": b"one"})
    return packed(host, file)


def read(content: bytes) -> archives.Manifest:
    reader = Reader(io.BytesIO(content))
    reader.read(lambda entries: None)
    return reader.manifest


def test_each_changed_byte_is_found(small: bytes) -> None:
    assert read(small).parts
    for position in range(len(small)):
        changed = bytearray(small)
        changed[position] ^= 1 << position % 8
        with pytest.raises(Broken):
            read(bytes(changed))


def test_each_truncation_is_found_and_anything_that_is_appended(small: bytes) -> None:
    for length in range(len(small)):
        with pytest.raises(Broken):
            read(small[:length])
    for more in (b"\0", b"x", bytes(512), bytes(1024), bytes(9216), small):
        with pytest.raises(Broken, match="it goes on after its end"):
            read(small + more)


def test_a_stream_that_gives_less_than_it_is_asked_for_is_read_all_the_same(small: bytes) -> None:
    class Pipe(io.BytesIO):
        """Stands for a pipe, which gives what it has just got."""

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 7) if size and size > 0 else size)

        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7])

    reader = Reader(Pipe(small))
    received: list[bytes] = []

    class Target(io.BytesIO):
        """Takes less than it is given, as a raw file may."""

        def write(self, content: Any) -> int:
            return super().write(bytes(content[:5]))

        def close(self) -> None:
            if not self.closed:
                received.append(self.getvalue())
            super().close()

    reader.read(lambda entries: Target())
    assert received == [b"one", b""]
