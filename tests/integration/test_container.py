"""The container from its first start to its last: what users and SLICE-Bench rely on, against real
parts.
"""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest

from sgl_admin.contract import stages
from slice_bench.commands import status_line
from tests.contract import validators
from tests.integration.installation import (
    Play,
    Site,
    docker,
    lock_is_free,
    port_is_free,
    read,
    tree,
    wait_for,
)

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of another owner"
)

# What the local flavour has to do on a host without a GPU.
WARM = {**dict.fromkeys(stages.NAMES, "skipped"), "inductor": "noop"}


def statuses(result: dict) -> dict[str, str]:
    return {name: stage["status"] for name, stage in result["stages"].items()}


def stop_prep(site: Site) -> dict:
    """End the prep that runs, in order; returns its last record."""
    job = site.job()
    if job["state"] == "running":
        site.kill(job["pid"], signal.SIGTERM)
    return await_end(site)


def await_end(site: Site) -> dict:
    """The record of the prep, once it has ended."""
    return wait_for(
        lambda: job if (job := site.job())["state"] != "running" else None, "the prep to end"
    )


# --- from nothing to METRICS_READY ----------------------------------------------------------------


def test_first_prep_reaches_metrics_ready(site: Site, first: Play) -> None:
    assert first.changed > 0
    result = site.result()
    assert statuses(result) == {**WARM, "inductor": "ok"}
    assert result["status"] == "ok"
    proof = result["telemetry_probe"]
    assert proof["ok"] is True and proof["tokens_seen"] >= proof["tokens_expected"] > 0
    assert site.run_id in proof["prometheus_query"]
    assert site.manifest_module("--check")["metrics_ready"] is True
    assert '"METRICS_READY": true' in first.output or "METRICS_READY: true" in first.output


def test_every_record_keeps_the_contract(prepared: Site) -> None:
    manifest = prepared.manifest()
    validators.validate_manifest(manifest)
    for name in stages.NAMES:
        validators.validate_stage(prepared.stage(name))
    validators.validate_prep_result(prepared.result())
    validators.validate_job(prepared.job())
    pointer = validators.parse_and_validate_pointer(prepared.pointer.read_text())
    assert pointer["CONTAINER_RUN_META_JSON"] == f"/telemetry/container_runs/{prepared.run_id}.json"
    assert (
        pointer["CONTAINER_RUN_META_JSON_HOST"]
        == f"{prepared.telemetry}/container_runs/{prepared.run_id}.json"
    )
    assert prepared.pointer.stat().st_mode & 0o7777 == 0o600
    assert (
        manifest["paths"]["container"]["prep_result"]
        == f"/telemetry/container_runs/{prepared.run_id}/prep_result.json"
    )
    assert read(Path(manifest["paths"]["host"]["prep_result"]))["run"]["run_id"] == prepared.run_id
    found = prepared.inspect()
    assert found is not None
    assert (manifest["container_id"], manifest["image_id"]) == (found["Id"], found["Image"])
    assert manifest["container_name"] == prepared.container
    assert {
        name: surface["status"] for name, surface in manifest["telemetry_surfaces"].items()
    } == {
        "sglang_metrics": "expected",
        "node_metrics": "running",
        "tracing": "unavailable",
        "dcgm_metrics": "unavailable",
    }


def test_everything_belongs_to_the_service_user(prepared: Site) -> None:
    below = {
        **tree(prepared.telemetry),
        **tree(prepared.profiles),
        **tree(prepared.root / "models"),
    }
    assert len(below) > 50
    assert {
        path: (uid, gid) for path, (_, uid, gid) in below.items() if (uid, gid) != prepared.owner
    } == {}
    written = [
        prepared.pointed(),
        prepared.run_dir(),
        prepared.run_dir() / "prep_result.json",
        prepared.run_dir() / "stages" / "inductor.json",
    ]
    # The group reads what is written, and no other user gets to it.
    assert [str(path) for path in written if path.stat().st_mode & 0o067 & ~0o010 != 0o040] == []


def test_caches_hold_what_the_stage_vouches_for(prepared: Site) -> None:
    files = prepared.stage("inductor")["artifacts"]["files"]
    assert files["count"] > 0 and files["bytes"] > 0
    done = prepared.admin("caches", "inspect", "--json")
    found = json.loads(done.stdout)
    assert found["torchinductor"]["valid"] is True and found["torchinductor"]["file_count"] > 0
    assert found["torchinductor"]["host_path"] == str(prepared.profiles / "torchinductor")


def test_second_prep_changes_nothing(prepared: Site) -> None:
    before, records = (
        prepared.state(),
        [
            prepared.pointed(),
            prepared.run_dir() / "stages" / "inductor.json",
        ],
    )
    times = [path.stat().st_mtime_ns for path in records[:1]]
    identity = (prepared.inspect() or {})["Id"]
    play = prepared.must_play("prep")
    assert play.changed == 0, play.output
    after = prepared.state()
    assert ((prepared.inspect() or {})["Id"], after["StartedAt"], after["Pid"]) == (
        identity,
        before["StartedAt"],
        before["Pid"],
    )
    assert statuses(prepared.result()) == WARM
    assert prepared.result()["telemetry_probe"]["ok"] is True
    assert [path.stat().st_mtime_ns for path in records[:1]] == times, (
        "the manifest was written again"
    )
    seen = prepared.must_play("look")
    assert seen.changed == 0 and prepared.run_id in seen.output


def test_check_mode_on_a_converged_host_says_unchanged(prepared: Site) -> None:
    job = prepared.job()
    play = prepared.must_play("prep", "--check", "--diff")
    assert play.changed == 0, play.output
    assert prepared.job() == job


# --- docker exec ----------------------------------------------------------------------------------


def test_the_documented_exec_line_works_without_a_user(prepared: Site) -> None:
    done = prepared.docker_exec(
        "sgl-admin",
        "caches",
        "ensure",
        "--json",
        "--model",
        prepared.model,
        "--tp",
        "1",
        "--flashinfer",
        "ensure",
        "--inductor",
        "ensure",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"RESULT_JSON /telemetry/container_runs/{prepared.run_id}/prep_result.json",
        status_line("ok", WARM),
    ]
    document, _ = json.JSONDecoder().raw_decode(done.stdout)
    validators.validate_prep_result(document)
    assert (
        document["stages"]["deep_gemm"]["reason"] == "requested"
        and document["stages"]["flashinfer"]["reason"] == "no_cuda_device"
    )


def test_a_bare_exec_is_the_service_user_with_the_caches_set(prepared: Site) -> None:
    assert prepared.docker_exec("id", "-u").stdout.strip() == str(prepared.owner[0])
    assert prepared.docker_exec("id", "-g").stdout.strip() == str(prepared.owner[1])
    assert prepared.docker_exec("id", "-un").stdout.strip() == "devuser"
    environment = dict(
        line.partition("=")[::2] for line in prepared.docker_exec("env").stdout.splitlines()
    )
    assert (
        environment["TRITON_CACHE_DIR"] == "/profiles/triton"
        and environment["TORCHINDUCTOR_CACHE_DIR"] == "/profiles/torchinductor"
    )
    assert environment["HF_HOME"] == "/home/devuser/.cache/huggingface"


def test_nothing_to_do_starts_no_server_and_imports_no_torch(prepared: Site) -> None:
    log = len(prepared.log())
    done = prepared.admin(
        "caches",
        "ensure",
        "--model",
        prepared.model,
        options=("--env", "PYTHONPROFILEIMPORTTIME=1"),
    )
    assert done.returncode == 0, done.stderr
    imported = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "sgl_admin.prep.execute" in imported, "the import trace is empty"
    assert {name.partition(".")[0] for name in imported} & {
        "torch",
        "sglang",
        "triton",
        "transformers",
        "numpy",
    } == set()
    assert prepared.job()["server"] is None and prepared.servers() == []
    assert "server_args" not in prepared.log()[log:]
    assert prepared.result()["status"] == "ok"


def test_usage_and_unknown_models_are_refused(prepared: Site) -> None:
    before = prepared.job()
    done = prepared.admin("caches", "ensure", "--model", "/models/no/such")
    assert done.returncode == 2 and "/models/no/such" in done.stderr
    done = prepared.ensure("--tp", "2")
    assert done.returncode == 2 and "tp 2" in done.stderr
    assert prepared.job() == before


# --- the probe ------------------------------------------------------------------------------------


def scraped_jobs(site: Site) -> set[str]:
    return {
        target["labels"]["job"]
        for target in site.prometheus("/api/v1/targets")["data"]["activeTargets"]
    }


def reload_prometheus(site: Site, config: str, jobs: set[str]) -> None:
    (site.run_dir() / "prometheus.yml").write_text(config)
    script = (
        "import glob, os, signal\nfor name in glob.glob('/proc/[0-9]*/comm'):\n    if"
        " open(name).read().strip() == 'prometheus': os.kill(int(name.split('/')[2]),"
        " signal.SIGHUP)\n"
    )
    assert site.docker_exec("/opt/sglang/bin/python", "-c", script).returncode == 0
    wait_for(lambda: scraped_jobs(site) == jobs, f"Prometheus to scrape {sorted(jobs)}")


@pytest.mark.long
def test_no_proof_where_prometheus_does_not_scrape_the_server(prepared: Site) -> None:
    config = (prepared.run_dir() / "prometheus.yml").read_text()
    kept, separator, dropped = config.partition("  - job_name: sglang")
    assert separator and "job_name" not in dropped
    jobs = scraped_jobs(prepared)
    assert "sglang" in jobs
    try:
        reload_prometheus(prepared, kept, jobs - {"sglang"})
        done = prepared.ensure("--probe", "always", "--probe-timeout", "5")
        result = prepared.result()
    finally:
        reload_prometheus(prepared, config, jobs)
    assert done.returncode == 6, done.stdout + done.stderr
    proof = result["telemetry_probe"]
    assert proof["ok"] is False and proof["sample_count"] == 0 and proof["tokens_expected"] > 0
    assert "scraped" in proof["reason"]
    assert result["status"] == "ok" and statuses(result) == WARM
    assert prepared.job()["state"] == "failed" and prepared.job()["exit_code"] == 6
    validators.validate_prep_result(result)
    look = prepared.manifest_module("--check")
    assert look["live"] is True and look["metrics_ready"] is False
    assert prepared.servers() == [], "the server outlived the prep"
    # The next prep makes the proof, and nothing else.
    play = prepared.must_play("prep")
    assert play.changed == 1, play.output
    assert (
        statuses(prepared.result()) == WARM and prepared.result()["telemetry_probe"]["ok"] is True
    )


# --- stops and starts -----------------------------------------------------------------------------


def test_stop_during_a_prep_ends_it_in_order(prepared: Site) -> None:
    run_id, proof = prepared.run_id, prepared.result()["telemetry_probe"]
    prepared.begin("--inductor", "rebuild")
    assert prepared.await_server()["state"] == "running"
    docker("stop", prepared.container)
    assert prepared.state()["ExitCode"] != 137, "it had to be killed"
    job, stage, result = (
        prepared.job(run_id),
        prepared.stage("inductor", run_id),
        prepared.result(run_id),
    )
    assert job["state"] == "interrupted" and job["server"] is None
    assert (stage["status"], stage["error_type"], stage["status_code"]) == (
        "error",
        "interrupted",
        13,
    )
    assert result["status"] == "error" and result["telemetry_probe"] == proof, (
        "the run's proof stands, whatever becomes of a later prep"
    )
    validators.validate_job(job)
    validators.validate_stage(stage)
    validators.validate_prep_result(result)
    assert list((prepared.profiles / ".in_progress").iterdir()) == []
    assert not prepared.pointer.exists()
    assert [path.name for path in prepared.run_dir(run_id).rglob("*.tmp")] == []


def test_stop_removes_the_pointer_and_frees_the_ports(live: Site) -> None:
    run_id = live.run_id
    docker("stop", live.container)
    state = live.state()
    assert state["Status"] == "exited" and state["ExitCode"] != 137 and not state["OOMKilled"], (
        "it had to be killed"
    )
    assert not live.pointer.exists()
    assert [port for port in live.ports.values() if not port_is_free(port)] == []
    assert f"{run_id} is ended" in live.log(run_id)

    assert live.must_play("stop").changed == 1
    assert live.inspect() is None
    again = live.must_play("stop")
    assert again.changed == 0, again.output


@pytest.mark.long
def test_stop_playbook_ends_a_live_run(prepared: Site) -> None:
    check = prepared.must_play("stop", "--check")
    assert check.changed > 0 and prepared.state()["Running"]
    prepared.must_play("stop")
    assert prepared.inspect() is None and not prepared.pointer.exists()


@pytest.mark.long
def test_pointer_comes_soon_after_the_start(prepared: Site) -> None:
    """Our own share of a start is small. The best of five: only a defect, and no busy machine, is
    slow each time.
    """
    seconds = []
    for _ in range(5):
        docker("restart", prepared.container)
        wait_for(
            lambda: prepared.pointer.exists() and prepared.manifest_module("--check")["live"],
            "the restarted run",
        )
        started = datetime.fromisoformat(
            prepared.state()["StartedAt"][:26].rstrip("Z") + "+00:00"
        ).timestamp()
        seconds.append(prepared.pointer.stat().st_mtime - started)
        if seconds[-1] < 2.0:
            break
    print(f"container start to pointer: {', '.join(f'{value:.2f}' for value in seconds)} s")
    assert min(seconds) < 2.0


# --- crashes --------------------------------------------------------------------------------------


def test_killed_container_leaves_a_pointer_that_is_told_apart(live: Site) -> None:
    run_id = live.run_id
    refused = live.manifest_module(state="absent")
    assert refused["failed"] is True and run_id in refused["msg"] and live.pointer.exists()
    docker("kill", live.container)
    assert live.pointer.exists()
    look = live.manifest_module("--check")
    assert (look["live"], look["run_id"]) == (False, run_id) and "exited" in look["reason"]
    assert live.manifest_module(state="live", timeout=1)["failed"] is True
    assert (
        live.manifest_module("--check", state="absent")["changed"] is True and live.pointer.exists()
    )
    assert live.manifest_module(state="absent")["changed"] is True
    assert not live.pointer.exists()
    assert live.manifest_module(state="absent")["changed"] is False


@needs_root
@pytest.mark.long
def test_crash_of_the_first_process_begins_a_new_run(prepared: Site) -> None:
    run_id = prepared.run_id
    os.kill(prepared.state()["Pid"], signal.SIGKILL)
    wait_for(lambda: prepared.run_id != run_id, "the restarted container's run")
    look = prepared.manifest_module()
    assert look["live"] is True and look["run_id"] == prepared.run_id
    # A proof is of its own run: the new one has none yet.
    assert look["metrics_ready"] is False and look["prep_result"] is None


@pytest.mark.long
def test_killed_prep_leaves_no_server_and_the_next_one_finishes(prepared: Site) -> None:
    job = prepared.begin("--inductor", "rebuild")
    job = prepared.await_server()
    assert job["state"] == "running", job
    assert (prepared.profiles / ".in_progress" / "inductor.json").exists()
    wait_for(
        lambda: any("sglang::scheduler" in word for line in prepared.servers() for word in line),
        "the server's children",
    )
    prepared.kill(job["pid"], signal.SIGKILL)
    wait_for(
        lambda: lock_is_free(prepared.profiles / ".locks" / "prep.lock"), "the dead owner's lock"
    )
    inspected = json.loads(prepared.admin("caches", "inspect", "--json").stdout)
    assert (
        inspected["torchinductor"]["partial"] is True
        and inspected["torchinductor"]["reason"] == "in_progress_or_aborted"
    )
    status = json.loads(prepared.admin("status", "--json").stdout)
    assert status["job"]["state"] == "interrupted" and status["job"]["server"] is None
    assert prepared.servers() == [], "what the killed prep left runs on"
    done = prepared.ensure()
    assert done.returncode == 0, done.stdout + done.stderr
    result = prepared.result()
    assert statuses(result)["inductor"] == "ok" and result["telemetry_probe"]["ok"] is True
    assert any("killed before it finished" in warning for warning in result["warnings"]), result[
        "warnings"
    ]
    assert not (prepared.profiles / ".in_progress" / "inductor.json").exists()


def test_same_request_attaches_and_another_is_refused(live: Site) -> None:
    arguments = ("--inductor", "rebuild", "--probe", "never")
    job = live.begin(*arguments)
    try:
        attached = live.begin(*arguments)
        assert attached["prep_id"] == job["prep_id"] and attached["pid"] == job["pid"]
        other = live.ensure("--inductor", "ensure")
        assert other.returncode == 5
        assert (
            str(job["pid"]) in other.stderr
            and job["prep_id"] in other.stderr
            and "--inductor=rebuild" in other.stderr
        )
        assert live.job()["prep_id"] == job["prep_id"], "the refused prep wrote a record"
    finally:
        ended = stop_prep(live)
    assert ended["state"] == "interrupted"
    assert live.servers() == []


def test_recreated_container_takes_the_caches_and_proves_anew(live: Site) -> None:
    old, run_id = live.pointed(), live.run_id
    docker("rm", "--force", live.container)
    assert live.pointed() == old, "a killed container cannot take its pointer back"
    play = live.must_play("prep")
    assert play.changed > 0
    assert live.run_id != run_id
    result = live.result()
    assert statuses(result) == WARM
    proof = result["telemetry_probe"]
    assert (
        proof["ok"] is True
        and live.run_id in proof["prometheus_query"]
        and proof["prep_id"] == result["run"]["prep_id"]
    )
    # The earlier run keeps its own records.
    assert (
        read(old)["container_run_id"] == run_id and live.result(run_id)["run"]["run_id"] == run_id
    )


# --- check mode on a bare host --------------------------------------------------------------------


def test_check_mode_on_a_bare_host(bare: Site) -> None:
    play = bare.must_play("prep", "--check", "--diff")
    assert play.changed > 0
    assert f"Container {bare.container} would be created" in play.text
    assert not bare.root.exists() and bare.inspect() is None


def test_check_mode_without_docker_says_what_a_run_would_do(bare: Site) -> None:
    without = {"DOCKER_HOST": f"unix://{bare.root.parent}/no-docker.sock"}
    play = bare.play("prep", "--check", environment=without)
    assert play.code == 0, play.output
    assert (
        play.changed > 0
        and "would stop here" in play.text
        and "systemctl start docker" in play.text
    )
    real = bare.play("prep", environment=without)
    assert real.code != 0 and "systemctl start docker" in real.text
    assert not bare.root.exists(), "something was changed before the refusal"


def test_prune_and_uninstall_say_first_what_would_go(bare: Site) -> None:
    """In check mode alone: what they remove of this machine belongs to other tests too."""
    (bare.profiles / "triton").mkdir(parents=True)
    pruned = bare.must_play("prune", "--check")
    assert "would free" in pruned.output
    everything = {"sgl_uninstall_caches": True, "sgl_uninstall_models": True}
    removed = bare.must_play("uninstall", "--check", variables=everything)
    assert "would free" in removed.output
    assert (bare.profiles / "triton").is_dir()
