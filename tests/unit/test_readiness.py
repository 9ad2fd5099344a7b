"""`sgl-admin ready`: whether METRICS_READY holds now, in one call."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, paths, ports
from sgl_admin.base.command import Command
from sgl_admin.contract.exit_codes import EXIT_NO_LIVE_RUN, EXIT_PROOF_FAILED
from sgl_admin.records import prepared, served
from sgl_admin.serving import benchmark_server, probe
from sgl_admin.sglang import ENGINE
from tests.contract import validators
from tests.doubles.prometheus_api import PrometheusApi
from tests.unit.sharing import Answer, admin


class Site:
    """A run whose latest prep proved its server, and the Prometheus that has the samples."""

    def __init__(self, run_id: str, model: Path, prometheus: PrometheusApi) -> None:
        self.run_id, self.model, self.prometheus = run_id, model, prometheus
        self.argv = [sys.executable, "-m", "server", "--model-path", str(model), "--port", "31999"]
        self.point_at(prometheus.url)
        self.prove()

    def point_at(self, url: str) -> None:
        manifest = files.read_json(paths.manifest(self.run_id)) or {}
        manifest["services"]["prometheus"]["url"] = url
        files.write_json(paths.manifest(self.run_id), manifest)

    def prove(self, *arguments: str, **of_proof: Any) -> str:
        """Leave the records of a prep with these arguments of the server; returns its identity."""
        argv = [*self.argv, *arguments]
        identity = served.identity(argv, {}, served.image())
        now = time.time()
        proof = {
            **probe.unproven(self.run_id, self.prometheus.url, "127.0.0.1:31999", None, 98),
            "ok": True,
            "sample_count": 1,
            "tokens_seen": 98,
            "window": {"since": now - 5, "until": now, "baseline": 0.0},
            "server": identity,
            **of_proof,
        }
        result = validators.example("prep_result")
        server = {"argv": argv, "env": {}, "identity": identity}
        result["run"].update(run_id=self.run_id, server=server, model=str(self.model))
        result["telemetry_probe"] = proof
        validators.validate_prep_result(result)
        prep_id = result["run"]["prep_id"]
        prepared.write(
            self.run_id,
            {"server": server, "model": str(self.model), "prep_id": prep_id, "profile": None},
            proof,
            Command.public(argv, {}),
        )
        validators.validate_prepared(files.read_json(prepared.path(self.run_id, identity)))
        files.write_json(paths.prep_result(self.run_id), result)
        return identity

    def ask(self, *words: str) -> Answer:
        return admin("ready", *words)

    def reason(self, *words: str) -> str:
        """Why it does not hold; held to the contract and to be one sentence for a person."""
        answer = self.ask("--json", *words)
        assert answer.code == EXIT_PROOF_FAILED
        validators.validate_readiness(answer.document)
        assert answer.document["ready"] is False
        reason: str = answer.document["reason"]
        assert "\n" not in reason
        assert f"not ready: {reason}" in self.ask(*words).out
        return reason


@pytest.fixture
def site(live_run: str, model_folder: Path) -> Iterator[Site]:
    with PrometheusApi([[(time.time() - 1, 98.0)]]) as prometheus:
        yield Site(live_run, model_folder, prometheus)


def test_it_holds_right_after_the_proof(site: Site) -> None:
    answer = site.ask("--json")
    assert answer.code == 0
    validators.validate_readiness(answer.document)
    assert answer.document["ready"] is True and answer.document["model"] == str(site.model)
    assert site.ask().out == f"{site.run_id} ready\n"


def test_nothing_is_written(site: Site, container: Path) -> None:
    def snapshot() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in container.rglob("*")}

    before = snapshot()
    site.ask()
    (site.model / "tokenizer.json").write_text("x")
    del before[site.model / "tokenizer.json"]
    site.ask()
    after = snapshot()
    assert {path: after[path] for path in before} == before


def test_a_model_that_changed_is_not_ready(site: Site) -> None:
    (site.model / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    assert "has changed since the proof" in site.reason()


def test_a_model_that_is_gone_is_not_ready(site: Site) -> None:
    (site.model / "config.json").unlink()
    assert "has changed since the proof" in site.reason()


def test_a_variable_of_the_container_that_changed_is_not_ready(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "x" + os.environ.get("NCCL_DEBUG", ""))
    assert "has changed since the proof" in site.reason()


def test_samples_that_prometheus_lost_are_not_ready(site: Site) -> None:
    site.prometheus.series = []
    assert "lost the samples" in site.reason()


def test_a_prometheus_that_is_gone_is_not_ready(site: Site) -> None:
    site.point_at("http://127.0.0.1:9")
    assert "does not answer" in site.reason()


def test_a_failed_proof_is_not_ready_and_its_reason_told(site: Site) -> None:
    site.prove(ok=False, reason="12 of 98 prompt tokens arrived")
    assert "12 of 98 prompt tokens arrived" in site.reason()


def test_the_proof_of_another_server_is_not_this_ones(site: Site) -> None:
    identity = site.prove("--max-running-requests", "8")
    record = files.read_json(prepared.path(site.run_id, identity)) or {}
    record["telemetry_probe"]["server"] = "sha256:" + "0" * 64
    files.write_json(prepared.path(site.run_id, identity), record)
    assert "not proven" in site.reason()


def test_each_prepared_server_of_a_run_can_be_asked_about(site: Site) -> None:
    first = site.prove()
    second = site.prove("--max-running-requests", "8", ok=False, reason="no sample")
    assert site.ask("--identity", first).code == 0
    assert site.ask("--identity", prepared.short(first)).code == 0
    assert "no sample" in site.reason("--identity", second) and "no sample" in site.reason()
    assert "was prepared" in site.reason("--identity", "sha256:" + "0" * 64)
    assert "was prepared" in site.reason("--identity", "../../x")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"run": 1}'])
def test_a_result_that_cannot_be_read_is_not_ready(site: Site, content: str) -> None:
    paths.prep_result(site.run_id).write_text(content)
    assert "run the prep again" in site.reason()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_record_of_the_server_that_cannot_be_read_is_not_ready(site: Site, content: str) -> None:
    prepared.path(site.run_id, site.prove()).write_text(content)
    assert "run the prep again" in site.reason()


def test_a_result_of_a_release_without_identities_is_not_ready(site: Site) -> None:
    result = files.read_json(paths.prep_result(site.run_id)) or {}
    del result["run"]["server"]["identity"]
    files.write_json(paths.prep_result(site.run_id), result)
    assert "names no server" in site.reason()


def test_before_the_first_prep_nothing_is_ready(site: Site) -> None:
    paths.prep_result(site.run_id).unlink()
    assert "nothing was prepared" in site.reason()


def test_a_server_with_other_settings_that_runs_is_not_ready(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: dict[str, Any] = {
        "state": "running",
        "server_id": "server-1",
        "argv": ["other"],
        "env": {},
    }
    monkeypatch.setattr(benchmark_server, "read", lambda run_id: running)
    assert "runs with other settings" in site.reason()
    running |= {"argv": site.argv, "port": 9}
    assert site.ask().code == 0
    monkeypatch.setattr(
        ports, "intruder", lambda port: "a process of uid 1002" if port == 9 else None
    )
    assert "a process of uid 1002 answers" in site.reason()


def test_without_a_live_run_the_exit_code_says_so(site: Site) -> None:
    paths.POINTER.unlink()
    answer = site.ask("--json")
    assert answer.code == EXIT_NO_LIVE_RUN and "no pointer" in answer.error


def test_a_server_of_an_earlier_prep_is_started_by_its_identity(site: Site) -> None:
    first = site.prove()
    site.prove("--max-running-requests", "8")
    latest = admin("server", "start", "--dry-run", "--json").document
    earlier = admin("server", "start", "--dry-run", "--json", "--identity", first).document
    assert latest["argv"][-1] == "8" and earlier["argv"] == site.argv
    refused = admin("server", "start", "--dry-run", "--identity", "0" * 16)
    assert refused.code == EXIT_NO_LIVE_RUN and "0000 was prepared" in refused.error


def test_the_query_names_the_servers_address(site: Site) -> None:
    assert site.ask().code == 0
    query = json.dumps(ENGINE.prompt_tokens_query(site.run_id, "127.0.0.1:31999"))
    assert json.loads(query) in site.prometheus.queries[-1]
