# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every way to an image has in common: platforms, references, the lock of the
build folder, and the check of what came.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._contract import locks
from ._contract.services import PROGRAMS
from ._contract.texts import read_json_text
from ._docker_cli import DockerCli, DockerError

DOCKER_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINES = {architecture: machine for machine, architecture in DOCKER_ARCHITECTURES.items()}
FLAVOUR_LABEL = "org.slice-bench.flavour"
# e_machine of an ELF header.
_ELF_MACHINES = {62: "amd64", 183: "arm64"}
ELF_HEAD_BYTES = 20
_CHUNK = 1 << 20
# How long one call waits for another build; the action plugin says so and calls again.
_LOCK_S = 10.0
_EMULATORS = "/proc/sys/fs/binfmt_misc"
# A registry's and Docker's words for an image that lacks the platform.
_NOT_FOR_IT = ("no matching manifest", "does not match the specified platform")


class ImageError(Exception):
    """A step on the way to the image failed; the message names it, the end of its output and the
    remedy.
    """


@contextmanager
def alone(build_dir: str) -> Iterator[None]:
    """Holds the build folder against another run on this host. Raises LockTimeout where that one
    has it for longer than _LOCK_S seconds: then the action plugin says so, and asks again.
    """
    os.makedirs(build_dir, exist_ok=True)
    with locks.held(os.path.join(build_dir, ".lock"), _LOCK_S):
        yield


def sha256_of(path: str) -> str:
    """The digest of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# Each file of an archive that gives names: Docker's own (moby, image/tarexport/load.go), its legacy
# form, and the index of the OCI layout, which containerd's image store reads.
_NAMING = ("manifest.json", "repositories", "index.json")
_OCI_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_NAMING_BYTES = 4 << 20


def archive_names(path: str) -> set[str]:
    """The names that `docker load` would give to images on this host, from an archive of `docker
    save`. Raises ImageError.
    """
    names: set[str] = set()
    try:
        with tarfile.open(path, errorlevel=0) as archive:
            for member in archive:
                # An archive may hold a file twice, and may write its name as it likes.
                kind = os.path.normpath(member.name).lstrip("/")
                if kind not in _NAMING:
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.size > _NAMING_BYTES:
                    raise ImageError(f"{path} has no valid {kind}: save the image again")
                names |= _names_in(kind, read_json_text(stream.read()))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ImageError(
            f"{path} is not an archive of docker save ({error}): save the image again"
        ) from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    return names


def _names_in(kind: str, document: Any) -> set[str]:
    """Names out of one of these files. Docker's JSON keys have no case."""
    if kind == "repositories":
        return {
            f"{repository}:{tag}"
            for repository, tags in _mapping(document).items()
            for tag in _mapping(tags)
        }
    found: set[str] = set()
    entries = document if kind == "manifest.json" else _mapping(document).get("manifests")
    for entry in entries if isinstance(entries, list) else []:
        folded = {str(key).lower(): value for key, value in _mapping(entry).items()}
        if kind == "manifest.json":
            found |= {str(tag) for tag in folded.get("repotags") or []}
        else:
            named = _mapping(folded.get("annotations"))
            # The second may be a tag alone, which is no name of an image.
            values = [str(named[key]) for key in _OCI_NAMES if key in named]
            found |= {value for value in values if ":" in value}
    return found


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def full_name(name: str) -> str:
    """A name of an image as Docker completes it."""
    name = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    host = name.partition("/")[0]
    if "/" in name and ("." in host or ":" in host or host == "localhost"):
        return name.replace("docker.io/library/", "docker.io/", 1)
    return f"docker.io/{name.removeprefix('library/')}"


def check_names(path: str, allowed: str) -> None:
    """Raises ImageError where an archive would name more than one image, or, beside the allowed
    name, give a second one: `docker load` takes a name away from the image that has it.
    """
    names = {full_name(name): name for name in archive_names(path)}
    names.pop(full_name(allowed), None)
    if names:
        listed = ", ".join(sorted(names.values())[:5])
        raise ImageError(
            f"{path} also names {listed[:150]}, and docker load would take such a name from the"
            f" image that has it here: save {allowed} alone (docker save --output FILE {allowed})"
        )


def host_architecture() -> str:
    return DOCKER_ARCHITECTURES.get(platform.machine(), platform.machine())


def architecture_of(wanted: str | None) -> str:
    """The architecture of a platform such as `linux/arm64`; the host's where none is named. Raises
    ImageError.
    """
    if not wanted:
        return host_architecture()
    system, _ignored, architecture = wanted.partition("/")
    if system != "linux" or architecture not in MACHINES:
        raise ImageError(
            f"no image can be made for platform {wanted}: set sgl_image_platform to linux/amd64 or"
            " linux/arm64"
        )
    return architecture


def need_emulator(architecture: str) -> None:
    """Raises ImageError where the host can run no program of that architecture."""
    if architecture != host_architecture() and not os.path.exists(
        os.path.join(_EMULATORS, f"qemu-{MACHINES[architecture]}")
    ):
        raise ImageError(
            f"this host is {host_architecture()} and runs no programs for {architecture}, which"
            " building an image for it needs: `apt-get install qemu-user-static binfmt-support`,"
            f" and without systemd `mount -t binfmt_misc binfmt_misc {_EMULATORS}` and"
            f" `update-binfmts --enable qemu-{MACHINES[architecture]}`"
        )


def repository_of(reference: str) -> str:
    """`registry:5000/a/b` of `registry:5000/a/b:tag` and of `registry:5000/a/b@sha256:...`."""
    name = reference.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


def digest_of(reference: str, image: dict[str, Any]) -> str:
    """The digest that a reference stands for on this host: the registry's, or the image's own id
    where it came from none.
    """
    if "@" in reference:
        return reference.partition("@")[2]
    # Docker leaves out the name of its own registry.
    repository = repository_of(reference).removeprefix("docker.io/").removeprefix("library/")
    for name in image.get("repo_digests", []):
        found, _ignored, digest = name.partition("@")
        if found == repository or found.endswith(f"/{repository}"):
            return str(digest)
    return str(image["id"])


def tag_warning(reference: str, image: dict[str, Any], variable: str) -> str | None:
    """What to say of a reference that may stand for another image tomorrow, with what pins it."""
    if "@" in reference:
        return None
    pinned = (
        f"{repository_of(reference)}@{digest_of(reference, image)}"
        if image.get("repo_digests")
        else "name@sha256:..."
    )
    return (
        f"{reference} is a tag, which moves: other hosts may get another image; set {variable} to"
        f" {pinned}"
    )


def platforms_of(docker: DockerCli, reference: str) -> list[str] | None:
    """The platforms that a registry has of a reference; None where it cannot be asked so, as
    through a mirror of the daemon.
    """
    try:
        document = read_json_text(docker.call("manifest", "inspect", "--verbose", reference))
        entries = document if isinstance(document, list) else [document]
        found = [entry["Descriptor"]["platform"] for entry in entries]
        names = {f"{entry['os']}/{entry['architecture']}" for entry in found}
        # An attestation is listed as unknown/unknown.
        return sorted(names - {"unknown/unknown"}) or None
    except (DockerError, ValueError, KeyError, TypeError):
        return None


def pull(docker: DockerCli, reference: str, architecture: str, variable: str) -> dict[str, Any]:
    """Have the image of a reference for an architecture; returns its description. Raises ImageError
    where there is none.

    One that is there already is taken as it is, so a tag that moves is not followed.
    """
    image = docker.image(reference)
    if image is not None and image["architecture"] == architecture:
        return image
    remedy = f"set {variable} to one that has"
    has = platforms_of(docker, reference)
    if has is not None and f"linux/{architecture}" not in has:
        raise ImageError(
            f"{reference} has no image for linux/{architecture}, only for {', '.join(has)}:"
            f" {remedy}"
        )
    try:
        docker.call("pull", "--quiet", "--platform", f"linux/{architecture}", reference)
    except DockerError as error:
        if any(words in str(error) for words in _NOT_FOR_IT):
            raise ImageError(
                f"{reference} has no image for linux/{architecture}: {remedy} ({error})"
            ) from error
        there = (
            f"; the one that is here is for {image['architecture']}" if image is not None else ""
        )
        raise ImageError(
            f"{reference} cannot be pulled{there}: {error}; a host without that registry takes it"
            f" from a mirror (set {variable} to the mirror's name for it), or by `docker load` of"
            f" what `docker save --platform linux/{architecture}` wrote elsewhere (Docker 28 or"
            " later; without --platform before)"
        ) from error
    image = docker.image(reference)
    if image is None or image["architecture"] != architecture:
        raise ImageError(
            f"{reference} is for {image['architecture'] if image else 'nothing'}, not for"
            f" linux/{architecture}: {remedy}"
        )
    return image


def elf_architecture(head: bytes) -> str | None:
    """The architecture of a program by its first bytes; None where it is no 64-bit little-endian
    ELF file of one that is known.
    """
    if len(head) < ELF_HEAD_BYTES or head[:6] != b"\x7fELF\x02\x01":
        return None
    return _ELF_MACHINES.get(int.from_bytes(head[18:20], "little"))


def fits(image: dict[str, Any], architecture: str, flavour: str) -> bool:
    """Whether an image says that it is of this architecture and flavour: a name or a digest may
    stand for one of another.
    """
    return image["architecture"] == architecture and image["labels"].get(FLAVOUR_LABEL) == flavour


def check_image(docker: DockerCli, image: dict[str, Any], architecture: str, flavour: str) -> None:
    """Hold an image to its label, its architecture and that of its programs. Raises ImageError."""
    name = image["name"]
    if image["labels"].get(FLAVOUR_LABEL) != flavour:
        what = image["labels"].get(FLAVOUR_LABEL)
        raise ImageError(
            f"{name} is {f'of flavour {what}' if what else 'not one that this collection built'},"
            f" and sgl_flavour is {flavour}: name an image of that flavour, or build it"
            " (sgl_image_source: build)"
        )
    if image["architecture"] != architecture:
        raise ImageError(
            f"{name} is for {image['architecture']}, and linux/{architecture} is wanted"
        )
    for program, found in program_architectures(docker, image["id"]).items():
        if found != architecture:
            raise ImageError(
                f"{program} in {name} is a program for {found or 'no Linux that is known'}, and the"
                f" image says {architecture}: what it was made from was of another architecture"
            )


def program_architectures(docker: DockerCli, image: str) -> dict[str, str | None]:
    """Of each service's program that an image has, the architecture that its ELF header names.
    Nothing of the image is run.
    """
    container = docker.call("create", "--entrypoint", "/none", image).strip().splitlines()[-1]
    try:
        heads = {
            program: _head(docker.binary, f"{container}:/usr/local/bin/{program}")
            for program in PROGRAMS
        }
    finally:
        docker.call("rm", container)
    return {program: elf_architecture(head) for program, head in heads.items() if head is not None}


def _head(binary: str, path: str) -> bytes | None:
    """The first bytes of a file of a container; None where it does not have it."""
    with subprocess.Popen(
        [binary, "cp", "--follow-link", path, "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as copy:
        try:
            with tarfile.open(fileobj=copy.stdout, mode="r|") as archive:
                entry = archive.next()
                content = archive.extractfile(entry) if entry is not None else None
                return content.read(ELF_HEAD_BYTES) if content is not None else None
        except tarfile.TarError:
            return None
        finally:
            copy.kill()
