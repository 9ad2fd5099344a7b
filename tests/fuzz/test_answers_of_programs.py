"""What docker and sgl-admin print: whatever it is, the answer is a sentence that says its meaning,
and nothing passes for done or ready.
"""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _docker_health as docker_health,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _host_tree as host_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils import _preflight as preflight
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.options import (
    prep_options,
    request_document,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerCli,
    DockerError,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._prep_client import (
    AdminError,
    PrepClient,
)
from hypothesis import strategies as st

from sgl_admin.base.errors import Refused
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.contract import stages
from sgl_admin.records import run
from tests.contract import validators
from tests.doubles import docker_daemon, docker_words
from tests.doubles.prep_action import PrepAction
from tests.fuzz.fuzzing import (
    encoded,
    files_of,
    fuzz,
    mostly,
    one_line,
    reached,
    text,
)

PREP_ID = validators.example("prep_result")["run"]["prep_id"]
INSPECTED = {
    "Id": "c" * 64,
    "Image": "sha256:1",
    "Architecture": "amd64",
    "Created": "2026-11-23T09:00:00Z",
    "Config": {"Labels": {"a": "b"}},
    "State": {
        "Running": True,
        "Restarting": False,
        "Status": "running",
        "StartedAt": "2026-11-23T09:15:00.1Z",
        "ExitCode": 0,
        "Pid": 7,
    },
}


def output(document: Any) -> st.SearchStrategy[str]:
    """A program's standard output that should be this document, as Ansible hands it on."""
    return files_of(document).map(lambda content: content.decode(errors="surrogateescape"))


def codes() -> st.SearchStrategy[int]:
    return mostly(st.just(0), st.sampled_from([1, 2, 3, 4, 5, 125, 126, 127, 137]), 92)


@fuzz(
    deep=0.15,
    printed=output([INSPECTED]),
    code=codes(),
    error=text()
    | st.sampled_from(
        [
            *(words.replace("box:local", "x") for words in docker_words.IMAGE.values()),
            *(words.replace("box", "x") for words in docker_words.CONTAINER.values()),
            *(words for words, _remedy in docker_words.SILENT.values()),
        ]
    ),
    kind=st.sampled_from(["container", "image"]),
)
def test_docker_describes_a_thing_or_says_why_not(
    printed: str, code: int, error: str, kind: str
) -> None:
    docker = DockerCli(lambda command: (code, printed, error), "docker")
    try:
        found = docker.container("x") if kind == "container" else docker.image("x")
    except DockerError as refusal:
        assert str(refusal)
        return
    if found is None:
        # Only a sentence of Docker's own makes a thing missing while every call fails.
        last = error.strip().splitlines()[-1]
        assert code and last.startswith(("Error: ", "Error response from daemon: "))
        assert last.lower().endswith(f"no such {kind}: x") or kind == "image"
        return
    reached()
    inspected = json.loads(printed)[0]
    assert all(
        isinstance(found[name], str)
        for name in (
            "id",
            *(("status", "started_at", "image_id") if kind == "container" else ("created",)),
        )
    )
    assert isinstance(found["labels"], dict)
    if kind == "container":
        assert found["running"] is (
            inspected["State"]["Running"] is True
            and not inspected["State"].get("Restarting")
            and not inspected["State"].get("Paused")
        )
        assert isinstance(found["name"], str) and isinstance(found["mounts"], dict)
        assert type(found["pid"]) is int and type(found["exit_code"]) is int
        list(preflight._taken_ports({**found, "running": True}, SimpleNamespace(ports={})))  # type: ignore[arg-type]


@fuzz(
    deep=0.1,
    printed=output(
        {
            **docker_daemon.INFO,
            "Name": "vm",
            "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
            "SecurityOptions": ["name=seccomp,profile=default", "name=userns", "name=rootless"],
            "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        }
    ),
    code=codes(),
    folders=st.lists(text(), max_size=2),
)
def test_a_daemon_that_describes_itself_is_judged_by_what_can_be_read(
    printed: str, code: int, folders: list[str]
) -> None:
    info = DockerCli(lambda command: (code, printed, ""), "docker").info()
    verdict = docker_health.judge(info, folders)
    for message in [*verdict.problems, *verdict.warnings]:
        one_line(message)
    assert docker_health.version(info) is None or info["ServerVersion"]
    folder = docker_health.image_folder(info)
    assert folder is None or folder.startswith("/")
    said = "\n".join(verdict.problems)
    options = info.get("SecurityOptions")
    if isinstance(options, list):
        # Older releases leave `name=` off.
        names = [
            option.partition(",")[0].removeprefix("name=")
            for option in options
            if isinstance(option, str)
        ]
        assert ("runs rootless" in said) is ("rootless" in names)
        reached()


# --- sgl-admin ------------------------------------------------------------------------------------


def envelope(**job: Any) -> dict[str, Any]:
    result = validators.example("prep_result")
    # Fields that are not read would only hide those that are.
    result["run"] = {"run_id": result["run"]["run_id"], "prep_id": PREP_ID}
    for stage in result["stages"].values():
        del stage["signature"], stage["artifacts"]
    return {
        "job": {
            **validators.example("job"),
            "prep_id": PREP_ID,
            "state": "done",
            "exit_code": 0,
            **job,
        },
        "result": result,
        "attached": False,
    }


RUNNING = envelope(state="running", exit_code=None)
PLAN = {
    "schema_version": "1",
    "dry_run": True,
    "would_change": True,
    "stages": {
        name: {"status": "would_run", "reason": "no finished work"}
        for name in ("deep_gemm", "inductor")
    },
    "telemetry_probe": "would_run",
    "warnings": ["a warning"],
}


def answers() -> st.SearchStrategy[list[tuple[int, str, str]]]:
    running = st.tuples(
        codes(),
        mostly(st.just(encoded(RUNNING).decode()), output(RUNNING), 60),
        st.just("sgl-admin: a word\n"),
    )
    last = st.tuples(codes(), output(envelope()), text())
    # Whatever comes before, it ends: a prep that runs on for ever is asked for ever.
    end = (0, json.dumps({"job": None, "result": None}), "")
    return st.builds(lambda first, then: [*first, then, end], st.lists(running, max_size=2), last)


def refused(result: dict[str, Any]) -> bool:
    return result.get("failed") is True and isinstance(result["msg"], str) and bool(result["msg"])


@fuzz(deep=0.25, printed=answers())
def test_a_prep_is_done_and_ready_only_when_sgl_admin_says_so(
    printed: list[tuple[int, str, str]],
) -> None:
    result = PrepAction(list(printed), {"model": "/models/m"}, False).run(None, {})
    json.dumps(result)
    if "job" in result:
        reached()
    assert (
        result.get("metrics_ready", False) in (True, False)
        and type(result.get("metrics_ready", False)) is bool
    )
    if refused(result):
        return
    assert not result.get("failed")
    assert result["job"]["state"] == "done" and result["job"]["exit_code"] == 0
    assert all(stage["status"] != "error" for stage in result["result"]["stages"].values())
    assert result["metrics_ready"] is (result["result"]["telemetry_probe"]["ok"] is True)


@fuzz(
    deep=0.2,
    printed=output(PLAN).map(lambda plan: plan + "\nRESULT_STATUS dry_run inductor:would_run\n"),
    code=codes(),
)
def test_a_dry_run_is_told_or_refused(printed: str, code: int) -> None:
    result = PrepAction([(code, printed, "")], {"model": "/models/m"}, True).run(None, {})
    json.dumps(result)
    if refused(result):
        return
    reached()
    assert result["changed"] is (
        json.JSONDecoder().raw_decode(printed.strip())[0]["would_change"] is True
    )


@fuzz(
    deep=0.3,
    printed=output(envelope()),
    code=codes(),
    error=text(),
    asked=st.sampled_from(["start", "follow", "dry_run"]),
)
def test_the_client_of_a_prep_raises_nothing_else(
    printed: str, code: int, error: str, asked: str
) -> None:
    client = PrepClient(lambda command, text: (code, printed, error), "box")
    try:
        found = {
            "start": lambda: client.start({}, 0),
            "follow": lambda: client.follow(PREP_ID, 0),
            "dry_run": lambda: client.dry_run({}),
        }[asked]()
    except AdminError as refusal:
        assert str(refusal)
        return
    reached()
    assert isinstance(found, dict)
    if asked != "dry_run":
        assert all(
            found[name] is None or isinstance(found[name], dict) for name in ("job", "result")
        )
    if asked == "follow":
        assert found["job"]["prep_id"] == PREP_ID


# --- arguments ------------------------------------------------------------------------------------

_MODES = st.sampled_from(["ensure", "rebuild", "skip"])


@fuzz(
    deep=0.3,
    options=st.fixed_dictionaries(
        {
            **{name: st.just(option.default) for name, option in prep_options().items()},
            "model": mostly(st.just("/models/m"), text()),
            "tp": mostly(st.integers(1, 8), st.integers(), 90),
            **dict.fromkeys(stages.OPTIONS.values(), _MODES),
            "moe_batch_sizes": st.lists(
                mostly(st.integers(1, 9000), st.integers(), 95), max_size=3
            ),
            "moe_dtype": mostly(st.just("auto"), text()),
            "probe": st.sampled_from(["auto", "always", "never"]),
            "server_args": st.lists(text(), max_size=3),
            "server_env": st.dictionaries(
                mostly(st.from_regex(r"\A[A-Z_]{1,8}\Z"), text()), text(), max_size=2
            ),
            "cuda_graph_batch_sizes": st.lists(
                mostly(st.integers(1, 512), st.integers(), 95), max_size=3
            ),
            "moe_fusion": st.sampled_from(["ensure", "skip"]),
            "server_timeout": mostly(st.floats(0, 99999), st.floats(), 95),
            "probe_timeout": mostly(st.floats(0, 99999), st.floats(), 95),
        }
    ),
)
def test_the_modules_options_reach_sgl_admin_or_are_refused_as_usage(
    options: dict[str, Any],
) -> None:
    document = request_document(options)
    live = run.Run("r", {"services": {"sglang": {"port": 31999}}})
    try:
        with mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(document).encode()))):
            parsed = cli._parser().parse_args(["caches", "ensure", "--request", "-"])
            made = request_cli.of(parsed, live)
    except Refused as refusal:
        assert refusal.exit_code == cli.EXIT_USAGE and str(refusal).startswith("the request")
        return
    reached()
    with mock.patch.dict("os.environ", {"ASKED": json.dumps(document)}):
        parsed = cli._parser().parse_args(["caches", "import", "-", "--request", "env:ASKED"])
        assert request_cli.of(parsed, live) == made
    assert (
        made.model == (options["model"].rstrip("/") or "/")
        and made.tp == options["tp"]
        and made.moe_dtype == options["moe_dtype"]
    )
    assert made.stages == {name: options[option] for name, option in stages.OPTIONS.items()}
    assert made.moe_batch_sizes == tuple(
        sorted(set(options["moe_batch_sizes"]))
    ) and made.server_args == tuple(options["server_args"])
    assert made.cuda_graph_batch_sizes == tuple(sorted(set(options["cuda_graph_batch_sizes"])))
    assert made.server_env == tuple(
        f"{name}={value}" for name, value in options["server_env"].items()
    )
    assert made.server_timeout_s == pytest.approx(options["server_timeout"], rel=1e-5)


@fuzz(
    deep=0.5,
    path=st.lists(st.sampled_from(["/", "//", ".", "..", "a", "b c"])).map("".join) | text(),
)
def test_a_clean_path_is_clean_and_stays_so(path: str) -> None:
    cleaned = host_tree.clean_path(path)
    reached()
    assert host_tree.clean_path(cleaned) == cleaned
    assert cleaned in ("", "/") or not cleaned.endswith("/")
    assert "//" not in cleaned and cleaned.startswith("/") is path.startswith("/")
