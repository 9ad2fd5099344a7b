"""METRICS_READY: Prometheus holds, for this run, server samples that account for the tokens that a
prep sent.

The server's own counter just before the first request is the baseline: it only grows while that
server lives, and Prometheus stores it as it is. So one raw sample, taken after the first request
and at least as high as baseline plus tokens, is proof; `increase()` would miss a series that is
born with its value, and would count a restart as growth.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.parse
from typing import Any

from sgl_admin.base import clock
from sgl_admin.base.errors import StageFailure
from sgl_admin.serving.server import Server
from sgl_admin.sglang import ENGINE

_POLL_S = 0.2
# A clock that NTP slews does not jump so far while a proof is made.
_JUMP_S = 2.0
_DAY_S = 86400
_LONG_PROMPT = " ".join(f"The number after {number} is {number + 1}." for number in range(60))


class TokenLedger:
    """The prompt tokens sent to one server since just before the first request."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._baseline: float | None = None
        self._since_monotonic = 0.0
        self.since = 0.0
        self.tokens = 0

    def complete(self, prompt: str, temperature: float) -> None:
        if self._baseline is None:
            baseline = self._server.prompt_tokens()
            if not math.isfinite(baseline):
                raise StageFailure(
                    "request_failed",
                    f"the server's own count of prompt tokens is {baseline}, which is no number",
                )
            self._baseline = baseline
            self.since, self._since_monotonic = time.time(), time.monotonic()
        self.tokens += self._server.complete(prompt, temperature)

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


def answers(prometheus_url: str) -> bool:
    """Whether Prometheus says that it is ready: without it a proof of the past is worth nothing
    now.
    """
    try:
        return _get(prometheus_url, "/-/ready")[0] == 200
    except (OSError, http.client.HTTPException, ValueError):
        return False


def unproven(
    run_id: str, prometheus_url: str, reason: str | None, tokens_expected: int = 0
) -> dict[str, Any]:
    return {
        "ok": False,
        "probed_at": clock.utc(),
        "prometheus_url": prometheus_url,
        "prometheus_query": ENGINE.prompt_tokens_query(run_id),
        "sample_count": 0,
        "tokens_expected": tokens_expected,
        "tokens_seen": 0,
        "waited_s": 0.0,
        "reason": reason,
    }


def prove(
    run_id: str, prometheus_url: str, ledger: TokenLedger, timeout_s: float
) -> dict[str, Any]:
    """Ask Prometheus until it accounts for the ledger's tokens, for `timeout_s` seconds at most."""
    result = unproven(run_id, prometheus_url, None, max(0, ledger.tokens))
    if ledger.tokens < 1:
        return {
            **result,
            "reason": (
                "the server counted no prompt token of what was sent: there is nothing to"
                " account for"
            ),
        }
    query = ENGINE.prompt_tokens_query(run_id)
    started = time.monotonic()
    while True:
        result["waited_s"] = round(time.monotonic() - started, 3)
        if abs(ledger.clock_jump_s) > _JUMP_S:
            # Which samples came after the first request cannot be told any more.
            reason = (
                f"the host's clock was set by {ledger.clock_jump_s:+.0f} s while the proof was"
                " made; run this again"
            )
            return {**result, "reason": reason, "probed_at": clock.utc()}
        try:
            if _all_arrived(result, prometheus_url, query, ledger):
                # Samples from the future are an earlier server's, from before the clock was set
                # back: they count as seen only where they could not be taken for this one's.
                earlier = _samples(
                    prometheus_url, query, time.time() + _JUMP_S, time.time() + _DAY_S
                )[1]
                if earlier < ledger.baseline + ledger.tokens:
                    return {**result, "ok": True, "reason": None, "probed_at": clock.utc()}
                if not ledger.exceed(earlier):
                    reason = (
                        "the host's clock was set back, and Prometheus holds samples of this run"
                        " from after its present time: begin a new run (playbooks/stop.yml), and"
                        " run this again"
                    )
                    return {**result, "reason": reason, "probed_at": clock.utc()}
                result["tokens_expected"] = ledger.tokens
                continue
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            result["reason"] = (
                f"Prometheus at {prometheus_url} does not answer as expected: {repr(error)[:300]}"
            )
        if result["waited_s"] >= timeout_s:
            return {**result, "probed_at": clock.utc()}
        time.sleep(_POLL_S)


def _all_arrived(
    result: dict[str, Any], prometheus_url: str, query: str, ledger: TokenLedger
) -> bool:
    """Note in the result how many of the ledger's tokens Prometheus has; whether that is all."""
    result["sample_count"], highest = _samples(prometheus_url, query, ledger.since, time.time())
    result["tokens_seen"] = max(0, round(highest - ledger.baseline))
    if not result["sample_count"]:
        result["reason"] = (
            "Prometheus has no sample of this run's server since the first request: is the"
            f" {ENGINE.name} target scraped?"
        )
        return False
    result["reason"] = f"{result['tokens_seen']} of {ledger.tokens} prompt tokens arrived"
    return bool(result["tokens_seen"] >= ledger.tokens)


def _samples(prometheus_url: str, query: str, since: float, until: float) -> tuple[int, float]:
    """How many raw samples Prometheus has between two times, and the sum over the series of each
    one's highest.
    """
    window_s = max(1, int(until - since) + 2)
    parameters = urllib.parse.urlencode({"query": f"{query}[{window_s}s]", "time": f"{until:.3f}"})
    status, body = _get(prometheus_url, f"/api/v1/query?{parameters}")
    answer = json.loads(body)
    if status != 200 or answer["status"] != "success":
        raise ValueError(f"HTTP {status}, {body[:200]!r}")
    count, total = 0, 0.0
    for series in answer["data"]["result"]:
        values = [value for moment, value in map(_sample, series["values"]) if moment >= since]
        count += len(values)
        total += max(values, default=0.0)
    return count, total


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
    url = urllib.parse.urlsplit(prometheus_url)
    connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port or 80, timeout=5)
    try:
        connection.request("GET", url.path.rstrip("/") + path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def failure(run_id: str, prometheus_url: str, error: StageFailure) -> dict[str, Any]:
    return unproven(run_id, prometheus_url, f"{error.error_type}: {error}")
