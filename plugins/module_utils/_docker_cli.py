# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The Docker command line: which client to use, and what its failures mean.

The client is used, not the HTTP API: it knows the operator's context, DOCKER_HOST, TLS and
credentials, and every host that can run the container has it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from . import _ports as ports
from ._contract.labels import CONTAINER_LABEL
from ._contract.texts import one_line, read_json_text

# Runs an argument list; returns exit code, standard output, standard error.
Runner = Callable[[list[str]], tuple[int, str, str]]
# The same with a text on standard input; without one where that is empty.
InputRunner = Callable[[list[str], str], tuple[int, str, str]]

_STRANGE = (
    "what is called docker on this host must be Docker's own client, and the daemon that it asks"
    " must be Docker"
)

# types.NoneType, which Python 3.9 does not have.
_NONE = type(None)


# A daemon's 404 as the user reads it: of clients 20.10 to 27 ("Error: ..."), and of clients from 28
# on ("Error response from daemon: ..."). Only a daemon that answers says either.
_NO_SUCH = re.compile(
    r"(?:Error|Error response from daemon): "
    r"(?:no such image: \S+: )?No such (?P<kind>container|image): (?P<name>\S+)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(?:unix|tcp|ssh|https?|npipe)://[^\s;\"]*[^\s;:.,\"]")
_SYSTEM_SOCKETS = ("unix:///var/run/docker.sock", "unix:///run/docker.sock")


def beside(name: str) -> tuple[str, str]:
    """What a container's replacement is called until it takes the name, and what the container is
    called from then on until it is removed.
    """
    return f"{name}.next", f"{name}.replaced"


class DockerError(Exception):
    """Docker cannot be used, or refused; the message names the reason and the remedy."""


class DockerMissing(DockerError):
    """There is no Docker client on this host."""


class DockerSilent(DockerError):
    """No daemon answers, or none that this user may ask: what exists is unknown."""


class DockerAbsent(DockerError):
    """Docker knows no such container or image."""


class DockerCli:
    def __init__(self, run: Runner, binary: str | None = None) -> None:
        """Raises DockerMissing where there is no client."""
        self.run = run
        self._info: dict[str, Any] | None = None
        found = binary or shutil.which("docker")
        if found is None:
            raise DockerMissing(
                "Docker is not installed: run `make prep` from the checkout, or `apt-get install"
                " docker.io`, on this host"
            )
        self.binary = found

    def call(self, *arguments: str) -> str:
        """Standard output of a docker command. Raises DockerError."""
        code, output, error = self.run([self.binary, *arguments])
        if code:
            raise failure(
                error.strip()
                or output.strip()
                or f"docker {arguments[0]} ended with exit code {code}"
            )
        return output

    def info(self) -> dict[str, Any]:
        """What `docker info` says of the daemon; empty where it cannot be read. Asked once."""
        if self._info is None:
            code, output, _ignored = self.run([self.binary, "info", "--format", "{{json .}}"])
            try:
                document = read_json_text(output)
            except ValueError:
                document = None
            # A client that reaches no daemon describes itself.
            answered = code == 0 and isinstance(document, dict) and not document.get("ServerErrors")
            self._info = document if answered else {}
        return self._info

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        """`docker <kind> inspect <name>`; None where there is no such thing. Raises DockerError."""
        code, output, error = self.run([self.binary, kind, "inspect", name])
        if code:
            self._demand_absence(kind, code, error, [name])
            return None
        found = _descriptions(output)
        if not found:
            raise DockerError(f"docker {kind} inspect {name} prints no description: {_STRANGE}")
        return found[0]

    def _lists(self, kind: str, name: str) -> bool:
        """Whether Docker lists it: an empty list means the same in every version. Raises
        DockerError.
        """
        words = [kind, "ls", "--all", "--no-trunc", "--quiet"]
        if kind == "container":
            words += ["--filter", f"name=^/?{re.escape(name)}$"]
        elif not name.startswith("sha256:"):
            words += ["--filter", f"reference={name}"]
        listed = self.call(*words).split()
        return name in listed if name.startswith("sha256:") else bool(listed)

    def image(self, name: str) -> dict[str, Any] | None:
        """What the roles need of an image: name, id, labels, architecture, created, and by which
        digests registries know it.
        """
        found = self.inspect("image", name)
        return None if found is None else describe_image(name, found)

    def container(self, name: str) -> dict[str, Any] | None:
        """What the roles need of a container: id, name, image id, labels, whether and since when it
        runs, its pid on the host, and the host's folders by where they are mounted.

        A paused container does not run: nothing in it answers.
        """
        found = self.inspect("container", name)
        return None if found is None else _container(found, name)

    def containers(self, *names: str) -> dict[str, dict[str, Any] | None]:
        """Several of them, in one call of the client; None for each that does not exist. Raises
        DockerError.
        """
        found = {_part(each, str, "Name").lstrip("/"): each for each in self._described(names)}
        return {name: _container(found[name], name) if name in found else None for name in names}

    def mounting(self, source: str, target: str) -> list[dict[str, Any]]:
        """The containers that have this folder of the host there, however its path is spelt; also
        those that do not run. Raises DockerError.
        """
        words = ["ps", "--all", "--no-trunc", "--quiet", "--filter", f"volume={target}"]
        listed = self.call(*words).split()
        found = [_container(each, "") for each in self._described(tuple(listed))] if listed else []
        return [each for each in found if same_folder(each["mounts"].get(target), source)]

    def _described(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """The descriptions of those containers that exist."""
        code, output, error = self.run([self.binary, "container", "inspect", *names])
        found = _descriptions(output if output.strip() or not code else "[]")
        if code:
            keys = [each.get(key, "") for each in found or [] for key in ("Name", "Id")]
            described = [str(key).lstrip("/") for key in keys]
            absent = [name for name in names if name not in described]
            self._demand_absence("container", code, error, absent)
        if found is None:
            raise DockerError(
                f"docker container inspect {' '.join(names)} prints no description: {_STRANGE}"
            )
        return found

    def _demand_absence(self, kind: str, code: int, error: str, names: list[str]) -> None:
        """Raises DockerError where anything but their absence made the client fail."""
        refusal = failure(
            one_line(error, 300) or f"docker {kind} inspect ended with exit code {code}"
        )
        if isinstance(refusal, DockerSilent):
            raise refusal
        # The client ends with a line for each; what it says before is not about their absence.
        lines = error.strip().splitlines()[-len(names) :]
        for name in names:
            said = any(_says_absent(line, kind, name) for line in lines)
            if not said and self._lists(kind, name):
                raise refusal

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


def same_folder(mounted: str | None, folder: str) -> bool:
    """Whether what Docker mounts is this folder, however the path is spelt."""
    if mounted is None:
        return False
    try:
        return os.path.samefile(mounted, folder)
    except OSError:
        return os.path.normpath(mounted) == os.path.normpath(folder)


def _container(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a container by its name or id."""
    return {
        "id": _part(found, str, "Id"),
        # A description without them costs but these parts: the name, the mounts.
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
        **_listening(found),
    }


def describe_image(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """DockerCli.image() of what `docker image inspect` printed. Raises DockerError."""
    digests = _part({"RepoDigests": None, **found}, (list, _NONE), "RepoDigests")
    return {
        "name": name,
        "id": _part(found, str, "Id"),
        "labels": _labels(found),
        "architecture": _part(found, str, "Architecture"),
        # Not every image has it.
        "created": _part({"Created": "", **found}, str, "Created"),
        "repo_digests": [str(digest) for digest in digests or []],
    }


def _descriptions(output: str) -> list[dict[str, Any]] | None:
    """What the client printed of things; None where it is anything else."""
    try:
        document = read_json_text(output)
    except ValueError:
        return None
    whole = isinstance(document, list) and all(isinstance(each, dict) for each in document)
    return document if whole else None


def _says_absent(line: str, kind: str, name: str) -> bool:
    """Whether a line is Docker's own sentence for a thing that does not exist."""
    sentence = _NO_SUCH.fullmatch(line.strip())
    if sentence is None or sentence["kind"].lower() != kind:
        return False
    # Docker completes the name of an image.
    return kind == "image" or sentence["name"] == name


def _part(found: Any, kind: type | tuple[type, ...], *keys: str) -> Any:
    """A part of a description. Raises DockerError where it is missing or of another type."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise DockerError(f"docker's description has no valid {'.'.join(keys)}: {_STRANGE}")
    return found


def _listening(found: dict[str, Any]) -> dict[str, Any]:
    """Where its services listen; the rest of its environment may hold tokens."""
    config = _part({"Config": {}, **found}, dict, "Config")
    environment = _part({"Env": None, **config}, (list, _NONE), "Env")
    address, numbers = ports.of_container(map(str, environment or []))
    return {"bind_address": address, "ports": numbers}


def _mounts(found: Any) -> Iterator[tuple[str, str]]:
    """Where each of the host's folders is mounted, and which it is."""
    for mount in found if isinstance(found, list) else []:
        if isinstance(mount, dict):
            target, source = mount.get("Destination"), mount.get("Source")
            if isinstance(target, str) and isinstance(source, str):
                yield target, source


def _labels(found: dict[str, Any]) -> dict[str, Any]:
    config = _part({"Config": {}, **found}, dict, "Config")
    labels: dict[str, Any] = _part({"Labels": None, **config}, (dict, _NONE), "Labels") or {}
    return labels


# What keeps this user from asking a daemon at all, in the words of docker/cli 20.10 to 29
# (client/errors.go, client/request.go), of moby (version negotiation) and of podman's docker.
_REMEDIES = tuple(
    (re.compile(words, re.IGNORECASE), remedy)
    for words, remedy in (
        (
            "permission denied while trying to connect to the docker",
            "no permission to use Docker: add the user to the docker group and log in again, or"
            " set ansible_become",
        ),
        (
            "unable to resolve docker endpoint:",
            "docker's context names no daemon: `docker context use default`, and unset"
            " DOCKER_CONTEXT",
        ),
        (
            r"client version \S+ is too (?:old|new)",
            "Docker's client and daemon speak different versions: install both from one source,"
            " and unset DOCKER_API_VERSION",
        ),
        (
            r"the server probably has client authentication \(--tlsverify\) enabled",
            "the Docker daemon does not accept this client's certificate: correct DOCKER_CERT_PATH",
        ),
    )
)
_UNREACHABLE = re.compile(
    "cannot connect to (?:the docker daemon|podman)|is the docker daemon running"
    "|failed to connect to the docker api|error during connect:",
    re.IGNORECASE,
)


def _address(error: str) -> str | None:
    """Where the client looked for the daemon."""
    found = _ADDRESS.search(error)
    if found is None:
        return None
    scheme, _slashes, rest = found[0].partition("://")
    if not scheme.startswith("http"):
        return found[0]
    # A request: the host, which may be a socket's path, and then what was asked of it.
    host = unquote(rest.partition("/")[0])
    return f"unix://{host}" if host.startswith("/") else host


def _remedy(error: str) -> str | None:
    """What helps where no daemon can be asked; None for any other error."""
    for words, remedy in _REMEDIES:
        if words.search(error):
            return remedy
    if not _UNREACHABLE.search(error):
        return None
    address = _address(error)
    if address is None or address in _SYSTEM_SOCKETS:
        return "the Docker daemon does not answer: start it (`systemctl start docker`)"
    return (
        f"no Docker daemon answers at {address}: start it there (`systemctl start docker`), or"
        " unset DOCKER_HOST and `docker context use default` for this host's own"
    )


def failure(error: str) -> DockerError:
    """The error that Docker's words stand for, with the remedy."""
    if (remedy := _remedy(error)) is not None:
        return DockerSilent(f"{remedy} ({error})")
    # A warning may stand before it, and after it what the client could not do therefore
    # (docker/cli v27.5.1, cli/command/container/start.go and rename.go).
    absent = any(_NO_SUCH.fullmatch(line.strip()) for line in error.splitlines())
    return (DockerAbsent if absent else DockerError)(error)


def explain(error: str) -> str:
    """Docker's words for the common failures, with the remedy."""
    return str(failure(error))


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
        " install the docker-buildx plugin. Podman's socket has no BuildKit: set sgl_image_source"
        " to pull or load there"
    )
