"""The client of Prometheus' API, the wait on it, and the module prom_ready, against a double that
shows every fault.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _prometheus_api as prometheus_api,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._prometheus_api import (
    AnswerTimeoutError,
    FinalError,
    LocalFileError,
    NoAnswerError,
    NotYetError,
    PrometheusClient,
    PrometheusError,
    QueryResult,
    Readiness,
    Sample,
    Seen,
    parse_url,
    url_secret,
)
from ansible_collections.slice_bench.sglang.plugins.modules import prom_ready
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.prometheus_double import (
    BUILDINFO,
    READY,
    STARTING,
    PrometheusDouble,
    Reply,
    api,
    api_error,
    scalar,
    target,
    targets,
    vector,
)

POLL_S = 0.001
# Long enough that only a defect reaches it.
PLENTY_S = 30.0
# Short waits that have to end in a failure.
BRIEFLY_S = 0.3


@pytest.fixture
def server() -> Iterator[PrometheusDouble]:
    with PrometheusDouble() as double:
        yield double


def wait(
    url: str, *jobs: str, expression: str | None = None, timeout: float = PLENTY_S, **client: Any
) -> Seen:
    return Readiness(PrometheusClient(url, **client), jobs, expression).wait(timeout, POLL_S)


def failure(url: str, *jobs: str, expression: str | None = None, **client: Any) -> str:
    """The reason that one look gives."""
    readiness = Readiness(PrometheusClient(url, **client), jobs, expression)
    seen = readiness.look(PLENTY_S)
    assert not seen.ready
    assert seen.reason is not None
    assert "\n" not in seen.reason
    return seen.reason


def timed_out(url: str, *jobs: str, **options: Any) -> bool:
    """Whether a short wait ends although an answer does not."""
    seen = wait(url, *jobs, timeout=BRIEFLY_S, **options)
    # No measurement: without a limit it would be 20 s or more.
    assert seen.waited_s < 10
    return not seen.ready and f"{url} did not answer within " in (seen.reason or "")


def final(url: str, *jobs: str, **options: Any) -> str:
    """The text of a failure that does not use up a long wait."""
    with pytest.raises(FinalError) as caught:
        wait(url, *jobs, **options)
    return str(caught.value)


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# --- readiness ---


def test_ready(server):
    seen = wait(server.url)
    assert seen.ready
    assert seen.reason is None
    assert seen.version == "3.5.3"
    assert seen.polls == 1
    assert (seen.targets, seen.samples) == ([], [])


def test_becomes_ready_late(server):
    server.replies["/-/ready"] = [STARTING, STARTING, STARTING, READY]
    seen = wait(server.url)
    assert seen.ready
    assert seen.polls == 4
    assert len(server.asked("/api/v1/status/buildinfo")) == 1


def test_readiness_and_version_are_asked_for_once(server):
    server.replies["/api/v1/targets"] = [
        targets(),
        targets(target("node", "a:1", "unknown")),
        targets(target("node", "a:1")),
    ]
    server.replies["/api/v1/query"] = [vector(), vector(({}, "1"))]
    seen = wait(server.url, "node", expression="up")
    assert seen.ready
    assert seen.polls == 4
    assert len(server.asked("/-/ready")) == 1
    assert len(server.asked("/api/v1/status/buildinfo")) == 1


def test_conditions_hold_in_the_same_look(server):
    up, down = targets(target("node", "a:1")), targets(target("node", "a:1", "down", "gone"))
    server.replies["/api/v1/targets"] = [up, down, up]
    server.replies["/api/v1/query"] = [vector(), vector(({}, "1"))]
    seen = wait(server.url, "node", expression="up")
    assert seen.polls == 3
    assert [found.health for found in seen.targets] == ["up"]


def test_starting(server):
    server.replies["/-/ready"] = [STARTING]
    assert failure(server.url).startswith(f"Prometheus is not ready: {server.url} answers HTTP 503")
    assert not server.asked("/api/v1/status/buildinfo")


def test_nothing_listens():
    url = f"http://127.0.0.1:{closed_port()}"
    reason = failure(url)
    assert f"nothing listens at {url} (connection refused); start Prometheus, or set url" in reason


def test_server_comes_after_the_first_look():
    with PrometheusDouble() as double:
        sleeps: list[float] = []

        def start_meanwhile(pause: float) -> None:
            sleeps.append(pause)
            client.endpoint = parse_url(double.url)

        client = PrometheusClient(f"http://127.0.0.1:{closed_port()}")
        readiness = Readiness(client, sleep=start_meanwhile)
        assert readiness.wait(PLENTY_S).ready
        assert sleeps == [prometheus_api.DEFAULT_POLL_INTERVAL_S]


@pytest.mark.parametrize("status", [404, 500, 502, 504])
def test_other_status(server, status):
    server.replies["/-/ready"] = [Reply(status, b"<html>no</html>")]
    assert f"{server.url}/-/ready answers HTTP {status}" in failure(server.url)


def test_version_is_for_information(server):
    server.replies["/api/v1/status/buildinfo"] = [Reply(404)]
    seen = wait(server.url)
    assert seen.ready
    assert seen.version is None


def test_buildinfo_proves_a_server_that_words_its_readiness_otherwise(server):
    server.replies["/-/ready"] = [Reply(200, b"OK")]
    assert wait(server.url).ready


def test_some_other_web_server_is_not_ready(server):
    page = Reply(200, b"<!doctype html><title>Welcome</title>")
    server.replies = {"/-/ready": [page], "/api/v1/status/buildinfo": [page]}
    readiness = Readiness(PrometheusClient(server.url))
    for _look in range(3):
        assert "but not as Prometheus does" in (readiness.look(PLENTY_S).reason or "")
    assert len(server.asked("/api/v1/status/buildinfo")) == 1


def test_hanging_server_is_left_at_the_end_of_the_wait(server):
    server.replies["/-/ready"] = [Reply(hangs=True), READY]
    assert timed_out(server.url)


def test_hanging_connection_is_given_up_for_a_new_one(server, monkeypatch):
    monkeypatch.setattr(prometheus_api, "READY_LIMIT_S", 0.1)
    server.replies["/-/ready"] = [Reply(hangs=True), READY]
    seen = wait(server.url)
    assert seen.ready
    assert len(server.asked("/-/ready")) == 2


def test_trickling_answer_is_left_at_the_end_of_the_wait(server):
    server.replies["/-/ready"] = [Reply(200, b"Prometheus Server is Ready.", trickle=True)]
    assert timed_out(server.url)


@pytest.mark.parametrize("path", ["/api/v1/targets", "/api/v1/query"])
def test_api_that_hangs_or_trickles(server, path):
    for reply in (Reply(hangs=True), Reply(200, b'{"status": "success"', trickle=True)):
        server.replies[path] = [reply]
        assert timed_out(
            server.url, *(["node"] if path.endswith("targets") else []), expression="up"
        )


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(raw=b""), "closed the connection before it had answered"),
        (Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n"), "does not speak HTTP"),
        (Reply(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), "does not speak HTTP"),
        (
            Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nPrometheus Server is Ready."),
            "closed the connection",
        ),
        (
            Reply(
                raw=(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nPrometheus Server"
                    b" is Ready."
                )
            ),
            "closed the connection",
        ),
        (Reply(200, b"Prometheus Server is Ready." + b" " * 70_000), "more than 64 KiB"),
        (
            Reply(
                raw=(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nPrometheus Server"
                    b" is Ready."
                )
            ),
            "does not speak HTTP",
        ),
    ],
    ids=["nothing", "ssh", "endless-header", "truncated", "bad-chunk", "huge", "negative-chunk"],
)
def test_broken_answer_to_ready(server, reply, text):
    server.replies["/-/ready"] = [reply]
    assert text in failure(server.url)


def test_name_does_not_resolve(monkeypatch):
    def unknown(*_args: object, **_named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert (
        "the host name in http://nowhere.invalid does not resolve (Name or service not known)"
        in failure("http://nowhere.invalid")
    )


def test_resolver_that_hangs_is_left_at_the_end_of_the_wait(monkeypatch):
    over = threading.Event()

    def hangs(*_args: object, flags: int = 0, **_named: object) -> None:
        if not flags & socket.AI_NUMERICHOST:
            over.wait(PLENTY_S)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    try:
        assert timed_out("http://nowhere.invalid")
    finally:
        over.set()


def test_second_address_of_a_name_is_tried(server, monkeypatch):
    port = int(server.address.rpartition(":")[2])
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed_port())),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: found)
    assert wait("http://prometheus.example").ready


# --- jobs ---


def test_jobs_up(server):
    server.replies["/api/v1/targets"] = [
        targets(
            target("node", "a:9100"),
            target("dcgm", "a:9400"),
            target("sglang", "a:30000", "down", "refused"),
        )
    ]
    seen = wait(server.url, "node", "dcgm")
    assert seen.ready
    assert server.asked("/api/v1/targets")[0].query == {"state": ["active"]}
    assert seen.result()["targets"] == [
        {
            "job": "node",
            "instance": "a:9100",
            "health": "up",
            "last_error": "",
            "last_scrape": "2026-11-23T09:15:03.482910374Z",
        },
        {
            "job": "dcgm",
            "instance": "a:9400",
            "health": "up",
            "last_error": "",
            "last_scrape": "2026-11-23T09:15:03.482910374Z",
        },
    ]


def test_target_down_with_prometheus_own_error(server):
    error = 'Get "http://a:9100/metrics": dial tcp 127.0.0.1:9100: connect: connection refused'
    server.replies["/api/v1/targets"] = [
        targets(target("node", "b:9100"), target("node", "a:9100", "down", error))
    ]
    reason = failure(server.url, "node")
    assert reason.startswith("Job 'node' is not up: target a:9100 is down")
    assert f"target a:9100 is down: {error}; check that the target runs" in reason
    assert "b:9100" not in reason


def test_target_not_yet_scraped(server):
    server.replies["/api/v1/targets"] = [targets(target("node", "a:9100", "unknown"))]
    readiness = Readiness(PrometheusClient(server.url), ["node"])
    seen = readiness.look(PLENTY_S)
    assert "target a:9100 has not been scraped yet (scrape interval 1s)" in (seen.reason or "")
    assert seen.targets[0].last_scrape is None


def test_job_without_target(server):
    server.replies["/api/v1/targets"] = [targets(target("node", "a:9100"))]
    reason = failure(server.url, "nodes", "node")
    assert reason.startswith("Job 'nodes' is not up: ")
    assert (
        "job 'nodes' has no target (the jobs with targets are node); check the name, and"
        " scrape_configs" in reason
    )


def test_no_job_has_a_target(server):
    reason = failure(server.url, "a", "b")
    assert reason.startswith("Jobs 'a', 'b' are not up: ")
    assert "jobs 'a', 'b' have no target (no job has one)" in reason


def test_many_targets_down_are_counted(server):
    server.replies["/api/v1/targets"] = [
        targets(*(target("node", f"h{n}:1", "down", "x" * 2000) for n in range(9)))
    ]
    reason = failure(server.url, "node")
    assert "and 4 more" in reason
    assert len(reason) < 4000


def test_job_is_its_scrape_config_or_its_label(server):
    relabelled = target("node", "a:9100")
    relabelled["labels"]["job"] = "machines"
    server.replies["/api/v1/targets"] = [targets(relabelled)]
    assert wait(server.url, "node", "machines").ready


# --- expression ---


@pytest.mark.parametrize(
    ("reply", "holds"),
    [
        (vector(({"job": "node"}, "1")), True),
        (vector(({"job": "node"}, "0")), True),  # as in an alerting rule
        (vector(), False),
        (scalar("1"), True),
        (scalar("+Inf"), True),
        (scalar("-0.5"), True),
        (scalar("0"), False),
        (scalar("-0"), False),
        (scalar("NaN"), False),  # scalar() of nothing
        (
            api(
                {
                    "resultType": "vector",
                    "result": [
                        {"metric": {}, "histogram": [1795433458.2, {"count": "3", "sum": "1"}]}
                    ],
                }
            ),
            True,
        ),
    ],
)
def test_expression_holds_as_an_alert_does(server, reply, holds):
    server.replies["/api/v1/query"] = [reply]
    readiness = Readiness(PrometheusClient(server.url), expression="x")
    assert readiness.look(PLENTY_S).ready is holds


def test_samples_are_returned(server):
    server.replies["/api/v1/query"] = [vector(({"__name__": "up", "job": "node"}, "1"))]
    seen = wait(server.url, expression='up{job="node"} == 1 & +')
    assert seen.result()["result"] == [
        {"metric": {"__name__": "up", "job": "node"}, "value": "1", "timestamp": 1795433458.281}
    ]
    asked = server.asked("/api/v1/query")[0]
    assert (asked.method, asked.form["query"]) == ("POST", ['up{job="node"} == 1 & +'])
    assert 0 < float(asked.form["timeout"][0]) <= prometheus_api.API_LIMIT_S


def test_why_an_expression_does_not_hold(server):
    reason = failure(server.url, expression="up == 2")
    assert reason.startswith("The expression 'up == 2' does not hold: ")
    assert "its result is empty" in reason
    server.replies["/api/v1/query"] = [scalar("0")]
    assert "its value is 0; a scalar holds when it is neither 0 nor NaN" in failure(
        server.url, expression="0"
    )


def test_expression_that_does_not_parse(server):
    error = 'invalid parameter "query": 1:4: parse error: unexpected end of input inside braces'
    server.replies["/api/v1/query"] = [api_error(400, "bad_data", error)]
    assert (
        final(server.url, expression="up{")
        == f"Prometheus cannot evaluate the expression 'up{{' ({error}); correct it"
    )


@pytest.mark.parametrize(("kind", "what"), [("matrix", "a range vector"), ("string", "a string")])
def test_expression_of_a_type_that_cannot_hold(server, kind, what):
    server.replies["/api/v1/query"] = [api({"resultType": kind, "result": []})]
    assert f"the expression 'up[5m]' gives {what}" in final(server.url, expression="up[5m]")


def test_evaluation_that_fails_may_succeed_later(server):
    error = api_error(422, "execution", "found duplicate series for the match group")
    server.replies["/api/v1/query"] = [error]
    assert "/api/v1/query answers HTTP 422: found duplicate series for the match group" in failure(
        server.url, expression="a * b"
    )
    server.replies["/api/v1/query"] = [error, vector(({}, "1"))]
    assert wait(server.url, expression="a * b").ready


def test_server_that_goes_during_the_wait(server):
    server.replies["/api/v1/query"] = [Reply(raw=b"")]
    assert failure(server.url, expression="up").startswith("Prometheus is not ready: ")


# --- garbage ---

GARBAGE = [
    b"",
    b"<html>",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"1",
    b'"success"',
    b"{}",
    b'{"status": "success"}',
    b'{"status": "success", "data": null}',
    b'{"status": "success", "data": []}',
    (
        b'{"status": "success", "data": {"activeTargets": {"a": 1}, "resultType": "vector",'
        b' "result": {"a": 1}}}'
    ),
    (
        b'{"status": "success", "data": {"activeTargets": [null], "resultType": "vector", "result":'
        b" [null]}}"
    ),
    (
        b'{"status": "success", "data": {"activeTargets": [{}], "resultType": "vector", "result":'
        b" [{}]}}"
    ),
    (
        b'{"status": "success", "data": {"activeTargets": [{"labels": [], "health": "up"}],'
        b' "resultType": "scalar", "result": []}}'
    ),
    (
        b'{"status": "success", "data": {"activeTargets": [{"labels": {}, "health": true}],'
        b' "resultType": "scalar", "result": [1, 1]}}'
    ),
    (
        b'{"status": "success", "data": {"activeTargets": [{"labels": {"job": "node"}}],'
        b' "resultType": "scalar", "result": [1, "one"]}}'
    ),
    (
        b'{"status": "error", "data": {"activeTargets": [{"labels": {}, "health": "up"}],'
        b' "resultType": "scalar", "result": [1, "1"]}}'
    ),
    (
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value":'
        b' [null, "1"]}]}}'
    ),
    (
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": [], "value":'
        b' [1, "1"]}]}}'
    ),
    (
        b'{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value":'
        b' ["x", "1"]}]}}'
    ),
    b'{"status": "success", "data": {"resultType": "vector", "result": "full"}}',
    b'{"status": "success", "data": {"resultType": "tensor", "result": []}}',
    b'{"status": "success", "data": {"resultType": ["vector"], "result": [1]}}',
    b"[" * 100_000,
    b"9" * 10_000,
]


class Canned(PrometheusClient):
    """Gets `body` as every API answer; readiness is given."""

    body = b""

    def _exchange(
        self, method: str, target: str, limit_s: float, limit: int, body: bytes | None
    ) -> prometheus_api.Answer:
        return prometheus_api.Answer(200, READY.body if target == "/-/ready" else self.body, "")


def look_at(body: bytes, **wanted: Any) -> Seen:
    client = Canned()
    client.body = body
    return Readiness(client, **wanted).look(PLENTY_S)


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize(
    "wanted", [{"jobs": ["node"]}, {"expression": "up"}], ids=["jobs", "expression"]
)
def test_garbage_is_neither_ready_nor_a_traceback(body, wanted):
    seen = look_at(body, **wanted)
    assert not seen.ready
    assert "does not answer as Prometheus does" in (seen.reason or "")
    assert json.dumps(seen.result())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.sampled_from(["success", "vector", "scalar", "up", "node", "1"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "status",
                    "data",
                    "error",
                    "activeTargets",
                    "labels",
                    "health",
                    "job",
                    "scrapePool",
                    "resultType",
                    "result",
                    "metric",
                    "value",
                ]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


def shaped(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nearly right answers."""
    data = {
        "resultType": st.sampled_from(["vector", "scalar", "matrix"]),
        "result": inner,
        "activeTargets": inner,
        "version": inner,
    }
    return st.fixed_dictionaries(
        {"status": st.just("success"), "data": st.fixed_dictionaries(data)}
    )


@given(
    document=JSON | shaped(JSON),
    wanted=st.sampled_from([{"jobs": ["node"]}, {"expression": "up"}]),
)
def test_no_document_ends_in_a_traceback(document, wanted):
    try:
        seen = look_at(json.dumps(document).encode(), **wanted)
    except PrometheusError:
        return
    assert seen.ready is (seen.reason is None)
    json.dumps(seen.result())


@pytest.mark.parametrize("sample", [[10**400, "1"], "12", {"1": 0, "2": 0}, [0, 1], [0, "one"]])
def test_what_is_no_sample_does_not_hold(sample):
    for data in (
        {"resultType": "scalar", "result": sample},
        {"resultType": "vector", "result": [{"metric": {}, "value": sample}]},
    ):
        seen = look_at(json.dumps({"status": "success", "data": data}).encode(), expression="up")
        assert not seen.ready and "does not answer as Prometheus does" in str(seen.reason)


@given(body=st.binary())
def test_no_bytes_end_in_a_traceback(body):
    for wanted in ({"jobs": ["node"]}, {"expression": "up"}):
        assert not look_at(body, **wanted).ready


def test_huge_api_answer_fails_at_once(server, monkeypatch):
    monkeypatch.setattr(prometheus_api, "API_BYTES", 100 * 1024)
    server.replies["/api/v1/query"] = [vector(*(({"n": str(n)}, "1") for n in range(5000)))]
    assert "/api/v1/query answers with more than 100 KiB" in final(
        server.url, expression="{__name__!=''}"
    )


def test_error_text_is_one_printable_line(server):
    server.replies["/api/v1/query"] = [api_error(503, "x", "line\n\x1b[31mred\x00" + "y" * 9000)]
    reason = failure(server.url, expression="up")
    assert reason.isprintable()
    assert len(reason) < 1000


# --- credentials ---


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_basic_auth():
    with PrometheusDouble(authorization=basic("ansible", "pä:ss")) as double:
        double.replies["/api/v1/query"] = [scalar("1")]
        assert (
            wait(double.url, expression="1", username="ansible", password="pä:ss").version
            == "3.5.3"
        )
        text = final(double.url, username="ansible", password="wr0ng-secret")
        assert "HTTP 401, it does not accept the url_username and url_password given" in text
        assert "wr0ng-secret" not in text
        assert (
            "HTTP 401, it wants credentials; set url_username and url_password, or bearer_token"
            in final(double.url)
        )


def test_bearer_token():
    with PrometheusDouble(authorization="Bearer abc.def") as double:
        assert wait(double.url, bearer_token="abc.def").ready
        text = final(double.url, bearer_token="expired-token")
        assert "does not accept the bearer_token given" in text
        assert "expired-token" not in text


def test_forbidden_fails_at_once(server):
    server.replies["/api/v1/targets"] = [Reply(403)]
    assert "HTTP 403, it wants credentials" in final(server.url, "node")


def test_secret_that_the_server_repeats_is_not_shown(server):
    token = "s3cr3t-token"
    server.replies["/api/v1/query"] = [api_error(500, "internal", f"no session for Bearer {token}")]
    assert token not in failure(server.url, expression="up", bearer_token=token)
    encoded = basic("u", "s3cr3t").split()[1]
    server.replies["/api/v1/query"] = [
        api_error(500, "internal", f"no session for {encoded} (s3cr3t)")
    ]
    reason = failure(server.url, expression="up", username="u", password="s3cr3t")
    assert "no session for" in reason
    assert encoded not in reason
    assert "s3cr3t" not in reason


@pytest.mark.parametrize(
    "options",
    [
        {"bearer_token": "tok\n"},
        {"bearer_token": ""},
        {"username": "", "password": "p"},
        {"username": "u:v", "password": "p"},
    ],
)
def test_credentials_that_cannot_be_sent(options):
    with pytest.raises(FinalError, match="give|pass it"):
        PrometheusClient(**options)


def test_redirect_is_not_followed(server):
    server.replies["/-/ready"] = [
        Reply(302, headers={"Location": "https://u:pw@login.example/in?token=t0k"})
    ]
    assert (
        final(server.url, bearer_token="abc")
        == f"{server.url} redirects to https://login.example/in; set url to where Prometheus itself"
        " answers"
    )


# --- url ---


def test_prefix():
    with PrometheusDouble(prefix="/lab/prom") as double:
        double.replies["/api/v1/query"] = [scalar("1")]
        assert wait(double.url + "/", expression="1").version == "3.5.3"
        assert {request.path for request in double.requests} == {
            "/-/ready",
            "/api/v1/status/buildinfo",
            "/api/v1/query",
        }
        assert "HTTP 404, so no Prometheus is there; check the port and path prefix" in failure(
            f"http://{double.address}/lab"
        )


def test_ipv6():
    with PrometheusDouble(ipv6=True) as double:
        assert wait(double.url).ready
        assert double.requests[0].headers["Host"] == double.address


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "shown"),
    [
        ("http://127.0.0.1:9090", "http", "127.0.0.1", 9090, "http://127.0.0.1:9090"),
        ("https://h/prom/", "https", "h", 443, "https://h/prom"),
        ("http://[::1]:9090/a/b", "http", "::1", 9090, "http://[::1]:9090/a/b"),
        ("http://[fe80::1%25eth0]:1", "http", "fe80::1%eth0", 1, "http://[fe80::1%25eth0]:1"),
        ("http://h/p@q", "http", "h", 80, "http://h/p@q"),
    ],
)
def test_urls(url, scheme, host, port, shown):
    endpoint = parse_url(url)
    assert (endpoint.scheme, endpoint.host, endpoint.port, endpoint.shown) == (
        scheme,
        host,
        port,
        shown,
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:9090",
        "localhost",
        "ftp://h",
        "http://",
        "http:///prom",
        "http://h:0",
        "http://h:99999",
        "http://h:port",
        "http://[::1",
        "http://h/a b",
        "http://h/a\r\nX: y",
        "http://hö",
        "http://h/?token=s3cr3t",
        "http://h/#s3cr3t",
        "http://user:s3cr3t@h",
        "https://s3cr3t@h:1/x",
        "user:s3cr3t@h",
        "http://user:s3/cr3t@h",
    ],
)
def test_refused_urls_are_not_repeated(url):
    with pytest.raises(FinalError, match="^url ") as caught:
        PrometheusClient(url)
    assert "s3cr3t" not in str(caught.value)
    assert "s3/cr3t" not in str(caught.value)


def test_url_secret():
    assert url_secret("http://user:p@ss@h/x") == "user:p@ss"
    assert url_secret("http://h/x@y") is None
    assert url_secret("http://h") is None


def test_host_name_that_cannot_be_one():
    assert "is not valid; correct url" in final(f"http://{'x' * 70}.example")


# --- TLS ---


def tls_server(certificate: tuple[Path, Path], *, asks_client: bool = False) -> PrometheusDouble:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if asks_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate[0])
    return PrometheusDouble(tls=context)


def test_tls(certificate):
    with tls_server(certificate) as double:
        double.replies["/-/ready"] = [STARTING, STARTING, READY]
        assert wait(double.url, ca_path=str(certificate[0])).ready
        assert wait(double.url, validate_certs=False).ready


def test_certificate_that_is_not_trusted_fails_at_once(certificate):
    with tls_server(certificate) as double:
        text = final(double.url)
        assert (
            f"the certificate of {double.url} is not trusted (self-signed certificate); name its CA"
            " with ca_path" in text
        )
        assert "validate_certs: false" in text
        # It names 127.0.0.1 only.
        text = final(double.url.replace("127.0.0.1", "localhost"), ca_path=str(certificate[0]))
        assert "Hostname mismatch" in text


def test_client_certificate(certificate):
    cert, key = map(str, certificate)
    with tls_server(certificate, asks_client=True) as double:
        assert wait(double.url, ca_path=cert, client_cert=cert, client_key=key).ready
        assert "set client_cert and client_key" in final(double.url, ca_path=cert)


def test_https_to_a_plain_server(server):
    assert "does not speak TLS" in final(server.url.replace("http:", "https:"))


def test_http_to_a_tls_server(server):
    # Go's and nginx' words, and the alert of a server that does not notice.
    for reply in (
        Reply(400, b"Client sent an HTTP request to an HTTPS server.\n"),
        Reply(400, b"<html>The plain HTTP request was sent to HTTPS port</html>"),
        Reply(raw=b"\x15\x03\x03\x00\x02\x02\x16"),
    ):
        server.replies["/-/ready"] = [reply]
        assert final(server.url) == f"{server.url} speaks TLS; write https:// in url"


def test_tls_handshake_that_hangs():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert timed_out(f"https://127.0.0.1:{listener.getsockname()[1]}")


def test_files_that_cannot_be_used(certificate, tmp_path):
    cert, key = map(str, certificate)
    missing, garbage, locked = (
        str(tmp_path / "missing.pem"),
        tmp_path / "garbage.pem",
        tmp_path / "locked.pem",
    )
    garbage.write_text("no certificate")
    subprocess.run(
        ["openssl", "rsa", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca_path": missing}, f"ca_path {missing} cannot be used (No such file or directory)"),
        ({"ca_path": str(garbage)}, f"ca_path {garbage} cannot be used ("),
        (
            {"client_cert": missing},
            f"client_cert {missing} without client_key cannot be used (No such file or directory)",
        ),
        ({"client_cert": cert}, f"client_cert {cert} without client_key cannot be used ("),
        (
            {"client_cert": cert, "client_key": str(garbage)},
            f"client_cert {cert} with client_key {garbage} cannot be used (",
        ),
        ({"client_cert": cert, "client_key": str(locked)}, f"client_key {locked} is encrypted"),
    ]
    for options, text in cases:
        with pytest.raises(LocalFileError) as caught:
            PrometheusClient("https://h", **options)
        assert text in str(caught.value)


# --- the wait itself, on a clock of its own ---


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 6))
        self.now += seconds


class Scripted(PrometheusClient):
    """Every look takes `took` seconds, but not longer than it may, and ends in `error`."""

    def __init__(self, time: Time, took: float, error: NotYetError) -> None:
        super().__init__(clock=time.clock)
        self.time, self.took, self.error = time, took, error

    def ready(self, deadline: float) -> bytes:
        left = deadline - self.time.now
        self.time.now += min(self.took, left)
        raise AnswerTimeoutError("cut short") if self.took > left else self.error


def wait_in_vain(
    timeout: float, interval: float, took: float, error: NotYetError
) -> tuple[Seen, Time]:
    time = Time()
    seen = Readiness(Scripted(time, took, error), clock=time.clock, sleep=time.sleep).wait(
        timeout, interval
    )
    assert not seen.ready
    assert time.now - 1000 <= timeout + 1e-9
    return seen, time


def test_pauses_are_the_interval_and_the_last_look_comes_before_the_end():
    seen, time = wait_in_vain(timeout=1.0, interval=0.3, took=0.001, error=NotYetError("no"))
    assert time.sleeps == [
        0.3,
        0.3,
        0.3,
        pytest.approx(1.0 - 0.903 - 0.001 - prometheus_api.LAST_LOOK_S, abs=2e-3),
    ]
    assert seen.polls == 5
    assert seen.reason == "Prometheus is not ready after 1.0 s: no"


def test_slow_answers_make_longer_pauses():
    _seen, time = wait_in_vain(timeout=3.0, interval=0.04, took=0.5, error=NotYetError("no"))
    assert time.sleeps[0] == 0.5


def test_no_answer_makes_no_longer_pause():
    _seen, time = wait_in_vain(timeout=3.0, interval=0.04, took=0.5, error=NoAnswerError("no"))
    assert time.sleeps[0] == 0.04


def test_look_cut_short_does_not_hide_the_reason():
    seen, _time = wait_in_vain(timeout=1.0, interval=0.1, took=0.4, error=NotYetError("HTTP 503"))
    assert "HTTP 503" in (seen.reason or "")


def test_timeout_shorter_than_a_look():
    seen, time = wait_in_vain(timeout=0.1, interval=0.04, took=0.4, error=NotYetError("HTTP 503"))
    assert "cut short" in (seen.reason or "")
    assert (seen.polls, time.sleeps) == (1, [])


def test_look_does_not_wait(server):
    server.replies["/-/ready"] = [STARTING, READY]
    readiness = Readiness(
        PrometheusClient(server.url), sleep=lambda _seconds: pytest.fail("it sleeps")
    )
    seen = readiness.look(PLENTY_S)
    assert (seen.ready, seen.polls) == (False, 1)
    assert (seen.reason or "").startswith("Prometheus is not ready: ")


def test_scalar_of_a_histogram_does_not_hold():
    assert not QueryResult("scalar", [Sample({}, None, 0.0)]).holds


# --- the module ---


def run_module(
    capsys: pytest.CaptureFixture[str], check: bool = False, **options: Any
) -> dict[str, Any]:
    with patch_module_args({"_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
        prom_ready.main()
    result = json.loads(capsys.readouterr().out)
    assert result.get("changed", False) is False
    return result


def test_module_ready(server, capsys):
    server.replies["/api/v1/targets"] = [targets(target("node", "a:1"))]
    server.replies["/api/v1/query"] = [scalar("1")]
    result = run_module(capsys, url=server.url, jobs=["node"], expression="1")
    assert result["ready"] is True
    assert (result["version"], result["polls"], result["reason"]) == ("3.5.3", 1, None)
    assert result["targets"][0]["instance"] == "a:1"
    assert result["result"] == [{"metric": {}, "value": "1", "timestamp": 1795433458.281}]


def test_module_fails_with_what_it_saw(server, capsys):
    server.replies["/api/v1/targets"] = [targets(target("node", "a:1", "down", "refused"))]
    result = run_module(capsys, url=server.url, jobs=["node"], timeout=1, poll_interval=0.5)
    assert result["failed"] is True
    assert result["msg"].startswith("Job 'node' is not up after ")
    assert "target a:1 is down: refused" in result["msg"]
    assert (result["ready"], result["version"], result["targets"][0]["health"]) == (
        False,
        "3.5.3",
        "down",
    )
    assert result["waited_s"] > 0


def test_check_mode_reports_and_does_not_fail(server, capsys):
    server.replies["/-/ready"] = [STARTING, READY]
    result = run_module(capsys, check=True, url=server.url)
    assert "failed" not in result
    assert (result["ready"], result["polls"]) == (False, 1)
    assert "HTTP 503" in result["reason"]
    assert run_module(capsys, check=True, url=server.url)["ready"] is True


def test_check_mode_before_anything_is_there(capsys, tmp_path):
    result = run_module(
        capsys, check=True, url=f"http://127.0.0.1:{closed_port()}", jobs=["node"], expression="up"
    )
    assert "failed" not in result
    assert "nothing listens" in result["reason"]
    result = run_module(
        capsys, check=True, url="https://127.0.0.1", ca_path=str(tmp_path / "ca.pem")
    )
    assert "failed" not in result
    assert (result["ready"], result["polls"]) == (False, 0)
    assert "ca.pem cannot be used" in result["reason"]


def test_check_mode_tells_a_wrong_expression(server, capsys):
    server.replies["/api/v1/query"] = [api_error(400, "bad_data", "parse error")]
    assert run_module(capsys, check=True, url=server.url, expression="up{")["failed"] is True


@pytest.mark.parametrize("value", [0, -1, "nan", "inf"])
@pytest.mark.parametrize("option", ["timeout", "poll_interval"])
def test_module_refuses_times_that_make_no_sense(capsys, option, value):
    assert f"{option} is " in run_module(capsys, **{option: value})["msg"]


def test_module_never_shows_secrets(server, capsys):
    result = run_module(capsys, url="http://ansible:s3cr3t@127.0.0.1:1")
    assert "url holds credentials" in result["msg"]
    assert "s3cr3t" not in json.dumps(result)
    server.replies["/-/ready"] = [Reply(401)]
    result = run_module(capsys, url=server.url, url_username="u", url_password="s3cr3t")
    assert "url_password" in result["msg"]
    assert "s3cr3t" not in json.dumps(result)


@pytest.mark.parametrize(
    "options",
    [
        {"bearer_token": "t", "url_username": "u", "url_password": "p"},
        {"url_username": "u"},
        {"client_key": "/k.pem"},
    ],
)
def test_module_refuses_options_that_do_not_go_together(capsys, options):
    assert run_module(capsys, **options)["failed"] is True


def test_double_speaks_as_prometheus(server):
    assert wait(server.url).version == json.loads(BUILDINFO.body)["data"]["version"]
