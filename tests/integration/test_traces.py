"""The real server's traces reach the run's collector: a smoke's requests are spans there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import ROOT, Site, docker, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]

PORT, PAGE_PORT = 19317, 19316


@pytest.fixture
def collector(prepared: Site) -> Iterator[Path]:
    """An OTLP receiver on loopback, and a manifest that names it as the run's; yields the file of
    its spans.

    The local image has no Jaeger, so the manifest gets a tracing that runs, as the init of an
    image that has one writes it.
    """
    spans = prepared.telemetry / "otlp-spans.jsonl"
    double = ROOT / "tests" / "doubles" / "otlp_receiver.py"
    # In the run's own container, as a program beside it would be taken for a stranger.
    program = prepared.telemetry / "otlp_receiver.py"
    shutil.copy(double, program)
    program.chmod(0o644)
    docker(
        "exec",
        "--detach",
        prepared.container,
        "/opt/sglang/bin/python",
        f"/telemetry/{program.name}",
        str(PORT),
        f"/telemetry/{spans.name}",
        str(PAGE_PORT),
    )
    manifest = prepared.pointed()
    before = manifest.read_text()
    told = json.loads(before)
    told["telemetry_surfaces"]["tracing"] = {
        "status": "running",
        "details": "a receiver of the tests",
    }
    told["services"]["jaeger"].update(otlp_grpc=PORT, ui=PAGE_PORT)
    manifest.write_text(json.dumps(told))
    try:
        yield spans
    finally:
        prepared.admin("server", "stop")
        prepared.signal_matching(program.name)
        program.unlink()
        manifest.write_text(before)
        spans.unlink(missing_ok=True)
        # The records of a prep with tracing are not what the next test expects.
        prepared.ensure("--inductor", "ensure")


def received(spans: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in spans.read_text().splitlines()] if spans.exists() else []


def traces(spans: Path) -> set[str]:
    return {span["trace"] for span in received(spans)}


def test_the_spans_of_a_smoke_arrive_at_the_collector(prepared: Site, collector: Path) -> None:
    done = prepared.ensure("--inductor", "ensure", "--probe", "always")
    assert done.returncode == 0, done.stderr + prepared.diagnosis()
    argv = prepared.result()["run"]["server"]["argv"]
    assert ["--enable-trace", "--otlp-traces-endpoint", f"127.0.0.1:{PORT}"] == argv[
        argv.index("--enable-trace") :
    ][:3]
    before = wait_for(lambda: traces(collector), "spans of the prep's requests")
    smoked = prepared.admin("smoke", "run")
    assert smoked.returncode == 0, smoked.stdout + smoked.stderr + prepared.diagnosis()
    wait_for(lambda: traces(collector) - before, "the smoke's spans")
    found = received(collector)
    assert {span["service"] for span in found} == {"sglang"}
    assert any("req" in span["name"].lower() for span in found), sorted(
        {span["name"] for span in found}
    )
