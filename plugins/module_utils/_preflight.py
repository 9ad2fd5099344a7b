# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The look at a host before anything changes on it: all that a run needs to know, and all that
would stop it, at once.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_health as gpu_health
from ansible_collections.slice_bench.sglang.plugins.module_utils import _host_tree as host_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils import _model_files as model_files
from ansible_collections.slice_bench.sglang.plugins.module_utils import _ports as ports
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places, services
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.texts import (
    one_line,
    path_line,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerCli,
    DockerError,
    Runner,
)

_GB = 10**9
# Sources of a model that need to be told where from.
_FROM = ("local", "controller", "hub")


class PreflightError(Exception):
    """Nothing can be told of this host; the message names the reason and the remedy."""


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
    image_cuda: str | None = None
    image_source: str = "build"
    image_pull: str | None = None
    image_archive: str | None = None

    @property
    def needs_gpus(self) -> bool:
        return self.gpus and self.ready_for not in ("tree", "stop")


@dataclass
class Findings:
    """What the look found; `lacking` is what a host that nobody prepared yet may well lack,
    `problems` is wrong on any host.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def look(options: Options, run: Runner) -> Findings:
    """Everything in one go. Raises PreflightError where there is no such user."""
    found = Findings()
    user = service_user(options.user)
    devices, described = _devices(found, options, run)
    found.facts.update(
        user=user, acting=os.geteuid(), architecture=platform.machine(), devices=devices
    )
    spec = _tree_spec(options, user)
    found.facts.update(
        _docker(found, options, run) if options.ready_for != "tree" else _docker_not_asked()
    )
    if described is not None:
        _look_at_gpus(found, described, options, run)
    found.facts["tree"] = {
        "paths": spec.roots(),
        "owner": {"uid": spec.uid, "gid": spec.gid},
        "incomplete": False,
        "foreign": [],
        "ignored": [],
    }
    found.facts["container_name"] = options.container
    found.facts["model"] = None
    found.facts["run"] = run_record.describe(spec.telemetry, found.facts["container"])
    elsewhere = _look_at_container(found, spec, options, run)
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
        _look_at_tree(found, spec)
    if options.ready_for in ("start", "prep"):
        _look_at_image_source(found, options)
        if not elsewhere:
            found.problems.extend(_taken_ports(found.facts["container"], options, run))
        found.problems.extend(_short_of_space(found.facts, options, run))
    if options.ready_for == "prep":
        _look_at_model(found, spec, options)
    return found


def service_user(name: str | None) -> dict[str, Any]:
    """The passwd entry of the service user. Raises PreflightError where there is none."""
    if name is None and os.geteuid() == 0:
        name = os.environ.get("SUDO_USER")
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError as error:
        raise PreflightError(
            f"no user {name or os.geteuid()} on this host: create it, or set sgl_user to one that"
            " exists"
        ) from error
    return {"name": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid, "home": entry.pw_dir}


def _devices(
    found: Findings, options: Options, run: Runner
) -> tuple[dict[str, Any], gpu_health.Smi | None]:
    """GPUs as nvidia-smi names them, and all that it tells of them where they are to be used."""
    tool = shutil.which("nvidia-smi")
    # Without its device file there is no driver, and the tool need not be asked.
    if tool is None or not os.path.exists("/dev/nvidiactl"):
        if options.needs_gpus:
            lack = "/dev/nvidiactl is missing" if tool else "there is no nvidia-smi on the PATH"
            # Going on would make the container anew without its GPUs, and skip what it is for.
            found.problems.append(
                f"the image is one for GPUs, and this host has no working NVIDIA driver ({lack}):"
                " install or load it (modprobe nvidia), set sgl_flavour to local, or sgl_gpus to"
                " false for a host that is to go without"
            )
        return {"count": 1, "name": "cpu", "cuda": False, "health": None}, None
    unknown = None
    if options.needs_gpus:
        try:
            smi, warnings = gpu_health.ask(tool, run)
        except gpu_health.SmiError as refusal:
            unknown = (
                "the GPUs' health is not known, as `nvidia-smi -q -x` does not describe them"
                f" ({refusal}): look at `nvidia-smi -q`"
            )
        else:
            found.warnings.extend(warnings)
            return {
                "count": len(smi.gpus),
                "name": smi.gpus[0].name,
                "cuda": True,
                "health": None,
            }, smi
    code, output, error = run([tool, "--query-gpu=name", "--format=csv,noheader"])
    names = [one_line(line) for line in output.splitlines() if line.strip()]
    if code or not names:
        # What needs no GPU goes on without.
        told = found.warnings if options.ready_for in ("tree", "stop") else found.problems
        words = one_line(error, 400) or one_line(output, 400) or f"it ended with exit code {code}"
        told.append(
            f"nvidia-smi names no GPU: {words}; mend the driver first (dmesg tells of Xid errors)"
        )
    elif unknown:
        found.warnings.append(unknown)
    return {
        "count": len(names),
        "name": names[0] if names else "unknown",
        "cuda": True,
        "health": None,
    }, None


def _look_at_gpus(found: Findings, smi: gpu_health.Smi, options: Options, run: Runner) -> None:
    """Their health, and whether the container and the image can use them."""
    container, image = found.facts["container"], found.facts["image"]
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
    if found.facts["docker"]["available"] and options.ready_for != "smoke" and not served:
        docker = DockerCli(run)
        if lacking := gpu_health.toolkit_problem(run, docker.binary):
            found.lacking.append(lacking)
        if image is not None:
            # Which drivers it makes do with, only the image itself can say.
            its, requires = gpu_health.image_cuda(docker.inspect("image", options.image) or {})
            cuda = cuda or its
    verdict = gpu_health.judge(
        health, gpu_health.Use(options.tp, options.visible_devices, cuda, requires)
    )
    found.problems.extend(verdict.problems)
    found.warnings.extend(verdict.warnings)


def _docker_not_asked() -> dict[str, Any]:
    return {
        "docker": {"available": False, "version": None, "problem": "not asked"},
        "container": None,
        "image": None,
    }


def _docker(found: Findings, options: Options, run: Runner) -> dict[str, Any]:
    """Facts `docker`, `container` and `image`."""
    docker: dict[str, Any] = {"available": False, "version": None, "problem": None}
    container = image = None
    try:
        cli = DockerCli(run)
        container, image = cli.container(options.container), cli.image(options.image)
        # A container or an image is answer enough that the daemon is there: its version is asked
        # only for the others.
        docker.update(available=True, version=None if container or image else cli.version())
    except DockerError as error:
        docker["problem"] = str(error)
        found.lacking.append(str(error))
    if importlib.util.find_spec("requests") is None:
        found.lacking.append(
            "this host's Python lacks the requests package, which Ansible's Docker modules need:"
            " `apt-get install python3-requests`"
        )
    return {"docker": docker, "container": container, "image": image}


def _container(name: str, run: Runner) -> dict[str, Any] | None:
    """A container by its name or id; None where Docker knows none, or cannot be asked."""
    try:
        return DockerCli(run).container(name)
    except DockerError:
        return None


def _look_at_container(
    found: Findings, spec: host_tree.Spec, options: Options, run: Runner
) -> bool:
    """Whether it is the tree's, and not paused. Returns whether the tree's run is live in another
    one.
    """
    if options.ready_for not in ("stop", "smoke", "start", "prep"):
        return False
    container = found.facts["container"]
    if found.facts["docker"]["available"]:
        run_record.note_elsewhere(found.facts["run"], container, lambda name: _container(name, run))
    if other := found.facts["run"].get("elsewhere"):
        found.problems.append(
            f"sgl_container is {options.container}, but the run of {path_line(spec.telemetry)} is"
            f" live in container {other}: set sgl_container to {other}, or stop that container"
            " first"
        )
    elif container is not None and container["status"] == "paused" and options.ready_for != "stop":
        found.problems.append(
            f"container {options.container} is paused: run `docker unpause {options.container}`, or"
            " stop it (playbooks/stop.yml)"
        )
    return bool(other)


def _tree_spec(options: Options, user: dict[str, Any]) -> host_tree.Spec:
    """The tree's folders: each where it is said to be, or else under the root, which is in the
    service user's home.
    """
    root = options.roots["root"] or os.path.join(user["home"], places.ROOT_NAME)

    def folder(name: str) -> str:
        return host_tree.clean_path(options.roots[name] or os.path.join(root, name))

    return host_tree.Spec(
        root=host_tree.clean_path(root),
        telemetry=folder("telemetry"),
        profiles=folder("profiles"),
        models=folder("models"),
        huggingface=folder("huggingface"),
        uid=user["uid"] if options.owner_uid is None else options.owner_uid,
        gid=user["gid"] if options.owner_gid is None else options.owner_gid,
        pointer_uid=options.pointer_uid,
        pointer_gid=options.pointer_gid,
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
            f"sgl_model_source is {options.model_source}, and nothing says where from: set"
            " sgl_model_from"
        )
        return
    devices = found.facts["devices"]
    fitting = {"tp": options.tp, "device_count": devices["count"], "device_name": devices["name"]}
    try:
        model = _model_that_is_there(path, spec, fitting, options)
        found.facts["model"] = {**model, "stage": _to_be_staged(model, fitting, options)}
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
        known = _known_of(path, options) if model_files.may_have_digests(path) else unread
    except model_files.ModelMissing:
        if options.model_source == "present":
            raise
        return {**model_files.missing_model(path), **unread}
    except model_files.ModelError:
        if options.model_source not in _FROM:
            raise
        # It is brought anew.
        return {**model_files.missing_model(path), "missing": False, **unread}
    return {**model, **known}


def _known_of(path: str, options: Options) -> dict[str, bool]:
    """Whether a model's bytes are known to be those that were recorded. Raises ModelError for
    damage that nothing will mend.
    """
    # Compiling it on the host takes longer than most of what else is looked at.
    from ansible_collections.slice_bench.sglang.plugins.module_utils import (
        _model_digests as model_digests,
    )

    read = (
        model_digests.quick(path)
        if options.model_source in _FROM
        else model_digests.quick_and_sound(path)
    )
    return {"recorded": read.recorded, "verified": read.verified}


def _to_be_staged(model: dict[str, Any], fitting: dict[str, Any], options: Options) -> bool:
    """Whether sgl_model_stage may have something to bring or to read. Raises ModelError for a
    source that is no model.
    """
    if options.model_source == "local":
        source = os.path.abspath(os.path.expanduser(options.model_from or ""))
        try:
            model_files.inspect_model(source, **fitting)
        except model_files.ModelMissing:
            # What was staged from it before serves without it.
            if model["missing"] or not model["verified"]:
                raise model_files.ModelError(
                    f"the source {path_line(source)} is not a folder that is there: "
                    "set sgl_model_from to one that holds config.json"
                ) from None
    if options.model_source in _FROM:
        return True
    return options.model_source == "present" and (
        options.model_verify == "full" or (model["recorded"] and not model["verified"])
    )


def _look_at_image_source(found: Findings, options: Options) -> None:
    """An image that comes from elsewhere needs to be told from where, before anything else
    changes.
    """
    if options.image_source == "pull" and not options.image_pull:
        found.problems.append(
            "sgl_image_source is pull, and nothing says what: set sgl_image_pull to the image's"
            " reference in a registry"
        )
    if options.image_source == "load" and not options.image_archive:
        found.problems.append(
            "sgl_image_source is load, and nothing says from what: set sgl_image_archive to a file"
            " that docker save wrote"
        )
    elif (
        options.image_source == "load"
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
    container: dict[str, Any] | None, options: Options, run: Runner | None = None
) -> Iterator[str]:
    """A running container holds its ports itself; sgl-admin sees to the server's when it starts
    one. `run` asks Docker for another container that has a taken port.
    """
    if container is not None and run_record.is_up(container):
        return
    for name, port in options.ports.items():
        if name == "sglang" and options.ready_for != "prep":
            continue
        # The SGLang server of a prep always listens on loopback.
        address = "127.0.0.1" if name == "sglang" else options.bind_address
        if (who := ports.taken(address, port)) is None:
            continue
        if run is not None and (other := _container_at(name, port, run)) is not None:
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


def _container_at(name: str, port: int, run: Runner) -> str | None:
    """Another container of this collection that is set to have the port of this service."""
    variables = {known.name: known.variable for known in services.PORTS}
    try:
        return DockerCli(run).holder_of(variables.get(name, name), str(port))
    except DockerError:
        return None


def _short_of_space(facts: dict[str, Any], options: Options, run: Runner) -> Iterator[str]:
    """What is about to be written needs room; on a host where all is done nothing is."""
    wanted: list[tuple[str, str]] = []
    if not (facts["run"]["live"] and facts["run"]["metrics_ready"]):
        wanted += [
            ("telemetry", facts["tree"]["paths"]["telemetry"]),
            ("profiles", facts["tree"]["paths"]["profiles"]),
        ]
    if facts["docker"]["available"] and facts["image"] is None:
        wanted.append(
            ("docker", DockerCli(run).call("info", "--format", "{{.DockerRootDir}}").strip())
        )
    for name, path in wanted:
        need = options.space_gb.get(name, 0.0) * _GB
        free = _free(path)
        if free is not None and free < need:
            yield (
                f"{path} has {free / _GB:.1f} GB free, and {need / _GB:.1f} GB are wanted there"
                f" before anything is written: free some, or set sgl_space_gb: {{{name}:"
                f" {free / _GB:.1f}}} to go on with less"
            )


def _free(path: str) -> int | None:
    """Bytes that an ordinary user may still write at `path`, or where it will be made; None where
    that cannot be seen.
    """
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None
