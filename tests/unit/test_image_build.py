"""The ways to an image: platforms and what is refused for them, release archives, what is handed to
the build, registries and archives.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action.sgl_image import ActionModule
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_build as image_build
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _image_downloads as image_downloads,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_parts as image_parts
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (
    INPUTS_LABEL,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerCli,
    DockerError,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_build import (
    ImageBuild,
    Sources,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_parts import (
    FLAVOUR_LABEL,
    ImageError,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_sources import (
    Loaded,
    Pulled,
    pulled_by_digest,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._image_wheels import NoWheels

from sgl_admin.sglang import releases
from tests.doubles.docker_words import absent

FILES = Path(__file__).resolve().parents[2] / "roles" / "image" / "files"
RECIPE = json.loads((FILES / "flavours/gh200/build.json").read_text(encoding="utf-8"))
DIGEST = "sha256:" + "d" * 64
Answer = tuple[int, str, str]


class Docker:
    """Stands for the docker client: it answers by the words of the command line, and remembers what
    it was asked.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    def __call__(self, command: list[str]) -> Answer:
        line = " ".join(command[1:])
        self.asked.append(line)
        for words, answer in self.answers.items():
            if line.startswith(words):
                return answer
        return absent(command)


@pytest.fixture
def docker(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return Docker()


def image(
    identifier: str = "sha256:1",
    architecture: str = "arm64",
    labels: dict[str, str] | None = None,
    digests: tuple[str, ...] = (),
) -> Answer:
    config = {"Labels": {FLAVOUR_LABEL: "gh200", **(labels or {})}}
    return (
        0,
        json.dumps(
            [
                {
                    "Id": identifier,
                    "Config": config,
                    "Architecture": architecture,
                    "RepoDigests": list(digests),
                }
            ]
        ),
        "",
    )


def elf(machine: int = 183) -> bytes:
    return (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + (2).to_bytes(2, "little")
        + machine.to_bytes(2, "little")
        + bytes(44)
    )


# --- platforms ------------------------------------------------------------------------------------


def test_a_platform_is_an_architecture(docker: Docker) -> None:
    assert (
        image_parts.architecture_of(None) == "amd64"
        and image_parts.architecture_of("linux/arm64") == "arm64"
    )
    for wrong in ("arm64", "linux/riscv64", "windows/amd64", "linux/arm64/v8"):
        with pytest.raises(
            ImageError, match="set sgl_image_platform to linux/amd64 or linux/arm64"
        ):
            image_parts.architecture_of(wrong)


def test_another_architecture_needs_an_emulator(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_parts, "_EMULATORS", str(tmp_path))
    image_parts.need_emulator("amd64")
    with pytest.raises(
        ImageError,
        match=(
            "apt-get install qemu-user-static binfmt-support.*update-binfmts --enable qemu-aarch64"
        ),
    ):
        image_parts.need_emulator("arm64")
    (tmp_path / "qemu-aarch64").touch()
    image_parts.need_emulator("arm64")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (elf(183), "arm64"),
        (elf(62), "amd64"),
        (elf(40), None),
        (b"\x7fELF\x02\x02" + elf()[6:], None),
        (b"#!/bin/sh\n" + bytes(20), None),
        (b"", None),
    ],
)
def test_a_programs_architecture_is_read_from_its_head(head: bytes, found: str | None) -> None:
    assert image_parts.elf_architecture(head[: image_parts.ELF_HEAD_BYTES]) == found


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("lmsysorg/sglang:dev", "lmsysorg/sglang"),
        ("nvcr.io/nvidia/k8s/dcgm-exporter:4.4.1", "nvcr.io/nvidia/k8s/dcgm-exporter"),
        ("registry.example:5000/a/b", "registry.example:5000/a/b"),
        (f"registry.example:5000/a/b@{DIGEST}", "registry.example:5000/a/b"),
        (f"a/b:tag@{DIGEST}", "a/b"),
    ],
)
def test_a_references_repository(reference: str, repository: str) -> None:
    assert image_parts.repository_of(reference) == repository


def test_the_digest_that_a_tag_stood_for_is_the_registrys() -> None:
    there = {
        "id": "sha256:1",
        "repo_digests": ["mirror.example/other@sha256:0", f"docker.io/lmsysorg/sglang@{DIGEST}"],
    }
    assert image_parts.digest_of("lmsysorg/sglang:dev", there) == DIGEST
    assert image_parts.digest_of("lmsysorg/sglang@sha256:9", there) == "sha256:9"
    # Docker leaves out the name of its own registry.
    for reference, known in (
        ("docker.io/lmsysorg/sglang:dev", "lmsysorg/sglang"),
        ("docker.io/library/debian:12", "debian"),
    ):
        assert (
            image_parts.digest_of(
                reference, {"id": "sha256:1", "repo_digests": [f"{known}@{DIGEST}"]}
            )
            == DIGEST
        )
    assert (
        image_parts.digest_of("sglang-base:bookworm", {"id": "sha256:1", "repo_digests": []})
        == "sha256:1"
    )


def manifest(*platforms: str) -> Answer:
    entries = [
        {
            "Descriptor": {
                "platform": dict(zip(("os", "architecture"), name.split("/"), strict=True))
            }
        }
        for name in platforms
    ]
    return 0, json.dumps(entries if len(entries) > 1 else entries[0]), ""


@pytest.mark.parametrize(
    ("answer", "has"),
    [
        (manifest("linux/amd64", "linux/arm64", "unknown/unknown"), ["linux/amd64", "linux/arm64"]),
        (manifest("linux/amd64"), ["linux/amd64"]),
        ((1, "", "no such manifest"), None),
        ((0, "[7]", ""), None),
        ((0, "[" * 100_000, ""), None),
    ],
)
def test_a_registrys_platforms(docker: Docker, answer: Answer, has: list[str] | None) -> None:
    docker.answers = {"manifest inspect --verbose": answer}
    assert image_parts.platforms_of(DockerCli(docker), "lmsysorg/sglang:dev") == has


def test_a_base_without_the_platform_is_refused_before_it_is_pulled(docker: Docker) -> None:
    docker.answers = {"manifest inspect": manifest("linux/amd64", "linux/s390x")}
    with pytest.raises(ImageError) as caught:
        image_parts.pull(DockerCli(docker), "lmsysorg/sglang:dev", "arm64", "sgl_image_base")
    assert (
        str(caught.value)
        == "lmsysorg/sglang:dev has no image for linux/arm64, only for linux/amd64, linux/s390x:"
        " set sgl_image_base to one that has"
    )
    assert not [line for line in docker.asked if line.startswith("pull")]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            "has no image for linux/arm64: set sgl_image_base",
        ),
        (
            "Get https://x/v2/: dial tcp: lookup x: no such host",
            "cannot be pulled: .*no such host.*`docker save --platform linux/arm64`",
        ),
    ],
)
def test_a_pull_that_fails_is_told_with_its_remedy(docker: Docker, error: str, words: str) -> None:
    # Through a mirror of the daemon the client itself may see no registry: the pull decides.
    docker.answers = {"pull": (1, "", error)}
    with pytest.raises(ImageError, match=words):
        image_parts.pull(DockerCli(docker), "lmsysorg/sglang:dev", "arm64", "sgl_image_base")


def test_what_is_here_is_not_pulled_and_what_is_here_for_another_platform_is(
    docker: Docker,
) -> None:
    docker.answers = {"image inspect": image(), "pull": (0, "", "")}
    assert image_parts.pull(DockerCli(docker), "a/b:c", "arm64", "x")["id"] == "sha256:1"
    assert docker.asked == ["image inspect a/b:c"]
    with pytest.raises(
        ImageError, match="a/b:c is for arm64, not for linux/amd64: set x to one that has"
    ):
        image_parts.pull(DockerCli(docker), "a/b:c", "amd64", "x")
    assert "pull --quiet --platform linux/amd64 a/b:c" in docker.asked


# --- the check of what came -----------------------------------------------------------------------


@pytest.fixture
def copying(docker: Docker, tmp_path: Path) -> Path:
    """A docker whose `cp` gives what lies in the returned folder under the program's name."""
    folder = tmp_path / "programs"
    folder.mkdir()
    script = (
        f'#!/bin/sh\nname="${{3##*/}}"\n[ -e "{folder}/$name" ] || exit 1\nexec /bin/tar --create'
        f' --directory "{folder}" "$name"\n'
    )
    (tmp_path / "bin" / "docker").write_text(script)
    docker.answers = {"create": (0, "c1\n", ""), "rm c1": (0, "", "")}
    return folder


def described(docker: Docker, **options: Any) -> dict[str, Any]:
    docker.answers["image inspect x"] = image(**options)
    found = DockerCli(docker).image("x")
    assert found is not None
    return found


def test_an_image_whose_programs_are_all_for_it_passes(docker: Docker, copying: Path) -> None:
    for name in ("prometheus", "dcgm-exporter"):
        (copying / name).write_bytes(elf())
    image_parts.check_image(DockerCli(docker), described(docker), "arm64", "gh200")
    assert "rm c1" in docker.asked, "the container that the programs were copied out of is left"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (elf(62), "prometheus in x is a program for amd64, and the image says arm64"),
        (b"#!/bin/sh" + bytes(99), "for no Linux"),
    ],
)
def test_a_program_of_another_architecture_is_named(
    docker: Docker, copying: Path, content: bytes, words: str
) -> None:
    (copying / "prometheus").write_bytes(content)
    (copying / "node_exporter").write_bytes(elf())
    with pytest.raises(ImageError, match=words):
        image_parts.check_image(DockerCli(docker), described(docker), "arm64", "gh200")
    assert "rm c1" in docker.asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "amd64"}, "x is for amd64, and linux/arm64 is wanted"),
        ({"labels": {FLAVOUR_LABEL: "local"}}, "x is of flavour local, and sgl_flavour is gh200"),
        ({"labels": {FLAVOUR_LABEL: ""}}, "not one that this collection built"),
    ],
)
def test_an_image_that_is_another_one_is_refused(
    docker: Docker, copying: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        image_parts.check_image(DockerCli(docker), described(docker, **options), "arm64", "gh200")


# --- release archives -----------------------------------------------------------------------------


def archive(content: bytes = elf(), program: str = "prometheus") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        entry = tarfile.TarInfo(f"prometheus-3.5.0.linux-arm64/{program}")
        entry.size = len(content)
        packed.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def wanted(url: str, content: bytes) -> image_downloads.Archive:
    return image_downloads.Archive(
        "prometheus", url, "prometheus", hashlib.sha256(content).hexdigest()
    )


class Mirror:
    """A web server that has one file under every name, and remembers which part of it was asked
    for; `scheme` is https once it is given a certificate.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges: list[str | None] = []
        self.proxied: list[str] = []
        # A connection that breaks: only so many bytes of what was promised.
        self.breaks_after: int | None = None
        self.chunked = False
        self.encoding: str | None = None
        self.scheme = "http"
        self.redirects_to: str | None = None
        mirror = self

        class Pages(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if mirror.redirects_to:
                    self.send_response(302)
                    self.send_header("Location", mirror.redirects_to)
                    self.end_headers()
                    return
                asked = self.headers["Range"]
                mirror.ranges.append(asked)
                if self.path.startswith("http"):
                    mirror.proxied.append(self.path)
                begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                part = mirror.content[begin:]
                self.send_response(416 if asked and not part else 206 if asked else 200)
                self.send_header(
                    *(
                        ("Transfer-Encoding", "chunked")
                        if mirror.chunked
                        else ("Content-Length", str(len(part)))
                    )
                )
                if mirror.encoding:
                    self.send_header("Content-Encoding", mirror.encoding)
                self.end_headers()
                if mirror.chunked:
                    self.wfile.write(b"%x\r\n" % len(part))
                self.wfile.write(part[: mirror.breaks_after])

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_port}"

    def use_tls(self, certificate: tuple[Path, Path]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https"


@pytest.fixture(autouse=True)
def opener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible's open_url leaves its opener, with the proxies of a test, to whatever else this
    process asks for.
    """
    monkeypatch.setattr(urllib.request, "_opener", None)


@contextlib.contextmanager
def served(made: Mirror) -> Iterator[Mirror]:
    thread = threading.Thread(
        target=functools.partial(made.server.serve_forever, poll_interval=0.01)
    )
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with served(Mirror(archive())) as made:
        yield made


def test_an_archive_is_fetched_checked_and_unpacked_once(mirror: Mirror, tmp_path: Path) -> None:
    one = wanted(f"{mirror.address}/prometheus-3.5.0.linux-arm64.tar.gz", mirror.content)
    for _time in range(2):
        image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    program = Path(image_downloads.program(one, str(tmp_path)))
    assert program.read_bytes() == elf() and os.access(program, os.X_OK)
    assert mirror.ranges == [None], "it was fetched again"
    assert list((tmp_path / "downloads").iterdir()) == [], "the archive is of no use any more"


@pytest.mark.parametrize("begun", [1, 100, None], ids=["one byte", "a hundred", "all of it"])
def test_a_download_goes_on_where_it_was_cut_off(
    mirror: Mirror, tmp_path: Path, begun: int | None
) -> None:
    one = wanted(f"{mirror.address}/p.tar.gz", mirror.content)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "p.tar.gz").write_bytes(mirror.content[:begun])
    image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    assert mirror.ranges == [f"bytes={len(mirror.content) if begun is None else begun}-"]
    assert Path(image_downloads.program(one, str(tmp_path))).read_bytes() == elf()


def test_what_came_before_the_connection_broke_is_kept(mirror: Mirror, tmp_path: Path) -> None:
    one = wanted(f"{mirror.address}/p.tar.gz", mirror.content)
    mirror.breaks_after = 40
    for kept in (40, 80):
        with pytest.raises(
            ImageError,
            match=(
                f"cut off, and goes on after {kept} bytes when this is run again; set"
                " sgl_download_mirror"
            ),
        ):
            image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    mirror.breaks_after = None
    image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    assert mirror.ranges == [None, "bytes=40-", "bytes=80-"]
    assert Path(image_downloads.program(one, str(tmp_path))).read_bytes() == elf()


def test_a_connection_that_breaks_without_a_promised_length_is_told(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.breaks_after, mirror.chunked = 40, True
    with pytest.raises(ImageError, match="cut off"):
        image_downloads.provide(
            wanted(f"{mirror.address}/p.tar.gz", mirror.content), str(tmp_path), "arm64", None, None
        )


def test_an_archive_stays_packed_whatever_the_mirror_calls_its_packing(
    mirror: Mirror, tmp_path: Path
) -> None:
    mirror.encoding = "gzip"
    one = wanted(f"{mirror.address}/p.tar.gz", mirror.content)
    image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    assert Path(image_downloads.program(one, str(tmp_path))).read_bytes() == elf()


@pytest.mark.parametrize(
    "content", [b"something else", None], ids=["another file", "nothing there"]
)
def test_a_mirrors_password_is_not_told(
    mirror: Mirror, tmp_path: Path, content: bytes | None
) -> None:
    address = (
        mirror.address.replace("http://", "http://bob:s3cret@")
        if content
        else "http://bob:s3cret@127.0.0.1:9"
    )
    with pytest.raises(ImageError) as caught:
        image_downloads.provide(
            wanted(f"{address}/p.tar.gz", b"wanted"), str(tmp_path), "arm64", None, None
        )
    assert "s3cret" not in str(caught.value) and "http://127.0.0.1:" in str(caught.value)


def test_what_a_killed_unpacking_left_is_removed_by_the_next_build(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = archive()
    (tmp_path / "p.tar.gz").write_bytes(packed)

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(image_downloads.os, "replace", killed)
        patch.setattr(image_downloads.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            image_downloads.provide(
                wanted("https://x/p.tar.gz", packed), str(cache), "arm64", str(tmp_path), None
            )
    assert list(cache.glob("**/*.partial"))
    with gh200(docker, tmp_path).alone():
        assert not list(cache.glob("**/*.partial"))


def test_another_file_than_the_wanted_one_is_thrown_away(mirror: Mirror, tmp_path: Path) -> None:
    one = wanted(f"{mirror.address}/p.tar.gz", b"something else")
    with pytest.raises(
        ImageError, match=f"gave another file than the one wanted.*wanted {one.sha256}"
    ):
        image_downloads.provide(one, str(tmp_path), "arm64", None, None)
    assert list((tmp_path / "downloads").iterdir()) == [] and not os.path.exists(
        image_downloads.program(one, str(tmp_path))
    )


def test_an_archive_that_was_brought_is_checked_and_not_fetched(
    mirror: Mirror, tmp_path: Path
) -> None:
    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "p.tar.gz").write_bytes(mirror.content)
    one = wanted(f"{mirror.address}/p.tar.gz", mirror.content)
    image_downloads.provide(one, str(tmp_path), "arm64", str(brought), None)
    assert mirror.ranges == [] and (brought / "p.tar.gz").exists()
    (brought / "q.tar.gz").write_bytes(b"another")
    with pytest.raises(
        ImageError, match="q.tar.gz is another file than the one wanted: bring the right one"
    ):
        image_downloads.provide(
            wanted(f"{mirror.address}/q.tar.gz", mirror.content + b"x"),
            str(tmp_path),
            "arm64",
            str(brought),
            None,
        )


def test_what_cannot_be_fetched_is_told_with_both_remedies(mirror: Mirror, tmp_path: Path) -> None:
    nowhere = wanted("http://127.0.0.1:9/p.tar.gz", b"")
    with pytest.raises(
        ImageError,
        match=(
            "cannot be fetched: .*set sgl_download_mirror.*put p.tar.gz into a"
            " folder.*sgl_download_dir"
        ),
    ):
        image_downloads.provide(nowhere, str(tmp_path), "arm64", None, None)


def test_the_proxy_of_the_environment_is_used(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", mirror.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    image_downloads.provide(
        wanted("http://releases.example/p.tar.gz", mirror.content),
        str(tmp_path),
        "arm64",
        None,
        None,
    )
    assert mirror.proxied == ["http://releases.example/p.tar.gz"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(elf(62)), "is a program for amd64, not for arm64"),
        (archive(b"#!/bin/sh\n" + bytes(99)), "is a program for no Linux"),
        (archive(program="promtool"), "holds no program prometheus"),
        (b"no archive", "cannot be unpacked"),
        (archive()[:-40], "cannot be unpacked"),
    ],
    # An archive has the time at which it was packed.
    ids=["amd64", "a script", "another program", "no archive", "cut"],
)
def test_an_archive_that_holds_something_else_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "p.tar.gz").write_bytes(content)
    one = wanted("https://releases.example/p.tar.gz", content)
    with pytest.raises(ImageError, match=words):
        image_downloads.provide(one, str(tmp_path / "cache"), "arm64", str(tmp_path), None)
    assert list((tmp_path / "cache" / "programs").iterdir()) == []


def published(archive: image_downloads.Unpinned) -> str:
    return "0" * 64


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_recipes_archives_are_pinned_or_their_releases_digests_are_taken(
    architecture: str,
) -> None:
    found = {
        one.name: one for one in image_downloads.archives(RECIPE, {}, architecture, None, published)
    }
    versions = {name: entry["version"] for name, entry in RECIPE["downloads"].items()}
    released = {"prometheus": "3.5.0", "node_exporter": "1.9.1", "jaeger": "1.73.0"}
    assert versions.items() >= released.items()
    assert set(found) == set(RECIPE["downloads"])
    assert {one.name for one in found.values() if not one.pinned} <= {"jaeger"}
    for one in found.values():
        assert (
            one.url.startswith("https://github.com/")
            and one.file.endswith(f"linux-{architecture}.tar.gz")
            and len(one.sha256) == 64
        )


JAEGER = "jaeger-1.73.0-linux-arm64.tar.gz"
# As jaeger v1.73.0, scripts/build/package-deploy.sh writes it (`shasum -b -a 256`, sorted by name):
# the archives of both majors, and not the files in them.
JAEGER_SUMS = "\n".join(
    f"{digit * 64} *{name}"
    for digit, name in (
        ("1", "jaeger-1.73.0-linux-amd64.tar.gz"),
        ("a", JAEGER),
        ("2", f"{JAEGER}.asc"),
        ("3", "jaeger-2.10.0-linux-arm64.tar.gz"),
    )
)


@pytest.mark.parametrize(
    ("sums", "file", "digest"),
    [
        (JAEGER_SUMS, JAEGER, "a" * 64),
        # prometheus/promu, cmd/checksum.go.
        (f"{'b' * 64}  prometheus-3.6.0.linux-arm64.tar.gz\n",
         "prometheus-3.6.0.linux-arm64.tar.gz", "b" * 64),
        (f"{'c' * 64} *./{JAEGER}\r\n", JAEGER, "c" * 64),
    ],
)  # fmt: skip
def test_a_releases_digest_is_read_from_its_sums(
    mirror: Mirror, certificate: tuple[Path, Path], tmp_path: Path,
    sums: str, file: str, digest: str,
) -> None:  # fmt: skip
    mirror.use_tls(certificate)
    mirror.content = sums.encode()
    archive = image_downloads.Unpinned("jaeger", file, f"{mirror.address}/sums.txt")
    known = image_downloads.PublishedSums(str(tmp_path), None, str(certificate[0]))
    assert known.digest(archive) == digest
    mirror.content = b""
    assert known.digest(archive) == digest, "it is kept"
    assert len(mirror.ranges) == 1


@pytest.mark.parametrize(
    ("sums", "words"),
    [
        (b"", "does not list it"),
        # jaeger-1.73.0-linux-arm64.sha256sum.txt, which lists the files in the archive.
        (b"d" * 64 + b" *jaeger-1.73.0-linux-arm64/jaeger-all-in-one\n", "does not list it"),
        (b"<html>" + b"e" * 64 + b" " + JAEGER.encode() + b"</html>", "does not list it"),
        (b"\xff\xfe" + b"f" * 70, "does not list it"),
    ],
)
def test_sums_that_do_not_name_the_archive_are_refused(
    mirror: Mirror, certificate: tuple[Path, Path], tmp_path: Path, sums: bytes, words: str
) -> None:
    mirror.use_tls(certificate)
    mirror.content = sums
    archive = image_downloads.Unpinned("jaeger", JAEGER, f"{mirror.address}/sums.txt")
    known = image_downloads.PublishedSums(str(tmp_path), None, str(certificate[0]))
    with pytest.raises(ImageError, match=words):
        known.digest(archive)


def sums_url(mirror: Mirror) -> str:
    return f"{mirror.address}/jaeger-1.73.0.sha256sum.txt"


def test_sums_count_only_over_tls(
    mirror: Mirror, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    mirror.content = JAEGER_SUMS.encode()
    known = image_downloads.PublishedSums(str(tmp_path), None, str(certificate[0]))
    plain = image_downloads.Unpinned("jaeger", JAEGER, sums_url(mirror))
    with pytest.raises(ImageError, match="its address is not https"):
        known.digest(plain)
    assert mirror.ranges == [], "nothing was asked"
    with served(Mirror(b"")) as secure:
        secure.use_tls(certificate)
        secure.redirects_to = sums_url(mirror)
        redirected = image_downloads.Unpinned("jaeger", JAEGER, sums_url(secure))
        with pytest.raises(ImageError, match="its address is not https"):
            known.digest(redirected)
        secure.redirects_to = None
        strangers = image_downloads.PublishedSums(str(tmp_path))
        with pytest.raises(ImageError, match="cannot be fetched") as caught:
            strangers.digest(redirected)
    assert f"curl -fsSL {sums_url(secure)} | grep {JAEGER}" in str(caught.value)
    assert "sgl_image_downloads: {jaeger: {sha256: ...}}" in str(caught.value)


def test_sums_that_were_brought_are_not_fetched(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "jaeger-1.73.0.sha256sum.txt").write_text(JAEGER_SUMS)
    known = image_downloads.PublishedSums(str(tmp_path), str(tmp_path / "brought"))
    archive = image_downloads.Unpinned("jaeger", JAEGER, sums_url(mirror))
    assert known.digest(archive) == "a" * 64 and mirror.ranges == []


def test_a_lab_that_wants_pinned_digests_is_given_the_command() -> None:
    with pytest.raises(ImageError) as caught:
        image_downloads.archives(RECIPE, {}, "arm64", None, image_downloads.forbidden)
    assert str(caught.value) == (
        f"the digest of {JAEGER} is not pinned, and sgl_image_require_digests is true: `curl -fsSL"
        " https://github.com/jaegertracing/jaeger/releases/download/v1.73.0/"
        f"jaeger-1.73.0.sha256sum.txt | grep {JAEGER}` prints it; set"
        " sgl_image_downloads: {jaeger: {sha256: ...}}"
    )


def test_a_mirror_has_the_same_paths() -> None:
    asked: list[str] = []

    def published(archive: image_downloads.Unpinned) -> str:
        asked.append(archive.sums)
        return "0" * 64

    plain, mirrored = (
        image_downloads.archives(RECIPE, {}, "arm64", mirror, published)
        for mirror in (None, "https://mirror.example/github/")
    )
    assert asked[1] == asked[0].replace("https://github.com/", "https://mirror.example/github/")
    assert [
        one.url.replace("https://mirror.example/github/", "https://github.com/") for one in mirrored
    ] == [one.url for one in plain]
    assert all(one.url.startswith("https://mirror.example/github/") for one in mirrored)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grafana": {}},
         f"names grafana, and this flavour downloads {', '.join(RECIPE['downloads'])}"),
        ({"prometheus": {"version": "3.6.0"}},
         "download/v3.6.0/sha256sums.txt | grep prometheus-3.6.0.linux-arm64.tar.gz"),
        ({"prometheus": {"sha256": "ABC"}}, "is no sha256 digest: 'ABC'"),
        ({"prometheus": {"version": "../../x", "sha256": "0" * 64}}, "is no version"),
        # v2's archive has the program jaeger, which takes a file in place of flags.
        ({"jaeger": {"version": "2.10.0", "sha256": "0" * 64}},
         "jaeger.version is 2.10.0, and this image runs jaeger 1 alone.*set a version 1.x"),
        ({"prometheus": {"url": "https://x"}}, "takes version and sha256"),
        ({"prometheus": "3.6.0"}, "takes version and sha256"),
    ],
)  # fmt: skip
def test_what_the_operator_gives_for_an_archive_is_checked(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ImageError, match=words.replace("(", r"\(")):
        image_downloads.archives(
            RECIPE,
            {"jaeger": {"sha256": "0" * 64}, **given},
            "arm64",
            None,
            image_downloads.forbidden,
        )


# --- the build ------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context" / "flavours" / "gh200"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("supervisor==4.3.0 \\\n    --hash=sha256:00\n")
    (folder / "build.json").write_text(json.dumps(RECIPE))
    return tmp_path / "context"


def gh200(
    docker: Docker,
    tmp_path: Path,
    base: str | None = None,
    platform: str | None = "linux/arm64",
    **sources: Any,
) -> ImageBuild:
    (tmp_path / "cache").mkdir(exist_ok=True)
    given = {"downloads": {"jaeger": {"sha256": "0" * 64}}, **sources}
    return ImageBuild(
        docker,
        "box:gh200",
        "gh200",
        "sha256:a",
        base,
        "bookworm",
        str(tmp_path / "cache"),
        platform,
        Sources(**given),
    )


def have(build: ImageBuild, context: Path) -> None:
    """Let every program be there already."""
    for one in build._archives(RECIPE):
        program = Path(image_downloads.program(one, build.build_dir))
        program.parent.mkdir(parents=True)
        program.write_bytes(elf())


def test_a_recipes_steps_come_one_after_the_other(
    docker: Docker, tmp_path: Path, context: Path
) -> None:
    build = gh200(docker, tmp_path)
    assert build.next_step(str(context)) == "wheels", "what is small comes before the base"
    Path(build._wheelhouse(str(context))).mkdir()
    assert build.next_step(str(context)) == "downloads"
    have(build, context)
    assert build.next_step(str(context)) == "base"
    docker.answers[f"image inspect {RECIPE['base']}"] = image()
    docker.answers["image inspect nvcr.io/nvidia/k8s/dcgm-exporter"] = image(architecture="amd64")
    assert build.next_step(str(context)) == "base", "one of the bases is for another architecture"
    docker.answers["image inspect nvcr.io/nvidia/k8s/dcgm-exporter"] = image()
    assert build.next_step(str(context)) == "build"


def test_an_archive_without_a_digest_is_told_before_any_download(
    docker: Docker, tmp_path: Path, context: Path
) -> None:
    build = gh200(docker, tmp_path, downloads={}, require_digests=True)
    with pytest.raises(ImageError, match="the digest of jaeger.* is not pinned"):
        build.next_step(str(context))


def test_a_release_that_was_not_pinned_is_built_from_with_the_line_that_pins_it(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GH200 with the inventory as shipped: it lacks the digest of Jaeger for arm64."""
    monkeypatch.setattr(
        image_downloads.PublishedSums, "_fetched", lambda self, archive: JAEGER_SUMS
    )
    docker.answers["image inspect lmsysorg/sglang"] = image(digests=(f"lmsysorg/sglang@{DIGEST}",))
    build = gh200(docker, tmp_path, downloads={})
    command = build_command(build, docker, context, monkeypatch)
    facts = next(word for word in command if word.startswith("DOWNLOADS="))
    recorded = json.loads(facts.partition("=")[2])
    assert recorded["jaeger"] == {"file": JAEGER, "sha256": "a" * 64, "pinned": False}
    assert recorded["prometheus"]["pinned"] is True
    warning, of_base = build.warnings(str(context))
    assert f"sgl_image_downloads: {{jaeger: {{sha256: {'a' * 64}}}}}" in warning
    assert of_base.endswith(f"; set sgl_image_base to lmsysorg/sglang@{DIGEST}")
    monkeypatch.setattr(image_downloads, "provide", broken)
    with pytest.raises(ImageError):
        build.fetch_programs(str(context))
    assert sorted(os.listdir(tmp_path / "cache" / "sums")) == [], "it is asked for again"


def broken(*arguments: Any) -> None:
    if arguments[0].name == "jaeger":
        raise ImageError("another file")


def test_the_base_is_the_newest_release_that_is_known() -> None:
    """Upstream's release-docker.yml joins the images of both architectures under v<version>."""
    newest = ".".join(map(str, releases.RELEASES[-1].since))
    assert RECIPE["base"] == f"lmsysorg/sglang:v{newest}"


def test_every_base_is_had_by_its_own_variable(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_parts, "need_emulator", lambda architecture: None)
    pulled: list[tuple[str, str, str]] = []
    monkeypatch.setattr(
        image_parts,
        "pull",
        lambda client, reference, architecture, variable: pulled.append(
            (reference, architecture, variable)
        ),
    )
    gh200(
        docker,
        tmp_path,
        f"lmsysorg/sglang@{DIGEST}",
        stages={"DCGM_IMAGE": "mirror.example/dcgm:1"},
    ).make_base(str(context))
    assert pulled == [
        (f"lmsysorg/sglang@{DIGEST}", "arm64", "sgl_image_base"),
        ("mirror.example/dcgm:1", "arm64", "sgl_image_dcgm"),
    ]


def build_command(
    build: ImageBuild,
    docker: Docker,
    context: Path,
    monkeypatch: pytest.MonkeyPatch,
    *failures: str,
) -> list[str]:
    """The command that built; before it, as many fail as there are failures."""
    commands: list[list[str]] = []
    left = list(failures)

    def step(what: str, command: list[str], environment: dict[str, str]) -> None:
        if left:
            raise ImageError(f"{what} failed with exit code 1: {left.pop(0)}")
        commands.append(command)
        docker.answers["image inspect box"] = image(labels={INPUTS_LABEL: "sha256:a"})

    Path(build._wheelhouse(str(context))).mkdir()
    have(build, context)
    docker.answers["version --format"] = (0, "20.10.24", "")
    monkeypatch.setattr(image_build, "run_step", step)
    monkeypatch.setattr(image_build, "check_image", lambda *_: None)
    build.build(str(context), "abc")
    return commands[0]


def test_the_build_is_given_bases_programs_and_the_digest_of_the_tag(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "no_proxy"):
        monkeypatch.setenv(name, f"value-of-{name}")
    docker.answers[f"image inspect {RECIPE['base']}"] = image(
        digests=(f"lmsysorg/sglang@{DIGEST}",)
    )
    command = build_command(gh200(docker, tmp_path), docker, context, monkeypatch)
    for argument in (
        f"BASE={RECIPE['base']}", f"BASE_NAME={RECIPE['base']}", f"BASE_DIGEST={DIGEST}",
        f"DCGM_IMAGE={RECIPE['stages']['DCGM_IMAGE']}",
        "http_proxy", "HTTPS_PROXY", "no_proxy",
    ):  # fmt: skip
        assert command[command.index(argument) - 1] == "--build-arg"
    assert not [word for word in command if "value-of" in word], (
        "everybody sees a command line, and a proxy's address may hold a password"
    )
    assert command[command.index("--platform") + 1] == "linux/arm64"
    assert set(os.listdir(context / "programs")) == {
        entry["program"] for entry in RECIPE["downloads"].values()
    }


def test_the_hosts_own_platform_is_not_named(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answers[f"image inspect {RECIPE['base']}"] = image(architecture="amd64")
    with pytest.raises(
        ImageError,
        match=(
            f"box:gh200 is for arm64, and linux/amd64 is wanted: its base {RECIPE['base']} is the"
            " wrong one"
        ),
    ):
        build_command(gh200(docker, tmp_path, platform=None), docker, context, monkeypatch)
    assert docker.asked[-1] == "image rm box:gh200", (
        "the next run would take it for a good one by its label"
    )


LOST = "#17 ERROR: layer does not exist"


def test_a_build_without_its_cache_is_told_of(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker 20.10.24's words; tests/integration/test_build_cache.py meets them."""
    build = gh200(docker, tmp_path)
    docker.answers[f"image inspect {RECIPE['base']}"] = image(digests=(f"a/b@{DIGEST}",))
    assert "--no-cache" in build_command(build, docker, context, monkeypatch, LOST)
    assert any("without that cache" in warning for warning in build.warnings(str(context)))


@pytest.mark.parametrize(("failures", "last"), [((LOST, LOST), LOST), (("no space",), "no space")])
def test_a_build_that_its_cache_does_not_fail_is_not_repeated(
    docker: Docker,
    tmp_path: Path,
    context: Path,
    monkeypatch: pytest.MonkeyPatch,
    failures: tuple[str, ...],
    last: str,
) -> None:
    docker.answers[f"image inspect {RECIPE['base']}"] = image(digests=(f"a/b@{DIGEST}",))
    with pytest.raises(ImageError, match=last):
        build_command(gh200(docker, tmp_path), docker, context, monkeypatch, *failures)


@pytest.mark.parametrize("place", ["sglang", "other"])
def test_the_python_of_sglang_keeps_its_program_where_it_has_our_name_already(
    tmp_path: Path, place: str
) -> None:
    # A base image that has an environment of its own in /opt/sglang: SGLang's, or another one's.
    for name in {"sglang", place}:
        venv.create(tmp_path / name, symlinks=True)
    own = next((tmp_path / place / "lib").iterdir()) / "site-packages"
    (own / "sglang-1.dist-info").mkdir()
    (own / "sglang-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sglang\nVersion: 1\n"
    )
    (own / "good.py").write_text("x = 1\n")
    (own / "broken.py").write_text("print x\n")
    (tmp_path / "checkout" / "sglang").mkdir(parents=True)
    for module in ("__init__", "launch_server"):
        (tmp_path / "checkout" / "sglang" / f"{module}.py").write_text("x = 1\n")
    (own / "editable.pth").write_text(f"{tmp_path / 'checkout'}\n")
    (tmp_path / "wheels").mkdir()
    text = (
        (FILES / "flavours/gh200/adopt_python.py")
        .read_text(encoding="utf-8")
        .replace('"/opt/', f'"{tmp_path}/')
    )
    base = Path(sys.executable).resolve().stat()
    done = run_program([tmp_path / place / "bin/python3", "-c", text, tmp_path / "wheels"])
    assert done.returncode == 0, done.stderr
    # SGLang's images have it editable, owned by root: the server's user could keep no byte code.
    assert list(own.glob("broken.py")) and not list(own.glob("__pycache__/broken*"))
    assert list(own.glob("__pycache__/good*.pyc"))
    assert list((tmp_path / "checkout/sglang/__pycache__").glob("launch_server*.pyc"))
    asked = [
        tmp_path / "sglang/bin/python",
        "-c",
        "import importlib.metadata as m; print(m.version('sglang'))",
    ]
    assert run_program(asked).stdout == "1\n"
    assert (base.st_size, base.st_mtime_ns) == (
        Path(sys.executable).resolve().stat().st_size,
        Path(sys.executable).resolve().stat().st_mtime_ns,
    )


def test_what_sglangs_build_left_in_roots_home_is_read_by_the_containers_user(
    tmp_path: Path,
) -> None:
    """Upstream's Dockerfile builds as root: kernels.lock is 0600 in folders of 0700."""
    dockerfile = (FILES / "Dockerfile").read_text(encoding="utf-8")
    [command] = re.findall(r"^RUN (chmod \S+ /root\b.*(?:\n .*)*)", dockerfile, re.MULTILINE)
    home = tmp_path / "root"
    kept, key = home / ".cache/sglang/kernels.lock", home / ".ssh/id_ed25519"
    for path in (kept, key):
        path.parent.mkdir(parents=True)
        path.write_text("x")
        for place in (path, *list(path.parents)[: len(path.relative_to(home).parts)]):
            place.chmod(0o700 if place.is_dir() else 0o600)
    done = run_program(["sh", "-c", command.replace("/root", str(home))])
    assert done.returncode == 0, done.stderr
    read, listed = 0o004, 0o005
    assert kept.stat().st_mode & read
    assert all(folder.stat().st_mode & listed == listed for folder in list(kept.parents)[:2])
    assert home.stat().st_mode & listed == 0o001, "it can be passed, and not listed"
    assert not (key.stat().st_mode | key.parent.stat().st_mode) & listed


def run_program(command: list[Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=30, check=False
    )


def test_an_architectures_own_requirements_stand_instead(docker: Docker, tmp_path: Path) -> None:
    folder = tmp_path / "context" / "flavours" / "local"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text(
        "# x\na==1 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\ntorch==2 \\\n   "
        " --hash=sha256:03\nz==1 --hash=sha256:04\n"
    )
    (folder / "requirements.arm64.txt").write_text("# y\ntorch==1.9 \\\n    --hash=sha256:05\n")
    text = {}
    for wanted_platform in ("linux/amd64", "linux/arm64"):
        build = ImageBuild(
            docker,
            "box:local",
            "local",
            "sha256:a",
            None,
            "bookworm",
            str(tmp_path),
            wanted_platform,
        )
        text[wanted_platform] = build._requirements(str(tmp_path / "context"))
    assert text["linux/amd64"] == (folder / "requirements.txt").read_text()
    assert (
        text["linux/arm64"]
        == "# x\na==1 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\ntorch==1.9 \\\n   "
        " --hash=sha256:05\nz==1 --hash=sha256:04\n"
    )


def test_wheels_of_another_architecture_are_kept_apart(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = gh200(docker, tmp_path, platform=None), gh200(docker, tmp_path)
    for build in (own, other):
        monkeypatch.setattr(image_build, "run_step", lambda what, command: None)
        build.fetch_wheels(str(context))
    assert {os.path.basename(build._wheelhouse(str(context))) for build in (own, other)} == set(
        os.listdir(own.build_dir)
    )
    assert os.path.basename(other._wheelhouse(str(context))).startswith("wheelhouse-arm64-")


class Host:
    """Stands for a connection: what is transferred lies in a folder, and the module is called with
    that file system.
    """

    def __init__(self, build: ImageBuild, context: Path, remote: Path) -> None:
        self.build, self.context, self.remote = build, str(context), remote
        self.action = object.__new__(ActionModule)
        self.action._vars = {"inventory_hostname": "testhost"}
        self.said: list[str] = []

    def attach(self, patch: pytest.MonkeyPatch) -> ActionModule:
        patch.setattr(self.action, "_module", self.module)
        patch.setattr(self.action, "_transfer", self.transfer)
        patch.setattr(self.action, "_display", self, raising=False)
        return self.action

    def display(self, text: str) -> None:
        self.said.append(text)

    def transfer(self, path: str, name: str) -> str:
        self.remote.mkdir(exist_ok=True)
        return shutil.copy(path, str(self.remote / name))

    def module(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self.build.fetch_wheels(self.context, arguments.get("wheels_archive"))
        return {"next_step": "downloads"}


@pytest.fixture
def without_pip(tmp_path: Path) -> str:
    """A Python as Ubuntu Server has it."""
    folder = tmp_path / "python-without-pip"
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


def wheel(folder: Path) -> str:
    """A pure wheel in a folder; returns the requirement with its digest."""
    folder.mkdir(exist_ok=True)
    path = folder / "supervisor-4.3.0-py3-none-any.whl"
    information = "supervisor-4.3.0.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: supervisor\nVersion: 4.3.0\n"
        )
        packed.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{information}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"supervisor==4.3.0 \\\n    --hash=sha256:{digest}\n"


def refused(build: ImageBuild, context: Path) -> dict[str, Any]:
    with pytest.raises(NoWheels) as caught:
        build.fetch_wheels(str(context))
    error = caught.value
    return {
        "failed": True,
        "msg": str(error),
        "wheels": {"requirements": error.requirements, "machine": error.machine},
    }


def test_a_host_without_pip_gets_its_wheels_from_the_controller(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch, without_pip: str
) -> None:
    requirement = wheel(tmp_path / "index")
    (context / "flavours" / "gh200" / "requirements.txt").write_text(requirement)
    build = gh200(docker, tmp_path)
    host = Host(build, context, tmp_path / "remote")
    with monkeypatch.context() as patch:
        patch.setattr(image_build.sys, "executable", without_pip)
        answer = refused(build, context)
    assert "No module named pip" in answer["msg"] and answer["wheels"]["machine"] == "aarch64"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    host.attach(monkeypatch)._bring_wheels({"name": "box:gh200", "step": "wheels"}, answer)
    assert os.listdir(build._wheelhouse(str(context))) == ["supervisor-4.3.0-py3-none-any.whl"]
    assert host.said[0].startswith("testhost: image box:gh200: the Python packages, by the")
    assert "by the controller's pip" in host.said[0] and "No module named pip" in host.said[0]

    shutil.rmtree(build._wheelhouse(str(context)))
    (context / "flavours" / "gh200" / "requirements.txt").write_text(
        "supervisor==4.3.0 --hash=sha256:" + "0" * 64 + "\n"
    )
    with pytest.raises(ImageError, match="has another digest"):
        build.fetch_wheels(str(context), str(tmp_path / "remote" / "wheels.tar"))


def test_wheels_that_neither_can_fetch_are_told_with_both_reasons(
    docker: Docker, tmp_path: Path, context: Path, monkeypatch: pytest.MonkeyPatch, without_pip: str
) -> None:
    build = gh200(docker, tmp_path)
    host = Host(build, context, tmp_path / "remote")
    monkeypatch.setattr(image_build.sys, "executable", without_pip)
    answer = refused(build, context)
    found = host.attach(monkeypatch)._bring_wheels({"name": "box"}, answer)
    assert found["failed"] and found["msg"].count("No module named pip") == 2
    assert "apt-get install python3-pip" in found["msg"] and len(found["msg"]) < 400


def test_a_debian_base_is_named_for_its_architecture(docker: Docker, tmp_path: Path) -> None:
    def base(platform: str | None) -> str:
        return ImageBuild(
            docker, "box:local", "local", "sha256:a", None, "bookworm", str(tmp_path), platform
        )._bases({})["BASE"]

    assert (
        base(None) == base("linux/amd64") == "sglang-base:bookworm"
        and base("linux/arm64") == "sglang-base:bookworm-arm64"
    )


# --- registries and archives ----------------------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.slice_bench.sglang.plugins.module_utils import (
        _image_sources as image_sources,
    )

    monkeypatch.setattr(image_sources, "check_image", lambda *_: None)


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, False),
        ({"platform": "linux/arm64"}, False),
        ({"platform": "linux/amd64"}, True),
        ({"flavour": "local"}, True),
    ],
)
def test_a_found_image_of_another_kind_is_looked_at_on_the_host(
    docker: Docker, options: dict[str, str], asks: bool
) -> None:
    docker.answers["image inspect box:gh200"] = image(
        digests=(f"registry.example/sglang-dev@{DIGEST}",)
    )
    found = DockerCli(docker).image("box:gh200")
    action = object.__new__(ActionModule)
    asked: list[dict[str, Any]] = []

    def module(arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(arguments)
        return {"image": found}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, "_module", module)
        given = {
            "name": "box:gh200",
            "source": "pull",
            "flavour": "gh200",
            "pull": f"registry.example/sglang-dev@{DIGEST}",
            **options,
        }
        action._taken(given, found)
    assert bool(asked) is asks


def test_an_image_is_known_by_the_digest_that_it_was_pulled_by(docker: Docker) -> None:
    reference = f"registry.example/sglang-dev@{DIGEST}"
    source = Pulled(docker, "box:gh200", "gh200", "linux/arm64", reference)
    assert source.is_current(source.found()) is False
    docker.answers["image inspect box:gh200"] = image(
        digests=(f"elsewhere.example/sglang-dev@{DIGEST}",)
    )
    found = source.found()
    assert (
        source.is_current(found) is True
        and found is not None
        and pulled_by_digest(found, reference)
    )
    assert source.warning(found) is None
    docker.answers["image inspect box:gh200"] = image(
        architecture="amd64", digests=(f"elsewhere.example/sglang-dev@{DIGEST}",)
    )
    assert source.is_current(source.found()) is False, (
        "a digest may be that of an image for several platforms"
    )
    docker.answers["image inspect box:gh200"] = image(
        digests=("registry.example/sglang-dev@sha256:0",)
    )
    assert source.is_current(source.found()) is False


def test_a_tag_is_taken_with_a_warning_and_not_followed(docker: Docker, unchecked: None) -> None:
    source = Pulled(
        docker, "box:gh200", "gh200", "linux/arm64", "registry.example/sglang-dev:stable"
    )
    docker.answers["image inspect registry.example/sglang-dev:stable"] = image(
        digests=(f"registry.example/sglang-dev@{DIGEST}",)
    )
    docker.answers["tag registry.example/sglang-dev:stable box:gh200"] = (0, "", "")
    assert source.is_current(None) is False
    docker.answers["image inspect box:gh200"] = image(
        digests=(f"registry.example/sglang-dev@{DIGEST}",)
    )
    made = source.make()
    assert source.is_current(made) is True
    assert f"set sgl_image_pull to registry.example/sglang-dev@{DIGEST}" in (
        source.warning(made) or ""
    )
    docker.answers["image inspect box:gh200"] = image("sha256:2")
    assert source.is_current(source.found()) is False


def test_an_image_whose_name_is_its_reference_is_not_taken_for_a_good_one_once_it_was_refused(
    docker: Docker,
) -> None:
    name = "registry.example/sglang-dev:stable"
    docker.answers[f"image inspect {name}"] = image(labels={FLAVOUR_LABEL: "local"})
    source = Pulled(docker, name, "gh200", "linux/arm64", name)
    for _time in range(2):
        assert source.is_current(source.found()) is False
        with pytest.raises(ImageError, match="is of flavour local, and sgl_flavour is gh200"):
            source.make()


def test_a_tag_of_no_registry_is_not_called_by_an_id_that_none_could_pull(docker: Docker) -> None:
    docker.answers["image inspect box:mine"] = image()
    source = Pulled(docker, "box:gh200", "gh200", "linux/arm64", "box:mine")
    found = DockerCli(docker).image("box:mine")
    assert found is not None
    warning = source.warning(found) or ""
    assert "sha256:1" not in warning and "set sgl_image_pull to name@sha256:..." in warning


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return saved_as(tmp_path / "image.tar", "sglang-dev:elsewhere")


def saved_as(path: Path, *names: str, **files: Any) -> Path:
    """An archive as `docker save` writes it (moby, image/tarexport/save.go), without layers."""
    files = {"manifest.json": [{"Config": "1.json", "RepoTags": [*names], "Layers": []}], **files}
    with tarfile.open(path, "w") as archive:
        for name, document in files.items():
            content = json.dumps(document).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def loaded(docker: Docker, tmp_path: Path, saved: Path, sha256: str | None = None) -> Loaded:
    docker.answers.setdefault("load --input", (0, "Loaded image: sglang-dev:elsewhere\n", ""))
    docker.answers.setdefault("image inspect sglang-dev:elsewhere", image())
    docker.answers.setdefault("tag sglang-dev:elsewhere box:gh200", (0, "", ""))
    docker.answers.setdefault("tag sha256:1 sglang-dev:elsewhere", (0, "", ""))
    return Loaded(docker, "box:gh200", "gh200", "linux/arm64", str(saved), sha256, str(tmp_path))


def test_an_archive_is_loaded_once(
    docker: Docker, tmp_path: Path, saved: Path, unchecked: None
) -> None:
    source = loaded(docker, tmp_path, saved)
    assert source.is_current(source.found()) is False
    docker.answers["image inspect box:gh200"] = image()
    assert source.is_current(source.found()) is False, (
        "an image of that name that came from elsewhere"
    )
    (tmp_path / f".{source._note.name}.0123456789abcdef.tmp").write_text("of a killed load")
    assert source.make()["id"] == "sha256:1"
    assert source.is_current(source.found()) is True
    assert list(tmp_path.glob(".*.tmp")) == []
    saved.unlink()
    assert source.is_current(source.found()) is True, "a converged host needs the archive no more"
    saved.write_bytes(b"another archive")
    assert source.is_current(source.found()) is False
    docker.answers["image inspect box:gh200"] = image("sha256:2")
    assert source.is_current(source.found()) is False, "the name was given to another image"


def test_an_archive_is_held_to_its_digest(
    docker: Docker, tmp_path: Path, saved: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    with pytest.raises(
        ImageError,
        match=f"has the sha256 digest {digest}, and sgl_image_archive_sha256 is {'0' * 64}",
    ):
        loaded(docker, tmp_path, saved, "0" * 64).make()
    assert not [line for line in docker.asked if line.startswith("load")]
    docker.answers["image inspect box:gh200"] = image()
    loaded(docker, tmp_path, saved).make()
    source = loaded(docker, tmp_path, saved, f"sha256:{digest.upper()}")
    assert source.is_current(source.found()) is True, (
        "what was loaded without a digest has the wanted one"
    )
    source.settle()
    with monkeypatch.context() as patch:
        patch.setattr(Loaded, "_digest", lambda self: pytest.fail("the archive is read once more"))
        again = loaded(docker, tmp_path, saved, digest)
        assert again.is_current(again.found()) is True
    docker.answers["image inspect box:gh200"] = image(architecture="amd64")
    assert source.is_current(source.found()) is False, "another platform is wanted than was loaded"
    docker.answers["image inspect box:gh200"] = image()
    saved.rename(tmp_path / "moved.tar")
    assert (
        loaded(docker, tmp_path, tmp_path / "moved.tar", digest).is_current(source.found()) is True
    )
    assert loaded(docker, tmp_path, saved, "0" * 64).is_current(source.found()) is False


OCI = "io.containerd.image.name"


@pytest.mark.parametrize(
    ("names", "files", "words"),
    [
        (["a:1", "b:1"], {}, r"holds 2 names of images \(a:1, b:1\), none of them box:gh200"),
        ([], {}, "holds 0 names"),
        (["box:gh200", "debian:12"], {}, "also names debian:12, and docker load would take"),
        (
            ["box:gh200"],
            {"repositories": {"debian": {"12": "1"}}},
            "also names debian:12",
        ),
        (
            ["box:gh200"],
            {"index.json": {"manifests": [{"annotations": {OCI: "docker.io/library/debian:12"}}]}},
            "also names docker.io/library/debian:12",
        ),
        (["box:gh200"], {"./manifest.json": [{"repotags": ["debian:12"]}]}, "also names debian"),
        (["box:gh200"], {"manifest.json": "?"}, "holds 0 names"),
    ],
)
def test_an_archive_that_would_give_other_names_is_not_loaded(
    docker: Docker, tmp_path: Path, names: list[str], files: dict[str, Any], words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        loaded(docker, tmp_path, saved_as(tmp_path / "image.tar", *names, **files)).make()
    assert not [line for line in docker.asked if line.startswith("load")]


def test_an_archive_that_is_loaded_leaves_its_own_name_as_it_was(
    docker: Docker, tmp_path: Path, saved: Path, unchecked: None
) -> None:
    docker.answers["image inspect box:gh200"] = image()
    loaded(docker, tmp_path, saved).make()
    assert docker.asked[-1] == "tag sha256:1 sglang-dev:elsewhere"


def test_an_archive_that_is_not_there_is_told(docker: Docker, tmp_path: Path) -> None:
    source = loaded(docker, tmp_path, tmp_path / "none.tar")
    with pytest.raises(
        ImageError,
        match=(
            r"there is no archive .*none\.tar on this host: put it there, or set sgl_image_archive"
        ),
    ):
        source.make()
    docker.answers["load --input"] = (1, "", "open /x: no such file or directory")
    saved_as(tmp_path / "none.tar", "box:gh200")
    with pytest.raises(DockerError, match="no such file"):
        source.make()


# --- credentials of the host's mirror -----------------------------------------------------------


def test_credentials_of_a_mirror_are_parted_from_its_address() -> None:
    assert image_build.split_credentials("https://a.example.com/debian/") == (
        "https://a.example.com/debian/",
        "",
    )
    assert image_build.split_credentials("https://ops:s3cr%40t@a.example.com:8443/debian/") == (
        "https://a.example.com:8443/debian/",
        "machine a.example.com login ops password s3cr@t\n",
    )


def test_credentials_of_the_mirror_reach_no_command_line_and_no_layer(
    docker: Docker, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """debootstrap's argument stands in the process list and in the image's sources.list."""
    build = gh200(docker, tmp_path, platform=None)
    mirror = "https://ops:s3cret@mirror.example.com/debian/"
    monkeypatch.setattr(build, "host_mirror", lambda: mirror)
    monkeypatch.setattr(build._docker, "image", lambda name: None)
    monkeypatch.setattr(image_build.shutil, "which", lambda *_, **__: "/usr/sbin/debootstrap")
    monkeypatch.setattr(image_build.os, "geteuid", lambda: 0)
    steps = []

    def step(what: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        steps.append(command)
        if what == "debootstrap":
            netrc = Path((environment or {})["HOME"], ".netrc")
            assert netrc.read_text() == "machine mirror.example.com login ops password s3cret\n"
            assert netrc.stat().st_mode & 0o777 == 0o600

    monkeypatch.setattr(image_build, "run_step", step)
    build._debootstrap("base:x")
    with build._apt_secret() as option:
        steps.append(option)
        place = Path(option[1].partition("src=")[2])
        assert "s3cret" in place.read_text() and place.stat().st_mode & 0o777 == 0o600
    assert not place.exists()
    assert "s3cret" not in json.dumps(steps)
    assert "https://mirror.example.com/debian/" in steps[0]


def test_a_failed_step_is_told_without_credentials() -> None:
    said = "echo 'E: failed https://ops:s3cret@a.example.com/x http://a/b?token=s3cret'; exit 3"
    with pytest.raises(ImageError, match="a.example.com") as failure:
        image_build.run_step("a step", ["/bin/sh", "-c", said])
    assert "s3cret" not in str(failure.value)


# --- the folder of a build ------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of another owner")
@pytest.mark.parametrize(
    ("mode", "owner", "refused"),
    [(0o755, 0, False), (0o1777, 0, False), (0o755, 12345, True), (0o777, 0, True)],
)
@pytest.mark.parametrize("which", ["the folder", "its parent"])
def test_a_build_folder_that_another_user_can_exchange_is_refused(
    which: str, mode: int, owner: int, refused: bool
) -> None:
    top = Path(tempfile.mkdtemp(prefix="sgl-build-"))
    try:
        folder = top / "parent" / "build"
        folder.mkdir(parents=True)
        for path in (top, folder.parent):
            path.chmod(0o755)
        changed = folder if which == "the folder" else folder.parent
        os.chown(changed, owner, owner)
        changed.chmod(mode)
        if refused:
            with pytest.raises(ImageError, match="another user can exchange what is in") as error:
                image_build.check_build_dir(str(folder))
            assert str(changed) in str(error.value)
        else:
            image_build.check_build_dir(str(folder))
            image_build.check_build_dir(str(folder / "missing" / "yet"))
    finally:
        shutil.rmtree(top)
