"""METRICS_READY is true exactly when Prometheus accounts for the tokens that were sent."""

from __future__ import annotations

import json
import math
import socket
import time
from typing import Any

import pytest

from sgl_admin.base.errors import StageFailure
from sgl_admin.serving import probe
from sgl_admin.sglang import ENGINE
from tests.contract import validators
from tests.doubles.prometheus_api import PrometheusApi

ADDRESS = "127.0.0.1:30000"
RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"


class Ledger(probe.TokenLedger):
    """Tokens that were sent `ago` seconds ago to a server that had counted `baseline` before."""

    address = ADDRESS

    def __init__(self, tokens: int, baseline: float = 0.0, ago: float = 5.0) -> None:
        self.tokens = tokens
        self.since, self._since_monotonic = time.time() - ago, time.monotonic() - ago
        self._baseline = baseline


def proven() -> dict[str, Any]:
    """A proof by samples of the last five seconds: 98 tokens after a baseline of 12."""
    return {
        "ok": True,
        "prometheus_query": ENGINE.prompt_tokens_query(RUN_ID, ADDRESS),
        "tokens_seen": 98,
        "window": {"since": time.time() - 5, "until": time.time(), "baseline": 12.0},
    }


def at(ago: float, value: float) -> tuple[float, float]:
    return time.time() - ago, value


def test_all_tokens_seen() -> None:
    with PrometheusApi([[at(3, 12.0), at(2, 110.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98, baseline=12.0), 0.0)
    assert proof["ok"] is True and proof["reason"] is None
    assert (proof["tokens_expected"], proof["tokens_seen"], proof["sample_count"]) == (98, 98, 2)
    assert (
        proof["prometheus_query"] == ENGINE.prompt_tokens_query(RUN_ID, ADDRESS)
        and f'container_run="{RUN_ID}"' in proof["prometheus_query"]
    )
    assert prometheus.queries[0].startswith(proof["prometheus_query"] + "[")
    document = validators.example("prep_result")
    document["telemetry_probe"] = proof
    document["run"]["run_id"] = RUN_ID
    validators.validate_prep_result(document)


def test_a_scrape_that_comes_late_is_waited_for() -> None:
    with PrometheusApi([[at(2, 98.0)]], blank=2) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 60.0)
    assert proof["ok"] is True and len(prometheus.queries) == 2 + 1 + 1, (
        "two that were blank, the samples, and those of the future"
    )


def test_a_server_that_is_not_scraped_gives_no_proof() -> None:
    with PrometheusApi([]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)
    assert proof["ok"] is False and proof["sample_count"] == 0
    assert "is the sglang target scraped?" in proof["reason"]


def test_scrapes_that_stop_half_way_give_no_proof() -> None:
    with PrometheusApi([[at(3, 12.0), at(2, 60.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98, baseline=12.0), 0.0)
    assert proof["ok"] is False and proof["reason"] == "48 of 98 prompt tokens arrived"


def test_samples_from_before_the_first_request_do_not_count() -> None:
    with PrometheusApi([[at(6.5, 1000.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98, ago=5.0), 0.0)
    assert proof["ok"] is False and proof["sample_count"] == 0


def test_a_clock_that_jumps_meanwhile_gives_no_proof() -> None:
    """The sum fits, but it is unknown which samples are older than the first request."""
    ledger = Ledger(98)
    ledger.since += 3600
    with PrometheusApi([[at(-3601, 98.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, ledger, 60.0)
    assert proof["ok"] is False and "set by -3600 s" in proof["reason"] and prometheus.queries == []


class Answering(Ledger):
    """Whose server takes 500 tokens for each further request, and whose samples arrive at once."""

    def __init__(self, prometheus: PrometheusApi, tokens: int) -> None:
        super().__init__(tokens)
        self._prometheus = prometheus

    def complete(self, prompt: str, temperature: float) -> None:
        self.tokens += 500
        self._prometheus.series[0].append(at(0, self.baseline + self.tokens))


def test_samples_of_an_earlier_server_from_the_future_are_no_proof_until_they_are_exceeded() -> (
    None
):
    """After the clock was set back they lie where this server's are looked for."""
    with PrometheusApi([[at(1, 600.0), at(-600, 600.0)]]) as prometheus:
        ledger = Answering(prometheus, 98)
        proof = probe.prove(RUN_ID, prometheus.url, ledger, 60.0)
    assert (
        proof["ok"] is True
        and ledger.tokens == 1098 == proof["tokens_expected"]
        and proof["tokens_seen"] == 1098
    )


def test_samples_from_the_future_that_cannot_be_exceeded_are_told() -> None:
    with PrometheusApi([[at(1, 1e9), at(-600, 1e9)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Answering(prometheus, 98), 60.0)
    assert (
        proof["ok"] is False
        and "clock was set back" in proof["reason"]
        and "playbooks/stop.yml" in proof["reason"]
    )


def test_no_tokens_are_no_proof_without_a_sample() -> None:
    with PrometheusApi([]) as prometheus:
        assert probe.prove(RUN_ID, prometheus.url, Ledger(0), 0.0)["ok"] is False


def test_a_server_started_anew_in_between_is_no_growth() -> None:
    """Its counter began again: what `increase()` would count as growth is below the baseline."""
    with PrometheusApi([[at(4, 500.0), at(3, 0.0), at(2, 50.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98, baseline=500.0), 0.0)
    assert proof["ok"] is False and proof["tokens_seen"] == 0


def test_several_series_are_one_server() -> None:
    with PrometheusApi([[at(2, 60.0)], [at(2, 38.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)
    assert proof["ok"] is True and proof["tokens_seen"] == 98


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "[]",
        "{}",
        '{"data": null}',
        '{"data": {"result": [{}]}}',
        '{"data": {"result": [{"values": [["a", "b"]]}]}}',
    ],
)
def test_an_answer_that_is_none_is_no_proof(body: str) -> None:
    with PrometheusApi([], status=500, body=body) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)
    assert proof["ok"] is False and prometheus.url in proof["reason"]


def test_a_prometheus_that_is_gone_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        proof = probe.prove(RUN_ID, url, Ledger(98), 0.0)
    assert proof["ok"] is False and url in proof["reason"] and "refused" in proof["reason"]


def test_the_query_takes_both_spellings_of_the_counter() -> None:
    assert '__name__=~"sglang[:_]prompt_tokens_total"' in ENGINE.prompt_tokens_query(
        RUN_ID, ADDRESS
    )


class Server:
    """Stands for a server that counted 12 prompt tokens in its own warm-up and takes 7 for each
    request.
    """

    def __init__(self) -> None:
        self.counted = 12.0

    def prompt_tokens(self) -> float:
        return self.counted

    def complete(self, prompt: str, temperature: float, max_tokens: int = 16) -> int:
        self.counted += 7
        return 7


def test_the_baseline_is_from_just_before_the_first_request() -> None:
    ledger = probe.TokenLedger(Server())  # type: ignore[arg-type]
    before = time.time()
    ledger.complete("a", 0.0)
    since = ledger.since
    ledger.complete("b", 0.8)
    assert (ledger.baseline, ledger.tokens) == (12.0, 14)
    assert before <= since == ledger.since


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e999", 98, None])
def test_what_no_counter_can_be_is_no_proof(value: object) -> None:
    body = json.dumps(
        {"status": "success", "data": {"result": [{"values": [[time.time(), value]]}]}}
    )
    with PrometheusApi([], body=body) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)
    assert proof["ok"] is False and "does not answer as expected" in proof["reason"]


@pytest.mark.parametrize(("status", "said"), [(503, "success"), (200, "error")])
def test_an_answer_that_says_that_it_failed_is_no_proof(status: int, said: str) -> None:
    body = json.dumps({"status": said, "data": {"result": [{"values": [[time.time(), "98"]]}]}})
    with PrometheusApi([], status=status, body=body) as prometheus:
        assert probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)["ok"] is False


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"status": "success", "data": {"result": [{"values": [[1' + "0" * 400 + ', "1"]]}]}}',
    ],
)
def test_an_answer_beyond_pythons_bounds_is_no_proof(body: str) -> None:
    with PrometheusApi([], body=body) as prometheus:
        assert probe.prove(RUN_ID, prometheus.url, Ledger(98), 0.0)["ok"] is False


def test_no_tokens_are_no_proof_with_a_sample_either() -> None:
    with PrometheusApi([[at(2, 98.0)]]) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(0), 0.0)
    assert proof["ok"] is False and "no prompt token" in proof["reason"]


@pytest.mark.parametrize("count", [math.nan, math.inf])
def test_a_server_whose_count_is_no_number_gives_no_baseline(count: float) -> None:
    server = Server()
    server.counted = count
    with pytest.raises(StageFailure, match="no number"):
        probe.TokenLedger(server).complete("a", 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1:9/\u00e9"]
)
def test_a_url_that_cannot_be_asked_does_not_stand_by_a_proof(url: str) -> None:
    assert "does not answer" in str(probe.lost(url, proven()))


# Labels that repeat one count: (labels of each series, its highest sample), of a ledger of 40.
@pytest.mark.parametrize(
    "labels",
    [
        [{"tp_rank": str(rank)} for rank in range(4)],
        [{"tp_rank": "0", "pp_rank": str(rank)} for rank in range(4)],
        [{"moe_ep_rank": str(rank), "engine_type": "unified"} for rank in range(4)],
        [{"instance": f"127.0.0.1:{port}"} for port in range(4)],
        [{"job": job} for job in ("sglang", "again", "router", "x")],
        [{"__name__": f"sglang{mark}prompt_tokens_total", "tp_rank": mark} for mark in ":_:_"],
    ],
)
def test_labels_that_repeat_a_count_do_not_multiply_it(labels: list[dict[str, str]]) -> None:
    quarter = [[at(2, 10.0)] for _ in labels]
    with PrometheusApi(quarter, labels=labels) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(40), 0.0)
    assert proof["ok"] is False and proof["tokens_seen"] == 10
    whole = [[at(2, 40.0)] for _ in labels]
    with PrometheusApi(whole, labels=labels) as prometheus:
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(40), 0.0)
    assert proof["ok"] is True and proof["tokens_seen"] == 40


@pytest.mark.parametrize("label", ["dp_rank", "is_streaming", "model_name", "priority"])
def test_labels_that_split_a_count_are_summed(label: str) -> None:
    with PrometheusApi([[at(2, 30.0)], [at(2, 10.0)]], labels=[{label: "0"}, {label: "1"}]) as api:
        proof = probe.prove(RUN_ID, api.url, Ledger(40), 0.0)
    assert proof["ok"] is True and proof["tokens_seen"] == 40


class Multiplied(Ledger):
    """Whose samples come twice, under an unknown label."""

    def __init__(self, prometheus: PrometheusApi, tokens: int) -> None:
        super().__init__(tokens)
        self._prometheus = prometheus

    def complete(self, prompt: str, temperature: float) -> None:
        self.tokens += 500
        for samples in self._prometheus.series:
            samples.append(at(0, float(self.tokens)))


def test_more_seen_than_sent_is_no_proof() -> None:
    twice = [{"replica": "a"}, {"replica": "b"}]
    with PrometheusApi([[at(2, 98.0)], [at(2, 98.0)]], labels=twice) as prometheus:
        ledger = Multiplied(prometheus, 98)
        proof = probe.prove(RUN_ID, prometheus.url, ledger, 60.0)
    assert proof["ok"] is False and proof["tokens_seen"] == 2 * ledger.tokens
    assert f"{ledger.tokens} were sent" in proof["reason"]
    assert "sgl_server_api_key_file" in proof["reason"] and len(proof["reason"]) < 400


def test_a_count_that_another_grows_gives_no_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_SETTLE_S", 0.3)
    server = Server()
    counts = iter(float(number) for number in range(100))
    server.prompt_tokens = lambda: next(counts)  # type: ignore[method-assign]
    with pytest.raises(StageFailure, match="something else sends requests"):
        probe.TokenLedger(server).complete("a", 0.0)  # type: ignore[arg-type]


def test_a_late_count_of_the_servers_own_warm_up_is_waited_for() -> None:
    server = Server()
    counts = iter([0.0, 5.0, 12.0, 12.0])
    server.prompt_tokens = lambda: next(counts)  # type: ignore[method-assign]
    ledger = probe.TokenLedger(server)  # type: ignore[arg-type]
    ledger.complete("a", 0.0)
    assert ledger.baseline == 12.0


def test_a_ledger_lacks_the_tokens_of_a_request_that_failed() -> None:
    ledger = probe.TokenLedger(Server())  # type: ignore[arg-type]
    ledger.complete("a", 0.0)
    assert ledger.whole

    def fail() -> int:
        raise StageFailure("request_failed", "no answer")

    with pytest.raises(StageFailure):
        ledger.add(fail)
    assert not ledger.whole


# --- a proof of before ------------------------------------------------------------------------


def test_a_proof_stands_as_long_as_prometheus_has_its_samples() -> None:
    with PrometheusApi([[at(3, 12.0), at(2, 110.0)]]) as prometheus:
        assert probe.lost(prometheus.url, proven()) is None


@pytest.mark.parametrize(
    "samples", [[], [(2, 60.0)], [(2, 111.0)], [(900, 110.0)]], ids=["none", "less", "more", "old"]
)
def test_a_proof_whose_samples_are_gone_or_others_does_not_stand(
    samples: list[tuple[float, float]],
) -> None:
    with PrometheusApi([[at(ago, value) for ago, value in samples]]) as prometheus:
        assert "has lost the samples" in str(probe.lost(prometheus.url, proven()))


def test_a_proof_of_a_release_without_a_window_does_not_stand() -> None:
    with PrometheusApi([[at(2, 110.0)]]) as prometheus:
        for proof in ({**proven(), "window": None}, {"ok": True}):
            assert probe.lost(prometheus.url, proof) is not None


def test_another_process_at_prometheus_port_is_no_prometheus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A neighbour of the host took the port: its process cannot be seen from the container."""
    with PrometheusApi([[at(2, 98.0)]]) as prometheus:
        monkeypatch.setattr(probe.ports, "held_here", lambda host, port: False)
        proof = probe.prove(RUN_ID, prometheus.url, Ledger(98), 60.0)
        lost = probe.lost(prometheus.url, proven())
        monkeypatch.undo()
    assert proof["ok"] is False and "instead of this container's Prometheus" in proof["reason"]
    assert "instead of this container's Prometheus" in str(lost) and prometheus.queries == []
