"""Another host's caches are taken whole or not at all: `sgl-admin caches import`, over the real
stages.
"""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.commands import main as cli
from sgl_admin.contract import stages
from sgl_admin.contract.exit_codes import EXIT_ARCHIVE, EXIT_BUSY, EXIT_NO_RESULT, EXIT_USAGE
from sgl_admin.facts import devices
from sgl_admin.records import job
from sgl_admin.records.archive import Manifest
from sgl_admin.share import incoming
from tests.unit.model_files import write_model
from tests.unit.sharing import (
    ALL,
    CPU,
    INDUCTOR,
    KILLED,
    UNDISTURBED,
    Answer,
    Host,
    Member,
    admin,
    as_before,
    content,
    disturbed,
    lay,
    manifest,
    member,
    members,
    nothing_taken,
    on_a_gpu,
    packed,
    resigned,
    signed,
    tree,
    wipe,
    written,
)

CACHES = ", ".join(stages.BY_NAME["inductor"].caches)
SO, EMPTY, GRAPH = "triton/AB12/kernel.so", "triton/AB12/empty.json", "torchinductor/ab/graph.py"


class Receiver(Host):
    """A host with work of another model, that is sent a file."""

    file: Path
    archive: bytes

    def take(self, archive: bytes, *words: str) -> Answer:
        return self.send(self.file, archive, *words)

    def refuses(self, archive: bytes, *words: str) -> str:
        """Holds this host to take nothing of an archive, and `verify` to find it broken; returns
        why.
        """
        with nothing_taken():
            answer = self.take(archive, *words)
        assert answer.code == EXIT_ARCHIVE and answer.out == "", answer
        start = f"sgl-admin: the archive from {self.file} is refused, nothing of it was taken: "
        assert answer.error.startswith(start) and answer.error.count("\n") == 1
        assert admin("caches", "verify", str(self.file)) == answer
        return answer.error.removeprefix(start).rstrip("\n")


@pytest.fixture
def host(
    live_run: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Receiver:
    monkeypatch.setattr(devices, "find", lambda visible: CPU)
    made = Receiver(model_folder)
    made.file = tmp_path / "caches.tar"
    made.finish()
    assert made.share("export", made.file).code == 0
    made.archive = made.file.read_bytes()
    wipe()
    # Of another model's, in the same folders.
    other = paths.MODELS / "other"
    write_model(other, {"architectures": ["LlamaForCausalLM"]})
    Host(other).finish(
        "inductor",
        {"triton/AB12/other.so": b"other", GRAPH: b"x = 1\n", "torchinductor/cd/other.py": b""},
    )
    return made


def test_a_record_that_cannot_be_read_is_set_aside_and_not_overwritten(host: Receiver) -> None:
    record = host.record().path
    record.parent.mkdir(exist_ok=True)
    record.write_text("{")
    answer = host.send(host.file, host.archive)
    assert answer.code == 0 and answer.status() == ("imported", None)
    aside = record.with_name(f"{record.name}.corrupt-1")
    assert aside.read_text() == "{" and host.ensured()["inductor"] == "noop"
    assert [str(aside) in warning for warning in answer.document["warnings"]] == [True]


# --- what is not as it was written


def positions(archive: bytes) -> dict[str, int]:
    """A byte of each kind, by what it is."""
    [(first, _), (second, _), *_] = members(archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {member.name: (member.offset, member.offset_data, member.size) for member in tar}
    (_, data, size), (offset, second_data, second_size) = found[first.name], found[second.name]
    return {
        "manifest's name": 12,
        "manifest's size": 130,
        "manifest's checksum": 150,
        "manifest's kind": 156,
        "manifest": data + size // 2,
        "manifest's last byte": data + size - 1,
        "manifest's padding": data + size,
        "header's name": offset + 8,
        "header's mode": offset + 103,
        "header's owner": offset + 110,
        "header's size": offset + 130,
        "header's time": offset + 140,
        "header's kind": offset + 156,
        "header's magic": offset + 258,
        "header's rest": offset + 511,
        "content": second_data,
        "content's padding": second_data + second_size,
        "end": len(archive) - 1024,
        "last byte": len(archive) - 1,
    }


def test_a_changed_byte_of_any_kind_is_refused(host: Receiver) -> None:
    whys = {}
    for what, position in positions(host.archive).items():
        for bit in (0, 5):
            changed = bytearray(host.archive)
            changed[position] ^= 1 << bit
            whys[what] = host.refuses(bytes(changed))
    assert "its manifest is not the one that its name says" in whys["manifest"]
    assert "something lies between its members" in whys["content's padding"]
    assert (
        whys["content"]
        == "the content of torchinductor/ab/graph.py has another digest than the manifest says: it"
        " was changed"
    )
    assert (
        "it holds more than its manifest names" in whys["end"]
        and "where torchinductor/ab/graph.py is due" in whys["header's name"]
    )
    assert host.take(host.archive).code == 0


def test_a_truncated_or_longer_archive_is_refused(host: Receiver) -> None:
    whys = {
        length: host.refuses(host.archive[:length])
        for length in (0, 1, 511, 512, 513, 1500, 4096, len(host.archive) - 1)
    }
    assert (
        whys[0] == "it ends before its manifest does"
        and whys[len(host.archive) - 1] == "it ends before its end does"
    )
    for more in (b"\0", bytes(512), host.archive):
        assert host.refuses(host.archive + more) == "it goes on after its end"


def moved(kind: bytes, name: str | None = None, **fields: Any) -> Callable[[list[Member]], None]:
    """The second member as another kind of thing, or under another name."""

    def change(found: list[Member]) -> None:
        made, content = found[1]
        found[1] = member(name or made.name, content, type=kind, **fields)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda found: found.pop(1), "another file"),
        (lambda found: found.pop(), "its end"),
        (lambda found: found.insert(1, member("extra", b"x")), "another file, extra"),
        (
            lambda found: found.append(member("extra", b"x")),
            "it holds more than its manifest names",
        ),
        (lambda found: found.append(found[-1]), "it holds more than its manifest names"),
        (lambda found: found.insert(1, found[1]), "another file"),
        (lambda found: found.insert(1, found.pop()), "another file"),
        (lambda found: found.append(found.pop(0)), "not with a manifest"),
        (lambda found: found.insert(0, found[0]), "another file, manifest-"),
        (moved(tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link"),
        (moved(tarfile.LNKTYPE, linkname="/etc/passwd"), "a hard link"),
        (moved(tarfile.CHRTYPE, devmajor=1, devminor=3), "a character device"),
        (moved(tarfile.BLKTYPE), "a block device"),
        (moved(tarfile.FIFOTYPE), "a pipe"),
        (moved(tarfile.DIRTYPE), "a folder"),
        (moved(tarfile.GNUTYPE_SPARSE), "something else than a file"),
        (moved(tarfile.XHDTYPE), "something else than a file"),
        (moved(tarfile.REGTYPE, uid=1000), "a file of another owner (1000:0)"),
        (moved(tarfile.REGTYPE, gid=1000), "a file of another owner (0:1000)"),
        (moved(tarfile.REGTYPE, uname="root"), "a file of another owner (0:0)"),
        (moved(tarfile.REGTYPE, mode=0o4755), "a header that export did not write"),
        (moved(tarfile.REGTYPE, mtime=1), "a header that export did not write"),
        (moved(tarfile.REGTYPE, linkname="x"), "a header that export did not write"),
        (
            moved(tarfile.REGTYPE, name="files/../../etc/passwd"),
            "another file, files/../../etc/passwd",
        ),
        (moved(tarfile.REGTYPE, name="/etc/passwd"), "another file, /etc/passwd"),
        (moved(tarfile.REGTYPE, name="\x1b[31m\n"), "another file, ?[31m?"),
        (moved(tarfile.REGTYPE, name="x" * 150), "something else than a file, ././@LongLink"),
        (moved(tarfile.REGTYPE, size=5), "5 bytes where the manifest says 6"),
        (moved(tarfile.REGTYPE, size=2**60), f"{2**60} bytes where the manifest says 6"),
    ],
)
def test_another_member_than_the_one_that_is_due_is_refused(
    host: Receiver, change: Callable[[list[Member]], object], why: str
) -> None:
    found = members(host.archive)
    change(found)
    assert why in host.refuses(packed(found))


def test_what_is_not_taken_is_read_to_its_end_all_the_same(host: Receiver) -> None:
    """Also where this host needs no part of it, or has its own: a broken archive is refused."""
    document = manifest(host.archive)
    document["stages"]["inductor"]["signature"]["cpu_arch"] = "riscv64"
    assert host.refuses(resigned(host.archive, document)[:-1]) == "it ends before its end does"
    assert (
        host.take(host.archive).status()[0] == "imported"
        and host.take(host.archive).status()[0] == "standing"
    )
    assert host.refuses(host.archive[:-1]) == "it ends before its end does"


def test_a_content_that_is_longer_than_claimed_is_refused(host: Receiver) -> None:
    found = members(host.archive)
    number = next(number for number, (made, _) in enumerate(found[1:], 1) if made.size > 500)
    found[number] = found[number][0], found[number][1] + bytes(600)
    assert "where triton/" in host.refuses(packed(found))


# --- a manifest that says what no export says


def entry(document: dict[str, Any], name: str = SO) -> dict[str, Any]:
    found: dict[str, Any] = next(
        entry for entry in document["stages"]["inductor"]["files"] if entry["path"] == name
    )
    return found


def with_entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: entry(document).update(fields)


def with_part(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["stages"]["inductor"].update(fields)


def with_stage(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["stages"].update({name: document["stages"].pop("inductor")})


def with_top(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({key: value})


# Of a JSON document, none of which is a text, or a whole number.
NO_TEXT: tuple[object, ...] = (None, 1, [], {})
NO_NUMBER: tuple[object, ...] = (None, "1", 1.0, True)
NO_LIST: tuple[object, ...] = (None, {}, "x", 5)


NO_FILE = "a size, a time or a mode of triton/AB12/kernel.so that no file has"
FORM = "its manifest has a file without path, sha256, size, mtime_ns and mode"
# What is changed in a manifest, and why it is refused then.
CHANGES: dict[str, list[tuple[Callable[[dict[str, Any]], object], str]]] = {
    "paths that lead out": [
        (with_entry(path=path), "which leads out of the caches")
        for path in (
            "/etc/passwd",
            "triton/../../etc/x",
            "../x",
            "..",
            "triton/..",
            ".",
            "",
            "triton",
            "triton//x",
            "triton/./x",
            "/triton/x",
            "triton/x/",
            "//",
            "\\triton",
        )
    ],
    "paths that no file has": [
        *[
            (with_entry(path=f"triton/{name}"), "which is longer than a path can be")
            for name in ("x" * 256, "\u00e9" * 128, "/".join("\u4e2d" * 999))
        ],
        *[
            (with_entry(path=f"triton/{name}"), "which is no text that can name a file")
            for name in ("\ud800", "a\0b", "\udcff")
        ],
    ],
    "records and work of another host": [
        (with_entry(path=path), "which is a record of another host, or of work in progress")
        for path in ("triton/.signatures/x", "torchinductor/.tuning/x", "triton/a/.signatures")
    ],
    "modes": [
        (with_entry(mode=mode), NO_FILE) for mode in (0o4755, 0o2755, 0o1755, 0o100644, -1, 2**80)
    ],
    "sizes": [
        *[(with_entry(size=size), NO_FILE) for size in (-1, 2**63, 10**40)],
        (with_entry(size=5), f"{len(INDUCTOR[SO])} bytes where the manifest says 5"),
        (
            lambda document: entry(document, GRAPH).update(size=7),
            "gives one content two sizes (triton/copy of graph.json)",
        ),
    ],
    "times": [(with_entry(mtime_ns=time), NO_FILE) for time in (-1, 2**63)],
    "files of another form": [
        *[(with_entry(**{key: value}), FORM) for key in ("path", "sha256") for value in NO_TEXT],
        *[
            (with_entry(**{key: value}), FORM)
            for key in ("size", "mtime_ns", "mode")
            for value in NO_NUMBER
        ],
        (with_entry(owner="root"), FORM),
        (lambda document: entry(document).pop("mode"), FORM),
        (lambda document: document["stages"]["inductor"]["files"].append("triton/x"), FORM),
    ],
    "digests": [
        *[
            (with_entry(sha256=digest), "has no digest of triton/AB12/kernel.so")
            for digest in ("", "0" * 63, "A" * 64, "../" + "a" * 61)
        ],
        (with_entry(sha256="0" * 64), "it has another file, files/"),
    ],
    "paths that are there twice": [
        (with_entry(path=EMPTY), f"names {EMPTY} twice"),
        (with_entry(path=f"{EMPTY}/x"), f"names {EMPTY} as a file and as a folder"),
        (with_entry(path="triton/AB12"), "names triton/AB12 as a file and as a folder"),
        (
            lambda document: document["stages"].update(flashinfer=document["stages"]["inductor"]),
            " twice",
        ),
    ],
    "stages of another form": [
        *[
            (with_part(**{key: None}), "no valid stage inductor")
            for key in ("key", "signature", "finished", "hints", "files")
        ],
        *[(with_part(files=value), "no valid stage inductor") for value in NO_LIST],
        *[
            (change, "no valid stage inductor")
            for change in (with_part(finished=1), with_part(more=1))
        ],
        (lambda document: document["stages"]["inductor"].pop("hints"), "no valid stage inductor"),
        (lambda document: document["stages"].update(inductor=[]), "no valid stage inductor"),
        (with_part(files=[]), "a stage inductor of another form"),
        *[
            (with_part(key=key), "a stage inductor of another form")
            for key in ("", "0" * 15, "\x1b[31m" + "0" * 11, "\ud800" * 16, "0" * 17)
        ],
        *[
            (with_stage(name), f"a stage {files.printable(name[:40])} of another form")
            for name in ("", "../inductor", "\x1b[31m", "\ud800", "Inductor", "x" * 41, "a b")
        ],
    ],
    "manifests of another form": [
        *[(with_top("stages", value), "its manifest is of another form") for value in NO_NUMBER],
        *[
            (with_top("schema_version", value), "its manifest is of another form")
            for value in ("2", *NO_TEXT)
        ],
        (with_top("more", 1), "its manifest is not written as export writes one"),
    ],
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_resigned_manifest_that_no_export_writes_is_refused(host: Receiver, kind: str) -> None:
    for change, why in CHANGES[kind]:
        document = manifest(host.archive)
        change(document)
        assert why in host.refuses(resigned(host.archive, document))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not with a manifest"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b"[]", "of another form"),
        (b"null", "of another form"),
        (b'"stages"', "of another form"),
        (b'{"schema_version":"1"}', "of another form"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
    ],
    ids=range(11),
)
def test_a_manifest_of_another_form_is_refused(host: Receiver, content: bytes, why: str) -> None:
    assert why in host.refuses(signed(content, members(host.archive)[1:]))


@pytest.mark.parametrize(
    "write",
    [
        lambda document: json.dumps(document).encode(),
        lambda document: json.dumps(document, separators=(",", ":")).encode() + b"\n",
        lambda document: written(document) + b" ",
        lambda document: written(document).replace(
            b'"schema_version":"1"', b'"schema_version":"1","schema_version":"1"'
        ),
        lambda document: written(document).replace(
            b'"finished":true', b'"finished":false,"finished":true'
        ),
        lambda document: written(document).replace(b'"tp":1', b'"tp":1e0'),
        lambda document: written(document).replace(b'"tp":1', b'"tp":1e999'),
        lambda document: written(document).replace(b"cpu", rb"c\u0070u", 1),
        lambda document: json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode(),
    ],
    ids=range(9),
)
def test_a_manifest_that_is_written_otherwise_is_refused(
    host: Receiver, write: Callable[[Any], bytes]
) -> None:
    document = manifest(host.archive)
    assert written(document) == members(host.archive)[0][1] != write(document)
    assert (
        host.refuses(signed(write(document), members(host.archive)[1:]))
        == "its manifest is not written as export writes one"
    )


def test_a_signature_so_deep_that_it_cannot_be_written_again_is_refused(host: Receiver) -> None:
    document = manifest(host.archive)
    for depth in (300, 500, 900, 990):
        document["stages"]["inductor"]["signature"] = {"deep": None}
        content = written(document).replace(
            b'"deep":null', b'"deep":' + b"[" * depth + b"]" * depth
        )
        with nothing_taken():
            answer = host.take(signed(content, members(host.archive)[1:]))
        assert answer.code == EXIT_ARCHIVE
        assert admin("caches", "verify", str(host.file)).code in (0, EXIT_ARCHIVE)


def test_a_manifest_that_claims_to_be_huge_is_not_read(host: Receiver) -> None:
    [(first, content), *_] = members(host.archive)
    for size in ((64 << 20) + 1, 2**60, -1):
        made, _ = member(first.name)
        made.size = size
        assert f"of {size} bytes, not with a manifest" in host.refuses(
            made.tobuf(tarfile.GNU_FORMAT) + content
        )


@pytest.mark.parametrize(
    "thing", ["nothing", "zeros", "text", "gzip", "another tar", "another manifest", "an image"]
)
def test_what_is_no_archive_is_refused(host: Receiver, thing: str) -> None:
    (folder := host.file.with_name("folder")).mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "manifest-x.json").write_text("{}")

    def tarred(*options: str) -> bytes:
        return subprocess.run(
            ["tar", "-C", str(folder), "-c", *options], capture_output=True, check=True
        ).stdout

    sent = {
        "nothing": b"",
        "zeros": bytes(10240),
        "text": b"hello\n" * 1000,
        "gzip": tarred("-z", "manifest.json"),
        "another tar": tarred("."),
        "another manifest": tarred("--owner=0", "--group=0", "manifest-x.json"),
        "an image": tarred("manifest.json"),
    }
    assert host.refuses(sent[thing])


# --- what this host has no room or no use for


def test_a_bomb_is_refused_before_anything_is_written(host: Receiver) -> None:
    document = manifest(host.archive)
    entry(document).update(size=2**60)
    archive = resigned(host.archive, document)
    with nothing_taken():
        answer = host.take(archive)
    assert (
        answer.code == EXIT_NO_RESULT
        and "take 1152921504.6 GB" in answer.error
        and not paths.INCOMING.exists()
    )


def test_a_content_that_claims_to_be_huge_ends_before(host: Receiver) -> None:
    document = manifest(host.archive)
    document["stages"]["inductor"]["files"] = [{**entry(document), "size": 2**60}]
    made, found = member(f"files/{entry(document)['sha256']}", INDUCTOR[SO])
    made.size = 2**60
    host.file.write_bytes(
        signed(written(document), [])[:-1024] + made.tobuf(tarfile.GNU_FORMAT) + found
    )
    answer = admin("caches", "verify", str(host.file))
    assert answer.code == EXIT_ARCHIVE and f"it ends in the middle of {SO}" in answer.error


def test_without_room_nothing_is_written_and_both_sizes_are_told(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 20))
    assert host.take(host.archive).code == 0, "the reserve and some more"
    wipe()
    paths.INCOMING.rmdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    with nothing_taken():
        answer = host.take(host.archive)
    assert answer.code == EXIT_NO_RESULT and not paths.INCOMING.exists()
    assert (
        "take 0.0 GB, and /host/profiles has 0.1 GB free: free some and run again" in answer.error
    )


def test_a_disk_that_gets_full_meanwhile_leaves_nothing(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(paths.INCOMING))

    monkeypatch.setattr(os, "utime", full)
    with nothing_taken():
        answer = host.take(host.archive)
    assert (
        answer.code == EXIT_NO_RESULT
        and "no space left on /host/profiles/.incoming" in answer.error
    )


def test_while_a_prep_runs_it_is_named_and_nothing_is_taken(host: Receiver, live_run: str) -> None:
    lock = locks.try_lock(job.LOCK)
    assert lock is not None
    with nothing_taken():
        answer = host.take(host.archive)
        who = f"pid {os.getpid()} of uid {os.geteuid()}"
        assert answer.code == EXIT_BUSY and f"a prep or an import ({who}" in answer.error
        job.Job(live_run, host.prep().request, "prep-20261123T091600Z-77aa01bc").update()
        answer = host.take(host.archive)
    assert (
        answer.code == EXIT_BUSY
        and f"busy: prep-20261123T091600Z-77aa01bc (pid {os.getpid()}) runs" in answer.error
    )
    os.close(lock)
    assert host.take(host.archive).code == 0 and not job.running()


def refused(host: Receiver, document: Any, *words: str) -> str:
    """Holds this host to refuse the stage of a whole archive; returns why."""
    with nothing_taken():
        answer = host.take(resigned(host.archive, document), *words)
    status, why = answer.status(next(iter(document["stages"])))
    assert (
        (answer.code, status) == (EXIT_ARCHIVE, "refused") and why is not None and why.isprintable()
    )
    return why


def test_what_is_refused_is_whole_all_the_same_and_people_are_told_why(host: Receiver) -> None:
    document = manifest(host.archive)
    document["stages"]["inductor"]["signature"]["cpu_arch"] = "riscv64"
    why = refused(host, document)
    assert (
        why == "its signature differs in CPU architecture: made for riscv64, and this host wants"
        f" {platform.machine()}"
    )
    text = admin("caches", "import", str(host.file), *host.words)
    assert (text.code, text.out) == (EXIT_ARCHIVE, f"inductor     refused  {why}\n")
    verified = admin("caches", "verify", str(host.file), "--json")
    assert (
        verified.code == 0
        and verified.document["stages"]["inductor"]["signature"]["cpu_arch"] == "riscv64"
    )


def test_each_field_of_the_signature_counts(host: Receiver) -> None:
    signature = manifest(host.archive)["stages"]["inductor"]["signature"]
    assert {
        "cpu_arch",
        "cpu_isa",
        "device_name",
        "sglang",
        "torch",
        "triton",
        "model_config",
        "tp",
        "batch_sizes",
    } <= set(signature)
    for field, value in signature.items():
        name = {"cpu_arch": "CPU architecture", "device_name": "GPU"}.get(field, field)
        others: tuple[object, ...] = f"{value}0", [] if value is None else None
        for other in others:
            document = manifest(host.archive)
            document["stages"]["inductor"]["signature"][field] = other
            assert refused(host, document).startswith(f"its signature differs in {name}: made for ")
        document = manifest(host.archive)
        del document["stages"]["inductor"]["signature"][field]
        assert refused(host, document).startswith(
            f"its signature differs in {name}: made for nothing, and this host wants "
        )


def test_a_key_of_the_models_config_is_named_by_itself(host: Receiver) -> None:
    document = manifest(host.archive)
    config = document["stages"]["inductor"]["signature"]["model_config"]
    config["attn_logit_softcapping"] = 50.0
    assert refused(host, document) == (
        "its signature differs in model_config.attn_logit_softcapping: made for 50.0, and this host"
        " wants nothing"
    )


def test_a_server_that_ran_elsewhere_counts_and_what_says_nothing_of_one_does_not(
    host: Receiver,
) -> None:
    """An archive of an earlier release, or of a server with other arguments."""
    given = manifest(host.archive)
    for hints in ({}, {"served": 5}, {"served": "sha256:x"}, {"served": "sha256:" + 64 * "0"}):
        wipe()
        document = {**given, "stages": {"inductor": {**given["stages"]["inductor"]}}}
        document["stages"]["inductor"]["hints"] = hints
        answer = host.take(resigned(host.archive, document))
        status, reason = answer.status()
        assert answer.code == 0 and status == "imported", hints
        assert reason is not None and "has not run with these caches" in reason, hints
        assert host.ensured()["inductor"] == "would_run", hints
    assert host.take(host.archive).status() == ("imported", None)
    assert host.ensured()["inductor"] == "noop"


@pytest.mark.parametrize("other", [True, 1.0, "1", [1]])
def test_what_only_python_takes_for_the_same_is_another_signature(
    host: Receiver, other: object
) -> None:
    document = manifest(host.archive)
    document["stages"]["inductor"]["signature"]["tp"] = other
    told = other if isinstance(other, str) else json.dumps(other)
    assert (
        refused(host, document)
        == f"its signature differs in tp: made for {told}, and this host wants 1"
    )


def test_a_signature_with_more_or_strange_fields_is_told_in_a_line(host: Receiver) -> None:
    document = manifest(host.archive)
    signature = document["stages"]["inductor"]["signature"]
    signature.update(
        {f"{number:03}\x1b[31m\ud800": "\n" * 5000 for number in range(500)}, cpu_arch="riscv64"
    )
    why = refused(host, document)
    assert len(why) < 2500 and "000?[31m?: made for ???" in why and "493 more" in why


@pytest.mark.parametrize(
    "name",
    [
        "flashinfer/x.so",
        "moe_configs/configs/triton_3_6_0/x.json",
        ".locks/x",
        "x/y",
        ".in_progress/a.json",
    ],
)
def test_files_of_another_stage_are_refused(host: Receiver, name: str) -> None:
    document = manifest(host.archive)
    entry(document).update(path=name)
    assert (
        refused(host, document)
        == f"{name.rpartition('/')[0]} is not a folder of this stage ({CACHES})"
    )


@pytest.mark.parametrize("name", ["inductor2", "tensorrt", "x"])
def test_a_stage_that_this_release_does_not_know_is_refused(host: Receiver, name: str) -> None:
    document = manifest(host.archive)
    document["stages"][name] = document["stages"].pop("inductor")
    assert refused(host, document) == "this release knows no such stage"


def test_a_stage_that_is_not_wanted_here_is_refused(host: Receiver) -> None:
    document = manifest(host.archive)
    assert refused(host, document, "--inductor", "skip") == "it is skipped here (requested)"
    assert refused(host, document, "--inductor", "rebuild") == "this host rebuilds it (rebuild)"
    assert "batch_sizes: made for [1, 4], and this host wants [8]" in refused(
        host, document, "--cuda-graph-bs", "8"
    )
    document["stages"]["flashinfer"] = document["stages"].pop("inductor")
    assert refused(host, document) == "it is skipped here (no_cuda_device)"


def test_an_unusable_request_is_told_and_takes_nothing(host: Receiver) -> None:
    with nothing_taken():
        answer = host.take(host.archive, "--tp", "2")
        assert answer.code == EXIT_USAGE and "tp 2 needs 2 devices" in answer.error
        shutil.rmtree(paths.STATE)
        assert host.take(host.archive).code == 4


def test_of_several_stages_those_that_fit_are_taken(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    wipe()
    for stage, found in ALL.items():
        host.finish(stage, found)
    assert host.share("export", host.file).code == 0
    archive = host.file.read_bytes()
    document = manifest(archive)
    document["stages"]["flashinfer"]["signature"]["flashinfer"] = "0.1"
    wipe()
    answer = host.take(resigned(archive, document))
    assert answer.code == EXIT_ARCHIVE and {
        name: answer.status(name)[0] for name in document["stages"]
    } == {**dict.fromkeys(ALL, "imported"), "flashinfer": "refused"}
    assert "flashinfer: made for 0.1, and this host wants 0.6.15" in str(
        answer.status("flashinfer")[1]
    )
    assert {
        name for name, thing in tree().items() if thing.content is not None and "/." not in name
    } == {name for stage, found in ALL.items() if stage != "flashinfer" for name in found}
    # A content that a stage which is refused has too came with the other.
    assert (
        entry(document, GRAPH)["sha256"] == document["stages"]["flashinfer"]["files"][2]["sha256"]
    )
    # And nothing is taken of any where one byte of the refused one is wrong.
    wipe()
    sent = members(resigned(archive, document))
    number = next(
        number
        for number, (_, content) in enumerate(sent)
        if content == ALL["flashinfer"]["tvm_ffi/norm.so"]
    )
    sent[number] = sent[number][0], sent[number][1][::-1]
    with nothing_taken():
        assert host.take(packed(sent)).code == EXIT_ARCHIVE


# --- what lies in the way


@pytest.mark.parametrize(
    "name", ["triton/AB12", "triton/E=8,block_shape=[128, 128]", "torchinductor/ab"]
)
@pytest.mark.parametrize("target", ["outside", "sibling", "root"])
def test_a_link_that_leads_out_of_the_cache_is_refused(
    host: Receiver, tmp_path: Path, name: str, target: str
) -> None:
    (outside := tmp_path / "outside").mkdir()
    link = paths.PROFILES / name
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(
        {"outside": outside, "sibling": paths.PROFILES / "flashinfer", "root": Path("/")}[target]
    )
    assert (
        refused(host, manifest(host.archive))
        == f"/host/profiles/{name} is a link that leads out of the cache: remove it"
    )
    assert not list(outside.iterdir()) and not list((paths.PROFILES / "flashinfer").iterdir())


def test_a_link_within_the_cache_or_of_the_whole_cache_is_followed(
    host: Receiver, tmp_path: Path
) -> None:
    (paths.PROFILES / "triton/elsewhere").mkdir()
    shutil.rmtree(paths.PROFILES / "triton/AB12")
    (paths.PROFILES / "triton/AB12").symlink_to("elsewhere")
    (paths.PROFILES / "torchinductor").rename(tmp_path / "torchinductor")
    (paths.PROFILES / "torchinductor").symlink_to(tmp_path / "torchinductor")
    assert host.take(host.archive).status() == ("imported", None)
    assert (paths.PROFILES / "triton/elsewhere/kernel.so").read_bytes() == INDUCTOR[
        SO
    ] and host.ensured()["inductor"] == "noop"
    assert (tmp_path / "torchinductor/ab/graph.py").read_bytes() == INDUCTOR[GRAPH]


@pytest.mark.parametrize("thing", ["file", "loop", "dangling", "pipe"])
def test_what_lies_where_a_folder_has_to_be_is_named(host: Receiver, thing: str) -> None:
    folder = paths.PROFILES / "triton/AB12"
    shutil.rmtree(folder)
    {
        "file": folder.touch,
        "loop": lambda: folder.symlink_to("AB12"),
        "dangling": lambda: folder.symlink_to("gone"),
        "pipe": lambda: os.mkfifo(folder),
    }[thing]()
    assert (
        refused(host, manifest(host.archive))
        == "/host/profiles/triton/AB12 is not a folder: remove it"
    )


def test_a_folder_that_lies_where_a_file_has_to_be_is_named(host: Receiver) -> None:
    (paths.PROFILES / SO).mkdir()
    assert (
        refused(host, manifest(host.archive))
        == f"/host/profiles/{SO} is a folder, and a file in the archive: remove it"
    )


def test_a_cache_on_another_file_system_is_refused(host: Receiver) -> None:
    shutil.rmtree(paths.PROFILES / "triton")
    (paths.PROFILES / "triton").symlink_to("/proc")
    assert refused(host, manifest(host.archive)).endswith(
        "is on another file system than /host/profiles"
    )


def test_a_link_in_a_files_place_is_replaced_and_not_followed(
    host: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    for target in (tmp_path / "precious", tmp_path):
        wipe()
        (paths.PROFILES / "triton/AB12").mkdir()
        (paths.PROFILES / SO).symlink_to(target)
        assert host.take(host.archive).status() == ("imported", None)
        assert (
            not (paths.PROFILES / SO).is_symlink()
            and (paths.PROFILES / SO).read_bytes() == INDUCTOR[SO]
        )
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_mode_that_nobody_may_read_is_set_all_the_same(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, real = manifest(host.archive), shutil.copyfile

    def copyfile(source: Path, target: Path) -> Path:
        # Root may read whatever it is.
        assert source.stat().st_mode & 0o400
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    names = (GRAPH, "triton/copy of graph.json")
    modes = dict(zip(names, (0, 0o040), strict=True))
    for name, mode in modes.items():
        # What it would grant to others than the group is not taken over.
        entry(document, name).update(mode=mode | 0o007)
    assert host.take(resigned(host.archive, document)).code == 0
    for name, mode in modes.items():
        assert (paths.PROFILES / name).stat().st_mode & 0o777 == mode
        (paths.PROFILES / name).chmod(0o600)
        assert (paths.PROFILES / name).read_bytes() == INDUCTOR[GRAPH]


def test_what_was_torn_here_is_replaced_and_the_marker_of_the_dead_prep_goes(
    host: Receiver,
) -> None:
    lay(SO, b"torn")
    files.write_json(
        paths.IN_PROGRESS / "inductor.json",
        {"stage": "inductor", "owner_pid": 4_000_000, "started_at": "x"},
    )
    assert host.ensured()["inductor"] == "would_run"
    answer = host.take(host.archive)
    assert answer.status() == ("imported", None) and host.ensured()["inductor"] == "noop"
    assert (paths.PROFILES / SO).read_bytes() == INDUCTOR[SO]


# --- killed at any moment


@pytest.fixture
def sender(host: Receiver) -> Receiver:
    """The host, for which an archive of two files lies there."""
    with as_before() as restore:
        wipe()
        host.finish("inductor", {SO: INDUCTOR[SO], GRAPH: INDUCTOR[GRAPH]})
        assert host.share("export", host.file).code == 0
        host.archive = host.file.read_bytes()
        restore()
    host.file.with_name("broken.tar").touch()
    return host


def settled(host: Receiver, number: int) -> None:
    """The next command, whichever it is."""
    if number % 2:
        assert admin("caches", "ensure", *host.words, "--detach", "--standing").code == 0
    else:
        assert host.share("import", host.file.with_name("broken.tar")).code == EXIT_ARCHIVE


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("raises", "full"))]
)
def test_wherever_an_import_ends_the_next_command_finds_all_or_nothing_of_it(
    sender: Receiver, how: str
) -> None:
    host = sender
    lay(SO, b"a torn one")
    old = tree()
    words = ("caches", "import", str(host.file), *host.words)
    with as_before() as restore:
        assert admin(*words).code == 0
        new, seen = content(tree()), set()
        for number in range(1, 500):
            restore()
            code, said = disturbed(number, how, *words)
            if code == UNDISTURBED:
                break
            if code == EXIT_NO_RESULT:
                assert how == "full" and "no space left on /host/profiles" in said, (number, said)
            else:
                # To tidy up after it needs no space.
                assert code == (KILLED if how != "full" else 0), (number, said)
            settled(host, number)
            found = tree()
            assert content(found) == new if code == 0 else found == old or content(found) == new, (
                number,
                said,
            )
            seen.add(found == old)
    assert number > 30 and seen == {True, False}


@pytest.mark.slow
def test_whoever_finishes_an_import_may_be_killed_too(
    sender: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = sender
    words = ("caches", "ensure", *host.words, "--detach", "--standing")
    committed(host, monkeypatch)
    with as_before() as restore:
        assert admin(*words).code == 0 and host.ensured()["inductor"] == "noop"
        new = content(tree())
        for number in range(1, 500):
            restore()
            assert disturbed(number, "killed", *words)[0] == KILLED
            if not any(paths.INCOMING.iterdir()):
                # What it does from there on is a prep that has nothing to do.
                break
            settled(host, number)
            assert content(tree()) == new
    assert number > 15


def committed(host: Receiver, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import that was killed as soon as it counted; returns its folder."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(incoming, "_place", lambda folder: 1 / 0)
        host.take(host.archive)
    [folder] = paths.INCOMING.iterdir()
    return folder


def forgotten(host: Receiver) -> str:
    """Holds the next command to forget what was left, and to go on; returns the warning."""
    answer = host.share("import", host.file)
    [warning] = answer.document["warnings"]
    assert warning.startswith(
        "an import that was killed cannot be finished ("
    ) and warning.endswith("); it is forgotten")
    assert (
        answer.code == 0
        and answer.status() == ("imported", None)
        and not list(paths.INCOMING.iterdir())
    )
    return str(warning)


@pytest.mark.parametrize("damage", ["commit", "stage", "cut", "gone", "in the way"])
def test_an_import_that_cannot_be_finished_is_forgotten_with_a_warning(
    host: Receiver, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    folder = committed(host, monkeypatch)
    record = folder / "commit.json"
    match damage:
        case "commit":
            record.write_bytes(record.read_bytes()[:100])
        case "stage":
            record.write_bytes(record.read_bytes().replace(b'"inductor":', b'"tensorrt":'))
        case "cut":
            # As after a power cut: its name was on disk, and its content was not.
            (folder / "files" / SO).write_bytes(b"")
        case "gone":
            (folder / "files" / SO).unlink()
        case "in the way":
            shutil.rmtree(paths.PROFILES / "triton/AB12")
            (paths.PROFILES / "triton/AB12").touch()
    with monkeypatch.context() as patch:
        if damage == "in the way":
            # The next one is refused for the same reason; it is not what this is about.
            patch.setattr(incoming, "check_paths", lambda part: "in the way")
            answer = host.share("import", host.file)
            assert (
                answer.code == EXIT_ARCHIVE
                and "cannot be finished" in answer.document["warnings"][0]
            )
            assert not list(paths.INCOMING.iterdir()) and host.ensured()["inductor"] == "would_run"
            return
    assert {
        "commit": "not JSON",
        "stage": "no stage tensorrt",
        "cut": f"{SO} has another size",
        "gone": SO,
    }[damage] in forgotten(host)


def test_what_else_lies_among_imports_is_removed(host: Receiver, tmp_path: Path) -> None:
    (precious := tmp_path / "precious").mkdir()
    (precious / "x").touch()
    paths.INCOMING.mkdir()
    (paths.INCOMING / "file").touch()
    (paths.INCOMING / "link").symlink_to(precious)
    os.mkfifo(paths.INCOMING / "pipe")
    (paths.INCOMING / "import-x" / "files" / "triton").mkdir(parents=True)
    assert host.take(host.archive).code == 0
    assert not list(paths.INCOMING.iterdir()) and (precious / "x").exists()


def test_people_are_told_of_what_could_not_be_finished(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    (committed(host, monkeypatch) / "commit.json").write_bytes(b"\x1b[31m")
    answer = admin("caches", "import", str(host.file), *host.words)
    assert answer.out == "inductor     imported\n" and answer.error.startswith(
        "sgl-admin: warning: an import that was killed"
    )


def test_a_prep_tells_of_it_too(host: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    (committed(host, monkeypatch) / "commit.json").write_bytes(b"{}")
    plan = admin("caches", "ensure", *host.words, "--detach", "--standing").document["plan"]
    assert (
        "cannot be finished" in plan["warnings"][0]
        and plan["stages"]["inductor"]["status"] == "would_run"
    )


def test_two_imports_that_were_killed_are_both_finished(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = committed(host, monkeypatch)
    shutil.copytree(folder, folder.with_name("import-0"))
    assert (
        admin("caches", "ensure", *host.words, "--detach", "--standing").document["result"]
        is not None
    )
    assert not list(paths.INCOMING.iterdir()) and host.ensured()["inductor"] == "noop"


def test_a_stage_lock_that_is_held_is_waited_for_and_told(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "_LOCK_TIMEOUT_S", 0.0)
    lock = locks.try_lock("inductor")
    assert lock is not None
    answer = host.take(host.archive)
    assert answer.code == EXIT_NO_RESULT
    assert f"inductor.lock is held by pid {os.getpid()} of uid {os.geteuid()} (" in answer.error
    os.close(lock)
    assert (
        admin("caches", "ensure", *host.words, "--detach", "--standing").document["result"]
        is not None
    ), "it is finished later"
    assert host.ensured()["inductor"] == "noop"


def test_a_commit_that_cannot_be_written_leaves_nothing(
    host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(incoming.files, "write_text", full)
    with nothing_taken():
        answer = host.take(host.archive)
    assert (
        answer.code == EXIT_NO_RESULT
        and "no space left" in answer.error
        and isinstance(Manifest(()).content, bytes)
    )
    assert cli.EXIT_NO_RESULT == 1
