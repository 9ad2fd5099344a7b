"""A whole installation of its own beside the user's, to be driven as its users drive it: by
playbooks, by docker, by its records.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.hosts.host import answer

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Another name keeps a developer's own image apart while the tests run.
IMAGE = os.environ.get("SGL_TEST_IMAGE", "sglang-dev:local")
# The same for another architecture, which is run under emulation.
ARM64_IMAGE = "sglang-dev-arm64-test:local"
ARM64 = "linux/arm64"
CONTAINER = "sglang-dev-it"
# A hundred ports for each installation, as several stand at a time, in test runs side by side too.
PORTS_FROM = {
    CONTAINER: 19300,
    "sglang-dev-faults": 19400,
    "sglang-dev-front": 19500,
    "sglang-dev-gh200-test": 19600,
    "sglang-dev-contended": 19700,
    "sglang-dev-full": 19900,
    "sglang-dev-arm64-test": 20000,
    f"{CONTAINER}-bare": 20100,
    "sglang-dev-year": 20200,
    "sglang-dev-year-fresh": 20300,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Play:
    """What a run of a playbook came to."""

    code: int
    output: str

    @property
    def text(self) -> str:
        """The output in one line, as messages may be folded."""
        return re.sub(r"\s+", " ", self.output)

    @property
    def changed(self) -> int:
        counts = re.findall(r"\bchanged=(\d+)", self.output)
        assert counts, f"no recap in:\n{self.output}"
        return int(counts[-1])


@dataclass
class Site:
    """One installation: its tree, its container, its ports."""

    root: Path
    container: str = CONTAINER
    ports: dict[str, int] = field(default_factory=dict)
    user: str | None = None

    def __post_init__(self) -> None:
        self.ports = self.ports or ports_of(self.container)

    @property
    def owner(self) -> tuple[int, int]:
        entry = pwd.getpwnam(self.user) if self.user else pwd.getpwuid(os.geteuid())
        return entry.pw_uid, entry.pw_gid

    @property
    def telemetry(self) -> Path:
        return self.root / "telemetry"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def pointer(self) -> Path:
        return self.telemetry / "container_run_meta.env"

    @property
    def model(self) -> str:
        """The model's folder in the container."""
        return "/models/tiny/qwen3-tiny"

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "sgl_container": self.container,
            "sgl_image": IMAGE,
            "sgl_root": str(self.root),
            "sgl_flavour": "local",
            "sgl_model": "tiny/qwen3-tiny",
            "sgl_model_source": "tiny",
            "sgl_prometheus_port": self.ports["prometheus"],
            "sgl_node_exporter_port": self.ports["node_exporter"],
            "sgl_sglang_port": self.ports["sglang"],
            **({"sgl_user": self.user} if self.user else {}),
        }

    # --- Ansible ----------------------------------------------------------------------------------

    def play(
        self,
        name: str,
        *flags: str,
        variables: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Play:
        """Run playbooks/<name>.yml against this installation."""
        return ended(self.start_play(name, *flags, variables=variables, environment=environment))

    def start_play(
        self,
        name: str,
        *flags: str,
        variables: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Begin playbooks/<name>.yml against this installation; `ended` says what it came to."""
        given = json.dumps({**self.variables, **(variables or {})})
        return start_ansible(
            "ansible-playbook",
            f"playbooks/{name}.yml",
            "--extra-vars",
            given,
            *flags,
            environment=environment,
        )

    def must_play(self, name: str, *flags: str, **options: Any) -> Play:
        play = self.play(name, *flags, **options)
        assert play.code == 0, play.output + self.diagnosis()
        return play

    def manifest_module(self, *flags: str, **options: Any) -> dict[str, Any]:
        """What module sgl_manifest answers for this installation."""
        return module(
            "sgl_manifest",
            {"telemetry_root": str(self.telemetry), "container": self.container, **options},
            *flags,
        )

    # --- Docker -----------------------------------------------------------------------------------

    def docker_exec(
        self, *command: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return docker("exec", *options, self.container, *command, check=False)

    def admin(
        self, *arguments: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return self.docker_exec("sgl-admin", *arguments, options=options)

    def ensure(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.admin("caches", "ensure", "--model", self.model, *arguments)

    def begin(self, *arguments: str) -> dict[str, Any]:
        """Begin a prep without waiting for its end; returns its job record."""
        done = self.ensure("--detach", "--wait", "0", *arguments)
        assert done.returncode == 0, done.stderr
        job: dict[str, Any] = json.loads(done.stdout)["job"]
        return job

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a process by its pid in the container."""
        done = self.docker_exec(
            "/opt/sglang/bin/python", "-c", f"import os; os.kill({pid}, {number})"
        )
        assert done.returncode == 0, done.stderr

    def inspect(self) -> dict[str, Any] | None:
        done = docker("container", "inspect", self.container, check=False)
        return json.loads(done.stdout)[0] if done.returncode == 0 else None

    def state(self) -> dict[str, Any]:
        found = self.inspect()
        assert found is not None, f"no container {self.container}"
        state: dict[str, Any] = found["State"]
        return state

    def processes(self) -> list[list[str]]:
        """The command line of each process in the container."""
        script = (
            "import glob, json\nfor name in glob.glob('/proc/[0-9]*/cmdline'):\n    try:"
            " print(json.dumps(open(name,"
            " 'rb').read().decode(errors='replace').split(chr(0))[:-1]))\n    except OSError:"
            " pass\n"
        )
        done = self.docker_exec("/opt/sglang/bin/python", "-c", script)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def signal_matching(self, word: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to each process in the container, but pid 1, whose command line holds the
        word.
        """
        script = (
            "import glob, os, sys\n"
            "for name in glob.glob('/proc/[0-9]*/cmdline'):\n"
            "    pid = int(name.split('/')[2])\n"
            "    try: found = sys.argv[1] in open(name, 'rb').read().decode(errors='replace')\n"
            "    except OSError: continue\n"
            "    if found and pid not in (1, os.getpid()): os.kill(pid, int(sys.argv[2]))\n"
        )
        done = self.docker_exec("/opt/sglang/bin/python", "-c", script, word, str(int(number)))
        assert done.returncode == 0, done.stderr

    def servers(self) -> list[list[str]]:
        """The command lines of an SGLang server and its children, which name themselves sglang::...
        once they are up.
        """
        marks = ("sglang.launch_server", "sglang::", "multiprocessing")
        return [
            line
            for line in self.processes()
            if any(mark in word for mark in marks for word in line)
        ]

    # --- records ----------------------------------------------------------------------------------

    def pointed(self) -> Path:
        """The manifest that the pointer names."""
        lines = dict(line.partition("=")[::2] for line in self.pointer.read_text().splitlines())
        return Path(lines["CONTAINER_RUN_META_JSON_HOST"])

    @property
    def run_id(self) -> str:
        return self.pointed().stem

    def run_dir(self, run_id: str | None = None) -> Path:
        return self.telemetry / "container_runs" / (run_id or self.run_id)

    def manifest(self) -> dict[str, Any]:
        return read(self.pointed())

    def job(self, run_id: str | None = None) -> dict[str, Any]:
        return read(self.run_dir(run_id) / "job.json")

    def result(self, run_id: str | None = None) -> dict[str, Any]:
        return read(self.run_dir(run_id) / "prep_result.json")

    def stage(self, name: str, run_id: str | None = None) -> dict[str, Any]:
        return read(self.run_dir(run_id) / "stages" / f"{name}.json")

    def log(self, run_id: str | None = None) -> str:
        return (self.telemetry / "logs" / f"{run_id or self.run_id}.log").read_text(
            errors="replace"
        )

    def prometheus(self, path: str) -> Any:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.ports['prometheus']}{path}", timeout=5
        ) as answer:
            return json.load(answer)

    def await_server(self) -> dict[str, Any]:
        """Wait until the running prep has started its server; returns the job record."""
        return wait_for(
            lambda: job if (job := self.job())["server"] or job["state"] != "running" else None,
            "the prep to start its server",
        )

    def diagnosis(self) -> str:
        """What a failed test wants to see: the container's log and the end of the run's."""
        text = docker("logs", "--tail", "20", self.container, check=False)
        logs = sorted(
            (self.telemetry / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime
        )
        tail = logs[-1].read_text(errors="replace").splitlines()[-30:] if logs else []
        return "\n".join(["", "--- container:", text.stdout, text.stderr, "--- run's log:", *tail])

    # --- life -------------------------------------------------------------------------------------

    def ensure_prepared(self) -> None:
        """METRICS_READY again, whatever an earlier test did to it; nothing where it stands."""
        look = self._look()
        if not (look["live"] and look["metrics_ready"] and self.job()["state"] == "done"):
            self.must_play("prep")

    def ensure_live(self) -> None:
        """A live run again; a prep is not waited for."""
        if not self._look()["live"]:
            self.must_play("start")

    def _look(self) -> dict[str, Any]:
        """As module sgl_manifest does, without Ansible's start of two seconds."""
        # Imported here: a bench has this module without pytest, which finds the collection.
        from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record
        from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
            DockerCli,
        )

        container = DockerCli(answer).container(self.container)
        return _run_record.describe(str(self.telemetry), container)

    def remove(self) -> None:
        docker("rm", "--force", self.container, check=False)
        shutil.rmtree(self.root, ignore_errors=True)


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder: mode, owner, group."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        found[str(path)] = (info.st_mode, info.st_uid, info.st_gid)
    return found


S = TypeVar("S", bound=Site)


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def ended(playbook: subprocess.Popen[str]) -> Play:
    """What a playbook that was begun came to, once it has ended."""
    try:
        output, error = playbook.communicate(timeout=1200)
    except BaseException:
        playbook.kill()
        raise
    return Play(playbook.returncode, output + error)


def ansible(program: str, *arguments: str, environment: dict[str, str] | None = None) -> Play:
    return ended(start_ansible(program, *arguments, environment=environment))


def start_ansible(
    program: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Begin a program of Ansible, in a session of its own, without waiting for its end."""
    return subprocess.Popen(
        [str(BIN / program), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(ROOT / "inventories" / "local"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
            **(environment or {}),
        },
    )


def module(name: str, arguments: dict[str, Any], *flags: str) -> dict[str, Any]:
    """What a module of the collection answers, by an ad-hoc call on this host."""
    done = ansible(
        "ansible",
        "localhost",
        "--module-name",
        f"slice_bench.sglang.{name}",
        "--args",
        json.dumps(arguments),
        *flags,
    )
    start = re.search(r"^localhost \| (\w+)!? => ", done.output, re.MULTILINE)
    assert start, done.output
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.output[start.end() :])[0]
    return {"failed": start[1] not in ("SUCCESS", "CHANGED"), **answer}


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
        check=False,
        errors="replace",
    )
    if check:
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = 180.0) -> T:
    """The condition's value once it is true; the limit is only there so that a defect does not hang
    the tests.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)


def lock_is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def port_is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def service_user() -> str | None:
    """Not root, where that can be: what belongs to the wrong user shows only then."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody").pw_name


def new_root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sglang-it-"))
    folder.chmod(0o755)
    return folder


def make_image(name: str = IMAGE, **options: Any) -> str:
    """The real image's id, made by the project's own module where it is missing or outdated; never
    removed.
    """
    arguments = {
        "name": name,
        "context": str(ROOT / "roles" / "image" / "files"),
        "flavour": "local",
        **options,
    }
    answer = module("sgl_image", arguments)
    assert not answer.get("failed"), answer["msg"]
    return str(answer["image"]["id"])


def ports_of(container: str) -> dict[str, int]:
    """The ports that no other installation of the tests has; 31000 and more for the server, as its
    default is 30000.
    """
    first = PORTS_FROM[container]
    return {"prometheus": first + 90, "node_exporter": first + 99, "sglang": first + 12090}


@contextmanager
def installation(kind: type[S], **options: Any) -> Iterator[S]:
    """An installation of which nothing is there yet, in a new folder; nothing of it stays."""
    base = new_root()
    made = kind(base / "sglang-observability", user=service_user(), **options)
    docker("rm", "--force", made.container, check=False)
    try:
        yield made
    finally:
        made.remove()
        shutil.rmtree(base, ignore_errors=True)
