# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Docker command line: which client to use, and what its failures mean.

The client is used, not the HTTP API: it knows the operator's context, DOCKER_HOST, TLS and
credentials, and every host that can run the container has it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

# Runs an argument list; returns exit code, standard output, standard error.
Runner = Callable[[list[str]], tuple[int, str, str]]
# The same with a text on standard input; without one where that is empty.
InputRunner = Callable[[list[str], str], tuple[int, str, str]]

_STRANGE = (
    "what is called docker on this host must be Docker's own client, and the daemon that it asks"
    " must be Docker"
)

INPUTS_LABEL = "org.slice-bench.image-inputs"
# A container that the role stack created has it.
CONTAINER_LABEL = "org.slice-bench.container-inputs"


class DockerError(Exception):
    """Docker cannot be used, or refused; the message names the reason and the remedy."""


class DockerCli:
    def __init__(self, run: Runner, binary: str | None = None) -> None:
        """Raises DockerError where there is no client."""
        self._run = run
        found = binary or shutil.which("docker")
        if found is None:
            raise DockerError(
                "Docker is not installed: run `make prep` from the checkout, or `apt-get install"
                " docker.io`, on this host"
            )
        self.binary = found

    def call(self, *arguments: str) -> str:
        """Standard output of a docker command. Raises DockerError."""
        code, output, error = self._run([self.binary, *arguments])
        if code:
            raise DockerError(
                explain(
                    error.strip()
                    or output.strip()
                    or f"docker {arguments[0]} ended with exit code {code}"
                )
            )
        return output

    def version(self) -> str:
        """The daemon's version. Raises DockerError where it does not answer."""
        return self.call("version", "--format", "{{.Server.Version}}").strip()

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        """`docker <kind> inspect <name>`; None where there is no such thing."""
        code, output, error = self._run([self.binary, kind, "inspect", name])
        if code:
            if "no such" in error.lower() or "not found" in error.lower():
                return None
            raise DockerError(
                explain(error.strip() or f"docker {kind} inspect ended with exit code {code}")
            )
        try:
            document = json.loads(output)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, list) or not document or not isinstance(document[0], dict):
            raise DockerError(f"docker {kind} inspect {name} prints no description: {_STRANGE}")
        found: dict[str, Any] = document[0]
        return found

    def image(self, name: str) -> dict[str, Any] | None:
        """What the roles need of an image: name, id, labels, architecture, created, and by which
        digests registries know it.
        """
        found = self.inspect("image", name)
        if found is None:
            return None
        return {
            "name": name,
            "id": _part(found, str, "Id"),
            "labels": _labels(found),
            "architecture": _part(found, str, "Architecture"),
            # Not every image has it.
            "created": _part({"Created": "", **found}, str, "Created"),
            "repo_digests": [
                str(name)
                for name in (
                    _part({"RepoDigests": None, **found}, (list, NoneType), "RepoDigests") or []
                )
            ],
        }

    def container(self, name: str) -> dict[str, Any] | None:
        """What the roles need of a container: id, name, image id, labels, whether and since when it
        runs, its pid on the host, and the host's folders by where they are mounted.

        A paused container does not run: nothing in it answers.
        """
        found = self.inspect("container", name)
        if found is None:
            return None
        return {
            "id": _part(found, str, "Id"),
            # A description without them costs but these parts.
            "name": found["Name"].lstrip("/") if isinstance(found.get("Name"), str) else name,
            "image_id": _part(found, str, "Image"),
            "labels": _labels(found),
            "running": (
                _part(found, bool, "State", "Running")
                and not found["State"].get("Restarting", False)
                and not found["State"].get("Paused", False)
            ),
            "status": _part(found, str, "State", "Status"),
            "started_at": _part(found, str, "State", "StartedAt"),
            "exit_code": _part(found, int, "State", "ExitCode"),
            "pid": _part(found, int, "State", "Pid"),
            "mounts": dict(_mounts(found.get("Mounts"))),
        }

    def holder_of(self, variable: str, value: str) -> str | None:
        """The name of a running container of this collection that has this in its environment;
        None without one.
        """
        listed = self.call("ps", "--filter", f"label={CONTAINER_LABEL}", "--format", "{{.Names}}")
        for name in listed.split():
            config = (self.inspect("container", name) or {}).get("Config")
            environment = config.get("Env") if isinstance(config, dict) else None
            if isinstance(environment, list) and f"{variable}={value}" in environment:
                return name
        return None


def _part(found: Any, kind: type | tuple[type, ...], *keys: str) -> Any:
    """A part of a description. Raises DockerError where it is missing or of another type."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise DockerError(f"docker's description has no valid {'.'.join(keys)}: {_STRANGE}")
    return found


def _mounts(found: Any) -> Iterator[tuple[str, str]]:
    """Where each of the host's folders is mounted, and which it is."""
    for mount in found if isinstance(found, list) else []:
        if isinstance(mount, dict):
            target, source = mount.get("Destination"), mount.get("Source")
            if isinstance(target, str) and isinstance(source, str):
                yield target, source


def _labels(found: dict[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = (
        _part(
            {"Labels": None, **_part({"Config": {}, **found}, dict, "Config")},
            (dict, NoneType),
            "Labels",
        )
        or {}
    )
    return labels


def explain(error: str) -> str:
    """Docker's words for the common failures, with the remedy."""
    lowered = error.lower()
    if "permission denied" in lowered and "sock" in lowered:
        return (
            "no permission to use Docker: add the user to the docker group and log in again, or"
            f" set ansible_become ({error})"
        )
    if any(
        word in lowered
        for word in (
            "cannot connect to the docker daemon",
            "error during connect",
            "is the docker daemon running",
        )
    ):
        return f"the Docker daemon does not answer: start it (`systemctl start docker`) ({error})"
    return error


def build_client(run: Runner) -> list[str]:
    """The client that can build with BuildKit: a plain client before 23 has it built in, a later
    one needs its buildx plugin.

    Raises DockerError where none on the PATH can.
    """
    tried = []
    for folder in os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(os.pathsep):
        binary = os.path.join(folder, "docker")
        if not os.access(binary, os.X_OK) or os.path.realpath(binary) in tried:
            continue
        tried.append(os.path.realpath(binary))
        code, output, _ignored = run([binary, "version", "--format", "{{.Client.Version}}"])
        major = output.strip().partition(".")[0]
        if code == 0 and major.isdigit() and int(major) < 23:
            return [binary, "build"]
        if run([binary, "buildx", "version"])[0] == 0:
            return [binary, "buildx", "build", "--load"]
    raise DockerError(
        f"no docker client that can build with BuildKit ({', '.join(tried) or 'none on the PATH'}):"
        " install the docker-buildx plugin"
    )
