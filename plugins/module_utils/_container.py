# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Creates, replaces and removes the container, so that a healthy one is gone only when its
replacement stands.

Containers use the host's network, so the old and the new one cannot run at once. The new one is
created beside the old one as <name>.next, which is also the lock of a replacement: Docker gives
the name to one run only, and a label names its process. The old one is stopped and becomes
<name>.replaced, the new one takes the name and is started. Once it is ready the old one is removed;
where it does not become ready, it is removed and the old one comes back. What a run that was killed
left of this is settled by the next one.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import _gpu_access as gpu_access
from . import _live_run as live_run
from . import _run_record as run_record
from ._contract import processes
from ._contract.labels import CONTAINER_LABEL
from ._contract.texts import one_line, read_json_text
from ._docker_cli import DockerAbsent, DockerCli, DockerError, InputRunner, beside, explain
from ._prometheus_api import FinalError, PrometheusClient, Readiness

# Of all that makes another container; of the process that creates it; of the container that ran
# before it.
CREATOR_LABEL = "org.slice-bench.container-creator"
REPLACES_LABEL = "org.slice-bench.container-replaces"
_POLL_S = 0.2
# A live run that was found has had its time to publish.
_PATIENCE_S = 20.0
# docker run's own: the daemon refused, or the program in the image cannot be started.
_REFUSED, _NOT_STARTED = 125, (126, 127)
# What a host lacks, by the words of Docker (moby), the NVIDIA Container Toolkit
# (nvidia-container-cli, its runtime, CDI) or runc for it, each of which stands for this alone. The
# first found counts.
LACKS = (
    (
        "could not select device driver",
        "This host's Docker cannot give a container its GPUs: install the NVIDIA Container "
        "Toolkit (the package nvidia-container-toolkit, from NVIDIA's repository), run "
        "`nvidia-ctk runtime configure --runtime=docker`, and restart Docker.",
    ),
    (
        "failed to discover GPU vendor from CDI",
        "Docker knows no GPU of this host: install the NVIDIA Container Toolkit if it is "
        "missing, run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root, and "
        "restart Docker.",
    ),
    (
        "unresolvable CDI devices",
        "The description of the GPUs that containers get (CDI) is missing or out of date: run "
        "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root, and start again.",
    ),
    (
        'error gathering device information while adding custom device "nvidia.com/gpu',
        "This host's Docker does not know CDI, which the NVIDIA Container Toolkit is set to: put "
        '{"features": {"cdi": true}} into /etc/docker/daemon.json (Docker 25 or later) and restart '
        "Docker, or run `nvidia-ctk config --set nvidia-container-runtime.mode=auto --in-place`.",
    ),
    (
        "failed to generate CDI spec",
        "The NVIDIA Container Toolkit cannot describe this host's GPUs: `nvidia-smi` says what"
        " is wrong with the driver; mend that, and start again.",
    ),
    (
        "invoking the NVIDIA Container Runtime Hook directly",
        "The NVIDIA Container Toolkit is set to a mode that Docker's requests for GPUs do not "
        "work with: run `nvidia-ctk config --set nvidia-container-runtime.mode=auto --in-"
        "place` and `nvidia-ctk runtime configure --runtime=docker --set-as-default` as root, "
        "and restart Docker.",
    ),
    (
        "requirement error",
        "The NVIDIA driver of this host is too old for the CUDA in the image: install the "
        "driver that the message names or a newer one, or build the image from an older base "
        "(sgl_image_base).",
    ),
    (
        "river/library version mismatch",
        "The NVIDIA driver was updated while the old one is still loaded: reboot the host, or "
        "end what uses the GPUs and reload the driver's modules.",
    ),
    (
        "load library failed: libnvidia-ml.so",
        "The NVIDIA driver's libraries are missing where Docker looks for them: install all of"
        " the driver's packages, of one version; a Docker that is a snap cannot see them "
        "(`snap remove docker` and install docker.io).",
    ),
    (
        "nvml error",
        "The NVIDIA driver does not work on this host: `nvidia-smi` and `dmesg | grep NVRM` "
        "say why; load it (`modprobe nvidia` as root), or reboot.",
    ),
    (
        "nvidia-container-cli: device error",
        "A GPU that the container is to have is not on this host: `nvidia-smi -L` names those "
        "that are; correct NVIDIA_VISIBLE_DEVICES (sgl_environment).",
    ),
    (
        "cgroup subsystem devices not found",
        "The NVIDIA Container Toolkit of this host is too old for its control groups (v2): "
        "install nvidia-container-toolkit 1.8 or later.",
    ),
    (
        "unable to find any existing device filters attached to the cgroup",
        "The NVIDIA Container Toolkit may not give devices to a container here: use the host's"
        " own Docker daemon, not a rootless one, and install a current nvidia-container-"
        "toolkit.",
    ),
    (
        "/run/nvidia-persistenced/socket",
        "nvidia-persistenced, whose socket containers get, does not run: start it (`systemctl "
        "restart nvidia-persistenced`), and start again.",
    ),
    (
        "failed to fulfil mount request",
        "A file that the container is to get is no longer on this host, such as a library of a"
        " driver that was replaced: run `nvidia-ctk cdi generate "
        "--output=/etc/cdi/nvidia.yaml` as root if it is NVIDIA's.",
    ),
    (
        "setting rlimit",
        "This host's Docker may not set a limit that high for a container: raise the daemon's "
        "own (LimitMEMLOCK and the like in its systemd unit), or set sgl_ulimits to what it "
        "may.",
    ),
    (
        "AppArmor enabled on system but",
        "Docker cannot load its AppArmor profile: install AppArmor's tools (`apt-get install "
        "apparmor`), and restart Docker.",
    ),
    (
        "apparmor failed to apply profile",
        "The kernel does not have Docker's AppArmor profile: `systemctl restart apparmor "
        "docker`, after `apt-get install apparmor` where its tools are missing.",
    ),
    (
        "when user namespaces are enabled",
        "This Docker remaps user ids (userns-remap), and allows no container the host's "
        "network: remove userns-remap from /etc/docker/daemon.json, and restart Docker.",
    ),
    (
        "error while creating mount source path",
        "Docker's daemon, which is root, cannot reach a folder that the container mounts: on "
        "NFS with root_squash let others pass (`chmod o+x` each folder above it), for a Docker"
        " that is a snap choose one in /home, or set sgl_root to a folder on a local disk.",
    ),
    (
        "bind source path does not exist",
        "Docker's daemon does not see a folder that the container mounts: it runs on another "
        "host or in a virtual machine (unset DOCKER_HOST, `docker context use default`), or "
        "may not enter it (NFS).",
    ),
    (
        "no space left on device",
        "The disk that Docker keeps images and containers on is full: free some (`docker "
        "system df` shows what takes it), and start again.",
    ),
    (
        "--shm-size",
        "Set sgl_shm_size to a size such as 32g.",
    ),
    (
        "unknown capability",
        "Set sgl_capabilities to Linux capabilities such as SYS_ADMIN.",
    ),
    (
        "--ulimit",
        "Set sgl_ulimits to limits as `docker run --ulimit` takes them.",
    ),
)

Container = dict[str, Any]


class ContainerError(Exception):
    """What was asked cannot be done; the message names the reason, the remedy and the container
    that stands.
    """


class _Taken(Exception):
    """Another run replaces the container at this moment."""


@dataclass(frozen=True)
class Definition:
    """All that makes a container. `digest` is of all that and of how it is made."""

    image: str
    user: str
    gpus: bool
    capabilities: list[str]
    security_opts: list[str]
    shm_size: str
    ulimits: list[str]
    stop_timeout: int
    volumes: list[str]
    environment: dict[str, str]
    digest: str

    def limits(self) -> list[str]:
        """Options of `docker create` and `docker run` but for mounts, network and names."""
        return [
            f"--user={self.user}",
            # A size has no effect on the host's /dev/shm, so what has one gets its own.
            *(
                ["--ipc=private", f"--shm-size={self.shm_size}"]
                if self.shm_size not in ("", "host")
                else ["--ipc=host"]
            ),
            *(f"--ulimit={limit}" for limit in self.ulimits),
            *(gpu_access.arguments() if self.gpus else []),
            "--cap-drop=ALL",
            *(f"--cap-add={name}" for name in self.capabilities),
            *(f"--security-opt={option}" for option in self.security_opts),
            f"--stop-timeout={self.stop_timeout}",
        ]

    def mounts(self) -> list[str]:
        """A source that is missing is an error: `--volume` would make it, as root."""
        return [f"--mount={_mount(volume)}" for volume in self.volumes]


def _mount(volume: str) -> str:
    source, _colon, target = volume.rpartition(":")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        ["type=bind", f"source={source}", f"target={target}"]
    )
    return line.getvalue()


def environment_file(environment: dict[str, str]) -> str:
    """As `--env-file` reads it. Raises ContainerError for what it cannot hold."""
    for name, value in environment.items():
        if "\n" in value or "\r" in value:
            raise ContainerError(
                f"the container's environment variable {name} holds a line break, which Docker's"
                " environment files cannot: give it without one (sgl_environment)"
            )
    return "".join(f"{name}={value}\n" for name, value in environment.items())


@dataclass
class Outcome:
    """What was done, and the container's run."""

    changed: bool
    run: dict[str, Any]
    before: Container | None = None
    after: Container | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Host:
    """How the host is asked, and where the container's records are."""

    run: InputRunner
    telemetry_root: str


class Stack:
    """The container of one name, with what a replacement has beside it."""

    def __init__(self, host: Host, name: str, stop_timeout: int, start_timeout: float) -> None:
        """Raises DockerError where there is no client."""
        self.name = name
        self.next, self.replaced = beside(name)
        self.warnings: list[str] = []
        self._host = host
        self._docker = DockerCli(lambda command: host.run(command, ""))
        self._stop_timeout = stop_timeout
        self._start_timeout = start_timeout

    # --- what callers ask -------------------------------------------------------------------------

    def started(
        self, wanted: Definition, outdated: str | None, server_args: list[str] | None
    ) -> Outcome:
        """The container as it is wanted, running and with a live run.

        `outdated` is the id of the container that the caller saw and may replace. With
        `server_args` the image is asked (`check`) before a container that runs is replaced.
        """
        allowed = {outdated}
        deadline = time.monotonic() + self._stop_timeout + 3 * self._start_timeout
        while True:
            allowed |= self._settle(deadline)
            current = self._look()[0]
            if fits(current, wanted):
                return self._taken_as_it_is(current)
            if current is not None and current["id"] not in allowed:
                raise ContainerError(
                    f"Container {self.name} was created by another run meanwhile, with another"
                    " image or other options: see whose it is, and run this again to replace it"
                )
            self.refuse_in_use(current)
            if current is not None and current["running"] and server_args is not None:
                self.check(wanted, server_args)
            try:
                return self._replace(wanted, current)
            except _Taken:
                # Another run was first: what it makes of it is seen in the next round.
                time.sleep(_POLL_S)

    def removed(self, force: bool = False) -> bool:
        """No container, and nothing that a replacement left; returns whether there was any. Raises
        ContainerError for one in which something runs, but with `force`.
        """
        found = self.may_be_removed(force)
        for container in found:
            if container["status"] not in ("created", "exited", "dead"):
                self._quietly("stop", "-t", str(self._stop_timeout), container["id"])
            self._quietly("rm", "--force", container["id"])
        return bool(found)

    def may_be_removed(self, force: bool = False) -> list[Container]:
        """The container and what a replacement left. Raises ContainerError as `removed` does."""
        found = [each for each in self._look() if each is not None]
        for container in found if not force else []:
            prep, used = self._work(container)
            if prep is not None:
                stage = prep["stage"] or "none yet"
                used = [f"{prep['prep_id']} (pid {prep['pid']}, stage {stage})", *used]
            if used:
                raise ContainerError(
                    f"Container {self.name} is not stopped, because in it runs"
                    f" {', and '.join(used)}. Wait for its end, or set sgl_stop_force to true to"
                    " end it all the same."
                )
        return found

    def left_something(self) -> bool:
        """Whether a replacement goes on, or was killed."""
        return any(self._look()[1:])

    def refuse_in_use(self, container: Container | None, what: str | None = None) -> None:
        """Raises ContainerError where a prep, a smoke or a benchmark's server would end with the
        container. Where the records cannot be read, the locks that are held show what runs.

        `what` says why it would end; by default it has to be recreated.
        """
        if container is None or not run_record.is_up(container):
            return
        what = what or (
            f"Container {self.name} must be recreated, as its image or its options changed"
        )
        prep, in_use = self._work(container)
        if prep is not None:
            raise ContainerError(
                f"{what}, and {prep['prep_id']} (pid {prep['pid']}) runs in it:"
                f" {one_line(' '.join(prep['arguments']), 160)}. Wait for it (docker exec"
                f" {self.name} sgl-admin status --watch), or end it (playbooks/stop.yml with"
                " sgl_stop_force=true), and run this again."
            )
        if in_use:
            raise ContainerError(
                f"{what}, and in it runs {', and '.join(in_use)}. Then run this again;"
                " sgl_keep_running leaves the container as it is."
            )

    def _work(self, container: Container) -> tuple[dict[str, Any] | None, list[str]]:
        """The prep that runs in a container by its record, and in words what else does."""
        found = run_record.describe(self._host.telemetry_root, container)
        return found["prep"], found["in_use"]

    def check(self, wanted: Definition, server_args: list[str]) -> None:
        """Ask the image whether its container could start so, and whether its server takes these
        arguments: in a container without network and mounts, which is thrown away. Raises
        ContainerError.
        """
        with memory_file(environment_file(wanted.environment)) as environment:
            command = [
                self._docker.binary, "run", "--rm", "--interactive", "--network=none",
                *wanted.limits(), f"--env-file={environment}", "--entrypoint=sgl-admin",
                wanted.image, "check", "--server-args",
            ]  # fmt: skip
            code, output, error = self._host.run(command, json.dumps(server_args))
        if code == 2 and "invalid choice: 'check'" in error:
            # An image of an earlier release; where it does not start, the old container comes back.
            return
        try:
            problems = read_json_text(output.strip().rpartition("\n")[2])["problems"]
        except (ValueError, KeyError, TypeError):
            problems = [self._refusal(code, error)]
        if problems:
            raise ContainerError(
                f"Container {self.name} would not work as asked for: "
                f"{'; '.join(map(str, problems))}. Nothing was changed."
            )

    @staticmethod
    def _refusal(code: int, error: str) -> str:
        if code == _REFUSED:
            return advise(error)
        said = one_line(error.strip().rpartition("\n")[2], 200)
        if code in _NOT_STARTED:
            return f"its image has no sgl-admin that can be started ({one_line(error, 200)})"
        return f"sgl-admin in its image ended with exit code {code}: {said}"

    # --- one replacement --------------------------------------------------------------------------

    def _replace(self, wanted: Definition, old: Container | None) -> Outcome:
        """Raises _Taken where another run replaces it, and ContainerError after the old one is
        back.
        """
        new = self._create(wanted, old)
        try:
            self._demand_tree()
        except (ContainerError, DockerError):
            self._quietly("rm", "--force", new)
            raise
        before = self._look()[0]
        if (before or {}).get("id") != (old or {}).get("id"):
            self._quietly("rm", "--force", new)
            raise _Taken
        try:
            self._switch(new, old)
            run = self._ready()
        except BaseException as error:
            raise ContainerError(
                self._undo(new, old, str(error) or "it was interrupted")
            ) from error
        if old is not None:
            self._quietly("rm", "--force", old["id"])
        return Outcome(True, run, old, self._look()[0], self.warnings)

    def _create(self, wanted: Definition, old: Container | None) -> str:
        """The new container beside the old one; returns its id."""
        replaces = old["id"] if old is not None and old["running"] else ""
        labels = {
            CONTAINER_LABEL: wanted.digest,
            CREATOR_LABEL: _creator(),
            REPLACES_LABEL: replaces,
        }
        with memory_file(environment_file(wanted.environment)) as environment:
            code, output, error = self._host.run(
                [
                    self._docker.binary, "create", f"--name={self.next}", "--network=host",
                    *wanted.limits(), *wanted.mounts(), f"--env-file={environment}",
                    *(f"--label={key}={value}" for key, value in labels.items()),
                    "--restart=unless-stopped", "--log-driver=json-file",
                    "--log-opt=max-size=10m", "--log-opt=max-file=3", wanted.image,
                ],
                "",
            )  # fmt: skip
        if code == 0:
            return output.strip().rpartition("\n")[2]
        if "is already in use by container" in error:
            raise _Taken
        raise ContainerError(
            f"the new container cannot be created: {advise(error)}"
            + (f" Container {self.name} was left as it is." if old is not None else "")
        )

    def _demand_tree(self) -> None:
        """Raises ContainerError where another container has the tree. Asked once the new one is
        there: of two runs with two names that make one at once, each sees the other's.
        """
        other = run_record.other_of_tree(self._docker, self._host.telemetry_root, self.name, None)
        if other is not None:
            raise ContainerError(
                f"{self._host.telemetry_root} is the telemetry folder of container"
                f" {other['name']} ({other['status']}), and a tree has one container: set"
                f" sgl_container to {other['name']}, or stop that container first"
                " (playbooks/stop.yml)"
            )

    def _switch(self, new: str, old: Container | None) -> None:
        if old is not None:
            self._docker.call("stop", "-t", str(self._stop_timeout), old["id"])
            self._docker.call("rename", old["id"], self.replaced)
        self._docker.call("rename", new, self.name)
        self._docker.call("start", new)

    def _ready(self) -> dict[str, Any]:
        """The live run of the container once its Prometheus answers. Raises RecordError and
        ContainerError.
        """
        run, _waited = live_run.wait(
            self._docker, self._host.telemetry_root, self.name, self._start_timeout
        )
        url = run["manifest"]["services"]["prometheus"]["url"]
        try:
            seen = Readiness(PrometheusClient(url)).wait(self._start_timeout)
        except FinalError as error:
            raise ContainerError(str(error)) from error
        if not seen.ready:
            raise ContainerError(str(seen.reason))
        return run

    def _undo(self, new: str, old: Container | None, why: str) -> str:
        """Put the old container back; returns what is to be said."""
        status = (self._docker.container(new) or {}).get("status", "absent")
        words, _line, log = why.partition(" The end of its log:\n")
        log = log or (live_run.log(self._docker, new) if status != "absent" else "")
        shown = f"\nThe end of its log:\n{log}" if log else ""
        # The log of one that runs may hold any error.
        error = _last_error(log) if status != "running" else ""
        reason = advise(words).rstrip(".") + (f" ({error})" if error else "")
        if old is None:
            if status != "running":
                self._quietly("rm", "--force", new)
            return f"{reason}.{shown}"
        back = self._restore(old, new)
        return f"the new container did not become ready, and {back}: {error or reason}.{shown}"

    def _restore(self, old: Container, new: str | None) -> str:
        """The old container under its name, running where it ran; returns what came of it.

        The new one goes last: it says what is going on to a run that finds this one killed.
        """
        current = self._look()[0]
        if new is not None and current is not None and current["id"] == new:
            self._quietly("stop", "-t", str(self._stop_timeout), new)
            self._quietly("rename", new, self.next)
        back = self._bring_back(old)
        if new is not None:
            self._quietly("rm", "--force", new)
        return back

    def _bring_back(self, old: Container) -> str:
        if self._look()[2] is not None:
            self._quietly("rename", old["id"], self.name)
        if self._docker.container(old["id"]) is None:
            return "the old one was removed by another run meanwhile"
        if not old["running"]:
            return f"the old one is back, which was {old['status']}"
        self._quietly("start", old["id"])
        try:
            live_run.wait(self._docker, self._host.telemetry_root, self.name, self._start_timeout)
        except (DockerError, run_record.RecordError) as error:
            return f"the old one is back but has no live run ({one_line(error, 100)})"
        return "the old one is back and runs"

    # --- what is there ----------------------------------------------------------------------------

    def _look(self) -> tuple[Container | None, Container | None, Container | None]:
        """The container, the one that is to replace it, and the one that it replaced."""
        found = self._docker.containers(self.name, self.next, self.replaced)
        for name in (self.next, self.replaced):
            container = found[name]
            if container is not None and CONTAINER_LABEL not in container["labels"]:
                raise ContainerError(
                    f"container {name} has the name that a replacement of {self.name} needs, and"
                    " another program made it: rename it, or set sgl_container to another name"
                )
        return found[self.name], found[self.next], found[self.replaced]

    def _settle(self, deadline: float) -> set[str]:
        """Wait for another run that replaces the container; where that one was killed, put things
        in order. Returns the ids of what it put back.
        """
        while True:
            current, candidate, replaced = self._look()
            creator = _first_label(CREATOR_LABEL, candidate, current)
            begun = current is not None and not current["running"] and _alive(creator)
            if candidate is None and replaced is None and not begun:
                return set()
            if not _alive(creator):
                return self._recover(current, candidate, replaced)
            if time.monotonic() > deadline:
                raise ContainerError(
                    f"another run (process {creator.split()[0]}) has been replacing container"
                    f" {self.name} for too long: end it, and run this again"
                )
            time.sleep(_POLL_S)

    def _recover(
        self,
        current: Container | None,
        candidate: Container | None,
        replaced: Container | None,
    ) -> set[str]:
        """After a run that was killed: a new container that is live stays, and its predecessor
        goes; else the predecessor comes back.
        """
        new = candidate
        if replaced is not None and current is not None:
            if self._lives(current):
                self._quietly("rm", "--force", replaced["id"])
                return {current["id"]}
            self.refuse_in_use(current)
            new = current
        old = replaced if replaced is not None else current
        if old is None:
            self._quietly("rm", "--force", candidate["id"] if candidate is not None else self.next)
            return set()
        # Without a new container, only its predecessor can say how it was.
        ran = old["running"] or new is None or old["id"] == new["labels"].get(REPLACES_LABEL)
        back = self._restore({**old, "running": ran}, new["id"] if new is not None else None)
        self.warnings.append(f"a run was killed while it replaced container {self.name}: {back}")
        return {old["id"]}

    def _lives(self, container: Container) -> bool:
        """Whether the container has a live run, or gets one in the time that a start may take."""
        if not container["running"]:
            return False
        try:
            self._ready()
        except (ContainerError, DockerError, run_record.RecordError):
            return False
        return True

    def _taken_as_it_is(self, current: Container | None) -> Outcome:
        """A container that is as it is wanted; one whose run has lost its record begins a new
        run.
        """
        if _alive(_first_label(CREATOR_LABEL, current)):
            # Another run has just started it.
            return Outcome(False, self._ready(), current, current, self.warnings)
        timeout_s = min(self._start_timeout, _PATIENCE_S)
        try:
            run, _waited = live_run.wait(
                self._docker, self._host.telemetry_root, self.name, timeout_s
            )
            return Outcome(False, run, current, current, self.warnings)
        except run_record.RecordError:
            self.refuse_in_use(
                current,
                f"The record of the run in container {self.name} is lost: a new run would end what"
                " runs in it",
            )
        self._demand_tree()
        self._docker.call("restart", "-t", str(self._stop_timeout), self.name)
        return Outcome(True, self._ready(), current, self._look()[0], self.warnings)

    def _quietly(self, *arguments: str) -> None:
        """A step that another run may have done already."""
        try:
            self._docker.call(*arguments)
        except DockerAbsent:
            pass
        except DockerError as error:
            self.warnings.append(f"docker {arguments[0]}: {one_line(error, 200)}")


def advise(error: str) -> str:
    """Docker's words for what it refuses, with the remedy."""
    words = error.strip().partition("\n\nUsage:")[0].partition("\n\nRun '")[0]
    remedy = next((text for known, text in LACKS if known in words), "")
    said = explain(_shortened(one_line(words, 10_000)))
    return f"{remedy} Docker says: {said}" if remedy else said


def _shortened(text: str) -> str:
    """The cause is at the end of what runc and its hooks say, and Docker's own words begin it."""
    return text if len(text) <= 240 else f"{text[:60]} ... {text[-175:]}"


def fits(container: Container | None, wanted: Definition) -> bool:
    """Whether it runs and was made so."""
    return (
        container is not None
        and bool(container["running"])
        and container["labels"].get(CONTAINER_LABEL) == wanted.digest
    )


def _creator() -> str:
    """The process that this is, for all time."""
    pid = os.getpid()
    return f"{pid} {processes.start_ticks(pid)} {processes.boot_id()}"


def _alive(creator: str) -> bool:
    words = creator.split()
    if len(words) != 3 or not words[0].isdigit() or words[2] != str(processes.boot_id()):
        return False
    return str(processes.start_ticks(int(words[0]))) == words[1]


def _first_label(label: str, *containers: Container | None) -> str:
    found = (each["labels"].get(label) for each in containers if each is not None)
    return str(next((value for value in found if value), ""))


def _last_error(log: str) -> str:
    """The line of a log that says most about an end."""
    lines: Iterator[str] = (line for line in reversed(log.splitlines()) if "error" in line.lower())
    return one_line(next(lines, ""), 200).rstrip(".")


@contextmanager
def memory_file(text: str) -> Iterator[str]:
    """A file in memory, for child processes of this one: a secret in it is never on a disk."""
    descriptor = os.memfd_create("environment")
    try:
        os.write(descriptor, text.encode("utf-8", "surrogateescape"))
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
