"""The container's file system under a temporary folder, for tests of sgl-admin without a
container.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_admin.base import files, paths, rights
from sgl_admin.contract import places
from tests.unit.model_files import write_model

RUN_ID = "container-run-20261123T091500Z-3fa9c1d2"


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every path of sgl_admin.base.paths under a folder of its own, with the bind mounts there, and
    the umask of the container's processes; returns that folder.
    """
    inside = tmp_path / "container"
    for name, value in vars(paths).copy().items():
        if isinstance(value, Path):
            monkeypatch.setattr(paths, name, inside / value.relative_to("/"))
    roots = [(inside / root.relative_to("/"), variable) for root, variable in paths._HOST_ROOTS]
    monkeypatch.setattr(paths, "_HOST_ROOTS", tuple(roots))
    for root, variable in roots:
        root.mkdir(parents=True)
        monkeypatch.setenv(variable, f"/host/{root.name}")
    for folder in (*places.CACHES, places.LOCKS, places.IN_PROGRESS):
        (paths.PROFILES / folder).mkdir()
    for place in (paths.RUNS, paths.LOGS, paths.STATE):
        place.mkdir(parents=True)
    before = os.umask(rights.umask())
    yield inside
    os.umask(before)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that everybody enters, below none but root's: pytest's own belongs to who runs it,
    and is closed to others.
    """
    folder = Path(tempfile.mkdtemp(prefix="sgl-scratch-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def docker_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH; its docker is there, and does nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text("#!/bin/false\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def live_run(container: Path) -> str:
    """A published run, as the init leaves it; returns its id."""
    from sgl_admin.records import run

    manifest = {
        "container_run_id": RUN_ID,
        "services": {"prometheus": {"url": "http://127.0.0.1:9"}, "sglang": {"port": 31999}},
        "paths": {"container": {}, "host": {}},
    }
    files.write_json(paths.manifest(RUN_ID), manifest)
    files.write_text(paths.LIVE_RUN, RUN_ID + "\n")
    files.write_text(paths.POINTER, run.pointer_text(RUN_ID), mode=0o600)
    flavour = {
        "flavour": "local",
        "server": {"args": ["--device", "cpu"], "env": {}, "batch_sizes": [1, 4]},
        "services": ["prometheus"],
    }
    files.write_json(paths.FLAVOUR, flavour)
    paths.log(RUN_ID).touch()
    return RUN_ID


@pytest.fixture
def model_folder(container: Path) -> Path:
    """The folder of a small model in the container."""
    return write_model(paths.MODELS / "tiny" / "qwen3-tiny")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-noenc",
        "-days",
        "2",
        "-subj",
        "/CN=double",
    ]
    names = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-out",
        str(made[0]),
        "-keyout",
        str(made[1]),
    ]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return made
