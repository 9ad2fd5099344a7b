"""A tree of the last release is taken over by this one: nothing is compiled again, and every record
is read.
"""

from __future__ import annotations

import json
import os
import platform
import tarfile
from pathlib import Path

import pytest

from sgl_admin.base import files, paths
from sgl_admin.commands import main as cli
from sgl_admin.contract import stages
from sgl_admin.records import caches, job
from sgl_admin.serving import benchmark_server
from tests.contract import validators

# The fixtures make the machine that the tree is of.
from tests.unit.test_gpu_stages import NAMES, World, port, statuses, world  # noqa: F401

TREE = Path(__file__).resolve().parents[1] / "fixtures" / "tree-1.0.0.tar.gz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the tree is of an x86-64 host"),
]


def everything(folder: Path) -> dict[str, tuple[int, float]]:
    """Each file below a folder: bytes and modification time, but for locks."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def old(world: World, container: Path) -> World:  # noqa: F811 - the fixture
    """The tree of the last release, in place of what there is."""
    with tarfile.open(TREE) as archive:
        archive.extractall(container, filter="data")
    for path in (container / "telemetry").rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("@ROOT@", str(container)), encoding="utf-8")
    return world


def test_every_stage_of_the_last_release_stands(
    old: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(paths.PROFILES)
    assert sum(name.endswith((".cubin", ".so")) for name in before) >= 3
    result, exit_code = old.execute()
    assert exit_code == 0 and statuses(result) == ["noop"] * len(stages.NAMES)
    assert {result["stages"][name]["reason"] for name in NAMES} == {"valid_signature"}
    assert result["warnings"] == [] and old.starts() == [] and old.tunings == []
    assert everything(paths.PROFILES) == before
    assert not list(paths.TELEMETRY.rglob("*.corrupt-*"))


def test_the_records_of_the_last_release_are_valid_and_read(old: World) -> None:
    result = files.read_json(paths.prep_result(old.run_id))
    assert result is not None
    validators.validate_prep_result(result)
    record = job.read(old.run_id)
    assert record is not None and record["state"] == "done" and not job.alive(record)
    validators.validate_job(record)
    found = caches.snapshot()
    filled = [name for name in stages.STAGE_OF_CACHE if found[name]["file_count"]]
    assert len(filled) >= 4 and all(found[name]["valid"] for name in filled)
    prepared = benchmark_server.prepared(old.plan().run)
    assert prepared.argv[1:3] == ["-m", "sglang.launch_server"]
    assert str(prepared.port) in prepared.argv


def test_status_tells_of_the_last_releases_prep(
    old: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["state"] == "done"


def test_another_signature_is_not_taken_over(old: World) -> None:
    [record] = (paths.PROFILES / "deep_gemm" / caches.RECORDS).glob("*.json")
    text = record.read_text(encoding="utf-8")
    changed = text.replace('"cpu_arch": "x86_64"', '"cpu_arch": "aarch64"')
    assert changed != text
    record.write_text(changed, encoding="utf-8")
    os.utime(record)
    plan = old.plan()
    assert [decision.action for decision in plan.decisions] == ["run", "noop", "noop", "noop"]
