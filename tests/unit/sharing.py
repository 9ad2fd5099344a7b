"""Hosts that share caches, in one process: what lies in their caches, what one sends, and what
becomes of that on its way.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from sgl_admin.base import paths, versions
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.contract import places, stages
from sgl_admin.facts import devices
from sgl_admin.prep.plan import Decision, Plan, plan_prep
from sgl_admin.records import caches, run
from sgl_admin.records.caches import SignatureRecord

CPU = devices.Devices(name="cpu", count=1, cuda=False, cpu_isa="avx2")
H100 = devices.Devices(
    name="NVIDIA H100 80GB HBM3",
    count=1,
    cuda=True,
    compute_capability="9.0",
    driver_version="580.1",
    cuda_version="13.0",
    kinds=("NVIDIA H100 80GB HBM3",),
)
VERSIONS = {
    "sglang": "0.5.17",
    "torch": "2.11.0+cu130",
    "triton": "3.6.0",
    "flashinfer-python": "0.6.15",
    "sgl-deep-gemm": "0.1.5",
}
# What the compilers of each stage leave, by the path below /profiles: two with one content, an
# empty one, and names of every kind.
INDUCTOR = {
    "torchinductor/ab/graph.py": b"x = 1\n",
    "triton/AB12/kernel.so": b"\x7fELF" + bytes(range(256)) * 3,
    "triton/AB12/empty.json": b"",
    "triton/copy of graph.json": b"x = 1\n",
    "triton/E=8,block_shape=[128, 128]/\u00e9 \u4e2d\u6587\n.json": b"{}",
}
OTHERS = {
    # A tuning is made by hand (test_share_moe).
    **{
        stage.name: {f"{cache}/kernel": stage.name.encode() for cache in stage.caches}
        for stage in stages.STAGES
        if stage.shared
        if stage.name not in ("moe_tune", "inductor")
    },
    "deep_gemm": {"deep_gemm/cache/kernel.fp8/kernel.cubin": b"cubin"},
    "flashinfer": {
        "flashinfer/90/sampling.so": b"\x7fELF sampling",
        "tvm_ffi/norm.so": b"\x7fELF norm",
        "tvm_ffi/x.json": b"x = 1\n",
    },
}
ALL = {**OTHERS, "inductor": INDUCTOR}


# To make it again for each command would take as long as the command.
_PARSER = cli._parser()


class Answer(NamedTuple):
    """What a command of sgl-admin says, and its exit code."""

    code: int
    out: str
    error: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def status(self, stage: str = "inductor") -> tuple[str, str | None]:
        """What became of a stage in an import, and why."""
        found = self.document["stages"][stage]
        return found["status"], found["reason"]


def admin(*words: str) -> Answer:
    """A command, in this process. What it says on standard error is held to what a person can be
    shown.
    """
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        mock.patch.object(cli, "_parser", lambda: _PARSER),
    ):
        code = cli.main(words)
    for line in error.getvalue().splitlines():
        assert line.isprintable() and len(line) < 4000, line[:300]
    return Answer(code, out.getvalue(), error.getvalue())


class Host:
    """A host whose caches lie below `paths.PROFILES`, and what it is asked for by default."""

    def __init__(self, model: Path, *words: str) -> None:
        self.words = ("--model", str(model), "--probe", "never", *words)

    def share(self, action: str, archive: Path | str, *words: str) -> Answer:
        return admin("caches", action, str(archive), *self.words, "--json", *words)

    def send(self, file: Path, archive: bytes, *words: str) -> Answer:
        """What becomes of an archive that is laid at `file` and taken from there."""
        file.write_bytes(archive)
        return self.share("import", file, *words)

    def prep(self) -> Plan:
        live = run.live()
        parsed = _PARSER.parse_args(["caches", "ensure", *self.words])
        return plan_prep(live, request_cli.of(parsed, live))

    def decision(self, stage: str = "inductor") -> Decision:
        return next(decision for decision in self.prep().decisions if decision.stage.name == stage)

    def record(self, stage: str = "inductor") -> SignatureRecord:
        return self.decision(stage).record

    def finish(self, stage: str = "inductor", content: dict[str, bytes] = INDUCTOR) -> None:
        """Lay a finished stage's files and its record there, as a prep does."""
        for number, (name, each) in enumerate(content.items()):
            lay(name, each, mtime_ns=10**18 + number, mode=0o750 if name.endswith(".so") else 0o640)
        self.vouch(stage, (paths.PROFILES / name for name in sorted(content)))

    def vouch(self, stage: str = "inductor", content: Iterable[Path] | None = None) -> None:
        """Write the record of a stage's work, with which this host's server ran."""
        plan = self.prep()
        [decision] = [each for each in plan.decisions if each.stage.name == stage]
        decision.record.write(content, served=plan.context.served_identity)

    def ensured(self) -> dict[str, str]:
        """What a dry run would do about each stage."""
        plan = json.loads(
            admin("caches", "ensure", *self.words, "--dry-run", "--json").out.rpartition(
                "\nRESULT_STATUS"
            )[0]
        )
        return {name: stage["status"] for name, stage in plan["stages"].items()}


def lay(name: str, content: bytes, mtime_ns: int = 10**18, mode: int = 0o640) -> Path:
    path = paths.PROFILES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """Have this be a machine with a GPU, and SGLang installed."""
    patch.setattr(devices, "find", lambda visible: H100)
    patch.setattr(versions, "installed", VERSIONS.get)


def wipe() -> None:
    """Be another host: nothing is in the caches."""
    for cache in caches.CACHES:
        shutil.rmtree(paths.PROFILES / cache)
        (paths.PROFILES / cache).mkdir()


# --- what lies there ------------------------------------------------------------------------------


class Thing(NamedTuple):
    """What lies at a path, as far as a command may change it."""

    kind: int
    content: bytes | str | None
    mtime_ns: int
    mode: int


def tree() -> dict[str, Thing]:
    """All below /profiles but for the locks, whose files any command makes, the times at which a
    record was last used, and the folder of imports, which has to be empty.
    """
    found = {}
    for folder, folders, names in os.walk(paths.PROFILES):
        if Path(folder) == paths.PROFILES:
            folders[:] = [
                name for name in folders if name not in (paths.LOCKS.name, paths.INCOMING.name)
            ]
        for name in (*folders, *(name for name in names if not name.endswith(places.USED))):
            path = Path(folder, name)
            status = path.lstat()
            content = (
                os.readlink(path)
                if path.is_symlink()
                else path.read_bytes()
                if path.is_file()
                else None
            )
            found[str(path.relative_to(paths.PROFILES))] = Thing(
                stat.S_IFMT(status.st_mode),
                content,
                status.st_mtime_ns,
                stat.S_IMODE(status.st_mode),
            )
    assert not paths.INCOMING.exists() or not list(paths.INCOMING.iterdir()), (
        "an import left something"
    )
    return found


def content(within: dict[str, Thing]) -> dict[str, Thing]:
    """What of a tree two hosts with the same work have in common: not when its folders and records
    were made.
    """

    def same(name: str, thing: Thing) -> Thing:
        if thing.kind == stat.S_IFDIR:
            return thing._replace(mtime_ns=0, mode=0)
        if not isinstance(thing.content, bytes) or not (
            "/.signatures/" in name or "/.tuned/" in name
        ):
            return thing
        return Thing(thing.kind, written(json.loads(thing.content)), 0, thing.mode)

    return {name: same(name, thing) for name, thing in within.items()}


@contextmanager
def nothing_taken() -> Iterator[None]:
    """Holds what is done within to leave every file and folder of the caches as it was."""
    before = tree()
    yield
    assert tree() == before


@contextmanager
def as_before() -> Iterator[Callable[[], None]]:
    """Gives what puts everything below /profiles back to what it is now."""
    kept = paths.PROFILES.with_name("kept")
    shutil.copytree(paths.PROFILES, kept, symlinks=True)

    def restore() -> None:
        shutil.rmtree(paths.PROFILES)
        shutil.copytree(kept, paths.PROFILES, symlinks=True)

    yield restore
    shutil.rmtree(kept)


# --- what is sent ---------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def members(archive: bytes) -> list[Member]:
    """An archive's members, as any other reader of tar files has them."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [
            (member, stream.read() if (stream := tar.extractfile(member)) else b"")
            for member in tar
        ]


def member(name: str, content: bytes = b"", **fields: Any) -> Member:
    """A member as export writes them, but for these fields."""
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, content


def packed(found: list[Member], end: bytes = bytes(1024)) -> bytes:
    """An archive of these members."""
    return (
        b"".join(
            made.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
            for made, content in found
        )
        + end
    )


def manifest(archive: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(members(archive)[0][1])
    return found


def written(document: Any) -> bytes:
    """A manifest's bytes, as export writes one."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def signed(content: bytes, blobs: list[Member]) -> bytes:
    """An archive with this manifest, under its right name."""
    return packed([member(f"manifest-{hashlib.sha256(content).hexdigest()}.json", content), *blobs])


def resigned(archive: bytes, document: Any, *more: bytes) -> bytes:
    """The archive with another manifest, in every way consistent: its contents, and more, in the
    order that this manifest asks for.
    """
    blobs = {made.name: (made, content) for made, content in members(archive)[1:]}
    blobs.update(
        {
            name: member(name, content)
            for content in more
            for name in [f"files/{hashlib.sha256(content).hexdigest()}"]
        }
    )
    parts = (
        document["stages"]
        if isinstance(document, dict) and isinstance(document.get("stages"), dict)
        else {}
    )
    wanted = [
        f"files/{entry['sha256']}"
        for _, part in sorted(parts.items())
        if isinstance(part, dict) and isinstance(part.get("files"), list)
        for entry in part["files"]
        if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    ]
    return signed(
        written(document), [blobs[name] for name in dict.fromkeys(wanted) if name in blobs]
    )


def replaced(archive: bytes, stage: str, path: str, content: bytes) -> bytes:
    """The archive with another content of a file, or with one more file, in every way
    consistent.
    """
    document = manifest(archive)
    listed = document["stages"][stage]["files"]
    digest = hashlib.sha256(content).hexdigest()
    made = {"path": path, "sha256": digest, "size": len(content), "mtime_ns": 10**18, "mode": 0o664}
    document["stages"][stage]["files"] = sorted(
        [*(entry for entry in listed if entry["path"] != path), made],
        key=lambda entry: str(entry["path"]),
    )
    return resigned(archive, document, content)


# --- what happens on the way ----------------------------------------------------------------------

KILLED, UNDISTURBED = 99, 98
_CHANGES = frozenset(
    {
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.chmod",
        "os.utime",
        "os.truncate",
    }
)
_NEEDS_SPACE = frozenset({"open", "os.mkdir", "os.rename"})


class Killed(BaseException):
    """Ends a command wherever it is, as a signal's handler may."""


def disturbed(number: int, how: str, *words: str) -> tuple[int, str]:
    """A command in a process of its own, which at its `number`th change of a file or folder is
    killed, raises, or finds the disk full.

    Returns its exit code, KILLED, or UNDISTURBED where it makes fewer changes; and what it said on
    standard error.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code, said = _disturbed(number, how, words)
        os.write(writing, said.encode(errors="replace")[-30_000:])
        os._exit(code)
    os.close(writing)
    with open(reading) as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert "Traceback" not in said, said
    return code, said


def _disturbed(number: int, how: str, words: tuple[str, ...]) -> tuple[int, str]:
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in _CHANGES or (
            event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        done += 1
        if how == "full" and done >= number and event in _NEEDS_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))
        if done == number and how == "killed":
            os._exit(KILLED)
        if done == number and how == "raises":
            raise Killed

    error = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            sys.addaudithook(hook)
            code = cli.main(words)
    except Killed:
        return KILLED, error.getvalue()
    except BaseException:
        return 1, traceback.format_exc()
    return UNDISTURBED if done < number else code, error.getvalue()
