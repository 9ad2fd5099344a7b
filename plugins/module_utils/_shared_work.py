# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host does to give its finished work to others, or to take theirs: archives of kernel
caches, and images.

An archive of caches goes to a registry as an image of one file. Docker is the client: it has the
credentials, mirrors and certificates of the host, and every host that runs the container has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from typing import IO, Any, cast

from ._contract.exit_codes import EXIT_NO_RESULT
from ._contract.texts import read_json_text
from ._docker_cli import DockerCli, DockerError, DockerSilent, explain, failure
from ._image_parts import ImageError, check_names, repository_of, sha256_of

IMAGE = "image"
DIGEST_LABEL = "org.slice-bench.shared-digest"
SIGNATURE_LABEL = "org.slice-bench.shared-signature"
# The one file of an archive's image.
_MEMBER = "sgl-caches.tar"
# What a saved image is called in its archive, whatever its name is on the two hosts.
_SAVED = "sgl-shared"
# The registries' words for what they do not have (distribution's error codes MANIFEST_UNKNOWN and
# NAME_UNKNOWN), those of Harbor, and of Docker with containerd's image store.
_ABSENT = re.compile(
    r"\b(?:manifest|name) unknown\b|: not found$|\bartifact \S+ not found$", re.IGNORECASE
)
# How it looks where no registry is, none that can be reached, or one that was just stopped.
_SILENT = re.compile(
    r"connection refused|no such host|no route to host|network is unreachable|timeout"
    r"|deadline exceeded|\beof\b|reset by peer|broken pipe|server closed idle connection",
    re.IGNORECASE,
)
# sgl-admin's sentence; docker exec ends with the same code for failures of its own.
_NOTHING = re.compile(r"^sgl-admin: nothing to export: ", re.MULTILINE)
# Brings sgl-admin the request of an import, whose standard input is the archive.
_REQUEST = "SGL_ADMIN_REQUEST"


class ShareError(Exception):
    """The work could not be given or taken; the message says at which step and what to do."""


class Host:
    def __init__(self, docker: DockerCli, container: str) -> None:
        self._docker = docker
        self._container = container

    # --- giving -----------------------------------------------------------------------------------

    def pack(self, item: dict[str, Any], path: str) -> dict[str, Any] | None:
        """Write the archive of an item to `path`; returns its digest and size, None where nothing
        of it is finished. Raises ShareError.
        """
        if item["kind"] == IMAGE:
            return self._save(item, path)
        with open(path, "wb") as output:
            code, error = self._export(item["request"], output)
        if code == EXIT_NO_RESULT and _NOTHING.search(error):
            os.unlink(path)
            return None
        if code:
            raise ShareError(f"{item['name']} cannot be packed: {_last_line(error)}")
        summary = _object(error, "digest", "bytes", "stages")
        if os.path.getsize(path) != summary["bytes"]:
            raise ShareError(f"{item['name']} was cut while it was packed: run this again")
        return {
            "digest": summary["digest"],
            "bytes": summary["bytes"],
            "finished": all(s["finished"] for s in summary["stages"].values()),
        }

    def _export(self, request: dict[str, Any], output: IO[bytes]) -> tuple[int, str]:
        """Exit code and standard error of an export; the request goes in by standard input."""
        words = ["exec", "--interactive", self._container, "sgl-admin", "caches", "export", "-"]
        process = subprocess.run(
            [self._docker.binary, *words, "--request", "-", "--json"],
            input=json.dumps(request).encode(),
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
        return process.returncode, process.stderr.decode(errors="replace")

    def _save(self, item: dict[str, Any], path: str) -> dict[str, Any]:
        saved = f"{_SAVED}:{item['name']}"
        if self._docker.image(item["image"]) is None:
            raise ShareError(f"image {item['image']} is not on this host")
        try:
            self._docker.call("tag", item["image"], saved)
            self._docker.call("save", "--output", path, saved)
        except DockerError as error:
            raise ShareError(f"image {item['image']} cannot be saved: {error}") from error
        finally:
            self._forget(saved)
        # The archive's digest: the image's id alone would show only after loading that it is
        # another image.
        return {
            "digest": f"sha256:{sha256_of(path)}",
            "bytes": os.path.getsize(path),
            "finished": True,
        }

    def push(
        self,
        item: dict[str, Any],
        path: str | None,
        reference: str,
        digest: str | None,
        signature: str | None,
    ) -> str:
        """Put the archive at `path`, or an image as it is, into the registry; returns
        `name@sha256:...`. Raises ShareError.
        """
        try:
            if path is None:
                self._docker.call("tag", item["image"], reference)
            else:
                self._wrap(path, reference, digest, signature)
            try:
                self._docker.call("push", "--quiet", reference)
                return self._pushed(reference)
            finally:
                self._forget(reference)
        except DockerError as error:
            raise ShareError(
                f"{item['name']} cannot be pushed to {reference}: {registry_error(error)}"
            ) from error

    def _wrap(self, path: str, reference: str, digest: str | None, signature: str | None) -> None:
        labels = [
            f"LABEL {DIGEST_LABEL}={digest}",
            *([f"LABEL {SIGNATURE_LABEL}={signature}"] if signature else []),
        ]
        words = [
            self._docker.binary,
            "import",
            *(word for label in labels for word in ("--change", label)),
            "-",
            reference,
        ]
        with open(path, "rb") as archive:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            target, said = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stderr)
            # Where Docker ends before it has all, its own words say why.
            with (
                contextlib.suppress(BrokenPipeError),
                tarfile.open(fileobj=target, mode="w|") as outer,
            ):
                member = tarfile.TarInfo(_MEMBER)
                member.size = os.path.getsize(path)
                outer.addfile(member, archive)
            with contextlib.suppress(BrokenPipeError):
                target.close()
            error = said.read().decode(errors="replace")
            if process.wait():
                raise failure(error.strip())

    def _pushed(self, reference: str) -> str:
        image = self._docker.image(reference)
        # Docker leaves out the name of its own registry.
        repository = repository_of(reference).removeprefix("docker.io/")
        for name in image["repo_digests"] if image else []:
            if name.partition("@")[0] == repository:
                return str(name)
        raise ShareError(
            f"{reference} was pushed, and Docker does not say by which digest: run this again"
        )

    # --- taking -----------------------------------------------------------------------------------

    def look(self, reference: str) -> str | None:
        """By which digest the registry has something; None where it has not. Raises ShareError,
        DockerError.

        It is pulled for that: `docker manifest`, which would not, knows nothing of the daemon's
        insecure-registries and calls absent what is there.
        """
        if not self._pull(reference):
            return None
        try:
            return self._pushed(reference)
        finally:
            self._forget(reference)

    def fetch(self, item: dict[str, Any], reference: str, path: str) -> dict[str, Any] | None:
        """Have an item from the registry: an archive lies at `path` then, an image has its name;
        None where the registry has none.

        Returns where it came from, by digest, and for an archive its digest and signature. Raises
        ShareError.
        """
        if not self._pull(reference):
            return None
        try:
            image = self._docker.image(reference)
            if image is None:
                raise ShareError(f"{reference} vanished after it was pulled: run this again")
            source = reference if "@" in reference else self._pushed(reference)
            if item["kind"] == IMAGE:
                self._docker.call("tag", image["id"], item["image"])
                return {"source": source, "digest": source.partition("@")[2], "signature": None}
            self._unwrap(image["id"], reference, path)
            labels = image["labels"]
            return {
                "source": source,
                "digest": labels.get(DIGEST_LABEL),
                "signature": labels.get(SIGNATURE_LABEL),
            }
        except DockerError as error:
            raise ShareError(
                f"{item['name']} cannot be taken out of {reference}: {error}"
            ) from error
        finally:
            self._forget(reference)

    def _pull(self, reference: str) -> bool:
        """Whether the registry has it; it is here then. Raises ShareError."""
        try:
            self._docker.call("pull", "--quiet", reference)
        except DockerError as error:
            if not isinstance(error, DockerSilent) and _is_absent(str(error)):
                return False
            raise ShareError(f"{reference} cannot be pulled: {registry_error(error)}") from error
        return True

    def _unwrap(self, image: str, reference: str, path: str) -> None:
        # A container that is never started; its command is only there because Docker wants one.
        made = self._docker.call("create", image, "none").strip()
        words = [self._docker.binary, "cp", f"{made}:/{_MEMBER}", "-"]
        try:
            with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as copy:
                try:
                    with tarfile.open(fileobj=copy.stdout, mode="r|") as outer:
                        member = outer.next()
                        content = outer.extractfile(member) if member and member.isreg() else None
                        if content is None:
                            raise ShareError(
                                f"{reference} holds no archive of caches: it is of another tool;"
                                " delete it from the registry"
                            )
                        _write(content, path)
                except tarfile.TarError as error:
                    said = cast(IO[bytes], copy.stderr).read().decode(errors="replace").strip()
                    raise ShareError(
                        f"{reference} holds no archive of caches: {said or error}; delete it from"
                        " the registry"
                    ) from error
        finally:
            self._docker.call("rm", "--force", made)

    def take(self, item: dict[str, Any], path: str, digest: str | None) -> dict[str, Any]:
        """Hand an archive to sgl-admin, or to Docker; returns what became of each stage. Raises
        ShareError where it was refused.
        """
        if item["kind"] == IMAGE:
            return self._load(item, path, digest)
        words = [
            "exec",
            "--interactive",
            # Its value comes from this process's environment: everybody sees a command line.
            "--env",
            _REQUEST,
            self._container,
            "sgl-admin",
            "caches",
            "import",
            "-",
            "--json",
            "--request",
            f"env:{_REQUEST}",
        ]
        with open(path, "rb") as archive:
            process = subprocess.run(
                [self._docker.binary, *words, *(["--digest", digest] if digest else [])],
                stdin=archive,
                env={**os.environ, _REQUEST: json.dumps(item["request"])},
                capture_output=True,
                check=False,
            )
        output, error = (text.decode(errors="replace") for text in (process.stdout, process.stderr))
        if not output.strip():
            raise ShareError(f"{item['name']} is not taken: {_last_line(error)}")
        answer = _object(output, "stages")
        for stage, what in answer["stages"].items():
            if what["status"] == "refused":
                raise ShareError(f"{item['name']} is not taken: {stage}: {what['reason']}")
        return answer

    def _load(self, item: dict[str, Any], path: str, digest: str | None) -> dict[str, Any]:
        if digest and f"sha256:{sha256_of(path)}" != digest:
            raise ShareError(
                f"the archive of image {item['name']} is not the one that was given: remove it"
                " there, and run this again"
            )
        saved = f"{_SAVED}:{item['name']}"
        try:
            check_names(path, saved)
        except ImageError as error:
            raise ShareError(f"image {item['image']} is not loaded: {error}") from error
        try:
            self._docker.call("load", "--input", path)
            self._docker.call("tag", saved, item["image"])
        except DockerError as error:
            raise ShareError(f"image {item['image']} cannot be loaded: {error}") from error
        finally:
            self._forget(saved)
        return {"digest": digest, "stages": {}}

    # --- both -------------------------------------------------------------------------------------

    def _forget(self, reference: str) -> None:
        """Take an archive's name away again: its content is in the registry, or in the caches."""
        with contextlib.suppress(DockerError):
            self._docker.call("rmi", reference)


def _is_absent(said: str) -> bool:
    """Whether a registry says that it has no such thing."""
    return "denied" not in said.lower() and _ABSENT.search(said) is not None


def registry_error(error: DockerError) -> str:
    """Docker's words for a registry that cannot be used, with the remedy."""
    said = str(error)
    if isinstance(error, DockerSilent):
        # It is Docker itself that does not answer.
        return said
    lowered = said.lower()
    if _SILENT.search(said):
        return f"the registry does not answer: start it, or set sgl_cache_share to relay ({said})"
    if "http response to https" in lowered:
        return (
            "the registry speaks HTTP without TLS: name it in insecure-registries of the host's"
            f" Docker daemon ({said})"
        )
    if "x509" in lowered:
        return (
            "Docker on this host does not trust the registry: put its CA into"
            f" /etc/docker/certs.d/<registry>/ca.crt ({said})"
        )
    if "denied" in lowered or "unauthorized" in lowered or "authentication" in lowered:
        return f"no permission: `docker login` on this host ({said})"
    return said


def _last_line(error: str) -> str:
    lines = [line for line in error.strip().splitlines() if line]
    return explain(lines[-1].removeprefix("sgl-admin: ")) if lines else "sgl-admin said nothing"


def _object(text: str, *keys: str) -> dict[str, Any]:
    """The JSON object of an answer, which has these keys: the whole of it, or its last line. Raises
    ShareError.
    """
    for candidate in (text, text.strip().splitlines()[-1] if text.strip() else ""):
        try:
            document = read_json_text(candidate)
        except ValueError:
            continue
        if isinstance(document, dict) and all(key in document for key in keys):
            return document
    raise ShareError(f"sgl-admin's answer is not JSON with {', '.join(keys)}: {text[-300:]!r}")


def _write(content: IO[bytes], path: str) -> None:
    """Raises ShareError where there is no room, or no permission."""
    try:
        with open(path, "wb") as target:
            shutil.copyfileobj(content, target)
    except OSError as error:
        raise ShareError(f"{path} cannot be written: {error.strerror}") from error
