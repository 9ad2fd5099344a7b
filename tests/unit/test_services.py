"""A service of the run that is dead is reported in every answer, and METRICS_READY does not hold
over one that it stands on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sgl_admin.base import files, paths, ports
from sgl_admin.commands import main as cli
from sgl_admin.contract.exit_codes import EXIT_OK, EXIT_PROOF_FAILED
from sgl_admin.contract.services import BY_NAME, EXPORTERS, SERVICES, Service
from sgl_admin.serving import readiness, services
from tests.contract import validators

# The fixture has preps over stages that stand for the real ones.
from tests.unit.test_sgl_admin_prep import World, each, statuses, world  # noqa: F401

NEEDED = [service.name for service in SERVICES if service.needed]
OTHERS = [service.name for service in SERVICES if not service.needed]


class Stands:
    """Stands for a service: its page says 200 and shows what it must, or says another status."""

    def __init__(self, service: Service) -> None:
        page, shows = service.page, service.shows.encode()
        self.status = 200
        self.asked: list[str] = []
        stands = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stands.asked.append(self.path)
                self.send_response(stands.status if self.path == page else 404)
                self.send_header("Content-Length", str(len(shows)))
                self.end_headers()
                self.wfile.write(shows)

            def log_message(self, *_: Any) -> None:
                pass

        self._handler = Handler
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Run = dict[str, Stands]


@pytest.fixture
def alive(
    world: World,  # noqa: F811 - the fixture's name
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """All services of a run, each of which answers."""
    monkeypatch.setattr(services, "_ANSWER_S", 0.5)
    monkeypatch.setattr(services, "_POLL_S", 0.01)
    monkeypatch.setattr(services.wait, "__defaults__", (0.2,))
    monkeypatch.delenv(paths.ROOT_VARIABLE, raising=False)
    made = {service.name: Stands(service) for service in SERVICES}
    manifest = files.read_json(paths.manifest(world.run_id)) or {}
    # How they started: with traces the server would be another one.
    manifest["telemetry_surfaces"] = {
        service.surface: {"status": "degraded", "details": ""} for service in SERVICES
    }
    for service in SERVICES:
        entry = manifest["services"].setdefault(service.name, {})
        entry[service.ports[0].key] = made[service.name].port
    files.write_json(paths.manifest(world.run_id), manifest)
    yield made
    for each_one in made.values():
        each_one.stop()


def dies(run: Run, name: str) -> None:
    """It ends, and its port is refused."""
    run[name].stop()


def answers_500(run: Run, name: str) -> None:
    run[name].status = 500


WAYS = (dies, answers_500)


def test_what_metrics_come_from_or_by_is_needed() -> None:
    """METRICS_READY does not depend on traces."""
    assert (NEEDED, OTHERS) == (["prometheus", *EXPORTERS], ["jaeger"])
    assert {"node_exporter", "dcgm_exporter"} <= set(EXPORTERS)


def test_over_services_that_answer_a_prep_is_ready_and_says_so(
    world: World,  # noqa: F811
    alive: Run,
) -> None:
    result, exit_code = world.execute()
    assert exit_code == 0 and result["telemetry_probe"]["ok"] is True
    expected = {"state": "running", "reason": None}
    assert result["services"] == {
        name: {**expected, "needed": BY_NAME[name].needed} for name in alive
    }
    for stands in alive.values():
        stands.asked.clear()
    _again, exit_code = world.execute()
    assert exit_code == 0
    assert [len(stands.asked) for stands in alive.values()] == [1] * len(alive), (
        "each is asked once"
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", NEEDED)
def test_no_prep_is_ready_over_a_dead_service_that_it_needs(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
    way: Any,
) -> None:
    """Neither the first one nor one whose proof stands, and the exit code does not improve."""
    way(alive, name)
    for _ in range(2):
        result, exit_code = world.execute()
        assert exit_code == EXIT_PROOF_FAILED and statuses(result).keys() == each("").keys()
        proof = result["telemetry_probe"]
        assert proof["ok"] is False and f"{name} does not answer at 127.0.0.1:" in proof["reason"]
        assert result["services"][name]["state"] == "failed"
        assert any(name in warning for warning in result["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDED)
def test_a_proof_does_not_stand_over_a_service_that_died_since(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
) -> None:
    assert world.execute()[1] == EXIT_OK
    dies(alive, name)
    for _ in range(2):
        result, exit_code = world.execute()
        assert exit_code == EXIT_PROOF_FAILED and result["telemetry_probe"]["ok"] is False
    alive[name].start()
    assert world.execute()[1] == EXIT_OK


@pytest.mark.parametrize("name", NEEDED)
def test_a_service_that_is_back_in_time_costs_no_proof(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """supervisord has it up again within seconds; the proof of before still stands then."""
    before = world.execute()[0]["telemetry_probe"]
    dies(alive, name)
    execution = world.execution()
    assert execution.plan.probe_wanted
    monkeypatch.setattr(services.wait, "__defaults__", (20.0,))
    back = threading.Timer(0.3, alive[name].start)
    back.start()
    result, exit_code = execution.run()
    back.join()
    assert exit_code == EXIT_OK and result["telemetry_probe"] == before


@pytest.mark.parametrize("name", OTHERS)
def test_a_dead_service_that_is_not_needed_is_a_warning(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
) -> None:
    dies(alive, name)
    result, exit_code = world.execute()
    assert exit_code == EXIT_OK and result["telemetry_probe"]["ok"] is True
    assert result["services"][name]["state"] == "failed"
    assert any(f"{name} does not answer" in warning for warning in result["warnings"])


@pytest.mark.parametrize("name", [service.name for service in SERVICES])
def test_status_and_ready_tell_a_dead_service(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world.execute()
    assert cli.main(["status"]) == EXIT_OK
    dies(alive, name)
    capsys.readouterr()
    wanted = EXIT_PROOF_FAILED if name in NEEDED else EXIT_OK
    assert [cli.main(["status"]), cli.main(["status"])] == [wanted, wanted]
    assert f"{name} does not answer at 127.0.0.1:" in capsys.readouterr().out
    assert cli.main(["status", "--json"]) == EXIT_OK
    told = json.loads(capsys.readouterr().out)["services"]
    assert [other for other in told if told[other]["state"] == "failed"] == [name]


@pytest.mark.parametrize("name", NEEDED)
def test_ready_does_not_hold_over_a_dead_service(
    world: World,  # noqa: F811
    alive: Run,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.execute()
    live = cli.run.live()
    monkeypatch.setattr(readiness, "_record", lambda *_: {"argv": [], "env": {}, "model": "m",
        "identity": "x", "telemetry_probe": {"ok": True, "server": "x"}})  # fmt: skip
    monkeypatch.setattr(readiness.served, "identity", lambda *_: "x")
    assert readiness.readiness(live)["ready"] is True
    dies(alive, name)
    answer = readiness.readiness(live)
    assert answer["ready"] is False and f"{name} does not answer" in answer["reason"]


def test_another_process_at_a_services_port_is_none_of_ours(
    world: World,  # noqa: F811
    alive: Run,
) -> None:
    """By who holds the socket, and not by what it answers."""
    name = "node_exporter"
    alive[name].stop()
    code = (
        "import http.server, sys; http.server.ThreadingHTTPServer.allow_reuse_address = True\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        " def do_GET(self): self.send_response(200); self.end_headers()\n"
        " def log_message(self, *_): pass\n"
        "s = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H)\n"
        "print(flush=True); s.serve_forever()"
    )
    words = [sys.executable, "-c", code, str(alive[name].port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.MonkeyPatch.context() as patch:
                # As in a container, this process and its children are all that can be seen.
                patch.setattr(ports.listeners, "pids", lambda: iter({os.getpid()}))
                found = services.states(cli.run.live().manifest)
        finally:
            other.kill()
    assert "instead of node_exporter" in found[name]["reason"]
    assert found["prometheus"]["state"] == "running"
    alive[name].start()


@pytest.mark.parametrize("status", ["unavailable", None])
def test_a_service_that_the_image_lacks_is_not_asked(
    world: World,  # noqa: F811
    alive: Run,
    status: str | None,
) -> None:
    manifest = files.read_json(paths.manifest(world.run_id)) or {}
    surface = BY_NAME["dcgm_exporter"].surface
    if status is None:
        del manifest["telemetry_surfaces"][surface]
    else:
        manifest["telemetry_surfaces"][surface]["status"] = status
    files.write_json(paths.manifest(world.run_id), manifest)
    dies(alive, "dcgm_exporter")
    result, exit_code = world.execute()
    assert exit_code == EXIT_OK and "dcgm_exporter" not in result["services"]
    validators.validate_prep_result(result)
    alive["dcgm_exporter"].start()


@pytest.mark.parametrize(
    "strange",
    [None, [], "x", {"prometheus": None}, {"prometheus": 7}, {"prometheus": {"url": "http://[x"}}],
)
def test_a_manifest_that_says_nothing_proper_of_its_services_is_read(strange: Any) -> None:
    surfaces = {service.surface: {"status": "running"} for service in SERVICES}
    for manifest in (
        {"services": strange, "telemetry_surfaces": surfaces},
        {"services": {}, "telemetry_surfaces": strange},
    ):
        assert services.states(manifest) == {}
