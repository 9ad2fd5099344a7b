# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What Docker says of this host's container, image and daemon, and what of that keeps a container
from working.

The fields of `docker info` are those of moby's system.Info (api/types/system/info.go), of 20.10 to
29. One that is missing or of another type costs what would be read from it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ._contract.texts import one_line
from ._docker_cli import DockerCli, DockerError, DockerSilent, Runner, beside, describe_image

_OWN_DOCKER = "install Docker from your distribution (docker.io) or from Docker (docker-ce)"
_APPARMOR = "/sys/module/apparmor/parameters/enabled"
_APPARMOR_PARSERS = ("/sbin/apparmor_parser", "/usr/sbin/apparmor_parser")
_CONTAINERD = "/var/lib/containerd"


_T = TypeVar("_T")


@dataclass
class Docker:
    """What Docker says. A part that it does not say costs that part alone."""

    cli: DockerCli | None = None
    # A daemon answered.
    answers: bool = False
    container: dict[str, Any] | None = None
    # Of a replacement of the container that was killed.
    leftovers: bool = False
    image: dict[str, Any] | None = None
    # The image as Docker describes it.
    inspected: dict[str, Any] | None = None
    version: str | None = None
    errors: list[str] = field(default_factory=list)
    # Why Docker did not say whether there is a container, or an image; None where it did.
    unknown: str | None = None
    image_unknown: str | None = None
    _silent: bool = False

    def look(self, run: Runner, container: str, image: str) -> None:
        """Ask for the two by their names."""
        try:
            cli = self.cli = DockerCli(run)
        except DockerError as error:
            # Without Docker there is neither.
            self.errors.append(str(error))
            return
        names = (container, *beside(container))
        containers, self.unknown = self._part(lambda: cli.containers(*names))
        self.container, *others = (containers or dict.fromkeys(names)).values()
        self.leftovers = any(others)
        if not self._silent:
            self.inspected, self.image_unknown = self._part(lambda: cli.inspect("image", image))
        if self.inspected is not None:
            described = self.inspected
            self.image, self.image_unknown = self._part(lambda: describe_image(image, described))

    def _part(self, ask: Callable[[], _T | None]) -> tuple[_T | None, str | None]:
        """What Docker says, and why it does not."""
        try:
            said = ask()
        except DockerError as error:
            self._silent |= isinstance(error, DockerSilent)
            self.errors.append(str(error))
            return None, str(error)
        self.answers = True
        return said, None

    @property
    def info(self) -> dict[str, Any]:
        """What `docker info` says; it is asked once."""
        return self.cli.info() if self.cli is not None else {}

    @property
    def settled(self) -> bool:
        """Whether the container runs and its image is there: then the daemon has shown that it
        works.
        """
        running = self.container is not None and self.container["running"]
        return bool(running) and self.image is not None

    @property
    def lacks_image(self) -> bool:
        return self.answers and self.image is None and self.image_unknown is None

    def facts(self) -> dict[str, Any]:
        """Facts `docker`, `container` and `image` of sgl_host_info."""
        problem = "; ".join(self.errors) or None
        return {
            "docker": {"available": self.answers, "version": self.version, "problem": problem},
            "container": self.container,
            "container_leftovers": self.leftovers,
            "image": self.image,
        }


@dataclass
class Verdict:
    """`problems` stop a run, `warnings` are only shown."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def text(info: dict[str, Any], name: str) -> str:
    value = info.get(name)
    return one_line(value) if isinstance(value, str) else ""


def version(info: dict[str, Any]) -> str | None:
    return text(info, "ServerVersion") or None


def security_options(info: dict[str, Any]) -> set[str]:
    """Such as rootless, userns, apparmor; `name=` and what comes after a comma left off."""
    listed = info.get("SecurityOptions")
    return {
        option.partition(",")[0].removeprefix("name=")
        for option in (listed if isinstance(listed, list) else ())
        if isinstance(option, str)
    }


def status(info: dict[str, Any]) -> dict[str, str]:
    """What the storage driver says of itself."""
    listed = info.get("DriverStatus")
    return {
        pair[0]: pair[1]
        for pair in (listed if isinstance(listed, list) else ())
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
    }


def image_folder(info: dict[str, Any]) -> str | None:
    """Where the daemon keeps images: its own folder, or containerd's with containerd's image
    store. None where it does not say.
    """
    root = text(info, "DockerRootDir")
    if not root.startswith("/"):
        return None
    if "containerd.snapshotter" not in status(info).get("driver-type", ""):
        return root
    # A daemon that starts containerd itself keeps it below its own folder.
    own = os.path.join(root, "containerd", "daemon")
    return own if os.path.isdir(own) or not os.path.isdir(_CONTAINERD) else _CONTAINERD


def judge(info: dict[str, Any], folders: Iterable[str]) -> Verdict:
    """What keeps a daemon from running the container: it has the host's network, and its folders
    belong to a user of the host.
    """
    verdict = Verdict()
    options = security_options(info)
    if "rootless" in options:
        verdict.problems.append(
            "Docker runs rootless here: the container would have neither this host's network nor"
            " the service user's id. Use the host's own daemon: unset DOCKER_HOST,"
            " `docker context use default`, `systemctl start docker`"
        )
    if "userns" in options:
        verdict.problems.append(
            "Docker remaps user ids here (userns-remap), and allows no container the host's network"
            " then: remove userns-remap from /etc/docker/daemon.json and restart Docker"
        )
    if text(info, "OperatingSystem") == "Docker Desktop":
        verdict.problems.append(
            "the daemon is Docker Desktop's, whose containers run in a virtual machine without this"
            " host's network and GPUs: `docker context use default` for the host's own daemon"
        )
    if text(info, "DockerRootDir").startswith("/var/snap/"):
        _judge_snap(folders, verdict)
    verdict.warnings.extend(_doubts(info))
    return verdict


def _judge_snap(folders: Iterable[str], verdict: Verdict) -> None:
    outside = [folder for folder in folders if not folder.startswith("/home/")]
    remedy = f"`snap remove docker`, and {_OWN_DOCKER}"
    if outside:
        verdict.problems.append(
            f"Docker is the snap here, which sees no folder outside of /home, such as"
            f" {one_line(outside[0], 100)}: {remedy}, or set sgl_root to a folder in /home"
        )
    else:
        verdict.warnings.append(
            "Docker is the snap here, which sees neither hidden folders nor the host's NVIDIA"
            f" container toolkit: {remedy} if the container does not start"
        )


def _doubts(info: dict[str, Any]) -> Iterator[str]:
    driver, about = text(info, "Driver"), status(info)
    if driver == "vfs":
        yield (
            "Docker's storage driver is vfs, which copies the whole image for each layer and"
            " container, hundreds of GB: set storage-driver to overlay2 in /etc/docker/daemon.json,"
            " and restart Docker"
        )
    below = about.get("Backing Filesystem", "")
    if below.startswith("nfs"):
        yield (
            f"Docker keeps its images on {one_line(below)}, on which its layers are slow and may"
            " fail: set data-root to a local disk in /etc/docker/daemon.json, and restart Docker"
        )
    name = text(info, "Name")
    if name and name != platform.node():
        yield (
            f"the Docker daemon runs on {name}, and this is {platform.node()}: folders are mounted"
            " from there; unset DOCKER_HOST, and `docker context use default`, if that is another"
            " host"
        )
    if _enabled(_APPARMOR) and not any(map(os.path.exists, _APPARMOR_PARSERS)):
        yield (
            "the kernel enforces AppArmor, and without apparmor_parser Docker cannot load its"
            " profile for containers: `apt-get install apparmor`, and restart Docker"
        )


def _enabled(path: str) -> bool:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read(1) == "Y"
    except OSError:
        return False
