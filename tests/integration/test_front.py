"""The scripts and SLICE-Bench's call, as a reader of the hand-off types them: start, provider-prep,
server, smoke, stop.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgl_admin.contract import stages
from slice_bench import caller
from slice_bench.commands import status_line
from tests.contract import validators
from tests.integration.installation import (
    BIN,
    IMAGE,
    ROOT,
    Site,
    docker,
    installation,
    port_is_free,
)

# What each stage is that has nothing to do here.
SKIPPED = dict.fromkeys(stages.NAMES, "skipped")

pytestmark = pytest.mark.slow
PROFILE = "custom/sglang/qwen3-tiny-cpu"
START = [str(ROOT / "scripts" / "start_observable_container.sh")]
STOP = [str(ROOT / "scripts" / "stop_observable_container.sh")]
FRONT = [str(BIN / "python"), "-m", "slice_bench.cli"]
OURS = {*caller._TEXTS, *caller._NUMBERS, *caller._FLAGS, "VALIDATE_ONLY"}


class Front:
    """An installation of a caller who knows no Ansible: all settings of the scripts are in the
    environment.
    """

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self._inventory = folder / "inventory.yml"
        self.settle()
        # The user who runs the tests may have some of these of their own.
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in OURS},
            "HOST_OBS_ROOT": str(site.root),
            "CONTAINER_NAME": site.container,
            "IMAGE_NAME": IMAGE,
            "ANSIBLE_INVENTORY": str(self._inventory),
            "SGL_REPORT_DIR": str(folder / "reports"),
            "PYTHONPATH": str(ROOT),
        }

    def settle(self, **more: Any) -> None:
        """Write the inventory: ports of the tests' own, and what the environment of a caller cannot
        say.
        """
        names = (
            "sgl_prometheus_port",
            "sgl_node_exporter_port",
            "sgl_sglang_port",
            "sgl_user",
            "sgl_flavour",
        )
        given = {name: self.site.variables[name] for name in names if name in self.site.variables}
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            **given,
            **more,
        }
        self._inventory.write_text(yaml.safe_dump({"sglang": {"hosts": {"this-machine": host}}}))

    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command from a folder that is not the checkout."""
        return subprocess.run(
            words,
            cwd="/",
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )


@pytest.fixture
def front(image: str, tmp_path: Path) -> Iterator[Front]:
    with installation(Site, container="sglang-dev-front") as site:
        yield Front(site, tmp_path)


def test_the_whole_way_through_the_scripts_alone(front: Front) -> None:
    site = front.site
    began = time.monotonic()
    started = front(*START)
    took_s = time.monotonic() - began
    assert started.returncode == 0, started.stderr
    lines = started.stdout.splitlines()
    assert lines == [
        f"CONTAINER_RUN_META_JSON_HOST={site.pointed()}",
        f"CONTAINER_RUN_META_JSON=/telemetry/container_runs/{site.run_id}.json",
    ]
    beats = started.stderr.splitlines()
    assert all(re.match(r"start: \d+ s: ", line) for line in beats), started.stderr
    # The test's clock has the interpreter's start in it, and the front's has not.
    assert len(beats) >= (took_s - 2) // 5 and (not beats or beats[0].startswith("start: 5 s: ")), (
        started.stderr
    )
    validators.parse_and_validate_pointer("\n".join(reversed(lines)) + "\n")
    run_id, container_id = site.run_id, site.inspect()["Id"]  # type: ignore[index]

    again = front(*START)
    assert again.returncode == 0 and again.stdout == started.stdout
    assert f"{run_id} is live" in again.stderr and "is kept" in again.stderr
    # Another image asks for another container: the live run goes before it, and the answer says so.
    other = front(*START, IMAGE_NAME="sglang-dev-it:another")
    assert other.returncode == 0 and "stop it first" in other.stderr, other.stderr
    assert site.run_id == run_id and site.inspect()["Id"] == container_id  # type: ignore[index]

    planned = front(*FRONT, "provider-prep", PROFILE, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert (
        planned.stdout.startswith("RESULT_STATUS dry_run deep_gemm:")
        and not (site.run_dir() / "prep_result.json").exists()
    )

    prepared = front(
        *FRONT,
        "provider-prep",
        PROFILE,
        "--tune-moe",
        "--skip-moe-fusion-cache",
        "--skip-gemm-cache",
        "--tp",
        "1",
        "--json",
    )
    assert prepared.returncode == 0, prepared.stderr
    *document, path, status = prepared.stdout.splitlines()
    assert path == f"RESULT_JSON /telemetry/container_runs/{run_id}/prep_result.json"
    assert status == status_line("ok", {**SKIPPED, "inductor": "ok"})
    result = json.loads("\n".join(document))
    validators.validate_prep_result(result)
    assert (
        result["telemetry_probe"]["ok"] is True
        and result["run"]["settings"]["moe_fusion"] == "skip"
    )
    assert result["run"]["profile"] == PROFILE
    (page,) = [
        path
        for path in Path(front.environment["SGL_REPORT_DIR"]).glob("*.html")
        if "1 of 1" in path.read_text()
    ]
    report = json.loads(page.with_suffix(".json").read_text())
    validators.validate_report(report)
    assert (
        report["hosts"][0]["caches"]["torchinductor"]["after_files"]
        > report["hosts"][0]["caches"]["torchinductor"]["before_files"]
        == 0
    )

    served = front(*FRONT, "server", "start", "--json")
    assert served.returncode == 0, served.stderr
    server = json.loads(served.stdout)
    assert server["healthy"] is True and server["server"]["argv"] == result["run"]["server"]["argv"]
    assert any("sglang.launch_server" in line for line in site.servers())
    # An operator's run with other options would take the container from under it.
    refused = site.play("prep", variables={"sgl_scrape_interval": "2s"})
    assert refused.code == 2 and "a server that was started for a benchmark" in refused.text, (
        refused.output
    )
    assert site.inspect()["Id"] == container_id  # type: ignore[index]
    smoked = front(*FRONT, "smoke", "--json")
    assert smoked.returncode == 0, smoked.stderr + site.diagnosis()
    *document, path, status = smoked.stdout.splitlines()
    summary = json.loads("\n".join(document))
    validators.validate_smoke_summary(summary)
    assert summary["server"]["used"] == "running" and summary["prep_metrics_ready"] is True
    assert status == "SMOKE_STATUS done passed:4 failed:0 not_run:0 prep_metrics_ready:true"
    assert path.removeprefix("SMOKE_SUMMARY ") == summary["summary"]["container_path"]
    assert site.servers(), "a server that ran before is left running"
    assert front(*FRONT, "server", "stop").returncode == 0
    assert site.servers() == [] and port_is_free(site.ports["sglang"])

    ended = front(*STOP)
    assert ended.returncode == 0, ended.stderr
    assert site.inspect() is None and not site.pointer.exists()
    assert all(port_is_free(port) for port in site.ports.values())
    idle = front(*STOP)
    assert idle.returncode == 0, idle.stderr


@pytest.mark.long
def test_what_the_host_can_do_is_measured_and_shown(front: Front) -> None:
    assert front(*START).returncode == 0
    prepared = front(*FRONT, "provider-prep", PROFILE, "--json")
    assert prepared.returncode == 0, prepared.stderr
    result = front.site.result()
    measured = front(*FRONT, "perf", "--json")
    assert measured.returncode == 0, measured.stderr
    *document, status = measured.stdout.splitlines()
    probe = json.loads("\n".join(document))
    validators.validate_prep_result({**result, "perf_probe": probe})
    assert {"triad", "decode"} <= {each["name"] for each in probe["measurements"]}
    assert status.startswith(f"PERF_STATUS {probe['verdict']} perf:ok")
    shown = front(*FRONT, "perf", PROFILE)
    assert shown.returncode == 0 and "perf:noop" in shown.stdout, shown.stderr
    assert all(each["name"] in shown.stdout for each in probe["measurements"])


@pytest.mark.long
def test_provider_prep_and_smoke_start_what_is_down(front: Front, tmp_path: Path) -> None:
    site = front.site
    early = front(*FRONT, "smoke")
    assert early.returncode == 1 and "slice_bench provider-prep" in early.stderr
    prepared = front(*FRONT, "provider-prep", PROFILE, "--skip-warmup-cache")
    assert prepared.returncode == 0, prepared.stderr
    assert prepared.stdout.splitlines()[-1] == status_line("ok", SKIPPED)
    assert site.result()["telemetry_probe"]["ok"] is True

    scenario = tmp_path / "mine.yml"
    scenario.write_text(
        "name: mine\ntests:\n- {name: a, turns: [Hello, And again], max_tokens: 8}\n- {name: b,"
        " turns: [x], timeout_s: 0.001}\n"
    )
    smoked = front(*FRONT, "smoke", str(scenario))
    assert smoked.returncode == 8, smoked.stderr
    assert "ERROR: " in smoked.stderr and "b: timeout in turn 1" in smoked.stderr
    path, status = smoked.stdout.splitlines()
    assert status == "SMOKE_STATUS failed passed:1 failed:1 not_run:0 prep_metrics_ready:true"
    summary = json.loads(
        (site.telemetry / path.removeprefix("SMOKE_SUMMARY /telemetry/")).read_text()
    )
    validators.validate_smoke_summary(summary)
    assert (
        summary["server"]["used"] == "started"
        and site.servers() == []
        and port_is_free(site.ports["sglang"])
    )
    transcript = json.loads(Path(summary["tests"][0]["transcript"]["host_path"]).read_text())
    assert [message["role"] for message in transcript["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    # What the smoke sent is in Prometheus within the window that its summary names.
    window = summary["tests"][0]["prometheus"]
    query = (
        f'/api/v1/query?query=sglang:prompt_tokens_total{{container_run="{site.run_id}"}}'
        f"&time={window['end'] + 2}"
    )
    values = [float(series["value"][1]) for series in site.prometheus(query)["data"]["result"]]
    assert sum(values) >= summary["tests"][0]["usage"]["prompt_tokens"]

    wrong = tmp_path / "wrong.yml"
    wrong.write_text("name: w\ntests: []\n")
    refused = front(*FRONT, "smoke", str(wrong))
    assert (
        refused.returncode == 2 and "tests: must be a list of at least one test" in refused.stderr
    )
    assert front(*FRONT, "smoke", str(tmp_path / "none.yml")).returncode == 2


@pytest.mark.long
def test_stop_and_start_tell_what_is_live(front: Front, tmp_path: Path) -> None:
    site = front.site
    prepared = front(*FRONT, "provider-prep", PROFILE, "--skip-warmup-cache")
    assert prepared.returncode == 0, prepared.stderr
    container_id = (site.inspect() or {})["Id"]
    # The inventory names the container, where the environment names none.
    front.settle(sgl_container=site.container)
    del front.environment["CONTAINER_NAME"]
    assert front(*FRONT, "server", "status").returncode == 7
    assert front(*FRONT, "server", "start").returncode == 0
    assert front(*FRONT, "server", "status").returncode == 0

    def refused_with(code: int, words: str, *command: str, **environment: str) -> None:
        done = front(*command, **environment)
        assert done.returncode == code and words in done.stderr, done.stderr
        [error] = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        assert "sgl_stop_force" not in error and "playbooks/" not in error
        assert "Origin:" not in done.stderr and "TASK" not in done.stderr
        assert site.servers() and (site.inspect() or {})["Id"] == container_id

    refused_with(5, "a server that was started for a benchmark", *STOP)
    wrong = f"CONTAINER_NAME is foo, but the run of {site.telemetry} is live in container"
    for command in (START, STOP, [*FRONT, "smoke"]):
        refused_with(1, f"{wrong} {site.container}", *command, CONTAINER_NAME="foo")
    # Nothing says any more what runs; the locks do.
    kept = tmp_path / "pointer"
    shutil.copy2(site.pointer, kept)
    site.pointer.unlink()
    refused_with(5, "serving.lock is held", *STOP)
    refused_with(1, "a new run would end what runs in it", *START)
    named = f"telemetry folder of container {site.container} (running)"
    for command in (START, STOP, [*FRONT, "smoke"]):
        refused_with(1, named, *command, CONTAINER_NAME="foo")
    shutil.copy2(kept, site.pointer)
    shutil.chown(site.pointer, *site.owner)

    docker("pause", site.container)
    for command, code, words in ((START, 1, "is paused: run `docker unpause"), (STOP, 5, "lock")):
        done = front(*command)
        assert done.returncode == code and words in done.stderr, done.stderr
        assert site.state()["Paused"]
    docker("unpause", site.container)

    site.signal_matching("prometheus.yml", signal.SIGSTOP)
    for _ in range(2):
        refused_with(1, "its Prometheus does not answer", *START)
    ended = front(*STOP, "--force")
    assert ended.returncode == 0 and site.inspect() is None, ended.stderr
    assert f"Container {site.container} is stopped" in ended.stdout
    assert front(*FRONT, "server", "stop").returncode == 4
    assert "Nothing runs" in front(*STOP).stdout


def test_validate_only_makes_the_tree_and_asks_docker_nothing(front: Front, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    spy = tmp_path / "bin" / "docker"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" >> {asked}\nexit 1\n')
    spy.chmod(0o755)
    done = front(*START, VALIDATE_ONLY="1", PATH=f"{spy.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert (front.site.telemetry / "container_runs").is_dir() and front.site.inspect() is None
    assert not asked.exists(), asked.read_text()


def test_what_belongs_to_somebody_else_ends_with_3(front: Front) -> None:
    site = front.site
    assert front(*START, VALIDATE_ONLY="1").returncode == 0
    uid, gid = site.owner
    foreign = site.profiles / "triton" / "x"
    foreign.touch()
    os.chown(foreign, uid + 7, gid)
    for more in ({"VALIDATE_ONLY": "1"}, {}):
        refused = front(*START, **more)
        assert refused.returncode == 3 and refused.stdout == ""
        assert refused.stderr.splitlines()[-1].startswith(
            f"ERROR: {foreign} is owned by {uid + 7}:{gid}"
        )
        assert f"not {uid}:{gid}" in refused.stderr
    assert site.inspect() is None
    ignored = front(*START, VALIDATE_ONLY="1", HOST_DIR_OWNERSHIP_IGNORE="1")
    assert ignored.returncode == 0 and "does not belong to the expected owner" in ignored.stdout
    assert str(foreign) in ignored.stdout
    os.chown(foreign, uid, gid)
    expected = front(
        *START, VALIDATE_ONLY="1", EXPECT_OWNER_UID=str(uid + 1), EXPECT_OWNER_GID=str(gid + 1)
    )
    assert expected.returncode == 3 and f"not {uid + 1}:{gid + 1}" in expected.stderr
    site.pointer.write_text("x")
    os.chown(site.pointer, uid, gid)
    pointer = front(*START, VALIDATE_ONLY="1", EXPECT_POINTER_OWNER_UID=str(uid + 2))
    assert (
        pointer.returncode == 3
        and str(site.pointer) in pointer.stderr
        and f"not {uid + 2}:{gid}" in pointer.stderr
    )


def test_each_part_of_the_tree_can_be_elsewhere(front: Front, tmp_path: Path) -> None:
    base = front.site.root.parent
    parts = {
        name: str(base / f"my {name.lower()}")
        for name in (
            "HOST_TELEMETRY_ROOT",
            "HOST_PROFILES_ROOT",
            "HOST_MODELS_ROOT",
            "HOST_HF_ROOT",
        )
    }
    done = front(*START, VALIDATE_ONLY="1", **parts)
    assert done.returncode == 0, done.stderr
    assert all(Path(path).is_dir() for path in parts.values()) and not front.site.telemetry.exists()
    for path in parts.values():
        shutil.rmtree(path)


def test_a_container_that_dies_while_it_starts_shows_its_last_words(front: Front) -> None:
    # Python refuses to start with it.
    front.settle(sgl_environment={"PYTHONHASHSEED": "none"}, sgl_start_timeout=10)
    died = front(*START)
    assert died.returncode == 1 and died.stdout == ""
    assert "The end of its log:" in died.stderr and "PYTHONHASHSEED" in died.stderr, died.stderr
    docker("rm", "--force", front.site.container)


def test_the_line_of_the_hand_off_with_uv(front: Front) -> None:
    line = (
        "uv run python -m slice_bench.cli provider-prep custom/sglang/qwen3-next-80b-fp8-baseline"
        " --tune-moe --skip-moe-fusion-cache "
    )
    words = [*line.split(), "--skip-gemm-cache", "--skip-warmup-cache", "--tp", "1"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**front.environment, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    # The model of 80 GB is not here: that is what the preflight says of it, before anything
    # changes.
    assert (
        done.returncode == 1 and "Qwen3-Next-80B-A3B-Thinking-FP8 does not exist" in done.stderr
    ), done.stderr
    assert front.site.inspect() is None


def test_no_docker_is_told_with_its_remedy(front: Front, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in (
        "bash",
        "dirname",
        "env",
        "flock",
        "mkdir",
        "readlink",
        "cat",
        "sha256sum",
        "cut",
        "rm",
        "mv",
        "ln",
        "sh",
    ):
        (tools / name).symlink_to(shutil.which(name) or name)
    done = front(*START, PATH=str(tools))
    assert done.returncode == 1 and "docker.io" in done.stderr, done.stderr
