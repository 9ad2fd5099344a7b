"""The watcher: what disturbs a host, what is written of that, and what is judged by it."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sgl_admin.base import files, paths, processes
from sgl_admin.commands import main as cli
from sgl_admin.facts import gpu_owners
from sgl_admin.facts.devices import GpuProcess
from sgl_admin.init import watcher
from sgl_admin.init.watcher import Watcher
from sgl_admin.perf import conditions, watch, watch_metrics, windows
from sgl_admin.perf.conditions import KINDS, Condition, Conditions, CpuClocks, Moment
from sgl_admin.perf.watch import Sample, Ticks
from sgl_admin.perf.windows import Judgement, Windows, judge
from tests.contract import validators
from tests.unit.conftest import RUN_ID
from tests.unit.test_devices import Machine, machine  # noqa: F401
from tests.unit.test_perf import HOG, gpu

WALL = 1.8e9
# nvml.h: nvmlClocksEventReasonSwThermalSlowdown, ...SwPowerCap.
THERMAL, CAP = 0x20, 0x4


def moment(at_s: float, **changes: Any) -> Moment:
    """A second in which the container has both CPUs, or what of it is otherwise."""
    ticks = changes.pop("ticks", Ticks(int(200 * at_s), int(198 * at_s), int(195 * at_s)))
    gpus = changes.pop("gpus", ())
    return Moment(Sample(at_s, ticks, gpus), **{"wall_s": WALL + at_s, **changes})


def hogged(at_s: float) -> Moment:
    """With another process at half of the CPUs from second 10 on."""
    return moment(at_s, ticks=Ticks(int(200 * at_s), int(200 * at_s), int(100 * at_s + 1000)))


GOVERNED = CpuClocks(("performance",))
SAVING = CpuClocks(("powersave",))


@pytest.mark.parametrize(
    ("moments", "kind", "what"),
    [
        ([moment(1), moment(2)], None, ""),
        ([moment(1, gpus=(gpu(throttles=("power cap",)),))], None, ""),
        (
            [moment(1, gpus=(gpu(), gpu(throttles=("power cap", "thermal, by software"))))],
            "throttled",
            "GPU 1 was throttled (thermal, by software)",
        ),
        (
            [moment(1, processes=(HOG,))],
            "gpu_process",
            "the GPU was used by python3 (pid 4711, 20480 MiB)",
        ),
        (
            [moment(1, gpus=(gpu(),)), moment(2, gpus=(gpu(uncorrectable=3),))],
            "ecc",
            "GPU 0 had 3 uncorrectable ECC errors",
        ),
        (
            [moment(1, gpus=(gpu(uncorrectable=3),)), moment(2, gpus=(gpu(),))],
            "ecc",
            "GPU 0's count of ECC errors went backwards, as after a reset",
        ),
        ([moment(1, gpus=(gpu(), gpu(xids=(79, 79))))], "xid", "GPU 1 had Xid 79"),
        ([moment(1, gpus=(gpu(xids=(79,)),)), moment(2, gpus=(gpu(),))], None, ""),
        ([hogged(at_s) for at_s in range(10, 14)], "cpu", "other processes had 50% of the CPUs"),
        (
            [moment(1, cpus=GOVERNED), moment(2, cpus=SAVING)],
            "governor",
            "the CPUs' governor was set from performance to powersave",
        ),
        (
            [moment(1), moment(2, wall_s=WALL + 3602)],
            "clock",
            "the host's clock was set by +3600 s",
        ),
        ([moment(1), moment(2, wall_s=WALL - 58)], "clock", "the host's clock was set by -60 s"),
        ([moment(1, ticks=None)], "unwatched", "the load of the CPUs could not be read"),
        (
            [moment(2), moment(3, ticks=Ticks(1, 1, 1))],
            "unwatched",
            "the counters of the CPUs were set back, or stood",
        ),
        (
            [moment(2), moment(3, ticks=moment(2).sample.ticks)],
            "unwatched",
            "the counters of the CPUs were set back, or stood",
        ),
        ([moment(1, unread=("no NVML",))], "unwatched", "no NVML"),
    ],
    ids=[
        "quiet", "power cap", "throttled", "process", "ecc", "ecc back", "xid", "xid before",
        "hog", "governor",
        "clock ahead", "clock back", "no counters", "counters back", "counters stand", "no gpus",
    ],
)  # fmt: skip
def test_what_disturbs_a_moment(moments: list[Moment], kind: str | None, what: str) -> None:
    seen = Conditions()
    found = [seen.at(each) for each in moments][-1]
    assert [(each.kind, each.what) for each in found] == ([(kind, what)] if kind else [])
    assert kind is None or kind in KINDS


def test_a_short_burst_of_others_is_no_disturbance() -> None:
    """A module of Ansible's takes a CPU of two for half a second."""
    seen = Conditions()
    own = 0
    for second in range(1, 20):
        own += 145 if second == 10 else 195
        assert seen.at(moment(second, ticks=Ticks(200 * second, 195 * second, own))) == []


def test_counters_that_were_set_back_cost_one_moment() -> None:
    seen = Conditions()
    found = [seen.at(moment(at_s)) for at_s in (101, 102, 1, 2, 3)]
    assert [len(each) for each in found] == [0, 0, 1, 0, 0]


# --- the record


def watched(*conditions_of: tuple[float, list[Condition]]) -> Windows:
    """What was written of these moments, as a reader gets it back."""
    made = Windows(RUN_ID)
    for at_s, held in conditions_of:
        made.add(at_s, WALL + at_s, held)
    document = json.loads(made.text())
    validators.validate_watch(document)
    found = windows._checked(document)
    return Windows(RUN_ID, *found)


def throttled(what: str = "GPU 0 was throttled (thermal)", **changes: Any) -> Condition:
    return Condition(**{"kind": "throttled", "subject": "0", "what": what, **changes})


def judgement(made: Windows, begin_s: float, end_s: float) -> Judgement:
    return judge(made.stretches, made.windows, made.complete_since_s, begin_s, end_s)


QUIET: list[tuple[float, list[Condition]]] = [(float(at_s), []) for at_s in range(100, 200)]
UNREAD = Condition("unwatched", "cpu", "the load of the CPUs could not be read")


def at(at_s: float, *held: Condition) -> list[tuple[float, list[Condition]]]:
    return [(second, list(held) if second == at_s else found) for second, found in QUIET]


@pytest.mark.parametrize(
    ("made", "undisturbed", "words"),
    [
        (QUIET, True, None),
        (at(150, throttled()), False, None),
        (at(119, throttled()), True, None),
        (at(182, throttled()), True, None),
        (at(178, throttled(since_s=173.0)), False, None),
        (at(182, throttled(since_s=177.0)), False, None),
        (at(150, UNREAD), None, "could not see all of it: the load of the CPUs"),
        (at(150, UNREAD, throttled()), False, "could not see all of it"),
        (at(119, UNREAD), True, None),
        (QUIET[:70], None, "did not watch all of it"),
        (QUIET[30:], None, "did not watch all of it"),
        (QUIET[:40] + QUIET[45:], None, "did not watch all of it"),
        ([], None, "did not watch all of it"),
        ([*QUIET[:40], *QUIET[50:60]], None, "did not watch all of it"),
        ([*at(150, throttled())[:52], *QUIET[60:]], False, "did not watch all of it"),
    ],
    ids=[
        "quiet", "throttled", "before", "after", "seen late", "seen after", "unread",
        "unread and throttled", "unread before", "died", "late", "gap", "nothing", "died after gap",
        "throttled, then a gap",
    ],
)  # fmt: skip
def test_a_time_is_undisturbed_only_where_all_of_it_was_watched(
    made: list[tuple[float, list[Condition]]], undisturbed: bool | None, words: str | None
) -> None:
    found = judgement(watched(*made), 120.5, 180.5)
    assert found.undisturbed is undisturbed
    assert bool(found.disturbances) is (undisturbed is False)
    assert words in (found.problem or "") if words else found.problem is None


def test_a_condition_that_holds_again_soon_is_one_window() -> None:
    held = [(100.0, [throttled()]), (103.0, [throttled()]), (106.0, [])]
    made = watched(*held, (114.0, [throttled()]), (115.0, [throttled("other", subject="1")]))
    assert [(each["begin_s"], each["end_s"], each["what"]) for each in made.windows] == [
        (100, 103, "GPU 0 was throttled (thermal)"),
        (114, 114, "GPU 0 was throttled (thermal)"),
        (115, 115, "other"),
    ]
    assert made.windows[0]["begin"] == WALL + 100 and made.windows[0]["end"] == WALL + 103


def test_of_a_windows_sentences_the_worst_stays() -> None:
    loads = [throttled(f"{load}%", extent=load) for load in (20, 60, 30)]
    [window] = watched(*((100.0 + n, [each]) for n, each in enumerate(loads))).windows
    assert window["what"] == "60%"


def test_the_record_is_bounded_and_what_was_dropped_is_not_known() -> None:
    """The worst: a window each second, and the longest sentences."""
    made = Windows(RUN_ID)
    for at_s in range(2000):
        made.add(at_s, WALL + at_s, [throttled("x" * 300, subject=str(at_s))])
    validators.validate_watch(json.loads(made.text()))
    assert len(made.text()) < 60_000
    # Of the time whose windows were dropped nothing is known.
    quiet = Windows(RUN_ID, [*made.stretches], [], made.complete_since_s)
    assert judgement(quiet, 1000, 1500).undisturbed is None
    assert judgement(quiet, 1950, 1990).undisturbed is True
    paused = Windows(RUN_ID)
    for at_s in range(0, 4000, 10):
        paused.add(at_s, WALL + at_s, [])
    assert len(paused.stretches) == 20


def test_kinds_are_those_of_the_schemas() -> None:
    [window] = [validators.schema("watch")["properties"]["windows"]["items"]]
    assert tuple(window["properties"]["kind"]["enum"]) == KINDS
    summary = validators.schema("smoke_summary")["properties"]["disturbances"]["items"]
    assert {*summary["properties"]["kind"]["enum"]} == {*KINDS} - {"unwatched"}


# --- reading it


@pytest.fixture
def wanted(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGL_WATCH", "True")
    paths.metrics(RUN_ID).mkdir(parents=True)


@pytest.mark.parametrize(
    "content",
    [
        None, "", "{", "[]", "{}", '{"stretches": [], "windows": []}',
        '{"stretches": [3], "windows": [], "complete_since_s": 0}',
        '{"stretches": [], "windows": [], "complete_since_s": 1' + "0" * 400 + "}",
        '{"stretches": [{"begin": 0, "end": 9e9, "begin_s": 0, "end_s": "9"}], "windows": [],'
        ' "complete_since_s": 0}',
        '{"stretches": [{"begin": 0, "end": 9e9, "begin_s": 0, "end_s": 1e999}], "windows": [],'
        ' "complete_since_s": 0}',
        '{"stretches": [{"begin": 0, "end": 9e9, "begin_s": 0, "end_s": 9e9}], "windows": [{}],'
        ' "complete_since_s": 0}',
        '{"stretches": [{"begin": 0, "end": 9e9, "begin_s": 0, "end_s": 9e9}], "windows":'
        ' [{"begin": 0, "end": 1, "begin_s": 0, "end_s": 1, "kind": "other", "what": "x"}],'
        ' "complete_since_s": 0}',
    ],
)  # fmt: skip
def test_a_damaged_record_never_says_undisturbed(wanted: None, content: str | None) -> None:
    if content is not None:
        paths.watch(RUN_ID).write_text(content)
    found = windows.judged(RUN_ID, 10.0, 20.0)
    assert found.undisturbed is None and found.problem is not None
    assert "whether it was undisturbed is not known" in found.problem
    assert len(found.problem) < 400
    assert windows.obstacle(RUN_ID) is not None
    # The next watcher goes on all the same, and what cannot be read is kept aside.
    Watcher(RUN_ID).take(None, [])
    validators.validate_watch(json.loads(paths.watch(RUN_ID).read_text()))


def test_without_a_watcher_nothing_is_judged_and_nothing_is_read(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGL_WATCH", raising=False)
    monkeypatch.setattr(files, "read_record", None)
    assert windows.judged(RUN_ID, 10.0, 20.0) == Judgement(None, (), None)
    assert windows.obstacle(RUN_ID) is None


# --- the process


class Clocks:
    """Stands for both clocks; what waits lets them pass."""

    def __init__(self) -> None:
        self.at_s, self.wall_s = 1000.0, WALL

    def pass_by(self, seconds: float) -> None:
        self.at_s += seconds
        self.wall_s += seconds


@pytest.fixture
def clocks(wanted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    made = Clocks()
    monkeypatch.setattr(time, "monotonic", lambda: made.at_s)
    monkeypatch.setattr(time, "time", lambda: made.wall_s)
    monkeypatch.setattr(time, "sleep", made.pass_by)
    own = [0]

    def ticks(_own: Any) -> Ticks:
        own[0] = int(195 * made.at_s)
        return Ticks(int(200 * made.at_s), own[0], own[0])

    monkeypatch.setattr(watch, "ticks", ticks)
    yield made


class Rounds:
    """Ends a watcher after so many rests; before each a step may change the machine."""

    def __init__(self, clocks: Clocks, *steps: Any) -> None:
        self._clocks, self._steps = clocks, list(steps)

    def is_set(self) -> bool:
        return not self._steps

    def wait(self, seconds: float) -> None:
        self._clocks.pass_by(max(seconds, 0.001))
        if (step := self._steps.pop(0)) is not None:
            step()


def run(clocks: Clocks, *steps: Any) -> list[tuple[str, str]]:
    """Let a watcher run so; the windows that it wrote."""
    Watcher(RUN_ID).run(Rounds(clocks, *steps))  # type: ignore[arg-type]
    document = json.loads(paths.watch(RUN_ID).read_text())
    validators.validate_watch(document)
    return [(each["kind"], each["what"]) for each in document["windows"]]


def test_a_quiet_host_was_undisturbed(clocks: Clocks) -> None:
    assert run(clocks, *[None] * 30) == []
    assert windows.judged(RUN_ID, 1001.0, 1028.0).undisturbed is True
    assert windows.judged(RUN_ID, 1001.0, 1040.0).undisturbed is None


def test_what_a_gpu_says_is_in_the_record(clocks: Clocks, machine: Machine) -> None:  # noqa: F811
    other = {"pid": 4999999, "memory": 20 << 30}
    found = run(
        clocks,
        lambda: machine(gpus=[{"throttle": CAP}]),
        lambda: machine(gpus=[{"throttle": CAP | THERMAL}]),
        lambda: machine(gpus=[{"processes": [other]}], process_names={"4999999": "/bin/python3"}),
        lambda: machine(gpus=[{"uncorrectable": 2}]),
        lambda: machine(gpus=[{"uncorrectable": 2, "xids": [31]}]),
        *[None] * 5,
    )
    assert found == [
        ("throttled", "GPU 0 was throttled (thermal, by software)"),
        ("gpu_process", "the GPU was used by python3 (pid 4999999, 20480 MiB)"),
        ("ecc", "GPU 0 had 2 uncorrectable ECC errors"),
        ("xid", "GPU 0 had Xid 31"),
    ]
    assert windows.judged(RUN_ID, 1000.5, 1003.5).undisturbed is False


@pytest.mark.parametrize(
    "broken",
    [
        {"fails": {"nvmlDeviceGetClockInfo": "GpuIsLost"}},
        {"fails": {"nvmlInit": "DriverNotLoaded"}},
        {"fails": {"nvmlDeviceGetComputeRunningProcesses": "Unknown"}},
        {"fails": {"nvmlInit": "LibraryMismatch"}},
    ],
    ids=["lost", "no driver", "processes", "mismatch"],
)
def test_gpus_that_cannot_be_read_are_not_undisturbed(
    clocks: Clocks,
    machine: Machine,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    broken: dict[str, Any],
) -> None:
    steps = [None] * 5 + [lambda: machine(**broken)] + [None] * 5 + [machine] + [None] * 10
    [(kind, what)] = run(clocks, *steps)
    assert kind == "unwatched" and what.startswith("the GPUs could not be read (NVML does not")
    found = windows.judged(RUN_ID, 1001.0, 1015.0)
    assert found.undisturbed is None and "could not see all of it" in (found.problem or "")
    # It was said once, and what was seen before and after stands.
    assert capsys.readouterr().out.count("WARNING") == 1
    assert windows.judged(RUN_ID, 1001.0, 1003.5).undisturbed is True
    assert windows.judged(RUN_ID, 1014.0, 1019.0).undisturbed is True


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "what holds its clocks down"),
        ("nvmlDeviceGetComputeRunningProcesses", "which processes use it"),
    ],
)
def test_a_gpu_that_does_not_tell_is_not_undisturbed(
    clocks: Clocks,
    machine: Machine,  # noqa: F811
    function: str,
    words: str,
) -> None:
    machine(fails={function: "NotSupported"})
    assert run(clocks, *[None] * 5) == [("unwatched", f"GPU 0 does not tell {words}")]
    assert windows.judged(RUN_ID, 1001.0, 1003.0).undisturbed is None


def test_a_clock_that_is_set_is_named_and_confuses_nothing(clocks: Clocks) -> None:
    def back() -> None:
        clocks.wall_s -= 86400

    assert run(clocks, *[None] * 10, back, *[None] * 10) == [
        ("clock", "the host's clock was set by -86400 s")
    ]
    assert windows.judged(RUN_ID, 1001.0, 1008.0).undisturbed is True
    assert windows.judged(RUN_ID, 1005.0, 1015.0).undisturbed is False
    assert windows.judged(RUN_ID, 1013.0, 1018.0).undisturbed is True


def test_a_watcher_that_was_stopped_or_killed_has_not_watched(clocks: Clocks) -> None:
    run(clocks, *[None] * 10, lambda: clocks.pass_by(30.0), *[None] * 5)
    assert windows.judged(RUN_ID, 1005.0, 1042.0).undisturbed is None
    clocks.pass_by(20.0)
    assert "has not watched for 21 s" in (windows.obstacle(RUN_ID) or "")
    # The next one, as the supervisor starts it, keeps what was seen before.
    run(clocks, *[None] * 5)
    assert windows.judged(RUN_ID, 1042.0, 1066.0).undisturbed is None
    assert windows.judged(RUN_ID, 1001.0, 1008.0).undisturbed is True
    assert windows.obstacle(RUN_ID) is None


def test_a_full_disk_is_said_once_and_what_was_seen_is_written_later(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full: list[bool] = []
    write = files.write_text

    def write_text(path: Path, *words: Any, **named: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, *words, **named)

    monkeypatch.setattr(files, "write_text", write_text)
    judged: list[bool | None] = []

    def look() -> None:
        judged.append(windows.judged(RUN_ID, 1001.0, clocks.at_s - 1).undisturbed)

    fill = [None] * 5 + [lambda: full.append(True)] + [None] * 10 + [look]
    assert run(clocks, *fill, full.clear, *[None] * 5, look) == []
    assert judged == [None, True]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" is not written: ")[0] for line in said] == [
        "watcher: WARNING: watch.json",
        "watcher: WARNING: watch.prom",
    ]
    assert all("no space left" in line for line in said)


def test_prometheus_gets_what_is_seen(
    clocks: Clocks,
    machine: Machine,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(gpus=[{"throttle": CAP | THERMAL, "temperature": 86, "power": 612_500}])
    monkeypatch.setattr(conditions, "cpu_clocks", lambda: CpuClocks(("performance",), 3.1e9, 2.9e9))
    texts: list[str] = []

    def look() -> None:
        texts.append(watch_metrics.path(RUN_ID).read_text())

    run(clocks, None, look)
    found = {
        (each.name, *each.labels.values()): each.value
        for family in text_string_to_metric_families(texts[0])
        for each in family.samples
    }
    assert found.pop(("sgl_watch_disturbed", "throttled")) == 1
    assert {found.pop(("sgl_watch_disturbed", kind)) for kind in KINDS if kind != "throttled"} == {
        0
    }
    assert found == {
        ("sgl_watch_sample_timestamp_seconds",): pytest.approx(WALL + 1, abs=1),
        ("sgl_watch_others_cpu_ratio",): 0,
        ("sgl_watch_cpu_frequency_hertz", "mean"): 3.1e9,
        ("sgl_watch_cpu_frequency_hertz", "least"): 2.9e9,
        ("sgl_watch_gpu_clock_hertz", "0", "sm"): 1.98e9,
        ("sgl_watch_gpu_clock_hertz", "0", "memory"): 2.619e9,
        ("sgl_watch_gpu_throttled", "0", "power cap"): 1,
        ("sgl_watch_gpu_throttled", "0", "thermal, by software"): 1,
        ("sgl_watch_gpu_power_watts", "0"): 612.5,
        ("sgl_watch_gpu_temperature_celsius", "0"): 86,
        ("sgl_watch_gpu_uncorrectable_errors", "0"): 0,
    }
    assert not watch_metrics.path(RUN_ID).exists(), "a watcher that ended leaves no old values"


def test_status_says_a_watcher_that_does_not_watch(
    live_run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for on, words in (("True", "the watcher (sgl_watch) has not watched yet"), ("False", "")):
        monkeypatch.setenv("SGL_WATCH", on)
        cli.main(["status"])
        assert ("the watcher" in (out := capsys.readouterr().out)) is bool(words) and words in out
        cli.main(["status", "--json"])
        told = json.loads(capsys.readouterr().out)["watch"]
        assert told["wanted"] is bool(words) and (told["reason"] is not None) is bool(words)


# --- whose load it is


def lay(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (place := folder / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.mark.parametrize(
    ("membership", "laid", "seconds"),
    [
        ("0::/", {"cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "cgroup.events": ""}, 2.5),
        ("0::/a", {"a/cpu.stat": "usage_usec 2500000\n", "a/cgroup.events": ""}, 2.5),
        ("0::/", {"cpu.stat": "usage_usec 2500000\n"}, None),
        ("2:cpuacct:/docker/1\n0::/", {"cpuacct/cpuacct.usage": "2500000000\n"}, 2.5),
        ("2:cpu,cpuacct:/d/1", {"cpuacct/d/1/cpuacct.usage": "2500000000\n"}, 2.5),
        (
            "2:cpuacct:/",
            {"cpuacct/cpuacct.usage": "2500000000\n", "cpuacct/release_agent": ""},
            None,
        ),
        ("0::/", {"cpu.stat": "usage_usec many\n", "cgroup.events": ""}, None),
        ("", {}, None),
    ],
    ids=["v2", "v2 of the host", "v2 root", "v1", "v1 joined", "v1 root", "damaged", "nothing"],
)
def test_the_containers_own_cpu_time_is_of_its_cgroup_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    membership: str,
    laid: dict[str, str],
    seconds: float | None,
) -> None:
    """That of the root would be the whole host's, beside which no other process has any load."""
    lay(tmp_path / "proc", **{"self/cgroup": membership})
    lay(tmp_path / "cgroup", **laid)
    monkeypatch.setattr(processes, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(processes, "_CGROUP", tmp_path / "cgroup")
    wanted_ticks = None if seconds is None else int(seconds * os.sysconf("SC_CLK_TCK"))
    assert processes.cpu_ticks() == wanted_ticks


def test_own_cpu_time_that_is_not_known_leaves_the_load_unknown() -> None:
    assert watch.ticks(lambda: None) is None


A, B, C = (GpuProcess(pid, "python3", 1000 * pid) for pid in (11, 12, 13))


@pytest.mark.parametrize(
    ("listed", "ours", "foreign"),
    [
        ([], set(), []),
        ([A], set(), [A]),
        ([A, B], {11, 12}, []),
        ([A, B, C], {11, 12}, [C]),
        ([A, B], {101, 102}, []),
        ([A, B, C], {101, 102}, [A]),
        ([], {11}, None),
    ],
    ids=["nothing", "idle", "own", "other", "host ids", "other by host ids", "not shown"],
)
def test_whose_processes_are_on_a_gpu(
    listed: list[GpuProcess], ours: set[int], foreign: list[GpuProcess] | None
) -> None:
    assert gpu_owners.foreign(listed, ours) == foreign


def test_own_processes_on_a_gpu_have_cuda_open_and_our_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, cgroup, opened in (
        ("self", "0::/a", "/dev/null"),
        ("11", "0::/a", "/dev/nvidia-uvm"),
        ("12", "0::/a", "/dev/nvidiactl"),
        ("13", "0::/b", "/dev/nvidia-uvm"),
    ):
        lay(tmp_path / pid, cgroup=cgroup)
        (tmp_path / pid / "fd").mkdir()
        (tmp_path / pid / "fd" / "3").symlink_to(opened)
    (tmp_path / "14").mkdir()
    monkeypatch.setattr(gpu_owners, "PROC", tmp_path)
    assert gpu_owners.own() == {11}


def test_the_cpus_clocks_are_read_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "CPUFREQ", tmp_path)
    assert conditions.cpu_clocks() == CpuClocks()
    for number, khz in enumerate(("3000000", "2000000", "<unknown>")):
        lay(tmp_path / f"policy{number}", scaling_governor="schedutil\n", scaling_cur_freq=khz)
    assert conditions.cpu_clocks() == CpuClocks(("schedutil",), 2.5e9, 2e9)


def test_a_container_without_gpus_reads_none(container: Path) -> None:
    with watcher._gpus() as (gpus, unread):
        assert gpus is None and unread == []
