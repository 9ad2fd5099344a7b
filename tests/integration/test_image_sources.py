"""An image that was built elsewhere, from a real registry and a real archive. The images are tiny:
one program and a label.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_parts as image_parts
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli

from tests.hosts.host import answer
from tests.hosts.registry import Registry
from tests.integration.installation import ROOT, ansible, docker
from tests.integration.stand_ins import docker_build, host_architecture

pytestmark = pytest.mark.slow

PORT = 19650
REGISTRY = f"127.0.0.1:{PORT}"
NAME = "sglang-dev-sources-test:local"
SOURCE = "sglang-dev-sources-test-source"
OTHER = "arm64" if host_architecture() == "amd64" else "amd64"


def make(
    folder: Path,
    name: str,
    *,
    label: str = "local",
    architecture: str | None = None,
    program: bytes | None = None,
) -> str:
    """An image with one program, /usr/local/bin/prometheus; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus").write_bytes(
        program if program is not None else Path("/bin/true").resolve().read_bytes()
    )
    (folder / "Dockerfile").write_text(
        "FROM scratch\nCOPY --chmod=0755 prometheus /usr/local/bin/prometheus\n"
        f"LABEL {image_parts.FLAVOUR_LABEL}={label} made={folder.name}\n"
    )
    docker_build(
        "--platform", f"linux/{architecture or host_architecture()}", "--tag", name, str(folder)
    )
    return str(json.loads(docker("image", "inspect", name).stdout)[0]["Id"])


def of_the_other() -> bytes:
    """A program's head, of an architecture that is not the host's."""
    head = bytearray(Path("/bin/true").resolve().read_bytes())
    head[18] = 183 if OTHER == "arm64" else 62
    return bytes(head)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on a loopback port."""
    made = Registry(tmp_path_factory.mktemp("registry"), PORT)
    made.start()
    yield made.address
    made.remove()


def push(name: str) -> str:
    """Push an image and remove it here; returns its reference with a digest."""
    digest = re.search(r"digest: (sha256:[0-9a-f]{64})", docker("push", name).stdout)
    assert digest is not None
    docker("image", "rm", "--force", name)
    return f"{name.rpartition(':')[0]}@{digest[1]}"


@pytest.fixture(autouse=True)
def nothing_here() -> Iterator[None]:
    remove()
    yield
    remove()


def remove() -> None:
    names = docker(
        "image",
        "ls",
        "--format",
        "{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}",
        "--digests",
    ).stdout.split()
    for name in names:
        if name.startswith((f"{REGISTRY}/", "sglang-dev-sources-test")) and "<none>" not in name:
            docker("image", "rm", "--force", name, check=False)


def image(tmp_path: Path, *flags: str, **options: Any) -> dict[str, Any]:
    """What the module answers, with all that Ansible printed as `printed`."""
    arguments = {
        "name": NAME,
        "context": str(ROOT / "roles" / "image" / "files"),
        "flavour": "local",
        "build_dir": str(tmp_path / "cache"),
    }
    given = json.dumps({**arguments, **options})
    done = ansible(
        "ansible",
        "localhost",
        "--module-name",
        "slice_bench.sglang.sgl_image",
        "--args",
        given,
        *flags,
    )
    start = re.search(r"^localhost \| (\w+)!? => ", done.output, re.MULTILINE)
    assert start, done.output
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.output[start.end() :])[0]
    return {"failed": start[1] not in ("SUCCESS", "CHANGED"), "printed": done.text, **answer}


def identity() -> str | None:
    found = docker("image", "inspect", "--format", "{{.Id}}", NAME, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def quartet(tmp_path: Path, wanted: str, **options: Any) -> None:
    """Change in check mode, change, again in check mode, again."""
    before = identity() or "absent"
    foretold = image(tmp_path, "--check", "--diff", **options)
    assert foretold["changed"] is True and (identity() or "absent") == before
    assert f"-{before} +from " in foretold["printed"], foretold["printed"]
    done = image(tmp_path, "--diff", **options)
    assert (
        done.get("failed") is False
        and done["changed"] is True
        and done["image"]["id"] == identity() == wanted
    ), done
    assert f"-{before} +{wanted}" in done["printed"], done["printed"]
    for flags in (("--check", "--diff"), ()):
        again = image(tmp_path, *flags, **options)
        assert again["changed"] is False and again["image"]["id"] == wanted


def test_an_image_is_pulled_by_its_digest(registry: str, tmp_path: Path) -> None:
    name = f"{registry}/team/sglang-dev:one"
    wanted = make(tmp_path / "one", name)
    reference = push(name)
    quartet(tmp_path, wanted, source="pull", pull=reference)
    newer = make(tmp_path / "two", name)
    quartet(tmp_path, newer, source="pull", pull=push(name))
    # A found image with that digest needs no question to the host.
    found = DockerCli(answer).image(NAME)
    assert found is not None and image_parts.digest_of(name, found).startswith("sha256:")
    taken = image(tmp_path, source="pull", pull=found["repo_digests"][0], found=found)
    assert taken["changed"] is False and taken["image"] == found


def test_a_tag_is_pulled_with_a_warning(registry: str, tmp_path: Path) -> None:
    name = f"{registry}/team/sglang-dev:moving"
    wanted = make(tmp_path / "one", name)
    reference = push(name)
    answer = image(tmp_path, source="pull", pull=name)
    assert answer["changed"] is True and answer["image"]["id"] == wanted
    assert f"set sgl_image_pull to {reference}" in answer["printed"]
    make(tmp_path / "two", name)
    push(name)
    docker("tag", NAME, name)
    assert image(tmp_path, source="pull", pull=name)["changed"] is False, "the tag is followed"


def test_an_image_for_another_platform_is_refused(registry: str, tmp_path: Path) -> None:
    name = f"{registry}/team/sglang-dev:other"
    make(tmp_path / "other", name, architecture=OTHER, program=of_the_other())
    reference = push(name)
    answer = image(tmp_path, source="pull", pull=reference)
    assert (
        answer["failed"]
        and f"linux/{host_architecture()}" in answer["msg"]
        and "set sgl_image_pull to one that has" in answer["msg"]
    )
    assert identity() is None
    answer = image(tmp_path, source="pull", pull=reference, platform=f"linux/{OTHER}")
    assert answer["changed"] is True and answer["image"]["architecture"] == OTHER


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": "gh200"}, "is of flavour gh200, and sgl_flavour is local"),
        ({"program": of_the_other()}, f"is a program for {OTHER}"),
    ],
)
def test_an_image_that_is_not_what_it_should_be_gets_no_name(
    registry: str, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    name = f"{registry}/team/sglang-dev:wrong"
    make(tmp_path / "wrong", name, **options)
    answer = image(tmp_path, source="pull", pull=push(name))
    assert answer["failed"] and said in answer["msg"] and identity() is None


def test_a_registry_that_does_not_have_it_is_told(registry: str, tmp_path: Path) -> None:
    answer = image(tmp_path, source="pull", pull=f"{registry}/team/sglang-dev@sha256:{'0' * 64}")
    assert (
        answer["failed"]
        and "cannot be pulled" in answer["msg"]
        and "set sgl_image_pull to the mirror's name" in answer["msg"]
    )


def save(tmp_path: Path, name: str, *, packed: bool = False) -> tuple[Path, str]:
    """An archive of a new image that is not here any more; returns it and the image's id."""
    wanted = make(tmp_path / name, f"{SOURCE}:{name}")
    archive = tmp_path / f"{name}.tar"
    docker("save", "--output", str(archive), f"{SOURCE}:{name}")
    docker("image", "rm", "--force", f"{SOURCE}:{name}")
    if packed:
        with open(archive, "rb") as plain, gzip.open(f"{archive}.gz", "wb") as target:
            shutil.copyfileobj(plain, target)
        archive = Path(f"{archive}.gz")
    return archive, wanted


def test_an_image_is_loaded_from_an_archive(tmp_path: Path) -> None:
    archive, wanted = save(tmp_path, "one")
    quartet(tmp_path, wanted, source="load", archive=str(archive))
    newer, its = save(tmp_path, "two", packed=True)
    digest = hashlib.sha256(newer.read_bytes()).hexdigest()
    quartet(tmp_path, its, source="load", archive=str(newer), archive_sha256=digest)
    newer.unlink()
    assert (
        image(tmp_path, source="load", archive=str(newer), archive_sha256=digest)["changed"]
        is False
    )


def test_an_archive_that_is_not_the_wanted_one_is_not_loaded(tmp_path: Path) -> None:
    archive, wanted = save(tmp_path, "one")
    answer = image(tmp_path, source="load", archive=str(archive), archive_sha256="0" * 64)
    assert answer["failed"] and "it is incomplete, or another archive" in answer["msg"]
    assert docker("image", "inspect", wanted, check=False).returncode != 0, (
        "it was loaded all the same"
    )
    archive.write_bytes(archive.read_bytes()[:2000])
    answer = image(tmp_path, source="load", archive=str(archive))
    assert answer["failed"] and identity() is None
    answer = image(tmp_path, source="load", archive=str(tmp_path / "none.tar"))
    assert answer["failed"] and "set sgl_image_archive" in answer["msg"]


def test_what_a_source_needs_is_asked_for(tmp_path: Path) -> None:
    assert (
        "pull" in image(tmp_path, source="pull")["msg"]
        and "archive" in image(tmp_path, source="load")["msg"]
    )
