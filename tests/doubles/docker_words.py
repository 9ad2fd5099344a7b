"""What Docker's client prints when something is missing, or no daemon answers: the sentences of the
releases that are in use.

From docker/cli v20.10.24, v23.0.6, v24.0.9, v27.5.1, v28.2.2, v28.5.2, v29.0.0 and v29.7.2
(vendor/github.com/{docker/docker,moby/moby}/client/errors.go and request.go,
cli/command/inspect/inspector.go), from moby (daemon/container/view.go, daemon/images/image.go,
daemon/server/middleware/version.go), and from podman 3 to 5 (pkg/domain/infra/{abi,tunnel},
libpod/define/errors.go, storage's errors.go), which Debian and RHEL install as `docker` with
podman-docker. The third of IMAGE was seen with a 28.2.2 client on a 20.10.24 daemon.
"""

from __future__ import annotations

from tests.doubles.nvidia_smi import Answer

SOCKET = "unix:///var/run/docker.sock"
_PODMAN = "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\n"

# Of `docker container inspect box` and `docker image inspect box:local`, where neither exists.
CONTAINER = {
    "docker 20 to 27": "Error: No such container: box",
    "docker 28 and 29": "Error response from daemon: No such container: box",
    "a warning before it": (
        "WARNING: Error loading config file: /root/.docker/config.json: permission denied\n"
        "Error response from daemon: No such container: box"
    ),
    "podman 3": "Error: error inspecting object: no such container box",
    "podman 4 and 5": f'{_PODMAN}Error: no such container "box"',
}
IMAGE = {
    "docker 20 to 27": "Error: No such image: box:local",
    "docker 28 and 29": "Error response from daemon: No such image: box:local",
    "client 28, daemon 20": (
        "Error response from daemon: no such image: box:local: No such image: box:local"
    ),
    "podman 3": "Error: error inspecting object: box:local: image not known",
    "podman 4 and 5": f"{_PODMAN}Error: box:local: image not known",
}

# Where no daemon can be asked, with what has to be in the remedy.
SILENT = {
    "20 to 28, no socket": (
        f"Cannot connect to the Docker daemon at {SOCKET}. Is the docker daemon running?",
        "systemctl start docker",
    ),
    "29, no socket": (
        f"failed to connect to the docker API at {SOCKET}; check if the path is correct and if the"
        " daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory",
        "systemctl start docker",
    ),
    "29, a socket that is gone elsewhere": (
        "failed to connect to the docker API at unix:///run/user/1000/docker.sock; check if the"
        " path is correct and if the daemon is running: dial unix /run/user/1000/docker.sock:"
        " connect: no such file or directory",
        "unset DOCKER_HOST",
    ),
    "29, a host without a name": (
        "failed to connect to the docker API at tcp://gpu7:2375: lookup gpu7: no such host",
        "unset DOCKER_HOST",
    ),
    "28, a host without a name": (
        'error during connect: Get "http://gpu7:2375/v1.50/images/box/json": dial tcp: lookup gpu7'
        " on 10.0.0.2:53: no such host",
        "no Docker daemon answers at gpu7:2375: start it there (`systemctl start docker`)",
    ),
    "24, a daemon that ends meanwhile": (
        'error during connect: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.43/containers/box/json":'
        " EOF",
        "the Docker daemon does not answer: start it",
    ),
    "20, no permission": (
        f"Got permission denied while trying to connect to the Docker daemon socket at {SOCKET}:"
        ' Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/containers/box/json": dial unix'
        " /var/run/docker.sock: connect: permission denied",
        "docker group",
    ),
    "23 to 28, no permission": (
        f"permission denied while trying to connect to the Docker daemon socket at {SOCKET}",
        "docker group",
    ),
    "29, no permission": (
        f"permission denied while trying to connect to the docker API at {SOCKET}",
        "docker group",
    ),
    "a context that is gone": (
        'Failed to initialize: unable to resolve docker endpoint: context "lab": context not found:'
        " open /home/u/.docker/contexts/meta/ca37/meta.json: no such file or directory",
        "docker context use default",
    ),
    "a daemon 29 for a client 20": (
        "Error response from daemon: client version 1.41 is too old. Minimum supported API version"
        " is 1.44, please upgrade your client to a newer version",
        "install both from one source",
    ),
    "podman without its service": (
        f"{_PODMAN}Cannot connect to Podman. Please verify your connection to the Linux system"
        " using `podman system connection list`, or try `podman machine init` and `podman machine"
        " start` to manage a new Linux VM",
        "does not answer",
    ),
}


def absent(command: list[str]) -> Answer:
    """What docker answers where nothing exists: a sentence to `inspect`, an empty list to `ls` and
    `ps`.
    """
    kind, verb = [*command[1:], "", ""][:2]
    if verb == "inspect":
        names = [word for word in command[3:] if not word.startswith("-")]
        said = [f"Error response from daemon: No such {kind}: {name}" for name in names]
        return 1, "[]\n", "\n".join(said)
    if verb == "ls" or kind == "ps":
        return 0, "", ""
    return 1, "", f"unknown command: {' '.join(command)}"
