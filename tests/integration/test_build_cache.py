"""A build whose cache names a layer that Docker lost, met in a daemon of its own: only a restart
between two builds and a prune brings Docker there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_build as image_build
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import ImageError

from tests.hosts.host import answer
from tests.integration.installation import docker, wait_for

pytestmark = pytest.mark.slow


class Daemon:
    """A Docker daemon with folders, a socket and no network of its own."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix://{folder}/docker.sock"
        # A daemon without a bridge removes docker0, which is another's.
        self._command = [
            "unshare", "--net", "dockerd", "--host", self.address, "--data-root", f"{folder}/data",
            "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
            "--bridge", "none", "--iptables=false",
        ]  # fmt: skip
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(self._answers, "the daemon to answer", timeout_s=60)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=60)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self._log.read_text()
        return docker("--host", self.address, "version", check=False).returncode == 0


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    monkeypatch.setenv("DOCKER_HOST", made.address)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def build(folder: Path, name: str) -> bool:
    options = ["--progress=plain", "--tag", name, "--file", str(folder / name), str(folder)]
    return image_build.docker_build(answer, "docker build", options)


def layers_of_builds() -> list[str]:
    """The records of the build cache that have a layer, the oldest first."""
    records = json.loads(docker("system", "df", "-v", "--format", "{{json .BuildCache}}").stdout)
    made = [record for record in records if record["CacheType"] == "regular"]
    return [record["ID"] for record in sorted(made, key=lambda record: record["CreatedAt"])]


def test_a_build_cache_that_lost_a_layer_is_left_out(daemon: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "file").write_text("the same layer, by two instructions")
    for name, instruction in (("copied", "COPY"), ("added", "ADD")):
        (folder / name).write_text(f"FROM scratch\n{instruction} file /file\n")
        assert not build(folder, name)
    docker("image", "rm", "copied", "added")
    daemon.stop()
    daemon.start()
    copied, _added = layers_of_builds()
    docker("builder", "prune", "--all", "--force", "--filter", f"id={copied}")

    assert build(folder, "added"), "this Docker built with the cache: does it lose layers no more?"
    assert docker("image", "inspect", "added").stdout
    assert not build(folder, "added"), "what was lost is in the cache again"
    (folder / "added").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(ImageError, match=r"^docker build failed with exit code 1: (?s:.*)missing"):
        build(folder, "added")
