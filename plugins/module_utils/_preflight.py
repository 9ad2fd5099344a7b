# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The look at a host before anything changes on it: all that a run needs to know, and all that
would stop it, at once.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _docker_health as docker_health
from . import _file_systems as file_systems
from . import _gpu_access as gpu_access
from . import _gpu_health as gpu_health
from . import _host_tree as host_tree
from . import _model_files as model_files
from . import _ports as ports
from . import _run_record as run_record
from . import _safe_tree as safe_tree
from ._contract import places, services
from ._contract.texts import path_line
from ._docker_cli import DockerCli, DockerError, Runner

_GB = 10**9
# Below so many times what must be free, a disk fills within days.
_SOON = 2
# A prep writes thousands of files.
_LEAST_INODES = 10_000
# What shows which part of a folder's content can go.
_SHOWS = {"docker": " (`docker system df` shows what takes it)"}
# Sources of a model that need sgl_model_from.
_FROM = ("local", "controller", "hub")


class PreflightError(Exception):
    """This host cannot be inspected; the message names the reason and the remedy."""


@dataclass(frozen=True)
class Options:
    """What is asked, by the module's options of the same names."""

    ready_for: str
    user: str | None
    container: str
    image: str
    roots: dict[str, str | None]
    ownership_ignore: bool
    owner_uid: int | None
    owner_gid: int | None
    pointer_uid: int | None
    pointer_gid: int | None
    model: str | None
    model_source: str
    model_from: str | None
    model_revision: str
    model_endpoint: str | None
    model_verify: str
    tp: int
    bind_address: str
    ports: dict[str, int]
    space_gb: dict[str, float]
    gpus: bool = False
    visible_devices: str | None = None
    describe_system: bool = False
    image_cuda: str | None = None
    perf_conditions: str = "warn"
    image_source: str = "build"
    image_pull: str | None = None
    image_archive: str | None = None
    image_archive_from: str = ""
    server_args: Sequence[str] = ()
    allow_root: bool = False
    group_writable: bool = False

    @property
    def needs_gpus(self) -> bool:
        return self.gpus and self.ready_for not in ("tree", "stop")


@dataclass
class Findings(docker_health.Verdict):
    """What the inspection found; `lacking` is what a host before its first prep may lack,
    `problems` is wrong on any host.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)


def look(options: Options, run: Runner) -> Findings:
    """Everything in one go. Raises PreflightError where there is no such user."""
    found = Findings()
    user = service_user(options.user)
    devices, described = _devices(found, options, run)
    found.facts.update(
        user=user, acting=os.geteuid(), architecture=platform.machine(), devices=devices
    )
    spec = _tree_spec(options, user)
    docker = _look_at_docker(found, options, run)
    found.facts.update(docker.facts())
    if described is not None:
        _look_at_gpus(found, described, docker, options, run)
    found.facts["tree"] = {
        "paths": spec.roots(),
        "owner": {"uid": spec.uid, "gid": spec.gid},
        "incomplete": False,
        "foreign": [],
        "ignored": [],
    }
    found.facts["container_name"] = options.container
    found.facts["model"] = None
    found.facts["run"] = run_record.describe(spec.telemetry, docker.container, docker.unknown)
    elsewhere = _look_at_container(found, spec, options, docker)
    if options.ready_for == "smoke" and not found.facts["run"]["live"] and not elsewhere:
        found.problems.append(
            f"no run is live in container {options.container}: {found.facts['run']['reason']};"
            " prepare the host first (playbooks/prep.yml)"
        )
    if options.ready_for in ("tree", "start", "prep"):
        if os.geteuid() not in (0, user["uid"]):
            found.problems.append(
                f"modules run as uid {os.geteuid()} here, and the service user is {user['name']}"
                f" ({user['uid']}): set ansible_become to true, or sgl_user to the user who"
                " connects"
            )
        _look_at_root(found, spec, options)
        _look_at_tree(found, spec)
    if options.ready_for in ("start", "prep"):
        _look_at_image_source(found, options)
        if problem := ports.not_ours(options.bind_address):
            found.problems.append(
                f"sgl_bind_address is {problem}: set it to an address that `ip address` shows"
                " there, or to 127.0.0.1"
            )
        # A container that Docker cannot describe may hold its ports. Without a daemon there is one
        # only where a run is recorded.
        absent = not docker.answers and found.facts["run"]["run_id"] is None
        if (docker.unknown is None or absent) and not elsewhere:
            found.problems.extend(_taken_ports(docker.container, options, docker.cli))
        _look_at_daemon(found, docker, spec)
        _look_at_space(found, docker, options)
    if options.ready_for == "prep":
        _look_at_model(found, spec, options)
    if options.describe_system:
        found.facts["system"] = _description(run, found.facts["run"])
    return found


def _description(run: Runner, record: dict[str, Any]) -> dict[str, Any]:
    # Which a prep never asks for, and would compile on each host.
    from . import _system_description as system_description

    return system_description.describe(run, record)


def _look_at_root(found: Findings, spec: host_tree.Spec, options: Options) -> None:
    """The container runs as the tree's owner: as root only where that was asked for."""
    if spec.uid != 0:
        return
    if options.allow_root:
        found.warnings.append(
            "the container runs as root, as sgl_allow_root allows: the tree belongs to root, and no"
            " other user could write there. What breaks out of the server is root on this host; set"
            " sgl_user to an ordinary user where others have accounts"
        )
        return
    found.problems.append(
        "the service user is root, so the container and the server in it would run as root: set"
        " sgl_user to an ordinary user, or sgl_allow_root to true on a host where you have the"
        " only account"
    )


def service_user(name: str | None) -> dict[str, Any]:
    """The passwd entry of the service user. Raises PreflightError where there is none."""
    uid = os.geteuid()
    if name is None and uid == 0:
        name = os.environ.get("SUDO_USER")
        uid = calling_uid()
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(uid)
    except KeyError as error:
        raise PreflightError(
            f"no user {name or uid} on this host: create it, or set sgl_user to one that exists"
        ) from error
    return {"name": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid, "home": entry.pw_dir}


def calling_uid(proc: str = "/proc") -> int:
    """The uid of the user who became root, by su or doas as well as by sudo; else root's own.

    It is the real uid of the nearest process above this one that is not root's.
    """
    pid = os.getpid()
    while pid > 0:
        try:
            with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as stream:
                fields = dict(line.partition(":")[::2] for line in stream)
            uid, pid = int(fields["Uid"].split()[0]), int(fields["PPid"])
        except (OSError, LookupError, ValueError):
            break
        if uid != 0:
            return uid
    return 0


def _devices(
    found: Findings, options: Options, run: Runner
) -> tuple[dict[str, Any], gpu_health.Smi | None]:
    """GPUs as nvidia-smi names them, and all that it reports of them where they are to be used."""
    cpu = {"count": 1, "name": "cpu", "cuda": False, "health": None}
    tool = shutil.which("nvidia-smi")
    if tool is None:
        if options.needs_gpus:
            found.problems.append(_no_driver("there is no nvidia-smi on the PATH"))
        return cpu, None
    unknown = None
    if options.needs_gpus:
        try:
            smi, warnings = gpu_health.ask(tool, run)
        except gpu_health.SmiError as refusal:
            unknown = (
                "the GPUs' health is unknown, as `nvidia-smi -q -x` does not describe them"
                f" ({refusal}): look at `nvidia-smi -q`"
            )
        else:
            found.warnings.extend(warnings)
            names = gpu_health.names(smi, tool, run)
            return {"count": len(names), "name": names[0], "cuda": True, "health": None}, smi
    elif not os.path.exists("/dev/nvidiactl"):
        # Nothing here needs the driver, and no program has used it since the host was started.
        return cpu, None
    code, output, error = run([tool, "--query-gpu=name", "--format=csv,noheader"])
    names = gpu_health.names_of(code, output)
    if not names:
        words = gpu_health.smi_refusal(code, output, error)
        if options.needs_gpus:
            found.problems.append(_no_driver(f"nvidia-smi names no GPU: {words}"))
        else:
            # What needs no GPU goes on without.
            told = found.warnings if options.ready_for in ("tree", "stop") else found.problems
            told.append(f"nvidia-smi names no GPU: {words}")
    elif unknown:
        found.warnings.append(unknown)
    return {
        "count": len(names),
        "name": names[0] if names else "unknown",
        "cuda": True,
        "health": None,
    }, None


def _no_driver(reason: str) -> str:
    """Going on would recreate the container without its GPUs, and skip what it is for."""
    return (
        f"the image is one for GPUs, and this host has no working NVIDIA driver ({reason}): install"
        " or load it (modprobe nvidia), set sgl_flavour to local, or sgl_gpus to false for a host"
        " that runs without its GPUs"
    )


def _look_at_docker(found: Findings, options: Options, run: Runner) -> docker_health.Docker:
    """The container, the image, and where one of them is missing the daemon."""
    docker = docker_health.Docker()
    if options.ready_for == "tree":
        docker.errors.append("not asked")
        return docker
    docker.look(run, options.container, options.image)
    neither = docker.container is None and docker.image is None
    if docker.answers and not docker.settled:
        if neither or options.ready_for in ("nothing", "start", "prep"):
            docker.version = docker_health.version(docker.info)
    found.lacking.extend(docker.errors)
    return docker


def _look_at_gpus(
    found: Findings,
    smi: gpu_health.Smi,
    docker: docker_health.Docker,
    options: Options,
    run: Runner,
) -> None:
    """Their health, and whether the container and the image can use them."""
    container, image = docker.container, docker.image
    health = gpu_health.describe(smi, run, container["id"] if container else None)
    found.facts["devices"]["health"] = health
    cuda, requires = options.image_cuda, ""
    # Where the image's container runs, it has shown that the driver serves it.
    served = (
        container is not None
        and container["running"]
        and image is not None
        and container["image_id"] == image["id"]
    )
    if docker.cli is not None and docker.answers and options.ready_for != "smoke" and not served:
        if lacking := gpu_health.toolkit_problem(docker.cli):
            found.lacking.append(lacking)
        elif closed := gpu_access.problem():
            found.lacking.append(closed)
        if docker.inspected is not None:
            # Which drivers it makes do with, only the image itself can say.
            its, requires = gpu_health.image_cuda(docker.inspected)
            cuda = cuda or its
    verdict = gpu_health.judge(
        health,
        gpu_health.Use(
            options.tp,
            options.visible_devices,
            cuda,
            requires,
            # What only looks, stops or smokes makes no measurement.
            options.perf_conditions == "refuse" and options.ready_for in ("start", "prep"),
        ),
    )
    found.problems.extend(verdict.problems)
    found.warnings.extend(verdict.warnings)


def _look_at_daemon(found: Findings, docker: docker_health.Docker, spec: host_tree.Spec) -> None:
    """What keeps a daemon from running the container that is about to be made."""
    if not docker.answers or docker.settled:
        return
    folders = list(spec.roots().values())
    if not (info := docker.info):
        found.warnings.append(
            "`docker info` does not describe the daemon: whether it is rootless, and how it stores"
            " images, was not checked; look at `docker info`"
        )
    verdict = docker_health.judge(info, folders)
    found.problems.extend(verdict.problems)
    found.warnings.extend(verdict.warnings)
    if found.facts["devices"]["health"] and (warning := gpu_access.reload_warning(info)):
        found.warnings.append(warning)
    for folder, reason, certain in file_systems.closed_to_root(folders, file_systems.mounts()):
        message = (
            f"Docker's daemon, which is root, {'cannot' if certain else 'may not'} enter {folder},"
            f" which {reason}: set sgl_root to a folder on a local disk, or `chmod o+x` that one"
        )
        (found.problems if certain else found.warnings).append(message)


def _look_at_container(
    found: Findings, spec: host_tree.Spec, options: Options, docker: docker_health.Docker
) -> bool:
    """Whether it is the tree's, and not paused. Returns whether the tree's run is live in another
    one.
    """
    if options.ready_for not in ("stop", "smoke", "start", "prep"):
        return False
    container, cli, other = docker.container, docker.cli, None
    if cli is not None and docker.answers:
        # What Docker does not say is a problem of its own.
        with contextlib.suppress(DockerError):
            run_record.note_elsewhere(found.facts["run"], container, cli.container)
        with contextlib.suppress(DockerError):
            other = run_record.other_of_tree(cli, spec.telemetry, options.container, container)
    live = found.facts["run"].get("elsewhere")
    if live is not None:
        found.problems.append(
            f"sgl_container is {options.container}, but the run of {path_line(spec.telemetry)} is"
            f" live in container {live}: set sgl_container to {live}, or stop that container first"
        )
    elif other is not None and (run_record.is_up(other) or options.ready_for != "stop"):
        found.problems.append(
            f"sgl_container is {options.container}, but {path_line(spec.telemetry)} is the"
            f" telemetry folder of container {other['name']} ({other['status']}), and a tree has"
            f" one container: set sgl_container to {other['name']}, or stop that container first"
            " (playbooks/stop.yml)"
        )
        return run_record.is_up(other)
    elif container is not None and container["status"] == "paused" and options.ready_for != "stop":
        found.problems.append(
            f"container {options.container} is paused: run `docker unpause {options.container}`, or"
            " stop it (playbooks/stop.yml)"
        )
    return live is not None


def _tree_spec(options: Options, user: dict[str, Any]) -> host_tree.Spec:
    """The tree's folders: each where it is said to be, or else under the root, which is in the
    service user's home.
    """
    root = options.roots["root"] or os.path.join(user["home"], places.ROOT_NAME)

    paths: dict[str, Any] = {"root": host_tree.clean_path(root)}
    for name in host_tree.ROOTS[1:]:
        paths[name] = host_tree.clean_path(options.roots[name] or os.path.join(root, name))
    return host_tree.Spec(
        **paths,
        uid=user["uid"] if options.owner_uid is None else options.owner_uid,
        gid=user["gid"] if options.owner_gid is None else options.owner_gid,
        pointer_uid=options.pointer_uid,
        pointer_gid=options.pointer_gid,
        group_writable=options.group_writable,
        ownership_ignore=options.ownership_ignore,
    )


def _look_at_tree(found: Findings, spec: host_tree.Spec) -> None:
    try:
        plan = host_tree.inspect(spec)
    except host_tree.HostTreeError as error:
        found.problems.append(str(error))
        if isinstance(error, host_tree.ForeignOwner):
            found.facts["tree"]["foreign"] = error.paths
        return
    found.warnings.extend(plan.warnings)
    found.facts["tree"]["incomplete"] = plan.changed
    found.facts["tree"]["ignored"] = plan.foreign_paths()


def _look_at_model(found: Findings, spec: host_tree.Spec, options: Options) -> None:
    if not options.model:
        found.problems.append(
            "no model is named: set sgl_model to its folder under the models folder, such as"
            " Qwen/Qwen3-8B"
        )
        return
    path = os.path.join(spec.models, options.model)
    if options.model_source in _FROM and not options.model_from:
        found.problems.append(
            f"sgl_model_source is {options.model_source}, but no folder or repository"
            " is named: set sgl_model_from"
        )
        return
    devices = found.facts["devices"]
    fitting = {
        "tp": options.tp,
        "device_count": devices["count"],
        "device_name": devices["name"],
        "server_args": options.server_args,
    }
    try:
        model = _model_that_is_there(
            path, spec, {**fitting, "warn": found.warnings.append}, options
        )
        found.facts["model"] = {**model, "stage": _to_be_staged(model, spec, fitting, options)}
    except model_files.ModelError as error:
        found.problems.append(str(error))


def _model_that_is_there(
    path: str, spec: host_tree.Spec, fitting: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Its description, and whether its bytes are known to be those that were recorded. Raises
    ModelError for what nothing will mend.
    """
    unread = {"recorded": False, "verified": False}
    try:
        model = model_files.inspect_model(
            path, **fitting, root=spec.models, uid=spec.uid, gid=spec.gid
        )
        # No number depends on the tiny model's bytes, and to look at them costs each run.
        looked_at = options.model_source != "tiny" and model_files.may_have_digests(path)
        known = _known_of(path, options) if looked_at else unread
    except model_files.ModelMissing:
        if options.model_source == "present":
            raise
        return {**model_files.missing_model(path), **unread}
    except model_files.ModelError:
        if options.model_source not in _FROM:
            raise
        # It is brought again.
        return {**model_files.missing_model(path), "missing": False, **unread}
    return {**model, **known}


def _known_of(path: str, options: Options) -> dict[str, bool]:
    """Whether a model's bytes are known to be those that were recorded. Raises ModelError for
    damage that nothing will mend.
    """
    # Compiling it on the host takes longer than most of what else is looked at.
    from . import _model_digests as model_digests

    read = model_digests.quick(path, must_be_sound=options.model_source not in _FROM)
    return {"recorded": read.recorded, "verified": read.verified}


def _to_be_staged(
    model: dict[str, Any], spec: host_tree.Spec, fitting: dict[str, Any], options: Options
) -> bool:
    """Whether sgl_model_stage may have something to bring or to read. Raises ModelError for a
    source that is no model.
    """
    if options.model_source == "local":
        source = os.path.abspath(os.path.expanduser(options.model_from or ""))
        try:
            # The model's files are read with these rights when they are brought.
            with safe_tree.acting_as(spec.uid, spec.gid):
                model_files.inspect_model(source, **fitting)
        except model_files.ModelMissing:
            # What was staged from it before serves without it.
            if model["missing"] or not model["verified"]:
                raise model_files.ModelError(
                    f"the source {path_line(source)} is not an existing folder: "
                    "set sgl_model_from to one that holds config.json"
                ) from None
    if options.model_source in _FROM:
        return True
    return options.model_source == "present" and (
        options.model_verify == "full" or (model["recorded"] and not model["verified"])
    )


def _look_at_image_source(found: Findings, options: Options) -> None:
    """An image that comes from elsewhere needs its source, before anything else changes."""
    if options.image_source == "pull" and not options.image_pull:
        found.problems.append(
            "sgl_image_source is pull, but no image is named: set sgl_image_pull to its"
            " reference in a registry"
        )
    if options.image_source == "load" and not options.image_archive:
        found.problems.append(
            "sgl_image_source is load, but no archive is named: set sgl_image_archive to a file"
            " that docker save wrote"
        )
    elif (
        options.image_source == "load"
        and not options.image_archive_from
        and found.facts["docker"]["available"]
        and found.facts["image"] is None
    ):
        # Once its image is there, the archive may go.
        if not found.facts["run"]["live"] and not os.path.isfile(str(options.image_archive)):
            found.lacking.append(
                f"there is no archive {options.image_archive} on this host: put it there, or set"
                " sgl_image_archive to where it is"
            )


def _taken_ports(
    container: dict[str, Any] | None, options: Options, cli: DockerCli | None = None
) -> Iterator[str]:
    """A running container holds its own ports, and gives them up where it is replaced; sgl-admin
    sees to the server's when it starts one. `cli` asks Docker for another container that has a
    taken port.
    """
    own = {}
    if container is not None and run_record.is_up(container):
        if not container["ports"]:
            # One that does not say which ports it has: it may hold them all.
            return
        at = container["bind_address"] or services.LOOPBACK
        own = {
            port: services.LOOPBACK if name == services.SGLANG.name else at
            for name, port in container["ports"].items()
        }
    for name, port in options.ports.items():
        if port < ports.first_unprivileged():
            yield (
                f"port {port}, which {name} needs, is one for root, and the container's programs"
                f" have no such right: set sgl_{name}_port to one from"
                f" {ports.first_unprivileged()} on"
            )
            continue
        if name == "sglang" and options.ready_for != "prep":
            continue
        # The SGLang server of a prep always listens on loopback.
        address = services.LOOPBACK if name == "sglang" else options.bind_address
        if own.get(port) == address:
            continue
        who = (
            ports.taken_beside(address, port, own[port])
            if port in own
            else ports.taken(address, port)
        )
        if who is None:
            continue
        if cli is not None and (other := _container_at(cli, name, port)) is not None:
            yield (
                f"port {port} on {address}, which {name} needs, is taken by {who}, and container"
                f" {other} of this collection is set to have it: set sgl_container to {other}, stop"
                f" that container, or set sgl_{name}_port to another port"
            )
        else:
            yield (
                f"port {port} on {address}, which {name} needs, is taken by {who}: stop it, or set"
                f" sgl_{name}_port to another port"
            )


def _container_at(cli: DockerCli, name: str, port: int) -> str | None:
    """Another container of this collection that is set to have the port of this service."""
    variables = {known.name: known.variable for known in services.PORTS}
    try:
        return cli.holder_of(variables.get(name, name), str(port))
    except DockerError:
        return None


def _look_at_space(found: Findings, docker: docker_health.Docker, options: Options) -> None:
    """What is about to be written needs room; on a host where all is done nothing is."""
    run, paths = found.facts["run"], found.facts["tree"]["paths"]
    wanted: list[tuple[str, str]] = []
    if not (run["live"] and run["metrics_ready"]):
        wanted += [("telemetry", paths["telemetry"]), ("profiles", paths["profiles"])]
    if docker.lacks_image:
        folder = docker_health.image_folder(docker.info)
        if folder is not None:
            wanted.append(("docker", folder))
    refused: set[int] = set()
    for name, path in wanted:
        try:
            room = file_systems.room(path)
        except OSError as error:
            found.warnings.append(
                f"what is free in {path_line(path)} is unknown ({error.strerror}): look at the file"
                " system that holds it (`df`, `mount`)"
            )
            continue
        if name == "profiles" and (reason := file_systems.without_locks(path)):
            found.problems.append(reason)
        if (reason := _unwritable(path, room)) and room.device not in refused:
            refused.add(room.device)
            found.problems.append(reason)
        _look_at_room(found, options, name, path, room)


def _look_at_room(
    found: Findings, options: Options, name: str, path: str, room: file_systems.Room
) -> None:
    """What is free there must be enough, and is worth a warning where it soon is not."""
    need = options.space_gb.get(name, 0.0) * _GB
    if room.free < need:
        smaller = ""
        if name == "docker" and options.gpus:
            # Upstream's docker/Dockerfile: its target `runtime` has CUDA's compilers too.
            smaller = (
                ", set sgl_image_base to a release's smaller image"
                " (lmsysorg/sglang:v<release>-runtime)"
            )
        found.problems.append(
            f"{path} has {room.free / _GB:.1f} GB free, and {need / _GB:.1f} GB are wanted"
            f" there before anything is written: free some{_SHOWS.get(name, '')}{smaller}, or"
            f" set sgl_space_gb: {{{name}: {room.free / _GB:.1f}}} to go on with less"
        )
    elif name != "docker" and room.free < _SOON * need:
        found.warnings.append(
            f"{path_line(path)} has {room.free / _GB:.1f} GB free and fills soon:"
            " playbooks/prune.yml removes old runs and caches"
        )


def _unwritable(path: str, room: file_systems.Room) -> str | None:
    """Why nothing, or too few files, can be written there whatever is free."""
    if room.read_only:
        return (
            f"{path_line(path)} is on a file system that is mounted read-only: remount it (an error"
            " of the disk may have made it so; `dmesg` says), or set sgl_root elsewhere"
        )
    if room.inodes is not None and room.inodes < _LEAST_INODES:
        return (
            f"{path_line(path)} is on a file system with {room.inodes} inodes left (`df -i`), and a"
            f" prep makes up to {_LEAST_INODES} files: remove some there, or set sgl_root elsewhere"
        )
    return None
