"""What each command does: a playbook of the checkout, and its outcome in the words that callers
expect.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TextIO

from sgl_admin.contract import profiles, records
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_LIVE_RUN
from sgl_admin.contract.stages import OPTIONS as STAGE_OPTIONS
from sgl_admin.contract.stages import STAGES
from sgl_admin.contract.texts import say, say_json, say_lines
from slice_bench import fleet, words
from slice_bench.caller import Caller, WrongUsage
from slice_bench.collection import part
from slice_bench.playbook import CHECKOUT, EXIT_FAILED, EXIT_OWNERSHIP, Failed, Outcome, play

# What sgl-admin answers in the container.
IN_CONTAINER = ("server", "prep", "ready", "perf")


def start(_arguments: argparse.Namespace, caller: Caller) -> int:
    if caller.validate_only:
        host = done(play("validate", caller, {})).host
        say(f"The host tree is there and {whose(host)}; Docker was not asked (VALIDATE_ONLY=1).")
        return 0
    look_after_docker(caller)
    outcome = play("start", caller, {"sgl_keep_running": True}, heartbeat=True)
    links = done(outcome).host["links"]
    say_notes(outcome)
    check_pointer(Path(links["manifest"]), caller)
    say(f"CONTAINER_RUN_META_JSON_HOST={links['manifest']}")
    say(f"CONTAINER_RUN_META_JSON={links['manifest_container']}")
    return 0


def whose(host: dict[str, Any]) -> str:
    """Whether the host tree belongs to the expected owner, as the checks found it."""
    ignored = host.get("ignored") or []
    if not ignored:
        return "belongs to the expected owner"
    count = "1 path in it does" if len(ignored) == 1 else f"{len(ignored)} paths in it do"
    return (
        f"{count} not belong to the expected owner, which HOST_DIR_OWNERSHIP_IGNORE=1 ignores"
        f" ({ignored[0]}{', ...' if len(ignored) > 1 else ''})"
    )


def stop(arguments: argparse.Namespace, caller: Caller) -> int:
    if shutil.which("docker") is None and not caller.own_inventory:
        say("Nothing runs: there is no Docker on this machine.")
        return 0
    variables = {"sgl_stop_force": True} if arguments.force else {}
    outcome = play("stop", caller, variables, heartbeat=True)
    failure = outcome.failure()
    if failure and outcome.host.get("in_use") and not arguments.force:
        raise Failed(str(failure), EXIT_BUSY)
    container = done(outcome).host["container"]
    if container["id"] is None:
        say(f"Nothing runs: there is no container {container['name']}.")
    else:
        say(
            f"Container {container['name']} is stopped and removed; its pointer is gone, caches and"
            " records stay."
        )
    return 0


def say_notes(outcome: Outcome) -> None:
    for note in outcome.host["notes"]:
        say_lines(words.of_caller(note), sys.stderr)


def provider_prep(arguments: argparse.Namespace, caller: Caller) -> int:
    names = list(dict.fromkeys(arguments.profile))
    stages = _stages_of(names, arguments, caller)
    variables: dict[str, Any] = {"sgl_profiles": names, "sgl_keep_running": True}
    if _changes_stages(arguments):
        variables["sgl_stages"] = stages
    if arguments.skip_moe_fusion_cache:
        variables["sgl_moe_fusion"] = "skip"
    if arguments.tp is not None:
        variables["sgl_tp"] = arguments.tp
    if not arguments.dry_run:
        look_after_docker(caller)
    flags = ["--check"] if arguments.dry_run else []
    outcome = play("prep", caller, variables, *flags, heartbeat=True)
    say_notes(outcome)
    return (
        say_dry_run(outcome, stages) if arguments.dry_run else say_result(outcome, arguments.json)
    )


def _changes_stages(arguments: argparse.Namespace) -> bool:
    return bool(arguments.tune_moe or arguments.skipped)


def _stages_of(names: list[str], arguments: argparse.Namespace, caller: Caller) -> dict[str, str]:
    """The modes of the stages of these profiles, with what the flags change. Raises WrongUsage: a
    profile is wrong, or the flags would make one of profiles that differ.
    """
    found = []
    for name in names:
        stages = profiles.variables(_load(name, caller.inventory_dir))["sgl_stages"]
        if arguments.tune_moe:
            stages["moe"] = "ensure"
        for stage in STAGES:
            if stage.skipped_by in arguments.skipped:
                stages[stage.option] = "skip"
        found.append(stages)
    if _changes_stages(arguments) and any(stages != found[0] for stages in found):
        raise WrongUsage(
            "--tune-moe and --skip-... hold for all profiles of a run, and the stages of these"
            " differ: prepare them one by one with it"
        )
    last: dict[str, str] = found[-1]
    return last


def _load(name: str, beside: str | None = None) -> dict[str, Any]:
    """A profile's content. Raises WrongUsage: there is none of that name, or it is wrong."""
    files = part("plugin_utils.profile_files")
    try:
        found: dict[str, Any] = files.load(name, beside)
    except files.ProfileError as error:
        raise WrongUsage(str(error)) from error
    return found


def say_result(outcome: Outcome, as_json: bool) -> int:
    """The RESULT lines of a prep; returns sgl-admin's exit code, or why it was not asked."""
    host, failure = outcome.host, outcome.failure()
    if host["prep_id"] is None or not host["stages"]:
        raise (
            Failed(str(failure), host["exit_code"] or failure.exit_code)
            if failure
            else Failed("the prep left no result; run it again")
        )
    if as_json:
        try:
            say_json(records.read_json(Path(host["links"]["prep_result"])), indent=2)
        except ValueError as error:
            raise Failed(f"the prep's result cannot be shown: {error}") from error
    for warning in host["warnings"]:
        say_lines(f"warning: {words.of_caller(warning)}", sys.stderr)
    if failure:
        say_lines(f"ERROR: {failure}", sys.stderr)
    rows = host.get("profiles") or []
    # Of one, the lines below say it.
    for row in rows if len(rows) > 1 else []:
        say(_profile_line(row))
    say(f"RESULT_JSON {host['links']['prep_result_container']}")
    say(
        status_line(
            host["prep_status"], {name: stage["status"] for name, stage in host["stages"].items()}
        )
    )
    return int(host["exit_code"])


def _profile_line(row: dict[str, Any]) -> str:
    """What came of one profile."""
    stages = " ".join(f"{name}:{status}" for name, status in row["stages"].items())
    ready = json.dumps(row["metrics_ready"])
    return f"RESULT_PROFILE {row['profile']} {row['status']} {stages} metrics_ready:{ready}"


def say_dry_run(outcome: Outcome, modes: dict[str, str]) -> int:
    """What a prep would do; where no container runs that could say so, what was asked for."""
    done(outcome)
    plan = outcome.host["plan"]
    if not plan:
        plan = {
            name: "skipped" if modes[option] == "skip" else "would_run"
            for name, option in STAGE_OPTIONS.items()
        }
        say(
            "No container runs yet: which stages apply to this host's devices is decided in it.",
            file=sys.stderr,
        )
    say(status_line("dry_run", plan))
    return 0


def status_line(status: str, stages: dict[str, str]) -> str:
    return (
        f"RESULT_STATUS {status}"
        f" {' '.join(f'{name}:{of_stage}' for name, of_stage in stages.items())}"
    )


def system(_arguments: argparse.Namespace, caller: Caller) -> int:
    """Print the host in the form of MLPerf's submissions; standard error has what it lacks."""
    outcome = done(play("system", caller, {}))
    description = outcome.host["system"]
    about = description["slice_bench"]
    say_json(description, indent=2)
    for reason in about["unread"]:
        say(f"warning: {reason}", sys.stderr)
    if about["to_fill_in"]:
        say(f"Fill in: {', '.join(about['to_fill_in'])}.", sys.stderr)
    return 0


def in_container(arguments: argparse.Namespace, caller: Caller) -> int:
    """sgl-admin itself answers, with its exit code, in the container that the inventory names."""
    if shutil.which("docker") is None:
        raise Failed(
            "there is no Docker on this machine, so no server: prepare it first (provider-prep)"
        )
    outcome = done(play("look", caller, {}))
    container = outcome.host["container"]
    if container["id"] is None:
        raise Failed(
            f"there is no container {container['name']}, so no server: prepare it first"
            " (slice_bench provider-prep)",
            EXIT_NO_LIVE_RUN,
        )
    named = [getattr(arguments, name, None) for name in ("action", "profile")]
    flags = ["--rebuild"] if getattr(arguments, "rebuild", False) else []
    words = [*filter(None, named), *flags, *arguments.further]
    command = ["sgl-admin", arguments.command, *words]
    # By its id, which no other machine's container has.
    if not is_here(container["id"]):
        raise Failed(
            f"container {container['name']} is on {outcome.host['host']}, which is another machine:"
            f" run `docker exec {container['name']} {shlex.join(command)}` there"
        )
    return _shown(["docker", "exec", container["id"], *command])


def _shown(command: list[str]) -> int:
    """Run a command whose lines, which another machine's or a container's programs make, may be
    shown on a terminal; returns its exit code.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def show(stream: IO[bytes], to: TextIO) -> None:
        for line in stream:
            say(line.decode(errors="replace").rstrip("\r\n"), to, flush=True)

    assert process.stdout is not None and process.stderr is not None
    errors = threading.Thread(target=show, args=(process.stderr, sys.stderr), daemon=True)
    errors.start()
    show(process.stdout, sys.stdout)
    errors.join()
    return process.wait()


def is_here(container_id: str) -> bool:
    """Whether this machine's Docker has the container. Raises Failed where it cannot be asked."""
    docker = part("module_utils._docker_cli")

    def run(command: list[str]) -> tuple[int, str, str]:
        asked = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return asked.returncode, asked.stdout, asked.stderr

    try:
        return docker.DockerCli(run).container(container_id) is not None
    except docker.DockerError as error:
        raise Failed(words.of_caller(str(error))) from error


def smoke(arguments: argparse.Namespace, caller: Caller) -> int:
    variables: dict[str, Any] = {}
    if arguments.scenario:
        path = Path(arguments.scenario)
        if not path.is_file():
            raise WrongUsage(f"there is no scenario file {path}")
        variables["sgl_smoke_scenario"] = str(path.resolve())
    outcome = play("smoke", caller, variables, heartbeat=True)
    found, failure = (
        outcome.host["smoke"] or {"summary": None, "exit_code": None},
        outcome.failure(),
    )
    summary = found["summary"]
    if summary is None:
        why = str(failure) if failure else "the smoke left no summary; run it again"
        raise Failed(why, found["exit_code"] or (failure.exit_code if failure else EXIT_FAILED))
    if arguments.json:
        say_json(summary, indent=2)
    if failure:
        say_lines(f"ERROR: {failure}", sys.stderr)
    counts = summary["counts"]
    say(f"SMOKE_SUMMARY {found['path']}")
    # Known only where the host is watched (sgl_watch).
    undisturbed = summary.get("undisturbed")
    watched = "" if undisturbed is None else f" undisturbed:{json.dumps(undisturbed)}"
    say(
        f"SMOKE_STATUS {summary['state']} passed:{counts['passed']} failed:{counts['failed']}"
        f" not_run:{counts['not_run']}"
        f" prep_metrics_ready:{json.dumps(summary['prep_metrics_ready'])}{watched}"
    )
    return int(found["exit_code"])


def list_profiles(_arguments: argparse.Namespace, _caller: Caller) -> int:
    for name in part("plugin_utils.profile_files").known():
        try:
            about = _load(name).get("description", "")
        except WrongUsage as error:
            about = f"ERROR: {error}"
        say(f"{name:48} {about}".rstrip())
    return 0


def prepare_fleet(arguments: argparse.Namespace, caller: Caller) -> int:
    # Without an inventory the fleet is this machine.
    if not (arguments.report or {"-C", "--check"} & set(arguments.further)):
        look_after_docker(caller)
    return fleet.run(arguments, caller)


def done(outcome: Outcome) -> Outcome:
    """The outcome, where all went well. Raises Failed."""
    if failure := outcome.failure():
        raise failure
    return outcome


def look_after_docker(caller: Caller) -> None:
    """A caller with an inventory of its own looks after Docker there."""
    if not caller.own_inventory:
        docker_up()


def docker_up() -> None:
    """See that Docker answers on this machine, as `make prep` does."""
    if subprocess.run(
        [str(CHECKOUT / "scripts" / "docker_up.sh")], stdout=sys.stderr, check=False
    ).returncode:
        raise Failed("Docker does not answer on this machine; the lines above say why", EXIT_FAILED)


def check_pointer(manifest: Path, caller: Caller) -> None:
    """Raises Failed (exit code 3) where the pointer of the run does not belong to whom the caller
    expects.
    """
    pointer = manifest.parent.parent / "container_run_meta.env"
    expected = [caller.variables.get(f"sgl_pointer_owner_{name}") for name in ("uid", "gid")]
    if expected == [None, None]:
        return
    info = pointer.stat()
    owner = [info.st_uid, info.st_gid]
    wanted = [have if want is None else want for have, want in zip(owner, expected, strict=True)]
    if owner != wanted:
        raise Failed(
            f"{pointer} is owned by {owner[0]}:{owner[1]}, not {wanted[0]}:{wanted[1]}: the"
            " container runs as the tree's owner; set EXPECT_POINTER_OWNER_UID and _GID to that,"
            " or leave them out",
            EXIT_OWNERSHIP,
        )


COMMANDS: dict[str, Callable[[argparse.Namespace, Caller], int]] = {
    **dict.fromkeys(IN_CONTAINER, in_container),
    "start": start,
    "stop": stop,
    "provider-prep": provider_prep,
    "system": system,
    "smoke": smoke,
    "profiles": list_profiles,
    "fleet": prepare_fleet,
}
