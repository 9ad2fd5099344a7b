"""One server for all that a prep needs of one: started at the first need, asked, kept up for the
probe, ended once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sgl_admin.base.errors import Interrupted, StageFailure
from sgl_admin.serving import benchmark_server
from sgl_admin.serving.probe import TokenLedger
from sgl_admin.serving.server import Server, Timed
from sgl_admin.sglang import ENGINE

# Greedy and sampled: each has kernels of its own.
_TEMPERATURES = (0.0, 0.8)


class Warmup:
    def __init__(
        self,
        run_id: str,
        server: Server,
        timeout_s: float,
        on_server: Callable[[int | None], None],
        tick: Callable[[], None],
        make_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_ready` is called before each start; what it raises fails the start."""
        self._run_id = run_id
        self._make_ready = make_ready
        # Of the server's place, while this one has it.
        self._place: int | None = None
        self.server = server
        self._timeout_s = timeout_s
        self._on_server = on_server
        self._tick = tick
        self._failure: StageFailure | OSError | None = None
        self.started = False
        # Seconds that the last start took, and the server's first requests: greedy, and the first
        # that samples.
        self.ready_s: float | None = None
        self.first_request_s: float | None = None
        self.first_sampled_request_s: float | None = None
        # Where each start went, in their order.
        self.starts: list[dict[str, Any]] = []
        self.ledger = TokenLedger(self.server)

    def make_way(self) -> None:
        """Have the server's place, and see that nothing which is known beforehand keeps a server
        from starting; what does fails every later start too. Raises StageFailure and OSError.
        """
        if self._failure is not None:
            raise self._failure
        if self.started:
            return
        try:
            self.keep_place()
            self.server.demand_free_port()
        except (StageFailure, OSError) as failure:
            self._failure = failure
            raise

    def start(self) -> None:
        """Start the server once; a start that failed fails every later need in the same way,
        without another try.
        """
        if self._failure is not None:
            raise self._failure
        if self.started:
            return
        try:
            self.keep_place()
            began, began_at = time.monotonic(), time.time()
            self.server.start()
            self._on_server(self.server.group)
            self.server.wait_healthy(self._timeout_s, self._tick)
            self.started = True
            self.ready_s = round(time.monotonic() - began, 3)
            self._note_start(began_at, self.ready_s)
        except (StageFailure, OSError) as failure:
            self._failure = failure
            raise

    def _note_start(self, began_at: float, ready_s: float) -> None:
        page = self.server.metrics_page()
        try:
            known = ENGINE.start_breakdown(self.server.own_lines(), page, began_at, ready_s)
        except OSError:
            # Its log cannot be read, and it is ready all the same.
            known = ENGINE.start_breakdown((), page, began_at, ready_s)
        self.starts.append(
            {
                **known,
                # Of a server that is asked nothing.
                "first_request_s": None,
                "first_sampled_request_s": None,
            }
        )

    def exercise(
        self,
        batch_sizes: tuple[int, ...],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Send greedy and sampled requests, at each batch size so many at once; returns how many
        were sent.
        """
        self.start()
        rounds = [(size, temperature) for size in batch_sizes for temperature in _TEMPERATURES]
        # Alone and first: it sets the ledger's baseline before anything else counts.
        began = time.monotonic()
        self.ledger.complete("The capital of France is", 0.0)
        self.first_request_s = round(time.monotonic() - began, 3)
        began = time.monotonic()
        self.ledger.complete("The capital of Spain is", _TEMPERATURES[-1])
        self.first_sampled_request_s = round(time.monotonic() - began, 3)
        # A server that ran before has no start of this warm-up.
        if self.starts and self.starts[-1]["first_request_s"] is None:
            self.starts[-1].update(
                first_request_s=self.first_request_s,
                first_sampled_request_s=self.first_sampled_request_s,
            )
        sent = 2
        for number, (size, temperature) in enumerate(rounds):
            progress(number, len(rounds))
            self.ledger.add(partial(self._send_at_once, size, temperature))
            sent += size
        return sent

    def _send_at_once(self, size: int, temperature: float) -> int:
        """Send so many requests at once; returns their tokens."""
        prompts = [
            f"Request {index} of {size}: count from {index} upwards." for index in range(size)
        ]
        with ThreadPoolExecutor(size) as pool:
            try:
                return sum(
                    pool.map(lambda prompt: self.server.complete(prompt, temperature), prompts)
                )
            except Interrupted:
                # The pool waits for its requests, of which the first may compile for minutes:
                # without their server they end at once.
                self.server.stop()
                raise

    def timed(self, prompt: str, tokens: int) -> Timed:
        """Time one completion of so many tokens by the server, which has answered others."""
        answers = []

        def send() -> int:
            answers.append(self.server.timed(prompt, tokens))
            return answers[0].prompt_tokens

        self.ledger.add(send)
        return answers[0]

    def ensure_requests(self, batch_sizes: tuple[int, ...]) -> TokenLedger:
        """The ledger of a server that was asked something: by a stage already, or now. A new one is
        begun where requests of a failed stage are missing in it.
        """
        if not self.ledger.whole:
            self.ledger = TokenLedger(self.server)
        if not self.ledger.tokens:
            self.exercise(batch_sizes)
        return self.ledger

    def keep_place(self) -> None:
        """Have the server's place without a server, for work that wants the GPU alone. Raises
        StageFailure.
        """
        if self._place is None:
            self._place = benchmark_server.claim(self._run_id)
        self._make_ready()

    def rest(self) -> None:
        """End the server but keep its place: what comes next needs the GPU alone, or a server that
        reads its files again.
        """
        self.server.stop()
        self._on_server(None)
        self.started = False
        self.ledger = TokenLedger(self.server)

    def close(self) -> None:
        try:
            self.server.stop()
        finally:
            if self._place is not None:
                os.close(self._place)
                self._place = None
            self._on_server(None)


class OfRunning(Warmup):
    """A server that another command started, and that goes on: it is asked, never started or
    ended.
    """

    def __init__(self, run_id: str, server: Server) -> None:
        super().__init__(run_id, server, 0.0, lambda group: None, lambda: None)
        self.started = True

    def keep_place(self) -> None:
        """It has the server's place."""

    def close(self) -> None:
        """Nothing of it is this process's."""
