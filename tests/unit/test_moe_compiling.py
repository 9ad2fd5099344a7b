"""The processes that compile launches: real ones, with work that ends on demand."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from sgl_admin.base import processes
from sgl_admin.moe import compiling
from sgl_admin.moe.compiling import Compilers, Launch
from tests.doubles import moe_compile_work

# It starts processes, and mostly waits for them.
pytestmark = pytest.mark.slow

# A work that is not to be ended by it takes no tenth of that.
LIMIT_S = 2.0


def launch(key: str, what: str) -> Launch:
    return Launch(key, "sglang.kernels", "fused_moe_kernel", what)


def children(parent: int | None) -> list[int]:
    """The processes that `parent` began and that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def workers() -> list[int]:
    """Those that compile: Python's fork server, which stays as long as this process, is what began
    them.
    """
    return children(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


@pytest.fixture
def compilers() -> Iterator[Compilers]:
    made = Compilers(
        90,
        ["sgl_admin.moe.compiling"],
        2,
        LIMIT_S,
        moe_compile_work.work,
        moe_compile_work.begin,
    )
    yield made
    made.close()
    assert workers() == [], "a compiler was left"


def ignore(done: int, total: int) -> None:
    pass


def test_everything_is_compiled_for_the_target_by_several_processes(
    compilers: Compilers, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    launches = [launch(f"{number}", f"write {tmp_path}") for number in range(20)]
    assert compilers.compile(launches, lambda done, total: told.append((done, total))) == {}
    written = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert set(written) == {f"{number}" for number in range(20)} and {
        word for word, _ in written.values()
    } == {"sm_90"}
    assert str(os.getpid()) not in {pid for _, pid in written.values()}
    assert told == [(done, 20) for done in range(21)]


def test_nothing_to_compile_is_nothing_failed(compilers: Compilers) -> None:
    assert compilers.compile([], ignore) == {}


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("sleep 600", "its compiler took more than 2 s"),
        ("exit 9", "its compiler ended with exit code 9"),
        ("kill SIGSEGV", "its compiler ended with exit code -11"),
        ("raise ptxas fatal", "it does not compile: DoesNotCompile: ptxas fatal"),
        ("raise " + "x" * 5000, "it does not compile: DoesNotCompile: " + "x" * 200),
    ],
)
def test_one_that_fails_is_named_and_keeps_no_other_from_being_done(
    compilers: Compilers, tmp_path: Path, what: str, why: str
) -> None:
    good = [launch(f"{number}", f"write {tmp_path}") for number in range(8)]
    assert compilers.compile([*good[:4], launch("bad", what), *good[4:]], ignore) == {"bad": why}
    assert len(list(tmp_path.iterdir())) == 8
    more = [launch(f"{number} more", f"write {tmp_path}") for number in range(4)]
    assert compilers.compile(more, ignore) == {} and len(list(tmp_path.iterdir())) == 12, (
        "and those that come later"
    )


def test_a_kernel_that_another_process_compiles_is_waited_for(tmp_path: Path) -> None:
    """It is in the cache then."""
    locks, cache = tmp_path / "locks", tmp_path / "cache"
    cache.mkdir()
    made = Compilers(90, [], 2, 2.0, moe_compile_work.work, moe_compile_work.begin, locks)
    name = hashlib.sha256(b"b").hexdigest()
    try:
        with open(locks / name, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            failed = made.compile([launch(key, f"write {cache}") for key in "abc"], ignore)
            assert failed == {"b": "its compiler took more than 2 s"}
            assert {each.name for each in cache.iterdir()} == {"a", "c"}
        assert made.compile([launch("b", f"write {cache}")], ignore) == {}
    finally:
        made.close()


def test_as_many_as_there_are_compilers_may_fail_at_once(
    compilers: Compilers, tmp_path: Path
) -> None:
    bad = [
        launch(f"{what}", what)
        for what in ("sleep 600", "sleep 601", "exit 9", "exit 8", "kill SIGKILL", "raise no")
    ]
    good = [launch(f"{number}", f"write {tmp_path}") for number in range(6)]
    failed = compilers.compile([*bad, *good], ignore)
    assert set(failed) == {each.key for each in bad} and len(list(tmp_path.iterdir())) == 6
    assert failed["kill SIGKILL"] == "its compiler ended with exit code -9"


def test_compilers_that_are_still_busy_are_ended(tmp_path: Path) -> None:
    made = Compilers(90, [], 2, 600.0, moe_compile_work.work, moe_compile_work.begin)
    for _ in range(2):
        made._pool.schedule(moe_compile_work.work, args=(launch("a", "sleep 600"),))
    deadline = time.monotonic() + 30
    while len(workers()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers()) == 2
    made.close()
    assert workers() == []


def begin_main(*arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    sources = str(Path(compiling.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(root / "tests" / "doubles" / "moe_compile_work.py"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), sources))},
        start_new_session=True,
    )


def gone(group: int, patience_s: float = 20.0) -> bool:
    deadline = time.monotonic() + patience_s
    while processes.group_is_running(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes.group_is_running(group)


def test_a_process_that_closed_its_compilers_leaves_nothing_behind(tmp_path: Path) -> None:
    process = begin_main("close", str(tmp_path))
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "{}\n") and len(list(tmp_path.iterdir())) == 4
    assert gone(process.pid)


def test_busy_compilers_are_of_the_group_by_which_they_are_ended(tmp_path: Path) -> None:
    """The parent of the process that began them ends that group, also where this process was killed
    outright.
    """
    process = begin_main("stay")
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    deadline = time.monotonic() + 30
    while len(group_of(process.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(group_of(process.pid)) >= 4, "itself, the fork server and two compilers"
    process.kill()
    process.wait()
    process.stdout.close()
    processes.end_group(process.pid)
    assert gone(process.pid, 0)


def group_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def test_a_compiler_that_cannot_be_asked_to_end_is_forced_to(compilers: Compilers) -> None:
    assert compilers.compile([launch("stopped", "kill SIGSTOP")], ignore) == {
        "stopped": "its compiler took more than 2 s"
    }
