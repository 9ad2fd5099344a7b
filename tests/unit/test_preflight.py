"""The look at a host: what it finds, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import platform
import pwd
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _docker_health as docker_health,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _file_systems as file_systems,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_access as gpu_access
from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_health as gpu_health
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _preflight as preflight
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_staging import survey
from ansible_collections.slice_bench.sglang.plugins.module_utils._preflight import (
    Options,
    PreflightError,
    look,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._safe_tree import acting_as

from tests.contract.validators import validate_system
from tests.doubles import docker_words
from tests.doubles.docker_daemon import INFO
from tests.doubles.docker_words import absent
from tests.doubles.model_folder import make_model
from tests.doubles.nvidia_smi import FAILURES, Card, NvidiaSmi

Answer = tuple[int, str, str]
ROOTS = ("root", "telemetry", "profiles", "models", "huggingface")


# The container, and what a killed replacement of it may have left, in one call.
INSPECTED = "docker container inspect sglang-dev sglang-dev.next sglang-dev.replaced"


class Docker:
    """Stands for the programs of a host: docker and nvidia-smi, answering by the words of the
    command line.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.info: dict[str, Any] = {**INFO, "ServerVersion": "28.2.2"}
        self.ran: list[str] = []

    def __call__(self, command: list[str]) -> Answer:
        line = " ".join(command)
        self.ran.append(" ".join([os.path.basename(command[0]), *command[1:]]))
        for words, answer in self.answers.items():
            if words in line:
                return answer
        if "docker info" in line:
            return 0, json.dumps(self.info), ""
        return absent(command)


MOUNTED = [mount.folder for mount in places.MOUNTS if mount.target == f"/{mount.folder}"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "nvidia-smi"):
        (folder / name).write_text("#!/bin/false\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("SUDO_USER", raising=False)
    # What this machine lies on, and who runs the tests, is not the question.
    monkeypatch.setattr(file_systems, "mounts", lambda: [])
    monkeypatch.setattr(preflight, "_look_at_root", lambda *_: None)
    monkeypatch.setattr(docker_health, "_APPARMOR", str(tmp_path / "none"))
    return Docker()


def options(root: Path, **given: Any) -> Options:
    fields: dict[str, Any] = {
        "ready_for": "start",
        "user": None,
        "container": "sglang-dev",
        "image": "sglang-dev:local",
        "roots": {**dict.fromkeys(ROOTS), "root": str(root)},
        "ownership_ignore": False,
        "owner_uid": None,
        "owner_gid": None,
        "pointer_uid": None,
        "pointer_gid": None,
        "model": None,
        "model_source": "present",
        "model_from": None,
        "model_revision": "main",
        "model_endpoint": None,
        "model_verify": "quick",
        "tp": 1,
        "bind_address": "127.0.0.1",
        "ports": {},
        "space_gb": {},
    }
    return Options(**{**fields, **given})


def container(
    running: bool,
    environment: tuple[str, ...] = (),
    name: str = "sglang-dev",
    tree: Path | None = None,
) -> Answer:
    config = {"Labels": {}, "Env": list(environment)}
    state = {
        "Running": running,
        "Status": "running" if running else "exited",
        "StartedAt": "2026-11-23T09:15:00Z",
        "ExitCode": 0,
        "Pid": 7,
    }
    mounts = [{"Destination": f"/{part}", "Source": f"{tree}/{part}"} for part in MOUNTED if tree]
    return (
        0,
        json.dumps(
            [
                {
                    "Id": "c" * 64,
                    "Name": f"/{name}",
                    "Image": "sha256:1",
                    "Config": config,
                    "State": state,
                    "Mounts": mounts,
                }
            ]
        ),
        "",
    )


def test_a_bare_host_lacks_nothing(host: Docker, tmp_path: Path) -> None:
    found = look(options(tmp_path / "tree"), host)
    assert (found.problems, found.lacking, found.warnings) == ([], [], [])
    assert (
        found.facts["tree"]["paths"]["profiles"] == str(tmp_path / "tree" / "profiles")
        and found.facts["tree"]["incomplete"] is True
    )
    assert found.facts["docker"] == {"available": True, "version": "28.2.2", "problem": None}
    assert (found.facts["container"], found.facts["image"], found.facts["model"]) == (
        None,
        None,
        None,
    )
    assert found.facts["run"]["live"] is False and "no pointer" in found.facts["run"]["reason"]
    assert not (tmp_path / "tree").exists()


def test_the_tree_is_in_the_users_home(host: Docker, tmp_path: Path) -> None:
    roots = {**dict.fromkeys(ROOTS), "models": "/srv/models"}
    paths = look(options(tmp_path, ready_for="nothing", roots=roots), host).facts["tree"]["paths"]
    home = pwd.getpwuid(os.geteuid()).pw_dir
    assert (
        paths["telemetry"] == f"{home}/sglang-observability/telemetry"
        and paths["models"] == "/srv/models"
    )


def test_an_unknown_user_is_refused(host: Docker, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="no user nobody-here on this host: create it"):
        look(options(tmp_path, user="nobody-here"), host)


def test_who_called_sudo_is_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "daemon")
    assert preflight.service_user(None)["name"] == "daemon"


def test_what_a_bare_host_lacks_is_no_problem_of_its_own(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = look(options(tmp_path / "tree"), host)
    assert found.problems == [] and len(found.lacking) == 1
    assert "Docker is not installed" in found.lacking[0]


def test_all_problems_are_found(host: Docker, tmp_path: Path) -> None:
    (tmp_path / "tree").write_text("")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        found = look(
            options(
                tmp_path / "tree",
                ready_for="prep",
                ports={"sglang": holder.getsockname()[1]},
                space_gb={"docker": 1e9},
            ),
            host,
        )
    words = ("is a file", "set sgl_model", "sgl_sglang_port", "GB free")
    assert [word for word in words if not any(word in problem for problem in found.problems)] == []
    assert len(found.problems) == len(words)


@pytest.mark.parametrize("name", ["sglang-dev.next", "sglang-dev.replaced"])
def test_what_a_killed_replacement_left_is_seen_in_the_same_call(
    host: Docker, tmp_path: Path, name: str
) -> None:
    host.answers["container inspect"] = container(running=False, name=name)
    facts = look(options(tmp_path / "tree"), host).facts
    assert (facts["container"], facts["container_leftovers"]) == (None, True)


def test_a_running_container_holds_its_ports_itself(host: Docker, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        wanted = options(tmp_path / "tree", ports={"prometheus": holder.getsockname()[1]})
        host.answers["container inspect"] = container(running=True)
        assert look(wanted, host).problems == []
        host.answers["container inspect"] = container(running=False)
        assert len(look(wanted, host).problems) == 1


def test_a_new_port_of_a_running_container_must_be_free(host: Docker, tmp_path: Path) -> None:
    """The container would be replaced by one that cannot listen there."""
    with socket.socket() as foreign, socket.socket() as own:
        for holder in (foreign, own):
            holder.bind(("127.0.0.1", 0))
            holder.listen()
        taken, node_exporter = foreign.getsockname()[1], own.getsockname()[1]
        host.answers["container inspect"] = container(
            True, ("SGL_BIND_ADDRESS=127.0.0.1", f"SGL_NODE_EXPORTER_PORT={node_exporter}")
        )
        # What its own node_exporter holds is given up with the container.
        mine = {"prometheus": node_exporter, "sglang": 1 + node_exporter}
        assert look(options(tmp_path / "tree", ports=mine), host).problems == []
        [problem] = look(options(tmp_path / "tree", ports={"prometheus": taken}), host).problems
        assert f"port {taken} on 127.0.0.1" in problem and "sgl_prometheus_port" in problem


def test_a_port_for_root_is_refused(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "ip_unprivileged_port_start"
    setting.write_text("1024\n")
    monkeypatch.setattr(preflight.ports, "_UNPRIVILEGED", str(setting))
    wanted = options(tmp_path / "tree", ports={"prometheus": 443})
    [problem] = look(wanted, host).problems
    assert "port 443" in problem and "sgl_prometheus_port" in problem and "1024" in problem
    setting.write_text("0\n")
    assert look(wanted, host).problems == []


@pytest.mark.parametrize("address", ["10.99.99.99", "2001:db8::7", "no.such.invalid"])
def test_an_address_of_another_host_is_refused(host: Docker, tmp_path: Path, address: str) -> None:
    [problem] = look(options(tmp_path / "tree", bind_address=address), host).problems
    assert f"sgl_bind_address is {address}" in problem and len(problem) < 400
    assert look(options(tmp_path, ready_for="stop", bind_address=address), host).problems == []


def test_a_colon_in_the_tree_is_refused(host: Docker, tmp_path: Path) -> None:
    for roots in (
        {"root": f"{tmp_path}/a:b"},
        {"root": f"{tmp_path}/a", "models": f"{tmp_path}/m:n"},
    ):
        wanted = options(tmp_path, ready_for="tree", roots={**dict.fromkeys(ROOTS), **roots})
        [problem] = look(wanted, host).problems
        assert "with a colon" in problem and len(problem) < 400
    assert list(tmp_path.glob("a*")) == []


def processes(proc: Path, *uids: int) -> str:
    """A folder like /proc: this process, and above it one for each real uid."""
    pids = [os.getpid(), *range(2, 1 + len(uids))]
    for pid, above, uid in zip(pids, [*pids[1:], 0], uids, strict=True):
        (proc / str(pid)).mkdir(parents=True)
        text = f"Name:\tx\nPPid:\t{above}\nUid:\t{uid}\t0\t0\t0\n"
        (proc / str(pid) / "status").write_text(text)
    return str(proc)


@pytest.mark.parametrize(
    ("uids", "caller"),
    [
        # python, sh, su, the user's shell, sshd: su and doas leave no SUDO_USER.
        ((0, 0, 1000, 1000, 0), 1000),
        ((0, 0, 0, 1001, 1001, 0, 0), 1001),
        ((0, 1002), 1002),
        # Who logs in as root is root.
        ((0, 0, 0, 0), 0),
        ((0,), 0),
    ],
)
def test_who_became_root_is_the_service_user(
    tmp_path: Path, uids: tuple[int, ...], caller: int
) -> None:
    assert preflight.calling_uid(processes(tmp_path / "proc", *uids)) == caller


def test_a_process_that_cannot_be_read_ends_the_search(tmp_path: Path) -> None:
    proc = processes(tmp_path / "proc", 0, 0, 1000)
    (tmp_path / "proc" / "2" / "status").write_text("garbage")
    assert preflight.calling_uid(proc) == 0
    assert preflight.calling_uid(str(tmp_path / "none")) == 0


def test_the_user_who_called_su_owns_the_tree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(preflight, "calling_uid", lambda: nobody.pw_uid)
    assert preflight.service_user(None)["name"] == "nobody"
    assert preflight.service_user("root")["name"] == "root"


def test_a_port_of_another_container_of_this_collection_names_it(
    host: Docker, tmp_path: Path
) -> None:
    """As with CONTAINER_NAME in an unrelated environment: the holder is the user's own."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        wanted = options(tmp_path / "tree", container="foo", ports={"prometheus": port})
        environment = [{"Config": {"Env": [f"SGL_PROMETHEUS_PORT={port}"]}}]
        host.answers["ps --filter"] = (0, "sglang-gpu7\n", "")
        host.answers["container inspect sglang-gpu7"] = (0, json.dumps(environment), "")
        [problem] = look(wanted, host).problems
        assert "container sglang-gpu7 of this collection" in problem and len(problem) < 400
        assert "set sgl_container to sglang-gpu7" in problem
        # Docker that fails in between costs the name alone.
        host.answers["ps --filter"] = (1, "", "Cannot connect to the Docker daemon")
        [problem] = look(wanted, host).problems
        assert f"port {port}" in problem and "sglang-gpu7" not in problem


@pytest.mark.parametrize("ready_for", ["stop", "smoke", "start", "prep"])
def test_a_run_that_is_live_in_another_container_is_the_one_problem(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready_for: str
) -> None:
    run = {"live": False, "metrics_ready": False, "reason": "r", "elsewhere": None}
    run.update(run_id="container-run-x", manifest={"container_id": "d" * 64})
    monkeypatch.setattr(preflight.run_record, "describe", lambda *_: run)
    there = json.loads(container(running=True)[1])
    there[0].update(Id="d" * 64, Name="/sglang-gpu7")
    host.answers["container inspect dddd"] = (0, json.dumps(there), "")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        found = look(
            options(
                tmp_path / "tree",
                ready_for=ready_for,
                model="m",
                model_source="tiny",
                container="foo",
                ports={"prometheus": holder.getsockname()[1]},
            ),
            host,
        )
    [problem] = found.problems
    assert problem == (
        f"sgl_container is foo, but the run of {tmp_path}/tree/telemetry is live in container"
        " sglang-gpu7: set sgl_container to sglang-gpu7, or stop that container first"
    )


@pytest.mark.parametrize("ready_for", ["smoke", "start", "prep", "stop", "nothing"])
def test_a_paused_container_is_told_and_may_be_stopped(
    host: Docker, tmp_path: Path, ready_for: str
) -> None:
    paused = json.loads(container(running=True)[1])
    paused[0]["State"].update(Status="paused", Paused=True)
    host.answers["container inspect"] = (0, json.dumps(paused), "")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        ports = {"prometheus": holder.getsockname()[1]}
        found = look(options(tmp_path / "tree", ready_for=ready_for, ports=ports), host)
    told = [problem for problem in found.problems if "docker unpause sglang-dev" in problem]
    assert len(told) == (ready_for in ("smoke", "start", "prep"))
    assert not any("is taken by" in problem for problem in found.problems), "it holds its ports"
    assert found.facts["run"]["live"] is False


def test_what_is_ignored_is_named_and_is_not_foreign(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree" / "profiles").mkdir(parents=True)
    owner = os.geteuid() + 7
    given = {"owner_uid": owner, "owner_gid": os.getegid()}
    refused = look(options(tmp_path / "tree", ready_for="tree", **given), host)
    ignoring = look(
        options(tmp_path / "tree", ready_for="tree", ownership_ignore=True, **given), host
    )
    assert refused.facts["tree"]["foreign"] == ignoring.facts["tree"]["ignored"] != []
    assert refused.facts["tree"]["ignored"] == ignoring.facts["tree"]["foreign"] == []
    assert ignoring.problems == [] and "ownership is ignored as asked" in ignoring.warnings[0]


def test_the_servers_port_matters_to_a_prep_alone(host: Docker, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        assert (
            look(
                options(tmp_path / "tree", ports={"sglang": holder.getsockname()[1]}), host
            ).problems
            == []
        )


@pytest.mark.parametrize("what", ["telemetry", "profiles"])
def test_space_is_wanted_until_all_is_done(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    free = shutil.disk_usage(tmp_path).free / 1e9
    wanted = options(tmp_path / "tree", space_gb={what: free + 1000})
    [problem] = look(wanted, host).problems
    assert (
        problem.startswith(f"{tmp_path}/tree/{what} has {free:.1f} GB free")
        and "sgl_space_gb" in problem
    )
    assert look(options(tmp_path / "tree", space_gb={what: free / 2}), host).problems == []
    done = {"live": True, "metrics_ready": True}
    monkeypatch.setattr(preflight.run_record, "describe", lambda *_: done)
    assert look(wanted, host).problems == []


def test_a_stop_needs_docker_alone(host: Docker, tmp_path: Path) -> None:
    (tmp_path / "tree").write_text("")
    found = look(options(tmp_path / "tree", ready_for="stop", space_gb={"docker": 1e9}), host)
    assert found.problems == found.lacking == []


def test_gpus_are_named_by_the_driver(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl" or exists(path))
    host.answers["nvidia-smi"] = (0, "NVIDIA GH200 480GB\n", "")
    found = look(options(tmp_path / "tree"), host)
    assert (
        found.facts["devices"]
        == {
            "count": 1,
            "name": "NVIDIA GH200 480GB",
            "cuda": True,
            "health": None,
        }
        and found.problems == []
    )
    host.answers["nvidia-smi"] = (9, "", "couldn't communicate with the NVIDIA driver")
    found = look(options(tmp_path / "tree"), host)
    assert "couldn't communicate" in found.problems[0] and found.facts["devices"]["cuda"] is True
    for wanted in ("tree", "stop"):
        found = look(options(tmp_path / "tree", ready_for=wanted, gpus=True), host)
        assert found.problems == [] and "couldn't communicate" in found.warnings[0]


class GpuHost:
    """Stands for the programs of a host with GPUs: nvidia-smi by its double, docker by the answers
    of Docker above; keeps what was run.
    """

    def __init__(self, docker: Docker, smi: NvidiaSmi) -> None:
        self.docker, self.smi = docker, smi
        self.ran: list[str] = []

    def __call__(self, command: list[str]) -> Answer:
        name = os.path.basename(command[0])
        self.ran.append(" ".join([name, *command[1:]]))
        if name == "journalctl":
            return 1, "-- No entries --", ""
        return self.smi(command) if name == "nvidia-smi" else self.docker(command)


@pytest.fixture
def gpus(host: Docker, monkeypatch: pytest.MonkeyPatch) -> GpuHost:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidiactl" or exists(path))
    # Whether this machine has the toolkit is not the question.
    monkeypatch.setattr(gpu_health, "toolkit_problem", lambda docker: None)
    monkeypatch.setattr(gpu_access, "problem", lambda: None)
    monkeypatch.setattr(gpu_access, "reload_warning", lambda info: None)
    # Nor are errors that its own kernel tells of.
    monkeypatch.setattr(gpu_health, "_kernel_log", lambda run, root: "")
    return GpuHost(host, NvidiaSmi())


def image(cuda: str, requires: str = "") -> Answer:
    env = [f"CUDA_VERSION={cuda}", f"NVIDIA_REQUIRE_CUDA={requires}"]
    document = {"Id": "sha256:1", "Architecture": "arm64", "Created": "", "Config": {"Env": env}}
    return 0, json.dumps([document]), ""


def test_gpus_that_are_to_be_used_are_described_by_one_call(gpus: GpuHost, tmp_path: Path) -> None:
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert (found.problems, found.lacking, found.warnings) == ([], [], [])
    devices = found.facts["devices"]
    assert (devices["count"], devices["name"], devices["cuda"]) == (1, "NVIDIA H200", True)
    assert (
        devices["health"]["driver"] == "580.105.08"
        and devices["health"]["gpus"][0]["persistence"] is True
    )
    assert [command for command in gpus.ran if "nvidia-smi" in command] == ["nvidia-smi -q -x"]


@pytest.mark.parametrize("wanted", ["tree", "stop"])
def test_what_needs_no_gpu_does_not_look_at_its_health(
    gpus: GpuHost, tmp_path: Path, wanted: str
) -> None:
    gpus.smi.cards = [Card(mig="Enabled", persistence="Disabled")]
    found = look(options(tmp_path / "tree", ready_for=wanted, gpus=True), gpus)
    assert (found.problems, found.warnings, found.facts["devices"]["health"]) == ([], [], None)
    found = look(options(tmp_path / "tree"), gpus)
    assert (found.problems, found.warnings, found.facts["devices"]["health"]) == ([], [], None)


@pytest.mark.parametrize("wanted", ["nothing", "smoke", "start", "prep"])
def test_gpus_that_cannot_be_used_are_refused(gpus: GpuHost, tmp_path: Path, wanted: str) -> None:
    gpus.smi.cards = [Card(mig="Enabled"), Card(persistence="Disabled", uuid="GPU-2")]
    found = look(options(tmp_path / "tree", ready_for=wanted, gpus=True), gpus)
    assert sum("MIG" in problem for problem in found.problems) == 1
    assert len(found.warnings) == 1 and "persistence" in found.warnings[0]


def test_a_driver_too_old_for_the_image_is_refused_before_and_after_the_image_is_there(
    gpus: GpuHost, tmp_path: Path
) -> None:
    gpus.smi.driver, gpus.smi.cuda = "550.163.01", "12.4"
    assert look(options(tmp_path / "tree", gpus=True), gpus).problems == []
    [problem] = look(options(tmp_path / "tree", gpus=True, image_cuda="13.0"), gpus).problems
    assert "too old for the image" in problem
    gpus.docker.answers["image inspect"] = image("13.0.1")
    assert look(options(tmp_path / "tree", gpus=True), gpus).problems == [problem]
    assert look(options(tmp_path / "tree", gpus=True, image_cuda="12.4"), gpus).problems == []


@pytest.mark.parametrize("told", [None, "13.0"])
def test_a_driver_that_the_image_makes_do_with_is_warned_of_whoever_names_its_cuda(
    gpus: GpuHost, tmp_path: Path, told: str | None
) -> None:
    gpus.smi.driver, gpus.smi.cuda = "550.163.01", "12.4"
    gpus.docker.answers["image inspect"] = image(
        "13.0.1", "cuda>=13.0 brand=tesla,driver>=550,driver<551"
    )
    found = look(options(tmp_path / "tree", gpus=True, image_cuda=told), gpus)
    assert found.problems == [] and "compatibility libraries make do with it" in found.warnings[0]


def test_a_container_that_runs_has_shown_that_the_driver_serves_its_image(
    gpus: GpuHost, tmp_path: Path
) -> None:
    gpus.docker.answers["image inspect"] = image("13.0.1")
    gpus.docker.answers["container inspect"] = container(running=True)
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert found.problems == [] and sum("image inspect" in command for command in gpus.ran) == 1


def test_a_host_without_the_container_toolkit_lacks_it(
    gpus: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        gpu_health,
        "toolkit_problem",
        lambda docker: f"{os.path.basename(docker.binary)} lacks the toolkit",
    )
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert (found.problems, found.lacking) == ([], ["docker lacks the toolkit"])
    assert look(options(tmp_path / "tree", gpus=True, ready_for="stop"), gpus).lacking == []
    assert look(options(tmp_path / "tree", gpus=False), gpus).lacking == []


def test_a_host_that_cannot_give_its_gpus_to_a_container_lacks_that(
    gpus: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_access, "problem", lambda: "CDI is not generated")
    monkeypatch.setattr(gpu_access, "reload_warning", lambda info: "a reload takes them")
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert found.lacking == ["CDI is not generated"]
    assert "a reload takes them" in found.warnings
    found = look(options(tmp_path / "tree", gpus=False), gpus)
    assert found.lacking == []


def test_an_answer_that_describes_no_gpu_is_made_up_for_by_their_names(
    gpus: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NvidiaSmi, "xml", lambda self: "<nvidia_smi_log><gpu>")
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert found.problems == [] and found.facts["devices"] == {
        "count": 1,
        "name": "NVIDIA H200",
        "cuda": True,
        "health": None,
    }
    [warning] = found.warnings
    assert "health is unknown" in warning


def test_a_broken_driver_is_told_once(host: Docker, gpus: GpuHost, tmp_path: Path) -> None:
    host.answers["nvidia-smi"] = (9, "", "couldn't communicate with the NVIDIA driver")
    found = look(options(tmp_path / "tree", gpus=True), host)
    assert (
        found.warnings == []
        and len(found.problems) == 1
        and "couldn't communicate" in found.problems[0]
    )


@pytest.mark.parametrize("failure", FAILURES)
def test_an_image_for_gpus_on_a_host_without_a_driver_is_refused(
    host: Docker, gpus: GpuHost, tmp_path: Path, failure: str
) -> None:
    gpus.smi.failure = FAILURES[failure]
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    [problem] = found.problems
    assert "no working NVIDIA driver (nvidia-smi names no GPU: " in problem
    assert "sgl_gpus to false" in problem and found.warnings == []
    assert look(options(tmp_path / "tree", ready_for="stop", gpus=True), gpus).problems == [], (
        "what ends a run needs no GPU"
    )


def test_an_image_for_gpus_on_a_host_without_nvidia_smi_is_refused(
    host: Docker, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "nvidia-smi").unlink()
    found = look(options(tmp_path / "tree", gpus=True), host)
    [problem] = found.problems
    assert "no working NVIDIA driver (there is no nvidia-smi on the PATH)" in problem
    assert found.facts["devices"] == {"count": 1, "name": "cpu", "cuda": False, "health": None}
    assert look(options(tmp_path / "tree"), host).problems == []


@pytest.fixture
def unopened(gpus: GpuHost, monkeypatch: pytest.MonkeyPatch) -> GpuHost:
    """A host on which no program has used the driver yet, so that it has no device files."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/nvidiactl" and exists(path))
    return gpus


def test_a_freshly_started_host_is_asked_for_its_gpus(unopened: GpuHost, tmp_path: Path) -> None:
    """nvidia-smi makes the device files itself."""
    found = look(options(tmp_path / "tree", gpus=True), unopened)
    assert (found.problems, found.warnings) == ([], [])
    assert found.facts["devices"]["health"]["gpus"][0]["name"] == "NVIDIA H200"
    unopened.smi.cards = [Card(mig="Enabled")]
    assert "MIG" in look(options(tmp_path / "tree", gpus=True), unopened).problems[0]


def test_a_driver_that_nobody_needs_is_not_started(unopened: GpuHost, tmp_path: Path) -> None:
    for wanted in (options(tmp_path / "t"), options(tmp_path / "t", ready_for="stop", gpus=True)):
        found = look(wanted, unopened)
        assert found.problems == [] and found.facts["devices"]["name"] == "cpu"
    assert [line for line in unopened.ran if line.startswith("nvidia-smi")] == []


@pytest.mark.parametrize(
    "garble",
    [
        lambda text: text.replace("NVIDIA H200", "NVIDIA\x00 H200"),
        lambda text: text.replace("<vbios_version>", "<vbios_version"),
        lambda text: text[: text.rindex("<processes>")],
        lambda text: text.replace("</uuid>", ""),
        lambda text: text.replace("product_name>", ">"),
    ],
)
def test_a_damaged_description_costs_no_refusal(
    gpus: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garble: Any
) -> None:
    gpus.smi.cards = [Card(mig="Enabled")]
    gpus.smi.driver, gpus.smi.cuda = "550.163.01", "12.4"
    whole = gpus.smi.xml()
    monkeypatch.setattr(NvidiaSmi, "xml", lambda self: garble(whole))
    monkeypatch.setattr(gpu_health, "toolkit_problem", lambda docker: "lacks the toolkit")
    found = look(options(tmp_path / "tree", gpus=True, image_cuda="13.0"), gpus)
    assert len(found.problems) == 2 and found.lacking == ["lacks the toolkit"]
    assert "MIG" in found.problems[0] and "too old for the image" in found.problems[1]
    assert any("is damaged" in warning for warning in found.warnings)
    assert (found.facts["devices"]["count"], found.facts["devices"]["name"]) == (1, "NVIDIA H200")


# --- Docker ---------------------------------------------------------------------------------------


def test_a_converged_run_asks_docker_twice_and_nvidia_smi_once(
    gpus: GpuHost, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "telemetry").mkdir(parents=True)
    gpus.docker.answers = {
        "container inspect": container(running=True, tree=tmp_path / "tree"),
        "image inspect": image("13.0.1"),
    }
    look(options(tmp_path / "tree", gpus=True), gpus)
    assert gpus.ran == [
        "nvidia-smi -q -x",
        INSPECTED,
        "docker image inspect sglang-dev:local",
    ]


@pytest.mark.parametrize("records", ["no pointer", "unreadable", "of another container"])
@pytest.mark.parametrize("spelt", ["as it is", "by a link"])
@pytest.mark.parametrize("own", [None, "sglang-b", "sglang-b on another tree"])
@pytest.mark.parametrize("ready_for", ["start", "prep", "smoke", "stop"])
def test_a_tree_has_one_container_whatever_its_records_say(
    host: Docker, tmp_path: Path, ready_for: str, own: str | None, spelt: str, records: str
) -> None:
    tree, other = tmp_path / "tree", tmp_path / "other"
    for folder in (tree, other):
        (folder / "telemetry").mkdir(parents=True)
    if records != "no pointer":
        text = "x" if records == "unreadable" else "CONTAINER_RUN_META_JSON_HOST=/x.json\n"
        (tree / "telemetry" / places.POINTER).write_text(text)
    link = tmp_path / "link"
    link.symlink_to(tree)
    asked = f"inspect {'a' * 64}"
    there = link if spelt == "by a link" else tree
    host.answers[asked] = container(running=True, name="sglang-a", tree=there)
    host.answers["ps --all"] = (0, f"{'a' * 64}\n", "")
    if own is not None:
        runs = own != "sglang-b"
        host.answers["container inspect sglang-b"] = container(
            running=runs, name="sglang-b", tree=other if runs else tree
        )
    found = look(options(tree, ready_for=ready_for, container="sglang-b"), host)
    [problem] = [problem for problem in found.problems if "sglang-a" in problem]
    assert "set sgl_container to sglang-a" in problem and len(problem) < 400 + len(str(tmp_path))
    # One that does not run can be started by hand at any time; a stop of another costs it nothing.
    host.answers[asked] = container(running=False, name="sglang-a", tree=there)
    found = look(options(tree, ready_for=ready_for, container="sglang-b"), host)
    assert any("sglang-a (exited)" in problem for problem in found.problems) is (
        ready_for != "stop"
    )


def test_a_container_of_another_tree_is_none_of_ours(host: Docker, tmp_path: Path) -> None:
    for folder in ("tree", "other"):
        (tmp_path / folder / "telemetry").mkdir(parents=True)
    host.answers[f"inspect {'a' * 64}"] = container(
        running=True, name="sglang-a", tree=tmp_path / "other"
    )
    host.answers["ps --all"] = (0, f"{'a' * 64}\n", "")
    assert look(options(tmp_path / "tree", container="sglang-b"), host).problems == []


def test_a_bare_host_is_asked_for_everything_in_three_calls(gpus: GpuHost, tmp_path: Path) -> None:
    look(options(tmp_path / "tree", gpus=True), gpus)
    assert gpus.ran == [
        "nvidia-smi -q -x",
        INSPECTED,
        "docker image inspect sglang-dev:local",
        "docker info --format {{json .}}",
    ]


@pytest.mark.parametrize("release", docker_words.SILENT)
@pytest.mark.parametrize("wanted", ["stop", "smoke", "start", "prep"])
def test_a_silent_daemon_is_told_once_and_nothing_is_taken_for_missing(
    host: Docker, tmp_path: Path, release: str, wanted: str
) -> None:
    words, remedy = docker_words.SILENT[release]
    host.answers = {"docker": (1, "[]\n", words)}
    found = look(options(tmp_path / "tree", ready_for=wanted, space_gb={"docker": 1e9}), host)
    [lacking] = found.lacking
    assert remedy in lacking
    assert found.facts["docker"] == {"available": False, "version": None, "problem": lacking}
    assert len([line for line in host.ran if line.startswith("docker")]) == 1
    assert not any("GB free" in problem for problem in found.problems)


def test_a_part_that_docker_does_not_say_costs_that_part(host: Docker, tmp_path: Path) -> None:
    host.answers = {"container inspect": (0, "[{}]", ""), "image inspect": image("13.0.1")}
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = {"prometheus": holder.getsockname()[1]}
        found = look(options(tmp_path / "tree", ports=port), host)
    assert found.facts["image"]["id"] == "sha256:1" and found.facts["docker"]["available"]
    [lacking] = found.lacking
    assert "no valid Name" in lacking
    assert found.problems == [], "who holds a port is unknown without the container"
    host.answers = {"container inspect": container(running=True), "image inspect": (0, "?", "")}
    found = look(options(tmp_path / "tree", space_gb={"docker": 1e9}), host)
    assert found.facts["container"]["running"] is True
    assert len(found.lacking) == 1 and found.problems == []


def test_info_that_cannot_be_read_costs_what_it_would_tell(host: Docker, tmp_path: Path) -> None:
    host.answers = {" info --format": (0, "Client: Docker Engine - Community\n", "")}
    found = look(options(tmp_path / "tree", space_gb={"docker": 1e9}), host)
    assert found.problems == found.lacking == []
    assert "`docker info` does not describe the daemon" in found.warnings[0]
    assert found.facts["docker"] == {"available": True, "version": None, "problem": None}


SNAP = "/var/snap/docker/common/var-lib-docker"


@pytest.mark.parametrize(
    ("info", "problem", "warning"),
    [
        ({"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}, "rootless", None),
        ({"SecurityOptions": ["name=apparmor", "name=userns"]}, "userns-remap", None),
        ({"OperatingSystem": "Docker Desktop"}, "Docker Desktop's", None),
        ({"DockerRootDir": SNAP}, "`snap remove docker`", None),
        ({"Driver": "vfs"}, None, "storage driver is vfs"),
        ({"DriverStatus": [["Backing Filesystem", "nfs"]]}, None, "local disk"),
        ({"Name": "gpu7"}, None, "the Docker daemon runs on gpu7"),
        # A field that is missing, or of another type, costs itself.
        ({"SecurityOptions": None, "Driver": "vfs"}, None, "storage driver is vfs"),
        ({"SecurityOptions": "name=rootless", "Driver": "vfs"}, None, "storage driver is vfs"),
        ({"DriverStatus": {"a": 1}, "SecurityOptions": [1, "name=rootless"]}, "rootless", None),
        ({"DockerRootDir": 7, "Driver": ["vfs"], "Name": {}}, None, None),
        ({"Name": platform.node(), "SecurityOptions": ["name=apparmor"]}, None, None),
    ],
)
def test_what_a_daemon_says_of_itself_is_judged_before_anything_is_built(
    host: Docker, tmp_path: Path, info: dict[str, Any], problem: str | None, warning: str | None
) -> None:
    host.info.update(info)
    found = look(options(tmp_path / "tree"), host)
    for said, words in ((found.problems, problem), (found.warnings, warning)):
        assert len(said) == (words is not None)
        assert words is None or (words in said[0] and len(said[0]) < 400)
    host.answers = {
        "container inspect": container(running=True),
        "image inspect": image("13.0.1"),
    }
    assert look(options(tmp_path / "tree"), host).problems == [], "a running container shows it"


def test_the_snap_reaches_folders_in_home(host: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = docker_health.judge({"DockerRootDir": SNAP}, ["/home/u/a", "/home/u/b"])
    assert verdict.problems == [] and "neither hidden folders" in verdict.warnings[0]
    verdict = docker_health.judge({"DockerRootDir": SNAP}, ["/home/u/a", "/srv/b"])
    assert "such as /srv/b" in verdict.problems[0]


def test_apparmor_without_its_parser_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text("Y\n")
    parser = tmp_path / "apparmor_parser"
    monkeypatch.setattr(docker_health, "_APPARMOR", str(tmp_path / "enabled"))
    monkeypatch.setattr(docker_health, "_APPARMOR_PARSERS", (str(parser),))
    assert "`apt-get install apparmor`" in docker_health.judge({}, []).warnings[0]
    parser.touch()
    assert docker_health.judge({}, []).warnings == []


def test_images_of_containerd_are_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_health, "_CONTAINERD", str(tmp_path))
    store = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    root = {"DockerRootDir": str(tmp_path / "docker")}
    assert docker_health.image_folder(root) == str(tmp_path / "docker")
    assert docker_health.image_folder({**root, **store}) == str(tmp_path)
    (tmp_path / "docker" / "containerd" / "daemon").mkdir(parents=True)
    own = str(tmp_path / "docker" / "containerd" / "daemon")
    assert docker_health.image_folder({**root, **store}) == own
    for nowhere in ({}, {"DockerRootDir": None}, {"DockerRootDir": ""}):
        assert docker_health.image_folder(nowhere) is None


@pytest.mark.parametrize("store", ["overlay2", "containerd"])
def test_an_image_needs_room_where_the_daemon_really_keeps_it(
    gpus: GpuHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    for name in ("docker", "containerd"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(docker_health, "_CONTAINERD", str(tmp_path / "containerd"))
    gpus.docker.info["DockerRootDir"] = str(tmp_path / "docker")
    if store == "containerd":
        # Debian sid's docker.io 28.5.2 with the feature containerd-snapshotter; what 29 does.
        gpus.docker.info["DriverStatus"] = [["driver-type", "io.containerd.snapshotter.v1"]]
    wanted = options(tmp_path / "tree", gpus=True, space_gb={"docker": 1e9})
    [problem] = look(wanted, gpus).problems
    folder = tmp_path / ("containerd" if store == "containerd" else "docker")
    assert problem.startswith(f"{folder} has ") and len(problem) < 400
    assert "`docker system df`" in problem and "v<release>-runtime" in problem
    [problem] = look(options(tmp_path / "tree", space_gb={"docker": 1e9}), gpus).problems
    assert "runtime" not in problem


# --- file systems ---------------------------------------------------------------------------------


def answering(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Have the look at file systems ask these functions in place of the operating system's."""
    monkeypatch.setattr(file_systems, "os", SimpleNamespace(**{**vars(os), **functions}))


def statvfs(**given: int) -> Any:
    fields = {"f_bavail": 10**9, "f_frsize": 4096, "f_files": 10**7, "f_favail": 10**6}
    return SimpleNamespace(**{**fields, "f_flag": 0, **given})


@pytest.mark.parametrize(
    ("answer", "problem", "warning"),
    [
        (statvfs(), None, None),
        (statvfs(f_flag=os.ST_RDONLY), "mounted read-only", None),
        (statvfs(f_favail=0), "with 0 inodes left (`df -i`)", None),
        (statvfs(f_favail=9_999), "with 9999 inodes left", None),
        # btrfs, and NFS of such a server, make inodes as they need them.
        (statvfs(f_files=0, f_favail=0), None, None),
        (statvfs(f_bavail=0), "has 0.0 GB free", None),
        (OSError(errno.EIO, "Input/output error"), None, "is unknown (Input/output error)"),
        (OSError(errno.ESTALE, "Stale file handle"), None, "is unknown (Stale file handle)"),
        (OSError(errno.EACCES, "Permission denied"), None, "is unknown (Permission denied)"),
    ],
)
def test_what_a_file_system_does_not_allow_or_say_is_told(
    host: Docker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    problem: str | None,
    warning: str | None,
) -> None:
    def ask(path: str) -> Any:
        if isinstance(answer, OSError):
            raise answer
        return answer

    host.answers["image inspect"] = image("13.0.1")
    answering(monkeypatch, statvfs=ask)
    found = look(options(tmp_path / "tree", space_gb={"telemetry": 1}), host)
    assert [problem is not None, True] == [
        len(found.problems) == 1,
        problem is None or problem in found.problems[0],
    ]
    assert all(warning is not None and warning in said for said in found.warnings)
    assert len(found.warnings) == (0 if warning is None else 2)


@pytest.mark.parametrize(
    ("number", "refused"),
    [
        (errno.ENOLCK, True),
        (errno.EOPNOTSUPP, True),
        (errno.ENOSYS, True),
        # Another process holds it, so it has locks.
        (errno.EAGAIN, False),
    ],
)
def test_a_file_system_without_locks_is_told_before_anything_is_made(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    fake = SimpleNamespace(flock=flock, LOCK_SH=1, LOCK_NB=4)
    monkeypatch.setattr(file_systems, "fcntl", fake)
    problems = look(options(tmp_path / "tree"), host).problems
    assert [("without locks" in problem) for problem in problems] == [True] * refused


@pytest.mark.parametrize(("free", "warned"), [(1.5, True), (2.5, False)])
def test_a_disk_that_fills_soon_is_a_warning(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, warned: bool
) -> None:
    blocks = int(free * 10**9 / 4096)
    answering(monkeypatch, statvfs=lambda path: statvfs(f_bavail=blocks))
    found = look(options(tmp_path / "tree", space_gb={"telemetry": 1}), host)
    assert found.problems == []
    assert any("playbooks/prune.yml removes" in said for said in found.warnings) is warned


def test_a_folder_that_cannot_be_seen_is_not_taken_for_the_one_above(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = str(tmp_path / "stale")

    def stat(path: str) -> os.stat_result:
        if path.startswith(stale):
            raise OSError(errno.ESTALE, "Stale file handle")
        return os.stat(path)

    answering(monkeypatch, stat=stat)
    host.answers["image inspect"] = image("13.0.1")
    roots = {**dict.fromkeys(ROOTS), "root": str(tmp_path), "telemetry": f"{stale}/telemetry"}
    found = look(options(tmp_path, roots=roots), host)
    assert any(f"{stale}/telemetry is unknown (Stale" in said for said in found.warnings)


MOUNTS = """22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw,discard
40 22 0:33 / /home rw,relatime shared:20 - nfs4 filer:/home rw,vers=4.2,sec=sys
41 22 0:34 / /krb rw - nfs4 filer:/krb rw,vers=4.2,sec=krb5p
42 22 0:35 / /mnt/my\\040disk rw,nosuid - fuse.sshfs u@h:/ rw,user_id=1000,group_id=1000
43 22 0:36 / /mnt/open rw,nosuid - fuse.sshfs u@h:/ rw,user_id=1000,allow_other
44 22 8:1 / /mnt/ntfs rw - fuseblk /dev/sda1 rw,user_id=0,group_id=0
45 22 0:37 / /home/local rw - ext4 /dev/sdb rw
a line of another kernel
46 22 0:38 / /over rw - nfs filer:/a rw
47 22 0:39 / /over rw - ext4 /dev/sdc rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> list[file_systems.Mount]:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    return file_systems.mounts(str(tmp_path / "mountinfo"))


@pytest.mark.parametrize(
    ("path", "mode", "said"),
    [
        ("/home/u/sglang-observability/models", 0o700, "/home/u may not enter, mode 0700"),
        ("/home/u/sglang-observability/models", 0o750, "/home/u may not enter, mode 0750"),
        ("/home/u/sglang-observability/models", 0o711, None),
        ("/home/u/sglang-observability/models", 0o755, None),
        ("/home/local/u/models", 0o700, None),
        ("/var/lib/models", 0o700, None),
        ("/over/u/models", 0o700, None),
        ("/krb/u/models", 0o755, "/krb may not enter, Kerberos"),
        ("/mnt/my disk/models", 0o755, "/mnt/my disk cannot enter, for one user alone"),
        ("/mnt/open/u/models", 0o700, None),
        ("/mnt/ntfs/u/models", 0o700, None),
    ],
)
def test_folders_that_are_closed_to_dockers_root(
    mounts: list[file_systems.Mount],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    mode: int,
    said: str | None,
) -> None:
    homes = ("/home/u", "/home/local/u", "/over/u", "/mnt/open/u", "/mnt/ntfs/u", "/krb/u")

    def stat(folder: str) -> Any:
        return SimpleNamespace(st_mode=0o40000 | (mode if folder in homes else 0o755))

    answering(monkeypatch, stat=stat, geteuid=lambda: 1000)
    found = list(file_systems.closed_to_root([path, f"{path}/x"], mounts))
    if said is None:
        assert found == []
        return
    [(folder, reason, certain)] = found
    assert said.startswith(f"{folder} {'cannot' if certain else 'may not'} enter")
    assert said.rpartition(", ")[2] in reason


def test_root_tries_whether_a_network_folder_lets_it_in(
    mounts: list[file_systems.Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, geteuid=lambda: 0, access=lambda folder, how: folder != "/home/u")
    [(folder, reason, certain)] = file_systems.closed_to_root(["/home/u/models"], mounts)
    assert (folder, certain) == ("/home/u", True) and "closed to root" in reason
    answering(monkeypatch, geteuid=lambda: 0, access=lambda folder, how: True)
    assert list(file_systems.closed_to_root(["/home/u/models"], mounts)) == []


def test_a_home_that_is_closed_to_docker_is_told_before_anything_is_built(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = [("/home/u", "is on nfs4 with mode 0700", False), ("/x", "is on fuse.sshfs", True)]
    monkeypatch.setattr(file_systems, "closed_to_root", lambda paths, known: closed)
    found = look(options(tmp_path / "tree"), host)
    assert "may not enter /home/u, which is on nfs4" in found.warnings[0]
    assert "cannot enter /x, which is on fuse.sshfs: set sgl_root" in found.problems[0]


# --- image and model ------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["start", "prep"])
def test_an_image_from_elsewhere_needs_to_be_told_from_where(
    host: Docker, tmp_path: Path, wanted: str
) -> None:
    archive = tmp_path / "image.tar"

    def said(**given: Any) -> tuple[list[str], list[str]]:
        found = look(
            options(tmp_path / "tree", ready_for=wanted, model="m", model_source="tiny", **given),
            host,
        )
        return found.problems, found.lacking

    assert (
        "set sgl_image_pull" in said(image_source="pull")[0][0]
        and "set sgl_image_archive" in said(image_source="load")[0][0]
    )
    assert said(image_source="pull", image_pull="a/b:c") == said() == ([], [])
    [lacking] = said(image_source="load", image_archive=str(archive))[1]
    assert f"there is no archive {archive} on this host" in lacking
    brought = {"image_archive": str(archive), "image_archive_from": "/data/image.tar"}
    assert said(image_source="load", **brought) == ([], []), "the controller brings it"
    archive.touch()
    assert said(image_source="load", image_archive=str(archive)) == ([], [])
    archive.unlink()
    host.answers["image inspect"] = image("13.0.1")
    assert said(image_source="load", image_archive=str(archive)) == (
        [],
        [],
    ), "a host that has the image needs the archive no more"


def test_how_the_image_is_had_does_not_keep_a_host_from_being_stopped(
    host: Docker, tmp_path: Path
) -> None:
    for wanted in ("nothing", "tree", "stop"):
        found = look(options(tmp_path / "tree", ready_for=wanted, image_source="pull"), host)
        assert (found.problems, found.lacking) == ([], [])


def test_a_model_is_looked_at(host: Docker, tmp_path: Path) -> None:
    wanted = {"ready_for": "prep", "model": "lab/m"}
    [problem] = look(options(tmp_path / "tree", **wanted), host).problems
    assert "lab/m" in problem
    found = look(options(tmp_path / "tree", **wanted, model_source="tiny"), host)
    assert found.problems == [] and found.facts["model"]["missing"] is True
    folder = tmp_path / "tree" / "models" / "lab" / "m"
    folder.mkdir(parents=True)
    assert any(
        "config.json" in problem
        for problem in look(options(tmp_path / "tree", **wanted), host).problems
    )


def made_model(folder: Path) -> Path:
    make_model(folder, 2, 64)
    return folder


def looked_at(host: Docker, tree: Path, **given: Any) -> tuple[list[str], dict[str, Any] | None]:
    found = look(options(tree, **{"ready_for": "prep", "model": "lab/m", **given}), host)
    return found.problems, found.facts["model"]


def test_a_model_from_somewhere_else_is_to_be_staged(host: Docker, tmp_path: Path) -> None:
    tree, source = tmp_path / "tree", made_model(tmp_path / "source")
    [problem] = looked_at(host, tree, model_source="hub")[0]
    assert "sgl_model_from" in problem
    for kind, place in (("local", str(source)), ("controller", "/elsewhere"), ("hub", "org/m")):
        problems, model = looked_at(host, tree, model_source=kind, model_from=place)
        assert problems == [] and model is not None and model["missing"] and model["stage"] is True
    [problem] = looked_at(host, tree, model_source="local", model_from=str(tmp_path / "none"))[0]
    assert str(tmp_path / "none") in problem and "sgl_model_from" in problem
    (source / "model-00002-of-00002.safetensors").unlink()
    [problem] = looked_at(host, tree, model_source="local", model_from=str(source))[0]
    assert "model-00002-of-00002.safetensors" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_source_that_the_service_user_cannot_read_is_refused(
    host: Docker, tmp_path: Path
) -> None:
    """Root brings a model with the rights of the service user alone."""
    nobody = 65534
    # pytest's own folder is closed to other users.
    source = made_model(tmp_path / "source")
    [problem] = looked_at(
        host, tmp_path / "tree", model_source="local", model_from=str(source),
        owner_uid=nobody, owner_gid=nobody,
    )[0]  # fmt: skip
    assert str(source) in problem and f"cannot be read by uid {nobody}" in problem
    assert f"setfacl -R -m u:{nobody}:rX" in problem
    with acting_as(nobody, nobody), pytest.raises(ModelError, match="cannot be read"):
        survey(str(source))


def test_a_model_that_is_there_is_read_where_something_was_recorded(
    host: Docker, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    folder = made_model(tree / "models" / "lab" / "m")
    problems, model = looked_at(host, tree)
    assert (
        problems == []
        and model is not None
        and (model["recorded"], model["verified"], model["stage"]) == (False, False, False)
    )
    assert looked_at(host, tree, model_verify="full")[1]["stage"] is True  # type: ignore[index]
    model_digests.verify(str(folder), full=True)
    for file in folder.iterdir():
        # What was written this very moment may change within the same tick.
        os.utime(file, ns=(1, file.stat().st_mtime_ns - 10**9))
    assert looked_at(host, tree)[1]["stage"] is True  # type: ignore[index]
    model_digests.verify(str(folder))
    problems, model = looked_at(host, tree)
    assert (
        problems == []
        and model is not None
        and (model["recorded"], model["verified"], model["stage"]) == (True, True, False)
    )
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"x")
    [problem] = looked_at(host, tree)[0]
    assert shard.name in problem and "stage it again" in problem
    # Where it came from somewhere else, it is brought again.
    problems, model = looked_at(host, tree, model_source="hub", model_from="org/m")
    assert problems == [] and model is not None and model["stage"] is True


def test_a_tree_is_looked_at_without_docker(host: Docker, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def spy(command: list[str]) -> Answer:
        asked.append(command)
        return host(command)

    found = look(options(tmp_path / "tree", ready_for="tree"), spy)
    assert found.problems == [] and found.facts["tree"]["incomplete"] is True
    assert [command for command in asked if "docker" in command[0]] == []


look_at_root = preflight._look_at_root


@pytest.mark.parametrize("ready_for", ["tree", "start", "prep", "smoke", "stop", "nothing"])
@pytest.mark.parametrize("owner_uid", [None, 0, 1000])
@pytest.mark.parametrize("allow_root", [False, True])
def test_root_is_the_service_user_only_where_that_is_allowed(
    host: Docker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ready_for: str,
    owner_uid: int | None,
    allow_root: bool,
) -> None:
    monkeypatch.setattr(preflight, "_look_at_root", look_at_root)
    user = {"name": "root", "uid": 0, "gid": 0, "home": str(tmp_path)}
    monkeypatch.setattr(preflight, "service_user", lambda _name: user)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    wanted = options(
        tmp_path / "obs", ready_for=ready_for, owner_uid=owner_uid, allow_root=allow_root
    )
    found = look(wanted, host)
    refused = [text for text in found.problems if text.startswith("the service user is root")]
    warned = [text for text in found.warnings if text.startswith("the container runs as root")]
    as_root = ready_for in ("tree", "start", "prep") and owner_uid != 1000
    assert (bool(refused), bool(warned)) == (as_root and not allow_root, as_root and allow_root)
    assert all("set sgl_user to an ordinary user" in text for text in (*refused, *warned))


def test_who_must_own_the_tree_and_the_pointer_can_be_said(host: Docker, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    uid, gid = os.geteuid(), os.getegid()
    (tree / "telemetry").mkdir(parents=True)
    pointer = tree / "telemetry" / "container_run_meta.env"
    pointer.touch()
    found = look(options(tree, ready_for="tree", owner_uid=uid, owner_gid=gid), host)
    assert found.facts["tree"]["foreign"] == [] and found.facts["tree"]["owner"] == {
        "uid": uid,
        "gid": gid,
    }
    found = look(options(tree, ready_for="tree", pointer_uid=uid + 1), host)
    [problem] = found.problems
    assert found.facts["tree"]["foreign"] == [str(pointer)] and f"not {uid + 1}:{gid}" in problem
    found = look(options(tree, ready_for="tree", pointer_uid=uid, pointer_gid=gid), host)
    assert found.problems == []
    if os.geteuid() == 0:
        found = look(options(tree, ready_for="tree", owner_uid=uid + 5), host)
        assert (
            str(tree) in found.facts["tree"]["foreign"]
            and f"not {uid + 5}:{gid}" in found.problems[0]
        )


def test_a_smoke_needs_a_live_run(host: Docker, tmp_path: Path) -> None:
    [problem] = look(options(tmp_path / "tree", ready_for="smoke"), host).problems
    assert "no run is live in container sglang-dev" in problem and "prep.yml" in problem


@pytest.mark.parametrize(
    ("ready_for", "conditions", "refused"),
    [
        ("prep", "warn", False),
        ("prep", "refuse", True),
        ("start", "refuse", True),
        ("nothing", "refuse", False),
        ("smoke", "refuse", False),
    ],
)
def test_conditions_that_make_a_host_slow_refuse_what_measures(
    tmp_path: Path, gpus: GpuHost, ready_for: str, conditions: str, refused: bool
) -> None:
    gpus.smi.cards = [Card(power_limit="350.00 W")]
    wanted = options(tmp_path / "tree", gpus=True, ready_for=ready_for, perf_conditions=conditions)
    found = look(wanted, gpus)
    words = "GPU 0 is limited to 350 W"
    assert any(words in problem for problem in found.problems) is refused
    assert any(words in warning for warning in found.warnings) is not refused


# --- the description of the system ----------------------------------------------------------------


def test_the_system_is_described_only_where_it_is_asked_for(tmp_path: Path, host: Docker) -> None:
    """Nothing of it is run or read in a prep, which a converged host is to be quick in."""
    assert "system" not in look(options(tmp_path), host).facts
    before = list(host.ran)
    assert not [line for line in before if "lscpu" in line]
    host.ran.clear()
    asked = look(options(tmp_path, describe_system=True), host)
    validate_system(asked.facts["system"])
    assert asked.facts["system"]["slice_bench"]["run_id"] is None
    assert host.ran[: len(before)] == before
