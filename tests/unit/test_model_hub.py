"""How the container of the hub's client is begun: what it may see, and what its user sees of
Docker's refusals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _model_hub as model_hub
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError

TOKEN = "hf_0123456789abcdefgh"


def container_of(
    answers: dict[str, tuple[int, str, str]],
) -> tuple[list[list[str]], list[dict[str, str]], Any]:
    calls: list[list[str]] = []
    environments: list[dict[str, str]] = []

    def docker_with(environment: Mapping[str, str]) -> DockerCli:
        def run(arguments: list[str]) -> tuple[int, str, str]:
            calls.append(arguments[1:])
            environments.append(dict(environment))
            return answers.get(" ".join(arguments[1:3]), (0, "", ""))

        return DockerCli(run, binary="docker")

    return calls, environments, docker_with


IMAGE = (0, json.dumps([{"Id": "sha256:1", "Architecture": "amd64"}]), "")
GONE = (1, "", "Error: No such container")


def test_the_container_gets_the_token_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*model_hub.PROXY_VARIABLES, "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:1")
    calls, environments, docker_with = container_of(
        {"image inspect": IMAGE, "container inspect": GONE}
    )
    client = model_hub.ContainerClient(docker_with, "image", "/models/m", 7, 8)
    client.start("/models/.staging/m", ["org/m", "main", "1"], {"HF_TOKEN": TOKEN})
    run = calls[-1]
    assert (
        run[:2] == ["container", "run"]
        and TOKEN not in " ".join(run)
        and "secret" not in " ".join(run)
    )
    assert environments[-1] == {"HF_TOKEN": TOKEN}
    pairs = list(zip(run, run[1:], strict=False))
    for pair in (
        ("--env", "HF_TOKEN"),
        ("--env", "HTTPS_PROXY"),
        ("--user", "7:8"),
        ("--volume", "/models/.staging/m:/staging"),
    ):
        assert pair in pairs
    assert ("--volume", f"{bundle}:/ca-bundle.pem:ro") in pairs and run[-4:] == [
        "/staging",
        "org/m",
        "main",
        "1",
    ]


def test_a_container_that_is_there_is_ended() -> None:
    state = {"Running": True, "Status": "running", "StartedAt": "", "ExitCode": 0, "Pid": 7}
    there = (0, json.dumps([{"Id": "1", "Image": "i", "State": state}]), "")
    for found, ended in ((there, True), (GONE, False)):
        calls, _environments, docker_with = container_of({"container inspect": found})
        client = model_hub.ContainerClient(docker_with, "", "/models/m/", 7, 8)
        client.stop()
        assert (["container", "rm", "--force", client.name] in calls) is ended
        assert client.name == model_hub.ContainerClient(docker_with, "", "/models/m", 7, 8).name
    with pytest.raises(ModelError, match="cannot be stopped: .*does not answer"):
        broken = container_of({"container inspect": (1, "", "Cannot connect to the Docker daemon")})
        model_hub.ContainerClient(broken[2], "", "/m", 1, 1).stop()


def test_docker_that_does_not_work_is_a_sentence() -> None:
    for answers, said in (
        ({"image inspect": (1, "", "No such image")}, "there is no image image"),
        (
            {"image inspect": IMAGE, "container inspect": GONE, "container run": (125, "", "boom")},
            "cannot be started: boom",
        ),
    ):
        with pytest.raises(ModelError, match=said):
            model_hub.ContainerClient(container_of(answers)[2], "image", "/m", 1, 1).start(
                "/s", [], {}
            )
    with pytest.raises(ModelError, match="does not answer"):
        broken = container_of({"container inspect": (1, "", "Cannot connect to the Docker daemon")})
        model_hub.ContainerClient(broken[2], "image", "/m", 1, 1).running()
