"""What cannot work is refused before anything changes: no folder is made, no image, no container;
each with its remedy.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.fault_site import FAULT_IMAGE
from tests.integration.installation import Play, Site, docker, tree

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of another owner"
)


def named_images() -> list[str]:
    """Names and ids, but for the fault image's, which its tests may make meanwhile."""
    form = ("--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "--no-trunc")
    lines = docker("image", "ls", "--filter", "dangling=false", *form).stdout.splitlines()
    return sorted(line for line in lines if not line.startswith(f"{FAULT_IMAGE} "))


@pytest.fixture
def refused(bare: Site) -> Iterator[Callable[..., Play]]:
    """Runs a prep that must be refused with these words, and sees that it changed nothing."""

    def run(*words: str, playbook: str = "prep", **options: Any) -> Play:
        before, images = tree(bare.root.parent), named_images()
        play = bare.play(playbook, **options)
        assert play.code != 0, play.output
        assert [word for word in words if word not in play.text] == [], play.output
        assert "Traceback" not in play.output
        assert play.changed == 0 and tree(bare.root.parent) == before
        assert bare.inspect() is None and named_images() == images
        return play

    yield run


def own(site: Site) -> None:
    """Give all that a test made to the service user."""
    for path in [site.root, *site.root.rglob("*")]:
        os.chown(path, *site.owner, follow_symlinks=False)


# --- the host tree --------------------------------------------------------------------------------


@needs_root
def test_foreign_root(bare: Site, refused: Callable[..., Play]) -> None:
    bare.root.mkdir()
    os.chown(bare.root, 12345, 12346)
    uid, gid = bare.owner
    refused(str(bare.root), "12345:12346", f"not {uid}:{gid}", f"chown -R {uid}:{gid}")


@needs_root
def test_foreign_file_deep_in_the_caches(bare: Site, refused: Callable[..., Play]) -> None:
    uid, gid = bare.owner
    deep = bare.profiles / "triton" / "a" / "b" / "kernel.cubin"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"x")
    own(bare)
    os.chown(deep, 0, 12345)
    refused(str(deep), f"not {uid}:{gid}", "chown")
    # The same with the operator's word for it: a warning, and on it goes.
    checked = bare.play("start", "--check", environment={"HOST_DIR_OWNERSHIP_IGNORE": "1"})
    assert checked.code == 0 and str(deep) in checked.text, checked.output


def test_root_that_is_a_file(bare: Site, refused: Callable[..., Play]) -> None:
    bare.root.write_text("not a folder")
    refused(str(bare.root), "is a file")


def test_root_that_is_a_dangling_link(bare: Site, refused: Callable[..., Play]) -> None:
    bare.root.symlink_to(bare.root.parent / "nowhere")
    refused(str(bare.root), "nowhere")


# --- Docker ---------------------------------------------------------------------------------------


def test_stopped_daemon(bare: Site, refused: Callable[..., Play]) -> None:
    refused(
        "systemctl start docker",
        environment={"DOCKER_HOST": f"unix://{bare.root.parent}/no-docker.sock"},
    )


def test_no_docker(bare: Site, refused: Callable[..., Play]) -> None:
    """Every program of this machine but Docker's."""
    programs = bare.root.parent / "bin"
    programs.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if not program.name.startswith("docker") and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    refused(
        "Docker is not installed", "make prep", "docker.io", environment={"PATH": str(programs)}
    )


# --- the model ------------------------------------------------------------------------------------


@pytest.fixture
def model(bare: Site) -> Path:
    """The folder of a model that no role makes."""
    folder = bare.root / "models" / "lab" / "m"
    folder.mkdir(parents=True)
    own(bare)
    return folder


MODEL = {"sgl_model": "lab/m", "sgl_model_source": "present"}


def test_missing_model(bare: Site, refused: Callable[..., Play]) -> None:
    refused(str(bare.root / "models" / "lab" / "m"), variables=MODEL)


def test_empty_model(bare: Site, model: Path, refused: Callable[..., Play]) -> None:
    refused(str(model), "config.json", variables=MODEL)


def test_missing_shard(bare: Site, model: Path, refused: Callable[..., Play]) -> None:
    (model / "config.json").write_text(
        json.dumps({"architectures": ["Qwen3ForCausalLM"], "num_attention_heads": 8})
    )
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    empty = b"{}"
    (model / shards["a"]).write_bytes(len(empty).to_bytes(8, "little") + empty)
    own(bare)
    refused(shards["b"], "1 of 2", variables=MODEL)


def test_tensor_parallel_that_does_not_fit(refused: Callable[..., Play]) -> None:
    refused("tp 2 needs 2 devices, this host has 1", "set sgl_tp: 1", variables={"sgl_tp": 2})


def test_no_model_is_named(bare: Site, refused: Callable[..., Play]) -> None:
    refused("set sgl_model", variables={"sgl_model": ""})


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"sgl_stages": {"inductor": "always"}}, ("sgl_stages", "ensure, rebuild, skip", "always")),
        ({"sgl_stages": {"inducter": "skip"}}, ("sgl_stages.inducter", "inductor")),
        ({"sgl_flavour": "gh201"}, ("sgl_flavour", "gh201")),
        ({"sgl_prometheus_port": "http"}, ("sgl_prometheus_port", "http")),
    ],
)
def test_unknown_values(
    refused: Callable[..., Play], variables: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(*words, variables=variables)


# --- room and ports -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["telemetry", "profiles"])
def test_too_little_space(bare: Site, refused: Callable[..., Play], what: str) -> None:
    free = shutil.disk_usage(bare.root.parent).free / 1e9
    refused(
        f"{bare.root}/{what}",
        "GB free",
        "sgl_space_gb",
        variables={"sgl_space_gb": {what: free + 1000}},
    )


def test_too_little_space_for_the_image(bare: Site, refused: Callable[..., Play]) -> None:
    folder = docker("info", "--format", "{{.DockerRootDir}}").stdout.strip()
    refused(
        folder,
        "GB free",
        variables={"sgl_image": "sglang-dev:not-built", "sgl_space_gb": {"docker": 10**6}},
    )


@pytest.mark.parametrize("service", ["prometheus", "node_exporter", "sglang"])
def test_taken_port(bare: Site, refused: Callable[..., Play], service: str) -> None:
    port = bare.ports[service]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        refused(f"port {port} on 127.0.0.1", service, f"(pid {os.getpid()})", f"sgl_{service}_port")


def test_all_that_is_wrong_is_told_at_once(bare: Site, refused: Callable[..., Play]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", bare.ports["prometheus"]))
        holder.listen()
        refused(
            f"port {bare.ports['prometheus']}",
            "systemctl start docker",
            "models/lab/m",
            variables=MODEL,
            environment={"DOCKER_HOST": f"unix://{bare.root.parent}/no-docker.sock"},
        )
