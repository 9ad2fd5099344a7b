"""The look at a host: what it finds, and what it refuses."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_health as gpu_health
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _preflight as preflight
from ansible_collections.slice_bench.sglang.plugins.module_utils._preflight import (
    Options,
    PreflightError,
    look,
)

from tests.doubles.model_folder import make_model
from tests.doubles.nvidia_smi import Card, NvidiaSmi

Answer = tuple[int, str, str]
ROOTS = ("root", "telemetry", "profiles", "models", "huggingface")


class Docker:
    """Stands for the programs of a host: docker and nvidia-smi, answering by the words of the
    command line.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {"version": (0, "28.2.2\n", ""), "info": (0, "/\n", "")}

    def __call__(self, command: list[str]) -> Answer:
        line = " ".join(command)
        return next(
            (answer for words, answer in self.answers.items() if words in line),
            (1, "", "Error: No such object"),
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "nvidia-smi"):
        (folder / name).write_text("#!/bin/false\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("SUDO_USER", raising=False)
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


def container(running: bool) -> Answer:
    state = {
        "Running": running,
        "Status": "running" if running else "exited",
        "StartedAt": "2026-11-23T09:15:00Z",
        "ExitCode": 0,
        "Pid": 7,
    }
    return (
        0,
        json.dumps(
            [{"Id": "c" * 64, "Image": "sha256:1", "Config": {"Labels": {}}, "State": state}]
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
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    found = look(options(tmp_path / "tree"), host)
    assert found.problems == [] and len(found.lacking) == 2
    assert "Docker is not installed" in found.lacking[0] and "python3-requests" in found.lacking[1]


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


def test_a_running_container_holds_its_ports_itself(host: Docker, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        wanted = options(tmp_path / "tree", ports={"prometheus": holder.getsockname()[1]})
        host.answers["container inspect"] = container(running=True)
        assert look(wanted, host).problems == []
        host.answers["container inspect"] = container(running=False)
        assert len(look(wanted, host).problems) == 1


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
    monkeypatch.setattr(preflight.run_record, "describe", lambda telemetry, container: done)
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
    monkeypatch.setattr(gpu_health, "toolkit_problem", lambda run, docker: None)
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
        lambda run, docker: f"{os.path.basename(docker)} lacks the toolkit",
    )
    found = look(options(tmp_path / "tree", gpus=True), gpus)
    assert (found.problems, found.lacking) == ([], ["docker lacks the toolkit"])
    assert look(options(tmp_path / "tree", gpus=True, ready_for="stop"), gpus).lacking == []
    assert look(options(tmp_path / "tree", gpus=False), gpus).lacking == []


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
    assert "health is not known" in warning


def test_a_broken_driver_is_told_once(host: Docker, gpus: GpuHost, tmp_path: Path) -> None:
    host.answers["nvidia-smi"] = (9, "", "couldn't communicate with the NVIDIA driver")
    found = look(options(tmp_path / "tree", gpus=True), host)
    assert (
        found.warnings == []
        and len(found.problems) == 1
        and "couldn't communicate" in found.problems[0]
    )


def test_an_image_for_gpus_on_a_host_without_a_driver_is_refused(
    host: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/nvidiactl" and exists(path))
    found = look(options(tmp_path / "tree", gpus=True), host)
    assert (
        len(found.problems) == 1
        and "no working NVIDIA driver (/dev/nvidiactl is missing)" in found.problems[0]
    )
    assert "sgl_gpus to false" in found.problems[0] and found.warnings == []
    assert found.facts["devices"] == {"count": 1, "name": "cpu", "cuda": False, "health": None}
    assert look(options(tmp_path / "tree"), host).problems == []
    assert look(options(tmp_path / "tree", ready_for="stop", gpus=True), host).problems == [], (
        "what ends a run needs no GPU"
    )


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
