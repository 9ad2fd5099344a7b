"""Logs may be larger than the memory, and hold whatever a server writes."""

from __future__ import annotations

import errno
import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgl_admin.base import detached, logs, paths
from sgl_admin.base.command import Command
from sgl_admin.base.errors import Refused
from sgl_admin.init import publish
from sgl_admin.init.services import Settings
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE

_MIB = 1 << 20


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """What is done in it takes no more memory than this."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A log of 6 GiB, most of it a hole, with an error at its end."""
    log = tmp_path / "log"
    with open(log, "wb") as stream:
        stream.truncate(6 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\ntorch.OutOfMemoryError: CUDA out of memory.\n")
    return log


def test_a_log_of_6_gib_is_read_at_its_end_alone(huge: Path) -> None:
    with at_most(16 * _MIB):
        server = Server(Command.public([], {}), 1, huge)
        assert server.log_tail()[-1] == "torch.OutOfMemoryError: CUDA out of memory."
        assert server.death().error_type == "oom"


def test_a_process_that_ends_before_it_begins_is_told_from_a_log_of_6_gib(
    live_run: str, huge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge.replace(paths.log(live_run))
    lock = os.open(os.devnull, os.O_RDONLY)
    with at_most(16 * _MIB), pytest.raises(Refused, match="exit code 1, .*no_such_module"):
        detached.begin(live_run, "sgl_admin.no_such_module", "prep-1", "{}", lock, lambda: False)
    os.close(lock)


def test_what_a_process_says_before_it_begins_is_bounded_too(live_run: str) -> None:
    """Its own words may be gigabytes, as of a module that prints as it is imported."""
    script = (
        "import sys; [print('x' * 1000) for _ in range(50000)]; sys.stdout.flush();"
        " sys.exit('the end')"
    )
    (folder := paths.RUNS / "modules").mkdir()
    (folder / "talks.py").write_text(script)
    lock = os.open(os.devnull, os.O_RDONLY)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(folder)
    try:
        with at_most(16 * _MIB), pytest.raises(Refused, match="exit code 1, the end"):
            detached.begin(live_run, "talks", "prep-1", "{}", lock, lambda: False)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
        os.close(lock)


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [16, pytest.param(64, marks=pytest.mark.long)])
def test_what_a_server_looked_up_is_found_line_by_line(tmp_path: Path, mebibytes: int) -> None:
    log = tmp_path / "log"
    found = "/c/triton_3_6_0/E=8,N=64,device_name=H100.json"
    with open(log, "wb") as stream:
        for _ in range(mebibytes):
            stream.write(b"[2026-08-23 09:11:01] a request\n" * (_MIB // 32))
        stream.write(f"[x] Using MoE kernel config from {found}.\n".encode())
        # One line without an end, as a progress bar leaves it.
        stream.write(b"\r" * (8 * _MIB))
    server = Server(Command.public([], {}), 1, log, log_start=32)
    with at_most(4 * _MIB):
        assert ENGINE.moe.looked_up(server.own_lines()) == [found]
        assert ENGINE.moe.read(server.own_lines()) == [found]


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (b"", []),
        (b"\n\n", ["", ""]),
        (b"one\r\ntwo", ["one", "two"]),
        (b"0%|  |\r50%|# |\r100%|##|\n", ["0%|  |", "50%|# |", "100%|##|"]),
        (b"\x1b[31mred\x1b[0m \x1b[1;31mwords\x1b[m", ["red words"]),
        (b"bell\x07 and null\x00 and tab\tend", ["bell? and null? and tab    end"]),
        (b"\xff\xfe caf\xc3\xa9", ["\ufffd\ufffd café"]),
        ("\u202eevil \u200bspace".encode(), ["?evil ?space"]),
        (b"x" * 3000, ["x" * 997 + "..."]),
    ],
)
def test_last_lines_are_fit_for_a_terminal(
    tmp_path: Path, written: bytes, lines: list[str]
) -> None:
    (tmp_path / "log").write_bytes(b"older\n" + written)
    assert logs.last_lines(tmp_path / "log", 6) == lines


def test_lines_before_the_start_and_above_the_limit_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"".join(b"line %d\n" % number for number in range(100)))
    assert logs.last_lines(tmp_path / "log", 0, 2) == ["line 98", "line 99"]
    assert logs.last_lines(tmp_path / "log", 0, 50, most_bytes=16) == ["line 98", "line 99"]
    assert logs.last_lines(tmp_path / "log", 10**6) == []
    assert list(logs.lines_from(tmp_path / "log", 10**6)) == []


def test_no_module_of_sgl_admin_reads_a_log_whole() -> None:
    """Whatever reads a run's log goes through logs.py."""
    readers = ("paths.log(", "self.log)", "self._log)", ".log.")
    whole = (".read_bytes(", ".read_text(", ".readlines(")
    root = Path(sys.modules["sgl_admin"].__file__ or "").parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(word in line for word in readers) and any(call in line for call in whole)
    ]
    assert found == []


# --- the bound of a run's log ---------------------------------------------------------------------


def filled(log: Path, lines: int) -> None:
    with open(log, "ab") as stream:
        stream.writelines(b"%08d %s\n" % (number, b"x" * 190) for number in range(lines))


def test_a_log_is_kept_within_its_size_with_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    filled(log, 40_000)
    size = log.stat().st_size
    # The server has it open, and notes where its words begin.
    with open(log, "ab") as server:
        server.write(b"begins here\n")
        server.flush()
        logs.bound(log, 2 * _MIB)
        assert (taken := log.stat().st_blocks) * 512 <= 2 * _MIB
        # It is within it now.
        logs.bound(log, 2 * _MIB)
        assert log.stat().st_blocks == taken
        server.write(b"and goes on\n")
    assert log.stat().st_size == size + 24
    lines = list(logs.lines_from(log, 0))
    assert lines[0].startswith("00000000 ") and lines[-2:] == ["begins here", "and goes on"]
    assert any("freed to keep it within sgl_log_size" in line for line in lines)
    assert 5_000 < len(lines) < 10_000 and not any("\0" in line for line in lines)
    assert list(logs.lines_from(log, size)) == ["begins here", "and goes on"]
    assert logs.last_lines(log, 0)[-1] == "and goes on"


def test_a_hole_of_6_gib_is_passed_over(huge: Path) -> None:
    with at_most(_MIB):
        assert list(logs.lines_from(huge, 0))[-1].startswith("torch.OutOfMemoryError")


@pytest.mark.parametrize(
    ("text", "size"), [("1GB", 1 << 30), ("512MB", 512 << 20), ("2GiB", 2 << 30), ("900B", 900)]
)
def test_the_size_of_a_log_is_read_as_prometheus_reads_its_own(
    text: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGL_LOG_SIZE", text)
    assert Settings.from_environment().log_bytes == size


def test_a_runs_log_is_looked_at_until_the_run_ends(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(paths.log(live_run), 2_000)
    monkeypatch.setenv("SGL_LOG_SIZE", "100KB")
    rounds = iter([False, False, False, True])
    ending = SimpleNamespace(wait=lambda seconds: next(rounds))
    publish.bound_log(live_run, ending)  # type: ignore[arg-type]
    assert paths.log(live_run).stat().st_blocks * 512 <= 100 << 10

    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(logs, "_punch", refused)
    filled(paths.log(live_run), 2_000)
    rounds = iter([False, False, True])
    publish.bound_log(live_run, ending)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert said.count("is not kept within sgl_log_size: Operation not supported") == 1
