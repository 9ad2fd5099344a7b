# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes the image, step by step: its bases, the wheels by the host's own pip, the programs, the
build. Each step that is done is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from . import _image_downloads as image_downloads
from . import _image_parts as image_parts
from . import _image_wheels as image_wheels
from . import _safe_tree as safe_tree
from ._contract.disclosure import without_credentials
from ._contract.labels import INPUTS_LABEL, NAME_LABEL
from ._docker_cli import DockerCli, Runner, build_client, explain
from ._image_parts import MACHINES, ImageError, alone, check_image

BASE = "sglang-base"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CA_BUNDLE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# A requirement with its digests, which stand on lines of their own.
_REQUIREMENT = r"^[A-Za-z0-9][^ \n]*==(?:.*\\\n)*.*\n"
# An attestation would put an index around the image in containerd's store, which other stores do
# not load and whose digest differs from build to build.
_BUILDKIT = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
# Of two records of the build cache with one layer, pruning one after a restart of the daemon takes
# the layer from both (moby/moby issue 36573, seen with 20.10.24); no build can use the other.
_LOST_LAYER = "layer does not exist"
# The variable by which an operator names another image for a stage.
_STAGE_VARIABLES = {"DCGM_IMAGE": "sgl_image_dcgm"}


@dataclass(frozen=True)
class Sources:
    """Where a build takes from what it is made of, where that is not what the flavour's recipe
    says.
    """

    # By the build argument of its stage.
    stages: dict[str, str] = field(default_factory=dict)
    downloads: dict[str, Any] = field(default_factory=dict)
    download_mirror: str | None = None
    download_dir: str | None = None
    # Whether an archive whose digest is not pinned is refused.
    require_digests: bool = False


class ImageBuild:
    """What is needed to build one image on this host; `run` runs an argument list.

    A flavour's folder holds `requirements.txt` and, where it takes more than Debian's packages, the
    recipe `build.json`: its base, the images of its stages, and the archives that it downloads.
    """

    def __init__(
        self,
        run: Runner,
        name: str,
        flavour: str,
        inputs: str,
        base_name: str | None,
        base_suite: str,
        build_dir: str,
        platform: str | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Raises DockerError where Docker cannot be used, ImageError for a platform that there is
        not.
        """
        self._run = run
        self._docker = DockerCli(run)
        self.name = name
        self.flavour = flavour
        self.inputs = inputs
        self.base_suite = base_suite
        self.build_dir = build_dir
        self.architecture = image_parts.architecture_of(platform)
        self._given_base = base_name
        self._sources = sources or Sources()
        self._cache_lost_layers = False
        self._published = image_downloads.PublishedSums(
            build_dir, self._sources.download_dir, ca_bundle()
        )

    @property
    def _foreign(self) -> bool:
        """Whether the image is for another architecture than this host."""
        return self.architecture != image_parts.host_architecture()

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
        """`base`, `wheels`, `downloads` or `build`: what is to be done next; None when the image is
        current. Raises ImageError.
        """
        if self.current():
            return None
        if context is None:
            return "base"
        recipe = self._recipe(context)
        # A missing digest or program should show before half an hour of downloads: so digests come
        # first, and small files before a base that is pulled.
        programs = [
            image_downloads.program(archive, self.build_dir) for archive in self._archives(recipe)
        ]
        lacking = {
            "base": not all(map(self._is_here, self._bases(recipe).values())),
            "wheels": not os.path.isdir(self._wheelhouse(context)),
            "downloads": not all(map(os.path.exists, programs)),
        }
        order = ("wheels", "downloads", "base") if "base" in recipe else tuple(lacking)
        return next((step for step in order if lacking[step]), "build")

    def _recipe(self, context: str) -> dict[str, Any]:
        try:
            text = self._of_flavour(context, "build.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        recipe: dict[str, Any] = json.loads(text)
        return recipe

    def _of_flavour(self, context: str, name: str) -> Path:
        return Path(context, "flavours", self.flavour, name)

    def _bases(self, recipe: dict[str, Any]) -> dict[str, str]:
        """The images that the Dockerfile begins with, by its build arguments."""
        own = f"{BASE}:{self.base_suite}" + (f"-{self.architecture}" if self._foreign else "")
        return {
            "BASE": self._given_base or recipe.get("base") or own,
            **recipe.get("stages", {}),
            **self._sources.stages,
        }

    def _archives(self, recipe: dict[str, Any]) -> list[image_downloads.Archive]:
        sources = self._sources
        return image_downloads.archives(
            recipe,
            sources.downloads,
            self.architecture,
            sources.download_mirror,
            image_downloads.forbidden if sources.require_digests else self._published.digest,
        )

    def _is_here(self, reference: str) -> bool:
        image = self._docker.image(reference)
        return image is not None and image["architecture"] == self.architecture

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the build folder against another build of this host, waiting for it, and removes
        what a killed one left.
        """
        with alone(self.build_dir):
            for entry in os.scandir(self.build_dir):
                if entry.name.startswith(("base-", "context-")) or entry.name.endswith(".partial"):
                    self._remove(entry.path)
            yield

    def _remove(self, folder: str) -> None:
        """Remove a folder that debootstrap may have mounted something in; what stays mounted is
        left, not emptied.
        """
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            inside = [
                line.split()[1] for line in mounts if line.split()[1].startswith(f"{folder}/")
            ]
        if all(self._run(["umount", mount])[0] == 0 for mount in reversed(inside)):
            shutil.rmtree(folder, ignore_errors=True)

    def make_base(self, context: str) -> None:
        """The images that the build begins with: pulled, or a Debian base by debootstrap. Raises
        ImageError.
        """
        recipe = self._recipe(context)
        image_parts.need_emulator(self.architecture)
        for argument, reference in self._bases(recipe).items():
            if argument == "BASE" and "base" not in recipe:
                self._debootstrap(reference)
            else:
                image_parts.pull(
                    self._docker,
                    reference,
                    self.architecture,
                    _STAGE_VARIABLES.get(argument, "sgl_image_base"),
                )

    def _debootstrap(self, name: str) -> None:
        """A Debian base, from the host's own mirror. Needs root. Raises ImageError."""
        base = self._docker.image(name)
        if base is not None:
            if base["architecture"] != self.architecture:
                raise ImageError(
                    f"the base image {name} is for {base['architecture']}, and"
                    f" linux/{self.architecture} is wanted: set sgl_image_base to another name,"
                    " under which one is made"
                )
            return
        if os.geteuid() != 0:
            raise ImageError(
                f"the base image {name} is missing, and debootstrap, which makes it once, needs"
                " root: run the playbook once with --become, or `make prep` as root"
            )
        debootstrap = shutil.which(
            "debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        )
        if debootstrap is None:
            raise ImageError(
                "debootstrap, which makes the base image once, is not installed: `apt-get install"
                " debootstrap` on this host"
            )
        folder = tempfile.mkdtemp(prefix="base-", dir=self.build_dir)
        try:
            root = os.path.join(folder, "root")
            mirror, environment = self._mirror(folder)
            foreign = ["--arch", self.architecture] if self._foreign else []
            command = [debootstrap, *foreign, "--variant=minbase", self.base_suite, root]
            run_step("debootstrap", [*command, *([mirror] if mirror else [])], environment)
            archive = os.path.join(folder, "root.tar")
            packing = ["tar", "--directory", root, "--create", "--file", archive, "."]
            run_step("packing the base", packing)
            if self._foreign:
                self._import_foreign(archive, name)
            else:
                run_step("docker import", [self._docker.binary, "import", archive, name])
        finally:
            self._remove(folder)

    def _import_foreign(self, archive: str, name: str) -> None:
        """Before Docker 23, `docker import` records the host's architecture and ignores --platform;
        a build records the one that it is for.
        """
        context = os.path.join(os.path.dirname(archive), "import")
        os.mkdir(context)
        os.link(archive, os.path.join(context, "root.tar"))
        Path(context, "Dockerfile").write_text("FROM scratch\nADD root.tar /\n", encoding="ascii")
        options = ["--platform", f"linux/{self.architecture}", "--tag", name]
        docker_build(self._run, "docker build of the base", [*options, context])

    def _mirror(self, folder: str) -> tuple[str | None, dict[str, str]]:
        """The host's mirror without its credentials, and the environment in which debootstrap's
        wget finds them: the address stands in its command line, and in the image.
        """
        mirror = self.host_mirror()
        if mirror is None:
            return None, {}
        bare, netrc = split_credentials(mirror)
        if not netrc:
            return mirror, {}
        with open(os.path.join(folder, ".netrc"), "x", opener=_private, encoding="utf-8") as stream:
            stream.write(netrc)
        return bare, {"HOME": folder}

    def host_mirror(self) -> str | None:
        """The mirror from which this host takes the base's suite; None lets debootstrap take its
        default.
        """
        apt_get = shutil.which("apt-get")
        if apt_get is None:
            return None
        words = ["--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Identifier: Packages"]
        code, output, _ignored = self._run([apt_get, "indextargets", *words])
        for line in output.splitlines() if code == 0 else ():
            codename, _ignored, rest = line.partition(" ")
            component, _ignored, mirror = rest.partition(" ")
            if (codename, component) == (self.base_suite, "main"):
                return mirror
        return None

    def fetch_wheels(self, context: str, brought: str | None = None) -> None:
        """The image's Python packages, by the host's pip and its settings, or out of an archive
        that the controller sent; checked by digest. Raises ImageError.
        """
        wheelhouse, requirements = self._wheelhouse(context), self._requirements(context)
        # Made under another name: a killed download is not taken for a whole one.
        with self._partial("wheelhouse-") as partial:
            if brought:
                unpack(brought, partial)
                image_wheels.check(partial, requirements)
            else:
                self._download_wheels(partial, requirements)
            for entry in os.listdir(self.build_dir):
                if _older_wheelhouse(entry, os.path.basename(wheelhouse)):
                    shutil.rmtree(os.path.join(self.build_dir, entry))
            os.replace(partial, wheelhouse)

    def _partial(self, prefix: str) -> tempfile.TemporaryDirectory[str]:
        """A folder that the next build removes where this one is killed."""
        return tempfile.TemporaryDirectory(prefix=prefix, suffix=".partial", dir=self.build_dir)

    def _download_wheels(self, folder: str, requirements: str) -> None:
        machine = MACHINES.get(self.architecture, self.architecture)
        path = os.path.join(folder, "requirements.txt")
        Path(path).write_text(requirements, encoding="utf-8")
        command = image_wheels.download_command(sys.executable, machine, path, folder)
        try:
            run_step("pip download", command)
        except ImageError as error:
            raise image_wheels.NoWheels(str(error), requirements, machine) from error
        os.unlink(path)

    def fetch_programs(self, context: str) -> None:
        """The programs that come in release archives. Raises ImageError."""
        brought, bundle = self._sources.download_dir, ca_bundle()
        for archive in self._archives(self._recipe(context)):
            try:
                image_downloads.provide(archive, self.build_dir, self.architecture, brought, bundle)
            except ImageError:
                self._published.forget(archive)
                raise

    def warnings(self, context: str) -> list[str]:
        """What to say of how an image was built, and of its sources. Raises ImageError."""
        recipe = self._recipe(context)
        said = [archive.warning() for archive in self._archives(recipe)]
        if self._cache_lost_layers:
            said.append(
                "Docker's build cache named a layer that is gone, as happens after `docker builder"
                " prune`: the image was built without that cache"
            )
        reference = self._bases(recipe)["BASE"]
        base = self._docker.image(reference) if "base" in recipe else None
        # One that was made or loaded here has no digest in a registry.
        if base is not None and base["repo_digests"]:
            said.append(image_parts.tag_warning(reference, base, "sgl_image_base"))
        return [warning for warning in said if warning]

    def build(self, context: str, git_revision: str) -> dict[str, Any]:
        """Build and check the image; returns it as it is then. Raises ImageError."""
        recipe = self._recipe(context)
        bases = self._bases(recipe)
        base = self._docker.image(bases["BASE"])
        if base is None:
            raise ImageError(f"the base image {bases['BASE']} vanished; run this again")
        self._fill_context(context, recipe)
        downloads = {
            one.name: {"file": one.file, "sha256": one.sha256, "pinned": one.pinned}
            for one in self._archives(recipe)
        }
        arguments = {
            **bases,
            "FLAVOUR": self.flavour,
            "IMAGE_INPUTS": self.inputs,
            "BASE_NAME": bases["BASE"],
            "BASE_DIGEST": image_parts.digest_of(bases["BASE"], base),
            "GIT_REVISION": git_revision,
            "DOWNLOADS": json.dumps(downloads, sort_keys=True),
        }
        with self._apt_secret() as secret:
            options = [*self._build_options(arguments), *secret]
            self._cache_lost_layers = docker_build(self._run, "docker build", [*options, context])
        image = self.current()
        if image is None:
            raise ImageError(
                f"docker build ended well, but {self.name} does not carry the inputs {self.inputs}:"
                " is another build at work?"
            )
        try:
            if image["architecture"] != self.architecture:
                raise ImageError(
                    f"{self.name} is for {image['architecture']}, and linux/{self.architecture} is"
                    f" wanted: its base {bases['BASE']} is the wrong one"
                )
            check_image(self._docker, image, self.architecture, self.flavour)
        except BaseException:
            # By its label the next run would take it for a good one.
            self._run([self._docker.binary, "image", "rm", self.name])
            raise
        return image

    @contextmanager
    def _apt_secret(self) -> Iterator[list[str]]:
        """The build's option that lends apt the credentials of the host's mirror. No layer has
        them.
        """
        netrc = split_credentials(self.host_mirror() or "")[1]
        if not netrc:
            yield []
            return
        with self._partial("apt-") as folder:
            place = os.path.join(folder, "netrc")
            with open(place, "x", opener=_private, encoding="utf-8") as stream:
                stream.write(netrc)
            yield ["--secret", f"id=apt-auth,src={place}"]

    def _fill_context(self, context: str, recipe: dict[str, Any]) -> None:
        """Add the requirements, the wheels and the programs to the build context."""
        requirements, wheelhouse = self._requirements(context), self._wheelhouse(context)
        self._of_flavour(context, "requirements.txt").write_text(requirements, encoding="utf-8")
        target = os.path.join(context, "wheelhouse")
        shutil.copytree(wheelhouse, target, copy_function=os.link, dirs_exist_ok=True)
        programs = os.path.join(context, "programs")
        os.makedirs(programs, exist_ok=True)
        for archive in self._archives(recipe):
            program = image_downloads.program(archive, self.build_dir)
            os.link(program, os.path.join(programs, archive.program))

    def _build_options(self, arguments: dict[str, str]) -> list[str]:
        options = ["--progress=plain", "--tag", self.name, "--label", f"{NAME_LABEL}={self.name}"]
        if self._foreign:
            options += ["--platform", f"linux/{self.architecture}"]
            # Under emulation it takes minutes, which is more than it saves there.
            arguments = {**arguments, "PIP_OPTIONS": "--no-compile"}
        for key, value in arguments.items():
            options += ["--build-arg", f"{key}={value}"]
        # Their values, which may hold a password, come from the environment: everybody sees a
        # command line.
        for key in os.environ:
            if key.lower() in _PROXIES:
                options += ["--build-arg", key]
        bundle = ca_bundle()
        if bundle:
            options += ["--secret", f"id=ca-bundle,src={bundle}"]
        return options

    def _requirements(self, context: str) -> str:
        """The flavour's requirements; those in a file for the architecture stand instead of those
        of the same names.
        """
        text = self._of_flavour(context, "requirements.txt").read_text(encoding="utf-8")
        own = self._of_flavour(context, f"requirements.{self.architecture}.txt")
        if not own.exists():
            return text
        for entry in re.findall(_REQUIREMENT, own.read_text(encoding="utf-8"), re.MULTILINE):
            name = re.escape(entry.partition("==")[0])
            theirs = re.search(rf"^{name}==(?:.*\\\n)*.*\n", text, re.MULTILINE)
            text = text.replace(theirs[0], entry) if theirs else text + entry
        return text

    def _wheelhouse(self, context: str) -> str:
        machine = MACHINES.get(self.architecture, self.architecture)
        digest = hashlib.sha256((self._requirements(context) + machine).encode()).hexdigest()
        prefix = f"wheelhouse-{self.architecture}" if self._foreign else "wheelhouse"
        return os.path.join(self.build_dir, f"{prefix}-{digest[:16]}")


def run_step(what: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a long command with the caller's environment; its output is shown only when it fails.
    Raises ImageError.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})}, check=False,
    )  # fmt: skip
    if done.returncode:
        tail = "\n".join(done.stdout.decode(errors="replace").splitlines()[-25:])
        tail = without_credentials(tail)
        raise ImageError(f"{what} failed with exit code {done.returncode}: {explain(tail)}")


def docker_build(run: Runner, what: str, arguments: list[str]) -> bool:
    """Build with BuildKit, and once more without the build cache where that names a layer which
    Docker lost; returns whether it did. What it builds then takes the place of what is lost.
    Raises ImageError, DockerError.
    """
    client = build_client(run)
    try:
        run_step(what, [*client, *arguments], _BUILDKIT)
    except ImageError as error:
        if _LOST_LAYER not in str(error):
            raise
        run_step(f"{what} without its cache", [*client, "--no-cache", *arguments], _BUILDKIT)
        return True
    return False


def split_credentials(address: str) -> tuple[str, str]:
    """An address without user and password, and the line of a .netrc that has them."""
    parts = urlsplit(address)
    user_info, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, ""
    user, _colon, password = user_info.partition(":")
    line = f"machine {parts.hostname} login {unquote(user)} password {unquote(password)}\n"
    return urlunsplit(parts._replace(netloc=host)), line


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def check_build_dir(build_dir: str) -> None:
    """Raises ImageError where another user can exchange what a build, maybe root's, puts into its
    folder: the folder's path is handed to debootstrap, tar, pip and Docker.
    """
    try:
        inside = os.path.join(os.path.abspath(build_dir), ".lock")
        found = [item for item in safe_tree.exchangeable(inside, os.geteuid()) if not item.by_group]
    except OSError as error:
        raise ImageError(f"sgl_image_build_dir {build_dir} cannot be read: {error}") from error
    if found:
        raise ImageError(
            f"another user can exchange what is in sgl_image_build_dir {build_dir}, and so decide"
            f" what the image holds: {found[0].path} belongs to uid {found[0].info.st_uid}, mode"
            f" {stat.S_IMODE(found[0].info.st_mode):04o}; set it to a folder whose parents belong"
            " to root or to the user who connects"
        )


def _older_wheelhouse(entry: str, name: str) -> bool:
    """Whether a folder holds the wheels of other requirements for the same architecture."""
    return (
        entry != name
        and re.fullmatch(rf"{re.escape(name.rpartition('-')[0])}-[0-9a-f]{{16}}", entry) is not None
    )


def ca_bundle() -> str | None:
    """The host's CA bundle, which a lab whose proxy inspects TLS has added its own to."""
    candidates = [os.environ.get(name) for name in _CA_BUNDLE_VARIABLES] + [_CA_BUNDLE]
    return next((path for path in candidates if path and os.path.isfile(path)), None)


def unpack(archive: str, folder: str) -> None:
    """Unpack the build context that the controller sent: plain files below `folder`. Raises
    ImageError where it is not one.
    """
    try:
        with tarfile.open(archive) as stream:
            for entry in stream:
                path = os.path.normpath(os.path.join(folder, entry.name))
                content = stream.extractfile(entry) if entry.isfile() else None
                if content is None or not path.startswith(f"{folder}/"):
                    raise ImageError(
                        f"the build context {archive} holds {entry.name}, which is no plain file"
                        " below it"
                    )
                # By hand: extractall's filter, which sees to that, is younger than Debian 12's
                # Python.
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as target:
                    shutil.copyfileobj(content, target)
                os.chmod(path, entry.mode & 0o755)
    except (tarfile.TarError, OSError) as error:
        raise ImageError(f"the build context {archive} cannot be unpacked: {error}") from error
