"""The server that a prep starts: its readiness, its requests, its end with all its processes."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sgl_admin.base import gated, http_client, logs, paths, ports
from sgl_admin.base.command import Command
from sgl_admin.base.engine import HOST, Death, Post
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import end_group, ended, oom_kills, oom_kills_since
from sgl_admin.contract.texts import one_line
from sgl_admin.sglang import ENGINE

_T = TypeVar("_T")

# Where the cause of a death is looked for: the traceback of the process that died first is followed
# by the others', and a compiler's output by the words of who wanted it.
_LAST_LINES, _LAST_BYTES = 4000, 1 << 19
# What a message quotes of the server's last words.
_WORDS = 160
# For a server that broke a connection off to be gone.
_GONE_S = 2.0


@dataclass(frozen=True)
class Timed:
    """A completion: its tokens, and how long it took."""

    prompt_tokens: int
    tokens: int
    seconds: float


class Server:
    """One server process group. Its output goes to the run's log."""

    def __init__(
        self,
        command: Command,
        port: int,
        log: Path,
        log_start: int = 0,
        inherits: tuple[int, ...] = (),
        group: int | None = None,
        start_env: Mapping[str, str] | None = None,
    ) -> None:
        """`inherits` are descriptors that stay open as long as the server, or anything of it,
        lives: a lock. `group` is that of a server which another process started. `start_env` is
        beside the command's environment.
        """
        self._command = command
        self._inherits = inherits
        self._group = group
        self._start_env = start_env or {}
        self.port = port
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        # Where its own lines begin in the run's log, in bytes.
        self.log_start = log_start
        # Where the process waits for the word to begin, as long as it does.
        self._word: int | None = None
        # What the kernel had ended for want of memory before it began.
        self._oom_kills: int | None = None

    @property
    def group(self) -> int | None:
        return self._process.pid if self._process else self._group

    def demand_free_port(self) -> None:
        """Raises StageFailure(port_busy) where another process listens at its port."""
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

    def start(self) -> None:
        self.demand_free_port()
        self._oom_kills = oom_kills()
        with open(self.log, "ab") as output:
            self.log_start = output.tell()
            # A group of its own, so that it ends as a whole; and with its parent, should that be
            # killed outright.
            try:
                self._process, self._word = gated.start(
                    self._command,
                    self._inherits,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        **ENGINE.network_environment(self._command.argv),
                        **ENGINE.inherited(os.environ),
                        **self._command.env,
                        **self._start_env,
                    },
                    cwd=os.environ.get("HOME", "/"),
                )
            except ValueError as error:
                # Of a word that no command line can hold, or a name that no environment can.
                raise StageFailure(
                    "server_start_failed", f"the server cannot be started: {error}"
                ) from error

    def wait_healthy(self, timeout_s: float, tick: Callable[[], None]) -> None:
        """Let the server begin; returns when it is healthy."""
        assert self._process is not None
        self._give_word(b"1")
        self._close_word()
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self._process.poll() is not None:
                raise self._died("the server ended while starting", "server_start_failed")
            self._demand_the_port()
            if self.healthy():
                return
            tick()
            time.sleep(0.1)
        raise StageFailure(
            "server_unhealthy_timeout",
            self._with_log(
                f"the server did not become healthy within {timeout_s:.0f} s", self._last_line()
            ),
            self.log_tail(),
        )

    def death(self) -> Death:
        """What it died of, by its log and its exit code."""
        return ENGINE.death(
            logs.last_lines(self.log, self.log_start, _LAST_LINES, _LAST_BYTES),
            None if self._process is None else self._process.poll(),
            oom_kills_since(self._oom_kills),
        )

    def obituary(self, problem: str) -> str:
        """The problem with the dead server's last words, the remedy and its log, for a person."""
        death = self.death()
        return self._with_log(problem, death.words, death.remedy)

    def _died(self, problem: str, otherwise: str) -> StageFailure:
        """What its death is called, and `otherwise` where its last words are not known."""
        assert self._process is not None
        error_type = self.death().error_type
        return StageFailure(
            otherwise if error_type == "server_start_failed" else error_type,
            self.obituary(f"{problem} ({ended(self._process.returncode)})"),
            self.log_tail(),
        )

    def _last_line(self) -> str:
        return next(filter(str.strip, reversed(self.log_tail())), "")

    def _with_log(self, problem: str, words: str, remedy: str = "") -> str:
        words = one_line(words, _WORDS)
        parts = (f"{problem}: {words}" if words else problem, remedy)
        return "; ".join([*filter(None, parts), f"the log is {self.log_name()}"])

    def log_name(self) -> str:
        """Its log's path on the host, where that is known."""
        return paths.to_host(self.log) or str(self.log)

    def healthy(self) -> bool:
        """Whether its health page says so now: whatever another process answers there is none."""
        try:
            ready = ENGINE.is_ready(self._ask(ENGINE.health_path, timeout_s=5)[0])
        except http_client.NO_ANSWER:
            return False
        return ready and self._has_the_port() is True and ports.intruder(self.port) is None

    def _has_the_port(self) -> bool | None:
        """Whether it is this server that answers at its port; None where no process does. A server
        that was not started here is known only as a process of this container.
        """
        if self.group is None:
            return ports.held_here(HOST, self.port)
        return ports.held_by_group(HOST, self.port, self.group)

    def _demand_the_port(self) -> None:
        """Raises StageFailure(port_busy) where another process listens at this server's port."""
        # Twice, as a listener that just ends is seen without its process.
        if self._has_the_port() is False and self._has_the_port() is False:
            raise StageFailure(
                "port_busy",
                f"port {self.port} on {HOST} is answered by {ports.holder(self.port)} instead of"
                " the server that was started: stop that process, and run this again",
                self.log_tail(),
            )
        if who := ports.intruder(self.port):
            raise StageFailure(
                "port_busy",
                f"{who} answers a connection to port {self.port} on {HOST} that it took before the"
                " server was there: stop that process, and run this again",
                self.log_tail(),
            )
        # Its processes tell one another there, without a password, where to send what: PyTorch's
        # store listens on every address. A server of several nodes has others come there.
        if self._process is None or ENGINE.spans_hosts(self._command.argv):
            return
        if who := ports.visitor(self._process.pid, self.port):
            raise StageFailure(
                "port_busy",
                f"{who}, where the server's own processes meet: stop that process or close the port"
                " to it, and run this again",
                self.log_tail(),
            )

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
        request = ENGINE.completion(prompt, temperature, max_tokens)
        return self._answered(request, ENGINE.prompt_tokens_used)

    def timed(self, prompt: str, tokens: int) -> Timed:
        """Send one completion of so many tokens, and time it."""

        def read(answer: bytes) -> Timed:
            seconds = time.monotonic() - began
            used = ENGINE.prompt_tokens_used(answer), ENGINE.completion_tokens_used(answer)
            return Timed(*used, seconds)

        began = time.monotonic()

        def begin() -> None:
            nonlocal began
            began = time.monotonic()

        request = ENGINE.timed_completion(prompt, tokens)
        return self._answered(request, read, begin)

    def _answered(
        self,
        request: Post,
        read: Callable[[bytes], _T],
        begin: Callable[[], None] = lambda: None,
    ) -> _T:
        """What `read` makes of the answer to a request. Raises StageFailure without one."""
        try:
            status, answer = self._ask(request.path, 600, request.body, begin)
            if status == 200:
                return read(answer)
        except (
            *http_client.NO_ANSWER,
            KeyError,
            TypeError,
            OverflowError,
        ) as error:
            raise self._unanswered(f"a warm-up request failed: {error!r}") from error
        said = one_line(answer.decode(errors="replace"), _WORDS)
        raise self._unanswered(f"a warm-up request got HTTP {status}: {said}")

    def _unanswered(self, problem: str) -> StageFailure:
        """Why a request failed: by the server's death, where it ended over it."""
        deadline = time.monotonic() + _GONE_S
        while self._process is not None:
            if self._process.poll() is not None:
                return self._died("the server ended while it served", "request_failed")
            # Asked last: to ask may take longer than the time that is left.
            if time.monotonic() >= deadline or self.healthy():
                break
            time.sleep(0.05)
        return StageFailure(
            "request_failed",
            self._with_log(problem, self._last_line()),
            self.log_tail(),
        )

    def metrics_page(self) -> str:
        """Empty where it does not answer."""
        try:
            status, answer = self._ask(ENGINE.metrics_path, timeout_s=10)
        except http_client.NO_ANSWER:
            return ""
        return answer.decode(errors="replace") if status == 200 else ""

    def prompt_tokens(self) -> float:
        """The server's own count of prompt tokens, as Prometheus scrapes it."""
        page = ENGINE.metrics_path
        self._demand_the_port()
        try:
            status, answer = self._ask(page, timeout_s=10)
        except http_client.NO_ANSWER as error:
            raise self._unanswered(f"the server's {page} does not answer: {error!r}") from error
        if status != 200:
            raise StageFailure(
                "request_failed", f"the server's {page} answers HTTP {status}", self.log_tail()
            )
        try:
            return ENGINE.prompt_tokens_total(answer.decode(errors="replace"))
        except ValueError as error:
            raise StageFailure("request_failed", str(error), self.log_tail()) from error

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
        return logs.last_lines(self.log, self.log_start, lines)

    def own_lines(self) -> Iterator[str]:
        """All that it has written, line by line."""
        return logs.lines_from(self.log, self.log_start)

    def _ask(
        self,
        path: str,
        timeout_s: float,
        body: dict[str, Any] | None = None,
        begin: Callable[[], None] = lambda: None,
    ) -> tuple[int, bytes]:
        ours = http_client.Ours(ENGINE.api_key(self._command.argv), begin)
        return http_client.ask(HOST, self.port, path, timeout_s, body, ours)
