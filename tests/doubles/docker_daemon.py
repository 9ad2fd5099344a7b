"""A double of Docker's daemon: the HTTP API of one host with one container, on a unix socket, for
Docker's own client.

It stands for the daemons of a fleet, of which one machine can run no fifty. Docker's client,
Ansible's modules and their connections are real, and so is what runs: the container
(tests/doubles/prep_container.py) begins processes of this machine, whose output comes over the
hijacked connection of an exec, stream by stream. There are no layers, no namespaces and no cgroups;
what is not asked here is not answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

API = "1.41"
# What `docker info` asks for, of a daemon as a distribution installs it.
INFO = {
    "ServerVersion": "20.10.24",
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
    "DockerRootDir": "/",
    "OSType": "linux",
    "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
    "SecurityOptions": ["name=seccomp,profile=default"],
}
_STDOUT, _STDERR = 1, 2
_CHUNK = 1 << 16
_STARTED_AT = "2026-11-23T09:15:00.000000000Z"
Answer = tuple[int, Any]


class Container(Protocol):
    async def start(self, container_id: str, environment: dict[str, str]) -> None:
        """Begin what runs in it; returns when that is up."""

    async def execute(self, words: list[str], environment: dict[str, str]) -> Process:
        """Begin a command in it, with pipes for its three streams."""

    @property
    def pid(self) -> int:
        """The process of this machine that stands for its first one."""


@dataclass
class _Made:
    """The container as its creator described it."""

    id: str
    name: str
    config: dict[str, Any]
    running: bool = False

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config.get("Env") or [])


@dataclass
class _Exec:
    words: list[str]
    stdin: bool
    exit_code: int | None = None


@dataclass
class _Request:
    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes
    unread: bool

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body or b"{}")
        return found


@dataclass
class Daemon:
    """One host's daemon, at `socket`; `image` is what `docker image inspect` prints of its one
    image. `asked` counts the requests.
    """

    socket: Path
    image: dict[str, Any]
    container: Container
    asked: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    _made: _Made | None = None
    _execs: dict[str, _Exec] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """That of the container, as its creator set it; empty before there is one."""
        return self._made.environment if self._made else {}

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, which the client may use for several requests."""
        try:
            while (request := await _read(reader)) is not None:
                started = re.fullmatch(r"/exec/(\w+)/start", request.path)
                if started and started[1] in self._execs:
                    self.asked["exec"] += 1
                    await self._run(self._execs[started[1]], reader, writer)
                    return
                status, document = await self._answer(request)
                await _send(writer, request.method, status, document)
                if request.unread:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            # A client that has gone.
            pass
        finally:
            writer.close()

    async def _answer(self, request: _Request) -> Answer:
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", r"/_ping", lambda: (200, "OK")),
            ("HEAD", r"/_ping", lambda: (200, "OK")),
            (
                "GET",
                r"/version",
                lambda: (
                    200,
                    {
                        "Version": "20.10.24",
                        "ApiVersion": API,
                        "MinAPIVersion": "1.12",
                        "Os": "linux",
                    },
                ),
            ),
            ("GET", r"/info", lambda: (200, INFO)),
            ("GET", r"/images/json", lambda: (200, [self.image])),
            ("GET", r"/images/(.+)/json", self._image),
            ("GET", r"/containers/json", lambda: self._list(request)),
            ("GET", r"/containers/([^/]+)/json", self._inspect),
            ("POST", r"/containers/create", lambda: self._create(request)),
            ("POST", r"/containers/([^/]+)/rename", lambda name: self._rename(name, request)),
            ("POST", r"/containers/([^/]+)/start", self._start),
            ("POST", r"/containers/([^/]+)/exec", lambda name: self._prepare(name, request)),
            ("GET", r"/exec/(\w+)/json", self._exec),
        ]
        for method, pattern, handler in routes:
            if method == request.method and (found := re.fullmatch(pattern, request.path)):
                self.asked[pattern] += 1
                answer = handler(*found.groups())
                done: Answer = await answer if asyncio.iscoroutine(answer) else answer
                return done
        self.unknown.append(f"{request.method} {request.path}")
        return 501, {
            "message": f"this stand-in for a daemon does not know {request.method} {request.path}"
        }

    def _named(self, name: str) -> _Made | None:
        made = self._made
        return made if made is not None and name in (made.name, made.id) else None

    def _image(self, name: str) -> Answer:
        if name in (self.image["Id"], *self.image["RepoTags"]):
            return 200, self.image
        return 404, {"message": f"No such image: {name}"}

    def _list(self, request: _Request) -> Answer:
        made = self._made
        filters = json.loads(request.query.get("filters", ["{}"])[0])
        if made is None or not all(
            re.search(pattern, f"/{made.name}") for pattern in filters.get("name", {})
        ):
            return 200, []
        return 200, [{"Id": made.id, "Names": [f"/{made.name}"]}]

    def _inspect(self, name: str) -> Answer:
        made = self._named(name)
        if made is None:
            return 404, {"message": f"No such container: {name}"}
        state = {
            "Status": "running" if made.running else "created",
            "Running": made.running,
            "Restarting": False,
            "Paused": False,
        }
        host = made.config.get("HostConfig", {})
        times = {
            "Pid": self.container.pid if made.running else 0,
            "ExitCode": 0,
            "StartedAt": _STARTED_AT,
            "FinishedAt": "0001-01-01T00:00:00Z",
        }
        return 200, {
            "Id": made.id,
            "Name": f"/{made.name}",
            "Created": _STARTED_AT,
            "Image": self.image["Id"],
            "State": {**state, **times},
            "Config": made.config,
            "HostConfig": host,
            # As moby's types/container.MountPoint, of what --mount gave it.
            "Mounts": [
                {"Type": each["Type"], "Source": each["Source"], "Destination": each["Target"]}
                for each in host.get("Mounts") or []
            ],
            "NetworkSettings": {"Networks": {"host": {}}},
        }

    def _create(self, request: _Request) -> Answer:
        name = request.query["name"][0]
        if self._made is not None:
            return 409, {
                "message": (
                    f'Conflict. The container name "/{name}" is already in use by container'
                    f' "{self._made.id}".'
                )
            }
        made_id = hashlib.sha256(f"{self.socket}{name}".encode()).hexdigest()
        self._made = _Made(made_id, name, request.document)
        return 201, {"Id": made_id, "Warnings": []}

    def _rename(self, name: str, request: _Request) -> Answer:
        made = self._named(name)
        if made is None:
            return 404, {"message": f"No such container: {name}"}
        made.name = request.query["name"][0]
        return 204, None

    async def _start(self, name: str) -> Answer:
        made = self._named(name)
        if made is None:
            return 404, {"message": f"No such container: {name}"}
        await self.container.start(made.id, made.environment)
        made.running = True
        return 204, None

    def _prepare(self, name: str, request: _Request) -> Answer:
        made = self._named(name)
        if made is None or not made.running:
            return 404 if made is None else 409, {
                "message": (
                    f"No such container: {name}"
                    if made is None
                    else f"Container {name} is not running"
                )
            }
        wanted = request.document
        if wanted.get("Tty"):
            return 501, {"message": "this stand-in for a daemon has no terminals"}
        exec_id = hashlib.sha256(f"{made.id}{len(self._execs)}".encode()).hexdigest()
        self._execs[exec_id] = _Exec(wanted["Cmd"], bool(wanted.get("AttachStdin")))
        return 201, {"Id": exec_id}

    def _exec(self, exec_id: str) -> Answer:
        found = self._execs.get(exec_id)
        if found is None:
            return 404, {"message": f"No such exec instance: {exec_id}"}
        return 200, {
            "ID": exec_id,
            "Running": found.exit_code is None,
            "ExitCode": found.exit_code,
            "Pid": 1,
        }

    async def _run(self, wanted: _Exec, reader: StreamReader, writer: StreamWriter) -> None:
        """From here on the connection is the command's: its input as it is, its output in
        frames.
        """
        writer.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type:"
            b" application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        await writer.drain()
        assert self._made is not None
        process = await self.container.execute(wanted.words, self._made.environment)
        assert (
            process.stdin is not None and process.stdout is not None and process.stderr is not None
        )
        feeding = None
        if wanted.stdin:
            feeding = asyncio.create_task(_feed(reader, process.stdin))
        else:
            process.stdin.close()
        await asyncio.gather(
            _frames(process.stdout, _STDOUT, writer), _frames(process.stderr, _STDERR, writer)
        )
        # Before the connection ends: the client asks for it at once.
        wanted.exit_code = await process.wait()
        if feeding is not None:
            feeding.cancel()


class Daemons:
    """Serves several daemons by one thread, as long as the block lasts."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = daemons
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Daemons:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _listen(self) -> None:
        for daemon in self._daemons:
            await asyncio.start_unix_server(daemon.serve, path=daemon.socket, backlog=256)


async def _read(reader: StreamReader) -> _Request | None:
    """The next request; None where the client has no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    method, target, _version = first.split(" ")
    url = urlsplit(target)
    path = re.sub(r"^/v\d+\.\d+(?=/)", "", unquote(url.path))
    # A body of unknown length, such as an image's, is nothing that is answered here: it is left
    # unread, and the connection ends.
    unread = "transfer-encoding" in headers
    body = b"" if unread else await reader.readexactly(int(headers.get("content-length", "0")))
    return _Request(method, path, parse_qs(url.query), body, unread)


async def _send(writer: StreamWriter, method: str, status: int, document: Any) -> None:
    body = (
        b""
        if document is None
        else document.encode()
        if isinstance(document, str)
        else json.dumps(document).encode()
    )
    kind = "text/plain" if isinstance(document, str) else "application/json"
    head = (
        f"HTTP/1.1 {status} Answer\r\nApi-Version: {API}\r\nDocker-Experimental: false\r\nOstype:"
        f" linux\r\nServer: Docker/20.10.24 (linux)\r\nContent-Type: {kind}\r\nContent-Length:"
        f" {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + (b"" if method == "HEAD" else body))
    await writer.drain()


async def _feed(reader: StreamReader, target: StreamWriter) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            target.write(chunk)
            await target.drain()
    except ConnectionError:
        # The command does not want more.
        pass
    finally:
        target.close()


async def _frames(source: StreamReader, number: int, writer: StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        writer.write(bytes([number, 0, 0, 0]) + len(chunk).to_bytes(4, "big") + chunk)
        await writer.drain()
