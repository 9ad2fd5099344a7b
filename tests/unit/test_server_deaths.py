"""What is said of a server that dies, by real processes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import paths, processes
from sgl_admin.base.command import Command
from sgl_admin.base.engine import HOST
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract.stages import ERROR_TYPES
from sgl_admin.serving import benchmark_server, server
from tests.unit.test_deaths import DEATHS

Made = Callable[..., server.Server]
Sample = dict[str, Any]
# Answers the first GETs, and ends when it is asked for a completion.
SERVES = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        {end}
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    started: list[server.Server] = []
    monkeypatch.setattr(paths, "to_host", lambda path: f"/host/{Path(path).name}")

    def begin(script: str) -> server.Server:
        (tmp_path / "log").write_text("older: CUDA out of memory\n")
        made = server.Server(
            Command.public([sys.executable, "-c", script], {}), free_port, tmp_path / "log"
        )
        started.append(made)
        made.start()
        return made

    yield begin
    for made in started:
        made.stop()


def failure(made: server.Server) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        made.wait_healthy(60, lambda: None)
    return caught.value


def says(sample: Sample) -> str:
    """A process that says a sample's log and ends with its exit code."""
    code = sample["exit_code"]
    end = f"os._exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
    text = "\n".join(sample["log"])
    return f"import os; print({text!r}, flush=True); {end}"


@pytest.mark.parametrize("sample", DEATHS)
def test_a_dead_servers_failure_has_type_last_words_remedy_and_log(
    start: Made, sample: Sample
) -> None:
    found = failure(start(says(sample)))
    message = str(found)
    assert found.error_type == sample["error_type"] in ERROR_TYPES
    assert sample["words"] in message and sample.get("remedy", "") in message
    assert message.endswith("the log is /host/log")
    assert len(message) < 400 + server._WORDS and message.isprintable()
    assert found.log_tail and len(found.log_tail) <= 20


@pytest.mark.parametrize(
    ("script", "error_type", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "oom", "killed by signal 9 (SIGKILL)); most often"),
        ("import os; os.kill(os.getpid(), 11)", "server_start_failed", "signal 11 (SIGSEGV)"),
        ("import os; os.kill(os.getpid(), 15)", "server_start_failed", "signal 15 (SIGTERM)"),
        ("raise SystemExit(0)", "server_start_failed", "(exit code 0); the log"),
        ("bytearray(1 << 62)", "oom", "MemoryError"),
        ("open('/proc/self/nope/x', 'w')", "server_start_failed", "No such file or directory"),
        ("raise PermissionError(13, 'Permission denied', '/x')", "permissions_unexpected",
         "Permission denied: '/x'"),
        ("import no_such_module", "server_start_failed", "No module named 'no_such_module'"),
        ("print('\\x1b[2J\\x07' + 'x' * 10**6); raise SystemExit(3)", "server_start_failed",
         "xxx..."),
    ],
)  # fmt: skip
def test_other_ends_are_told_as_they_were(
    start: Made, script: str, error_type: str, words: str
) -> None:
    found = failure(start(script))
    assert found.error_type == error_type and words in str(found)
    assert str(found).isprintable() and len(str(found)) < 700


def test_older_lines_of_the_log_are_not_its_words(start: Made) -> None:
    found = failure(start("raise SystemExit(1)"))
    assert found.error_type == "server_start_failed" and "CUDA" not in str(found)
    assert found.log_tail == []


def test_the_kernels_count_names_the_cause(
    start: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (events := tmp_path / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 3\n")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    made = start(f"open({str(events)!r}, 'w').write('oom 2\\noom_kill 5\\n'); raise SystemExit(1)")
    found = failure(made)
    assert found.error_type == "oom"
    assert "the kernel's out-of-memory killer ended 2 of its processes" in str(found)


@pytest.mark.parametrize(
    ("end", "error_type", "words"),
    [
        ("os._exit(9)", "request_failed", "the server ended while it served (exit code 9)"),
        ("os.kill(os.getpid(), 9)", "oom", "killed by signal 9"),
        (
            "print('torch.OutOfMemoryError: CUDA out of memory.', flush=True); os._exit(1)",
            "oom",
            "CUDA out of memory",
        ),
        (
            "print('RuntimeError: ninja exited with status 1', flush=True); os._exit(1)",
            "compile_failed",
            "ninja exited",
        ),
        ("self.send_error(500, 'broken')", "request_failed", "HTTP 500"),
        ("pass", "request_failed", "RemoteDisconnected"),
    ],
)
def test_a_server_that_fails_a_request_is_told_by_what_became_of_it(
    start: Made, free_port: int, end: str, error_type: str, words: str
) -> None:
    made = start(SERVES.format(end=end, port=free_port))
    made.wait_healthy(60, lambda: None)
    with pytest.raises(StageFailure) as caught:
        made.complete("x", 0.0)
    assert caught.value.error_type == error_type and words in str(caught.value)
    assert "the log is /host/log" in str(caught.value)


def test_one_that_hangs_is_told_with_its_last_line(start: Made) -> None:
    made = start("print('Load weight begin.', flush=True); import time; time.sleep(600)")
    with pytest.raises(StageFailure) as caught:
        made.wait_healthy(1.0, lambda: None)
    assert caught.value.error_type == "server_unhealthy_timeout"
    assert "within 1 s: Load weight begin.; the log is /host/log" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("oom_kill 12\n", 12),
        ("low 0\noom 4\noom_kill 0\noom_group_kill 7\n", 0),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        ("oom_kill many\n", None),
        ("", None),
        (None, None),
    ],
)
def test_the_kernels_count_is_read_or_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, count: int | None
) -> None:
    if written is not None:
        (tmp_path / "memory.events").write_text(written)
    monkeypatch.setattr(processes, "_CGROUP", tmp_path)
    assert processes.oom_kills() == count
    assert processes.oom_kills_since(None) == 0
    assert processes.oom_kills_since(1) == max(0, (count or 0) - 1)


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/\n", "memory.events"),
        ("0::/system.slice/docker-1.scope\n", "system.slice/docker-1.scope/memory.events"),
        ("0::/../gone\n", "memory.events"),
        ("4:memory:/docker/1\n0::/\n", "memory/docker/1/memory.oom_control"),
        ("4:memory:/docker/1\n", "memory/memory.oom_control"),
        ("", "memory.events"),
        ("nonsense\n\n", "memory.events"),
    ],
)
def test_the_kernels_count_is_of_the_own_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, file: str
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
    (counter := tmp_path / "cgroup" / file).parent.mkdir(parents=True, exist_ok=True)
    counter.write_text("oom_kill 6\n")
    monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path / "cgroup")
    assert processes.oom_kills() == 6


@pytest.mark.parametrize("state", ["stopped", None])
def test_one_that_was_stopped_meanwhile_is_no_death(live_run: str, state: str | None) -> None:
    record = None if state is None else {"state": state}
    found = benchmark_server.unhealthy(live_run, record, 1.0)
    assert found.error_type == "server_start_failed" and "start it again" in str(found)
