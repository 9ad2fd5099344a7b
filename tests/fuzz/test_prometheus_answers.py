"""What Prometheus and the server say over HTTP: whatever they answer, nothing passes for ready, up,
true or proven that is not.
"""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _prometheus_api as prometheus_api,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._prometheus_api import (
    FinalError,
    PrometheusClient,
    Readiness,
)
from hypothesis import strategies as st

from sgl_admin.base import http_client
from sgl_admin.serving import probe
from tests.doubles import prometheus_double
from tests.fuzz.fuzzing import (
    damaged,
    encoded,
    files_of,
    fuzz,
    mostly,
    one_line,
    partly,
    reached,
    text,
)

RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"
URL = "http://127.0.0.1:9"


class Socket:
    """Stands for a connection over which one answer comes, in whatever pieces."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def settimeout(self, seconds: float) -> None:
        pass

    def setsockopt(self, *option: int) -> None:
        pass

    def sendall(self, content: bytes) -> None:
        pass

    def makefile(self, mode: str, buffering: int = -1) -> io.BytesIO:
        return io.BytesIO(self._answer)

    def close(self) -> None:
        pass


def response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def bodies(good: prometheus_double.Reply) -> st.SearchStrategy[bytes]:
    """An answer of the API, most often spoiled."""
    document = json.loads(good.body)
    return mostly(
        files_of(document, keys=["status", "data", "result", "value"]), st.just(good.body), 70
    )


def statuses() -> st.SearchStrategy[int]:
    return mostly(st.just(200), st.sampled_from([204, 301, 307, 400, 401, 404, 422, 500, 503]), 88)


def http(body: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The bytes of an HTTP answer: mostly one as it should be, else with other headers, in chunks,
    cut off, or none at all.
    """
    whole = st.builds(response, statuses(), body)
    headers = st.sampled_from(
        [
            b"Content-Length: 5",
            b"Content-Length: -1",
            b"Transfer-Encoding: chunked",
            b"Location: http://u:p@x/",
            b"X",
            b": ",
        ]
    )
    strange = st.builds(
        lambda start, lines, content: b"\r\n".join([start, *lines, b"", content]),
        st.sampled_from(
            [
                b"HTTP/1.1 200 OK",
                b"HTTP/1.0 200",
                b"HTTP/1.1 100 Continue",
                b"HTTP/9 x",
                b"HTTP/1.1 302 Found",
                b"SSH-2.0-x",
            ]
        ),
        st.lists(headers | st.binary(max_size=12), max_size=4),
        body
        | body.map(lambda content: b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))
        | st.binary(max_size=20)
        | st.just(b"-5\r\nabc\r\n"),
    )
    return mostly(whole, damaged(strange), 88)


def double(good: prometheus_double.Reply, path: str) -> tuple[str, st.SearchStrategy[bytes]]:
    return path, http(bodies(good))


TARGETS = prometheus_double.targets(
    prometheus_double.target("node", "a:1"),
    prometheus_double.target("other", "b:1", "down", "gone"),
    prometheus_double.target("node", "c:1"),
)
VECTOR = prometheus_double.vector(({"__name__": "up", "job": "node"}, "1"), ({}, "0"))
SCALAR = prometheus_double.scalar("1")


def parsed(answer: bytes) -> Any:
    """The document of an answer that `response` made; None of another, which is the HTTP library's
    to read and not judged here.
    """
    head, _, body = answer.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1.1 \d+ X\r\n", head):
        return None
    return json.loads(body) if head.startswith(b"HTTP/1.1 200 ") else {}


def is_up(answer: bytes) -> bool:
    document = parsed(answer)
    if document is None:
        return True
    of_job = [
        item
        for item in document["data"]["activeTargets"]
        if "node" in (item.get("scrapePool"), item["labels"].get("job"))
    ]
    return (
        document["status"] == "success"
        and bool(of_job)
        and all(item["health"] == "up" for item in of_job)
    )


def holds(answer: bytes) -> bool:
    document = parsed(answer)
    if document is None:
        return True
    result = document["data"]["result"]
    if document["data"]["resultType"] == "vector":
        return (
            isinstance(result, list)
            and bool(result)
            and all(isinstance(item["metric"], dict) for item in result)
        )
    number = result[1] if isinstance(result, list) and isinstance(result[1], str) else "0"
    return (
        document["data"]["resultType"] == "scalar"
        and float(number) != 0
        and not math.isnan(float(number))
    )


@fuzz(
    deep=0.4,
    answers=partly(
        {
            "/-/ready": response(200, prometheus_double.READY.body),
            "/api/v1/status/buildinfo": response(200, prometheus_double.BUILDINFO.body),
            "/api/v1/targets": response(
                200, prometheus_double.targets(prometheus_double.target("node", "a:1")).body
            ),
            "/api/v1/query": response(200, VECTOR.body),
        },
        {
            "/-/ready": http(mostly(st.just(prometheus_double.READY.body), st.binary(max_size=30))),
            "/api/v1/status/buildinfo": http(bodies(prometheus_double.BUILDINFO)),
            "/api/v1/targets": http(bodies(TARGETS)),
            "/api/v1/query": http(bodies(VECTOR) | bodies(SCALAR)),
        },
    ),
    jobs=st.sampled_from([("node",), ()]),
    expression=st.sampled_from(["up", None]),
)
def test_prometheus_is_ready_only_when_it_says_so(
    answers: dict[str, bytes], jobs: tuple[str, ...], expression: str | None
) -> None:
    client = PrometheusClient(URL)
    asked: list[str] = []

    def exchange(method: str, target: str, *more: Any) -> Any:
        asked.append(target.partition("?")[0])
        return real(method, target, *more)

    real = client._exchange
    with (
        mock.patch.object(client, "_exchange", exchange),
        mock.patch("socket.create_connection", lambda *_, **__: Socket(answers[asked[-1]])),
    ):
        readiness = Readiness(client, jobs, expression)
        try:
            seen = readiness.look(5.0)
        except FinalError as error:
            one_line(str(error))
            return
    json.dumps(seen.result())
    if len(asked) > 1:
        reached()
    if not seen.ready:
        assert seen.reason is not None
        one_line(seen.reason)
        return
    assert seen.reason is None
    assert b"is Ready" in answers["/-/ready"] or b"version" in answers["/api/v1/status/buildinfo"]
    assert not jobs or is_up(answers["/api/v1/targets"])
    assert expression is None or holds(answers["/api/v1/query"])


PARTS = [
    "http://",
    "https://",
    "a",
    "[::1]",
    ":",
    "9090",
    "/",
    "@",
    "u:p",
    "?",
    "#",
    "%25",
    "%00",
    "\u00e9",
]


@fuzz(
    deep=0.1,
    url=mostly(
        st.lists(st.sampled_from(PARTS), max_size=5).map(
            lambda parts: "".join(["http://a", *parts])
        ),
        text() | st.lists(st.sampled_from(PARTS)).map("".join),
        60,
    ),
)
def test_a_url_is_taken_apart_or_refused_without_its_secret(url: str) -> None:
    try:
        found = prometheus_api.parse_url(url)
    except FinalError as error:
        one_line(str(error))
        assert "u:p" not in str(error)
        return
    reached()
    assert found.scheme in ("http", "https") and found.host and 0 < found.port < 2**16
    assert not urlsplit(url).username


# --- the proof ------------------------------------------------------------------------------------


class Clock:
    """Stands for the clocks of a moment."""

    time = staticmethod(lambda: 1795425303.5)
    monotonic = staticmethod(lambda: 3600.0)


class Ledger(probe.TokenLedger):
    """Tokens that were sent five seconds ago to a server that had counted `baseline` before."""

    address = "127.0.0.1:30000"

    def __init__(self, tokens: int, baseline: float) -> None:
        self.tokens = tokens
        self.since, self._since_monotonic = Clock.time() - 5, Clock.monotonic() - 5
        self._baseline = baseline

    def complete(self, prompt: str, temperature: float) -> None:
        self.tokens += 500


def matrix(*series: list[tuple[float, str]]) -> dict[str, Any]:
    """Prometheus' answer, its times in seconds from now."""
    now = Clock.time()
    found = [
        {
            "metric": {"job": "sglang", "is_streaming": str(number)},
            "values": [[now + moment, value] for moment, value in samples],
        }
        for number, samples in enumerate(series)
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": found}}


def numbers() -> st.SearchStrategy[str]:
    usual = st.integers(0, 300).map(str)
    return mostly(
        usual,
        st.sampled_from(["NaN", "+Inf", "-Inf", "1e400", "1e308", "-5", "", "0x10", "12abc"]),
        90,
    )


@st.composite
def samples(draw: st.DrawFn) -> bytes:
    series = st.lists(
        st.tuples(st.sampled_from([-9.0, -4.0, -2.0, -1.0, 1.0]), numbers()), max_size=3
    )
    document = matrix(*draw(st.lists(series, min_size=1, max_size=3)))
    return draw(
        mostly(
            st.just(encoded(document)),
            files_of(document, keys=["status", "data", "result", "values"]),
            65,
        )
    )


def accounted(body: bytes, ledger: Ledger) -> float:
    """Tokens in Prometheus' answer beyond the baseline, each series by its highest since the first
    request.
    """
    document = json.loads(body)
    assert document["status"] == "success"
    highest = 0.0
    for series in document["data"]["result"]:
        values = [
            float(value) for moment, value in series["values"] if float(moment) >= ledger.since
        ]
        highest += max(values, default=0.0)
    return highest - ledger.baseline


@fuzz(
    deep=0.08,
    status=statuses(),
    body=samples(),
    later=mostly(st.just(encoded(matrix())), samples()),
    tokens=mostly(st.integers(1, 200), st.sampled_from([0, -3])),
    baseline=st.sampled_from([0.0, 12.0]),
)
def test_there_is_a_proof_only_when_the_tokens_are_accounted_for(
    status: int, body: bytes, later: bytes, tokens: int, baseline: float
) -> None:
    ledger = Ledger(tokens, baseline)
    asked: list[str] = []

    def get(url: str, path: str) -> tuple[int, bytes]:
        asked.append(path)
        return (status, body) if len(asked) % 2 else (200, later)

    with mock.patch.object(probe, "_get", get), mock.patch.object(probe, "time", Clock):
        proof = probe.prove(RUN_ID, URL, ledger, 0.0)
    json.dumps(proof, allow_nan=False)
    if len(asked) > 1:
        reached()
    if proof["ok"] is not True:
        one_line(proof["reason"])
        return
    assert status == 200 and proof["reason"] is None
    assert 0 < tokens == round(accounted(body, ledger))
    assert proof["tokens_seen"] == proof["tokens_expected"] > 0 and proof["sample_count"] > 0


@fuzz(
    deep=0.05,
    url=mostly(
        st.just(URL),
        st.builds(
            "http://{}:{}{}".format,
            st.sampled_from(["127.0.0.1", "[::1]", "h\u00e9", "\0", "a b"]),
            st.integers(-9, 99999),
            text(),
        )
        | text(),
    ),
    status=statuses(),
    body=samples(),
    seen=st.integers(1, 200),
)
def test_a_proof_of_before_stands_only_where_prometheus_has_its_samples(
    url: str, status: int, body: bytes, seen: int
) -> None:
    """What cannot be asked has none."""
    ledger = Ledger(seen, 12.0)
    proof = {
        "prometheus_query": "x",
        "tokens_seen": seen,
        "window": {"since": ledger.since, "until": Clock.time(), "baseline": 12.0},
    }
    connected: list[bool] = []

    def connect(connection: Any) -> None:
        connected.append(True)
        connection.sock = Socket(response(status, body))

    with mock.patch.object(http_client._Connection, "connect", connect):
        problem = probe.lost(url, proof)
    if connected:
        reached()
    if problem is None:
        assert connected and status == 200 and round(accounted(body, ledger)) == seen
    else:
        one_line(problem)
