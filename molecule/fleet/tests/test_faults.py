"""What goes wrong in a fleet ends as docs/contributing/faults.md says, and the same run without the
fault finishes with nothing done twice.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.fleet import NAMES, REPOSITORY, UNREACHABLE, Fleet
from tests.hosts.host import run
from tests.integration.installation import wait_for

from .conftest import Installation, Outcome

FIRST, SECOND, THIRD = NAMES
# So long that its stage can be met, and one host's tuning told from three.
SLOW = {"sgl_environment": {"SGL_TEST_SERVER": "1", "SGL_TEST_SERVER_READY_S": "8"}}


@pytest.fixture(autouse=True)
def nothing_is_left(faults: Installation) -> Iterator[None]:
    yield
    assert {name: found for name in NAMES if (found := faults.leftovers(name))} == {}


def all_ready(outcome: Outcome) -> bool:
    return outcome.code == 0 and sorted(outcome.ready()) == sorted(NAMES)


def test_a_host_that_cannot_be_reached(faults: Installation) -> None:
    """The others go on; it is listed with its reason. Without it, there is nothing left to do."""
    faults.host_variables["fleet-4"] = UNREACHABLE
    try:
        outcome = faults.prep()
    finally:
        del faults.host_variables["fleet-4"]
    assert outcome.code == 4, outcome.output
    assert sorted(outcome.ready()) == sorted(NAMES) and outcome.ran() == [FIRST], outcome.output
    assert (
        outcome.host("fleet-4")["status"] == "unreachable"
        and "Connection" in outcome.host("fleet-4")["problem"]
    )
    again = faults.prep()
    assert (
        all_ready(again)
        and again.ran() == []
        and all(counts["changed"] == 0 for counts in again.counts.values())
    ), again.output


def test_the_tuner_is_killed_in_its_stage(faults: Installation) -> None:
    """The next host of the group makes it; the first takes it in the next run."""
    faults.prep(**SLOW)
    faults.forget_caches()
    faults.variables["sgl_cache_registry"] = f"{REPOSITORY}-killed"
    playbook = faults.start(**SLOW)
    job = wait_for(lambda: worker(faults, FIRST), "the first host to be in its stage")
    faults.machine(FIRST).execute("kill", "-KILL", job)
    outcome = faults.end(playbook)
    assert (
        outcome.code == 2
        and sorted(outcome.ready()) == [SECOND, THIRD]
        and outcome.ran() == [SECOND]
    ), outcome.output
    assert "without a result" in outcome.host(FIRST)["problem"]
    again = faults.prep(**SLOW)
    assert all_ready(again) and again.ran() == [], again.output
    assert faults.caches(FIRST) == faults.caches(SECOND) != {}


def worker(faults: Installation, name: str) -> str | None:
    """The process id, on the host, of the prep that is in its inductor stage."""
    marker = faults.machine(name).execute(
        "cat", f"{faults.root}/profiles/.in_progress/inductor.json", check=False
    )
    processes = (
        faults.machine(name)
        .execute("docker", "top", faults.container, "-eo", "pid,args", check=False)
        .splitlines()
    )
    pids = [line.split()[0] for line in processes if "sgl_admin.prep.worker" in line]
    return pids[0] if marker and pids else None


def test_the_registry_goes_in_the_middle(faults: Installation, fleet: Fleet) -> None:
    """The host that made it is ready; the others say why they could not have it, and do not make it
    too.
    """
    faults.prep(**SLOW)
    faults.forget_caches()
    faults.variables["sgl_cache_registry"] = f"{REPOSITORY}-gone"
    playbook = faults.start(**SLOW)
    wait_for(lambda: worker(faults, FIRST), "the first host to be in its stage")
    fleet.registry.stop()
    try:
        outcome = faults.end(playbook)
    finally:
        fleet.registry.start()
    assert outcome.code == 2 and outcome.ready() == [FIRST] and outcome.ran() == [FIRST], (
        outcome.output
    )
    for name in (SECOND, THIRD):
        assert (
            FIRST in outcome.host(name)["problem"]
            and "the registry does not answer" in outcome.host(name)["problem"]
        )
    again = faults.prep(**SLOW)
    assert all_ready(again) and again.ran() == [], again.output
    assert faults.caches(FIRST) == faults.caches(SECOND) == faults.caches(THIRD) != {}


def test_an_archive_with_one_flipped_byte(faults: Installation, tmp_path: Path) -> None:
    """It is refused with its reason, and nothing of it is there. With the whole one back, the host
    takes that.
    """
    faults.prep()
    name = tag(faults)
    kept = unwrapped(name, tmp_path)
    content = bytearray(kept)
    # In a file: where a header is meant, another sentence says so.
    with tarfile.open(fileobj=io.BytesIO(kept)) as archive:
        _manifest, *members = archive.getmembers()
    largest = max(members, key=lambda member: member.size)
    content[largest.offset_data + largest.size // 2] ^= 1
    push(bytes(content), name)
    faults.forget_caches(SECOND)
    try:
        outcome = faults.prep()
    finally:
        push(kept, name)
    assert (
        outcome.code == 2 and sorted(outcome.ready()) == [FIRST, THIRD] and outcome.ran() == []
    ), outcome.output
    problem = outcome.host(SECOND)["problem"]
    assert "refused, nothing of it was taken" in problem and "digest" in problem, problem
    assert faults.caches(SECOND) == {}
    again = faults.prep()
    assert all_ready(again) and again.ran() == [], again.output
    assert faults.caches(SECOND) == faults.caches(FIRST)


def tag(faults: Installation) -> str:
    """The reference of the inductor stage's archive."""
    key = faults.prep_result(FIRST)["stages"]["inductor"]["key"]
    return f"{faults.variables['sgl_cache_registry']}:inductor-{key}"


def unwrapped(reference: str, folder: Path) -> bytes:
    """The archive that an artifact holds."""
    run("docker", "pull", "--quiet", reference)
    made = run("docker", "create", reference, "none").stdout.strip()
    try:
        run("docker", "cp", f"{made}:/sgl-caches.tar", str(folder / "caches.tar"))
    finally:
        run("docker", "rm", made)
        run("docker", "rmi", reference)
    return (folder / "caches.tar").read_bytes()


def push(archive: bytes, reference: str) -> None:
    """Put another archive in an artifact's place."""
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as made:
        member = tarfile.TarInfo("sgl-caches.tar")
        member.size = len(archive)
        made.addfile(member, io.BytesIO(archive))
    subprocess.run(
        ["docker", "import", "-", reference],
        input=outer.getvalue(),
        check=True,
        capture_output=True,
    )
    run("docker", "push", "--quiet", reference)
    run("docker", "rmi", reference)


def test_a_host_whose_signature_differs(faults: Installation) -> None:
    """It is a group of its own: it makes its own, and takes nothing of the others'; theirs
    stands.
    """
    faults.prep()
    faults.host_variables[THIRD]["sgl_cuda_graph_batch_sizes"] = [1]
    try:
        outcome = faults.prep()
        assert all_ready(outcome) and outcome.ran() == [THIRD], outcome.output
        again = faults.prep()
        assert (
            all_ready(again)
            and again.ran() == []
            and all(counts["changed"] == 0 for counts in again.counts.values())
        ), again.output
    finally:
        del faults.host_variables[THIRD]["sgl_cuda_graph_batch_sizes"]
    groups = {tuple(sorted(group["hosts"])) for group in outcome.report["fleet"]["groups"]}
    assert groups == {(FIRST, SECOND), (THIRD,)}
    assert all_ready(faults.prep())


def test_a_host_with_a_wrongly_owned_tree(faults: Installation) -> None:
    """It is refused before anything changes on it, and the others go on."""
    faults.prep()
    foreign = f"{faults.root}/profiles/triton/foreign"
    faults.machine(SECOND).execute("install", "-o", "bench", "-g", "bench", "/dev/null", foreign)
    faults.forget_caches(THIRD)
    before = faults.machine(SECOND).execute(
        "docker", "container", "inspect", "--format", "{{.State.StartedAt}}", faults.container
    )
    outcome = faults.prep()
    assert (
        outcome.code == 2 and sorted(outcome.ready()) == [FIRST, THIRD] and outcome.ran() == []
    ), outcome.output
    assert (
        foreign in outcome.host(SECOND)["problem"]
        and "not 1000:1000" in outcome.host(SECOND)["problem"]
    )
    assert outcome.counts[SECOND]["changed"] == 0
    assert (
        faults.machine(SECOND).execute(
            "docker", "container", "inspect", "--format", "{{.State.StartedAt}}", faults.container
        )
        == before
    )
    faults.machine(SECOND).execute("chown", "ops:ops", foreign)
    again = faults.prep()
    assert (
        all_ready(again)
        and again.ran() == []
        and all(counts["changed"] == 0 for counts in again.counts.values())
    ), again.output
