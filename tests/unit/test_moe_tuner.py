"""What becomes of a tuning whose process crashes, hangs or is killed: the process is the real one,
on a GPU that is none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_admin.base import paths, processes
from sgl_admin.base.errors import Interrupted, StageFailure
from sgl_admin.facts import devices
from sgl_admin.moe import config_files, space
from sgl_admin.moe import tuner as tuner_module
from sgl_admin.moe.journal import Journal
from sgl_admin.moe.shape import Lookup, MoeShape
from sgl_admin.moe.space import Config
from sgl_admin.moe.tuner import Outcome, Tuner
from sgl_admin.records import caches
from tests.doubles.moe_bench import time_us

# It starts processes, and mostly waits for them.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOUBLE = "tests.doubles.moe_process"
SHAPE = MoeShape(Lookup(513, 512, "fp8_w8a8", (128, 128)), 2048, 10, 1, "bfloat16")
TUNING: dict[str, Any] = {"E": 513, "N": 512, "block_shape": [128, 128]}
CONFIGS = space.configs((128, 128), 12)
SIZES = [2, 16, 64]
# Longer than the double takes between two words of it on a busy host.
STALL_S = 3.0


class World:
    """Tunings of one folder, and what was seen of their processes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes = folder
        self.log = folder / "run.log"
        self.log.write_text("older lines: No space left on device\n")
        self.found: list[tuple[int, Config]] = []
        # Of the journal, whenever a batch size was found: in the end it is gone.
        self.dropped: dict[tuple[int, int], str] = {}
        self.told: list[tuple[int, int, str, str]] = []
        self.groups: list[int | None] = []
        self._patch = monkeypatch
        self.throttles: list[list[str]] = []

    def tuner(self, **told: Any) -> Tuner:
        environment = {"MOE_GPU": json.dumps({"notes": str(self.notes), **told})}
        return Tuner(
            SHAPE,
            CONFIGS,
            TUNING,
            90,
            self.log,
            lambda *words: self.told.append(words),
            self.groups.append,
            environment,
        )

    def run(self, sizes: list[int] | None = None, **told: Any) -> Outcome:
        return self.tuner(**told).run(sizes or SIZES, self.take)

    def take(self, size: int, config: Config) -> None:
        self.found.append((size, config))
        self.dropped.update(self.journal().dropped)

    def fails(self, **told: Any) -> StageFailure:
        with pytest.raises(StageFailure) as caught:
            self.run(**told)
        return caught.value

    def noted(self, name: str) -> list[str]:
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []

    def journal(self) -> Journal:
        return Journal(self.tuner().folder / "journal.jsonl", TUNING)

    def nothing_runs(self) -> bool:
        return not any(
            processes.group_is_running(group) for group in self.groups if group is not None
        )

    def impatient(self, name: str, seconds: float = STALL_S) -> None:
        self._patch.setattr(tuner_module, name, seconds)


@pytest.fixture
def world(container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(tuner_module, "_PROCESS", DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "notes").mkdir()
    made = World(tmp_path / "notes", monkeypatch)
    monkeypatch.setattr(
        devices, "throttles", lambda visible: made.throttles.pop(0) if made.throttles else []
    )
    yield made
    for group in (int(line) for line in made.noted("groups") if line != "null"):
        # Of a test that failed: what its parent left is not left to the next one.
        processes.end_group(group)
    assert made.nothing_runs(), "a process was left"
    # Each attempt is noted, and its end too.
    assert made.groups[1::2] == [None] * (len(made.groups) // 2) and None not in made.groups[::2]


def best_of(size: int, configs: list[Config] = CONFIGS) -> Config:
    return min(configs, key=lambda config: time_us(size, config))


def wait_for(condition: Any, patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_every_batch_size_is_tuned_and_told(world: World) -> None:
    outcome = world.run()
    assert world.found == [
        (16, best_of(16)),
        (64, best_of(64)),
        (2, best_of(2)),
    ], "as each is known"
    assert outcome.batch_sizes == [16, 64, 2] and outcome.us == {
        str(size): round(time_us(size, best_of(size)), 3) for size in SIZES
    }
    assert (outcome.configurations, outcome.compiled, outcome.dropped, outcome.restarts) == (
        12,
        24,
        0,
        0,
    )
    assert (
        outcome.looked == 36 == len(world.noted("looks"))
        and outcome.duration_s >= outcome.look_s >= 0
    )
    assert json.loads(json.dumps(outcome.describe())) == outcome.describe()
    assert not world.tuner().folder.exists(), "its kernels and its journal are for nothing more"
    assert world.log.read_text() == "older lines: No space left on device\n"


def test_progress_arrives_in_words_and_numbers(world: World) -> None:
    world.run()
    phases = list(
        dict.fromkeys(words.removeprefix("tuning MoE kernels, ") for _, _, _, words in world.told)
    )
    assert phases == [
        "start",
        "launches",
        "compile",
        "batch size 16",
        "batch size 64",
        "batch size 2",
    ]
    assert {unit for _, _, unit, _ in world.told} == {"configurations"}
    assert [
        (done, total) for done, total, _, words in world.told if words.endswith("batch size 2")
    ] == [(done, 12) for done in range(12)]
    assert (12, 12, "configurations", "tuning MoE kernels, compile") in world.told


def test_each_batch_size_is_told_as_soon_as_it_is_known(world: World) -> None:
    looks: list[int] = []
    world.tuner().run(SIZES, lambda size, config: looks.append(len(world.noted("looks"))))
    assert len(looks) == 3 and looks[0] < 36


def test_the_kernels_of_a_tuning_are_kept_apart_from_the_servers(world: World) -> None:
    folder = world.tuner().folder
    assert folder.parent == config_files.root() / caches.WORK
    other = Tuner(
        SHAPE,
        CONFIGS,
        {**TUNING, "N": 256},
        90,
        world.log,
        lambda *_: None,
        world.groups.append,
        {},
    )
    assert other.folder != folder and other.folder.parent == folder.parent


def test_a_configuration_that_crashes_the_process_is_dropped_and_the_rest_goes_on(
    world: World,
) -> None:
    outcome = world.run(at="look", size=16, config=best_of(16), do="crash")
    rest = [config for config in CONFIGS if config != best_of(16)]
    assert (
        dict(world.found) == {2: best_of(2), 16: best_of(16, rest), 64: best_of(64)}
        and len(world.found) == 3
    )
    assert outcome.restarts == 1 and len(world.noted("began")) == 2
    looks = world.noted("looks")
    assert len(looks) == len(set(looks)) == 36, "no look is done twice"
    assert world.dropped == {
        (
            16,
            CONFIGS.index(best_of(16)),
        ): "the process that measured it ended: killed by signal 11 (SIGSEGV)"
    }


def test_a_configuration_that_hangs_is_dropped_and_the_rest_goes_on(world: World) -> None:
    world.impatient("_MEASURE_STALL_S")
    outcome = world.run(at="look", size=64, config=best_of(64), do="hang")
    rest = [config for config in CONFIGS if config != best_of(64)]
    assert dict(world.found) == {2: best_of(2), 16: best_of(16), 64: best_of(64, rest)}
    assert world.dropped == {
        (
            64,
            CONFIGS.index(best_of(64)),
        ): "the process that measured it ended: it told nothing for 3 s"
    }
    assert outcome.restarts == 1 and outcome.batch_sizes == [16, 64, 2] and len(world.found) == 3, (
        "what was found before is told once"
    )


def test_a_process_that_does_not_end_after_its_work_is_ended(world: World) -> None:
    world.impatient("_END_S", 1.0)
    outcome = world.run(at="end", do="stay")
    assert (
        sorted(size for size, _ in world.found) == SIZES
        and outcome.restarts == 1
        and len(world.noted("looks")) == 36
    )


def test_one_that_does_not_heed_a_request_to_end_is_forced_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.impatient("_MEASURE_STALL_S")
    monkeypatch.setattr(processes, "_TERMINATE_S", 0.5)
    assert world.run([16], at="look", size=16, config=CONFIGS[3], do="deaf").restarts == 1


def test_many_configurations_may_crash_but_not_any_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner_module, "_FALLS", 3)
    assert world.run([16], at="look", do="crash", times=3).restarts == 3
    world.notes.joinpath("misbehaved").unlink()
    failure = world.fails(at="look", do="crash", times=100)
    assert failure.error_type == "tuner_failed" and len(world.noted("misbehaved")) == 4
    assert "the tuner's process ended 4 times, last: killed by signal 11 (SIGSEGV)" in str(failure)


@pytest.mark.parametrize("at", ["init", "warm", "launches", "look", "compare"])
def test_memory_that_does_not_suffice_is_told_at_once(world: World, at: str) -> None:
    failure = world.fails(at=at, do="memory", times=100)
    assert failure.error_type == "oom" and "the GPU's memory does not hold" in str(failure)
    assert (
        len(world.noted("began")) == 1
        and "CUDA out of memory. Tried to allocate 3.00 GiB" in failure.log_tail[-1]
    )
    assert not any("older lines" in line for line in failure.log_tail)


def test_nothing_that_can_be_used_is_told_in_the_processs_own_words(world: World) -> None:
    failure = world.fails(at="compare", do="cannot run", times=100)
    assert (failure.error_type, str(failure)) == (
        "tuner_failed",
        "none of 12 configurations can be used at batch size 16",
    )
    assert len(world.noted("began")) == 1


@pytest.mark.parametrize("at", ["warm", "look"])
def test_a_full_disk_is_told_with_the_remedy(world: World, at: str) -> None:
    failure = world.fails(at=at, do="no space", times=100)
    assert (
        failure.error_type == "insufficient_disk"
        and "free space there" in str(failure)
        and "/host/" in str(failure)
    )
    assert len(world.noted("began")) == 1 and any(
        "No space left on device" in line for line in failure.log_tail
    )


@pytest.mark.parametrize(
    ("do", "error_type", "words"),
    [
        ("no permission", "permissions_unexpected", "Permission denied: '/profiles/kernel.cubin'"),
        ("killed", "oom", "killed by signal 9 (SIGKILL)): it said nothing; most often that is"),
        ("no gpu", "tuner_failed", "uncorrectable ECC error encountered; the GPU failed: see its"),
    ],
)
@pytest.mark.parametrize("at", ["warm", "look"])
def test_what_no_configuration_is_to_blame_for_is_told_at_once(
    world: World, at: str, do: str, error_type: str, words: str
) -> None:
    failure = world.fails(at=at, do=do, times=100)
    assert failure.error_type == error_type and words in str(failure)
    assert len(world.noted("began")) == 1 and len(str(failure)) < 400 + 160


@pytest.mark.parametrize(
    ("do", "how"), [("crash", "killed by signal 11 (SIGSEGV)"), ("raise", "exit code 1")]
)
@pytest.mark.parametrize("at", ["init", "warm", "launches"])
def test_one_that_dies_before_it_measures_is_not_begun_again(
    world: World, at: str, do: str, how: str
) -> None:
    failure = world.fails(at=at, do=do, times=100)
    assert failure.error_type == "tuner_failed" and len(world.noted("began")) == 1
    assert f"before it measured anything: {how}" in str(failure)
    assert do == "crash" or "illegal memory access" in failure.log_tail[-1]


def test_one_that_hangs_before_it_measures_is_not_begun_again(world: World) -> None:
    world.impatient("_STALL_S")
    world.impatient("COMPILE_LIMIT_S", 1.0)
    failure = world.fails(at="warm", do="hang", times=100)
    assert (
        failure.error_type == "tuner_failed"
        and "before it measured anything: it told nothing for 3 s" in str(failure)
    )
    assert len(world.noted("began")) == 1


def test_one_that_cannot_even_start_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_module, "_PROCESS", "sgl_admin.moe.no_such_module")
    failure = world.fails()
    assert failure.error_type == "tuner_failed" and "No module named" in failure.log_tail[-1]
    assert "exit code 1: " in str(failure) and "No module named" in str(failure)


def test_a_launch_that_does_not_compile_is_counted_and_never_measured(world: World) -> None:
    outcome = world.run(uncompilable=best_of(16))
    rest = [config for config in CONFIGS if config != best_of(16)]
    assert outcome.dropped == 2 and dict(world.found) == {
        size: best_of(size, rest) for size in SIZES
    }
    assert not any(line.endswith(str(space.key(best_of(16)))) for line in world.noted("looks"))


def test_what_holds_the_clocks_down_is_recorded_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner_module, "_LOOK_S", 0.0)
    world.throttles = [["power cap"], ["power cap", "heat"], [], ["heat"]]
    assert world.run().throttled == ["power cap", "heat"] and world.throttles == []


def test_a_gpu_that_tells_nothing_of_its_clocks_is_tuned_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(visible: str | None) -> list[str]:
        raise RuntimeError("NVML does not answer")

    monkeypatch.setattr(devices, "throttles", fail)
    assert world.run().throttled == []


def test_too_little_disk_is_told_before_anything_starts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = 2 * len(CONFIGS) * tuner_module._KERNEL_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=wanted - 1))
    failure = world.fails()
    assert (
        failure.error_type == "insufficient_disk"
        and f"about {wanted >> 20} MiB" in str(failure)
        and "/host/" in str(failure)
    )
    assert world.groups == [] and world.noted("began") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=wanted))
    assert world.run([16]).batch_sizes == [16]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Interrupted()])
def test_a_process_that_cannot_be_noted_is_ended(world: World, error: BaseException) -> None:
    tuner = world.tuner()
    groups: list[int] = []

    def note(group: int | None) -> None:
        assert group is not None and processes.group_is_running(group)
        groups.append(group)
        raise error

    tuner._on_group = note
    before = open_descriptors()
    with pytest.raises(type(error)):
        tuner.run(SIZES, lambda size, config: None)
    assert (
        groups
        and not processes.group_is_running(groups[0])
        and world.noted("began") == []
        and open_descriptors() == before
    )


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Interrupted()])
def test_a_finding_that_cannot_be_kept_ends_the_process(world: World, error: BaseException) -> None:
    def keep(size: int, config: Config) -> None:
        raise error

    before = open_descriptors()
    with pytest.raises(type(error)):
        world.tuner().run(SIZES, keep)
    assert world.nothing_runs() and open_descriptors() == before
    assert world.journal().best[16][0] == best_of(16)
    # It is not lost: the next one hears of it, and measures the rest.
    assert world.run().batch_sizes[0] == 16 and world.found[0] == (16, best_of(16))
    looks = world.noted("looks")
    assert len(looks) - len(set(looks)) <= 1, (
        "none is done twice, but the one in whose middle the process was ended"
    )


def test_an_interrupted_measuring_leaves_no_process(world: World) -> None:
    def interrupt(*words: Any) -> None:
        if words[3].endswith("batch size 16") and words[0] == 5:
            raise Interrupted

    tuner = world.tuner()
    tuner._progress = interrupt
    with pytest.raises(Interrupted):
        tuner.run(SIZES, lambda size, config: None)
    assert world.nothing_runs()


# --- killed outright ------------------------------------------------------------------------------

PARENT = """
import json, os, sys
from pathlib import Path
from sgl_admin.facts import devices
from sgl_admin.base import paths
from sgl_admin.moe import tuner
from tests.unit.test_moe_tuner import CONFIGS, DOUBLE, SHAPE, SIZES, TUNING
paths.PROFILES = Path(sys.argv[1])
notes = Path(sys.argv[2])
tuner._PROCESS = DOUBLE
devices.throttles = lambda visible: []
def note(name, value):
    with open(notes / name, "a") as stream:
        stream.write(json.dumps(value) + "\\n")
made = tuner.Tuner(SHAPE, CONFIGS, TUNING, 90, notes / "run.log", lambda *_: None, \
lambda group: note("groups", group), dict(os.environ))
made.run(SIZES, lambda size, config: note("found", [size, config]))
"""


def begin_parent(world: World, **told: Any) -> subprocess.Popen[bytes]:
    sources = str(Path(tuner_module.__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), sources, str(ROOT / "tests" / "unit"))),
        "MOE_GPU": json.dumps({"notes": str(world.notes), **told}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(paths.PROFILES), str(world.notes)], env=environment
    )


def test_the_process_dies_with_its_killed_parent_and_the_next_run_takes_its_journal_up(
    world: World,
) -> None:
    """Killed while it measures the second batch size; all its processes are gone, by themselves."""
    parent = begin_parent(world, at="look", size=64, config=CONFIGS[4], do="hang")
    wait_for(lambda: world.noted("misbehaved"))
    group = int(world.noted("groups")[0])
    assert processes.group_is_running(group)
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes.group_is_running(group))
    assert [json.loads(line) for line in world.noted("found")] == [[16, best_of(16)]]
    outcome = world.run()
    assert (
        world.found == [(16, best_of(16)), (64, best_of(64)), (2, best_of(2))]
        and outcome.restarts == 0
    )
    assert world.dropped == {}, (
        "nobody knows that the configuration was to blame, so it is tried again"
    )
    looks = world.noted("looks")
    assert len(set(looks)) == 36 and len(looks) <= 37, (
        "none is done twice, but the one in whose middle it was killed"
    )


def test_a_kill_of_everything_loses_nothing_that_was_settled(world: World) -> None:
    """Killed at the end of each batch size in turn, until one gets through."""
    for size in (16, 64, 2):
        world.notes.joinpath("misbehaved").unlink(missing_ok=True)
        parent = begin_parent(world, at="compare", size=size, do="hang")
        wait_for(lambda: world.noted("misbehaved"))
        group = int([line for line in world.noted("groups") if line != "null"][-1])
        parent.kill()
        os.killpg(group, signal.SIGKILL)
        parent.wait()
        wait_for(lambda ended=group: not processes.group_is_running(ended))
    world.run()
    assert dict(world.found) == {size: best_of(size) for size in SIZES}
    looks = world.noted("looks")
    assert len(looks) == len(set(looks)) == 36, "no look is done twice"
