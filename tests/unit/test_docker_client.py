"""The Docker client's answers and failures, the prep's client over it, and the steps of the image's
build.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _docker_cli as docker_cli
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_build as image_build
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (
    INPUTS_LABEL,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerCli,
    DockerError,
    DockerMissing,
    DockerSilent,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_build import ImageBuild
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import (
    ImageError,
    host_architecture,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._prep_client import (
    AdminError,
    PrepClient,
    did_work,
    failure,
)

from tests.contract import validators
from tests.doubles import docker_words
from tests.doubles.docker_words import absent

ROOT = Path(__file__).resolve().parents[2]
Answer = tuple[int, str, str]
PREP_ID = "prep-20261123T091600Z-77aa01bc"


class Docker:
    """Stands for the docker client: it answers by the words of the command line, and remembers what
    it was asked.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[list[str]] = []
        # What each command had on standard input.
        self.texts: list[str] = []

    def __call__(self, command: list[str], text: str = "") -> Answer:
        self.asked.append(command)
        self.texts.append(text)
        line = " ".join(command[1:])
        for words, answer in self.answers.items():
            if words in line:
                return answer
        return absent(command)


@pytest.fixture
def docker(docker_folder: Path) -> Docker:
    return Docker()


def image(
    identifier: str = "sha256:1", inputs: str = "sha256:a", architecture: str = "amd64"
) -> Answer:
    config = {"Labels": {INPUTS_LABEL: inputs}}
    return (
        0,
        json.dumps(
            [
                {
                    "Id": identifier,
                    "Config": config,
                    "Architecture": architecture,
                    "Created": "2026-11-23T09:00:00Z",
                }
            ]
        ),
        "",
    )


# --- docker_cli -----------------------------------------------------------------------------------


def test_no_client_is_told_with_its_remedy(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(DockerMissing, match="apt-get install docker.io"):
        DockerCli(docker)


@pytest.mark.parametrize("release", docker_words.CONTAINER)
def test_a_container_that_is_missing_is_none_in_the_words_of_every_release(
    docker: Docker, release: str
) -> None:
    docker.answers = {"container inspect": (1, "[]\n", docker_words.CONTAINER[release])}
    assert DockerCli(docker).container("box") is None
    assert docker.asked[0][1:] == ["container", "inspect", "box"]


@pytest.mark.parametrize("release", docker_words.IMAGE)
def test_an_image_that_is_missing_is_none_in_the_words_of_every_release(
    docker: Docker, release: str
) -> None:
    docker.answers = {"image inspect": (1, "[]\n", docker_words.IMAGE[release])}
    assert DockerCli(docker).image("box:local") is None


@pytest.mark.parametrize("release", docker_words.SILENT)
def test_a_daemon_that_cannot_be_asked_says_of_nothing_that_it_is_missing(
    docker: Docker, release: str
) -> None:
    words, remedy = docker_words.SILENT[release]
    docker.answers = {"inspect": (1, "[]\n", words), "": (1, "", words)}
    for call in (
        lambda: DockerCli(docker).container("box"),
        lambda: DockerCli(docker).image("box:local"),
        lambda: DockerCli(docker).call("ps"),
    ):
        with pytest.raises(DockerSilent) as refusal:
            call()
        assert remedy in str(refusal.value)
    assert DockerCli(docker).info() == {}
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "words",
    [
        # Neither sentence of Docker is about the thing that was asked for.
        "Error response from daemon: No such container: other",
        "Error response from daemon: No such network: box",
        "Error response from daemon: open /var/lib/docker/containers/a: no such file or directory",
        "error getting credentials: docker-credential-pass not found",
        "Error response from daemon: context deadline exceeded",
        "Error response from daemon: authorization denied by plugin opa: not found",
        # What ended the call stands last.
        "Error: No such container: box\nError response from daemon: it broke before",
        "",
    ],
)
def test_other_words_count_only_where_docker_lists_nothing(docker: Docker, words: str) -> None:
    docker.answers = {"container inspect": (1, "", words), "container ls": (0, "", "")}
    assert DockerCli(docker).container("box") is None
    assert docker.asked[-1][-1] == "name=^/?box$"
    docker.answers["container ls"] = (0, f"{'c' * 64}\n", "")
    with pytest.raises(DockerError, match=words[-20:] or "exit code 1"):
        DockerCli(docker).container("box")
    docker.answers["container ls"] = (1, "", "Error response from daemon: it broke")
    with pytest.raises(DockerError, match="it broke"):
        DockerCli(docker).container("box")


def test_a_missing_thing_costs_no_second_call_with_docker_itself(docker: Docker) -> None:
    assert DockerCli(docker).container("box") is DockerCli(docker).image("box:local") is None
    assert [words[1:3] for words in docker.asked] == [
        ["container", "inspect"],
        ["image", "inspect"],
    ]


def test_a_name_is_no_pattern(docker: Docker) -> None:
    docker.answers = {"inspect": (1, "", "what?")}
    DockerCli(docker).container("a.b-c")
    assert docker.asked[-1][-1] == r"name=^/?a\.b\-c$"
    image_id = "sha256:" + "1" * 64
    docker.answers["image ls"] = (0, f"{image_id}\n", "")
    with pytest.raises(DockerError, match="what"):
        DockerCli(docker).image(image_id)
    assert DockerCli(docker).image("sha256:" + "2" * 64) is None


def test_docker_that_fails_is_told_in_its_own_words(docker: Docker) -> None:
    docker.answers = {"": (1, "", "something else")}
    for call in (lambda: DockerCli(docker).image("x"), lambda: DockerCli(docker).call("ps")):
        with pytest.raises(DockerError, match="^something else$") as refusal:
            call()
        assert not isinstance(refusal.value, DockerSilent)


@pytest.mark.parametrize(
    "answer",
    [
        (1, "", "no daemon"),
        (0, "", ""),
        (0, "[]", ""),
        (1, "{}", ""),
        (0, "[" * 100_000, ""),
        # docker/cli's own part, with exit code 0 in some releases.
        (0, '{"ID": "", "ServerErrors": ["Cannot connect to the Docker daemon"]}', ""),
    ],
)
def test_info_that_cannot_be_read_is_empty_and_asked_for_once(
    docker: Docker, answer: Answer
) -> None:
    docker.answers = {"info": answer}
    cli = DockerCli(docker)
    assert cli.info() == cli.info() == {} and len(docker.asked) == 1


def test_a_container_is_described(docker: Docker) -> None:
    state = {
        "Running": True,
        "Status": "running",
        "StartedAt": "2026-11-23T09:15:00.1Z",
        "ExitCode": 0,
        "Pid": 7,
    }
    found: dict[str, Any] = {"Id": "c" * 64, "Image": "sha256:1", "State": state}
    found["Config"] = {"Labels": None}
    docker.answers = {"container inspect": (0, json.dumps([found]), "")}
    described = DockerCli(docker).container("x")
    assert (
        described is not None
        and described["running"] is True
        and described["labels"] == {}
        and described["pid"] == 7
    )
    state["Restarting"] = True
    docker.answers = {"container inspect": (0, json.dumps([found]), "")}
    assert (DockerCli(docker).container("x") or {})["running"] is False, (
        "one that starts again and again does not run"
    )
    state.update(Restarting=False, Paused=True, Status="paused")
    found.update(Name="/sglang-gpu7", Mounts=[{"Source": "/p", "Destination": "/profiles"}])
    docker.answers = {"container inspect": (0, json.dumps([found]), "")}
    paused = DockerCli(docker).container("x") or {}
    assert (paused["running"], paused["status"]) == (False, "paused")
    assert (paused["name"], paused["mounts"]) == ("sglang-gpu7", {"/profiles": "/p"})


def test_the_holder_of_a_port_is_a_container_of_this_collection(docker: Docker) -> None:
    def described(*environment: Any) -> tuple[int, str, str]:
        return 0, json.dumps([{"Config": {"Env": list(environment)}}]), ""

    docker.answers = {
        "ps --filter label=org.slice-bench.container-inputs": (0, "one\ntwo\n", ""),
        "container inspect one": described("SGL_PROMETHEUS_PORT=19090"),
        "container inspect two": described("A=1", "SGL_PROMETHEUS_PORT=9090"),
    }
    client = DockerCli(docker)
    assert client.holder_of("SGL_PROMETHEUS_PORT", "9090") == "two"
    assert client.holder_of("SGL_PROMETHEUS_PORT", "909") is None
    assert client.holder_of("PROMETHEUS_PORT", "9090") is None
    docker.answers = {"ps": (0, "", "")}
    assert client.holder_of("SGL_PROMETHEUS_PORT", "9090") is None


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "[]",
        "{}",
        "[7]",
        "[" * 100_000,
        '[{"Id": "x"}]',
        '[{"Id": 7, "Config": [], "State": {}}]',
    ],
)
def test_what_is_no_description_is_told(docker: Docker, printed: str) -> None:
    docker.answers = {"inspect": (0, printed, "")}
    for call in (lambda: DockerCli(docker).image("x"), lambda: DockerCli(docker).container("x")):
        with pytest.raises(DockerError, match="must be Docker's own client"):
            call()


def test_a_failure_without_a_word_is_told_all_the_same(docker: Docker) -> None:
    docker.answers = {"": (125, "", "")}
    with pytest.raises(DockerError, match="exit code 125"):
        DockerCli(docker).image("x")


@pytest.mark.parametrize(
    ("version", "has_buildx", "wanted"),
    [
        ("20.10.24", False, ["build"]),
        ("28.2.2", True, ["buildx", "build", "--load"]),
        ("28.2.2", False, None),
        ("", False, None),
    ],
)
def test_the_client_that_can_build(
    docker: Docker, version: str, has_buildx: bool, wanted: list[str] | None
) -> None:
    docker.answers = {
        "version --format": (0, version + "\n", ""),
        "buildx version": (0 if has_buildx else 1, "", ""),
    }
    if wanted is None:
        with pytest.raises(DockerError, match="docker-buildx"):
            docker_cli.build_client(docker)
    else:
        assert docker_cli.build_client(docker)[1:] == wanted


# --- prep_client ----------------------------------------------------------------------------------


def envelope(**job: Any) -> Answer:
    return (
        0,
        json.dumps({"job": {"prep_id": PREP_ID, "state": "running", **job}, "result": None}),
        "",
    )


def test_a_prep_is_begun_and_followed(docker: Docker) -> None:
    docker.answers = {"caches ensure": envelope(), "status": envelope(state="done")}
    client = PrepClient(docker, "box")
    request = {"model": "/models/a b", "server_args": ["--x"]}
    assert client.start(request, 0.5)["job"]["state"] == "running"
    command = ["exec", "--interactive", "box", "sgl-admin", "caches", "ensure", "--request", "-"]
    assert docker.asked[-1][1:] == [*command, "--detach", "--wait", "0.5"]
    assert json.loads(docker.texts[-1]) == request
    assert client.follow(PREP_ID, 5)["job"]["state"] == "done"
    assert "--interactive" not in docker.asked[-1] and docker.texts[-1] == ""
    client.start(request, 0.5, standing=True)
    assert docker.asked[-1][-1] == "--standing"


def test_another_prep_in_its_place_is_told(docker: Docker) -> None:
    docker.answers = {"status": envelope(prep_id="prep-20261123T091600Z-00000000")}
    with pytest.raises(AdminError, match=f"{PREP_ID} is gone"):
        PrepClient(docker, "box").follow(PREP_ID, 5)
    docker.answers = {"status": (0, '{"job": null, "result": null}', "")}
    with pytest.raises(AdminError, match=f"{PREP_ID} is gone"):
        PrepClient(docker, "box").follow(PREP_ID, 5)


@pytest.mark.parametrize(
    ("code", "word"),
    [(2, "usage"), (3, "permission"), (4, "no live run"), (5, "busy"), (137, "exit code 137")],
)
def test_a_prep_that_does_not_begin_is_told_in_sgl_admins_words(
    docker: Docker, code: int, word: str
) -> None:
    docker.answers = {"caches ensure": (code, "", "sgl-admin: the thing and the remedy\n")}
    with pytest.raises(AdminError) as caught:
        PrepClient(docker, "box").start({}, 0)
    assert str(caught.value) == f"the prep did not begin ({word}): the thing and the remedy"


@pytest.mark.parametrize(
    "output",
    [
        "",
        "text",
        "[]",
        "{}",
        '{"job": 7, "result": null}',
        '{"job": null, "result": []}',
        "[" * 100_000,
    ],
)
def test_an_answer_that_is_none_is_told(docker: Docker, output: str) -> None:
    docker.answers = {"caches ensure": (0, output, "")}
    with pytest.raises(AdminError):
        PrepClient(docker, "box").start({}, 0)


def test_a_dry_run_is_read_before_its_last_lines(docker: Docker) -> None:
    plan = {"would_change": True, "stages": {}}
    docker.answers = {
        "--dry-run": (
            0,
            json.dumps(plan, indent=2) + "\nRESULT_STATUS dry_run inductor:would_run\n",
            "",
        )
    }
    assert PrepClient(docker, "box").dry_run({}) == plan


def test_changed_is_work_or_a_proof_of_this_prep() -> None:
    result = validators.example("prep_result")
    for stage in result["stages"].values():
        stage["ran"] = False
    result["telemetry_probe"]["prep_id"] = "another"
    assert did_work(result) is False
    result["telemetry_probe"]["prep_id"] = result["run"]["prep_id"]
    assert did_work(result) is True
    result["telemetry_probe"]["prep_id"] = "another"
    result["stages"]["inductor"]["ran"] = True
    assert did_work(result) is True


def test_why_a_prep_failed() -> None:
    job, result = validators.example("job"), validators.example("prep_result")
    job.update(state="done", exit_code=0)
    for stage in result["stages"].values():
        stage["status"] = "noop"
    assert failure(job, result) is None
    assert (
        failure({**job, "exit_code": 6}, {**result, "telemetry_probe": {"reason": "nothing came"}})
        == "the stages are fine, but METRICS_READY is not proven: nothing came"
    )
    result["stages"]["flashinfer"].update(
        status="error", error_type="oom", errors=["no memory"], log_tail=["a", "b"]
    )
    assert (
        failure({**job, "exit_code": 12}, result) == "stage flashinfer failed, oom: no memory\na\nb"
    )
    assert "ended without a result (interrupted)" in str(
        failure({**job, "state": "interrupted"}, None)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "interrupted", "exit_code": None},
        {"state": "interrupted"},
        {"exit_code": None},
        {"exit_code": []},
    ],
)
def test_a_prep_that_did_not_end_in_order_has_failed_also_with_a_result(
    changes: dict[str, Any],
) -> None:
    job, result = validators.example("job"), validators.example("prep_result")
    job.update(state="done", exit_code=0)
    assert failure(job, result) is None
    assert "run it again" in str(failure({**job, **changes}, result))


# --- image_build ----------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context" / "flavours" / "local"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("torch==2.13.0 --hash=sha256:00\n")
    return tmp_path / "context"


@pytest.fixture
def build(docker: Docker, tmp_path: Path) -> ImageBuild:
    (tmp_path / "cache").mkdir()
    return ImageBuild(
        docker,
        "box:local",
        "local",
        "sha256:a",
        "base:bookworm",
        "bookworm",
        str(tmp_path / "cache"),
    )


def test_the_steps_come_one_after_the_other(
    build: ImageBuild, docker: Docker, context: Path
) -> None:
    assert build.next_step(str(context)) == "base"
    docker.answers["image inspect base:bookworm"] = image("sha256:0", "", host_architecture())
    assert build.next_step(str(context)) == "wheels"
    Path(build._wheelhouse(str(context))).mkdir(parents=True)
    assert build.next_step(str(context)) == "build"
    docker.answers["image inspect box:local"] = image(inputs="sha256:other")
    assert build.next_step(str(context)) == "build" and build.current() is None
    docker.answers["image inspect box:local"] = image()
    assert build.next_step(str(context)) is None


def test_other_requirements_are_other_wheels(build: ImageBuild, context: Path) -> None:
    before = build._wheelhouse(str(context))
    (context / "flavours" / "local" / "requirements.txt").write_text("torch==2.14.0\n")
    assert build._wheelhouse(str(context)) != before


def failing(*_: object, **__: object) -> None:
    raise ImageError("pip download failed with exit code 1: no network")


def test_wheels_that_fail_are_not_taken_for_whole(
    build: ImageBuild, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_build, "run_step", failing)
    with pytest.raises(ImageError, match="no network"):
        build.fetch_wheels(str(context))
    assert os.listdir(build.build_dir) == []


def test_new_wheels_replace_the_old_ones(
    build: ImageBuild, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(image_build, "run_step", lambda what, command: commands.append(command))
    old = Path(build.build_dir) / "wheelhouse-0000000000000000"
    old.mkdir()
    build.fetch_wheels(str(context))
    assert os.listdir(build.build_dir) == [os.path.basename(build._wheelhouse(str(context)))]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(commands[0])
    assert not [word for word in commands[0] if "index" in word or "://" in word], (
        "indexes come from the host's settings"
    )


def test_a_base_needs_root_and_debootstrap(
    build: ImageBuild, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="--become"):
        build.make_base(str(context))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(image_build.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ImageError, match="apt-get install debootstrap"):
        build.make_base(str(context))


@pytest.mark.parametrize(
    ("answer", "mirror"),
    [
        (
            (0, "bookworm contrib http://a/debian/\nbookworm main http://b/debian/\n", ""),
            "http://b/debian/",
        ),
        ((0, "noble main http://c/ubuntu/\n", ""), None),
        ((1, "bookworm main http://b/debian/\n", ""), None),
    ],
)
def test_the_hosts_own_mirror(
    build: ImageBuild,
    docker: Docker,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    mirror: str | None,
) -> None:
    monkeypatch.setattr(image_build.shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    docker.answers = {"indextargets": answer}
    assert build.host_mirror() == mirror


def built(
    build: ImageBuild, docker: Docker, context: Path, monkeypatch: pytest.MonkeyPatch, after: Answer
) -> list[str]:
    """The command of a build after which docker says `after` of the image."""
    Path(build._wheelhouse(str(context))).mkdir(parents=True)
    docker.answers = {
        "image inspect base": image("sha256:0"),
        "version --format": (0, "20.10.24", ""),
    }
    commands: list[list[str]] = []

    def step(what: str, command: list[str], environment: dict[str, str]) -> None:
        assert environment == image_build._BUILDKIT
        commands.append(command)
        docker.answers["image inspect box"] = after

    monkeypatch.setattr(image_build, "run_step", step)
    monkeypatch.setattr(image_build, "check_image", lambda *_: None)
    build.build(str(context), "abc")
    return commands[0]


def test_the_build_is_given_its_inputs(
    build: ImageBuild, docker: Docker, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = host_architecture()
    command = built(build, docker, context, monkeypatch, image(architecture=architecture))
    for argument in (
        "IMAGE_INPUTS=sha256:a",
        "BASE_DIGEST=sha256:0",
        "FLAVOUR=local",
        "GIT_REVISION=abc",
    ):
        assert argument in command
    assert command[-1] == str(context)


@pytest.mark.parametrize(
    ("after", "words"),
    [(image(inputs="sha256:other"), "another build"), (image(architecture="riscv64"), "riscv64")],
)
def test_a_build_that_made_something_else_is_told(
    build: ImageBuild,
    docker: Docker,
    context: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: Answer,
    words: str,
) -> None:
    with pytest.raises(ImageError, match=words):
        built(build, docker, context, monkeypatch, after)


def test_a_step_that_fails_shows_the_end_of_its_output() -> None:
    script = "for i in $(/usr/bin/seq 40); do echo line $i; done; exit 7"
    with pytest.raises(ImageError, match="docker build failed with exit code 7") as caught:
        image_build.run_step("docker build", ["/bin/sh", "-c", script])
    assert "line 40" in str(caught.value) and "line 15\n" not in str(caught.value)


def archive(path: Path, *entries: tarfile.TarInfo) -> str:
    with tarfile.open(path, "w") as stream:
        for entry in entries:
            stream.addfile(entry, io.BytesIO(b"x" * entry.size))
    return str(path)


def test_only_a_build_context_is_unpacked(tmp_path: Path) -> None:
    good, outside = tarfile.TarInfo("deep/file"), tarfile.TarInfo("../outside")
    good.size = outside.size = 1
    folder = tmp_path / "unpacked"
    folder.mkdir()
    image_build.unpack(archive(tmp_path / "good.tar", good), str(folder))
    assert (folder / "deep" / "file").read_bytes() == b"x"
    with pytest.raises(ImageError, match=r"holds \.\./outside, which is no plain file below it"):
        image_build.unpack(archive(tmp_path / "bad.tar", outside), str(folder))
    assert not (tmp_path / "outside").exists()
    (tmp_path / "torn.tar").write_bytes(b"torn")
    with pytest.raises(ImageError, match="torn.tar"):
        image_build.unpack(str(tmp_path / "torn.tar"), str(folder))


def test_the_hosts_ca_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in image_build._CA_BUNDLE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(image_build, "_CA_BUNDLE", str(tmp_path / "none"))
    assert image_build.ca_bundle() is None
    (tmp_path / "ca.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert image_build.ca_bundle() == str(tmp_path / "ca.pem")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "gone.pem"))
    assert image_build.ca_bundle() == str(tmp_path / "ca.pem")
