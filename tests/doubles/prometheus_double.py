"""A double of a Prometheus server.

It stands for what a real Prometheus cannot be made to show on demand: becoming ready after so many
requests, an answer that hangs, trickles, breaks off or is garbage, a connection dropped in between,
refused credentials, a redirect. It is a real HTTP server on a loopback port that gives the replies
it was given, in order; the last one for a path repeats. The shapes of its good answers were taken
from Prometheus 3.5.3. What a real one does show is tested against a real one in tests/integration.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

# A client without a time limit of its own gets an answer after this time, so that its test fails
# instead of hanging.
HANG_S = 20.0


@dataclass
class Reply:
    """`raw` is sent as it is, without HTTP around it; then, or when `hangs`, nothing more comes.
    `trickle` adds spaces. `closes` ends the connection without saying so before.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hangs: bool = False
    trickle: bool = False
    closes: bool = False


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    form: dict[str, list[str]]


def api(data: Any, status: int = 200) -> Reply:
    return Reply(
        status,
        json.dumps({"status": "success", "data": data}).encode(),
        {"Content-Type": "application/json"},
    )


def api_error(status: int, kind: str, error: str) -> Reply:
    return Reply(
        status,
        json.dumps({"status": "error", "errorType": kind, "error": error}).encode(),
        {"Content-Type": "application/json"},
    )


READY = Reply(200, b"Prometheus Server is Ready.\n")
STARTING = Reply(503, b"Service Unavailable")
BUILDINFO = api(
    {
        "version": "3.5.3",
        "revision": "abc",
        "branch": "main",
        "buildUser": "x",
        "buildDate": "y",
        "goVersion": "go1",
    }
)


def target(
    job: str, instance: str, health: str = "up", last_error: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "discoveredLabels": {"__address__": instance, "job": job},
        "labels": {"instance": instance, "job": job},
        "scrapePool": job,
        "scrapeUrl": f"http://{instance}/metrics",
        "globalUrl": f"http://{instance}/metrics",
        "lastError": last_error,
        "lastScrape": (
            "0001-01-01T00:00:00Z" if health == "unknown" else "2026-11-23T09:15:03.482910374Z"
        ),
        "lastScrapeDuration": 0.001,
        "health": health,
        "scrapeInterval": "1s",
        "scrapeTimeout": "1s",
        **more,
    }


def targets(*active: dict[str, Any]) -> Reply:
    return api({"activeTargets": list(active), "droppedTargets": [], "droppedTargetCounts": None})


def vector(*samples: tuple[dict[str, str], str]) -> Reply:
    return api(
        {
            "resultType": "vector",
            "result": [
                {"metric": metric, "value": [1795433458.281, value]} for metric, value in samples
            ],
        }
    )


def scalar(value: str) -> Reply:
    return api({"resultType": "scalar", "result": [1795433458.281, value]})


class PrometheusDouble:
    """`with PrometheusDouble() as server:` serves until the block ends. Set `replies[path]` before
    asking for it.
    """

    def __init__(
        self,
        *,
        prefix: str = "",
        tls: ssl.SSLContext | None = None,
        authorization: str | None = None,
        ipv6: bool = False,
    ) -> None:
        self.replies: dict[str, list[Reply]] = {
            "/-/ready": [READY],
            "/api/v1/status/buildinfo": [BUILDINFO],
            "/api/v1/targets": [targets()],
            "/api/v1/query": [vector()],
        }
        self.requests: list[Request] = []
        self.prefix = prefix
        self.authorization = authorization
        self._stopping = threading.Event()
        double = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ipv6 else socket.AF_INET

            def get_request(self) -> tuple[Any, Any]:
                # A failed TLS handshake ends here, as an OSError.
                sock, address = super().get_request()
                return (tls.wrap_socket(sock, server_side=True) if tls else sock), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                # A client that has gone.
                pass

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                double._serve(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = Server(("::1" if ipv6 else "127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        host = "[::1]" if ipv6 else "127.0.0.1"
        self.address = f"{host}:{self._server.server_port}"
        self.url = f"{'https' if tls else 'http'}://{self.address}{prefix}"

    def __enter__(self) -> PrometheusDouble:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        form = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
        path = parts.path.removeprefix(self.prefix) if parts.path.startswith(self.prefix) else ""
        self.requests.append(
            Request(
                handler.command, path, parse_qs(parts.query), dict(handler.headers), parse_qs(form)
            )
        )
        if (
            self.authorization is not None
            and handler.headers.get("Authorization") != self.authorization
        ):
            reply = Reply(401, b"Unauthorized", {"WWW-Authenticate": "Basic"})
        elif path not in self.replies:
            reply = Reply(404, b"404 page not found\n")
        else:
            waiting = self.replies[path]
            reply = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        with contextlib.suppress(OSError):
            self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.hangs:
            self._stopping.wait(HANG_S)
        if reply.raw is not None:
            handler.wfile.write(reply.raw)
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(10**6 if reply.trickle else len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)
        end = time.monotonic() + HANG_S
        while reply.trickle and time.monotonic() < end and not self._stopping.wait(0.02):
            handler.wfile.write(b" ")
        if reply.closes or reply.trickle:
            handler.close_connection = True
