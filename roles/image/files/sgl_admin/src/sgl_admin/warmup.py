"""One server for all that a prep needs of one: started at the first need, asked, kept up for the probe, ended once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sgl_admin import paths, serving
from sgl_admin.errors import Interrupted, StageFailure
from sgl_admin.probe import TokenLedger
from sgl_admin.server import Server

# Greedy and sampled: each has kernels of its own.
_TEMPERATURES = (0.0, 0.8)


class Warmup:
    def __init__(
        self, run_id: str, argv: list[str], environment: dict[str, str], port: int, timeout_s: float,
        on_server: Callable[[int | None], None], tick: Callable[[], None],
    ) -> None:  # fmt: skip
        self._run_id = run_id
        # Of the server's place, while this one has it.
        self._place: int | None = None
        self._server = Server(argv, environment, port, paths.log(run_id))
        self._timeout_s = timeout_s
        self._on_server = on_server
        self._tick = tick
        self._failure: StageFailure | OSError | None = None
        self._started = False
        self.ledger = TokenLedger(self._server)

    def _start(self) -> None:
        """Start the server once; a start that failed fails every later need in the same way, without another try."""
        if self._failure is not None:
            raise self._failure
        if self._started:
            return
        try:
            self._place = serving.claim(self._run_id)
            self._server.start()
            self._on_server(self._server.group)
            self._server.wait_healthy(self._timeout_s, self._tick)
            self._started = True
        except (StageFailure, OSError) as failure:
            self._failure = failure
            raise

    def exercise(self, batch_sizes: tuple[int, ...], progress: Callable[[int, int], None] = lambda done, total: None) -> int:
        """Send greedy and sampled requests, at each batch size so many at once; returns how many were sent."""
        self._start()
        rounds = [(size, temperature) for size in batch_sizes for temperature in _TEMPERATURES]
        # Alone and first: it sets the ledger's baseline before anything else counts.
        self.ledger.complete("The capital of France is", 0.0)
        sent = 1
        for number, (size, temperature) in enumerate(rounds):
            progress(number, len(rounds))
            with ThreadPoolExecutor(size) as pool:
                prompts = [f"Request {index} of {size}: count from {index} upwards." for index in range(size)]
                try:
                    tokens = list(pool.map(lambda prompt, temperature=temperature: self._server.complete(prompt, temperature), prompts))
                except Interrupted:
                    # The pool waits for its requests, of which the first may compile for minutes: without their server they end at once.
                    self._server.stop()
                    raise
            self.ledger.tokens += sum(tokens)
            sent += size
        return sent

    def ensure_requests(self, batch_sizes: tuple[int, ...]) -> TokenLedger:
        """The ledger of a server that was asked something: by a stage already, or now."""
        if not self.ledger.tokens:
            self.exercise(batch_sizes)
        return self.ledger

    def close(self) -> None:
        try:
            self._server.stop()
        finally:
            if self._place is not None:
                os.close(self._place)
                self._place = None
            self._on_server(None)
