"""A service that answers on and on, or breaks off, has not answered, and no look at it takes longer
than it may.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator

import pytest

from sgl_admin.base import http_client
from sgl_admin.contract.services import BY_NAME
from sgl_admin.serving import services
from tests.doubles.prometheus_double import READY, PrometheusDouble, Reply

PROMETHEUS = BY_NAME["prometheus"]
CUT = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + READY.body)
TRICKLE = Reply(200, READY.body, trickle=True)


@pytest.fixture
def server() -> Iterator[PrometheusDouble]:
    with PrometheusDouble() as double:
        yield double


def ask(server: PrometheusDouble, timeout_s: float = 30) -> tuple[int, bytes]:
    host, _, port = server.address.rpartition(":")
    return http_client.ask(host, int(port), "/-/ready", timeout_s)


@pytest.mark.parametrize("reply", [TRICKLE, Reply(hangs=True)], ids=["trickles", "hangs"])
def test_an_answer_that_does_not_end_is_left_in_time(
    server: PrometheusDouble, reply: Reply
) -> None:
    server.replies["/-/ready"] = [reply]
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(server, timeout_s=0.2)
    # No measurement: without a limit it would be 20 s.
    assert time.monotonic() - began < 10


def test_an_answer_that_breaks_off_is_none(server: PrometheusDouble) -> None:
    server.replies["/-/ready"] = [CUT]
    with pytest.raises(http.client.IncompleteRead):
        ask(server)


@pytest.mark.parametrize("reply", [CUT, TRICKLE], ids=["cut", "trickles"])
def test_a_service_without_a_whole_answer_is_dead(
    server: PrometheusDouble, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_ANSWER_S", 0.2)
    host, _, port = server.address.rpartition(":")
    assert services.answers(host, int(port), PROMETHEUS)
    server.replies["/-/ready"] = [reply]
    began = time.monotonic()
    assert not services.answers(host, int(port), PROMETHEUS)
    assert time.monotonic() - began < 10
