"""What a prep makes of a server that fails, with the double that fails on demand."""

from __future__ import annotations

import pytest

from tests.contract import validators
from tests.faults.fault_site import FaultSite

pytestmark = pytest.mark.slow


def failed_inductor(site: FaultSite, *arguments: str, **environment: str) -> dict:
    """The stage's record after a rebuild that failed; nothing of the server is left."""
    done = site.ensure(
        "--inductor",
        "rebuild",
        *arguments,
        environment={f"SGL_TEST_SERVER_{name}": value for name, value in environment.items()},
    )
    stage = site.stage("inductor")
    assert done.returncode == 13, done.stdout + done.stderr
    assert stage["status"] == "error" and stage["ran"] is True
    assert site.servers() == [] and list((site.profiles / ".in_progress").iterdir()) == []
    validators.validate_stage(stage)
    validators.validate_prep_result(site.result())
    return stage


def test_the_double_takes_a_real_prep_to_metrics_ready(faulty: FaultSite) -> None:
    result = faulty.result()
    assert result["telemetry_probe"]["ok"] is True and result["stages"]["inductor"]["status"] in (
        "ok",
        "noop",
    )
    assert result["run"]["sglang_version"] == "0.5.9", (
        "the real package's version is not seen past the double"
    )
    assert "double: stands for" in faulty.log()


def test_a_server_without_memory(faulty: FaultSite) -> None:
    stage = failed_inductor(faulty, EXIT="3")
    assert stage["error_type"] == "oom" and any(
        "out of memory" in line for line in stage["log_tail"]
    )


def test_a_server_that_never_gets_healthy(faulty: FaultSite) -> None:
    assert (
        failed_inductor(faulty, "--server-timeout", "1", READY_S="never")["error_type"]
        == "server_unhealthy_timeout"
    )


def test_a_server_that_dies_in_the_middle_of_the_requests(faulty: FaultSite) -> None:
    assert failed_inductor(faulty, DIE_AFTER="3")["error_type"] == "request_failed"


def test_a_server_that_answers_with_an_error(faulty: FaultSite) -> None:
    stage = failed_inductor(faulty, HTTP_500_FROM="2")
    assert stage["error_type"] == "request_failed" and "HTTP 500" in stage["errors"][0]


def test_a_server_that_does_not_listen_to_sigterm(faulty: FaultSite) -> None:
    """It is ended all the same, with its helpers, and the prep is done."""
    done = faulty.ensure("--probe", "always", environment={"SGL_TEST_SERVER_DEAF": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert faulty.servers() == []


def test_a_counter_that_does_not_count_is_no_proof(faulty: FaultSite) -> None:
    done = faulty.ensure(
        "--probe",
        "always",
        "--probe-timeout",
        "2",
        environment={"SGL_TEST_SERVER_NOT_COUNTED": "1"},
    )
    assert done.returncode == 6, done.stdout + done.stderr
    assert faulty.result()["telemetry_probe"]["ok"] is False
