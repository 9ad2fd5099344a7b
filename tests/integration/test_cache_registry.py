"""Kernel caches and images between hosts, through a real registry by a real Docker, and through the
controller's folder.

What a host has made is packed and taken by the real sgl-admin over a folder in place of a
container's (tests/doubles/docker_exec).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import stages
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.options import (
    prep_spec,
    request_document,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli
from ansible_collections.slice_bench.sglang.plugins.module_utils._shared_work import (
    DIGEST_LABEL,
    SIGNATURE_LABEL,
    Host,
    ShareError,
)
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.share_store import Store

from tests.bench.cache_share import fill
from tests.hosts.host import answer
from tests.hosts.registry import Registry
from tests.integration.installation import ROOT, ansible, docker
from tests.unit.model_files import write_model

pytestmark = pytest.mark.slow

PORT = 19651
REPOSITORY = f"127.0.0.1:{PORT}/sgl-caches-test"
SAVED = "sgl-shared"
CACHES: dict[str, Any] = {"kind": "caches", "name": "inductor-0123456789abcdef", "image": None}
IMAGE: dict[str, Any] = {
    "kind": "image",
    "name": "image-cache-registry-test",
    "image": "sgl-caches-test:given",
}
DOUBLE = ROOT / "tests" / "doubles" / "docker_exec"
MADE = "org.slice-bench.test-made"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    made = Registry(tmp_path_factory.mktemp("registry"), PORT)
    made.start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and with a host that has compiled: its kernels are as many and as large
    as a small model's.
    """
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "model")
    (folder / "one").mkdir()
    fill(folder / "one", folder / "model", 40, 4_000_000)
    return folder


class Site:
    """Two hosts: `one` has compiled, `two` has nothing; and the names under which they find each
    other's work.
    """

    def __init__(self, folder: Path, made: Path) -> None:
        self.folder = folder
        self.model = str(made / "model")
        self.containers = folder / "containers"
        shutil.copytree(made / "one", self.containers / "one", symlinks=True)
        (self.containers / "two").mkdir()
        (folder / "remote").mkdir()
        words = [
            sys.executable,
            "-c",
            "import sys; from sgl_admin.records import standalone; standalone.begin(sys.argv[1])",
        ]
        subprocess.run(
            [*words, str(self.containers / "two")],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.environment = {
            "DOCKER_DOUBLE_CONTAINERS": str(self.containers),
            "DOCKER_DOUBLE_REAL": str(shutil.which("docker")),
        }

    @property
    def prep(self) -> dict[str, Any]:
        return {
            "model": self.model,
            **dict.fromkeys(stages.OPTIONS.values(), "skip"),
            "inductor": "ensure",
        }

    @property
    def item(self) -> dict[str, Any]:
        """The stage as a step of the module has it."""
        defaults = {name: option.get("default") for name, option in prep_spec().items()}
        return {**CACHES, "request": request_document({**defaults, **self.prep})}

    def host(self, name: str) -> Host:
        return Host(DockerCli(answer, str(DOUBLE / "docker")), name)

    def path(self, name: str = "archive.tar") -> str:
        return str(self.folder / name)

    def kernels(self, name: str) -> dict[str, bytes]:
        caches = self.containers / name / "profiles" / "triton"
        return {
            str(path.relative_to(caches)): path.read_bytes() for path in caches.rglob("*.cubin")
        }

    def share(
        self,
        container: str,
        state: str,
        *items: dict[str, Any],
        flags: tuple[str, ...] = (),
        **options: Any,
    ) -> dict[str, Any]:
        """What the module answers on this machine, which stands for the host; `printed` is what
        Ansible printed.
        """
        arguments = {
            "state": state,
            "items": items or [{"name": CACHES["name"], "stage": "inductor"}],
            "container": container,
            "prep": self.prep,
            "directory": self.path("store"),
            **options,
        }
        environment = {
            **self.environment,
            "PATH": f"{DOUBLE}:{os.environ['PATH']}",
            "ANSIBLE_REMOTE_TEMP": self.path("remote"),
        }
        words = [
            "localhost",
            "--module-name",
            "slice_bench.sglang.sgl_share",
            "--args",
            json.dumps(arguments),
            *flags,
        ]
        done = ansible("ansible", *words, environment=environment)
        start = re.search(r"^localhost \| (\w+)!? => ", done.output, re.MULTILINE)
        assert start, done.output
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.output[start.end() :])[0]
        assert list((self.folder / "remote").iterdir()) == [], (
            "a temporary file is left on the host"
        )
        return {"failed": start[1] not in ("SUCCESS", "CHANGED"), "printed": done.text, **answer}

    def must(
        self, container: str, state: str, *items: dict[str, Any], **options: Any
    ) -> dict[str, Any]:
        """What the module answers of the item, all having gone well."""
        answer = self.share(container, state, *items, **options)
        assert answer["failed"] is False, answer["printed"]
        [status] = answer["items"].values()
        assert answer["changed"] is (status["status"] in ("given", "imported", "loaded"))
        return dict(status)


@pytest.fixture
def site(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Nothing of it stays, and nothing that it gave lies on this host when a test has ended."""
    found = Site(tmp_path, made)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    clean()
    yield found
    found_left = left()
    clean()
    assert found_left == []


def left() -> list[str]:
    """Images and containers of these tests, but those that a test makes itself."""
    images = []
    for label in (DIGEST_LABEL, MADE):
        form = "{{.Repository}}:{{.Tag}} {{.Digest}} {{.ID}}"
        images += docker(
            "image", "ls", "--all", "--digests", "--filter", f"label={label}", "--format", form
        ).stdout.splitlines()
    names = docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"
    ).stdout.splitlines()
    containers = docker(
        "container",
        "ls",
        "--all",
        "--filter",
        f"label={DIGEST_LABEL}",
        "--format",
        "container {{.ID}}",
    ).stdout
    containers += docker(
        "container", "ls", "--all", "--filter", f"label={MADE}", "--format", "container {{.ID}}"
    ).stdout
    named = [
        name for name in names if name.startswith((f"{REPOSITORY}:", f"{SAVED}:{IMAGE['name']}"))
    ]
    return sorted({*images, *named, *containers.splitlines()})


def clean() -> None:
    for label in (DIGEST_LABEL, MADE):
        for container in docker(
            "container", "ls", "--all", "--quiet", "--filter", f"label={label}"
        ).stdout.split():
            docker("rm", "--force", container)
        for image in docker(
            "image", "ls", "--all", "--quiet", "--filter", f"label={label}"
        ).stdout.split():
            docker("image", "rm", "--force", image, check=False)


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def reference(name: str) -> str:
    return f"{REPOSITORY}:{name}"


def pushed(site: Site, name: str = "one", signature: str | None = None) -> tuple[str, str, str]:
    """Pack and push what a host has; returns the archive's digest, where it is, and its sha256."""
    packed = site.host("one").pack(site.item, site.path("packed.tar"))
    assert packed is not None and packed["finished"] is True
    source = site.host("one").push(
        site.item, site.path("packed.tar"), reference(name), packed["digest"], signature
    )
    return packed["digest"], source, sha256(site.path("packed.tar"))


# --- caches through the registry ------------------------------------------------------------------


def test_an_archive_comes_back_byte_for_byte(registry: Registry, site: Site) -> None:
    digest, source, content = pushed(site)
    assert re.fullmatch(re.escape(REPOSITORY) + r"@sha256:[0-9a-f]{64}", source)
    assert left() == [], "the registry has it, this host does not"
    two = site.host("two")
    assert two.look(reference("one")) == source and left() == []
    for name in (reference("one"), source):
        assert two.fetch(site.item, name, site.path()) == {
            "source": source,
            "digest": digest,
            "signature": None,
        }
        assert sha256(site.path()) == content and left() == []
    taken = two.take(site.item, site.path(), digest)
    assert (
        taken["stages"]["inductor"]["status"] == "imported"
        and taken["stages"]["inductor"]["files"] == 40
    )
    assert site.kernels("two") == site.kernels("one") and len(site.kernels("one")) == 40
    assert two.take(site.item, site.path(), digest)["stages"]["inductor"]["status"] == "standing"
    assert site.host("two").pack(site.item, site.path("again.tar")) == {
        "digest": digest, "bytes": os.path.getsize(site.path()), "finished": True,
    }  # fmt: skip
    assert sha256(site.path("again.tar")) == content, "and goes on from there"


def test_its_labels_say_what_it_is_and_who_signed_it(registry: Registry, site: Site) -> None:
    digest, source, _ = pushed(site, signature="c2lnbmVk")
    assert site.host("two").fetch(site.item, source, site.path()) == {
        "source": source,
        "digest": digest,
        "signature": "c2lnbmVk",
    }
    # As any client of a registry finds them, who has pulled nothing.
    labels = described(registry, source)["config"]["Labels"]
    assert labels == {DIGEST_LABEL: digest, SIGNATURE_LABEL: "c2lnbmVk"}


def described(registry: Registry, source: str) -> dict[str, Any]:
    """The configuration of an image in the registry."""
    base = f"http://{registry.address}/v2/{REPOSITORY.partition('/')[2]}"
    asked = urllib.request.Request(
        f"{base}/manifests/{source.partition('@')[2]}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(asked) as answer:
        manifest = json.load(answer)
    with urllib.request.urlopen(f"{base}/blobs/{manifest['config']['digest']}") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_a_digest_stands_for_one_archive_whatever_its_tag_stands_for(
    registry: Registry, site: Site
) -> None:
    digest, source, content = pushed(site, "moving")
    next((site.containers / "one" / "profiles" / "triton").rglob("*.cubin")).touch()
    host = site.host("one")
    Path(site.path("other.tar")).write_bytes(b"another archive")
    other = host.push(site.item, site.path("other.tar"), reference("moving"), "sha256:other", None)
    found = host.fetch(site.item, reference("moving"), site.path())
    assert (
        found is not None
        and found["source"] == other != source
        and Path(site.path()).read_bytes() == b"another archive"
    )
    found = host.fetch(site.item, source, site.path())
    assert found is not None and found["digest"] == digest and sha256(site.path()) == content


def test_what_the_registry_does_not_have_is_absent(registry: Registry, site: Site) -> None:
    pushed(site)
    for name in (reference("none"), f"{REPOSITORY}-none:one", f"{REPOSITORY}@sha256:{'0' * 64}"):
        assert site.host("two").look(name) is None
        assert site.host("two").fetch(site.item, name, site.path()) is None
    assert not Path(site.path()).exists()


def test_a_registry_that_is_down_is_told_with_the_remedy(site: Site, tmp_path: Path) -> None:
    packed = site.host("one").pack(site.item, site.path("packed.tar"))
    assert packed is not None
    # No process listens on port 1.
    nowhere = "127.0.0.1:1/sgl-caches-test:one"
    for step in (
        lambda host: host.push(site.item, site.path("packed.tar"), nowhere, packed["digest"], None),
        lambda host: host.look(nowhere),
        lambda host: host.fetch(site.item, nowhere, site.path()),
    ):
        with pytest.raises(
            ShareError,
            match="the registry does not answer: start it, or set sgl_cache_share to relay",
        ) as failed:
            step(site.host("one"))
        assert nowhere in str(failed.value) and "systemctl start docker" not in str(failed.value), (
            "Docker does answer"
        )
        # A container or an image that were left would be found by the label of the archive.
        assert left() == []


def image_of(content: dict[str, bytes], name: str, folder: Path) -> str:
    """An image with these files and nothing else; returns its id."""
    (folder / "image").mkdir(exist_ok=True)
    for path, written in content.items():
        (folder / "image" / path).write_bytes(written)
    packed = subprocess.run(
        ["tar", "-C", str(folder / "image"), "-cf", "-", *content], check=True, capture_output=True
    ).stdout
    words = [os.environ["DOCKER_DOUBLE_REAL"], "import", "--change", f"LABEL {MADE}=yes", "-", name]
    return (
        subprocess.run(words, input=packed, check=True, capture_output=True).stdout.decode().strip()
    )


def test_a_tag_that_stands_for_another_tools_image_is_told(registry: Registry, site: Site) -> None:
    image_of({"program": b"x"}, reference("foreign"), site.folder)
    docker("push", "--quiet", reference("foreign"))
    docker("rmi", reference("foreign"))
    with pytest.raises(
        ShareError, match="holds no archive of caches: .*delete it from the registry"
    ) as failed:
        site.host("two").fetch(site.item, reference("foreign"), site.path())
    assert reference("foreign") in str(failed.value) and not Path(site.path()).exists()


@pytest.mark.parametrize("command", ["import", "push", "image"])
def test_a_docker_that_fails_while_giving_leaves_nothing(
    registry: Registry, site: Site, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = site.host("one").pack(site.item, site.path("packed.tar"))
    assert packed is not None
    monkeypatch.setenv("DOCKER_DOUBLE_FAILS", command)
    with pytest.raises(
        ShareError, match="cannot be pushed to .*: Error response from daemon: it broke here"
    ):
        site.host("one").push(
            site.item,
            site.path("packed.tar"),
            reference(f"broken-{command}"),
            packed["digest"],
            None,
        )
    assert left() == []
    monkeypatch.delenv("DOCKER_DOUBLE_FAILS")
    # The same again mends it.
    source = site.host("one").push(
        site.item, site.path("packed.tar"), reference(f"broken-{command}"), packed["digest"], None
    )
    assert site.host("one").look(reference(f"broken-{command}")) == source


@pytest.mark.parametrize(
    ("variable", "command", "said"),
    [
        (
            "DOCKER_DOUBLE_FAILS",
            "pull",
            "cannot be pulled: Error response from daemon: it broke here",
        ),
        (
            "DOCKER_DOUBLE_FAILS",
            "image",
            "cannot be taken out of .*: Error response from daemon: it broke here",
        ),
        (
            "DOCKER_DOUBLE_FAILS",
            "create",
            "cannot be taken out of .*: Error response from daemon: it broke here",
        ),
        ("DOCKER_DOUBLE_FAILS", "cp", "it broke here"),
        ("DOCKER_DOUBLE_DIES", "cp", "holds no archive of caches: unexpected end of data"),
    ],
)
def test_a_docker_that_fails_while_taking_leaves_nothing(
    registry: Registry,
    site: Site,
    variable: str,
    command: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, source, content = pushed(site)
    monkeypatch.setenv(variable, command)
    with pytest.raises(ShareError, match=said):
        site.host("two").fetch(site.item, source, site.path())
    assert left() == []
    monkeypatch.delenv(variable)
    assert (
        site.host("two").fetch(site.item, source, site.path()) is not None
        and sha256(site.path()) == content
    )


def test_a_full_disk_is_told_and_nobody_waits_for_the_rest(registry: Registry, site: Site) -> None:
    _, source, _ = pushed(site)
    with pytest.raises(ShareError, match="/dev/full cannot be written: No space left on device"):
        site.host("two").fetch(site.item, source, "/dev/full")


def test_what_was_changed_on_its_way_is_refused_by_the_host_and_nothing_of_it_is_taken(
    registry: Registry, site: Site
) -> None:
    digest, _, _ = pushed(site)
    content = bytearray(Path(site.path("packed.tar")).read_bytes())
    content[-100_000] ^= 1
    Path(site.path("changed.tar")).write_bytes(content)
    site.host("one").push(site.item, site.path("changed.tar"), reference("changed"), digest, None)
    two = site.host("two")
    found = two.fetch(site.item, reference("changed"), site.path())
    assert found is not None and found["digest"] == digest, "its label says what it should be"
    with pytest.raises(ShareError, match=f"{CACHES['name']} is not taken: .*it was changed"):
        two.take(site.item, site.path(), found["digest"])
    assert site.kernels("two") == {}
    with pytest.raises(ShareError, match="is not taken: .* was expected"):
        two.take(site.item, site.path("packed.tar"), f"sha256:{'0' * 64}")
    assert site.kernels("two") == {}


def test_a_host_says_why_it_cannot_pack_or_take(registry: Registry, site: Site) -> None:
    pushed(site)
    assert (
        site.host("two").pack(site.item, site.path("nothing.tar")) is None
        and not Path(site.path("nothing.tar")).exists()
    )
    for step in (
        lambda host: host.pack(site.item, site.path()),
        lambda host: host.take(site.item, site.path("packed.tar"), None),
    ):
        with pytest.raises(ShareError, match="No such container: three"):
            step(site.host("three"))
    wrong = {**site.item, "request": {**site.item["request"], "tp": 2}}
    with pytest.raises(ShareError, match="is not taken: "):
        site.host("two").take(wrong, site.path("packed.tar"), None)


# --- the module, as tasks call it -----------------------------------------------------------------

THROUGH_REGISTRY: dict[str, Any] = {"through": "registry", "registry": REPOSITORY}


@pytest.mark.parametrize("way", [THROUGH_REGISTRY, {}], ids=["registry", "relay"])
def test_the_module_gives_once_and_takes_once(
    registry: Registry, site: Site, way: dict[str, Any]
) -> None:
    way = {**way, **({"registry": f"{REPOSITORY}-module"} if way else {})}
    assert site.must("two", "taken", **way)["status"] == "absent"
    assert site.must("two", "given", **way)["status"] == "unfinished"
    for flags in (("--check",), ()):
        given = site.share("one", "given", flags=flags, **way)
        assert given["failed"] is False and given["changed"] is True, given["printed"]
    again = site.must("one", "given", **way)
    assert again["status"] == "there", "it is pushed once"
    taken = site.must("two", "taken", **way)
    digest = given["items"][CACHES["name"]]["digest"]
    assert (taken["status"], taken["files"], taken["finished"], taken["digest"]) == (
        "imported",
        40,
        True,
        digest,
    )
    assert site.kernels("two") == site.kernels("one")
    if way:
        assert taken["from"] == given["items"][CACHES["name"]]["from"] == again["from"]
    assert site.must("two", "taken", **way)["status"] == "standing"
    assert left() == []


def test_the_module_tells_of_a_registry_that_is_down(site: Site) -> None:
    for container, state in (("one", "given"), ("two", "taken")):
        answer = site.share(
            container, state, through="registry", registry="127.0.0.1:1/sgl-caches-test"
        )
        assert answer["failed"] is True and "set sgl_cache_share to relay" in answer["msg"]


def test_a_flipped_byte_in_the_folder_is_set_aside_and_told_and_it_is_given_anew(
    site: Site,
) -> None:
    site.must("one", "given")
    archive = Store(site.path("store")).archive(CACHES["name"])
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    answer = site.share("two", "taken")
    assert answer["failed"] is False and answer["items"][CACHES["name"]] == {"status": "absent"}
    assert (
        f"{archive}.corrupt-1" in answer["printed"]
        and Path(f"{archive}.corrupt-1").read_bytes() == content
    )
    assert site.kernels("two") == {}
    assert (
        site.must("one", "given")["status"] == "given"
        and site.must("two", "taken")["status"] == "imported"
    )


@pytest.mark.parametrize("way", [THROUGH_REGISTRY, {}], ids=["registry", "relay"])
def test_what_is_signed_is_taken_by_its_key_alone(
    registry: Registry, site: Site, way: dict[str, Any]
) -> None:
    way = {**way, **({"registry": f"{REPOSITORY}-signed"} if way else {})}
    for name in ("lab", "other"):
        words = [
            "minisign",
            "-G",
            "-W",
            "-s",
            site.path(f"{name}.key"),
            "-p",
            site.path(f"{name}.pub"),
        ]
        subprocess.run(words, check=True, capture_output=True)
    site.must("one", "given", sign_key=site.path("lab.key"), **way)
    answer = site.share("two", "taken", verify_key=site.path("other.pub"), **way)
    assert (
        answer["failed"] is True and "is not one of" in answer["msg"] and site.kernels("two") == {}
    )
    assert site.must("two", "taken", verify_key=site.path("lab.pub"), **way)["status"] == "imported"


# --- images ---------------------------------------------------------------------------------------


def identity(name: str) -> str | None:
    found = docker("image", "inspect", "--format", "{{.Id}}", name, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


@pytest.mark.parametrize("way", [THROUGH_REGISTRY, {}], ids=["registry", "relay"])
def test_an_image_is_had_under_the_name_that_it_has_there(
    registry: Registry, site: Site, way: dict[str, Any]
) -> None:
    given = {"kind": "image", "name": IMAGE["name"], "image": IMAGE["image"]}
    wanted = {**given, "image": "sgl-caches-test:taken"}
    assert site.must("two", "taken", wanted, prep=None, **way)["status"] == "absent"
    image = image_of({"program": os.urandom(300_000)}, given["image"], site.folder)
    told = site.must("one", "given", given, prep=None, **way)
    assert (
        told["status"] == "given"
        and site.must("one", "given", given, prep=None, **way)["status"] == "there"
    )
    assert identity(given["image"]) == image, "it is still there"
    docker("rmi", given["image"])
    assert identity(image) is None
    taken = site.must("two", "taken", wanted, prep=None, **way)
    assert taken["status"] == "loaded" and taken["digest"] == told["digest"], (
        "the report tells by it who gave it"
    )
    assert identity("sgl-caches-test:taken") == image
    docker("rmi", "sgl-caches-test:taken")


def test_an_image_that_a_host_does_not_have_is_not_given(registry: Registry, site: Site) -> None:
    for way in (THROUGH_REGISTRY, {}):
        answer = site.share(
            "one",
            "given",
            {**IMAGE, "name": "image-none", "image": "sgl-caches-test:none"},
            prep=None,
            **way,
        )
        assert answer["failed"] is True and "sgl-caches-test:none" in answer["msg"]


def test_an_archive_of_another_image_is_not_loaded(site: Site) -> None:
    host = site.host("one")
    image_of({"program": b"ours"}, IMAGE["image"], site.folder)
    packed = host.pack(IMAGE, site.path("image.tar"))
    docker("rmi", IMAGE["image"])
    theirs = image_of({"program": b"theirs"}, IMAGE["image"], site.folder)
    host.pack(IMAGE, site.path("theirs.tar"))
    docker("rmi", IMAGE["image"])
    assert packed is not None
    with pytest.raises(ShareError, match="is not the one that was given: remove it there"):
        host.take(IMAGE, site.path("theirs.tar"), packed["digest"])
    assert identity(theirs) is None, "it was loaded all the same"
    # One that is no image at all, or has another name in it.
    Path(site.path("none.tar")).write_bytes(b"no archive")
    with pytest.raises(ShareError, match=f"{IMAGE['image']} is not loaded"):
        host.take(IMAGE, site.path("none.tar"), None)
    with pytest.raises(ShareError, match=f"{IMAGE['image']} is not loaded"):
        host.take({**IMAGE, "name": "image-another"}, site.path("image.tar"), packed["digest"])
    clean()


@pytest.mark.parametrize("command", ["tag", "save"])
def test_a_docker_that_fails_while_an_image_is_saved_leaves_its_name_alone(
    site: Site, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of({"program": b"ours"}, IMAGE["image"], site.folder)
    monkeypatch.setenv("DOCKER_DOUBLE_FAILS", command)
    with pytest.raises(ShareError, match=f"{IMAGE['image']} cannot be saved: .*it broke here"):
        site.host("one").pack(IMAGE, site.path())
    monkeypatch.delenv("DOCKER_DOUBLE_FAILS")
    assert identity(IMAGE["image"]) == image
    docker("rmi", IMAGE["image"])
