"""The container is replaced so that a healthy one stays until its replacement stands: at every call
of Docker at which the run can be killed, and at every way in which the new one can fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _container as container
from ansible_collections.slice_bench.sglang.plugins.module_utils import _live_run as live_run
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._container import (
    CREATOR_LABEL,
    ContainerError,
    Definition,
    Host,
    Stack,
    advise,
    environment_file,
    memory_file,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (
    CONTAINER_LABEL,
)

from tests.doubles.docker_client import Docker, Killed

NAME = "sglang-dev"
DESCRIBE = run_record.describe
DEAD = "1 1 11111111-2222-3333-4444-555555555555"


@pytest.fixture
def docker(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    monkeypatch.setattr(container, "_POLL_S", 0.0)
    monkeypatch.setattr(live_run, "_POLL_S", 0.0)

    def describe(telemetry_root: str, found: dict[str, Any] | None) -> dict[str, Any]:
        """A container that runs has published its run."""
        reason = None if found and found["running"] else f"container {NAME} is not running"
        run: dict[str, Any] = {"live": reason is None, "reason": reason, "prep": None, "in_use": []}
        run["manifest"] = {"services": {"prometheus": {"url": "http://127.0.0.1:9"}}}
        return run

    monkeypatch.setattr(run_record, "describe", describe)
    monkeypatch.setattr(container, "Readiness", Ready)
    return Docker()


class Ready:
    """Stands for a Prometheus that is ready."""

    def __init__(self, *_arguments: object) -> None:
        self.ready, self.reason = True, ""

    def wait(self, _timeout_s: float) -> Ready:
        return self

    def close(self) -> None:
        pass


def stack(docker: Docker) -> Stack:
    return Stack(Host(docker, "/telemetry"), NAME, 60, 5.0)


def definition(digest: str = "new", image: str = "sha256:new", **given: Any) -> Definition:
    fields: dict[str, Any] = {
        "user": "1000:1000", "gpus": False, "capabilities": [], "security_opts": [],
        "shm_size": "32g", "ulimits": [], "stop_timeout": 60, "volumes": ["/a:b,c:/telemetry"],
        "environment": {"TOKEN": "hunter2"},
    }  # fmt: skip
    return Definition(image=image, digest=digest, **{**fields, **given})


def old(docker: Docker, status: str = "running") -> str:
    return docker.add(NAME, "sha256:old", status, **{CONTAINER_LABEL: "old"}).id


def check_one(docker: Docker, digest: str) -> None:
    """One container, which runs, has the name and is of this digest."""
    assert [(each.name, each.status) for each in docker.containers.values()] == [(NAME, "running")]
    (made,) = docker.containers.values()
    assert made.labels[CONTAINER_LABEL] == digest


def test_a_container_is_replaced_and_the_old_one_goes_last(docker: Docker) -> None:
    outdated = old(docker)
    outcome = stack(docker).started(definition(), outdated, [])
    assert outcome.changed and outcome.run["live"]
    check_one(docker, "new")
    order = [words[0] for words in docker.calls if words[0] not in ("container",)]
    assert order == ["run", "create", "stop", "rename", "rename", "start", "rm"]
    assert docker.calls[-2][-1] == outdated, "removed once the new one is ready"


def test_one_is_created_where_there_is_none_and_nothing_is_tried_first(docker: Docker) -> None:
    assert stack(docker).started(definition(), None, []).changed
    check_one(docker, "new")
    assert "run" not in [words[0] for words in docker.calls]


def test_one_that_is_as_it_is_wanted_is_left_alone(docker: Docker) -> None:
    docker.add(NAME, "sha256:new", **{CONTAINER_LABEL: "new"})
    assert not stack(docker).started(definition(), None, []).changed
    assert {words[0] for words in docker.calls} == {"container"}


def test_secrets_stand_on_no_command_line(docker: Docker) -> None:
    stack(docker).started(definition(), old(docker), [])
    assert "hunter2" not in str(docker.calls) and "TOKEN" not in str(docker.calls)
    with memory_file(environment_file({"TOKEN": "hunter2"})) as path:
        assert Path(path).read_text() == "TOKEN=hunter2\n"
        assert not os.path.exists(os.path.realpath(path)), "a file on a disk"


def test_a_path_with_a_colon_or_a_comma_is_a_mount(docker: Docker) -> None:
    (mount,) = definition().mounts()
    assert mount == '--mount=type=bind,"source=/a:b,c",target=/telemetry'


@pytest.mark.parametrize(
    ("size", "expected"), [("32g", ["--ipc=private", "--shm-size=32g"]), ("host", ["--ipc=host"])]
)
def test_a_size_of_shared_memory_is_that_of_the_containers_own(
    docker: Docker, size: str, expected: list[str]
) -> None:
    """Docker ignores a size for a container that shares the host's IPC."""
    stack(docker).started(definition(shm_size=size), old(docker), [])
    made = [words for words in docker.calls if words[0] in ("run", "create")]
    assert [words[0] for words in made] == ["run", "create"]
    for words in made:
        assert [word for word in words if word.startswith(("--ipc", "--shm-size"))] == expected


SHM = (
    'invalid argument "lots" for "--shm-size" flag: invalid size: \'lots\'\n\nUsage:  docker create'
    " [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'docker create --help' for more information\n"
)
CAPABILITY = 'Error response from daemon: invalid CapAdd: unknown capability: "CAP_SYS_FOO"\n'
NO_TOOLKIT = (
    'docker: Error response from daemon: could not select device driver "" with capabilities:'
    " [[gpu]]\n\nRun 'docker run --help' for more information\n"
)
OLD_DRIVER = (
    "OCI runtime create failed: runc create failed: unable to start container process: error during"
    " container init: error running prestart hook #0: exit status 1, stderr: nvidia-container-cli:"
    " requirement error: unsatisfied condition: cuda>=12.9, please update your driver to a newer"
    " version, or use an earlier cuda container: unknown"
)
NO_RLIMIT = (
    "error during container init: error setting rlimits for ready process: error setting rlimit"
    " type 8: operation not permitted"
)
NO_PROGRAM = (
    "docker: Error response from daemon: failed to create shim task: OCI runtime create failed:"
    ' runc create failed: unable to start container process: exec: "sgl-admin": executable file not'
    " found in $PATH: unknown\n\nRun 'docker run --help' for more information\n"
)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (SHM, "Set sgl_shm_size"),
        (CAPABILITY, "Set sgl_capabilities"),
        (NO_TOOLKIT, "install the NVIDIA Container Toolkit"),
        (OLD_DRIVER, "install the driver that the message names"),
        (NO_RLIMIT, "set sgl_ulimits"),
    ],
)
def test_dockers_refusals_have_a_remedy(said: str, remedy: str) -> None:
    told = advise(said)
    assert (
        remedy in told and "Docker says: " in told and "Usage" not in told and "Run '" not in told
    )
    assert len(told) < 500 and "\n" not in told


@pytest.mark.parametrize(
    ("trial", "refuses", "words"),
    [
        ((125, "", SHM), None, "Set sgl_shm_size"),
        ((125, "", NO_TOOLKIT), None, "install the NVIDIA Container Toolkit"),
        ((127, "", NO_PROGRAM), None, "has no sgl-admin"),
        ((2, '{"problems": ["sglang 0.5.9 does not know --x"]}\n', "w"), None, "does not know --x"),
        ((1, "", "Traceback\nImportError: x"), None, "ended with exit code 1: ImportError: x"),
        ((137, "", ""), None, "ended with exit code 137"),
        ((0, '{"problems": []}', ""), CAPABILITY, "Set sgl_capabilities"),
    ],
)
def test_a_new_one_that_cannot_work_costs_the_healthy_one_nothing(
    docker: Docker, trial: tuple[int, str, str], refuses: str | None, words: str
) -> None:
    outdated = old(docker)
    docker.trial, docker.refuses = trial, refuses
    with pytest.raises(ContainerError) as refused:
        stack(docker).started(definition(), outdated, ["--x"])
    assert words in str(refused.value) and len(str(refused.value)) < 600
    check_one(docker, "old")
    assert not {"stop", "rename", "start"} & {words[0] for words in docker.calls}


def test_an_image_of_an_earlier_release_is_not_asked_what_it_does_not_know(docker: Docker) -> None:
    error = "sgl-admin: error: argument COMMAND: invalid choice: 'check' (choose from 'caches')"
    docker.trial = (2, "", error)
    assert stack(docker).started(definition(), old(docker), []).changed
    check_one(docker, "new")


def test_a_new_one_that_dies_goes_and_the_old_one_runs_again(docker: Docker) -> None:
    outdated = old(docker)
    docker.broken.add("sha256:new")
    with pytest.raises(ContainerError) as refused:
        stack(docker).started(definition(), outdated, [])
    sentence, _line, log = str(refused.value).partition("\nThe end of its log:\n")
    assert "the old one is back and runs" in sentence and "cannot listen" in sentence
    assert len(sentence) < 400 and "sgl-init: ERROR" in log
    check_one(docker, "old")


def test_one_whose_prometheus_is_not_ready_goes_and_the_old_one_runs_again(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotReady(Ready):
        def __init__(self, *_arguments: object) -> None:
            self.ready, self.reason = False, "http://127.0.0.1:9 refuses the connection"

    monkeypatch.setattr(container, "Readiness", NotReady)
    with pytest.raises(ContainerError, match="refuses the connection"):
        stack(docker).started(definition(), old(docker), [])
    check_one(docker, "old")


@pytest.mark.parametrize("status", ["exited", "restarting", "created", "dead"])
def test_an_old_one_that_did_not_run_comes_back_as_it_was(docker: Docker, status: str) -> None:
    outdated = old(docker, status)
    docker.broken.add("sha256:new")
    with pytest.raises(ContainerError, match=f"the old one is back, which was {status}"):
        stack(docker).started(definition(), outdated, [])
    (made,) = docker.containers.values()
    assert made.id == outdated and made.name == NAME and not docker.running


def test_a_first_one_that_dies_leaves_nothing(docker: Docker) -> None:
    docker.broken.add("sha256:new")
    with pytest.raises(ContainerError, match="has no live run"):
        stack(docker).started(definition(), None, [])
    assert docker.containers == {}


def all_kills(docker_of: Callable[[], Docker], wanted: Definition) -> Iterator[Docker]:
    """The host after a kill before each call that a replacement makes."""
    for number in range(1000):
        docker = docker_of()
        outdated = next(iter(docker.containers), None)
        docker.kill_at = number
        try:
            stack(docker).started(wanted, outdated, [])
        except (Killed, ContainerError):
            pass
        done = len(docker.calls) < number
        docker.kill_at = None
        for made in docker.containers.values():
            # The process that made it is gone.
            if CREATOR_LABEL in made.labels:
                made.labels[CREATOR_LABEL] = DEAD
        docker.calls.clear()
        yield docker
        if done:
            return
    raise AssertionError("a replacement does not end")


def site(docker: Docker, status: str | None, broken: bool) -> Docker:
    fresh = Docker(broken={"sha256:new"} if broken else set())
    if status is not None:
        old(fresh, status)
    return fresh


@pytest.mark.parametrize("status", [None, "running", "exited"])
@pytest.mark.parametrize("broken", [False, True])
def test_killed_at_any_call_the_next_run_ends_it(
    docker: Docker, status: str | None, broken: bool
) -> None:
    kills = 0
    for left in all_kills(lambda: site(docker, status, broken), definition()):
        kills += 1
        left.broken.clear()
        seen = left.named(NAME)
        outcome = stack(left).started(definition(), seen.id if seen else None, [])
        assert outcome.run["live"]
        check_one(left, "new")
    assert kills > 5


def test_killed_at_any_call_a_next_run_that_cannot_work_finds_the_old_one_again(
    docker: Docker,
) -> None:
    for left in all_kills(lambda: site(docker, "running", broken=True), definition()):
        left.trial = (125, "", SHM)
        seen = left.named(NAME)
        with pytest.raises(ContainerError):
            stack(left).started(definition("other"), seen.id if seen else None, [])
        check_one(left, "old")


def test_killed_at_any_call_a_stop_leaves_nothing(docker: Docker) -> None:
    for left in all_kills(lambda: site(docker, "running", broken=False), definition()):
        assert stack(left).removed()
        assert left.containers == {}
        assert not stack(left).removed()


def test_while_another_run_replaces_it_this_one_waits_and_takes_what_came(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated = old(docker)
    # This very process is alive.
    labels = {CONTAINER_LABEL: "new", CREATOR_LABEL: container._creator()}
    docker.add(f"{NAME}.next", "sha256:new", "created", **labels)
    waited = []

    def other_run(_seconds: float) -> None:
        waited.append(1)
        if len(waited) == 3:
            docker(["docker", "stop", outdated])
            docker(["docker", "rename", outdated, f"{NAME}.replaced"])
        elif len(waited) == 5:
            docker(["docker", "rename", f"{NAME}.next", NAME])
        elif len(waited) == 7:
            docker(["docker", "start", NAME])
        elif len(waited) == 9:
            docker(["docker", "rm", outdated])

    monkeypatch.setattr(container.time, "sleep", other_run)
    outcome = stack(docker).started(definition(), outdated, [])
    assert not outcome.changed and len(waited) == 9
    check_one(docker, "new")


def test_a_new_one_in_which_a_prep_runs_is_not_given_up_for_the_old_one(
    docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run was killed after its container was ready; Prometheus does not answer just now."""
    prep = {"prep_id": "prep-1", "pid": 7, "arguments": ["--tp=1"]}
    labels = {CONTAINER_LABEL: "new", CREATOR_LABEL: DEAD}
    new = docker.add(NAME, "sha256:new", **labels)
    docker.add(f"{NAME}.replaced", "sha256:old", "exited", **{CONTAINER_LABEL: "old"})
    dead = {"live": False, "reason": "x", "manifest": None, "in_use": [], "prep": prep}
    monkeypatch.setattr(run_record, "describe", lambda root, found: dead)
    monkeypatch.setattr(container.live_run, "wait", _not_live)
    with pytest.raises(ContainerError, match="prep-1"):
        stack(docker).started(definition(), new.id, [])
    assert docker.running == [NAME] and len(docker.containers) == 2


def _not_live(*_arguments: object) -> tuple[dict[str, Any], float]:
    raise run_record.RecordError("no live run")


def test_one_that_another_run_made_with_other_options_stays(docker: Docker) -> None:
    docker.add(NAME, "sha256:x", **{CONTAINER_LABEL: "other"})
    with pytest.raises(ContainerError, match="created by another run meanwhile"):
        stack(docker).started(definition(), "f" * 64, [])
    check_one(docker, "other")


def test_a_container_of_somebody_else_beside_it_is_not_touched(docker: Docker) -> None:
    outdated = old(docker)
    docker.add(f"{NAME}.next", "postgres", "running")
    with pytest.raises(ContainerError, match="another program made it: rename it"):
        stack(docker).started(definition(), outdated, [])
    with pytest.raises(ContainerError):
        stack(docker).removed()
    assert sorted(docker.running) == [NAME, f"{NAME}.next"]


def test_what_runs_in_a_container_whose_records_cannot_be_read_is_told_by_its_lock(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    (tmp_path / ".locks").mkdir()
    monkeypatch.setattr(run_record, "describe", DESCRIBE)
    outdated = old(docker)
    docker.containers[outdated].mounts = {"/profiles": str(tmp_path)}
    with open(tmp_path / ".locks" / "serving.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ContainerError, match="a server that was started for a benchmark"):
            stack(docker).started(definition(), outdated, None)
    check_one(docker, "old")


WORK: list[dict[str, Any]] = [
    {"prep": {"prep_id": "prep-7", "pid": 812, "stage": "inductor", "arguments": ["--tp=1"]}},
    {"in_use": ["a server that was started for a benchmark (stop it)"]},
]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("beside", [None, "next", "replaced"])
def test_a_stop_asks_once_more_what_runs_and_ends_it_only_where_that_is_wanted(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, beside: str | None, work: dict[str, Any]
) -> None:
    """Between the preflight and the stop a server may have been started."""
    old(docker)
    if beside is not None:
        docker.add(f"{NAME}.{beside}", "sha256:new", "exited", **{CONTAINER_LABEL: "new"})
    found = {"live": True, "prep": None, "in_use": [], **work}
    monkeypatch.setattr(run_record, "describe", lambda root, container: found)
    for stop in (stack(docker).removed, stack(docker).may_be_removed):
        with pytest.raises(ContainerError, match="is not stopped, because in it runs") as refusal:
            stop()
        assert "set sgl_stop_force to true" in str(refusal.value)
    assert docker.running == [NAME]
    assert stack(docker).removed(force=True) and not docker.containers


def test_a_second_name_for_a_tree_is_refused_before_anything_is_stopped(
    docker: Docker, tmp_path: Path
) -> None:
    """Whatever the records say, and whatever the first one does."""
    other = docker.add("sglang-a", "sha256:a", "exited", **{CONTAINER_LABEL: "a"})
    other.mounts = {"/telemetry": str(tmp_path)}
    wanted = definition(volumes=[f"{tmp_path}:/telemetry"])
    made = Stack(Host(docker, str(tmp_path)), NAME, 60, 5.0)
    outdated = docker.add(NAME, "sha256:old", "exited", **{CONTAINER_LABEL: "old"})
    for status in ("exited", "created", "paused", "restarting", "running", "dead"):
        other.status = status
        with pytest.raises(ContainerError, match=rf"container sglang-a \({status}\)"):
            made.started(wanted, outdated.id, None)
        assert [each.name for each in docker.containers.values()] == ["sglang-a", NAME]
        assert (other.status, outdated.status) == (status, "exited")
    del docker.containers[other.id]
    assert made.started(wanted, outdated.id, None).changed
    check_one(docker, "new")


def test_of_two_names_made_at_once_for_a_tree_neither_starts_beside_the_other(
    docker: Docker, tmp_path: Path
) -> None:
    """The other one's is there when this one's has just been made."""
    made = Stack(Host(docker, str(tmp_path)), NAME, 60, 5.0)
    create = docker._create

    def create_both(words: list[str]) -> tuple[int, str, str]:
        other = docker.add("sglang-b.next", "sha256:b", "created", **{CONTAINER_LABEL: "b"})
        other.mounts = {"/telemetry": str(tmp_path)}
        return create(words)

    docker._create = create_both  # type: ignore[method-assign]
    with pytest.raises(ContainerError, match="one container"):
        made.started(definition(volumes=[f"{tmp_path}:/telemetry"]), None, None)
    assert [each.name for each in docker.containers.values()] == ["sglang-b.next"]


def test_an_environment_that_docker_cannot_be_given_is_refused() -> None:
    with pytest.raises(ContainerError, match="CERTIFICATE holds a line break"):
        environment_file({"CERTIFICATE": "a\nb"})


@pytest.mark.parametrize(
    ("said", "warns"),
    [
        # docker/cli v27.5.1: cli/command/container/start.go and rename.go, which say the daemon's
        # answer and then what they could not do.
        ("Error response from daemon: No such container: a", False),
        ("Error: No such container: a", False),
        (
            "Error response from daemon: No such container: a\n"
            "Error: failed to rename container named a",
            False,
        ),
        (
            "Error response from daemon: No such container: a\n"
            "Error: failed to start containers: a",
            False,
        ),
        # moby, daemon/container_operations_unix.go: another container than the one asked for.
        (
            "Error response from daemon: joining network namespace of container: No such"
            " container: b",
            True,
        ),
        ("Error response from daemon: removal of container a is already in progress", True),
    ],
)
def test_only_a_container_that_docker_does_not_know_is_passed_over(
    docker: Docker, monkeypatch: pytest.MonkeyPatch, said: str, warns: bool
) -> None:
    old(docker, "exited")
    monkeypatch.setattr(docker, "_rm", lambda words: (1, "", f"{said}\n"), raising=False)
    removing = stack(docker)
    assert removing.removed()
    assert removing.warnings == ([f"docker rm: {said}"] if warns else [])
