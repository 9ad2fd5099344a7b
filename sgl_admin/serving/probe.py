"""METRICS_READY: Prometheus holds, for this run, server samples that account for the tokens that a
prep sent.

The server's own counter just before the first request is the baseline: it only grows while that
server lives, and Prometheus stores it as it is. So one raw sample, taken after the first request
and as high as baseline plus tokens, is proof; `increase()` would miss a series that is
born with its value, and would count a restart as growth. Exactly as many as were sent: more is
another's count.
"""

from __future__ import annotations

import math
import os
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from sgl_admin.base import clock, http_client, paths, ports
from sgl_admin.base.engine import HOST
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract.texts import one_line, read_json_text
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE

_POLL_S = 0.2
_SETTLE_S = 10.0
# A clock that NTP slews does not jump so far while a proof is made.
_JUMP_S = 2.0
_DAY_S = 86400
# What reading an answer of another program than Prometheus raises.
_NO_ANSWER = (*http_client.NO_ANSWER, LookupError, TypeError, ArithmeticError)
_LONG_PROMPT = " ".join(f"The number after {number} is {number + 1}." for number in range(60))


class TokenLedger:
    """The prompt tokens sent to one server since just before the first request.

    `whole` is False while a request is out, and after one that failed: the server may count what
    the ledger does not.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._baseline: float | None = None
        self._since_monotonic = 0.0
        self.since = 0.0
        self.tokens = 0
        self.whole = True

    @property
    def address(self) -> str:
        """Where the server is scraped."""
        return f"{HOST}:{self._server.port}"

    def complete(self, prompt: str, temperature: float) -> None:
        if self._baseline is None:
            self._baseline = self._settled_count()
            self.since, self._since_monotonic = time.time(), time.monotonic()
        self.add(lambda: self._server.complete(prompt, temperature))

    def add(self, send: Callable[[], int]) -> None:
        """Count the tokens that `send` returns. The first request has to be sent alone."""
        self.whole = False
        self.tokens += send()
        self.whole = True

    def _settled_count(self) -> float:
        """The server's own count once it stands still: that of its warm-up may come late."""
        before = self._server.prompt_tokens()
        deadline = time.monotonic() + _SETTLE_S
        while True:
            if not math.isfinite(before):
                raise StageFailure(
                    "request_failed",
                    f"the server's own count of prompt tokens is {before}, which is no number",
                )
            time.sleep(_POLL_S)
            now = self._server.prompt_tokens()
            if now == before:
                return now
            if time.monotonic() >= deadline:
                raise StageFailure(
                    "request_failed",
                    "something else sends requests to the server: its count of prompt tokens grows"
                    f" before the first of this prep's (from {before:.0f} to {now:.0f})",
                )
            before = now

    def exceed(self, count: float) -> bool:
        """Send more until the server's counter is above `count`; False when that would take too
        much.
        """
        for _ in range(20):
            if self.baseline + self.tokens > count:
                return True
            self.complete(_LONG_PROMPT, 0.0)
        return False

    @property
    def clock_jump_s(self) -> float:
        """Seconds by which the host's clock was set forward (or back, below 0) since the first
        request.
        """
        return (time.time() - self.since) - (time.monotonic() - self._since_monotonic)

    @property
    def baseline(self) -> float:
        assert self._baseline is not None, "no request was sent"
        return self._baseline


def is_ours(prometheus_url: str) -> bool:
    """Whether nothing but a process of this container listens at this address. Without a
    container, Prometheus is the operator's own, and nothing can be said against it.

    Raises ValueError for a URL that has no IP address.
    """
    if paths.ROOT_VARIABLE in os.environ:
        return True
    return ports.held_here(*_address(prometheus_url)) is not False


def lost(prometheus_url: str, proof: dict[str, Any]) -> str | None:
    """Why Prometheus does not stand by a proof of before any more; None where it does: it answers,
    and still has the samples that were the proof.
    """
    try:
        if not is_ours(prometheus_url):
            return _foreign(prometheus_url)
        window = proof["window"]
        count, total = _samples(
            prometheus_url, proof["prometheus_query"], window["since"], window["until"]
        )
        if count and round(total - window["baseline"]) == proof["tokens_seen"]:
            return None
    except _NO_ANSWER as error:
        return _unexpected(prometheus_url, error)
    return f"Prometheus at {one_line(prometheus_url, 200)} has lost the samples of the proof"


def unproven(
    run_id: str, prometheus_url: str, address: str, reason: str | None, tokens_expected: int = 0
) -> dict[str, Any]:
    """The record of a proof that was not made; `address` is where the server is scraped."""
    return {
        "ok": False,
        "probed_at": clock.utc(),
        "prometheus_url": prometheus_url,
        "prometheus_query": ENGINE.prompt_tokens_query(run_id, address),
        "sample_count": 0,
        "tokens_expected": tokens_expected,
        "tokens_seen": 0,
        "waited_s": 0.0,
        "window": None,
        "reason": reason,
    }


def prove(
    run_id: str, prometheus_url: str, ledger: TokenLedger, timeout_s: float
) -> dict[str, Any]:
    """Ask Prometheus until it accounts for the ledger's tokens, for `timeout_s` seconds at most."""
    tokens = max(0, ledger.tokens)
    result = unproven(run_id, prometheus_url, ledger.address, None, tokens)
    if ledger.tokens < 1:
        return {
            **result,
            "reason": (
                "the server counted no prompt token of what was sent: there is nothing to"
                " account for"
            ),
        }
    attempt = _Attempt(result, ledger)
    started = time.monotonic()
    while True:
        result["waited_s"] = round(time.monotonic() - started, 3)
        try:
            ended = attempt.look()
        except _NO_ANSWER as error:
            ended = False
            result["reason"] = _unexpected(prometheus_url, error)
        if ended or result["waited_s"] >= timeout_s:
            return {**result, "probed_at": clock.utc()}
        time.sleep(_POLL_S)


class _Attempt:
    """One attempt at a proof, which notes in `result` what it sees."""

    def __init__(self, result: dict[str, Any], ledger: TokenLedger) -> None:
        self._result = result
        self._ledger = ledger
        self._exceeded = False

    def look(self) -> bool:
        """Ask once; whether the attempt has ended, with a proof or with the reason why it is
        impossible.
        """
        result, ledger = self._result, self._ledger
        url, query = result["prometheus_url"], result["prometheus_query"]
        if abs(ledger.clock_jump_s) > _JUMP_S:
            # It is unknown by now which samples came after the first request.
            result["reason"] = (
                f"the host's clock was set by {ledger.clock_jump_s:+.0f} s while the proof was"
                " made; run this again"
            )
            return True
        if not is_ours(url):
            result["reason"] = _foreign(url)
            return True
        until = time.time()
        result["sample_count"], highest = _samples(url, query, ledger.since, until)
        seen = result["tokens_seen"] = max(0, round(highest - ledger.baseline))
        if not result["sample_count"]:
            result["reason"] = (
                "Prometheus has no sample of this run's server since the first request: is the"
                f" {ENGINE.name} target scraped?"
            )
            return False
        result["reason"] = f"{seen} of {ledger.tokens} prompt tokens arrived"
        if seen < ledger.tokens:
            return False
        # Samples from the future are an earlier server's, from before the clock was set back: they
        # count as seen only where they could not be taken for this one's.
        future = _samples(url, query, time.time() + _JUMP_S, time.time() + _DAY_S)[1]
        if seen == ledger.tokens and future < ledger.baseline + ledger.tokens:
            window = {
                "since": round(ledger.since, 3),
                "until": round(until, 3),
                "baseline": ledger.baseline,
            }
            result.update(ok=True, reason=None, window=window)
            return True
        return self._too_many(highest, future)

    def _too_many(self, highest: float, future: float) -> bool:
        """More was seen than sent: an earlier server's samples, or another count. Send more than
        they hold, once; they must not grow with it.
        """
        result, ledger = self._result, self._ledger
        if not self._exceeded and ledger.exceed(max(highest, future)):
            self._exceeded = True
            result["tokens_expected"] = ledger.tokens
            return False
        if future >= ledger.baseline + ledger.tokens:
            result["reason"] = (
                "the host's clock was set back, and Prometheus holds samples of this run from after"
                " its present time: begin a new run (playbooks/stop.yml), and run this again"
            )
        else:
            result["reason"] = (
                f"Prometheus has {result['tokens_seen']} prompt tokens since the first request, and"
                f" {ledger.tokens} were sent: something else uses the server, or counts as it. End"
                " that program, or give the server a key (sgl_server_api_key_file) so that other"
                " users of the host cannot ask it, and run again"
            )
        return True


def _foreign(prometheus_url: str) -> str:
    port = _address(prometheus_url)[1]
    return (
        f"port {port} is answered by {ports.holder(port)} instead of this container's Prometheus:"
        " stop that process, and start the container again (playbooks/start.yml)"
    )


def _address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def _unexpected(prometheus_url: str, error: Exception) -> str:
    shown = one_line(prometheus_url, 200)
    return f"Prometheus at {shown} does not answer as expected: {one_line(repr(error), 300)}"


def _samples(prometheus_url: str, query: str, since: float, until: float) -> tuple[int, float]:
    """How many raw samples Prometheus has between two times, and what their series count together
    at their highest.
    """
    window_s = max(1, int(until - since) + 2)
    parameters = urllib.parse.urlencode({"query": f"{query}[{window_s}s]", "time": f"{until:.3f}"})
    status, body = _get(prometheus_url, f"/api/v1/query?{parameters}")
    answer = read_json_text(body)
    if status != 200 or answer["status"] != "success":
        raise ValueError(f"HTTP {status}, {body[:200]!r}")
    count, highest = 0, []
    for series in answer["data"]["result"]:
        values = [value for moment, value in map(_sample, series["values"]) if moment >= since]
        count += len(values)
        if values:
            highest.append((dict(series["metric"]), max(values)))
    return count, ENGINE.total(highest)


def _sample(found: Any) -> tuple[float, float]:
    """Time and value of Prometheus' [time, "value"]. Raises ValueError or TypeError for all else,
    and for what no counter can be.
    """
    if not isinstance(found, list) or not isinstance(found[1], str):
        raise TypeError(f"{str(found)[:100]} is no sample")
    moment, value = map(float, found)
    if not math.isfinite(moment) or not math.isfinite(value):
        raise ValueError(f"{value} at {moment} is no sample of a counter")
    return moment, value


def _get(prometheus_url: str, path: str) -> tuple[int, bytes]:
    host, port = _address(prometheus_url)
    prefix = urllib.parse.urlsplit(prometheus_url).path.rstrip("/")
    return http_client.ask(host, port, prefix + path, 5)
