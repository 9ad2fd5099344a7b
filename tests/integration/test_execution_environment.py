"""The execution environment for AWX and ansible-navigator, by ansible-builder from the definition
as it stands.

Real: ansible-builder, its build, the locked Python packages, the collection, what runs in the
image. A stand-in: the base image (tests/doubles/execution_environment), and with it, by build
arguments, the package manager and the path of Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import build_client
from packaging.requirements import Requirement

from tests.hosts.host import answer
from tests.integration.installation import BIN, ROOT, docker
from tests.integration.stand_ins import DEBIAN, docker_build

pytestmark = pytest.mark.slow

BASE = "sglang-ee-test:base"
IMAGE = "sglang-ee-test:ee"
DOCKERFILE = ROOT / "tests" / "doubles" / "execution_environment" / "Dockerfile"
LOCK = ROOT / "execution_environment" / "requirements.txt"
PYTHON = "3.11"  # of Debian bookworm
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
COLLECTIONS = "/usr/share/ansible/collections/ansible_collections"
PROGRAMS = ("ssh", "rsync", "minisign")


def locked() -> str:
    """The requirements, with digests, that the stand-in's Python takes; pip would judge their
    markers by the Python that it runs on.
    """
    chosen = []
    for line in LOCK.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        text, *hashes = line.split(" --hash=")
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        requirement = Requirement(text)
        python = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
        if requirement.marker is None or requirement.marker.evaluate(python):
            chosen.append(
                " --hash=".join(
                    [
                        f"{requirement.name}{requirement.specifier}",
                        *(value.strip() for value in hashes),
                    ]
                )
            )
    return "\n".join([*chosen, ""])


def version_of(package: str) -> str:
    """The version that the lock has of a package."""
    lines = [Requirement(line.split(" --hash=")[0]) for line in locked().splitlines()]
    found = [str(entry.specifier).removeprefix("==") for entry in lines if entry.name == package]
    assert len(found) == 1, found
    return found[0]


def pip_download(folder: Path, *arguments: str) -> None:
    """Wheels for the stand-in, by this machine's pip and its settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    for abi in ("cp311", "abi3", "none"):
        command += ["--abi", abi]
    for tag in (
        "manylinux_2_35",
        "manylinux_2_34",
        "manylinux_2_28",
        "manylinux_2_17",
        "manylinux2014",
        "linux",
    ):
        command += ["--platform", f"{tag}_{os.uname().machine}"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wheels() -> Path:
    """A folder with the wheels of the lock, and of what ansible-builder installs while it builds;
    kept while the lock is the same.
    """
    requirements = locked()
    folder = ROOT / ".cache" / f"ee-wheels-{hashlib.sha256(requirements.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        listed = Path(partial) / "requirements.txt"
        listed.write_text(requirements, encoding="utf-8")
        made = Path(partial) / "wheels"
        pip_download(made, "--no-deps", "--require-hashes", "--requirement", str(listed))
        pip_download(made, "bindep", "packaging", "pyyaml")
        made.rename(folder)
    return folder


def build_base() -> None:
    secret = ["--secret", f"id=ca-bundle,src={CA_BUNDLE}"] if CA_BUNDLE.is_file() else []
    docker_build(
        "--file",
        str(DOCKERFILE),
        "--tag",
        BASE,
        "--build-arg",
        f"DEBIAN={DEBIAN}",
        *secret,
        str(wheels()),
    )


def build_environment(folder: Path) -> None:
    """What the definition's first lines say to run, with another base image."""
    arguments = {
        "EE_BASE_IMAGE": BASE,
        "PKGMGR": "/usr/bin/apt-get",
        "PKGMGR_PRESERVE_CACHE": "always",
        "PYCMD": "/opt/python/bin/python3",
    }
    given = [
        word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")
    ]
    # ansible-builder takes the first client on the PATH, and not every one can build.
    path = f"{Path(build_client(answer)[0]).parent}:{os.environ['PATH']}"
    builder = shutil.which("ansible-builder", path=f"{BIN}:{os.environ['PATH']}")
    assert builder, "ansible-builder is not installed: run `make setup`"
    done = subprocess.run(
        [
            builder,
            "build",
            "--container-runtime",
            "docker",
            "--file",
            str(ROOT / "execution-environment.yml"),
            "--context",
            str(folder / "context"),
            "--tag",
            IMAGE,
            "--verbosity",
            "3",
            *given,
            # Whatever it asks for beside what the stand-in has, a Galaxy server among it, fails.
            "--extra-build-cli-args=--network=none",
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "DOCKER_BUILDKIT": "1", "PATH": path},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


@pytest.fixture(scope="module")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Both images; unchanged layers come from the build's cache."""
    if docker("image", "inspect", DEBIAN, check=False).returncode:
        request.getfixturevalue("image")  # the real image's build makes it
    build_base()
    build_environment(tmp_path_factory.mktemp("ee"))
    yield
    docker("image", "rm", "--force", IMAGE, BASE, check=False)


def within(
    *command: str, options: tuple[str, ...] = (), image: str = IMAGE, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A command in a new container of the image, past its entrypoint as AWX starts it; no
    network.
    """
    return docker("run", "--rm", "--network", "none", *options, image, *command, check=check)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_of_a_controller_come_by_the_definition(built: None, program: str) -> None:
    assert within("which", program, image=BASE, check=False).returncode == 1
    assert within("which", program).stdout.strip() == f"/usr/bin/{program}"


def test_ansible_and_its_runner_have_the_locked_versions(built: None) -> None:
    assert (
        f"ansible-playbook [core {version_of('ansible-core')}]"
        in within("ansible-playbook", "--version").stdout
    )
    assert within("ansible-runner", "--version").stdout.strip() == version_of("ansible-runner")


def test_the_collection_is_there_and_the_one_that_it_needs(built: None) -> None:
    listed = json.loads(within("ansible-galaxy", "collection", "list", "--format", "json").stdout)
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert listed[COLLECTIONS] == {"slice_bench.sglang": {"version": galaxy["version"]}}
    docker_collections = [
        found["community.docker"]["version"]
        for found in listed.values()
        if "community.docker" in found
    ]
    assert len(docker_collections) == 1
    least = galaxy["dependencies"]["community.docker"].removeprefix(">=")
    assert tuple(map(int, docker_collections[0].split("."))) >= tuple(map(int, least.split(".")))


def packed(folder: Path) -> dict[str, str]:
    """The files, by digest, that `ansible-galaxy collection build` packs of what git knows of this
    checkout.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_dir():
            # A linked folder, which ansible-builder copies as what it leads to.
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
        elif (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pack = [str(BIN / "ansible-galaxy"), "collection", "build", "--output-path", str(folder)]
    subprocess.run(pack, cwd=folder / "source", capture_output=True, check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        content = archive.extractfile("FILES.json")
        assert content is not None
        return digests(json.load(content))


def digests(files: dict[str, Any]) -> dict[str, str]:
    return {
        entry["name"]: entry["chksum_sha256"]
        for entry in files["files"]
        if entry["ftype"] == "file"
    }


def test_the_environment_has_the_files_of_the_built_collection(built: None, tmp_path: Path) -> None:
    installed = json.loads(within("cat", f"{COLLECTIONS}/slice_bench/sglang/FILES.json").stdout)
    assert digests(installed) == packed(tmp_path)


@pytest.mark.parametrize(
    "user", ["root", "1000", "1000680000:0"], ids=["AWX", "the image's own", "OpenShift"]
)
def test_a_playbook_of_the_collection_is_found_by_its_name(built: None, user: str) -> None:
    inventory = ("--volume", f"{ROOT / 'inventories'}:/runner/inventories:ro")
    command = (
        "ansible-playbook",
        "slice_bench.sglang.prep",
        "-i",
        "inventories/gh200",
        "--list-tasks",
    )
    listed = within(*command, options=("--user", user, *inventory))
    assert "provider_prep : " in listed.stdout and "stack : " in listed.stdout, (
        listed.stdout + listed.stderr
    )
    assert "WARNING" not in listed.stderr


def test_a_playbook_runs_with_the_environments_settings(built: None, tmp_path: Path) -> None:
    """validate.yml, on the container itself: modules, roles and, by the environment's ansible.cfg,
    the callback are at work.
    """
    # The image's own user has no account here.
    tmp_path.chmod(0o777)
    variables = {
        "sgl_root": "/tmp/tree",
        "sgl_allow_root": True,
        "sgl_flavour": "local",
        "sgl_model": "tiny/qwen3-tiny",
        "sgl_model_source": "tiny",
    }
    inventory = {"sglang": {"hosts": {"here": {"ansible_connection": "local"}}, "vars": variables}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    within(
        "ansible-playbook",
        "slice_bench.sglang.validate",
        "-i",
        "/srv/lab/hosts.yml",
        options=(
            "--volume",
            f"{tmp_path}:/srv/lab",
            "--env",
            "SGL_REPORT_OUTCOME=/srv/lab/outcome.json",
        ),
    )
    outcome = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["playbook"] == "validate.yml" and outcome["status"] == "ok"
    assert [(step["name"], step["status"]) for step in outcome["hosts"][0]["steps"]] == [
        ("preflight", "ok"),
        ("host_dirs", "changed"),
    ]
