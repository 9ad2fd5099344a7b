"""What becomes of a tuning whose process crashes, hangs or is killed: the process is the real one,
on a double of a GPU.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_admin.base import paths, processes
from sgl_admin.base.errors import Interrupted, StageFailure
from sgl_admin.facts import devices
from sgl_admin.facts.gpu_fit import Gpus
from sgl_admin.moe import config_files, space
from sgl_admin.moe import tuner as tuner_module
from sgl_admin.moe.journal import Journal
from sgl_admin.moe.search import Search
from sgl_admin.moe.shape import Lookup, MoeShape
from sgl_admin.moe.space import DOWN, UP, Trial
from sgl_admin.moe.tables import Pair
from sgl_admin.moe.tuner import Order, Outcome, Tuner
from sgl_admin.records import caches
from tests.doubles.moe_bench import DEFAULT, Bench, Compiler

# It starts processes, and mostly waits for them.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOUBLE = "tests.doubles.moe_process"
SHAPE = MoeShape(Lookup(513, 512, "fp8_w8a8", (128, 128)), 2048, 10, 1, "bfloat16")
TUNING: dict[str, Any] = {"E": 513, "N": 512, "block_shape": [128, 128]}
CONFIGS = space.configs((128, 128), 12)
SIZES = [2, 16, 64]
# A default that nothing has to fear.
SLOW = {"default": {"up": {"1": {**DEFAULT, "BLOCK_SIZE_N": 32, "num_warps": 8}}, "down": None}}
ORDER = Order(CONFIGS, [2, 16, 32, 64], {}, SLOW, down_tma=True)
# Longer than the double takes between two words of it on a busy host.
STALL_S = 3.0


class World:
    """Tunings of one folder, and what was seen of their processes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes = folder
        self.log = folder / "run.log"
        self.log.write_text("older lines: No space left on device\n")
        self.found: list[tuple[int, Pair]] = []
        # Of the journal, whenever a batch size was found: in the end it is gone.
        self.dropped: dict[tuple[int, int | str], str] = {}
        self.told: list[tuple[int, int, str, str]] = []
        self.groups: list[int | None] = []
        self._patch = monkeypatch
        self.throttles: list[list[str]] = []

    def tuner(self, gpus: Gpus | None = None, **told: Any) -> Tuner:
        environment = {"MOE_GPU": json.dumps({"notes": str(self.notes), **told})}
        return Tuner(
            SHAPE,
            ORDER,
            TUNING,
            90,
            self.log,
            lambda *words: self.told.append(words),
            self.groups.append,
            environment,
            gpus,
        )

    def run(self, sizes: list[int] | None = None, gpus: Gpus | None = None, **told: Any) -> Outcome:
        return self.tuner(gpus, **told).run(sizes or SIZES, self.take)

    def take(self, size: int, pair: Pair, row: dict[str, Any]) -> None:
        self.found.append((size, pair))
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


class Groups(Bench):
    """The double's own groups."""

    def group(self, size: int) -> str:
        return "sixteens" if size % 16 == 0 else "odd"


@functools.cache
def expected() -> tuple[dict[int, Pair], Bench]:
    """What a search that nothing disturbs finds, and what it asked for."""
    bench = Groups({}, rivals={"default": ({1: SLOW["default"]["up"]["1"]}, None)})  # type: ignore[index]
    found: dict[int, Pair] = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal"), TUNING)
        search = Search(
            space.trials(CONFIGS, False, True),
            SIZES,
            SHAPE.chosen / SHAPE.routed,
            journal,
            bench,
            Compiler(),
            lambda *words: None,
        )

        def take(size: int, settled: Any) -> None:
            found[size] = settled.pair

        search.run(take)
        search.fill(ORDER.ladder, {}, take)
        journal.close()
    return found, bench


def trial_number(size: int, part: str) -> tuple[int, Trial]:
    """The first look of a projection at a size, which a test may bring the process down at."""
    trials = space.trials(CONFIGS, False, True)
    trial = next(each for of, each in expected()[1].looked if of == size and each.part == part)
    return trials.index(trial), trial


def wait_for(condition: Any, patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_every_batch_size_is_tuned_and_told(world: World) -> None:
    outcome = world.run()
    found, bench = expected()
    assert dict(world.found) == found and [size for size, _ in world.found[:3]] == [16, 64, 2]
    assert outcome.batch_sizes == [size for size, _ in world.found]
    assert set(outcome.us) == {str(size) for size in found}
    assert (outcome.configurations, outcome.dropped, outcome.restarts) == (12, 0, 0)
    assert outcome.rows == len(found) >= 4
    assert outcome.looked == len(bench.looked) == len(world.noted("looks"))
    assert outcome.duration_s >= outcome.look_s >= 0
    assert json.loads(json.dumps(vars(outcome))) == vars(outcome)
    assert not world.tuner().folder.exists(), "its kernels and its journal are for nothing more"
    assert world.log.read_text() == "older lines: No space left on device\n"


def test_progress_arrives_in_words_and_numbers(world: World) -> None:
    world.run()
    phases = list(
        dict.fromkeys(words.removeprefix("tuning MoE kernels, ") for _, _, _, words in world.told)
    )
    assert phases[:4] == ["start", "launches", "compile", "batch size 16"]
    assert {"batch size 64", "batch size 2", "batch size 32"} < set(phases)
    assert {unit for _, _, unit, _ in world.told} == {"configurations"}


def test_each_batch_size_is_told_as_soon_as_it_is_known(world: World) -> None:
    tuner, looks = world.tuner(), []
    # By the process's own count when it told of the size: it runs on while its words are read.
    tuner.run(SIZES, lambda size, pair, row: looks.append(tuner.outcome.looked))
    assert looks[0] < looks[1] < looks[2]


def test_the_rows_that_stand_meanwhile_are_told_once_before_all_others(world: World) -> None:
    tuner, bases = world.tuner(), []
    tuner._order = replace(ORDER, base=lambda rows: bases.append((rows, len(world.found))))
    tuner.run(SIZES, world.take)
    [(rows, found)] = bases
    slow = SLOW["default"]["up"]["1"]  # type: ignore[index]
    assert rows == {size: Pair(slow, slow) for size in ORDER.ladder} and found == 0


def test_a_tuning_that_goes_on_has_the_rivals_that_it_began_with(world: World) -> None:
    """Not the rows that it wrote itself."""
    tuner = world.tuner()
    tuner.folder.mkdir(parents=True)
    assert tuner._rivals() == SLOW
    tuner._order = replace(ORDER, rivals={"previous": {"up": {}, "down": None}})
    assert tuner._rivals() == SLOW


def test_the_kernels_of_a_tuning_are_kept_apart_from_the_servers(world: World) -> None:
    folder = world.tuner().folder
    assert folder.parent == config_files.root() / caches.WORK
    other = Tuner(
        SHAPE,
        ORDER,
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
    number, trial = trial_number(16, UP)
    outcome = world.run(at="look", size=16, config=trial.config, do="crash")
    assert set(dict(world.found)) == set(expected()[0]) and dict(world.found)[16].up != trial.config
    assert outcome.restarts == 1 and len(world.noted("began")) == 2
    looks = world.noted("looks")
    assert len(looks) == len(set(looks)), "no look is done twice"
    assert world.dropped == {
        (16, number): "the process that measured it ended: killed by signal 11 (SIGSEGV)"
    }


def test_a_pair_that_crashes_the_process_is_dropped_and_the_rest_goes_on(world: World) -> None:
    """A rival's, too: SGLang's default for another GPU may not run on this one."""
    default = SLOW["default"]["up"]["1"]  # type: ignore[index]
    outcome = world.run(at="check", size=16, config=default, do="crash")
    assert outcome.restarts == 1 and set(dict(world.found)) == set(expected()[0])
    assert world.dropped == {
        (16, Pair(default, default).key): (
            "the process that measured it ended: killed by signal 11 (SIGSEGV)"
        )
    }


def test_a_configuration_that_hangs_is_dropped_and_the_rest_goes_on(world: World) -> None:
    world.impatient("_MEASURE_STALL_S")
    number, trial = trial_number(64, DOWN)
    outcome = world.run(at="look", size=64, config=trial.config, do="hang")
    assert set(dict(world.found)) == set(expected()[0])
    why = "the process that measured it ended: it reported nothing for 3 s"
    assert why in world.dropped.values() and outcome.restarts == 1
    assert len(world.found) == len(dict(world.found)), "what was found before is told once"


def test_a_process_that_does_not_end_after_its_work_is_ended(world: World) -> None:
    world.impatient("_END_S", 1.0)
    outcome = world.run(at="end", do="stay")
    assert dict(world.found) == expected()[0] and outcome.restarts == 1
    assert len(world.noted("looks")) == len(expected()[1].looked)


def test_one_that_does_not_heed_a_request_to_end_is_forced_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.impatient("_MEASURE_STALL_S")
    monkeypatch.setattr(processes, "_TERMINATE_S", 0.5)
    assert (
        world.run(
            [16], at="look", size=16, config=trial_number(16, UP)[1].config, do="deaf"
        ).restarts
        == 1
    )


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
        "no configuration can be used at batch size 16",
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


def test_an_error_of_the_programs_own_is_reported_at_its_second_time(world: World) -> None:
    failure = world.fails(at="check", do="bug", times=100)
    assert failure.error_type == "tuner_failed" and len(world.noted("began")) == 2
    words = 'ended twice with the same error: NotImplementedError: "normal_kernel_cuda"'
    assert words in str(failure) and "skip the stage (--moe skip)" in str(failure)


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
        and "before it measured anything: it reported nothing for 3 s" in str(failure)
    )
    assert len(world.noted("began")) == 1


def test_one_that_cannot_even_start_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_module, "_PROCESS", "sgl_admin.moe.no_such_module")
    failure = world.fails()
    assert failure.error_type == "tuner_failed" and "No module named" in failure.log_tail[-1]
    assert "exit code 1: " in str(failure) and "No module named" in str(failure)


def test_a_launch_that_does_not_compile_is_counted_and_never_measured(world: World) -> None:
    config = expected()[0][16].up
    outcome = world.run(uncompilable=config)
    assert outcome.dropped >= 1 and dict(world.found)[16].up != config
    assert not any(str(space.key(config)) in line for line in world.noted("looks"))


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
    wanted = 4 * len(CONFIGS) * tuner_module._KERNEL_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=wanted - 1))
    failure = world.fails()
    assert (
        failure.error_type == "insufficient_disk"
        and f"about {wanted >> 20} MiB" in str(failure)
        and "/host/" in str(failure)
    )
    assert world.groups == [] and world.noted("began") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=wanted))
    assert world.run([16]).batch_sizes[0] == 16


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
        tuner.run(SIZES, lambda size, pair, row: None)
    assert (
        groups
        and not processes.group_is_running(groups[0])
        and world.noted("began") == []
        and open_descriptors() == before
    )


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Interrupted()])
def test_a_finding_that_cannot_be_kept_ends_the_process(world: World, error: BaseException) -> None:
    def keep(size: int, pair: Pair, row: dict[str, Any]) -> None:
        raise error

    before = open_descriptors()
    with pytest.raises(type(error)):
        world.tuner().run(SIZES, keep)
    assert world.nothing_runs() and open_descriptors() == before
    assert world.journal().best[16].pair == expected()[0][16]
    # It is not lost: the next one hears of it, and measures the rest.
    assert world.run().batch_sizes[0] == 16 and world.found[0] == (16, expected()[0][16])
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
        tuner.run(SIZES, lambda size, pair, row: None)
    assert world.nothing_runs()


# --- killed outright ------------------------------------------------------------------------------

PARENT = """
import json, os, sys
from pathlib import Path
from sgl_admin.facts import devices
from sgl_admin.base import paths
from sgl_admin.moe import tuner
from tests.unit.test_moe_tuner import DOUBLE, ORDER, SHAPE, SIZES, TUNING
paths.PROFILES = Path(sys.argv[1])
notes = Path(sys.argv[2])
tuner._PROCESS = DOUBLE
devices.throttles = lambda visible: []
def note(name, value):
    with open(notes / name, "a") as stream:
        stream.write(json.dumps(value) + "\\n")
made = tuner.Tuner(SHAPE, ORDER, TUNING, 90, notes / "run.log", lambda *_: None, \
lambda group: note("groups", group), dict(os.environ), tuner.Gpus(tuple(sys.argv[3:])))
made.run(SIZES, lambda size, pair, row: note("found", [size, pair]))
"""


def begin_parent(world: World, gpus: Sequence[str] = (), **told: Any) -> subprocess.Popen[bytes]:
    sources = str(Path(tuner_module.__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), sources, str(ROOT / "tests" / "unit"))),
        "MOE_GPU": json.dumps({"notes": str(world.notes), **told}),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(paths.PROFILES), str(world.notes), *gpus],
        env=environment,
    )


def test_the_process_dies_with_its_killed_parent_and_the_next_run_takes_its_journal_up(
    world: World,
) -> None:
    """Killed while it measures the second batch size; all its processes are gone, by themselves."""
    later = trial_number(64, DOWN)[1]
    parent = begin_parent(world, at="look", size=64, config=later.config, do="hang")
    wait_for(lambda: world.noted("misbehaved"))
    group = int(world.noted("groups")[0])
    assert processes.group_is_running(group)
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes.group_is_running(group))
    assert [json.loads(line) for line in world.noted("found")] == [[16, [*expected()[0][16]]]]
    outcome = world.run()
    assert dict(world.found) == expected()[0] and outcome.restarts == 0
    assert world.dropped == {}, (
        "nobody knows that the configuration was to blame, so it is tried again"
    )
    looks = world.noted("looks")
    assert len(set(looks)) == len(expected()[1].looked) and len(looks) - len(set(looks)) <= 1, (
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
    assert dict(world.found) == expected()[0]
    looks = world.noted("looks")
    assert len(looks) == len(set(looks)) == len(expected()[1].looked), "no look is done twice"


# --- on several GPUs ------------------------------------------------------------------------------

BOTH = Gpus(("GPU-a", "GPU-b"), ("GPU-c: in use by python (pid 7, 900 MiB)",))


def measured_on(world: World, gpu: str) -> set[int]:
    """The sizes that were looked at or compared on a GPU."""
    return {int(line) for line in world.noted(f"at-{gpu}")}


def repeated(lines: list[str]) -> int:
    return len(lines) - len(set(lines))


def began(world: World) -> list[int]:
    """The processes, each of which leads a group."""
    return [int(line) for line in world.noted("began")]


def wait_for_end(groups: Sequence[int]) -> None:
    wait_for(lambda: not any(map(processes.group_is_running, groups)))


def test_two_gpus_share_the_sizes_and_no_size_is_measured_on_both(world: World) -> None:
    outcome = world.run(gpus=BOTH, together=2)
    assert set(ORDER.ladder) <= set(dict(world.found)) == set(outcome.batch_sizes)
    assert len(world.found) == len(dict(world.found)) == outcome.rows, "each is told once"
    first, second = measured_on(world, "GPU-a"), measured_on(world, "GPU-b")
    assert {16} <= first and {64} <= second, "they begin at two ends"
    assert not first & second & set(ORDER.ladder)
    assert repeated(world.noted("looks")) == 0 and outcome.looked == len(world.noted("looks"))
    assert outcome.restarts == 0 and len(world.noted("began")) == 2
    assert (outcome.gpus, outcome.gpus_used) == (2, ["GPU-a", "GPU-b"])
    assert outcome.gpus_left == ["GPU-c: in use by python (pid 7, 900 MiB)"]
    assert not world.tuner().folder.exists()


def test_one_idle_gpu_of_several_is_the_one_that_tunes(world: World) -> None:
    outcome = world.run(gpus=Gpus(("GPU-b",)))
    assert dict(world.found) == expected()[0]
    assert measured_on(world, "GPU-b") >= set(SIZES) and len(world.noted("began")) == 1
    assert (outcome.gpus, outcome.gpus_used) == (1, ["GPU-b"])


def test_a_crash_on_one_gpu_begins_that_ones_process_again(world: World) -> None:
    config = trial_number(64, DOWN)[1].config
    outcome = world.run(gpus=BOTH, together=2, at="look", size=64, config=config, do="crash")
    assert outcome.restarts == 1 and len(world.noted("began")) == 3
    assert set(ORDER.ladder) <= set(dict(world.found)) and len(world.dropped) == 1
    assert repeated(world.noted("looks")) == 0


def test_a_hang_on_one_gpu_begins_that_ones_process_again(world: World) -> None:
    world.impatient("_MEASURE_STALL_S")
    config = trial_number(64, DOWN)[1].config
    outcome = world.run(gpus=BOTH, together=2, at="look", size=64, config=config, do="hang")
    assert outcome.restarts == 1 and set(ORDER.ladder) <= set(dict(world.found))


def test_a_death_that_is_no_configurations_ends_all_and_names_the_gpu(world: World) -> None:
    """SIGKILL of one process; the next run loses what was being measured and nothing more."""
    failure = world.fails(gpus=BOTH, together=2, at="look", size=64, do="killed")
    assert failure.error_type == "oom" and "process of GPU GPU-b ended (killed by" in str(failure)
    wait_for_end(began(world))
    assert world.tuner(BOTH)._processes[1].log.exists()
    world.run(gpus=BOTH)
    assert set(ORDER.ladder) <= set(dict(world.found))
    assert repeated(world.noted("looks")) <= 2, "of each process the look in whose middle it ended"


def test_an_interrupt_ends_the_processes_of_all_gpus(world: World) -> None:
    def interrupt(*words: Any) -> None:
        if words[3].endswith("batch size 16") and words[0] == 5:
            raise Interrupted

    tuner = world.tuner(BOTH, together=2)
    tuner._progress = interrupt
    before = open_descriptors()
    with pytest.raises(Interrupted):
        tuner.run(SIZES, world.take)
    assert len(began(world)) == 2
    assert not any(map(processes.group_is_running, began(world)))
    assert open_descriptors() == before


@pytest.mark.parametrize("gpus", [("GPU-a", "GPU-b"), ("GPU-b",), ()], ids=["both", "one", "alone"])
def test_a_killed_parent_leaves_no_process_on_any_gpu_and_its_journals_are_taken_up(
    world: World, gpus: tuple[str, ...]
) -> None:
    """Whatever GPUs are idle then. What a GPU had begun is measured as a whole on one."""
    config = [trial.config for size, trial in expected()[1].looked if size == 16][4]
    parent = begin_parent(
        world, BOTH.idle, together=2, at="look", size=16, config=config, do="hang", gpu="GPU-a"
    )
    # The other one goes on until it has nothing left but to wait.
    wait_for(lambda: world.noted("misbehaved") and len(world.noted("found")) == 2)
    parent.kill()
    parent.wait()
    wait_for_end(began(world))
    settled = set(world.journal().best)
    assert settled == {2, 64} and measured_on(world, "GPU-b") == settled
    world.run(gpus=Gpus(gpus))
    assert set(ORDER.ladder) <= set(dict(world.found)) and world.dropped == {}
    of_16 = [line for line in world.noted("looks") if line.startswith("16 ")]
    others = [line for line in world.noted("looks") if not line.startswith("16 ")]
    assert repeated(others) == 0, "what was settled is not looked at again"
    if gpus == BOTH.idle:
        assert repeated(of_16) == 1, "but the look in whose middle it was killed"
    else:
        assert 16 in measured_on(world, gpus[0] if gpus else "None") and repeated(of_16) == 5
