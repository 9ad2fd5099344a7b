"""A request to the server, or to a service of the run."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from sgl_admin.base import ports

# What a request raises that gets no whole answer; TimeoutError among it.
NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
# Of an answer's body.
_MOST_BYTES = 16 << 20


class NotOurs(OSError):
    """Another's process has the other end of a connection; it was asked nothing."""


@dataclass(frozen=True)
class Ours:
    """What is asked of a process of this container alone: `key` is what the server asks for, and
    `begin` is called when the request goes out.
    """

    key: str | None = None
    begin: Callable[[], None] = lambda: None


def ask(
    host: str,
    port: int,
    path: str,
    timeout_s: float,
    body: dict[str, Any] | None = None,
    ours: Ours | None = None,
) -> tuple[int, bytes]:
    """The answer's status and its body. Raises NO_ANSWER."""
    with answering(host, port, path, timeout_s, body, ours) as response:
        return response.status, limited(response)


@contextmanager
def answering(
    host: str,
    port: int,
    path: str,
    timeout_s: float,
    body: dict[str, Any] | None = None,
    ours: Ours | None = None,
) -> Iterator[HTTPResponse]:
    """The answer, of which all has to come within so many seconds. Raises NO_ANSWER.

    A body is posted as JSON. With `ours`, nothing is sent to another's process.
    """
    connection = _Connection(host, port, timeout=timeout_s)
    headers = {"Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if ours is not None and ours.key is not None:
        headers["Authorization"] = f"Bearer {ours.key}"
    try:
        if ours is not None:
            connection.connect()
            if not ports.answered_here(connection.sock, timeout_s):
                raise NotOurs(f"{host}:{port} is answered by another's process")
            ours.begin()
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content, headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def limited(response: HTTPResponse) -> bytes:
    """An answer's whole body. Raises NO_ANSWER, above 16 MiB too: no answer that is asked for is so
    large.
    """
    body = response.read(_MOST_BYTES + 1)
    if len(body) > _MOST_BYTES:
        raise ValueError(f"an answer of more than {_MOST_BYTES} bytes")
    if response.length:
        # A read of so many bytes at most does not say that the connection ended before.
        raise http.client.IncompleteRead(body, response.length)
    return body


class _Connection(http.client.HTTPConnection):
    timeout: float

    def connect(self) -> None:
        deadline = time.monotonic() + self.timeout
        super().connect()
        limited_socket = _Socket(fileno=self.sock.detach())
        limited_socket.settimeout(self.timeout)
        limited_socket.deadline = deadline
        self.sock = limited_socket


class _Socket(socket.socket):
    """Its deadline is for all that it receives: a plain time limit begins again with every byte
    that trickles in.
    """

    deadline: float

    def recv_into(self, *arguments: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*arguments)
