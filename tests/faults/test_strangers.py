"""Another program that takes the port of one of our services in the middle of a prep is never taken
for it: no proof stands on its word, one sentence names it, and the next prep is ready again.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sgl_admin.contract import services
from tests.faults.fault_site import FaultSite
from tests.integration.installation import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]
MOMENTS = 10
# A word of each service's command line, and what its page must show to pass for it.
SERVICES = {
    "prometheus": "--storage.tsdb.path",
    "node_exporter": "--collector.textfile.directory",
}
# More tokens than any server here counts.
WRONG = 999_999_971


class _Anything(BaseHTTPRequestHandler):
    """Whatever is asked: it is well, and a server has counted many tokens."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            sample = {
                "metric": {"__name__": "sglang:prompt_tokens_total"},
                "value": [time.time(), str(WRONG)],
            }
            answer = {"status": "success", "data": {"resultType": "vector", "result": [sample]}}
            body = json.dumps(answer)
        else:
            body = "".join(f"{service.shows} 1\n" for service in services.SERVICES)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Takes the port as soon as it is free, and answers there."""
    made: list[ThreadingHTTPServer] = []
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set() and not made:
            try:
                made.append(ThreadingHTTPServer(("127.0.0.1", port), _Anything))
            except OSError:
                time.sleep(0.005)
        if made:
            made[0].serve_forever(0.05)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
        wait_for(lambda: bool(made), f"port {port} to be taken", 5)
    finally:
        ended.set()
        for server in made:
            server.shutdown()
            server.server_close()
        thread.join()


def rebuild(site: FaultSite) -> None:
    done = site.ensure("--inductor", "rebuild", "--probe", "always", "--detach")
    assert done.returncode == 0, done.stderr


def outcome(site: FaultSite) -> dict:
    answer = json.loads(site.admin("status", "--wait", "60", "--json").stdout)
    assert answer["job"]["state"] != "running", answer
    return answer


@pytest.mark.parametrize("name", SERVICES)
def test_a_stranger_in_the_place_of_a_service_is_never_ready(faulty: FaultSite, name: str) -> None:
    begun = time.monotonic()
    rebuild(faulty)
    assert outcome(faulty)["job"]["exit_code"] == 0
    lasts = time.monotonic() - begun
    port = faulty.ports[name]
    for moment in range(MOMENTS):
        rebuild(faulty)
        time.sleep(lasts * moment / MOMENTS)
        with stranger(port):
            faulty.signal_matching(SERVICES[name], signal.SIGKILL)
            answer = outcome(faulty)
            ready = json.loads(faulty.admin("ready", "--json").stdout)
        proof = answer["result"]["telemetry_probe"]
        assert ready["ready"] is False, (moment, answer)
        assert proof["tokens_seen"] in (None, 0, proof["tokens_expected"]), (moment, proof)
        if answer["job"]["exit_code"]:
            assert str(port) in proof["reason"] and len(proof["reason"]) < 400, (moment, proof)
        else:
            # It came after the last look: the next question gets it.
            assert str(port) in ready["reason"], (moment, ready)
        wait_for(lambda: faulty.ensure("--probe-timeout", "5").returncode == 0, "the next prep", 60)
        assert json.loads(faulty.admin("ready", "--json").stdout)["ready"] is True
