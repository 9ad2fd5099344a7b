"""A whole Debian host to test on: a container with systemd, sshd and a Docker daemon of its own,
reached by SSH alone.

It stands for a machine of a lab. What it cannot stand for: another kernel, another clock, a GPU, a
network that breaks. Each host is published on a loopback address of its own: 127.0.0.11:2211,
127.0.0.12:2212, ...
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "sglang-testhost"
BASE = "sglang-base:bookworm"
# A tag of its own: what an operator's run makes of sglang-dev:local meanwhile changes nothing here.
STACK_IMAGE = "sglang-dev:testhost"
STACK_IMAGES = (BASE, STACK_IMAGE)
FAULT_IMAGE = "sglang-dev-faults:testhost"
# Variables of every inventory of tests: the CPU flavour with the model made on the spot.
STACK_VARIABLES = {
    "sgl_image": STACK_IMAGE,
    "sgl_flavour": "local",
    "sgl_model": "tiny/qwen3-tiny",
    "sgl_model_source": "tiny",
}
# The users that the image has; bench is no member of the docker group.
UIDS = {"root": 0, "ops": 1000, "bench": 1001}
LABEL = "org.slice-bench.testhost"
START_LIMIT_S = 90
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# systemd needs a writable cgroup tree and its own /run; --privileged is refused where the machine
# lacks CAP_SYS_RESOURCE.
_CONTAINER_OPTIONS = (
    "--cap-add=ALL",
    "--cap-drop=SYS_RESOURCE",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    "--shm-size=2g",
)


class HostError(Exception):
    """A test host could not be made; the message says at which step, with the end of the output."""


def run(
    *command: str, stdin: str | None = None, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an argument list. Raises HostError with its output when it fails."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if check and done.returncode:
        raise HostError(
            f"{' '.join(command[:6])} ended with exit code {done.returncode}:"
            f" {(done.stdout + done.stderr)[-4000:]}"
        )
    return done


def program(name: str) -> str:
    """A program of the checkout's own environment."""
    return str(ROOT / ".venv" / "bin" / name)


def answer(command: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, as the modules' `run_command` gives them."""
    done = run(*command, check=False)
    return done.returncode, done.stdout, done.stderr


def ansible(
    *arguments: str, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """`ansible-playbook ...` with the checkout's settings, from the checkout."""
    playbook = start_ansible(*arguments, env=env)
    output, error = playbook.communicate()
    done = subprocess.CompletedProcess(playbook.args, playbook.returncode, output, error)
    if check and done.returncode:
        said = f"{done.stdout[-6000:]}{done.stderr[-2000:]}"
        raise HostError(
            f"ansible-playbook {' '.join(arguments)} ended with exit code"
            f" {done.returncode}:\n{said}"
        )
    return done


def start_ansible(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Begin `ansible-playbook ...` as `ansible` does, without waiting for its end."""
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    return subprocess.Popen(
        [program("ansible-playbook"), *arguments],
        cwd=ROOT, env={**os.environ, **settings, **(env or {})},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def recap(output: str) -> dict[str, dict[str, int]]:
    """The counts of a PLAY RECAP, by host."""
    lines = re.findall(r"^(\S+)\s+: (ok=.*)$", output, re.MULTILINE)
    return {
        host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in lines
    }


def write_inventory(
    path: Path, hosts: dict[str, dict[str, Any]], variables: dict[str, Any]
) -> Path:
    """An inventory whose one group is `sglang`."""
    path.write_text(
        yaml.safe_dump({"sglang": {"hosts": hosts, "vars": variables}}), encoding="utf-8"
    )
    return path


def build_images() -> None:
    """Make the stack's image as the image role does, and the test host's image where it is missing
    or its Dockerfile changed.
    """
    ansible(
        "-i",
        str(ROOT / "inventories" / "local"),
        "-e",
        f"sgl_image={STACK_IMAGE}",
        str(ROOT / "tests" / "hosts" / "image.yml"),
    )
    build_host_image(IMAGE, BASE)


def build_host_image(image: str, base: str, docker: str = "docker.io") -> None:
    """The image of a test host from a Debian base; `docker` names the packages of its Docker."""
    clients = [
        path
        for path in ("/usr/bin/docker", shutil.which("docker"))
        if path and os.access(path, os.X_OK)
    ]
    # Debian's own client has BuildKit built in; another one on the PATH may lack the plugin.
    # Unchanged layers come from the build's cache.
    secret = ["--secret", f"id=ca-bundle,src={_CA_BUNDLE}"] if os.path.isfile(_CA_BUNDLE) else []
    run(
        clients[0],
        "build",
        "--quiet",
        "--tag",
        image,
        "--build-arg",
        f"BASE={base}",
        "--build-arg",
        f"DOCKER={docker}",
        *secret,
        str(ROOT / "tests" / "hosts"),
        env={"DOCKER_BUILDKIT": "1"},
    )


class TestHost:
    """Context manager: the host lives as long as the block, and nothing of it stays. `up` and
    `down` are its two ends.
    """

    __test__ = False  # no test class, whatever pytest makes of its name
    image = IMAGE
    # overlayfs needs a file system of its own below it.
    volumes: tuple[str, ...] = ("/var/lib/docker",)
    # What runs in place of systemd.
    command: tuple[str, ...] = ()
    # Further options of `docker run`.
    options: tuple[str, ...] = ()

    def __init__(
        self, name: str, loopback_address: str, port: int, folder: Path | None = None
    ) -> None:
        """`folder` is where its keys are kept, so that another process can reach it too; by default
        one that goes with the host.
        """
        self.name = name
        self.address = loopback_address
        self.port = port
        self._volumes = {f"{name}-{path.rpartition('/')[2]}": path for path in self.volumes}
        self._folder = folder

    def __enter__(self) -> TestHost:
        build_images()
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> None:
        """Start it; returns when it can be reached. Raises HostError."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="host-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._remove()
            run(
                "docker",
                "run",
                "--detach",
                "--name",
                self.name,
                "--hostname",
                self.name,
                "--label",
                LABEL,
                *_CONTAINER_OPTIONS,
                *self.options,
                *(f"--volume={name}:{path}" for name, path in self._volumes.items()),
                "--publish",
                f"{self.address}:{self.port}:22",
                self.image,
                *self.command,
            )
            self._wait_until_up()
            self._let_in()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove it with all that is its."""
        if self._folder is not None:
            # The connections that Ansible keeps up end before their host does.
            for socket in self._folder.glob("cp/*"):
                run("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "ignored", check=False)
            shutil.rmtree(self._folder, ignore_errors=True)
        self._remove()

    @property
    def folder(self) -> Path:
        """A folder on this machine that lives as long as the host."""
        assert self._folder is not None, "the host is not up"
        return self._folder

    def inventory_vars(self, user: str = "ops") -> dict[str, Any]:
        """The variables by which Ansible reaches this host as one of its users."""
        known = f"-o UserKnownHostsFile={self.folder / 'known_hosts'} -o StrictHostKeyChecking=yes"
        return {
            "ansible_host": self.address,
            "ansible_port": self.port,
            "ansible_user": user,
            "ansible_ssh_private_key_file": str(self.folder / "key"),
            "ansible_ssh_common_args": f"{known} -o IdentitiesOnly=yes",
            "ansible_control_path_dir": str(self.folder / "cp"),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def load(self, *images: str) -> None:
        """Copy images from this machine's Docker into the host's own."""
        save = subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE)
        loaded = subprocess.run(
            ["docker", "exec", "--interactive", self.name, "docker", "load"],
            stdin=save.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert save.stdout is not None
        save.stdout.close()
        if save.wait() or loaded.returncode:
            raise HostError(
                f"docker save {' '.join(images)} | docker load in {self.name} failed:"
                f" {loaded.stdout}{loaded.stderr}"
            )

    def execute(self, *command: str, user: str = "root", check: bool = True) -> str:
        """Standard output of a command in the host, past SSH."""
        return run("docker", "exec", "--user", user, self.name, *command, check=check).stdout

    def not_owned(self, uid: int, *folders: str) -> list[str]:
        """What under the folders does not belong to that user and its group, as `uid:gid path`."""
        found = self.execute(
            "find",
            *folders,
            "-not",
            "(",
            "-uid",
            str(uid),
            "-gid",
            str(uid),
            ")",
            "-printf",
            "%U:%G %p\\n",
        )
        return found.splitlines()

    def _wait_until_up(self) -> None:
        """systemd says when all that it starts is up; sshd and dockerd tell systemd themselves."""
        deadline = time.monotonic() + START_LIMIT_S
        state = ""
        while time.monotonic() < deadline:
            state = run(
                "docker", "exec", self.name, "systemctl", "is-system-running", "--wait", check=False
            ).stdout.strip()
            if state in ("running", "degraded"):
                break
            time.sleep(0.2)  # pid 1 does not answer yet, so there is nothing to wait on
        for service in ("ssh", "docker"):
            if (
                run(
                    "docker", "exec", self.name, "systemctl", "is-active", service, check=False
                ).stdout.strip()
                != "active"
            ):
                log = run(
                    "docker",
                    "exec",
                    self.name,
                    "journalctl",
                    "--no-pager",
                    "-n",
                    "40",
                    "-u",
                    service,
                    check=False,
                ).stdout
                raise HostError(
                    f"{service} is not up in {self.name} (systemd: {state or 'no answer'}):\n{log}"
                )

    def _let_in(self) -> None:
        """A key made for this host alone opens its users' accounts, and its host key is known
        beforehand.
        """
        key = self.folder / "key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key))
        public = key.with_suffix(".pub").read_text(encoding="utf-8")
        for user in UIDS:
            home = "/root" if user == "root" else f"/home/{user}"
            self.execute("install", "-d", "-m", "0700", "-o", user, "-g", user, f"{home}/.ssh")
            run(
                "docker",
                "exec",
                "--interactive",
                self.name,
                "install",
                "-m",
                "0600",
                "-o",
                user,
                "-g",
                user,
                "/dev/stdin",
                f"{home}/.ssh/authorized_keys",
                stdin=public,
            )
        host_key = self.execute("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
        (self.folder / "known_hosts").write_text(
            f"[{self.address}]:{self.port} {host_key[0]} {host_key[1]}\n", encoding="utf-8"
        )

    def _remove(self) -> None:
        run("docker", "rm", "--force", "--volumes", self.name, check=False)
        run("docker", "volume", "rm", "--force", *self._volumes, check=False)
