"""`sgl-admin caches ensure --dry-run` writes nothing, sets no environment variable and opens no
connection, whatever it finds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths, versions
from sgl_admin.facts import devices
from sgl_admin.moe import config_files
from sgl_admin.records import prepared
from sgl_admin.stages import moe_tune
from tests.unit.sharing import CPU, VERSIONS, Host, admin, on_a_gpu

MOE: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "hidden_size": 2048,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
}
Snapshot = dict[str, tuple[int, int, bytes | str | None]]


@pytest.fixture
def host(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(devices, "find", lambda visible: CPU)
    monkeypatch.setattr(versions, "installed", VERSIONS.get)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    return Host(model_folder, "--probe", "auto", f"--server-env={devices.VISIBLE}=0")


def snapshot(folder: Path) -> Snapshot:
    """Mode, modification time and content of everything below a folder, and of the folder."""
    found: Snapshot = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        content: bytes | str | None = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def dry_run(host: Host, container: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The plan; holds the command to change nothing."""

    def connect(*_: object) -> None:
        raise AssertionError("a dry run opens a connection")

    tree, environment = snapshot(container), dict(os.environ)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect)
        answer = admin("caches", "ensure", *host.words, "--dry-run", "--json")
    assert answer.code == 0, answer.error
    assert snapshot(container) == tree
    assert dict(os.environ) == environment
    plan: dict[str, Any] = json.loads(answer.out.rpartition("\nRESULT_STATUS")[0])
    return plan


def prove(host: Host, live_run: str) -> None:
    """Leave the record of a prep whose proof was made."""
    plan = host.prep()
    server = {
        "identity": plan.server,
        "argv": plan.server_argv,
        "env": plan.server_environment,
    }
    proof = {"ok": True, "server": plan.server}
    prepared.write(
        live_run,
        {"server": server, "model": plan.request.model, "prep_id": "prep-1", "profile": None},
        proof,
        plan.command,
    )


def test_of_a_bare_tree(host: Host, container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in list(paths.PROFILES.iterdir()):
        shutil.rmtree(folder)
    plan = dry_run(host, container, monkeypatch)
    assert plan["stages"]["inductor"]["status"] == "would_run"
    assert plan["telemetry_probe"] == "would_run" and plan["warnings"] == []


def test_of_a_standing_proof(
    host: Host, container: Path, live_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is believed: whether Prometheus still answers, the prep itself asks."""
    host.finish()
    prove(host, live_run)
    plan = dry_run(host, container, monkeypatch)
    assert plan["telemetry_probe"] == "stands" and plan["would_change"] is False


@pytest.mark.parametrize("lock_file", [True, False])
def test_of_a_dead_owners_marker(
    host: Host, container: Path, monkeypatch: pytest.MonkeyPatch, lock_file: bool
) -> None:
    host.finish()
    files.write_json(paths.IN_PROGRESS / "inductor.json", {"stage": "inductor", "owner_pid": 1})
    if lock_file:
        lock = locks.try_lock("inductor")
        assert lock is not None
        os.close(lock)
    plan = dry_run(host, container, monkeypatch)
    assert plan["stages"]["inductor"]["status"] == "would_run"
    assert any("killed before it finished" in warning for warning in plan["warnings"])
    assert "killed before it finished" in plan["stages"]["inductor"]["reason"]


@pytest.mark.parametrize("mode", ["ensure", "rebuild", "skip"])
@pytest.mark.parametrize("state", ["cold", "warm", "unreadable", "killed"])
def test_each_status_has_one_reason_that_agrees_with_it(
    host: Host, container: Path, monkeypatch: pytest.MonkeyPatch, mode: str, state: str
) -> None:
    if state != "cold":
        host.finish()
    if state == "unreadable":
        host.record().path.write_text("{")
    if state == "killed":
        marker = {"stage": "inductor", "owner_pid": 1}
        files.write_json(paths.IN_PROGRESS / "inductor.json", marker)
    monkeypatch.setattr(host, "words", [*host.words, "--inductor", mode])
    stage = dry_run(host, container, monkeypatch)["stages"]["inductor"]
    warm = {
        "ensure": ("noop", "valid_signature"),
        "rebuild": ("would_run", "rebuild was requested"),
    }
    states = {
        "warm": warm.get(mode),
        "killed": ("would_run", "an earlier inductor was killed before it finished"),
    }
    cold = ("would_run", "no finished work with this signature")
    expected = ("skipped", "requested") if mode == "skip" else states.get(state, cold)
    assert (stage["status"], stage["reason"]) == expected


def test_the_reason_of_a_tuning_names_the_sizes_that_are_missing(
    host: Host, container: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    (model_folder / "config.json").write_text(json.dumps(MOE))
    monkeypatch.setattr(host, "words", [*host.words, "--moe", "ensure"])
    stage = dry_run(host, container, monkeypatch)["stages"]["moe_tune"]
    sizes = ", ".join(map(str, stage["missing_batch_sizes"]))
    assert stage["status"] == "would_run" and sizes
    assert stage["reason"] == f"no configuration for batch sizes {sizes}"


def signature_record(host: Host, run_id: str) -> Path:
    return host.record().path


def prepared_server(host: Host, run_id: str) -> Path:
    return prepared.path(run_id, host.prep().server)


@pytest.mark.parametrize("record", [signature_record, prepared_server])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_of_a_corrupt_record_that_planning_reads(
    host: Host,
    container: Path,
    live_run: str,
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[Host, str], Path],
    content: str,
) -> None:
    host.finish()
    prove(host, live_run)
    path = record(host, live_run)
    path.write_text(content)
    plan = dry_run(host, container, monkeypatch)
    assert plan["would_change"] is True
    [warning] = plan["warnings"]
    assert str(path) in warning and "the prep will set it aside" in warning


@pytest.mark.parametrize("name", ["stage", "job", "marker"])
def test_of_another_corrupt_record(
    host: Host, container: Path, live_run: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    host.finish()
    places = {
        "stage": paths.stage_file(live_run, "inductor"),
        "job": paths.job(live_run),
        "marker": paths.IN_PROGRESS / "inductor.json",
    }
    places[name].parent.mkdir(parents=True, exist_ok=True)
    places[name].write_text("{")
    plan = dry_run(host, container, monkeypatch)
    assert plan["stages"]["inductor"]["status"] == ("would_run" if name == "marker" else "noop")


def test_of_corrupt_records_of_a_tuning(
    host: Host, container: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    (model_folder / "config.json").write_text(json.dumps(MOE))
    context = host.prep().context
    shape = moe_tune._expected(context)
    path = moe_tune._path(context, shape)
    tuned = config_files.root() / config_files.TUNED
    for corrupt in (
        path,
        config_files.tuned_record(path),
        moe_tune._proof(context, shape),
        tuned / f"lookup-{moe_tune._settings(context)}.json",
        config_files.root() / ".built_in.json",
        host.record("moe_tune").path,
    ):
        corrupt.parent.mkdir(parents=True, exist_ok=True)
        corrupt.write_text("{")
    plan = dry_run(host, container, monkeypatch)
    assert plan["stages"]["moe_tune"]["status"] == "would_run"
    assert [str(host.record("moe_tune").path) in warning for warning in plan["warnings"]] == [True]
