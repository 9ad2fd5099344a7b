"""What breaks in the middle fails this run, in one sentence, and loses nothing: the next run
finishes, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract import validators
from tests.faults.fault_site import FaultSite
from tests.faults.leftovers import leftovers
from tests.integration.installation import docker, ended, wait_for
from tests.integration.installation import installation as installed

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")

SLOW = {"SGL_TEST_SERVER": "1", "SGL_TEST_SERVER_READY_S": "6"}


@pytest.fixture
def installation(faulty: FaultSite) -> Iterator[FaultSite]:
    """An installation that is whole again at the end, and on which nothing was left."""
    yield faulty
    done = faulty.ensure()
    assert done.returncode == 0, done.stdout + done.stderr + faulty.diagnosis()
    assert faulty.result()["status"] == "ok" and faulty.result()["telemetry_probe"]["ok"] is True
    assert leftovers(faulty) == []


def begin(site: FaultSite, **environment: str) -> dict:
    """Begin to rebuild the inductor's caches, without waiting; returns the job once its server
    runs.
    """
    given = {f"SGL_TEST_SERVER_{name}": value for name, value in environment.items()}
    done = site.ensure("--inductor", "rebuild", "--detach", environment=given)
    assert done.returncode == 0, done.stderr
    return site.await_server()


def test_container_killed_in_warm_up(installation: FaultSite) -> None:
    run_id = installation.run_id
    begin(installation, READY_S="60")
    docker("kill", installation.container)
    play = installation.must_play("prep")
    result = installation.result()
    assert installation.run_id != run_id and result["stages"]["inductor"]["status"] == "ok"
    assert any("killed before it finished" in warning for warning in result["warnings"]), result[
        "warnings"
    ]
    assert "killed before it finished" in play.text


def test_prep_killed_in_warm_up(installation: FaultSite) -> None:
    job = begin(installation, READY_S="60")
    installation.kill(job["pid"], signal.SIGKILL)
    status = json.loads(installation.admin("status", "--wait", "10", "--json").stdout)
    assert status["job"]["state"] == "interrupted" and status["result"] is None
    assert installation.servers() == []


@pytest.mark.long
def test_server_that_never_gets_healthy(installation: FaultSite) -> None:
    """The playbook says so, with the last lines of the server's log."""
    never = {
        "sgl_environment": {**SLOW, "SGL_TEST_SERVER_READY_S": "never"},
        "sgl_server_timeout": 2,
    }
    play = installation.play("prep", variables={**never, "sgl_stages": {"inductor": "rebuild"}})
    assert play.code != 0 and "Traceback" not in play.output
    assert (
        "stage inductor failed, server_unhealthy_timeout: the server did not become healthy"
        " within 2 s" in play.text
    ), play.output
    assert "double: stands for the SGLang server" in play.text, (
        "the end of the server's log is not shown"
    )
    assert leftovers(installation) == []
    installation.must_play("prep")


def test_server_that_dies_while_serving(installation: FaultSite) -> None:
    done = installation.ensure(
        "--inductor", "rebuild", environment={"SGL_TEST_SERVER_DIE_AFTER": "2"}
    )
    stage = installation.stage("inductor")
    assert done.returncode == 13 and stage["error_type"] == "request_failed", done.stdout
    assert any("Segmentation fault" in line for line in stage["log_tail"]), stage["log_tail"]


def test_prometheus_that_hangs_in_the_probe(installation: FaultSite) -> None:
    installation.signal_matching("--storage.tsdb.path", signal.SIGSTOP)
    try:
        done = installation.ensure("--probe", "always", "--probe-timeout", "1")
    finally:
        installation.signal_matching("--storage.tsdb.path", signal.SIGCONT)
    assert done.returncode == 6, done.stdout + done.stderr
    proof = installation.result()["telemetry_probe"]
    assert (
        proof["ok"] is False
        and f"127.0.0.1:{installation.ports['prometheus']}" in proof["reason"]
        and "prometheus does not answer" in proof["reason"]
    )


def test_prometheus_that_is_down_does_not_leave_the_proof_standing(installation: FaultSite) -> None:
    """It is started again by its supervisor; what asks meanwhile gets no false ready."""
    installation.signal_matching("--storage.tsdb.path", signal.SIGSTOP)
    try:
        done = installation.ensure("--probe-timeout", "1")
    finally:
        installation.signal_matching("--storage.tsdb.path", signal.SIGKILL)
    assert done.returncode == 6 and installation.result()["telemetry_probe"]["ok"] is False, (
        done.stdout
    )
    wait_for(
        lambda: installation.ensure("--probe-timeout", "5").returncode == 0,
        "the proof to be made again",
        60,
    )


# --- the clock ------------------------------------------------------------------------------------


def test_samples_of_a_clock_that_was_set_back(installation: FaultSite) -> None:
    """The double stamps its samples as a scrape before the jump would have been: they are from the
    future now.
    """
    done = installation.ensure(
        "--probe",
        "always",
        "--probe-timeout",
        "1",
        environment={"SGL_TEST_SERVER_CLOCK_OFFSET_S": "300"},
    )
    assert done.returncode == 6, done.stdout
    earlier = installation.result()["telemetry_probe"]["tokens_expected"]
    done = installation.ensure()
    assert done.returncode == 0, done.stdout + done.stderr
    proof = installation.result()["telemetry_probe"]
    assert proof["ok"] is True and proof["tokens_seen"] > earlier, (
        "a sample of the earlier server could pass for this one's"
    )


def test_prometheus_stores_on_after_the_clock_was_set_back(installation: FaultSite) -> None:
    installation.ensure(
        "--probe",
        "always",
        "--probe-timeout",
        "1",
        environment={"SGL_TEST_SERVER_CLOCK_OFFSET_S": "-3600"},
    )
    query = "count_over_time(sglang:prompt_tokens_total[10m] offset 55m)"
    answer = installation.prometheus("/api/v1/query?query=" + query.replace(" ", "%20"))
    assert float(answer["data"]["result"][0]["value"][1]) >= 1, answer


# --- a disk that is full --------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)],
        check=True,
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is left, as long as this lasts."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (2**20, 4096):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@needs_root
@pytest.mark.parametrize(("what", "megabytes"), [("profiles", 16), ("telemetry", 512)])
def test_full_disk(fault_image: None, what: str, megabytes: int) -> None:
    with installed(FaultSite, container="sglang-dev-full") as site:
        with small_disk(site.root.parent / "disk", megabytes) as disk:
            root = disk / what
            site.root.mkdir()
            (site.root / what).symlink_to(root)
            for path in (site.root, site.root / what):
                os.chown(path, *site.owner, follow_symlinks=False)
            site.must_play(
                "prep", variables={f"sgl_{what}_root": str(root), "sgl_space_gb": {what: 0.001}}
            )
            with filled(root):
                done = site.ensure("--inductor", "rebuild")
                assert done.returncode in (1, 13), done.stdout + done.stderr
                said = done.stdout + done.stderr + site.log()
                assert "no space left" in said.lower() and "Traceback" not in done.stderr, said
                for record in (site.run_dir() / "prep_result.json", site.run_dir() / "job.json"):
                    json.loads(record.read_text())
            done = site.ensure()
            assert done.returncode == 0, done.stdout + done.stderr
            validators.validate_prep_result(site.result())
            assert leftovers(site) == []
            docker("rm", "--force", site.container)


# --- who asked goes away --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        signal.SIGKILL,
    ],
)
def test_controller_that_ends_in_a_prep(installation: FaultSite, number: signal.Signals) -> None:
    """The prep goes on; the same playbook again attaches to it and ends with its result."""
    gate = installation.telemetry / "ready"
    slow = {**SLOW, "SGL_TEST_SERVER_READY_S": "/telemetry/ready"}
    asked = {"sgl_environment": slow, "sgl_probe": "always"}
    playbook = installation.start_play("prep", variables=asked)
    wait_for(
        lambda: any("sglang.launch_server" in word for line in safe(installation) for word in line),
        "the prep's server",
    )
    job = installation.job()
    os.killpg(playbook.pid, number)
    assert ended(playbook).code != 0
    assert (
        installation.job()["state"] == "running" and installation.job()["prep_id"] == job["prep_id"]
    )
    playbook = installation.start_play("prep", variables=asked)
    assert playbook.stdout is not None
    said = "begun"
    while said and job["prep_id"] not in said:
        said = playbook.stdout.readline()
    gate.touch()
    try:
        play = ended(playbook)
    finally:
        gate.unlink()
    assert said and play.code == 0 and play.changed == 1, play.output
    assert (
        installation.job()["prep_id"] == installation.result()["run"]["prep_id"] == job["prep_id"]
    )
    installation.must_play("prep")


def safe(site: FaultSite) -> list[list[str]]:
    """The processes of a container that may just be made again."""
    try:
        return site.processes()
    except AssertionError:
        return []
