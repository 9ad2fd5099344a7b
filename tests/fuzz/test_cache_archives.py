"""What another host sends as an archive of caches: it is taken as it was written, or nothing of it
is; and what lies here goes there.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from sgl_admin.base import paths, rights
from sgl_admin.contract.exit_codes import EXIT_ARCHIVE, EXIT_NO_RESULT
from sgl_admin.records import archive as archive_format
from sgl_admin.records import caches, served, vouched
from tests.fuzz.fuzzing import damaged, encoded, fuzz, mostly, one_line, put, reached, spoiled, text
from tests.fuzz.test_records_of_a_container import GOOD, LIVE, MODEL, NAMED, POINTER, container
from tests.unit.sharing import (
    Answer,
    Host,
    Member,
    Thing,
    admin,
    content,
    lay,
    manifest,
    member,
    members,
    packed,
    resigned,
    signed,
    tree,
    wipe,
    written,
)

FILES = {
    "torchinductor/ab/graph.py": b"x = 1\n",
    "triton/AB12/kernel.so": b"\x7fELF" + bytes(range(256)) * 2,
    "triton/AB12/empty.json": b"",
    "triton/same.json": b"x = 1\n",
}
OUTSIDE = "outside"
_BLOCK = 512
# What goes out in one call with its header.
_SMALL = 1 << 18


@contextmanager
def host() -> Iterator[Host]:
    """A host with work of its own, in the same folders, and a file beside its caches that no
    archive may reach.
    """
    with container() as inside:
        for name in (LIVE, POINTER, NAMED):
            put(inside / name, GOOD[name])
        lay("triton/AB12/own.so", b"own")
        lay("torchinductor/own.py", b"own")
        (inside / OUTSIDE).write_bytes(b"precious")
        # In containers a model has one path; here each host has a folder of its own.
        with mock.patch.object(served, "with_caches", lambda *_: f"sha256:{64 * '1'}"):
            yield Host(inside / MODEL)
        assert (inside / OUTSIDE).read_bytes() == b"precious"


@functools.cache
def sent() -> bytes:
    """The archive as it was written."""
    with host() as sender:
        sender.finish("inductor", FILES)
        return give(sender)


def give(sender: Host) -> bytes:
    path = paths.TELEMETRY / "sent.tar"
    assert sender.share("export", path).code == 0
    return path.read_bytes()


def take(receiver: Host, archive: bytes) -> Answer:
    path = paths.TELEMETRY / "received.tar"
    path.write_bytes(archive)
    verified = admin("caches", "verify", str(path))
    answer = receiver.share("import", path)
    if answer.out:
        assert verified.code == 0, verified.error
    elif answer.code == EXIT_ARCHIVE:
        assert verified == answer
    return answer


def held(answer: Answer, before: dict[str, Any], document: Any) -> None:
    """Holds the caches to be as they were, or with what the manifest names, and nothing else
    changed.
    """
    if not answer.out:
        assert answer.code in (EXIT_ARCHIVE, EXIT_NO_RESULT), answer
        one_line(answer.error.rstrip("\n"))
        assert tree() == before
        return
    stages = answer.document["stages"]
    for stage in stages.values():
        if stage["reason"] is not None:
            one_line(stage["reason"])
    if any(stage["status"] == "refused" for stage in stages.values()):
        assert answer.code == EXIT_ARCHIVE and set(stages) == {"inductor"} or tree() == before
    if all(stage["status"] == "refused" for stage in stages.values()):
        assert tree() == before
        return
    found = {
        name: thing
        for name, thing in tree().items()
        if thing.content is not None and "/.signatures/" not in name
    }
    wanted = {entry["path"]: entry for entry in document["stages"]["inductor"]["files"]}
    assert set(found) == {
        *(name for name, thing in before.items() if thing.content is not None),
        *wanted,
    }
    for name, thing in found.items():
        if name in wanted:
            mode = wanted[name]["mode"] & ~rights.umask()
            assert (thing.mtime_ns, thing.mode) == (wanted[name]["mtime_ns"], mode)
            assert isinstance(thing.content, bytes) and len(thing.content) == wanted[name]["size"]
        else:
            assert thing == before[name]


# --- another archive than the one that was written


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """The archive with one or two changes in its bytes, its blocks or its members."""
    archive = sent()
    for _ in range(draw(st.integers(1, 2))):
        archive = draw(_IN_BYTES | _IN_BLOCKS | _IN_MEMBERS)(draw, archive)
    return archive


def in_bytes(draw: st.DrawFn, archive: bytes) -> bytes:
    # Each block as often: integers() would seldom be far from its ends.
    start = draw(st.sampled_from(range(0, max(len(archive), 1), _BLOCK))) + draw(
        st.integers(0, _BLOCK - 1)
    )
    end = start + draw(st.sampled_from([0, 1, 1, 1, 2, 511, 512, 1 << 20]))
    return archive[:start] + draw(st.binary(max_size=3) | st.just(bytes(_BLOCK))) + archive[end:]


def in_blocks(draw: st.DrawFn, archive: bytes) -> bytes:
    blocks = [archive[start : start + _BLOCK] for start in range(0, len(archive), _BLOCK)] or [b""]
    first, second = (
        draw(st.sampled_from(range(len(blocks)))),
        draw(st.sampled_from(range(len(blocks)))),
    )
    match draw(st.sampled_from(["swap", "copy", "drop", "cut"])):
        case "swap":
            blocks[first], blocks[second] = blocks[second], blocks[first]
        case "copy":
            blocks.insert(second, blocks[first])
        case "drop":
            del blocks[first]
        case "cut":
            del blocks[first:]
    return b"".join(blocks)


_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "name": (
        text()
        | st.sampled_from(
            ["files/../../outside", "/outside", "triton/x", "manifest-" + "0" * 64 + ".json"]
        )
    ),
    "type": st.sampled_from([bytes([kind]) for kind in b"0123457LKSxgX\0"]),
    "linkname": st.sampled_from(["/outside", "../outside", "triton"]),
    "uid": st.integers(0, 2**21 - 1),
    "uname": st.sampled_from(["root", "nobody"]),
    "mode": st.sampled_from([0, 0o4755, 0o777, 0o600]),
    "mtime": st.integers(0, 2**31),
    "size": st.sampled_from([0, 1, 5, 7, 513, 2**33, 2**60, -1]),
}


def in_members(draw: st.DrawFn, archive: bytes) -> bytes:
    try:
        found: list[Member] = members(archive)
    except (tarfile.TarError, UnicodeError, KeyError):
        # It was changed before.
        return archive
    if not found:
        return archive
    number = draw(st.sampled_from(range(len(found))))
    match draw(st.sampled_from(["change", "change", "change", "drop", "copy", "move", "content"])):
        case "change":
            field = draw(st.sampled_from(sorted(_FIELDS)))
            made = copy.copy(found[number][0])
            setattr(made, field, draw(_FIELDS[field]))
            found[number] = made, found[number][1]
        case "drop":
            del found[number]
        case "copy":
            found.insert(draw(st.integers(0, len(found))), found[number])
        case "move":
            found.insert(draw(st.integers(0, len(found) - 1)), found.pop(number))
        case "content":
            made, old = found[number]
            found[number] = member(made.name, draw(st.binary(max_size=600)))
    try:
        return packed(found)
    except UnicodeError:
        return archive


_IN_BYTES, _IN_BLOCKS, _IN_MEMBERS = st.just(in_bytes), st.just(in_blocks), st.just(in_members)


@fuzz(deep=0.2, archive=changed() | damaged(st.just(b"")))
def test_an_archive_that_was_changed_is_refused_whatever_was_changed(archive: bytes) -> None:
    with host() as receiver:
        before = tree()
        answer = take(receiver, archive)
        if archive == sent():
            assert answer.code == 0
            return
        assert answer.code == EXIT_ARCHIVE and tree() == before
        one_line(answer.error.rstrip("\n"))
        assert answer.error.startswith("sgl-admin: the archive from ")
        if "manifest" not in answer.error:
            reached()


# --- a manifest that says something else, and is signed

_PATHS = st.sampled_from(
    [
        "../outside",
        "/outside",
        "triton/../../outside",
        "triton/x",
        "triton/AB12",
        "triton/AB12/own.so",
        "triton/AB12/own.so/x",
        "torchinductor/ab/graph.py",
        "flashinfer/x",
        ".incoming/x",
        "triton/.signatures/x.json",
        "triton",
        "triton/x.lock",
        "a/b",
    ]
)
_NUMBERS = st.sampled_from([0, 1, 6, 0o777, 0o4755, 2**60, 2**63, -1]) | st.integers(0, 10**18)


@fuzz(
    deep=0.1,
    document=mostly(
        spoiled(
            manifest(sent()), most=2, values=_PATHS | _NUMBERS | st.sampled_from(sorted(FILES))
        ),
        spoiled(manifest(sent())),
        70,
    ),
    canonical=mostly(st.just(True), st.just(False)),
)
def test_a_signed_manifest_is_refused_or_is_what_lies_there_then(
    document: Any, canonical: bool
) -> None:
    with host() as receiver:
        before = tree()
        archive = resigned(sent(), document)
        if not canonical:
            archive = signed(encoded(document), members(archive)[1:])
        answer = take(receiver, archive)
        if answer.out:
            reached()
        held(answer, before, document)
        if archive == sent():
            assert answer.code == 0 and answer.status() == ("imported", None)


# --- what a killed import left


@functools.cache
def commit() -> dict[str, Any]:
    return manifest(sent())


@fuzz(
    deep=0.03,
    record=damaged(spoiled(commit(), most=2, values=_PATHS | _NUMBERS).map(written)),
    lost=mostly(st.just(""), st.sampled_from(sorted(FILES))),
)
def test_what_a_killed_import_left_is_finished_or_forgotten(record: bytes, lost: str) -> None:
    with host() as receiver:
        folder = paths.INCOMING / "import-20261123T091500Z-3fa9c1d2"
        for name, found in FILES.items():
            if name != lost:
                put(folder / "files" / name, found)
        put(folder / "commit.json", record)
        answer = admin("caches", "ensure", *receiver.words, "--detach", "--standing")
        assert answer.code == 0, answer.error
        assert not list(paths.INCOMING.iterdir())
        said = answer.document
        warnings = [
            each
            for each in (said.get("plan") or said["result"])["warnings"]
            if "SGLang version" not in each
        ]
        assert len(warnings) <= 1
        for warning in warnings:
            one_line(warning)
        finished = record == written(commit()) and not lost
        if finished:
            reached()
        assert not finished or (
            not warnings and said["result"]["stages"]["inductor"]["status"] == "noop"
        )
        # Where it ends finished, all is there that its record vouches for.
        for vouched in (paths.PROFILES / "torchinductor/.signatures").glob("*.json"):
            for name, size in json.loads(vouched.read_bytes())["files"].items():
                assert (paths.PROFILES / name).stat().st_size == size
        assert (paths.PROFILES / "torchinductor/own.py").read_bytes() == b"own"


# --- whatever lies here goes there

_NAME = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6
) | st.sampled_from(
    [
        "a",
        "b",
        "E=8,block_shape=[128, 128].json",
        "x" * 255,
        "\u00e9" * 127,
        "a b",
        "-",
        "*",
        "\n",
        "\x1b[31m",
        "...",
    ]
)
_PLACE = st.tuples(
    st.sampled_from(["triton", "torchinductor"]),
    st.lists(
        _NAME.filter(
            lambda name: (
                name not in (".", "..", ".signatures", ".tuned", ".tuning")
                and len(name.encode()) <= 255
            )
        ),
        min_size=1,
        max_size=3,
    ),
).map(lambda place: "/".join([place[0], *place[1]]))
_FILE = st.tuples(
    st.sampled_from([b"", b"x", b"same", bytes(511), bytes(512), bytes(513), bytes(_SMALL + 1)])
    | st.binary(max_size=40),
    st.integers(0, 4 * 10**18),
    st.sampled_from([0o664, 0o644, 0o755, 0o400, 0o600, 0o777, 0o4755]),
)


@fuzz(
    deep=0.8,
    files=st.dictionaries(_PLACE, _FILE, min_size=1, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_whatever_lies_here_goes_there_and_is_the_same_archive_again(
    files: dict[str, tuple[bytes, int, int]], seed: Any
) -> None:
    # No name may be another one's folder.
    chosen = {
        name: found
        for name, found in files.items()
        if not any(other.startswith(f"{name}/") for other in files)
    }
    with host() as here:
        wipe()

        def finish() -> None:
            names = list(chosen)
            seed.shuffle(names)
            for name in names:
                found, mtime_ns, mode = chosen[name]
                lay(name, found, mtime_ns, mode)
            here.vouch("inductor", (paths.PROFILES / name for name in sorted(chosen)))

        finish()
        before, archive = content(tree()), give(here)
        wipe()
        finish()
        assert give(here) == archive, "in another order"
        wipe()
        answer = take(here, archive)
        assert answer.code == 0 and answer.status() == ("imported", None)
        reached()
        found = content(tree())
        for name, thing in before.items():
            record = f"{caches.RECORDS}/" in name
            portable = thing.mode if record else archive_format.portable_mode(thing.mode)
            mode = portable & 0o777 & ~rights.umask()
            assert of_any_host(name, found.pop(name)) == of_any_host(
                name, thing._replace(mode=mode)
            )
        assert found == {}


def of_any_host(name: str, thing: Thing) -> Thing:
    """A record also says whether another user of its host could write to its files."""
    if f"{caches.RECORDS}/" not in name:
        return thing
    record = json.loads(thing.content or "")
    del record[vouched.EXPOSED]
    return thing._replace(content=json.dumps(record).encode())


@fuzz(
    deep=0.5,
    path=st.lists(
        st.sampled_from(["..", ".", "", "triton", OUTSIDE, "AB12"]) | text(), min_size=1, max_size=6
    ).map("/".join),
)
def test_no_path_leads_out_of_the_caches(path: str) -> None:
    document = manifest(sent())
    document["stages"]["inductor"]["files"][0]["path"] = path
    with host() as receiver:
        before = tree()
        answer = take(receiver, resigned(sent(), document))
        held(answer, before, document)
        reached()
        if answer.code == 0:
            assert Path(os.path.normpath(paths.PROFILES / path)).is_relative_to(
                paths.PROFILES / path.partition("/")[0]
            )
            assert path.partition("/")[0] in ("triton", "torchinductor")
