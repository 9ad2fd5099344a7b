"""What a prepared host does for months: several profiles served in turn, restarts, pruned runs, a
prep that is cancelled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract import validators
from tests.integration.installation import Site, docker, ended, installation, wait_for
from tests.integration.test_front import FRONT, Front

pytestmark = [pytest.mark.slow, pytest.mark.long]

# Profiles of one model; their servers differ in this argument.
REQUESTS = {"life/few": "3", "life/many": "7"}
FEW, MANY = REQUESTS
# Nothing of this machine's other installations goes.
KEEP = {"runs": 1, "images": 1000, "reports": 100_000, "shared": 10_000, "builds": 10_000}


class Life(Front):
    """An installation with two profiles, as a caller drives it."""

    def __init__(self, site: Site, folder: Path) -> None:
        super().__init__(site, folder)
        for name, requests in REQUESTS.items():
            path = folder / "profiles" / f"{name}.yml"
            path.parent.mkdir(parents=True, exist_ok=True)
            profile = {
                "model": {"name": "tiny/qwen3-tiny", "source": "tiny"},
                "server": {"args": ["--max-running-requests", requests]},
            }
            path.write_text(yaml.safe_dump(profile))
        self.environment["SLICE_BENCH_PROFILES"] = str(folder / "profiles")

    def must(self, *words: str) -> str:
        """What the front prints; it has to succeed."""
        done = self(*FRONT, *words)
        assert done.returncode == 0, done.stdout + done.stderr + self.site.diagnosis()
        return done.stdout

    def prepare(self) -> dict[str, Any]:
        """Both profiles; returns each one's row of the result."""
        self.must("provider-prep", *REQUESTS)
        result = self.site.result()
        validators.validate_prep_result(result)
        # A prep without a profile has a row, too.
        return {name: result["profiles"][name] for name in REQUESTS}

    def serve(self, profile: str) -> None:
        """Start the profile's server in place of whichever runs."""
        self.must("server", "stop")
        served = json.loads(self.must("server", "start", profile, "--json"))
        assert served["healthy"] is True
        argv = served["server"]["argv"]
        # The flavour has a number of its own; the last one counts.
        found = dict(zip(argv, argv[1:], strict=False))
        assert found["--max-running-requests"] == REQUESTS[profile]

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.site.admin("ready", "--json").stdout)
        return answer

    def restart(self) -> str:
        """Restart the container; returns the new run."""
        before = self.site.run_id
        docker("restart", self.site.container)
        return wait_for(
            lambda: (
                run if self.site.pointer.exists() and (run := self.site.run_id) != before else ""
            ),
            "the new run",
        )

    def compiled(self) -> dict[str, int]:
        """The files that stages vouch for, with their times of change."""
        return {
            str(path): path.stat().st_mtime_ns
            for path in self.site.profiles.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.parts[-3:])
        }


@pytest.fixture(scope="module")
def life(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    with installation(Site, container="sglang-dev-front") as site:
        yield Life(site, tmp_path_factory.mktemp("life"))


@pytest.fixture(scope="module")
def prepared(life: Life) -> dict[str, Any]:
    """Each profile's row of the first prep."""
    return life.prepare()


def test_each_profile_has_a_proof_of_its_own(life: Life, prepared: dict[str, Any]) -> None:
    for row in prepared.values():
        assert row["metrics_ready"] is True and row["stages"]["inductor"] == "ok"
    assert prepared[FEW]["identity"] != prepared[MANY]["identity"]
    proofs = {
        proof["telemetry_probe"]["server"]
        for path in (life.site.run_dir() / "prepared").glob("*.json")
        for proof in [json.loads(path.read_text())]
    }
    assert proofs == {row["identity"] for row in prepared.values()}


def test_they_are_served_in_turn_over_a_restart_and_nothing_is_done_twice(
    life: Life, prepared: dict[str, Any]
) -> None:
    compiled, first_run = life.compiled(), life.site.run_id
    life.serve(FEW)
    run = life.restart()
    assert run != first_run and not (life.site.run_dir() / "prep_result.json").exists()
    unproven = life.ready()
    assert not unproven["ready"] and "server start" in unproven["reason"]

    for profile in (MANY, FEW):
        life.serve(profile)
        # The start made the proof, without a prep.
        found = life.ready()
        assert found["ready"] is True and found["run_id"] == run, found
    life.must("server", "stop")
    assert life.compiled() == compiled

    rows = life.prepare()
    assert {row["stages"]["inductor"] for row in rows.values()} == {"noop"}
    assert life.site.run_id == run and life.compiled() == compiled


def test_a_prep_that_is_cancelled_ends_in_order(life: Life, prepared: dict[str, Any]) -> None:
    rebuilt = {"sgl_stages": {"inductor": "rebuild"}}
    play = life.site.start_play("prep", variables=rebuilt)
    job = wait_for(
        lambda: job if (job := life.site.job())["state"] == "running" and job["server"] else None,
        "the prep's server",
    )
    looked = life.site.must_play("cancel", "--check")
    assert job["prep_id"] in looked.text and life.site.job()["state"] == "running", looked.output
    cancelled = life.site.must_play("cancel")
    assert job["prep_id"] in cancelled.text and cancelled.changed == 1, cancelled.output
    told = ended(play)
    assert told.code == 2 and "cancel" in told.text, told.output
    assert life.site.job()["state"] != "running" and life.site.servers() == []
    assert life.site.stage("inductor")["error_type"] == "interrupted"
    assert "no prep runs" in life.must("prep", "cancel").lower()
    rows = life.prepare()
    assert [row["reason"] for row in rows.values()] == [None, None]


def test_a_prep_prunes_what_the_live_run_does_not_need(
    life: Life, prepared: dict[str, Any]
) -> None:
    life.restart()
    live, compiled = life.restart(), life.compiled()
    runs = life.site.telemetry / "container_runs"
    assert len([path for path in runs.iterdir() if path.is_dir()]) > 1
    asked = {"sgl_prune": True, "sgl_keep": KEEP}
    pruned = life.site.must_play("prep", variables=asked)
    assert "freed" in pruned.text, pruned.output
    assert [path.name for path in runs.iterdir() if path.is_dir()] == [live]
    assert life.compiled() == compiled and life.ready()["ready"] is True
    again = life.site.must_play("prep", variables=asked)
    assert again.changed == 0, again.output
