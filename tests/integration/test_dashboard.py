"""The dashboards' queries, put to a real Prometheus: it takes each, and the answer is right for
either prefix of SGLang's metrics.

Grafana itself is not here: what it makes of the dashboards is seen on a machine that has it.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.init.services import Settings, render_prometheus_config
from tests.doubles.metrics_exporter import MetricsExporter, dcgm, node, sglang
from tests.hosts.host import ROOT, TestHost, ansible, recap, run
from tests.integration.installation import Site, wait_for
from tests.integration.test_prom_ready import (
    RealPrometheus,
    binary,  # noqa: F401 - a fixture
    free_port,
)

pytestmark = pytest.mark.slow

ROLE = ROOT / "roles" / "dashboard"
SETTLED_S = 30.0
RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"
# What Grafana puts in: here short, as the series are seconds old.
RATE_INTERVAL = "10s"


def settings_of(**ports: int) -> Settings:
    return Settings("127.0.0.1", ports, "1GB", "1h", "1s")


@dataclass(frozen=True)
class Query:
    """One query of a dashboard's panel."""

    dashboard: str
    panel: str
    legend: str
    expression: str


def queries() -> list[Query]:
    return [
        Query(
            path.stem,
            panel["title"],
            target["legendFormat"],
            target["expr"].replace("$__rate_interval", RATE_INTERVAL),
        )
        for path in sorted((ROLE / "files" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


def documented() -> dict[str, str]:
    """The table of metrics in the role's manual: each name, and where it comes from."""
    return dict(
        re.findall(
            r"^\| `([\w:]+)` \| (.+) \|$",
            (ROLE / "README.md").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )


def api(url: str, path: str, **given: Any) -> Any:
    """What Prometheus answers. Raises AssertionError with its words for a query that it does not
    take.
    """
    try:
        with urllib.request.urlopen(
            f"{url}/api/v1/{path}?{urllib.parse.urlencode(given)}", timeout=10
        ) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as refusal:
        raise AssertionError(f"{given}: {refusal.read().decode()}") from refusal


def answer(url: str, expression: str) -> dict[str, float]:
    """The values of a query by their one label's value, or by the empty text where they have
    none.
    """
    result = api(url, "query", query=expression)["result"]
    found = {" ".join(series["metric"].values()): float(series["value"][1]) for series in result}
    assert len(found) == len(result), result
    return found


def named(node: Any) -> Iterator[str]:
    """The metric of each selector in a parsed query, with SGLang's prefix as most releases write
    it.
    """
    if isinstance(node, dict):
        if "matchers" in node:
            names = [
                (matcher["type"], matcher["value"])
                for matcher in node["matchers"]
                if matcher["name"] == "__name__"
            ]
            assert len(names) == 1, node
            kind, name = names[0]
            assert kind == "=" or (kind == "=~" and name.startswith("sglang[:_]")), node
            yield name.replace("sglang[:_]", "sglang:")
        for value in node.values():
            yield from named(value)
    elif isinstance(node, list):
        for value in node:
            yield from named(value)


@dataclass
class Stack:
    """A Prometheus with the product's own configuration, and the exporters that it scrapes."""

    url: str
    server: MetricsExporter
    stops_server: ExitStack
    prometheus: RealPrometheus


@contextmanager
def stack(program: str, folder: Path, prefix: str) -> Iterator[Stack]:
    folder.mkdir()
    with ExitStack() as stops, ExitStack() as stops_server:
        exporters = {
            name: stops.enter_context(MetricsExporter(series))
            for name, series in (("node", node()), ("dcgm", dcgm()))
        }
        server = stops_server.enter_context(MetricsExporter(sglang(prefix)))
        prometheus = RealPrometheus(program, folder)
        settings = settings_of(
            prometheus=prometheus.port,
            node_exporter=exporters["node"].port,
            dcgm_exporter=exporters["dcgm"].port,
            sglang=server.port,
        )
        config = render_prometheus_config(
            settings, RUN_ID, ["prometheus", "node_exporter", "dcgm_exporter"]
        )
        (folder / "prometheus.yml").write_text(config)
        prometheus.start()
        stops.callback(prometheus.stop)
        jobs = ("prometheus", "node_exporter", "dcgm_exporter", "sglang")
        assert prometheus.wait(*jobs).ready
        yield Stack(prometheus.url, server, stops_server, prometheus)


@pytest.fixture(scope="module", params=["sglang:", "sglang_"])
def stack_of_either_prefix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    program = request.getfixturevalue("binary")
    with stack(program, tmp_path_factory.mktemp("dashboard") / "prometheus", request.param) as made:
        # So that a rate is over the whole of its window.
        wait_for(
            lambda: answer(made.url, f'up{{job="sglang"}} offset {RATE_INTERVAL} == 1'),
            "samples of a whole window",
        )
        yield made


TARGETS: dict[str, float] = {"prometheus": 1, "node_exporter": 1, "dcgm_exporter": 1, "sglang": 1}
DISKS = {
    "/telemetry": 0.5,
    "/profiles": 0.5,
    "/models": 0.8,
    "/home/devuser/.cache/huggingface": 0.8,
}
SPEED: dict[tuple[str, str], dict[str, float]] = {
    ("Disturbed", "{{kind}}"): {"cpu": 1, "throttled": 0},
    ("Speed", ""): {"": 2},
    ("Slower than its reference", "{{measurement}}"): {"gemm_bf16": -0.2, "hbm_copy": 0.06},
}
# By panel and legend; the values are those that the exporters' series add up to.
SERVER: dict[tuple[str, str], dict[str, float]] = {
    ("Targets", "{{job}}"): TARGETS,
    ("Tokens per second", "prompt"): {"": 100},
    ("Tokens per second", "generation"): {"": 40},
    ("Requests", "running"): {"": 7},
    ("Requests", "queued"): {"": 2},
    ("Time to first token", "p50"): {"": 0.1},
    ("Time to first token", "p95"): {"": 0.75},
}
EXPECTED: dict[str, dict[tuple[str, str], dict[str, float]]] = {
    "sglang-fleet": {
        **SERVER,
        **SPEED,
        ("$host", ""): {"": 3},
        ("GPU and KV cache", "busiest GPU"): {"": 0.9},
        ("GPU and KV cache", "fullest GPU memory"): {"": 0.75},
        ("GPU and KV cache", "KV cache"): {"": 0.4},
        ("Last Xid", ""): {"": 79},
    },
    "sglang-host": {
        **SERVER,
        **SPEED,
        ("Computing", "{{measurement}}"): {"gemm_bf16": 7.8e14},
        ("Memory and links", "{{measurement}}"): {"hbm_copy": 4e12, "h2d": 5.5e10},
        ("One request", "decode"): {"": 170},
        ("One request", "first token"): {"": 0.02},
        ("State", ""): {"": 3},
        ("Run", "{{container_run}}"): {RUN_ID: 1},
        ("KV cache used", "used"): {"": 0.4},
        ("Utilisation", "GPU {{gpu}}"): {"0": 90, "1": 30},
        ("Memory used", "GPU {{gpu}}"): {"0": 0.75, "1": 0.25},
        ("Power", "GPU {{gpu}}"): {"0": 500, "1": 120},
        ("Temperature", "GPU {{gpu}}"): {"0": 61, "1": 40},
        ("Last Xid", "GPU {{gpu}}"): {"0": 0, "1": 79},
        ("CPU busy", "busy"): {"": 0.5},
        ("Memory used", "used"): {"": 0.25},
        ("Disk of the roots used", "{{mountpoint}}"): DISKS,
    },
}


def wrong_answers(url: str, asked: list[Query]) -> list[str]:
    """A rate is as exact as the times of the scrapes are."""
    found = [
        (query, answer(url, query.expression), EXPECTED[query.dashboard][query.panel, query.legend])
        for query in asked
    ]
    return [
        f"{query} is {values}"
        for query, values, wanted in found
        if values.keys() != wanted.keys()
        or not all(math.isclose(values[key], wanted[key], rel_tol=0.1) for key in wanted)
    ]


def test_every_query_has_its_answer(stack_of_either_prefix: Stack) -> None:
    asked = queries()
    assert {(query.dashboard, query.panel, query.legend) for query in asked} == {
        (dashboard, *place) for dashboard, places in EXPECTED.items() for place in places
    }
    # A scrape that comes late, on a machine that is busy, is made up for by the next ones; a wrong
    # query stays wrong.
    deadline = time.monotonic() + SETTLED_S
    while (
        wrong := wrong_answers(stack_of_either_prefix.url, asked)
    ) and time.monotonic() < deadline:
        time.sleep(1)
    assert wrong == []


def test_a_verdict_that_has_expired_is_shown_as_expired(stack_of_either_prefix: Stack) -> None:
    for query in queries():
        if query.panel == "Speed":
            later = query.expression.replace("time()", "1e12")
            assert later != query.expression
            assert answer(stack_of_either_prefix.url, later) == {"": 0}


def test_every_metric_is_one_of_those_in_the_manual(stack_of_either_prefix: Stack) -> None:
    parsed = [
        api(stack_of_either_prefix.url, "parse_query", query=query.expression)
        for query in queries()
    ]
    assert sorted(set(named(parsed))) == sorted(documented())


def test_a_query_that_is_wrong_is_found(stack_of_either_prefix: Stack) -> None:
    """The checks above fail for a query that Prometheus does not take, and for an undocumented
    metric.
    """
    with pytest.raises(AssertionError, match="parse error"):
        answer(stack_of_either_prefix.url, "sum(rate(up[5s])")
    assert list(
        named(api(stack_of_either_prefix.url, "parse_query", query="sum(rate(sglang:made_up[5s]))"))
    ) == ["sglang:made_up"]


def state(url: str) -> dict[str, float]:
    return answer(url, next(query.expression for query in queries() if query.panel == "State"))


def test_state_of_a_host_whose_server_has_gone(binary: str, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    with stack(binary, tmp_path / "prometheus", "sglang:") as made:
        assert state(made.url) == {"": 3}
        made.stops_server.close()
        wait_for(lambda: state(made.url) == {"": 2}, "the state of a host that had a server")


def test_state_of_a_host_that_had_no_server(binary: str, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    prometheus = RealPrometheus(binary, tmp_path)
    settings = settings_of(prometheus=prometheus.port, sglang=free_port())
    (tmp_path / "prometheus.yml").write_text(
        render_prometheus_config(settings, RUN_ID, ["prometheus"])
    )
    prometheus.start()
    try:
        assert prometheus.wait("prometheus").ready
        wait_for(lambda: answer(prometheus.url, 'up{job="sglang"} == 0'), "a scrape in vain")
        assert state(prometheus.url) == {"": 1}
    finally:
        prometheus.stop()


def test_queries_of_a_real_run(prepared: Site) -> None:
    """A prep with the real server, which measures the host too: each query about it and about the
    host has samples of that time, and the state is READY.
    """
    url = f"http://127.0.0.1:{prepared.ports['prometheus']}"
    # An earlier test may have begun a run whose proof was carried forward: this one's server has
    # samples in this run.
    done = prepared.ensure("--probe", "always", "--perf", "ensure")
    assert done.returncode == 0, done.stderr
    # For a second after its end, the last scrape says that it serves.
    wait_for(lambda: state(url) == {"": 2}, "the state READY")
    of_gpus = [name for name, source in documented().items() if source.startswith("dcgm-exporter")]
    # A CPU has no data sheet, a host that is new no history, and this one no watcher.
    absent = [*of_gpus, "sgl_perf_shortfall_ratio", "sgl_watch_disturbed"]
    now = time.time()
    empty = [
        query
        for query in queries()
        if not any(name in query.expression for name in absent)
        # Its server was up for seconds: a rate as Grafana asks for it, at every second.
        and not api(
            url,
            "query_range",
            query=query.expression.replace(f"[{RATE_INTERVAL}]", "[1m]"),
            start=now - 10000,
            end=now,
            step=1,
        )["result"]
    ]
    assert of_gpus and empty == []


UNIT = "[Unit]\nDescription=stands for Grafana\n[Service]\nExecStart=/bin/sleep infinity\n"


@pytest.mark.long
def test_grafana_is_restarted_by_systemd(machine: TestHost, tmp_path: Path) -> None:
    """Over SSH, by a real systemd, once: a unit that sleeps stands for Grafana's."""
    inventory = tmp_path / "hosts.yml"
    wall = {
        **machine.inventory_vars("root"),
        "sgl_grafana_dashboards_dir": "/root/grafana/dashboards",
    }
    inventory.write_text(
        json.dumps(
            {
                "grafana": {"hosts": {"wall": wall}},
                "sglang": {"hosts": {"gpu-01": {"sgl_bind_address": "10.1.0.1"}}},
            }
        )
    )
    play = ["-i", str(inventory), str(ROOT / "playbooks" / "dashboard.yml")]

    def started() -> str:
        return machine.execute(
            "systemctl", "show", "--property=MainPID", "--value", "grafana-server.service"
        ).strip()

    try:
        machine.execute(
            "mkdir",
            "-p",
            "/etc/grafana/provisioning/datasources",
            "/etc/grafana/provisioning/dashboards",
        )
        refused = ansible(*play, check=False)
        assert refused.returncode != 0 and "has no systemd unit grafana-server.service" in re.sub(
            r"\s+", " ", refused.stdout + refused.stderr
        )
        path = "/etc/systemd/system/grafana-server.service"
        run(
            "docker",
            "exec",
            "--interactive",
            machine.name,
            "install",
            "-m",
            "0644",
            "/dev/stdin",
            path,
            stdin=UNIT,
        )
        machine.execute("systemctl", "daemon-reload")
        machine.execute("systemctl", "start", "grafana-server.service")
        before = started()
        ansible(*play, "--check")
        assert started() == before
        ansible(*play)
        after = started()
        assert before != after != "0"
        assert recap(ansible(*play).stdout)["wall"]["changed"] == 0
        assert started() == after
    finally:
        machine.execute("systemctl", "stop", "grafana-server.service", check=False)
        machine.execute(
            "rm",
            "-rf",
            "/etc/systemd/system/grafana-server.service",
            "/etc/grafana",
            "/root/grafana",
        )
        machine.execute("systemctl", "daemon-reload")
