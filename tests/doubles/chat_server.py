"""A double of the SGLang server's chat API.

It stands for answers that a real server gives only with a reasoning model (thoughts in tags or in
`reasoning_content`), or only when it is broken: an error, a hung or trickling stream, malformed
JSON, no choices, no usage, a connection that is reset or cut short. It speaks HTTP/1.1, streams in
chunks as uvicorn does, and answers /health, /v1/models and /v1/chat/completions; the shapes of its
good answers are those of SGLang 0.5.9. `mode` says how it misbehaves. As a program it stands for
the prepared server, with a helper process in its group that outlives it when it is killed, as the
real one has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "/models/double"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
# What the model says: reasoning_content and content.
WORDS: dict[str, tuple[str | None, str]] = {
    "closing_tag": (None, "I add them.\n</think>\n\nIt is 22."),
    "tags": (None, "<think>\nI add them.\n</think>\n\nIt is 22."),
    "never_closed": (None, "<think>\nI add and add"),
    "reasoning_content": ("I add them.", "It is 22."),
}
PLAIN = (None, "It is 22.")
# What is sent in place of an answer: status, and content.
BODIES = {
    "http_500": (500, b'{"object":"error","message":"Internal server error","code":500}'),
    "bad_json": (200, b'{"choices": [{"mess'),
    "no_choices": (200, json.dumps({"choices": [], "usage": USAGE}).encode()),
    "no_usage": (
        200,
        json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}).encode(),
    ),
    "no_finish_reason": (
        200,
        json.dumps(
            {"choices": [{"message": {"content": "x"}, "finish_reason": None}], "usage": USAGE}
        ).encode(),
    ),
    "content_is_a_list": (
        200,
        json.dumps(
            {"choices": [{"message": {"content": ["x"]}, "finish_reason": "stop"}], "usage": USAGE}
        ).encode(),
    ),
}


class ChatServer:
    """`with ChatServer(mode) as server:` serves until the block ends; it misbehaves from the chat
    number `first` on.

    `requests` are the chats that it was asked.
    """

    def __init__(self, mode: str = "", port: int = 0, first: int = 1) -> None:
        self.mode = mode
        self.first = first
        self.requests: list[dict[str, Any]] = []
        self.closing = threading.Event()
        # Whether each chat leaves a line on standard output, where a program's log is.
        self.says_so = False
        double = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that gives up is none of the server's failures."""

        class Handler(_Handler):
            server_double = double

        self.http = Server(("127.0.0.1", port), Handler)
        self.port = self.http.server_port

    def __enter__(self) -> ChatServer:
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    @staticmethod
    def answer(mode: str) -> dict[str, Any]:
        reasoning, content = WORDS.get(mode, PLAIN)
        message = {
            "role": "assistant",
            "content": content,
            "reasoning_content": reasoning,
            "tool_calls": None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": "stop",
            "matched_stop": None,
        }
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
            "usage": USAGE,
        }

    @staticmethod
    def events(mode: str) -> Iterator[bytes]:
        """The stream: the role, the words three characters at a time, the reason of its end, the
        usage, the end.
        """
        if mode == "no_choices":
            yield _event(_chunk([], USAGE))
            yield b"data: [DONE]\n\n"
            return
        reasoning, content = WORDS.get(mode, PLAIN)
        yield b": a comment\r\n\r\n"
        yield _event(_chunk([_delta(role="assistant", content="")])).replace(b"\n", b"\r\n")
        for name, words in (("reasoning_content", reasoning or ""), ("content", content)):
            for start in range(0, len(words), 3):
                yield _event(_chunk([_delta(**{name: words[start : start + 3]})]))
                if mode == "bad_json":
                    yield b'data: {"choices": [{"del\n\n'
                if mode == "error_chunk":
                    yield _event(
                        {
                            "error": {
                                "object": "error",
                                "message": "out of KV cache",
                                "type": "BadRequest",
                                "code": 400,
                            }
                        }
                    )
                if mode in ("hang", "cut", "reset_late"):
                    return
        if mode == "content_is_a_list":
            yield _event(_chunk([_delta(content=["x"])]))
        yield _event(
            _chunk(
                [
                    {
                        **_delta(content=None),
                        "finish_reason": None if mode == "no_finish_reason" else "stop",
                    }
                ]
            )
        )
        if mode != "no_usage":
            yield _event(_chunk([], USAGE))
        if mode != "no_done":
            yield b"data: [DONE]\n\n"


def _delta(**words: Any) -> dict[str, Any]:
    delta = {"role": None, "content": None, "reasoning_content": None, "tool_calls": None, **words}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}


def _chunk(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_double: ChatServer

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        if self.path == "/v1/models" and self.server_double.mode != "no_models":
            self._send(200, json.dumps(models).encode())
        else:
            unhealthy = self.server_double.mode == "never_healthy"
            self._send(503 if unhealthy else 200 if self.path == "/health" else 404, b"")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double = self.server_double
        double.requests.append(asked)
        mode = double.mode if len(double.requests) >= double.first else ""
        if double.says_so:
            print(f"double: asked {len(double.requests)}", flush=True)
        if mode == "reset":
            self._reset()
        elif mode == "silent":
            double.closing.wait()
        elif mode == "http_500" or (not asked["stream"] and mode in BODIES):
            self._send(*BODIES[mode])
        elif not asked["stream"]:
            content = json.dumps(double.answer(mode)).encode()
            self._send(200, content if mode != "cut" else content[:-20], len(content))
        else:
            assert asked["stream_options"] == {"include_usage": True}
            self._stream(mode)

    def _stream(self, mode: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server_double.events(mode):
            self._send_chunk(event)
        while mode == "hang" and not self.server_double.closing.wait(0.02):
            # It trickles: each byte comes in time.
            self._send_chunk(b":")
        if mode == "reset_late":
            self._reset()
        elif mode == "cut":
            self.close_connection = True
        else:
            self._send_chunk(b"")

    def _send_chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def _send(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        if length is not None:
            self.close_connection = True

    def _reset(self) -> None:
        """RST in place of FIN, as the kernel sends for a server that crashed."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        with contextlib.suppress(OSError):
            self.rfile.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", default="")
    parser.add_argument("--first", type=int, default=1)
    arguments = parser.parse_args()
    if os.fork() == 0:
        signal.pause()
    print(f"double: begins with {os.environ.get('SGL_TEST_WORD', 'no word')}", flush=True)
    server = ChatServer(arguments.mode, arguments.port, arguments.first)
    server.says_so = True
    server.http.serve_forever()


if __name__ == "__main__":
    main()
