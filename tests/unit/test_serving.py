"""`sgl-admin server`: exactly the prepared server, one at a time, ended as a whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, locks, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.base.processes import group_is_running, is_running
from sgl_admin.commands import main as cli
from sgl_admin.moe import config_files
from sgl_admin.serving import benchmark_server
from sgl_admin.sglang import ENGINE, releases
from tests.contract import validators

ROOT = Path(__file__).resolve().parents[2]
# Stands for the prepared server: it answers /health, and has a helper process in its group, as
# SGLang has.
DOUBLE = str(ROOT / "tests" / "doubles" / "chat_server.py")
# "=" is NCCL's word for this very name.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
_NODES: list[tuple[list[str], bool]] = [
    ([], False),
    (["--nnodes=2"], True),
    (["--nnodes", "2"], True),
    (["--nnodes", "1"], False),
    (["--nnodes=2", "--nnodes=1"], False),
]
Admin = Callable[..., tuple[int, str, str]]


@pytest.fixture
def port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def prepared(live_run: str, port: int) -> Iterator[list[str]]:
    """A run in which a prep left its result; returns its server's command. Whatever a test started
    is ended.
    """
    argv = [sys.executable, DOUBLE, "--port", str(port)]
    prepare(live_run, argv)
    yield argv
    benchmark_server.stop(live_run)


def prepare(run_id: str, argv: Any, env: Any = None) -> None:
    result = validators.example("prep_result")
    result["run"].update(
        run_id=run_id,
        server={"argv": argv, "env": {"PYTHONPATH": str(ROOT)} if env is None else env},
    )
    files.write_json(paths.prep_result(run_id), result)


@pytest.fixture
def admin(capsys: pytest.CaptureFixture[str]) -> Admin:
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(["server", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def gone(group: int) -> bool:
    """Whether a process group has ended, reaping what was this process's own child."""
    deadline = time.monotonic() + 20
    while group_is_running(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not group_is_running(group)


def gone_now(group: int) -> bool:
    return not group_is_running(group)


def test_it_starts_the_prepared_one_and_stops_all_of_it(
    prepared: list[str], live_run: str, port: int, admin: Admin
) -> None:
    code, out, _ = admin("start", "--json")
    started = json.loads(out)
    assert code == 0 and started["healthy"] is True and started["started"] is True
    record = started["server"]
    assert record["argv"] == prepared and record["port"] == port and record["run_id"] == live_run
    with open(f"/proc/{record['pgid']}/cmdline", "rb") as command:
        assert command.read().decode().split("\0")[:-1] == prepared
    code, out, _ = admin("stop")
    assert code == 0 and "stopped" in out
    assert gone(record["pgid"])
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", port))
    assert files.read_json(paths.server(live_run))["state"] == "stopped"  # type: ignore[index]


@pytest.mark.parametrize("asked", [{"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "ib0"}, {}])
def test_gloo_and_nccl_stay_on_loopback_on_one_host(
    prepared: list[str], live_run: str, admin: Admin, asked: dict[str, str]
) -> None:
    prepare(live_run, prepared, {"PYTHONPATH": str(ROOT), **asked})
    group = json.loads(admin("start", "--json")[1])["server"]["pgid"]
    has = Path(f"/proc/{group}/environ").read_bytes().decode().split("\0")
    assert {f"{name}={value}" for name, value in (asked or _LOOPBACK).items()} <= set(has)
    for words, several in _NODES:
        assert ENGINE.spans_hosts([*prepared, *words]) is several
        expected = {} if several else _LOOPBACK
        assert ENGINE.network_environment([*prepared, *words]) == expected


def test_it_has_the_moe_configurations_that_its_environment_names(
    live_run: str, port: int, admin: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with SGLang 0.5.17: without the folder a server of an MoE model ends while it starts; a
    prep whose stages start no server makes none.
    """
    shipped = tmp_path / "site" / "triton_3_6_0" / "E=1,N=1,device_name=NVIDIA_H200.json"
    shipped.parent.mkdir(parents=True)
    shipped.write_text("{}")
    monkeypatch.setattr(releases.Release, "built_in_moe_configs", lambda self: tmp_path / "site")
    argv = [sys.executable, DOUBLE, "--port", str(port)]
    environment = {"PYTHONPATH": str(ROOT), ENGINE.moe.variable: str(config_files.root())}
    prepare(live_run, argv, environment)
    assert admin("start")[0] == 0
    assert (config_files.configs() / shipped.relative_to(tmp_path / "site")).read_text() == "{}"
    assert admin("stop")[0] == 0

    prepare(live_run, argv, {**environment, ENGINE.moe.variable: str(tmp_path)})
    code, _out, error = admin("start")
    assert code == 7 and "has no folder configs" in error
    assert benchmark_server.read(live_run)["state"] == "stopped"  # type: ignore[index]


def test_a_second_start_takes_the_one_that_runs(prepared: list[str], admin: Admin) -> None:
    first = json.loads(admin("start", "--json")[1])
    second = json.loads(admin("start", "--json")[1])
    assert (
        second["started"] is False and second["server"]["server_id"] == first["server"]["server_id"]
    )


def test_another_server_is_not_started_beside_it(
    prepared: list[str], live_run: str, admin: Admin
) -> None:
    admin("start")
    prepare(live_run, [*prepared, "--mode", "tags"])
    code, _, error = admin("start")
    assert code == 5 and "server stop" in error and prepared[1] in error


def test_it_outlives_who_started_it(prepared: list[str], live_run: str, admin: Admin) -> None:
    child = os.fork()
    if child == 0:
        os._exit(cli.main(["server", "start", "--detach"]))
    assert os.waitpid(child, 0)[1] == 0
    code, out, _ = admin("status", "--wait", "60", "--json")
    assert code == 0 and json.loads(out)["healthy"] is True


def test_one_that_ends_while_it_starts_is_told_with_its_last_words(
    live_run: str, port: int, admin: Admin
) -> None:
    prepare(
        live_run,
        [
            sys.executable,
            "-c",
            "print('CUDA out of memory'); raise SystemExit(9)",
            "--port",
            str(port),
        ],
    )
    code, _, error = admin("start")
    assert code == 7 and "ended while starting: CUDA out of memory; free the GPU's" in error
    assert f"the log is {paths.to_host(paths.log(live_run))}" in error
    code, out, _ = admin("status", "--json")
    assert (
        code == 7
        and json.loads(out)["server"]["state"] == "ended"
        and "CUDA out of memory" in json.loads(out)["log_tail"]
    )


def test_one_that_does_not_get_healthy_is_left_to_go_on(
    prepared: list[str], live_run: str, port: int, admin: Admin
) -> None:
    prepare(live_run, [sys.executable, "-c", "import time; time.sleep(600)", "--port", str(port)])
    code, _, error = admin("start", "--timeout", "0")
    assert code == 7 and "goes on" in error and "server stop" in error
    assert json.loads(admin("status", "--json")[1])["server"]["state"] == "running"


def test_a_taken_port_names_its_holder(prepared: list[str], port: int, admin: Admin) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        code, _, error = admin("start")
    assert code == 7 and str(port) in error and f"pid {os.getpid()}" in error


def test_a_record_that_cannot_be_written_leaves_no_server(
    prepared: list[str], monkeypatch: pytest.MonkeyPatch, admin: Admin
) -> None:
    started: list[int | None] = []
    real = benchmark_server.Server.start

    def start(server: benchmark_server.Server) -> None:
        real(server)
        started.append(server.group)

    monkeypatch.setattr(benchmark_server.Server, "start", start)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "/telemetry/x")

    monkeypatch.setattr(files, "write_json", full)
    code, _, error = admin("start")
    assert code == 1 and "no space left" in error
    assert started[0] is not None and gone(started[0])


def test_a_leader_that_was_killed_leaves_no_helper(prepared: list[str], admin: Admin) -> None:
    record = json.loads(admin("start", "--json")[1])["server"]
    os.kill(record["pgid"], signal.SIGKILL)
    code, out, _ = admin("stop")
    assert code == 0 and "stopped" in out and gone(record["pgid"])


def test_a_start_after_a_crash_ends_what_is_left_of_the_one_before(
    prepared: list[str], admin: Admin
) -> None:
    first = json.loads(admin("start", "--json")[1])["server"]
    os.kill(first["pgid"], signal.SIGKILL)
    # It is dead a moment after the signal.
    while is_running(first["pgid"], first["start_ticks"]):
        time.sleep(0.01)
    code, out, error = admin("start", "--json")
    assert code == 0, error
    second = json.loads(out)["server"]
    assert (
        second["server_id"] != first["server_id"]
        and gone(first["pgid"])
        and not gone_now(second["pgid"])
    )


def test_who_has_a_server_of_its_own_is_not_disturbed(
    prepared: list[str], live_run: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_server, "_LOCK_TIMEOUT_S", 0.2)
    place = benchmark_server.claim(live_run)
    try:
        code, _, error = admin("start")
        assert code == 5 and "has the place of the server" in error
        with pytest.raises(StageFailure, match="has the place of the server") as caught:
            benchmark_server.claim(live_run)
        assert caught.value.error_type == "port_busy"
    finally:
        os.close(place)
    admin("start")
    with pytest.raises(
        StageFailure,
        match=r"server-\S+ serves at port \d+: stop it first \(sgl-admin server stop\)",
    ) as caught:
        benchmark_server.claim(live_run)
    assert caught.value.error_type == "port_busy"
    admin("stop")
    os.close(benchmark_server.claim(live_run))


def test_the_lock_of_a_server_lives_as_long_as_it(prepared: list[str], admin: Admin) -> None:
    admin("start")
    assert locks.held(benchmark_server.SERVES)
    admin("stop")
    assert not locks.held(benchmark_server.SERVES)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_exit_code_of_a_servers_status_says_whether_it_is_healthy(
    form: list[str], prepared: list[str], live_run: str, port: int, admin: Admin
) -> None:
    assert admin("status", *form, "--wait", "0.1")[0] == 7
    assert admin("status", *form)[0] == 7, "none was started"
    admin("start")
    assert admin("status", *form, "--wait", "10")[0] == 0
    assert admin("status", *form)[0] == 0
    admin("stop")
    assert admin("status", *form)[0] == 7, "it was stopped"
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", "--port", str(port)]
    prepare(live_run, sleeper)
    admin("start", "--detach")
    assert admin("status", *form)[0] == 7, "it starts"


@pytest.mark.parametrize(("word", "name"), [("a\0b", "A"), ("\ud800", "A"), ("x", "A=B")])
def test_a_command_that_no_process_can_have_is_refused_in_words(
    live_run: str, port: int, word: str, name: str, admin: Admin
) -> None:
    prepare(live_run, [sys.executable, "--port", str(port), word], {name: "1"})
    code, _, error = admin("start")
    assert code == 7 and "cannot be started" in error


def test_without_a_prep_there_is_nothing_to_start(live_run: str, admin: Admin) -> None:
    code, _, error = admin("start")
    assert code == 4 and "prep.yml" in error
    assert admin("stop")[:2] == (0, "no server was started in this run\n")
    assert admin("status")[:2] == (7, "no server was started in this run\n")


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ("python", {}),
        ([], {}),
        (["x"], {}),
        (["x", "--port"], {}),
        (["x", "--port", "0"], {}),
        (["x", "--port", "y"], {}),
        ([1], {}),
        (["x"], []),
    ],
)
def test_a_prep_result_that_names_no_server_is_refused_in_words(
    live_run: str, argv: Any, env: Any, admin: Admin
) -> None:
    prepare(live_run, argv, env)
    code, _, error = admin("start")
    assert code == 4 and error.startswith("sgl-admin: ") and "prepare it first" in error


def test_a_dry_run_prints_the_command_and_starts_nothing(
    prepared: list[str], live_run: str, admin: Admin
) -> None:
    code, out, _ = admin("start", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["argv"] == prepared
    assert not paths.server(live_run).exists()


def test_what_a_terminal_would_take_for_a_command_is_not_printed(
    live_run: str, admin: Admin
) -> None:
    prepare(live_run, ["x", "--port", "1", "a\x1b[31mb\n"], {"A": "\ud800"})
    assert admin("start", "--dry-run")[:2] == (0, "'A=?' x --port 1 'a?[31mb?'\n")
