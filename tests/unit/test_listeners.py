"""Who answers at a port: only a process of the group that was started counts as the server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import http_client, paths, ports
from sgl_admin.base.command import Command
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract import listeners
from sgl_admin.serving import services
from sgl_admin.serving.server import Server

_LISTEN = """
import socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
# As uvicorn does.
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if family == socket.AF_INET6 and len(sys.argv) > 3:
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""


@contextmanager
def listening(address: str, port: int = 0, *more: str) -> Iterator[tuple[int, int]]:
    """A process in a group of its own that listens; yields its port and its group."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LISTEN, address, str(port), *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_a_port_is_held_by_the_group_that_listens_and_by_no_other(address: str, asked: str) -> None:
    with listening(address) as (port, group):
        assert ports.held_by_group(asked, port, group) is True
        assert ports.held_by_group(asked, port, os.getpgid(0)) is False
        assert ports.held_here(asked, port) is True
        assert f"pid {group} in this container" in ports.holder(port)
    assert ports.held_by_group(asked, port, group) is None
    assert ports.held_here(asked, port) is None


def test_of_two_sockets_the_one_of_the_very_address_answers() -> None:
    with (
        listening("127.0.0.1") as (port, ours),
        listening("0.0.0.0", port) as (_, other),
    ):
        assert ports.held_by_group("127.0.0.1", port, ours) is True
        assert ports.held_by_group("127.0.0.1", port, other) is False


def test_where_two_share_the_address_it_is_neithers() -> None:
    """The kernel gives each connection to either."""
    with listening("127.0.0.1") as (port, ours), listening("127.0.0.1", port) as (_, other):
        assert ports.held_by_group("127.0.0.1", port, ours) is False
        assert ports.held_by_group("127.0.0.1", port, other) is False


def test_a_process_that_cannot_be_seen_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("127.0.0.1") as (port, _):
        monkeypatch.setattr(listeners, "descriptors", lambda pid: set())
        assert ports.held_here("127.0.0.1", port) is False
        assert "outside this container" in ports.holder(port)


class _Healthy(BaseHTTPRequestHandler):
    """Another's program that says that it is healthy, whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"sglang:prompt_tokens_total 999999971\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def fake_server(port: int) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), _Healthy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def loading(port: int, log: Path) -> Server:
    """A server that loads for a long time."""
    log.touch()
    return Server(
        Command.public([sys.executable, "-c", "import time; time.sleep(600)"], {}), port, log
    )


def test_another_that_answers_while_the_server_loads_is_never_taken_for_it(
    port: int, tmp_path: Path
) -> None:
    server = loading(port, tmp_path / "log")
    server.start()
    try:
        with fake_server(port):
            assert not server.healthy()
            with pytest.raises(StageFailure, match="instead of the server") as caught:
                server.wait_healthy(60.0, lambda: None)
            assert caught.value.error_type == "port_busy"
            with pytest.raises(StageFailure, match="instead of the server"):
                server.prompt_tokens()
    finally:
        server.stop()


@pytest.mark.slow
def test_another_that_comes_later_is_told_too(port: int, tmp_path: Path) -> None:
    """At ten moments of the wait."""
    for moment in range(10):
        server = loading(port, tmp_path / "log")
        server.start()
        ticks = iter(range(1000))
        fake = fake_server(port)

        def tick(fake: Any = fake, ticks: Iterator[int] = ticks, moment: int = moment) -> None:
            if next(ticks) == moment:
                fake.__enter__()

        try:
            with pytest.raises(StageFailure, match="instead of the server"):
                server.wait_healthy(60.0, tick)
        finally:
            server.stop()
            fake.__exit__(None, None, None)


MANIFEST: dict[str, Any] = {
    "services": {
        "prometheus": {"port": 1, "url": "http://127.0.0.1:1"},
        "node_exporter": {"port": 2},
        "dcgm_exporter": {"port": 3},
    },
    "telemetry_surfaces": {
        "sglang_metrics": {"status": "expected"},
        "node_metrics": {"status": "running"},
        "dcgm_metrics": {"status": "unavailable"},
    },
}


def test_a_service_that_another_process_answers_for_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(paths.ROOT_VARIABLE, raising=False)
    manifest = json.loads(json.dumps(MANIFEST))
    with listening("127.0.0.1") as (port, _group):
        manifest["services"]["node_exporter"]["port"] = port
        assert services.intrusion(manifest) is None, "a process that is seen from here"
        # As in a container: the other one's processes are not seen.
        monkeypatch.setattr(listeners, "pids", lambda: iter([os.getpid()]))
        said = services.intrusion(manifest)
        assert said is not None and len(said) < 400
        assert f"port {port} is answered by a process of uid {os.getuid()} outside" in said
        assert "instead of this container's node_exporter: stop that process" in said
        # What the image lacks, the host may have.
        manifest["telemetry_surfaces"]["node_metrics"]["status"] = "unavailable"
        assert services.intrusion(manifest) is None
    assert services.intrusion(MANIFEST) is None, "nobody listens"


def test_an_answer_without_end_is_cut(port: int, tmp_path: Path) -> None:
    class Endless(_Healthy):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(64):
                    self.wfile.write(b"x" * (1 << 20))
            except OSError:
                pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Endless)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (tmp_path / "log").touch()
    try:
        asked = Server(Command.public([], {}), port, tmp_path / "log", group=os.getpgid(0))
        with pytest.raises(StageFailure, match="more than 16777216 bytes"):
            asked.prompt_tokens()
    finally:
        server.shutdown()
        server.server_close()


# --- who took a connection before the server was there --------------------------------------------

_THIEF = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
taken, _ = listener.accept()
listener.close()
print("taken", flush=True)
taken.settimeout(0.5)
try:
    print(taken.recv(4096), flush=True)
except TimeoutError:
    print(b"", flush=True)
sys.stdin.read()
"""


class Thief:
    """A process that this container does not see: it accepts one connection, and keeps it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "thief") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _THIEF, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pids = listeners.pids
        self.pid = self._process.pid
        monkeypatch.setattr(listeners, "pids", lambda: (n for n in pids() if n != self.pid))
        # One whose descriptors none may read would be taken for dcgm-exporter.
        monkeypatch.setattr(os, "access", lambda *_ignored: True)
        self.port = int(self.says())

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def thief(monkeypatch: pytest.MonkeyPatch) -> Iterator[Thief]:
    made = Thief(monkeypatch)
    yield made
    made.end()


def test_a_key_is_not_sent_to_a_process_that_is_not_ours(thief: Thief) -> None:
    ours = http_client.Ours("the-key")
    with pytest.raises(http_client.NotOurs):
        http_client.ask("127.0.0.1", thief.port, "/health", 5, ours=ours)
    assert thief.says() == "taken" and thief.says() == "b''"


def test_nothing_is_sent_where_nobody_accepts() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen()
        with pytest.raises(TimeoutError):
            ours = http_client.Ours("the-key")
            http_client.ask("127.0.0.1", full.getsockname()[1], "/health", 0.2, ours=ours)
        accepted, _ = full.accept()
        with accepted:
            accepted.settimeout(1)
            assert accepted.recv(99) == b""


def test_a_connection_that_another_took_before_the_server_is_seen(
    thief: Thief, tmp_path: Path
) -> None:
    (tmp_path / "log").touch()
    with socket.create_connection(("127.0.0.1", thief.port)):
        assert thief.says() == "taken"
        # As Prometheus keeps it, while the server that came later listens.
        with listening("127.0.0.1", thief.port) as (port, group):
            server = Server(Command.public([], {}), port, tmp_path / "log", group=group)
            assert ports.held_by_group("127.0.0.1", port, group) is True
            assert f"uid {os.getuid()} outside" in (ports.intruder(port) or "")
            assert not server.healthy()
            with pytest.raises(StageFailure, match="took before the server was there") as caught:
                server._demand_the_port()
            assert caught.value.error_type == "port_busy"
            thief.end()
            assert ports.intruder(port) is None
            server._demand_the_port()


def test_our_own_connections_have_no_intruder() -> None:
    with listening("127.0.0.1") as (port, _):
        with socket.create_connection(("127.0.0.1", port)):
            assert ports.intruder(port) is None
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        port = own.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), own.accept()[0]:
            assert ports.intruder(port) is None


# --- who else meets the server's processes --------------------------------------------------------

_VISITOR = """
import socket, sys
connected = [socket.create_connection(("127.0.0.1", int(port))) for port in sys.argv[1:]]
print("connected", flush=True)
sys.stdin.read()
"""
_STORE = """
import socket, time
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in sockets), flush=True)
kept = []
while True:
    for each in sockets:
        each.settimeout(0.05)
        try:
            kept.append(each.accept())
        except TimeoutError:
            pass
"""


@contextmanager
def saying(program: str, *words: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The program in a group of its own, and its first line."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().strip()
        process.kill()


def test_who_else_meets_the_servers_processes_is_named_and_ends_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "log").touch()
    with saying(_STORE) as (store, line):
        public, inner = map(int, line.split())
        server = Server(Command.public([], {}), public, tmp_path / "log")
        server._process = store
        monkeypatch.setattr(server, "_has_the_port", lambda: True)
        # Clients have the public port, and processes of this container have any.
        with saying(_VISITOR, public, inner):
            server._demand_the_port()
        with saying(_VISITOR, public, inner) as (visitor, said):
            assert said == "connected"
            pids = listeners.pids
            monkeypatch.setattr(
                listeners, "pids", lambda: (pid for pid in pids() if pid != visitor.pid)
            )
            monkeypatch.setattr(os, "access", lambda *_ignored: True)
            words = f"a process of uid {os.getuid()} outside this container is connected to port"
            with pytest.raises(StageFailure, match=f"{words} {inner}, where") as caught:
                server._demand_the_port()
            assert caught.value.error_type == "port_busy"
            server._command = Command.public(["--nnodes", "2"], {})
            server._demand_the_port()
            assert ports.visitor(os.getpgid(0), public) is None
        assert ports.visitor(store.pid, public) is None


def test_a_visitor_from_another_machine_is_named_by_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has one end of such a connection alone."""
    with saying(_STORE) as (store, line), saying(_VISITOR, line.split()[1]):
        connections = listeners.connections
        monkeypatch.setattr(
            listeners,
            "connections",
            lambda *asked: [end for end in connections(*asked) if end.own[1] in asked],
        )
        found = ports.visitor(store.pid, 0)
    assert found == f"address 127.0.0.1 is connected to port {line.split()[1]}"


def test_a_name_of_several_lines_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    thief = Thief(monkeypatch, "x\nREADY: true\x1b")
    assert "\n" not in listeners.command(thief.pid) and "\x1b" not in listeners.command(thief.pid)
    thief.end()
