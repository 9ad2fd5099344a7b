"""The front for callers that know no Ansible: what it takes, what it asks the playbooks for, and
how it says what came of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgl_admin.contract import options, profiles, stages
from slice_bench import caller, cli, collection, commands, fleet, playbook, words
from slice_bench.caller import Caller, WrongUsage
from slice_bench.playbook import Failed, Outcome
from tests.contract import validators

ROOT = Path(__file__).resolve().parents[2]
BASELINE = "custom/sglang/qwen3-next-80b-fp8-baseline"
CALLER = Caller({}, False, False)
HANDED_OFF = [
    BASELINE,
    "--tune-moe",
    "--skip-moe-fusion-cache",
    "--skip-gemm-cache",
    "--skip-warmup-cache",
    "--tp",
    "1",
]


class Plays:
    """Stands for ansible-playbook: keeps what it was asked, and answers with a host of the report's
    example.
    """

    def __init__(self, number: int = 0, **changes: Any) -> None:
        self.asked: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
        self.host = {
            **validators.example("report")["hosts"][number],
            "container": {"name": "sglang-dev", "id": "c" * 64},
            **changes,
        }

    def __call__(
        self, name: str, caller: Caller, variables: dict[str, Any], *flags: str, **_: Any
    ) -> Outcome:
        self.asked.append((name, {**caller.variables, **variables}, (*caller.flags, *flags)))
        return Outcome(self.host)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the user who runs the tests, and no Docker."""
    for name in [
        *caller._TEXTS,
        *caller._NUMBERS,
        *caller._FLAGS,
        "VALIDATE_ONLY",
        "SLICE_BENCH_PROFILES",
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(commands, "docker_up", lambda: None)


def run(monkeypatch: pytest.MonkeyPatch, plays: Plays, *words: str) -> int:
    monkeypatch.setattr(commands, "play", plays)
    return cli.main(list(words))


# --- the caller's environment ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "variable", "value"),
    [
        ("HOST_OBS_ROOT", "/srv/obs", "sgl_root", "/srv/obs"),
        ("HOST_TELEMETRY_ROOT", "/a b/t", "sgl_telemetry_root", "/a b/t"),
        ("HOST_PROFILES_ROOT", "rel", "sgl_profiles_root", os.path.abspath("rel")),
        ("HOST_MODELS_ROOT", "~/m", "sgl_models_root", os.path.expanduser("~/m")),
        ("HOST_HF_ROOT", "/h", "sgl_huggingface_root", "/h"),
        ("CONTAINER_NAME", "c", "sgl_container", "c"),
        ("IMAGE_NAME", "i:t", "sgl_image", "i:t"),
        ("HOST_DIR_OWNERSHIP_IGNORE", "1", "sgl_ownership_ignore", True),
        ("EXPECT_OWNER_UID", "1001", "sgl_owner_uid", 1001),
        ("EXPECT_OWNER_GID", "1002", "sgl_owner_gid", 1002),
        ("EXPECT_POINTER_OWNER_UID", "0", "sgl_pointer_owner_uid", 0),
        ("EXPECT_POINTER_OWNER_GID", "5", "sgl_pointer_owner_gid", 5),
    ],
)
def test_each_variable_of_the_environment_becomes_one_of_the_collections(
    name: str, given: str, variable: str, value: object
) -> None:
    assert caller.from_environment({name: given}).variables == {variable: value}


def test_what_the_caller_does_not_set_is_left_to_the_inventory() -> None:
    assert (
        caller.from_environment({"HOST_OBS_ROOT": "", "HOST_DIR_OWNERSHIP_IGNORE": "0"}).variables
        == {}
    )


def test_every_variable_is_one_that_the_preflight_knows_and_the_manual_names() -> None:
    specs = yaml.safe_load(
        (ROOT / "roles/preflight/meta/argument_specs.yml").read_text(encoding="utf-8")
    )
    known = specs["argument_specs"]["main"]["options"]
    tables = {**caller._TEXTS, **caller._NUMBERS, **caller._FLAGS}
    assert set(tables.values()) <= set(known)
    assert [name for name in tables if name not in caller.MANUAL] == []


@pytest.mark.parametrize(
    ("given", "added"),
    [("xx_YY.UTF-8", "C.UTF-8"), ("C", "C.UTF-8"), ("C.UTF-8", None)],
)
def test_ansible_starts_where_the_callers_locale_is_not_installed(
    given: str, added: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", given)
    assert playbook._usable_locale().get("LC_ALL") == added


@pytest.mark.parametrize("given", ["root", "-1", "1.5", "²"])
def test_a_number_that_is_none_is_wrong_usage(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPECT_OWNER_UID", given)
    assert run(monkeypatch, Plays(), "start") == 2
    assert capsys.readouterr().err.startswith("ERROR: EXPECT_OWNER_UID=")


# --- start and stop -------------------------------------------------------------------------------


def test_start_names_the_manifest_as_host_and_container_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Plays(notes=["container-run-x is live and is kept"])
    assert run(monkeypatch, plays, "start") == 0
    said = capsys.readouterr()
    run_id = plays.host["run_id"]
    assert said.out.splitlines() == [
        f"CONTAINER_RUN_META_JSON_HOST={plays.host['links']['manifest']}",
        f"CONTAINER_RUN_META_JSON=/telemetry/container_runs/{run_id}.json",
    ]
    assert "is kept" in said.err
    assert plays.asked == [("start", {"sgl_keep_running": True}, ())]


def test_validate_only_plays_nothing_that_asks_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALIDATE_ONLY", "1")
    monkeypatch.setattr(commands, "docker_up", lambda: pytest.fail("Docker was looked for"))
    plays = Plays()
    assert run(monkeypatch, plays, "start") == 0
    assert [name for name, *_ in plays.asked] == ["validate"]


@pytest.mark.parametrize(("foreign", "code"), [(["/x"], 3), ([], 1)])
def test_what_belongs_to_somebody_else_has_an_exit_code_of_its_own(
    foreign: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem = "/x is owned by 7:7 (no such user), not 1000:1000 (ubuntu): run `chown`"
    assert run(monkeypatch, Plays(1, problem=problem, foreign=foreign), "start") == code
    said = capsys.readouterr()
    assert said.err == f"ERROR: {problem}\n" and said.out == ""


def test_a_pointer_of_another_owner_than_expected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "container_run_meta.env"
    pointer.touch()
    uid, gid = pointer.stat().st_uid, pointer.stat().st_gid
    manifest = tmp_path / "container_runs" / "x.json"
    monkeypatch.setenv("EXPECT_POINTER_OWNER_UID", str(uid + 1))
    links = {**validators.example("report")["hosts"][0]["links"], "manifest": str(manifest)}
    assert run(monkeypatch, Plays(links=links), "start") == 3
    assert f"{pointer} is owned by {uid}:{gid}, not {uid + 1}:{gid}" in capsys.readouterr().err
    monkeypatch.setenv("EXPECT_POINTER_OWNER_UID", str(uid))
    assert run(monkeypatch, Plays(links=links), "start") == 0


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("start", ["--force"]),
        *((command, given) for command in ("start", "stop") for given in (["now"], ["-x"])),
    ],
)
def test_any_other_argument_is_wrong_usage(
    command: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *given])
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["start", "stop", "provider-prep"])
def test_help_prints_usage_and_the_environment(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("usage:") and "HOST_OBS_ROOT" in said


def test_stop_without_docker_has_nothing_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    plays = Plays()
    assert run(monkeypatch, plays, "stop") == 0 and plays.asked == []


# --- which host, which container ------------------------------------------------------------------


def test_options_of_a_host_go_to_ansible_playbook_from_wherever_the_caller_stands(
    monkeypatch: pytest.MonkeyPatch, inventory: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "docker_up", lambda: pytest.fail("Docker was looked for"))
    monkeypatch.chdir(tmp_path)
    given = ["-i", "hosts.yml", "-i", "a,b", "-l", "a", "-e", "sgl_tp=2", "-e", "@more.yml"]
    wanted = (
        *("--inventory", inventory, "--inventory", "a,b", "--limit", "a"),
        *("--extra-vars", "sgl_tp=2", "--extra-vars", f"@{tmp_path}/more.yml"),
    )
    for command in (["start"], ["stop"], ["smoke"], ["provider-prep", BASELINE]):
        plays = Plays(smoke={"summary": None, "path": None, "exit_code": 5})
        run(monkeypatch, plays, *command, *given)
        assert [flags for *_, flags in plays.asked] == [wanted], command


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("command", ["start", "stop", "smoke", "server status"])
def test_an_inventory_that_is_missing_is_wrong_usage(
    how: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    option = ["-i", "inventories/gh20"] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("ANSIBLE_INVENTORY", "inventories/gh20")
    name, *action = command.split()
    plays = Plays()
    assert run(monkeypatch, plays, name, *option, *action) == 2 and plays.asked == []
    assert capsys.readouterr().err == "ERROR: there is no inventory inventories/gh20\n"


class Docker:
    """Stands for this machine's Docker, which has one container by this id; keeps what was done in
    it.
    """

    def __init__(self, folder: Path, container_id: str, refuses: str = "") -> None:
        folder.mkdir()
        self._asked = folder / "asked"
        state = {"Running": True, "Status": "running", "StartedAt": "x", "ExitCode": 0, "Pid": 7}
        found = {"Id": container_id, "Image": "i", "State": state}
        (folder / "inspected").write_text(json.dumps([found]))
        program = folder / "docker"
        program.write_text(
            f"#!/bin/sh\n[ -z '{refuses}' ] || {{ echo '{refuses}' >&2; exit 1; }}\n"
            f'case "$1 $3" in\n"container {container_id}") exec cat {folder}/inspected;;\n'
            'container*) echo "Error: No such container: $3" >&2; exit 1;;\n'
            f'*) echo "$*" >> {self._asked}; exit 7;;\nesac\n'
        )
        program.chmod(0o755)

    @property
    def done(self) -> list[str]:
        return self._asked.read_text().splitlines() if self._asked.exists() else []


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Docker:
    """The client on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Docker(tmp_path / "bin", "c" * 64)


def test_the_server_is_that_of_the_inventorys_container(
    monkeypatch: pytest.MonkeyPatch, docker: Docker
) -> None:
    plays = Plays(container={"name": "sglang-gpu7", "id": "c" * 64})
    assert run(monkeypatch, plays, "server", "-e", "x=1", "status", "--json", "--wait", "5") == 7
    assert docker.done == [f"exec {'c' * 64} sgl-admin server status --json --wait 5"]
    assert plays.asked == [("look", {}, ("--extra-vars", "x=1"))]


def test_ready_is_asked_in_the_inventorys_container(
    monkeypatch: pytest.MonkeyPatch, docker: Docker
) -> None:
    plays = Plays(container={"name": "sglang-gpu7", "id": "c" * 64})
    assert run(monkeypatch, plays, "ready", "-e", "x=1", "--json") == 7
    assert docker.done == [f"exec {'c' * 64} sgl-admin ready --json"]
    assert plays.asked == [("look", {}, ("--extra-vars", "x=1"))]


def test_a_host_is_measured_in_the_inventorys_container(
    monkeypatch: pytest.MonkeyPatch, docker: Docker
) -> None:
    plays = Plays(container={"name": "sglang-gpu7", "id": "c" * 64})
    assert run(monkeypatch, plays, "perf", "-e", "x=1", "custom/a", "--rebuild", "--json") == 7
    assert run(monkeypatch, plays, "perf") == 7
    assert docker.done == [
        f"exec {'c' * 64} sgl-admin perf custom/a --rebuild --json",
        f"exec {'c' * 64} sgl-admin perf",
    ]
    assert plays.asked == [("look", {}, ("--extra-vars", "x=1")), ("look", {}, ())]


def test_a_host_is_described_as_json_and_the_rest_is_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    description = validators.example("system")
    description["slice_bench"]["unread"] = ["/etc/os-release cannot be read \x1b[2J"]
    plays = Plays(system=description)
    assert run(monkeypatch, plays, "system", "-e", "x=1") == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == description
    assert said.err.splitlines() == [
        "warning: /etc/os-release cannot be read ?[2J",
        "Fill in: division, submitter, status, system_type, host_memory_configuration,"
        " host_networking_topology, cooling.",
    ]
    assert plays.asked == [("system", {}, ("--extra-vars", "x=1"))]


def test_a_host_that_cannot_be_described_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Plays(status="failed", problem="no user nobody on this host", system=None)
    assert run(monkeypatch, plays, "system") == 1
    said = capsys.readouterr()
    assert not said.out and "no user nobody" in said.err


def test_a_prep_is_cancelled_in_the_inventorys_container(
    monkeypatch: pytest.MonkeyPatch, docker: Docker
) -> None:
    plays = Plays(container={"name": "sglang-gpu7", "id": "c" * 64})
    assert run(monkeypatch, plays, "prep", "cancel", "--json") == 7
    assert docker.done == [f"exec {'c' * 64} sgl-admin prep cancel --json"]


@pytest.mark.parametrize(
    ("container_id", "refuses", "code", "said"),
    [
        (None, "", 4, "there is no container sglang-gpu7, so no server"),
        # A container of that name, or of the default one, is here all the same.
        ("d" * 64, "", 1, "container sglang-gpu7 is on gh200-01, which is another machine"),
        (
            "c" * 64,
            "permission denied while trying to connect to the Docker daemon socket",
            1,
            "no permission to use Docker",
        ),
        ("c" * 64, "Cannot connect to the Docker daemon at x", 1, "daemon does not answer"),
    ],
)
@pytest.mark.parametrize("action", ["start", "status", "stop"])
def test_no_other_containers_server_is_touched(
    action: str,
    container_id: str | None,
    refuses: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docker = Docker(tmp_path / "bin", "c" * 64, refuses)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    container = {"name": "sglang-gpu7", "id": container_id}
    plays = Plays(container=container, host="gh200-01")
    assert run(monkeypatch, plays, "server", action) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and docker.done == []


@pytest.mark.parametrize(
    ("given", "in_use", "status", "code"),
    [
        ([], ["a smoke"], "failed", 5),
        ([], [], "failed", 1),
        (["--force"], ["a smoke"], "failed", 1),
        (["--force"], ["a smoke"], "ok", 0),
        ([], [], "ok", 0),
    ],
)
def test_stop_has_a_code_for_what_runs_and_a_flag_that_ends_it(
    given: list[str], in_use: list[str], status: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = Plays(
        status=status,
        problem="Container c is not stopped: set sgl_stop_force to true",
        in_use=in_use,
        container={"name": "c", "id": "c" * 64},
    )
    assert run(monkeypatch, plays, "stop", *given) == code
    assert plays.asked == [("stop", {"sgl_stop_force": True} if given else {}, ())]


@pytest.mark.parametrize("container_id", [None, "c" * 64])
def test_stop_names_the_inventorys_container_and_what_it_did(
    container_id: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Plays(container={"name": "mine", "id": container_id}), "stop") == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "Container mine is stopped and removed"
        if container_id
        else "Nothing runs: there is no container mine."
    )


@pytest.mark.parametrize(
    ("ignored", "said"),
    [
        ([], "is there and belongs to the expected owner;"),
        (["/o/x"], "1 path in it does not belong to the expected owner, which HOST_DIR_OWNERSHIP"),
        (["/o/x", "/o/y"], "2 paths in it do not belong"),
    ],
)
def test_validate_only_says_whether_the_owner_is_right(
    ignored: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VALIDATE_ONLY", "1")
    monkeypatch.setenv("HOST_DIR_OWNERSHIP_IGNORE", "1")
    assert run(monkeypatch, Plays(ignored=ignored), "start") == 0
    out = capsys.readouterr().out
    assert said in out
    assert ("belongs to the expected owner" in out) is not bool(ignored)


# What Docker's client said in 20.10, in 28 and in 29 (client/request.go of moby).
REFUSED = (
    "Got permission denied while trying to connect to the Docker daemon socket at"
    " unix:///var/run/docker.sock: Get http://x/version: connect: permission denied",
    "permission denied while trying to connect to the Docker daemon socket at"
    " unix:///var/run/docker.sock",
    "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock",
)


@pytest.mark.parametrize("words", REFUSED)
def test_a_docker_that_runs_and_refuses_this_user_is_told_as_that(
    words: str, tmp_path: Path
) -> None:
    for name in ("bash", "dirname", "grep", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    answers = {
        "id": '[ "$1" = -u ] && echo 1000 || echo ops',
        "docker": f"echo '{words}' >&2; exit 1",
    }
    for name, text in answers.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts" / "docker_up.sh")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == (
        "docker_up.sh: Docker runs, but ops has no permission to use it: run 'sudo usermod -aG"
        " docker ops' (or ask an administrator to), log in again, and repeat.\n"
    )


# --- the caller's words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("2 devices: set sgl_tp to 1", "2 devices: set --tp to 1"),
        ("set sgl_container to x", "set CONTAINER_NAME to x"),
        ("or set sgl_ownership_ignore: true", "or set HOST_DIR_OWNERSHIP_IGNORE=1"),
        ("no model: set sgl_model to it", "no model: set model.name of the profile to it"),
        ("set sgl_stop_force to true to end it", "pass --force to end it"),
        ("stop it (playbooks/stop.yml) first", "stop it (slice_bench stop) first"),
        ("prepare it (playbooks/prep.yml)", "prepare it (slice_bench provider-prep)"),
        (
            "log in again, or set ansible_become (denied)",
            "log in again, or run this with sudo (denied)",
        ),
        (
            "port 9090 is taken: set sgl_prometheus_port to another port",
            "port 9090 is taken: set sgl_prometheus_port to another port (-e NAME=VALUE sets a"
            " variable sgl_..., and so does the inventory)",
        ),
        ("it died\nlog: sgl_tp", "it died\n    log: --tp"),
        ("run `chown -R a:b /x`", "run `chown -R a:b /x`"),
    ],
)
def test_a_caller_reads_its_own_words(
    said: str, heard: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, Plays(1, problem=said, notes=[said]), "start")
    assert capsys.readouterr().err == f"ERROR: {heard}\n"
    run(monkeypatch, Plays(notes=[said]), "provider-prep", BASELINE)
    assert capsys.readouterr().err.startswith(f"{heard}\n")


def test_each_word_of_a_caller_stands_for_a_variable_that_there_is() -> None:
    assert set(words.NAMES) <= set(options.BY_NAME)


@pytest.mark.parametrize("role", [path.name for path in sorted((ROOT / "roles").iterdir())])
def test_a_callers_heartbeat_says_what_each_role_is_at(role: str) -> None:
    quiet = {"dashboard", "settings"}  # No command of the front plays them.
    assert (words.doing(role) == "working") is (role in quiet)


# --- profiles and provider-prep -------------------------------------------------------------------


def test_the_call_of_the_hand_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Plays()
    assert run(monkeypatch, plays, "provider-prep", *HANDED_OFF) == 0
    ((name, variables, flags),) = plays.asked
    assert (name, flags) == ("prep", ())
    assert variables["sgl_profiles"] == [BASELINE] and variables["sgl_tp"] == 1
    modes = {"deep_gemm": "skip", "moe": "ensure", "flashinfer": "skip", "inductor": "skip"}
    assert variables["sgl_stages"].items() >= modes.items()
    # A later stage has its default where none of the flags leaves it out.
    assert {
        stage.option
        for stage in stages.STAGES
        if (variables["sgl_stages"][stage.option] == "skip")
        is not (bool(stage.skipped_by) or stage.default == "skip")
    } == set()
    assert variables["sgl_moe_fusion"] == "skip" and variables["sgl_keep_running"] is True
    assert "sgl_probe" not in variables, "METRICS_READY is proven all the same"
    run_id = plays.host["run_id"]
    assert capsys.readouterr().out.splitlines() == [
        f"RESULT_JSON /telemetry/container_runs/{run_id}/prep_result.json",
        commands.status_line(
            "ok", {name: stage["status"] for name, stage in plays.host["stages"].items()}
        ),
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_each_of_several_profiles_has_a_line(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one the last two lines say all, as they did before there were several."""
    plays = Plays()
    stages_of = {name: stage["status"] for name, stage in plays.host["stages"].items()}
    plays.host["profiles"] = [
        {"profile": name, "status": "ok", "stages": stages_of, "metrics_ready": True}
        for name in ("one", "two")[:count]
    ]
    assert run(monkeypatch, plays, "provider-prep", BASELINE) == 0
    *before, path, status = capsys.readouterr().out.splitlines()
    assert path.startswith("RESULT_JSON ") and status.startswith("RESULT_STATUS ok ")
    shown = status.removeprefix("RESULT_STATUS ok ")
    lines = [f"RESULT_PROFILE {name} ok {shown} metrics_ready:true" for name in ("one", "two")]
    assert before == (lines if count > 1 else [])


def test_a_profile_alone_asks_for_its_own_stages() -> None:
    made = profiles.variables(commands._load(BASELINE))
    assert made["sgl_stages"] == {
        **{stage.option: stage.default for stage in stages.STAGES},
        "moe": "skip",
    }
    assert made["sgl_model_source"] == "present", (
        "the inventory's own must not make a random model of that name"
    )
    assert (
        made["sgl_cuda_graph_batch_sizes"] == [1, 2, 4, 8, 16, 32]
        and "--mem-fraction-static" in made["sgl_server_args"]
    )


def test_the_exit_code_is_sgl_admins_with_the_result_lines_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Plays(1), "provider-prep", BASELINE) == 11
    said = capsys.readouterr()
    assert (
        said.out.splitlines()[-1].startswith("RESULT_STATUS partial ") and "\nERROR: " in said.err
    )


def test_a_prep_that_did_not_begin_has_sgl_admins_exit_code_and_no_result_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Plays(
        1, prep_id=None, stages={}, exit_code=5, problem="the prep did not begin (busy): another"
    )
    assert run(monkeypatch, plays, "provider-prep", BASELINE) == 5
    said = capsys.readouterr()
    assert (
        "RESULT" not in said.out and said.err == "ERROR: the prep did not begin (busy): another\n"
    )


def test_a_dry_run_is_check_mode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "deep_gemm": "skipped",
        "moe_tune": "skipped",
        "flashinfer": "noop",
        "inductor": "would_run",
    }
    plays = Plays(stages={}, plan=plan)
    assert run(monkeypatch, plays, "provider-prep", BASELINE, "--dry-run") == 0
    assert plays.asked[0][2] == ("--check",)
    wanted = (
        "RESULT_STATUS dry_run deep_gemm:skipped moe_tune:skipped flashinfer:noop"
        " inductor:would_run\n"
    )
    assert capsys.readouterr().out == wanted


def test_the_callers_environment_goes_before_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_NAME", "mine")
    plays = Plays()
    run(monkeypatch, plays, "provider-prep", BASELINE)
    assert plays.asked[0][1]["sgl_container"] == "mine"


@pytest.mark.parametrize(
    "name", ["custom/none", "../profiles/custom/sglang/qwen3-tiny-cpu", "/etc/passwd", ""]
)
def test_an_unknown_profile_lists_the_known_ones(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Plays(), "provider-prep", name) == 2
    assert BASELINE in capsys.readouterr().err


def test_a_profile_of_ones_own_goes_before_a_shipped_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = tmp_path / f"{BASELINE}.yml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "model: {name: my/model}\nserver: {speculative: {algorithm: EAGLE, num_steps: 3}, env: {A:"
        " 1}, args: [--x, 5]}\n"
    )
    monkeypatch.setenv("SLICE_BENCH_PROFILES", str(tmp_path))
    made = profiles.variables(commands._load(BASELINE))
    assert made["sgl_model"] == "my/model" and made["sgl_server_env"] == {"A": "1"}
    assert made["sgl_server_args"] == [
        "--x",
        "5",
        "--speculative-algorithm",
        "EAGLE",
        "--speculative-num-steps",
        "3",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "it is not a mapping"),
        ("a: [", "not YAML"),
        ("tp: 1", "it names no model"),
        ("model: {name: 5}", "model.name must be a text"),
        ("model: {name: ''}", "it names no model"),
        ("model: m", "model must be a mapping"),
        ("model: {name: ../m}", "model.name is '../m': set it to a folder"),
        ("model: {name: m}\ntp: true", "tp must be a whole number"),
        ("model: {name: m}\ntp: 0", "tp is 0: set it to a whole number from 1"),
        ("model: {name: m}\nsever: {}", "sever is not a key of a profile"),
        ("model: {name: m}\nserver: {arg: []}", "did you mean server.args"),
        ("model: {name: m, source: ftp}", "model.source is 'ftp': set it to one of present"),
        ("model: {name: m}\nstages: {gemm: skip}", "stages.gemm is unknown"),
        ("model: {name: m}\nstages: {moe: never}", "stages.moe is 'never'"),
        ("model: {name: m}\nserver: {cuda_graph_batch_sizes: [0]}", "whole number from 1"),
        ("model: {name: m}\nserver: {args: --x}", "server.args must be a list"),
        ("model: {name: m}\nserver: {args: [--api-key=x]}", "server.args has --api-key"),
        ("model: {name: m}\nserver: {env: [A]}", "server.env must be a mapping"),
        ("model: {name: m}\nserver: {speculative: {steps: 1}}", "server.speculative has steps"),
    ],
)
def test_a_profile_that_is_wrong_names_the_place(
    content: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "p.yml").write_text(content)
    monkeypatch.setenv("SLICE_BENCH_PROFILES", str(tmp_path))
    with pytest.raises(WrongUsage, match=why) as caught:
        commands._load("p")
    assert str(tmp_path / "p.yml") in str(caught.value)


@pytest.mark.parametrize("name", collection.part("plugin_utils.profile_files").known())
def test_each_shipped_profile_sets_variables_that_the_preflight_knows(name: str) -> None:
    specs = yaml.safe_load(
        (ROOT / "roles/preflight/meta/argument_specs.yml").read_text(encoding="utf-8")
    )
    assert set(profiles.variables(commands._load(name))) <= set(
        specs["argument_specs"]["main"]["options"]
    )


# --- running a playbook ---------------------------------------------------------------------------


# What ansible-playbook of ansible-core 2.19.14 printed, shortened: for -e sgl_root='{{ nowhere }}',
# for -e sgl_tp=many, for an inventory that is no YAML, and for one without the group.
UNDEFINED = """\
PLAY [Make the host tree and check its owner, without Docker] ***

TASK [slice_bench.sglang.preflight : Validating arguments against arg spec 'main'] ***
[ERROR]: Task failed: 'nowhere' is undefined

Task failed.
Origin: <unknown>

fatal: [localhost]: FAILED! =>
    changed: false
    msg: 'Task failed: ''nowhere'' is undefined'
"""
NO_NUMBER = """\
[ERROR]: Task failed: Action failed: Validation of arguments failed:
argument 'sgl_tp' is of type str and we were unable to convert to int: "'many'" cannot be \
converted to an int
Origin: <unknown>

{'action': 'ansible.builtin.validate_argument_spec'}
"""
NO_YAML = """\
[WARNING]: Failed to parse inventory with 'auto' plugin: YAML parsing failed: While parsing a flow \
sequence did not find expected ',' or ']'.

[WARNING]: Failed to parse inventory with 'yaml' plugin: YAML parsing failed: While parsing a flow \
sequence did not find expected ',' or ']'.

Failed to parse inventory with 'yaml' plugin.
Origin: <inventory plugin 'yaml' with source '/tmp/hosts.yml'>

[WARNING]: Could not match supplied host pattern, ignoring: sglang

PLAY [Make the host tree and check its owner, without Docker] ***
skipping: no hosts matched
"""
NO_GROUP = NO_YAML[NO_YAML.index("[WARNING]: Could not match") :]
NO_LOCALE = "ERROR: Ansible could not initialize the preferred locale: unsupported locale setting\n"


@pytest.mark.parametrize(
    ("printed", "code", "said"),
    [
        (UNDEFINED, 2, "'nowhere' is undefined"),
        (
            NO_NUMBER,
            2,
            "argument '--tp' is of type str and we were unable to convert to int: \"'many'\" cannot"
            " be converted to an int",
        ),
        (
            NO_YAML,
            0,
            "Failed to parse inventory with 'yaml' plugin: YAML parsing failed: While parsing a"
            " flow sequence did not find expected ',' or ']'",
        ),
        (NO_GROUP, 0, "the inventory names no host of the group sglang (or --limit leaves none)"),
        (
            NO_LOCALE,
            1,
            "Ansible could not initialize the preferred locale: unsupported locale setting",
        ),
        ("no such inventory\n", 4, "no such inventory"),
        ("", 250, "ansible-playbook ended without a message"),
    ],
)
def test_a_playbook_that_ends_before_it_says_anything_is_one_sentence_and_a_file(
    printed: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "printed").write_text(printed)
    program = tmp_path / "ansible-playbook"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/printed; exit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    monkeypatch.setenv("SGL_REPORT_DIR", str(tmp_path / "reports"))
    with pytest.raises(Failed) as caught:
        playbook.play("start", CALLER, {})
    [log] = (tmp_path / "reports").glob("start-*.log")
    assert str(caught.value) == f"{said}; all that was printed is in {log}"
    assert log.read_text() == printed
    assert caught.value.exit_code == (1 if code else 2)
    assert capsys.readouterr().err == "", "an error's lines are no progress"


def test_where_no_report_may_be_written_the_log_is_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(playbook.tempfile, "gettempdir", lambda: str(tmp_path))
    for kept in (str(tmp_path / "file" / "below"), ""):
        monkeypatch.setenv("SGL_REPORT_DIR", kept)
        log = playbook._write_log("stop", ["a\n"])
        assert log is not None and log.parent == tmp_path and log.read_text() == "a\n"


def test_a_playbook_that_fails_on_its_host_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    problem = "no live run: it died. The end of its log:\nValueError: none"
    program = tmp_path / "ansible-playbook"
    host = {**validators.example("report")["hosts"][1], "problem": problem, "foreign": []}
    (tmp_path / "outcome").write_text(json.dumps({"hosts": [host]}))
    program.write_text(
        f'#!/bin/sh\ncp {tmp_path}/outcome "$SGL_REPORT_OUTCOME"; echo much; exit 2\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    monkeypatch.setenv("SGL_REPORT_DIR", str(tmp_path))
    assert cli.main(["start"]) == 1
    [log] = tmp_path.glob("start-*.log")
    assert capsys.readouterr().err == (
        "ERROR: no live run: it died. The end of its log:\n    ValueError: none\n"
        f"    All that was printed is in {log}\n"
    )


def test_a_quiet_playbook_has_a_heartbeat_that_says_what_it_is_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nprint('TASK [a.b.image : Build it] ***',"
        " flush=True)\nprint('ok: [localhost]\\nlocalhost: image: pulling',"
        " flush=True)\ntime.sleep(1)\nopen(os.environ['SGL_REPORT_OUTCOME'],"
        ' \'w\').write(\'{"hosts": [{"host": "a"}]}\')\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    monkeypatch.setattr(playbook, "HEARTBEAT_S", 0.2)
    assert playbook.play("start", CALLER, {}, heartbeat=True).host == {"host": "a"}
    said = capsys.readouterr().err
    assert (
        "localhost: image: pulling\n" in said
        and "start: 0 s: getting the image\n" in said
        and "ok: [localhost]" not in said
    )


def test_a_front_that_is_told_to_stop_ends_its_playbook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    program = tmp_path / "ansible-playbook"
    program.write_text(
        f"#!/bin/sh\ntrap 'touch {ended}; exit 1' TERM\ntouch {begun}\nwhile :; do sleep 0.05;"
        " done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)

    def interrupt(*_: Any) -> None:
        while not begun.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(playbook, "_follow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        playbook.play("start", CALLER, {})
    assert ended.exists()


def test_a_callers_own_callbacks_do_not_take_the_reports_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text(
        f"#!{sys.executable}\nimport json, os\nnames = ('ANSIBLE_CALLBACKS_ENABLED',"
        " 'ANSIBLE_INVENTORY', 'SGL_REPORT_DIR')\nopen(os.environ['SGL_REPORT_OUTCOME'],"
        " 'w').write(json.dumps({'hosts': [{name: os.environ[name] for name in names}]}))\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inv.yml").touch()
    for name, value in (
        ("ANSIBLE_CALLBACKS_ENABLED", "ansible.posix.timer"),
        ("ANSIBLE_INVENTORY", "inv.yml"),
        ("SGL_REPORT_DIR", "r"),
    ):
        monkeypatch.setenv(name, value)
    assert playbook.play("start", CALLER, {}).host == {
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.timer,slice_bench.sglang.report",
        "ANSIBLE_INVENTORY": str(tmp_path / "inv.yml"),
        "SGL_REPORT_DIR": str(tmp_path / "r"),
    }


def test_a_smoke_that_did_not_begin_has_sgl_admins_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"summary": None, "path": None, "exit_code": 5}
    assert (
        run(monkeypatch, Plays(1, smoke=refused, problem="the smoke did not begin (busy)"), "smoke")
        == 5
    )
    said = capsys.readouterr()
    assert said.out == "" and said.err == "ERROR: the smoke did not begin (busy)\n"


@pytest.mark.parametrize(
    ("undisturbed", "said"),
    [
        ({"undisturbed": True}, " undisturbed:true"),
        ({"undisturbed": False}, " undisturbed:false"),
        ({"undisturbed": None}, ""),
        # A summary of an older release.
        ({}, ""),
    ],
)
def test_a_smoke_says_whether_it_was_undisturbed_where_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: dict[str, bool | None],
    said: str,
) -> None:
    counts = {"passed": 4, "failed": 0, "not_run": 0}
    summary = {"state": "done", "counts": counts, "prep_metrics_ready": True, **undisturbed}
    ended = {"summary": summary, "path": "/s.json", "exit_code": 0}
    assert run(monkeypatch, Plays(1, smoke=ended, problem=None), "smoke") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"SMOKE_STATUS done passed:4 failed:0 not_run:0 prep_metrics_ready:true{said}"
    )


def test_one_broken_profile_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yml").write_text("[")
    monkeypatch.setenv("SLICE_BENCH_PROFILES", str(tmp_path))
    assert run(monkeypatch, Plays(), "profiles") == 0
    said = capsys.readouterr().out
    assert BASELINE in said and f"ERROR: profile {tmp_path / 'broken.yml'} is not YAML" in said


def test_a_fleet_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text('#!/bin/sh\necho \'{"hosts": [{}, {}]}\' > "$SGL_REPORT_OUTCOME"\n')
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    with pytest.raises(Failed, match="2 hosts"):
        playbook.play("start", CALLER, {})


@pytest.mark.parametrize("name", ["start", "stop"])
def test_a_script_is_three_lines_on_the_front(name: str) -> None:
    script = ROOT / "scripts" / f"{name}_observable_container.sh"
    assert len(script.read_text(encoding="utf-8").splitlines()) == 3
    done = subprocess.run(
        [str(script), "--help"], cwd="/", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: slice_bench {name}")


# --- a fleet --------------------------------------------------------------------------------------


class Fleet:
    """Stands for a run of playbooks/prep.yml over an inventory: keeps its arguments, and leaves the
    report of the contract's example.
    """

    def __init__(self, code: int = 0, **changes: Any) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.on_stderr = False
        self._code = code
        self.report: dict[str, Any] | None = {**validators.example("report"), **changes}

    def __call__(
        self, name: str, *flags: str, output_on_stderr: bool
    ) -> tuple[int, dict[str, Any] | None]:
        self.asked.append((name, *flags))
        self.on_stderr = output_on_stderr
        return self._code, self.report


def run_fleet(monkeypatch: pytest.MonkeyPatch, plays: Fleet, *words: str) -> int:
    monkeypatch.setattr(fleet, "play_fleet", plays)
    return cli.main(["fleet", *words])


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    (tmp_path / "hosts.yml").touch()
    return str(tmp_path / "hosts.yml")


def ready() -> list[dict[str, Any]]:
    return validators.example("report")["hosts"][:1]


def test_a_fleets_arguments_go_to_ansible_playbook_as_they_are(
    monkeypatch: pytest.MonkeyPatch, inventory: str
) -> None:
    monkeypatch.setattr(commands, "docker_up", lambda: pytest.fail("Docker was looked for"))
    plays = Fleet(hosts=ready())
    further = [
        "-e",
        "x=1",
        "-vv",
        "--check",
        "--forks",
        "200",
        "-e",
        "@vars.yml",
        "--vault-id",
        "lab@prompt",
    ]
    assert (
        run_fleet(
            monkeypatch,
            plays,
            "-i",
            inventory,
            "-e",
            "y=2",
            "--limit",
            "a,!b",
            "-i",
            "c,",
            *further,
        )
        == 0
    )
    assert plays.asked == [
        (
            "prep",
            "--inventory",
            inventory,
            "--inventory",
            "c,",
            "--limit",
            "a,!b",
            "-e",
            "y=2",
            *further,
        )
    ]
    assert not plays.on_stderr


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 1),
        ({"hosts": ready()}, 0),
        ({"hosts": [{**ready()[0], "metrics_ready": False}]}, 1),
        ({"hosts": [{**ready()[0], "unfinished": "its batch was not begun"}]}, 1),
        ({"check_mode": True}, 1),
        ({"check_mode": True, "hosts": [{**ready()[0], "metrics_ready": None}]}, 0),
        (
            {
                "check_mode": True,
                "hosts": [{**ready()[0], "unfinished": "its batch was not begun"}],
            },
            1,
        ),
    ],
)
def test_a_fleets_exit_code_says_whether_all_are_ready(
    changes: dict[str, Any],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    inventory: str,
    tmp_path: Path,
) -> None:
    plays = Fleet(**changes)
    assert run_fleet(monkeypatch, plays, "-i", inventory) == code
    kept = tmp_path / "report.json"
    kept.write_text(json.dumps(plays.report))
    assert run_fleet(monkeypatch, plays, "--report", str(kept)) == code and len(plays.asked) == 1


def test_a_fleets_summary_is_the_last_that_is_said(
    monkeypatch: pytest.MonkeyPatch, inventory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Fleet()
    run_fleet(monkeypatch, plays, "-i", inventory)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "METRICS_READY: 1 of 3 hosts" and [
        line.split(": ")[0] for line in lines[1:]
    ] == ["gh200-02", "gh200-03"]
    run_fleet(monkeypatch, plays, "-i", inventory, "--json")
    said = capsys.readouterr()
    assert plays.on_stderr and said.err.splitlines() == lines
    summary = json.loads(said.out)
    assert (
        summary["exit_code"] == 1
        and summary["metrics_ready"] == {"ready": 1, "of": 3}
        and len(summary["failures"]) == 2
    )
    assert (
        summary["report_id"] == validators.example("report")["report_id"]
        and summary["check_mode"] is False
    )


@pytest.mark.parametrize(
    ("code", "report", "expected", "why"),
    [
        (0, None, 2, "nothing was run"),
        (4, None, 2, "nothing was run"),
        (99, None, 130, "interrupted"),
        (-9, None, 1, "broke off"),
        (250, None, 1, "broke off"),
        (2, {**validators.example("report"), "hosts": ready()}, 1, "ended with exit code 2"),
    ],
)
def test_how_ansible_playbook_ended_is_never_taken_for_a_success(
    code: int,
    report: dict[str, Any] | None,
    expected: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    inventory: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plays = Fleet(code)
    plays.report = report
    assert run_fleet(monkeypatch, plays, "-i", inventory) == expected
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        None,
        "[",
        "[]",
        '{"hosts": {}}',
        '{"report_id": "x", "hosts": []}',
        '{"report_id": "x", "hosts": [{}]}',
    ],
)
def test_a_file_that_is_no_report_is_wrong_usage(
    content: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert run_fleet(monkeypatch, Fleet(), "--report", str(path)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("ERROR: ") and said.out == ""


def test_an_inventory_that_is_not_there_and_a_report_that_is_to_be_run_are_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, inventory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = Fleet()
    assert (
        run_fleet(monkeypatch, plays, "-i", inventory, "-i", "nowhere") == 2
        and "no inventory nowhere" in capsys.readouterr().err
    )
    assert run_fleet(monkeypatch, plays, "--report", "x", "--check") == 2 and plays.asked == []


@pytest.mark.parametrize(("words", "asked"), [([], 1), (["--check"], 0), (["-C"], 0)])
def test_without_an_inventory_the_fleet_is_this_machine_whose_docker_is_looked_after(
    words: list[str], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(commands, "docker_up", lambda: looked.append(1))
    run_fleet(monkeypatch, Fleet(hosts=ready()), *words)
    assert len(looked) == asked


def test_help_of_a_fleet_names_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["fleet", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--report FILE" in said
    assert (
        "exit codes: 0 every host is METRICS_READY (with --check: nothing would fail), 1 some host"
        " is not, 2 wrong usage" in said
    )
    assert "130 interrupted" in said


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, True), ({"ANSIBLE_CONFIG": "/lab/ansible.cfg"}, False), ({"SGL_REPORT_DIR": "r"}, True)],
)
def test_a_fleets_playbook_runs_where_its_caller_stands_with_the_labs_own_configuration(
    given: dict[str, str],
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = tmp_path / "ansible-playbook"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nnames = ('ANSIBLE_CONFIG', 'SGL_REPORT_DIR',"
        " 'ANSIBLE_CALLBACKS_ENABLED')\ntold = {'words': sys.argv[1:], 'folder': os.getcwd(),"
        " **{name: os.environ.get(name) for name in names}}\nprint('its"
        " output')\nopen(os.environ['SGL_REPORT_OUTCOME'],"
        " 'w').write(json.dumps(told))\nsys.exit(2)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(playbook, "_program", lambda name: tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in ("ANSIBLE_CONFIG", "SGL_REPORT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, told = playbook.play_fleet("prep", "--limit", "a", output_on_stderr=True)
    assert code == 2 and told is not None
    assert told["words"] == [str(ROOT / "playbooks" / "prep.yml"), "--limit", "a"] and told[
        "folder"
    ] == str(tmp_path)
    assert told["ANSIBLE_CONFIG"] == (str(ROOT / "ansible.cfg") if kept else "/lab/ansible.cfg")
    assert told["SGL_REPORT_DIR"] == (
        given.get("SGL_REPORT_DIR") or (str(ROOT / "reports") if kept else None)
    )
    assert "slice_bench.sglang.report" in told["ANSIBLE_CALLBACKS_ENABLED"]
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "its output\n")
