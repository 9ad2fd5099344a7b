"""Weights are read into the page cache beside a server's start, on a real disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_admin.base.processes import start_time
from sgl_admin.serving import read_ahead

SIZE = 20 << 20


def in_memory(path: Path) -> float:
    """How much of a file is, by the kernel's mincore; the owner of a file may ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = SIZE // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), SIZE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), SIZE, found) == 0
        del start
    return sum(page & 1 for page in found) / pages


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Two files of 20 MiB that are on disk alone."""
    for name in ("model-1.safetensors", "model-2.safetensors"):
        path = tmp_path / name
        path.write_bytes(os.urandom(SIZE))
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert in_memory(path) == 0, "the test's own: the file is in memory"
    return tmp_path


@pytest.fixture
def server() -> Iterator[tuple[int, str]]:
    """A process that stands for one."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    ticks = start_time(process.pid)
    assert ticks is not None
    yield process.pid, ticks
    process.kill()
    process.wait()


def test_all_weights_are_in_memory(weights: Path, server: tuple[int, str]) -> None:
    assert read_ahead.read(str(weights), *server) == 2 * SIZE
    assert {in_memory(path) for path in weights.iterdir()} == {1}


def test_a_server_that_is_gone_needs_nothing(weights: Path, server: tuple[int, str]) -> None:
    assert read_ahead.read(str(weights), server[0], "1") == 0
    assert {in_memory(path) for path in weights.iterdir()} == {0}


def test_what_does_not_fit_into_memory_is_not_read(
    weights: Path, server: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "_available", lambda: 2 * SIZE)
    assert read_ahead.read(str(weights), *server) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reads"),
    [(["--tp", "1"], True), (["--load-format", "dummy"], False), (["--load-format=dummy"], False)],
)
def test_it_is_begun_for_a_server_that_reads_weights(
    weights: Path,
    server: tuple[int, str],
    arguments: list[str],
    reads: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    read_ahead.begin(str(weights), ["python", "-m", "sglang.launch_server", *arguments], *server)
    deadline = time.monotonic() + (30 if reads else 1)
    last = weights / "model-2.safetensors"
    while time.monotonic() < deadline and in_memory(last) < 1:
        time.sleep(0.05)
    assert in_memory(last) == reads


@pytest.mark.parametrize("model", ["org/model-of-a-hub", "/nowhere"])
def test_a_model_that_is_no_folder_is_left_to_the_server(
    model: str, server: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was begun"))
    read_ahead.begin(model, [sys.executable], *server)
