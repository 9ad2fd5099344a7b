"""What a host makes of the words of Docker, of registries and of sgl-admin, when it gives or takes
shared work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli
from ansible_collections.slice_bench.sglang.plugins.module_utils._shared_work import (
    Host,
    ShareError,
)

from tests.doubles import docker_words

REQUEST = {"model": "/m", "stages": {"inductor": "ensure"}}
ITEM = {"kind": "caches", "name": "inductor-1", "image": None, "request": REQUEST}
REFERENCE = "registry.example/team/caches:inductor-1"
DAEMON = "Error response from daemon: "


def saying(error: str) -> Host:
    """A host whose Docker fails with these words."""
    return Host(DockerCli(lambda command: (1, "", error + "\n"), "docker"), "sglang-dev")


@pytest.mark.parametrize(
    "said",
    [
        f"manifest for {REFERENCE} not found: manifest unknown: manifest unknown",
        "manifest unknown",
        (
            "name unknown: The repository with name 'team/caches' does not exist in the registry"
            " with id '1'"
        ),
        # Docker with containerd's image store; Harbor.
        f'failed to resolve reference "{REFERENCE}": {REFERENCE}: not found',
        "unknown: artifact team/caches:inductor-1 not found",
    ],
)
def test_what_a_registry_does_not_have_is_absent(said: str) -> None:
    host = saying(DAEMON + said)
    assert host.look(REFERENCE) is None and host.fetch(ITEM, REFERENCE, "/none") is None


SILENT = "the registry does not answer: start it, or set sgl_cache_share to relay"
LOGIN = "no permission: `docker login` on this host"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (
            'Get "http://10.0.0.1:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused',
            SILENT,
        ),
        (
            'Get "https://r.example/v2/": dial tcp: lookup r.example on 10.0.0.53:53: no such host',
            SILENT,
        ),
        ('Get "https://r.example/v2/": dial tcp 10.0.0.2:443: connect: no route to host', SILENT),
        ('Get "https://r.example/v2/": dial tcp 10.0.0.2:443: i/o timeout', SILENT),
        (
            (
                'Get "https://r.example/v2/": context deadline exceeded (Client.Timeout exceeded'
                " while awaiting headers)"
            ),
            SILENT,
        ),
        ('Get "https://r.example/v2/": EOF', SILENT),
        # Docker 20.10.24, where the registry was stopped between two questions.
        ('Get "http://10.0.0.1:5000/v2/": http: server closed idle connection', SILENT),
        # A push that is cut: docker/build-push-action issue 677.
        ("write tcp 10.0.2.15:51090->10.0.0.1:443: write: broken pipe", SILENT),
        (
            'Get "https://10.0.0.1:5000/v2/": http: server gave HTTP response to HTTPS client',
            "name it in insecure-registries",
        ),
        (
            'Get "https://r.example/v2/": x509: certificate signed by unknown authority',
            "/etc/docker/certs.d/<registry>/ca.crt",
        ),
        (
            (
                "pull access denied for team/caches, repository does not exist or may require"
                " 'docker login': denied: requested access"
            ),
            LOGIN,
        ),
        ("unauthorized: authentication required", LOGIN),
        ("denied: artifact team/caches:inductor-1 not found", LOGIN),
        (
            (
                'error getting credentials - err: exec: "docker-credential-x": executable file not'
                " found in $PATH, out: ``"
            ),
            "docker-credential-x",
        ),
        ("no space left on device", "no space left on device"),
        # "not found", and not of what was asked for.
        ("error getting credentials: docker-credential-pass not found", "docker-credential-pass"),
        ("plugin registry-mirror not found", "registry-mirror"),
        ("failed to register layer: exec: zstd: executable not found", "zstd"),
    ],
)
def test_a_registry_that_cannot_be_used_is_told_with_the_remedy(
    said: str, remedy: str, tmp_path: Path
) -> None:
    host = saying(DAEMON + said)
    for step in (
        lambda: host.look(REFERENCE),
        lambda: host.fetch(ITEM, REFERENCE, "/none"),
        lambda: host.push(IMAGE, None, REFERENCE, None, None),
    ):
        with pytest.raises(ShareError) as failed:
            step()
        assert (
            remedy in str(failed.value)
            and said in str(failed.value)
            and REFERENCE in str(failed.value)
        )
        assert "systemctl start docker" not in str(failed.value), "it is the registry, not Docker"


@pytest.mark.parametrize("release", docker_words.SILENT)
def test_a_docker_that_does_not_answer_is_not_called_a_registry(release: str) -> None:
    words, remedy = docker_words.SILENT[release]
    for step in (
        lambda: saying(words).look(REFERENCE),
        lambda: saying(words).fetch(ITEM, REFERENCE, "/none"),
    ):
        with pytest.raises(ShareError) as failed:
            step()
        assert remedy in str(failed.value) and "the registry does not" not in str(failed.value)


IMAGE = {"kind": "image", "name": "image-1", "image": "sglang-dev:local", "request": None}


def test_a_docker_that_does_not_answer_is_told_as_such() -> None:
    host = saying(
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon"
        " running?"
    )
    with pytest.raises(ShareError, match="systemctl start docker"):
        host.look(REFERENCE)


@pytest.mark.parametrize(
    ("reference", "digests", "found"),
    [
        (
            REFERENCE,
            ["registry.example/team/caches@sha256:1"],
            "registry.example/team/caches@sha256:1",
        ),
        (
            "registry.example:5000/caches:x",
            ["other@sha256:1", "registry.example:5000/caches@sha256:2"],
            "registry.example:5000/caches@sha256:2",
        ),
        # Docker leaves out the name of its own registry.
        ("docker.io/team/caches:x", ["team/caches@sha256:1"], "team/caches@sha256:1"),
        (REFERENCE, ["registry.example/team/caches-2@sha256:1"], None),
        (REFERENCE, None, None),
    ],
)
def test_where_it_was_pushed_to_is_told_by_digest(
    reference: str, digests: list[str] | None, found: str | None
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str]) -> tuple[int, str, str]:
        asked.append(command[1:])
        return (
            0,
            json.dumps(
                [{"Id": "sha256:1", "Architecture": "arm64", "Config": {}, "RepoDigests": digests}]
            ),
            "",
        )

    host = Host(DockerCli(run, "docker"), "sglang-dev")
    if found is None:
        with pytest.raises(ShareError, match="does not say by which digest"):
            host.push(IMAGE, None, reference, None, None)
    else:
        assert host.push(IMAGE, None, reference, None, None) == found
    assert asked[:2] == [
        ["tag", IMAGE["image"], reference],
        ["push", "--quiet", reference],
    ] and asked[-1] == ["rmi", reference]


def admin(folder: Path, out: str = "", error: str = "", code: int = 0) -> Host:
    """A host whose container's sgl-admin prints this; its words and its input are in files."""
    for name, text in (("out", out), ("error", error)):
        (folder / name).write_text(text)
    program = folder / "docker"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >"{folder}/words"\ncat >"{folder}/in"\n'
        f'cat "{folder}/out"\ncat "{folder}/error" >&2\nexit {code}\n'
    )
    program.chmod(0o755)
    return Host(DockerCli(lambda command: (1, "", ""), str(program)), "sglang-dev")


SUMMARY: dict[str, Any] = {
    "digest": "sha256:1",
    "bytes": 7,
    "stages": {"inductor": {"finished": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "error", "code", "said"),
    [
        ("archive", "", 0, "not JSON with digest, bytes, stages"),
        ("archive", "[]", 0, "not JSON with"),
        ("archive", '{"digest": "sha256:1"}', 0, "not JSON with"),
        ("archi", json.dumps(SUMMARY), 0, "was cut while it was packed: run this again"),
        (
            "archive",
            "sgl-admin: warning: x\nsgl-admin: no live run\n",
            4,
            "cannot be packed: no live run",
        ),
        ("", "", 137, "sgl-admin said nothing"),
        (
            "",
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            1,
            "systemctl start docker",
        ),
    ],
)
def test_an_export_that_is_not_whole_is_told(
    tmp_path: Path, out: str, error: str, code: int, said: str
) -> None:
    with pytest.raises(ShareError, match=said):
        admin(tmp_path, out, error, code).pack(ITEM, str(tmp_path / "archive"))


@pytest.mark.slow
def test_an_export_may_say_more_before_its_summary(tmp_path: Path) -> None:
    host = admin(tmp_path, "archive", f"sgl-admin: warning: x\n{json.dumps(SUMMARY)}\n")
    assert host.pack(ITEM, str(tmp_path / "archive")) == {
        "digest": "sha256:1",
        "bytes": 7,
        "finished": True,
    }
    assert (tmp_path / "archive").read_text() == "archive"
    words = ["exec", "--interactive", "sglang-dev", "sgl-admin", "caches", "export", "-"]
    assert (tmp_path / "words").read_text().splitlines() == [*words, "--request", "-", "--json"]
    assert json.loads((tmp_path / "in").read_text()) == REQUEST
    part = {**SUMMARY, "stages": {"inductor": {"finished": True}, "moe_tune": {"finished": False}}}
    packed = admin(tmp_path, "archive", json.dumps(part)).pack(ITEM, str(tmp_path / "archive"))
    assert packed is not None and packed["finished"] is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        ("", "sgl-admin: busy: prep-1 runs on this host\n", "is not taken: busy: prep-1 runs"),
        ("", "", "sgl-admin said nothing"),
        ("perhaps", "", "not JSON with stages"),
        (
            (
                '{"stages": {"inductor": {"status": "refused", "reason": "its signature differs in'
                ' GPU"}}}'
            ),
            "",
            "inductor: its signature differs in GPU",
        ),
    ],
)
def test_an_import_that_takes_nothing_is_told(
    tmp_path: Path, out: str, error: str, said: str
) -> None:
    (tmp_path / "archive").write_text("archive")
    with pytest.raises(ShareError, match=said):
        admin(tmp_path, out, error, 8).take(ITEM, str(tmp_path / "archive"), "sha256:1")


@pytest.mark.slow
def test_an_import_has_the_archive_on_standard_input_and_the_request_in_no_command_line(
    tmp_path: Path,
) -> None:
    (tmp_path / "archive").write_text("archive")
    answer = {"stages": {"inductor": {"status": "imported"}}}
    host = admin(tmp_path, json.dumps(answer))
    assert host.take(ITEM, str(tmp_path / "archive"), "sha256:1") == answer
    words = (tmp_path / "words").read_text().splitlines()
    name = words[3]
    assert words[:9] == [
        *("exec", "--interactive", "--env", name, "sglang-dev", "sgl-admin", "caches", "import"),
        "-",
    ]
    assert words[9:] == ["--json", "--request", f"env:{name}", "--digest", "sha256:1"]
    assert (tmp_path / "in").read_text() == "archive"
