# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes the image, step by step: the Debian base, the wheels by the host's own pip, the build. Each step that is done is kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils.docker_cli import (
    INPUTS_LABEL,
    DockerCli,
    Runner,
    build_client,
    explain,
)

DOCKER_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# The Python of Debian bookworm, which the wheels are for.
WHEEL_PYTHON = "3.11"
_CA_BUNDLE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class ImageError(Exception):
    """A step of the build failed; the message names it, the end of its output and the remedy."""


class ImageBuild:
    """What is needed to build one image on this host; `run` runs an argument list."""

    def __init__(self, run: Runner, name: str, flavour: str, inputs: str, base_name: str, base_suite: str, build_dir: str) -> None:
        """Raises DockerError where Docker cannot be used."""
        self._run = run
        self._docker = DockerCli(run)
        self.name = name
        self.flavour = flavour
        self.inputs = inputs
        self.base_name = base_name
        self.base_suite = base_suite
        self.build_dir = build_dir

    def current(self) -> dict[str, Any] | None:
        """The image as it is; None where it does not exist or was made from other inputs."""
        image = self.found()
        return image if self.made_from_inputs(image) else None

    def found(self) -> dict[str, Any] | None:
        """The image of that name, whatever it was made from."""
        return self._docker.image(self.name)

    def made_from_inputs(self, image: dict[str, Any] | None) -> bool:
        return image is not None and image["labels"].get(INPUTS_LABEL) == self.inputs

    def next_step(self, context: str | None) -> str | None:
        """`base`, `wheels` or `build`: what is to be done next; None when the image is current."""
        if self.current():
            return None
        if self._docker.image(self.base_name) is None:
            return "base"
        if context is None or not os.path.isdir(self._wheelhouse(context)):
            return "wheels"
        return "build"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the build folder against another build of this host, waiting for it, and removes what a killed one left."""
        os.makedirs(self.build_dir, exist_ok=True)
        with open(os.path.join(self.build_dir, ".lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for entry in os.scandir(self.build_dir):
                if entry.name.startswith(("base-", "context-")) or entry.name.endswith(".partial"):
                    self._remove(entry.path)
            yield

    def _remove(self, folder: str) -> None:
        """Remove a folder that debootstrap may have mounted something in; what stays mounted is left, not emptied."""
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            inside = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{folder}/")]
        if all(self._run(["umount", mount])[0] == 0 for mount in reversed(inside)):
            shutil.rmtree(folder, ignore_errors=True)

    def make_base(self) -> None:
        """A Debian base by debootstrap, from the host's own mirror. Needs root. Raises ImageError."""
        if os.geteuid() != 0:
            raise ImageError(
                f"the base image {self.base_name} is missing, and debootstrap, which makes it once, needs root: "
                "run the playbook once with --become, or `make prep` as root"
            )
        debootstrap = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if debootstrap is None:
            raise ImageError("debootstrap, which makes the base image once, is not installed: `apt-get install debootstrap` on this host")
        folder = tempfile.mkdtemp(prefix="base-", dir=self.build_dir)
        try:
            root = os.path.join(folder, "root")
            mirror = self.host_mirror()
            self._step("debootstrap", [debootstrap, "--variant=minbase", self.base_suite, root, *([mirror] if mirror else [])])
            archive = os.path.join(folder, "root.tar")
            self._step("packing the base", ["tar", "--directory", root, "--create", "--file", archive, "."])
            self._step("docker import", [self._docker.binary, "import", archive, self.base_name])
        finally:
            self._remove(folder)

    def host_mirror(self) -> str | None:
        """The mirror from which this host takes the base's suite; None lets debootstrap take its default."""
        apt_get = shutil.which("apt-get")
        if apt_get is None:
            return None
        code, output, _ignored = self._run(
            [apt_get, "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"]
        )
        for line in output.splitlines() if code == 0 else ():
            codename, _ignored, rest = line.partition(" ")
            component, _ignored, mirror = rest.partition(" ")
            if (codename, component) == (self.base_suite, "main"):
                return mirror
        return None

    def fetch_wheels(self, context: str) -> None:
        """The image's Python packages, by the host's pip and its settings, checked by digest. Raises ImageError."""
        wheelhouse = self._wheelhouse(context)
        machine = platform.machine()
        # Made under another name: a killed download is not taken for a whole one.
        partial = tempfile.mkdtemp(prefix="wheelhouse-", suffix=".partial", dir=self.build_dir)
        try:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
            command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", WHEEL_PYTHON]
            for abi in ("cp311", "abi3", "none"):
                command += ["--abi", abi]
            for tag in ("manylinux_2_35", "manylinux_2_31", "manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux"):
                command += ["--platform", f"{tag}_{machine}"]
            self._step("pip download", [*command, "--dest", partial, "--requirement", self._requirements(context)])
            for entry in os.listdir(self.build_dir):
                if entry.startswith("wheelhouse-") and not entry.endswith(".partial"):
                    shutil.rmtree(os.path.join(self.build_dir, entry))
            os.replace(partial, wheelhouse)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def build(self, context: str, git_revision: str) -> dict[str, Any]:
        """Build and check the image; returns it as it is then. Raises ImageError."""
        base = self._docker.image(self.base_name)
        if base is None:
            raise ImageError(f"the base image {self.base_name} vanished; run this again")
        shutil.copytree(self._wheelhouse(context), os.path.join(context, "wheelhouse"), copy_function=os.link, dirs_exist_ok=True)
        arguments = {
            "BASE": self.base_name,
            "FLAVOUR": self.flavour,
            "IMAGE_INPUTS": self.inputs,
            "BASE_NAME": self.base_name,
            "BASE_DIGEST": base["id"],
            "GIT_REVISION": git_revision,
            **{key: value for key, value in os.environ.items() if key.lower() in ("http_proxy", "https_proxy", "no_proxy")},
        }
        command = [*build_client(self._run), "--progress=plain", "--tag", self.name]
        for key, value in arguments.items():
            command += ["--build-arg", f"{key}={value}"]
        bundle = ca_bundle()
        if bundle:
            command += ["--secret", f"id=ca-bundle,src={bundle}"]
        self._step("docker build", [*command, context], environment={"DOCKER_BUILDKIT": "1"})
        image = self.current()
        if image is None:
            raise ImageError(f"docker build ended well, but {self.name} does not carry the inputs {self.inputs}: is another build at work?")
        wanted = DOCKER_ARCHITECTURES.get(platform.machine(), platform.machine())
        if image["architecture"] != wanted:
            raise ImageError(
                f"{self.name} is for {image['architecture']}, and this host is {wanted}: its base {self.base_name} is the wrong one"
            )
        return image

    def _requirements(self, context: str) -> str:
        return os.path.join(context, "flavours", self.flavour, "requirements.txt")

    def _wheelhouse(self, context: str) -> str:
        with open(self._requirements(context), "rb") as stream:
            digest = hashlib.sha256(stream.read() + platform.machine().encode()).hexdigest()
        return os.path.join(self.build_dir, f"wheelhouse-{digest[:16]}")

    def _step(self, what: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Run a long command with the caller's environment; its output is shown only when it fails."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})}, check=False,
        )  # fmt: skip
        if done.returncode:
            tail = "\n".join(done.stdout.decode(errors="replace").splitlines()[-25:])
            raise ImageError(f"{what} failed with exit code {done.returncode}: {explain(tail)}")


def ca_bundle() -> str | None:
    """The host's CA bundle, which a lab whose proxy inspects TLS has added its own to."""
    candidates = [os.environ.get(name) for name in _CA_BUNDLE_VARIABLES] + [_CA_BUNDLE]
    return next((path for path in candidates if path and os.path.isfile(path)), None)


def unpack(archive: str, folder: str) -> None:
    """Unpack the build context that the controller sent: plain files below `folder`. Raises ImageError where it is not one."""
    try:
        with tarfile.open(archive) as stream:
            for entry in stream:
                path = os.path.normpath(os.path.join(folder, entry.name))
                content = stream.extractfile(entry) if entry.isfile() else None
                if content is None or not path.startswith(f"{folder}/"):
                    raise ImageError(f"the build context {archive} holds {entry.name}, which is no plain file below it")
                # By hand: extractall's filter, which sees to that, is younger than Debian 12's Python.
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as target:
                    shutil.copyfileobj(content, target)
                os.chmod(path, entry.mode & 0o755)
    except (tarfile.TarError, OSError) as error:
        raise ImageError(f"the build context {archive} cannot be unpacked: {error}") from error
