"""Stands for the real SGLang server where a fault is injected or seconds matter.

It speaks what sgl-admin and Prometheus ask of the real one: /health, /v1/models, /v1/completions
and /v1/chat/completions (streamed or not) with `usage`, and /metrics with the counter of prompt
tokens, which is born with its first value when a request has finished. It has helper processes in
its group that outlive it when it is killed, and it leaves the same "compiled" files in the kernel
caches each time.

The environment says what goes wrong; each variable begins with SGL_TEST_SERVER_:

    READY_S         seconds until /health says 200 (0); `never`; a path: once there is such a file
    EXIT            ends at once with this exit code, after printing EXIT_TEXT (an out-of-memory
                    error)
    REQUEST_S       seconds that a request takes (0)
    DIE_AFTER       ends itself, and not its helpers, in place of answering the request after so
                    many
    HANG_FROM       never answers from this request on (the first is 1)
    HTTP_500_FROM   answers HTTP 500 from this request on
    NOT_COUNTED     the counter stays as it is
    CLOCK_OFFSET_S  /metrics gives its sample an explicit timestamp, so many seconds off
    DEAF            1: SIGTERM does nothing, to it and its helpers
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import setproctitle  # type: ignore[import-not-found]

HELPERS = ("sglang::scheduler", "sglang::detokenizer")
COMPILED = {
    "TORCHINDUCTOR_CACHE_DIR": ("fxgraph/ab/graph", "co/code.py", "co/kernel.cpp"),
    "TRITON_CACHE_DIR": ("KEY/kernel.json", "KEY/kernel.so"),
}


def setting(name: str) -> str | None:
    return os.environ.get(f"SGL_TEST_SERVER_{name}") or None


def number(name: str, default: float = 0.0) -> float:
    return float(setting(name) or default)


class State:
    """What the server counts, for all of its threads."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.requests = 0
        self.tokens = 0

    @property
    def ready(self) -> bool:
        seconds = setting("READY_S") or "0"
        if seconds.startswith("/"):
            return os.path.exists(seconds)
        return seconds != "never" and time.monotonic() - self.started >= float(seconds)

    def begin(self) -> int:
        """The number of this request; the first one compiles."""
        with self.lock:
            self.requests += 1
            if self.requests == 1:
                compile_kernels()
            return self.requests

    def finish(self, tokens: int) -> None:
        with self.lock:
            self.tokens += 0 if setting("NOT_COUNTED") else tokens

    def metrics(self) -> str:
        lines = [
            "# HELP sglang:prompt_tokens_total Number of prefill tokens processed.",
            "# TYPE sglang:prompt_tokens_total counter",
        ]
        if self.tokens:
            offset = setting("CLOCK_OFFSET_S")
            stamp = f" {round((time.time() + float(offset)) * 1000)}" if offset else ""
            lines.append(
                f'sglang:prompt_tokens_total{{model_name="{self.model}"}}'
                f" {float(self.tokens)}{stamp}"
            )
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    """One request to the double."""

    protocol_version = "HTTP/1.1"
    state: State

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200 if self.state.ready else 503, "text/plain", "")
        elif self.path == "/v1/models":
            self.answer(
                200,
                "application/json",
                json.dumps(
                    {"object": "list", "data": [{"id": self.state.model, "object": "model"}]}
                ),
            )
        elif self.path == "/metrics":
            self.answer(200, "text/plain; version=0.0.4; charset=utf-8", self.state.metrics())
        else:
            self.answer(404, "text/plain", "")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mine = self.state.begin()
        if mine > number("DIE_AFTER", 1e9):
            print("double: Segmentation fault", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if mine >= number("HANG_FROM", 1e9):
            threading.Event().wait()
        if mine >= number("HTTP_500_FROM", 1e9):
            self.answer(
                500,
                "application/json",
                json.dumps({"object": "error", "message": "Internal server error", "code": 500}),
            )
            return
        time.sleep(number("REQUEST_S"))
        chat = self.path == "/v1/chat/completions"
        asked = (
            " ".join(message["content"] for message in body["messages"]) if chat else body["prompt"]
        )
        tokens = len(asked.split())
        self.state.finish(tokens)
        usage = {
            "prompt_tokens": tokens,
            "completion_tokens": body["max_tokens"],
            "total_tokens": tokens + body["max_tokens"],
        }
        if chat and body["stream"]:
            self.answer(
                200, "text/event-stream", "".join(f"data: {event}\n\n" for event in chunks(usage))
            )
            return
        said: dict[str, object] = (
            {"message": {"role": "assistant", "content": "words"}} if chat else {"text": " words"}
        )
        choice = {"index": 0, **said, "finish_reason": "length"}
        self.answer(
            200,
            "application/json",
            json.dumps({"model": body["model"], "choices": [choice], "usage": usage}),
        )

    def answer(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a scrape five times a second would fill the run's log."""


def chunks(usage: dict[str, int]) -> list[str]:
    """A streamed chat's events: words, the end of the choice, the usage, the end."""
    choices: list[list[dict[str, object]]] = [
        [{"index": 0, "delta": {"role": "assistant", "content": "words"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": ""}, "finish_reason": "length"}],
        [],
    ]
    events = [{"choices": choice, "usage": None if choice else usage} for choice in choices]
    return [*map(json.dumps, events), "[DONE]"]


class Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up, as a scrape may, is none of the server's failures."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def compile_kernels() -> None:
    """Leave what a compiler leaves, by temp file and rename as it does, where it is not there
    yet.
    """
    for variable, names in COMPILED.items():
        for name in names:
            path = Path(os.environ[variable]) / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
                temporary.write_text(f"compiled {name}\n" * 50)
                temporary.replace(path)


def start_helpers() -> None:
    """Processes of this group that name themselves as the real server's do, and hold nothing but
    their place.
    """
    for name in HELPERS:
        if os.fork() == 0:
            # As the real server's helpers name themselves.
            setproctitle.setproctitle(name)
            while True:
                signal.pause()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--enable-metrics", action="store_true", required=True)
    arguments, _ = parser.parse_known_args()
    print(f"double: stands for the SGLang server at port {arguments.port}", flush=True)
    if code := setting("EXIT"):
        print(
            setting("EXIT_TEXT")
            or "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            flush=True,
        )
        sys.exit(int(code))
    if setting("DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_helpers()
    Handler.state = State(Path(arguments.model_path).name)
    Listener((arguments.host, arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
