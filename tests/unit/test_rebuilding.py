"""A rebuild deletes nothing before its replacement stands, and touches its own model's work alone:
over all stages, where it works, fails, finds its way barred, or is killed at any change of a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Interrupted, StageFailure
from sgl_admin.prep import plan as plan_module
from sgl_admin.records import caches, job, rebuilding
from sgl_admin.records.caches import SignatureRecord
from sgl_admin.stages.base import Context
from tests.unit.model_files import write_model

# The fixture has preps over stages that stand for the real ones.
from tests.unit.test_sgl_admin_prep import (
    NAMES,
    FakeStage,
    FakeWarmup,
    World,
    each,
    statuses,
    world,  # noqa: F401
)

# What a server of any model finds, or makes where it is the first.
SHARED = "shared"


class Compiling(FakeStage):
    """Each model's server makes a kernel of its own in each cache, and one for all of them where
    it is missing.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.compiled = 0

    def signature(self, context: Context) -> dict[str, Any]:
        model = {"model_config": {"name": Path(context.request.model).name}, "model_files": {}}
        return {**super().signature(context), **model}

    def run(self, context: Context) -> dict[str, Any]:
        self.runs += 1
        for cache in self.caches:
            for name in (SHARED, Path(context.request.model).name):
                kernel = paths.PROFILES / cache / "deep" / name
                if not kernel.exists():
                    kernel.parent.mkdir(exist_ok=True)
                    kernel.write_text(f"{self.runs:6d}")
                    self.compiled += 1
            self.during(context)
        if self.failure:
            raise self.failure
        return self.standing(context)


class Two(World):
    """Two models that were prepared on one host, the second with what the first one made."""

    def prepare(self) -> None:
        self.models = [write_model(paths.MODELS / name) for name in ("first", "other")]
        for model in self.models:
            self.model = model
            assert statuses(self.execute()[0]) == each("ok")

    def of(self, number: int) -> None:
        self.model = self.models[number]

    def record(self, number: int, name: str) -> SignatureRecord:
        self.of(number)
        plan = self.plan()
        return next(each.record for each in plan.decisions if each.stage.name == name)


@pytest.fixture
def two(
    world: World,  # noqa: F811 - the fixture's name
    monkeypatch: pytest.MonkeyPatch,
) -> Two:
    made = Two(world.model, world.run_id)
    made.stages = {name: Compiling(name) for name in NAMES}
    monkeypatch.setattr(plan_module, "STAGES", tuple(made.stages.values()))
    monkeypatch.setattr(FakeWarmup, "obstacle", None)
    made.prepare()
    return made


def content() -> dict[str, tuple[str, int]]:
    """All that is in the caches: text and time of each file, records too."""
    return {
        str(path.relative_to(paths.PROFILES)): (path.read_text(), path.stat().st_mtime_ns)
        for cache in caches.CACHES
        for path in (paths.PROFILES / cache).rglob("*")
        if path.is_file()
    }


def option(name: str) -> str:
    return "--moe" if name == "moe_tune" else f"--{name.replace('_', '-')}"


def rebuild(two: Two, name: str) -> tuple[dict[str, Any], int]:
    return two.execute(option(name), "rebuild")


def kernels(two: Two, name: str) -> dict[str, str]:
    """The text of each kernel of a stage by its name, of all its caches."""
    return {
        f"{cache}/{path.name}": path.read_text()
        for cache in two.stages[name].caches
        for path in (paths.PROFILES / cache / "deep").iterdir()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuild_makes_its_own_models_work_again_and_touches_no_other(
    two: Two, name: str
) -> None:
    before, everything = kernels(two, name), content()
    for number, own in ((1, {"other"}), (0, {"first", SHARED})):
        two.of(number)
        result, exit_code = rebuild(two, name)
        assert (statuses(result), exit_code) == (each("skipped", **{name: "ok"}), 0)
        after = kernels(two, name)
        changed = {kernel.partition("/")[2] for kernel in after if after[kernel] != before[kernel]}
        assert changed == own, "what this model's servers made, and all of it"
        assert result["stages"][name]["artifacts"]["compiled_files"] == len(own) * len(
            two.stages[name].caches
        )
        before = after
    assert [two.record(number, name).problem([]) for number in (0, 1)] == [None, None]
    now, own_caches = content(), two.stages[name].caches
    elsewhere = [path for path in everything if path.partition("/")[0] not in own_caches]
    assert all(now[path] == everything[path] for path in elsewhere)
    assert not paths.REBUILDING.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "failure",
    [
        StageFailure("compile_failed", "the compiler crashed"),
        OSError(28, "No space left on device", "/profiles/x"),
        Interrupted(),
        RuntimeError("nothing foresaw this"),
    ],
    ids=repr,
)
def test_a_rebuild_that_fails_leaves_the_old_work_as_it_was(
    two: Two, name: str, failure: Exception
) -> None:
    before = content()
    two.stages[name].failure = failure
    result, exit_code = rebuild(two, name)
    assert result["stages"][name]["status"] == "error" and exit_code
    assert content() == before
    two.stages[name].failure = None
    for number in (0, 1):
        two.of(number)
        assert two.plan().nothing_to_do, "the old work counts"


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuild_whose_way_is_barred_moves_nothing(
    two: Two, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark's server has the place, the port is taken, or the GPU is held."""
    before = content()
    for kind in ("port_busy", "gpu_busy", "insufficient_disk"):
        monkeypatch.setattr(FakeWarmup, "obstacle", StageFailure(kind, "it is in the way"))
        monkeypatch.setattr(rebuilding, "set_aside", None)
        result, exit_code = rebuild(two, name)
        assert result["stages"][name]["error_type"] == kind and exit_code
        assert content() == before


def test_all_that_is_to_be_rebuilt_is_set_aside_before_the_first_server_starts(two: Two) -> None:
    """A server that has loaded a kernel makes it no second time."""
    words = [word for name in NAMES for word in (option(name), "rebuild")]
    two.of(1)
    seen: list[bool] = []
    two.stages[NAMES[0]].during = lambda context: seen.extend(
        (paths.PROFILES / cache / "deep" / "other").exists()
        for name in NAMES[1:]
        for cache in two.stages[name].caches
    )
    two.execute(*words)
    assert seen and not any(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["", "{}", "[]"])
def test_beside_another_models_record_that_cannot_be_read_nothing_is_set_aside(
    two: Two, name: str, damage: str
) -> None:
    two.record(0, name).path.write_text(damage)
    before = kernels(two, name)
    two.of(1)
    result, exit_code = rebuild(two, name)
    assert exit_code == 0 and kernels(two, name) == before
    assert any("cannot be read" in warning for warning in result["warnings"])


@pytest.mark.parametrize("name", NAMES)
def test_of_records_that_do_not_say_what_was_made_only_what_no_other_names_is_replaced(
    two: Two, name: str
) -> None:
    """Those of earlier releases: the second model's names all that the first one made."""
    for number in (0, 1):
        path = two.record(number, name).path
        document = files.read_json(path) or {}
        del document["made"]
        files.write_json(path, document)
    for number, own in ((1, {"other"}), (0, set[str]())):
        before = kernels(two, name)
        two.of(number)
        result, _ = rebuild(two, name)
        after = kernels(two, name)
        changed = {kernel.partition("/")[2] for kernel in after if after[kernel] != before[kernel]}
        assert changed == own
        told = [warning for warning in result["warnings"] if "vouch for all of it" in warning]
        assert bool(told) is not bool(own)


class Killed(BaseException):
    """SIGKILL: nothing of the process runs any more."""


class Kill:
    """Kills this process at its nth change of a file below /profiles: later ones do nothing."""

    NAMES = ("replace", "rename", "link", "mkdir", "rmdir", "unlink")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.dead = False
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if self.left is not None and (
                self.dead or "dir_fd" in options or str(path).startswith(str(paths.PROFILES))
            ):
                self.left -= 1
                self.dead = self.dead or self.left < 0
                if self.dead:
                    raise Killed
            return real(path, *arguments, **options)

        return call

    def at(self, number: int, run: Callable[[], Any]) -> bool:
        """Whether it was killed there, and not done before."""
        self.left = number
        try:
            run()
        except Killed:
            return True
        finally:
            self.left, self.dead = None, False
        return False


@pytest.fixture
def kill(two: Two, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kill]:
    yield Kill(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_rebuild_that_is_killed_anywhere_leaves_the_old_work_or_the_new(
    two: Two, name: str, kill: Kill
) -> None:
    number = 0
    while True:
        old = kernels(two, name)
        two.of(0)
        execution = two.execution(option(name), "rebuild")
        killed = kill.at(number, execution.run)
        warnings: list[str] = []
        job.settle(two.run_id, warnings)
        check(two, name, old, number)
        if not killed:
            break
        # What the dead one had marked is done again, and that is all.
        for marker in paths.IN_PROGRESS.iterdir():
            marker.unlink()
        number += 1
    assert number > 10, "the kills reached the rebuild"


def check(two: Two, name: str, old: dict[str, str], number: int) -> None:
    """The first model's work is all old or all new, and both models' records hold."""
    now = kernels(two, name)
    changed = {kernel for kernel in now if now[kernel] != old[kernel]}
    own = {kernel for kernel in old if not kernel.endswith("/other")}
    assert changed in (set(), own), f"killed at {number}"
    for model in (0, 1):
        assert two.record(model, name).problem([]) is None, f"killed at {number}"
    assert not paths.REBUILDING.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_putting_back_that_is_killed_anywhere_is_ended_by_the_next(
    two: Two, name: str, kill: Kill
) -> None:
    before = content()
    number = 0
    while True:
        record = two.record(0, name)
        rebuilding.set_aside(record, record.own([]))
        assert content() != before
        killed = kill.at(number, rebuilding.put_back)
        rebuilding.put_back()
        assert content() == before and not paths.REBUILDING.exists()
        if not killed:
            break
        number += 1
    assert number > 2


def test_a_rebuild_that_was_killed_is_told(two: Two) -> None:
    record = two.record(0, "inductor")
    rebuilding.set_aside(record, record.own([]))
    warnings: list[str] = []
    job.settle(two.run_id, warnings)
    assert warnings == ["a rebuild of inductor was killed: what it was to replace was put back"]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_killed_prep_made_is_rebuilt_too(two: Two, name: str) -> None:
    """Its successor found the files there, so its record says that it made none."""
    path = two.record(0, name).path
    record = files.read_json(path) or {}
    path.write_text(json.dumps({**record, "made": []}))
    before = kernels(two, name)
    two.of(0)
    assert rebuild(two, name)[1] == 0
    after = kernels(two, name)
    changed = {kernel.partition("/")[2] for kernel in after if after[kernel] != before[kernel]}
    assert changed == {"first", SHARED}
