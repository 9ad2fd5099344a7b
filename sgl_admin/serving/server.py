"""The SGLang server that a prep starts: its command, its readiness, its requests, and its end with
all its processes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgl_admin.base import gated, ports
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import end_group, last_lines

HOST = "127.0.0.1"
# The counter has a colon in most releases and an underscore in newer ones.
# A label's value may hold anything but a bare quote.
_PROMPT_TOKENS = re.compile(
    r'^sglang[:_]prompt_tokens_total(?:\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)', re.MULTILINE
)
# What a server says as it dies, by what it dies of; the first that is found counts
# (docs/decisions/gpu-stages.md).
_DEATHS = (
    # DeepGEMM says only where it was writing (csrc/jit/compiler.hpp).
    ("insufficient_disk", ("no space left on device", "disk quota exceeded", "out.write(")),
    (
        "oom",
        ("out of memory", "outofmemoryerror", "not enough memory", "cudaerrormemoryallocation"),
    ),
    ("port_busy", ("address already in use",)),
    (
        "compile_failed",
        (
            "ninja exited with status",
            "ninja build failed",
            "failed to build jit module",
            "missingjitcacheerror",
            "nvcc compilation failed",
            "nvrtc error",
            "could not find nvcc",
            "no such file or directory: 'ninja'",
            "could not find cuda installation",
            "failed to find c compiler",
            "ptxaserror",
            "compilationerror",
            "passmanager::run failed",
            "inductorerror",
            "backendcompilerfailed",
        ),
    ),
)
# Where the cause of a death is looked for: the traceback of the process that died first is followed
# by the others'.
_LAST_LINES = 400


def command(model: str, tp: int, port: int, arguments: list[str]) -> list[str]:
    return [
        sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--tp-size", str(tp),
        "--host", HOST, "--port", str(port), "--enable-metrics", *arguments,
    ]  # fmt: skip


class Server:
    """One server process group. Its output goes to the run's log."""

    def __init__(
        self,
        argv: list[str],
        environment: dict[str, str],
        port: int,
        log: Path,
        log_start: int = 0,
        inherits: tuple[int, ...] = (),
    ) -> None:
        """`inherits` are descriptors that stay open as long as the server, or anything of it,
        lives: a lock.
        """
        self._inherits = inherits
        self.argv = argv
        self.environment = environment
        self.port = port
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        # Where its own lines begin in the run's log, in bytes.
        self.log_start = log_start
        # Where the process waits for the word to begin, as long as it does.
        self._word: int | None = None

    @property
    def group(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise StageFailure(
                    "port_busy",
                    f"port {self.port} on {HOST} is taken by {ports.holder(self.port)}: stop it"
                    f" (sgl-admin server stop, where it is one of ours; {error})",
                ) from error
        with open(self.log, "ab") as output:
            self.log_start = output.tell()
            # A group of its own, so that it ends as a whole; and with its parent, should that be
            # killed outright.
            try:
                self._process, self._word = gated.start(
                    self.argv,
                    self._inherits,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment},
                    cwd=os.environ.get("HOME", "/"),
                )
            except ValueError as error:
                # Of a word that no command line can hold, or a name that no environment can.
                raise StageFailure(
                    "server_start_failed", f"the server cannot be started: {error}"
                ) from error

    def wait_healthy(self, timeout_s: float, tick: Callable[[], None]) -> None:
        """Let the server begin; returns when /health says 200. An open port, or other pages
        answering, does not count.
        """
        assert self._process is not None
        self._give_word(b"1")
        self._close_word()
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self._process.poll() is not None:
                raise StageFailure(
                    _death_type(self.log_tail(_LAST_LINES)),
                    f"the server ended while starting, exit code {self._process.returncode}",
                    self.log_tail(),
                )
            if self.healthy():
                return
            tick()
            time.sleep(0.1)
        raise StageFailure(
            "server_unhealthy_timeout",
            f"the server did not become healthy within {timeout_s:.0f} s",
            self.log_tail(),
        )

    def healthy(self) -> bool:
        """Whether /health says 200 now."""
        try:
            return self._request("GET", "/health", timeout_s=5)[0] == 200
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def release(self) -> None:
        """Let the server begin, and outlive this process: it is noted where others will find it."""
        assert self._word is not None
        ready = select.poll()
        ready.register(self._word, 0)
        self._give_word(b"d")
        # Until it has read the word and cut itself loose, or has ended: its end of the pipe is
        # closed then.
        ready.poll()
        self._close_word()
        self._process = None

    def complete(self, prompt: str, temperature: float, max_tokens: int = 16) -> int:
        """Send one completion; returns the prompt tokens that the server says it took."""
        body = {
            "model": "default",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        try:
            status, answer = self._request("POST", "/v1/completions", body, timeout_s=600)
            if status == 200:
                return int(json.loads(answer)["usage"]["prompt_tokens"])
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise StageFailure(
                "request_failed", f"a warm-up request failed: {error!r}", self.log_tail()
            ) from error
        raise StageFailure(
            "request_failed",
            f"a warm-up request got HTTP {status}: {answer[:300]!r}",
            self.log_tail(),
        )

    def prompt_tokens(self) -> float:
        """The server's own count of prompt tokens, as Prometheus scrapes it."""
        try:
            status, answer = self._request("GET", "/metrics", timeout_s=10)
        except (OSError, http.client.HTTPException) as error:
            raise StageFailure(
                "request_failed",
                f"the server's /metrics does not answer: {error!r}",
                self.log_tail(),
            ) from error
        if status != 200:
            raise StageFailure(
                "request_failed", f"the server's /metrics answers HTTP {status}", self.log_tail()
            )
        values = _PROMPT_TOKENS.findall(answer.decode(errors="replace"))
        try:
            return sum(float(value) for value in values)
        except ValueError as error:
            raise StageFailure(
                "request_failed",
                f"the server counts its prompt tokens as {values[0][:40]!r}",
                self.log_tail(),
            ) from error

    def stop(self) -> None:
        """End the whole group: asked first, then forced. Raises StageFailure(cleanup_failed) when
        one outlives even that.
        """
        if self._process is None:
            return
        self._close_word()
        end_group(self._process.pid, self._process.poll)
        self._process = None

    def _give_word(self, word: bytes) -> None:
        """The server is noted, and may begin."""
        if self._word is not None:
            try:
                os.write(self._word, word)
            except BrokenPipeError:
                pass  # It ended already, which its exit code tells.

    def _close_word(self) -> None:
        if self._word is not None:
            os.close(self._word)
            self._word = None

    def log_tail(self, lines: int = 20) -> list[str]:
        return last_lines(self.log, self.log_start, lines)

    def own_log(self) -> str:
        """All that it has written."""
        with open(self.log, "rb") as stream:
            stream.seek(self.log_start)
            return stream.read().decode(errors="replace")

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = 60
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request(
                method,
                path,
                json.dumps(body) if body else None,
                {"Content-Type": "application/json"} if body else {},
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _death_type(tail: list[str]) -> str:
    text = "\n".join(tail).lower()
    return next(
        (kind for kind, words in _DEATHS if any(word in text for word in words)),
        "server_start_failed",
    )
