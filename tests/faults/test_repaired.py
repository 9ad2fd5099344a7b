"""What an earlier run left half-written is set aside, never deleted, with a warning; and what it
vouched for is done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract import validators
from tests.faults.fault_site import FaultSite
from tests.faults.leftovers import left_now, leftovers
from tests.integration.installation import docker, wait_for

pytestmark = pytest.mark.slow

RECORDS: dict[str, Callable[[FaultSite], Path]] = {
    "job": lambda site: site.run_dir() / "job.json",
    "prep_result": lambda site: site.run_dir() / "prep_result.json",
    "stage": lambda site: site.run_dir() / "stages" / "inductor.json",
    "stage that is skipped": lambda site: site.run_dir() / "stages" / "moe_tune.json",
    "signature": lambda site: next(
        (site.profiles / "torchinductor" / ".signatures").glob("inductor-*.json")
    ),
}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "another kind of JSON": lambda content: b"[1, 2]\n",
    "an empty object": lambda content: b"{}\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("record", RECORDS)
def test_damaged_record(faulty: FaultSite, record: str, damage: str) -> None:
    path = RECORDS[record](faulty)
    damaged = DAMAGES[damage](path.read_bytes())
    known = set(path.parent.glob(f"{path.name}.corrupt-*"))
    path.write_bytes(damaged)
    done = faulty.ensure()
    assert done.returncode == 0, done.stdout + done.stderr
    result = faulty.result()
    assert result["telemetry_probe"]["ok"] is True and result["status"] == "ok"
    aside = set(path.parent.glob(f"{path.name}.corrupt-*")) - known
    assert [found.read_bytes() for found in aside] == [damaged], "it was not set aside as it was"
    assert any(
        str(path.name) in warning and "set aside" in warning for warning in result["warnings"]
    ), result["warnings"]
    validators.validate_prep_result(result)
    validators.validate_job(faulty.job())
    for name in result["stages"]:
        validators.validate_stage(faulty.stage(name))
    again = faulty.ensure()
    assert again.returncode == 0 and faulty.result()["warnings"] == [], (
        "the second run still repairs"
    )
    assert leftovers(faulty) == []


def test_damaged_records_of_the_run_itself(faulty: FaultSite) -> None:
    """Without its manifest a run is unknown: sgl-admin says so, and the playbook begins a new
    one.
    """
    run_id, manifest = faulty.run_id, faulty.pointed()
    manifest.write_text(manifest.read_text()[:100])
    done = faulty.ensure()
    assert (
        done.returncode == 4 and str(run_id) in done.stderr and "playbooks/start.yml" in done.stderr
    )
    play = faulty.must_play("prep", variables={"sgl_start_timeout": 8})
    assert faulty.run_id != run_id and faulty.result()["telemetry_probe"]["ok"] is True, play.output
    assert leftovers(faulty) == []


def test_pointer_that_somebody_removed(faulty: FaultSite) -> None:
    run_id = faulty.run_id
    faulty.pointer.unlink()
    done = faulty.ensure()
    assert done.returncode == 4 and "no pointer" in done.stderr
    faulty.must_play("prep", variables={"sgl_start_timeout": 8})
    assert faulty.run_id != run_id and faulty.result()["telemetry_probe"]["ok"] is True
    assert leftovers(faulty) == []


def test_stale_pointer(faulty: FaultSite) -> None:
    """A container that was killed and removed cannot take its pointer back; the next run's takes
    its place.
    """
    run_id = faulty.run_id
    docker("rm", "--force", faulty.container)
    assert faulty.run_id == run_id
    faulty.must_play("prep")
    assert faulty.run_id != run_id and faulty.result()["telemetry_probe"]["ok"] is True
    assert leftovers(faulty) == []


def test_marker_of_a_dead_owner(faulty: FaultSite) -> None:
    marker = faulty.profiles / ".in_progress" / "inductor.json"
    marker.write_text(
        json.dumps(
            {
                "stage": "inductor",
                "owner_pid": 99999,
                "started_at": "2026-11-23T09:16:00Z",
                "run_id": "gone",
            }
        )
    )
    done = faulty.ensure()
    assert done.returncode == 0, done.stderr
    result = faulty.result()
    assert result["stages"]["inductor"]["status"] == "ok", "what was in progress is not redone"
    assert any("killed before it finished" in warning for warning in result["warnings"])
    assert leftovers(faulty) == []


def test_lock_of_a_dead_owner(faulty: FaultSite) -> None:
    """A lock dies with its owner, and its file means nothing."""
    script = (
        "import fcntl, time; lock = open('/profiles/.locks/prep.lock', 'w'); fcntl.flock(lock,"
        " fcntl.LOCK_EX); time.sleep(600)"
    )
    docker("exec", "--detach", faulty.container, "/opt/sglang/bin/python", "-c", script)
    wait_for(
        lambda: any("time.sleep(600)" in word for line in faulty.processes() for word in line),
        "the owner",
    )
    wait_for(lambda: left_now(faulty) != [] or None, "the lock to be held")
    begun = time.monotonic()
    held = faulty.ensure()
    assert held.returncode == 5 and "its lock is held" in held.stderr, held.stderr
    assert time.monotonic() - begun < 15
    faulty.signal_matching("time.sleep(600)")
    wait_for(lambda: left_now(faulty) == [] or None, "the owner to be gone")
    assert faulty.ensure().returncode == 0
