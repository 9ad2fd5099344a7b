"""prom_ready against a real Prometheus: the one of the project's image, or the binary that
PROMETHEUS_BINARY names.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._prometheus_api import (
    FinalError,
    PrometheusClient,
    Readiness,
    Seen,
)

from tests.integration.installation import docker, module, wait_for

# So that a defect ends in a failure.
PLENTY_S = 60.0
IN_VAIN_S = 1.5
PASSWORD = "correct horse"
# bcrypt of it
WEB_USERS = (
    "basic_auth_users:\n  ansible: $2b$04$X/YUGlYVbkH46Y5o9DwQBuTJD9f2f4usuJLPOnqDEUvrGjc7sczee\n"
)


@pytest.fixture(scope="session")
def binary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("PROMETHEUS_BINARY")
    if given:
        assert os.access(given, os.X_OK), f"PROMETHEUS_BINARY={given} is no program"
        return given
    image = request.getfixturevalue("image")
    folder = tmp_path_factory.mktemp("prometheus")
    container = docker("create", "--entrypoint", "/bin/true", image).stdout.strip()
    try:
        docker("cp", f"{container}:/usr/local/bin/prometheus", str(folder))
    finally:
        docker("rm", container)
    return str(folder / "prometheus")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@dataclass
class RealPrometheus:
    """One server that scrapes itself and, at port 1, a target that is dead."""

    binary: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.gate = self.folder / "data" / "wal" / "00000000"
        jobs = {"self": f"['127.0.0.1:{self.port}']", "dead": "['127.0.0.1:1']", "empty": "[]"}
        scrapes = "".join(
            f"- job_name: {job}\n  static_configs: [{{targets: {targets}}}]\n"
            for job, targets in jobs.items()
        )
        (self.folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n{scrapes}"
        )

    def close_gate(self) -> None:
        """Reading the write-ahead log waits for this, and readiness for the reading."""
        self.gate.parent.mkdir(parents=True)
        os.mkfifo(self.gate)

    def open_gate(self) -> None:
        def opened() -> bool:
            with contextlib.suppress(OSError):  # no reader yet
                os.close(os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        wait_for(opened, "Prometheus to read its write-ahead log")

    def start(self, *flags: str) -> None:
        command = [
            self.binary,
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
        ]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self.port}", *flags],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            # pytest shows it with a test that fails.
            print((self.folder / "log").read_text(errors="replace"))

    def wait(
        self, *jobs: str, expression: str | None = None, timeout: float = PLENTY_S, **client: Any
    ) -> Seen:
        readiness = Readiness(PrometheusClient(**{"url": self.url, **client}), jobs, expression)
        return readiness.wait(timeout)

    def failure(self, *jobs: str, expression: str | None = None) -> str:
        """The reason that one look gives."""
        readiness = Readiness(PrometheusClient(self.url), jobs, expression)
        seen = readiness.look(PLENTY_S)
        assert not seen.ready
        return seen.reason or ""


@pytest.fixture
def make(binary: str, tmp_path: Path) -> Iterator[Callable[[], RealPrometheus]]:
    made: list[RealPrometheus] = []

    def new() -> RealPrometheus:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(RealPrometheus(binary, folder))
        return made[-1]

    yield new
    for server in made:
        server.stop()


@pytest.fixture(scope="module")
def server(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPrometheus]:
    running = RealPrometheus(binary, tmp_path_factory.mktemp("server"))
    running.start()
    try:
        assert running.wait().ready
        yield running
    finally:
        running.stop()


def test_ready_tells_the_version(server, binary):
    seen = server.wait()
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    match = re.search(r"version (\S+)", told.stdout + told.stderr)
    assert match
    assert seen.version == match[1]
    assert int(match[1].split(".")[0]) >= 3, "the pinned Prometheus is a 3.x"


def test_from_nothing_to_ready(make):
    server = make()

    def start(_pause: float) -> None:
        if server.process is None:
            server.start()

    readiness = Readiness(PrometheusClient(server.url), ["self"], "up", sleep=start)
    assert "nothing listens" in (readiness.look(PLENTY_S).reason or "")
    seen = readiness.wait(PLENTY_S)
    assert seen.ready
    assert [target.health for target in seen.targets] == ["up"]


def test_starting_server_is_not_ready_until_its_log_is_read(make):
    server = make()
    server.close_gate()
    server.start()
    client = PrometheusClient(server.url)
    readiness = Readiness(
        client,
        sleep=lambda _pause: server.open_gate() if readiness.seen.polls == before + 1 else None,
    )
    wait_for(
        lambda: "answers HTTP 503, it is starting" in (readiness.look(PLENTY_S).reason or ""),
        "HTTP 503",
    )
    before = readiness.seen.polls
    seen = readiness.wait(PLENTY_S)
    assert seen.ready
    assert seen.polls > before + 1


def test_job_is_up(server):
    seen = server.wait("self")
    assert seen.ready
    (target,) = seen.result()["targets"]
    assert (target["job"], target["instance"], target["health"], target["last_error"]) == (
        "self",
        f"127.0.0.1:{server.port}",
        "up",
        "",
    )
    assert re.match(r"20\d\d-\d\d-\d\dT", target["last_scrape"])


def test_dead_target_with_prometheus_own_error(server):
    wait_for(
        lambda: server.wait(expression='up{job="dead"}').ready,
        "the first scrape of the dead target",
    )
    assert server.wait("self").ready
    reason = server.failure("self", "dead")
    assert reason.startswith("Job 'dead' is not up: ")
    assert (
        'target 127.0.0.1:1 is down: Get "http://127.0.0.1:1/metrics": dial tcp 127.0.0.1:1:'
        " connect: connection refused;" in reason
    )


@pytest.mark.parametrize("job", ["empty", "unknown"])
def test_job_without_target(server, job):
    assert server.wait("self").ready
    assert f"job {job!r} has no target (the jobs with targets are dead, self)" in server.failure(
        job
    )


def test_expression_that_holds(server):
    seen = server.wait(expression='up{job="self"} == 1')
    assert seen.ready
    assert [(sample.metric["job"], sample.value) for sample in seen.samples] == [("self", "1")]
    assert server.wait(expression='prometheus_build_info{version!=""} and on() vector(1) > 0').ready
    assert server.wait(expression='scalar(up{job="self"})').ready


def test_expression_that_does_not_hold(server):
    assert server.wait(expression='up{job="self"}').ready
    assert "its result is empty" in server.failure(expression="up == 2")
    assert "its value is 0;" in server.failure(expression="1 > bool 2")
    assert "its value is NaN;" in server.failure(expression='scalar(up{job="unknown"})')
    # Many-to-many: a fault of the data that is there now.
    assert "HTTP 422" in server.failure(
        expression="{__name__=~'up|scrape_duration_seconds'} * on() group_left up"
    )


def test_long_expression(server):
    assert server.wait(
        expression=" or ".join(f'up{{job="job{number}"}}' for number in range(500))
        + ' or up{job="self"}'
    ).ready


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("up{", "parse error: unexpected end of input inside braces"),
        ("", "parse error: no expression found in input"),
        ("nofunction(up)", 'unknown function with name "nofunction"'),
        ("up[5m]", "gives a range vector; give one with an instant vector or a scalar"),
        ("'text'", "gives a string"),
    ],
)
def test_expression_that_never_holds_fails_at_once(server, expression, text):
    with pytest.raises(FinalError) as caught:
        server.wait(expression=expression)
    assert text in str(caught.value)


def test_path_prefix(make):
    server = make()
    server.start("--web.route-prefix=/lab/prom")
    assert server.wait(expression="1", url=f"{server.url}/lab/prom/").version
    assert "check the port and path prefix in url" in server.failure()


def test_tls_and_credentials(make):
    server = make()
    cert, key, web = (str(server.folder / name) for name in ("cert.pem", "key.pem", "web.yml"))
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-noenc",
        "-days",
        "2",
        "-subj",
        "/CN=prometheus",
    ]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key]
    subprocess.run([*command, *names], check=True, capture_output=True)
    Path(web).write_text(f"tls_server_config: {{cert_file: {cert}, key_file: {key}}}\n{WEB_USERS}")
    server.start(f"--web.config.file={web}")
    good = {
        "url": server.url.replace("http:", "https:"),
        "username": "ansible",
        "password": PASSWORD,
        "ca_path": cert,
    }
    assert server.wait(expression="1", **good).version
    assert server.wait(expression="1", **{**good, "ca_path": None, "validate_certs": False}).ready
    for changed, text in [
        ({"url": server.url}, "speaks TLS; write https:// in url"),
        ({"ca_path": None}, "is not trusted (self-signed certificate); name its CA with ca_path"),
        (
            {"password": "wrong"},
            "HTTP 401, it does not accept the url_username and url_password given",
        ),
        ({"username": None, "password": None}, "HTTP 401, it wants credentials"),
    ]:
        with pytest.raises(FinalError) as caught:
            server.wait(**{**good, **changed})
        assert text in str(caught.value)


def test_server_that_wants_a_client_certificate(make):
    server = make()
    cert, key, web = (str(server.folder / name) for name in ("cert.pem", "key.pem", "web.yml"))
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-noenc",
        "-days",
        "2",
        "-subj",
        "/CN=prometheus",
    ]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key]
    subprocess.run([*command, *names], check=True, capture_output=True)
    wants = "client_auth_type: RequireAndVerifyClientCert"
    Path(web).write_text(
        f"tls_server_config: {{cert_file: {cert}, key_file: {key}, client_ca_file: {cert},"
        f" {wants}}}\n"
    )
    server.start(f"--web.config.file={web}")
    url = server.url.replace("http:", "https:")
    assert server.wait(url=url, ca_path=cert, client_cert=cert, client_key=key).ready
    with pytest.raises(FinalError, match="set client_cert and client_key"):
        server.wait(url=url, ca_path=cert)


def test_module(server):
    seen = module(
        "prom_ready", {"url": server.url, "jobs": ["self"], "expression": 'up{job="self"} == 1'}
    )
    assert (seen["changed"], seen["ready"], seen["result"][0]["value"]) == (False, True, "1")


def test_module_in_vain(server):
    seen = module("prom_ready", {"url": server.url, "jobs": ["dead"], "timeout": IN_VAIN_S})
    assert seen["msg"].startswith("Job 'dead' is not up after ")
    assert seen["targets"][0]["health"] == "down"
    assert seen["version"]


def test_module_in_check_mode(server):
    seen = module("prom_ready", {"url": server.url, "jobs": ["dead"]}, "--check")
    assert (seen["changed"], seen["ready"], seen["polls"]) == (False, False, 1)
    assert "msg" not in seen
    assert (
        module("prom_ready", {"url": f"http://127.0.0.1:{free_port()}"}, "--check")["ready"]
        is False
    )
