"""What is said of a host's measurements, and of what was seen meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from sgl_admin.base.errors import GpuUnavailable, StageFailure
from sgl_admin.base.files import write_text
from sgl_admin.base.ordered import Worker
from sgl_admin.contract import perf
from sgl_admin.contract.perf import FAIL, PASS, WARN, Tolerance
from sgl_admin.facts.devices import GpuProcess, GpuSample
from sgl_admin.perf import data_sheet, history, measure, measure_process, measuring, watch
from sgl_admin.perf.measuring import Measuring
from sgl_admin.perf.verdict import Finding, Verdict
from sgl_admin.perf.watch import Sample, Seen, Ticks

TOLERANCE = Tolerance(5, 10)
# Measurements of one host lie within 2% of each other.
NOISE = 0.005


def fleet(seed: int, hosts: int, **factors: float) -> dict[str, dict[str, Any]]:
    """The probes of a made-up fleet; `factors` by host."""
    chance = random.Random(seed)
    typical = {"gemm_bf16": 780.0, "hbm_copy": 4217.0, "h2d": 55.0, "first_token": 31.0}
    return {
        host: {
            "device_name": "NVIDIA H200",
            "subject": "a",
            "tolerance": asdict(TOLERANCE),
            "measurements": [
                {
                    "name": name,
                    "value": value * chance.gauss(1, NOISE) * factors.get(f"{host}_{name}", 1.0),
                }
                for name, value in typical.items()
            ],
        }
        for host in (f"h{number}" for number in range(hosts))
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("name", "factor"), [("gemm_bf16", 0.93), ("first_token", 1.07)])
def test_a_host_of_six_that_is_seven_percent_off_is_found(
    seed: int, name: str, factor: float
) -> None:
    outliers, without = perf.of_fleet(fleet(seed, 6, **{f"h3_{name}": factor}))
    [(host, judgement)] = outliers
    assert (host, judgement.name, without) == ("h3", name, None)
    assert name in judgement.sentence and "median of 6 hosts" in judgement.sentence


def test_a_host_that_is_better_than_the_others_is_no_outlier() -> None:
    assert perf.of_fleet(fleet(1, 6, h2_hbm_copy=1.2))[0] == []


@pytest.mark.parametrize("seed", range(20))
def test_five_honest_repetitions_give_no_false_alarm(seed: int) -> None:
    entries: list[dict[str, Any]] = []
    for repetition in range(5):
        probes = fleet(100 * seed + repetition, 6)
        assert perf.of_fleet(probes) == ([], None)
        values = perf.values_of(probes["h0"])
        judgements, _without = history.judge(entries, "a", "NVIDIA H200", values, TOLERANCE)
        assert {each.verdict for each in judgements} <= {PASS}
        entries.append({"subject": "a", "device_name": "NVIDIA H200", "verdict": PASS})
        entries[-1]["values"] = values


@pytest.mark.parametrize(
    ("probes", "most"),
    [
        ({}, 0),
        (fleet(1, 3), 3),
        ({"h0": {}, "h1": {"measurements": "none"}, "h2": {"measurements": [None, {}]}}, 0),
        (
            {
                **fleet(1, 3),
                **{
                    f"x{host}": {**probe, "device_name": "NVIDIA H100 PCIe", "subject": "b"}
                    for host, probe in fleet(1, 3).items()
                },
            },
            3,
        ),
    ],
    ids=["empty", "small", "damaged", "of two kinds"],
)
def test_a_fleet_that_is_no_reference_is_said(probes: dict[str, Any], most: int) -> None:
    outliers, without = perf.of_fleet(probes)
    assert outliers == [] and without is not None
    assert f"takes 4 measured hosts of one kind, and the fleet has {most}" in without


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), 10**400, True, None, "780"], ids=str
)
def test_what_is_no_number_above_zero_is_no_measurement(value: Any) -> None:
    assert not perf.is_value(value)
    probe = {"measurements": [{"name": "triad", "value": value}]}
    assert perf.values_of(probe) == {}


@pytest.mark.parametrize(
    ("percent", "verdict"), [(-20, PASS), (4.9, PASS), (5.5, WARN), (9.9, WARN), (10.5, FAIL)]
)
@pytest.mark.parametrize("name", ["triad", "first_token"])
def test_the_tolerances_decide_in_both_directions(name: str, percent: float, verdict: str) -> None:
    sign = -1 if perf.BY_NAME[name].higher else 1
    found = perf.beside(name, 100 + sign * percent, [100.0] * 5, "x", TOLERANCE)
    assert found.verdict == verdict and found.percent == pytest.approx(percent)


def test_references_that_scatter_widen_the_tolerance() -> None:
    others = [80.0, 90.0, 100.0, 110.0, 120.0]
    assert perf.beside("triad", 88, others, "x", TOLERANCE).verdict == PASS
    assert perf.beside("triad", 20, others, "x", TOLERANCE).verdict == WARN


# --- the data sheet


SEEN_ON_H200 = {"gemm_bf16": 780.0, "gemm_fp8": 1388.0, "hbm_copy": 4217.0, "h2d": 55.0}


# docs/benchmarks: the lowest of three runs of ten seconds for each multiplication.
SEEN_ON_H100 = {
    **{"gemm_bf16": 678.2, "gemm_fp8": 1215.0, "hbm_copy": 3009.0, "hbm_read": 3057.0},
    **{"h2d": 53.43, "d2h": 53.84},
}


@pytest.mark.parametrize(
    ("name", "seen"), [("NVIDIA H200", SEEN_ON_H200), ("NVIDIA H100 80GB HBM3", SEEN_ON_H100)]
)
def test_what_a_healthy_gpu_was_seen_to_reach_is_above_its_floor(
    name: str, seen: dict[str, float]
) -> None:
    judgements, without = data_sheet.judge(name, seen)
    assert {each.name for each in judgements} == set(seen) and without is None
    # A sibling that is somewhat slower is no fault either.
    slower, _ = data_sheet.judge(name, {key: value * 0.95 for key, value in seen.items()})
    assert {each.verdict for each in (*judgements, *slower)} == {PASS}


def test_copies_of_a_healthy_gh200_pass() -> None:
    """As nvbandwidth's copy engines were seen at (NVIDIA/nvbandwidth, issue 23)."""
    judgements, _ = data_sheet.judge("NVIDIA GH200 480GB", {"h2d": 346.0, "d2h": 346 / 1.15})
    assert {each.name: each.verdict for each in judgements} == {"h2d": PASS, "d2h": PASS}


@pytest.mark.parametrize("name", SEEN_ON_H200)
def test_half_of_it_fails_with_the_number(name: str) -> None:
    values = {**SEEN_ON_H200, name: SEEN_ON_H200[name] / 2}
    verdict = Verdict(tuple(data_sheet.judge("NVIDIA H200", values)[0]), (), {})
    assert verdict.verdict == FAIL
    assert verdict.reason is not None and verdict.reason.startswith(
        f"{name} is {perf.shown(values[name])} "
    )


def test_another_product_has_no_floor() -> None:
    assert data_sheet.judge("cpu", {"gemm_fp32": 1.0}) == (
        [],
        "there is no data sheet here for cpu",
    )


# --- the history


def entry(value: float, **changes: Any) -> dict[str, Any]:
    made = {"subject": "a", "device_name": "cpu", "verdict": PASS, "values": {"triad": value}}
    return {**made, **changes}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "0 measurements"),
        ([entry(10.0)] * 2, "2 measurements"),
        ([entry(10.0, verdict=FAIL)] * 3, "0 measurements"),
        ([entry(10.0, subject="b", device_name="NVIDIA H200")] * 3, "that of NVIDIA H200"),
    ],
    ids=["none", "few", "failed", "other"],
)
def test_a_history_that_is_no_reference_is_said(entries: list[dict[str, Any]], words: str) -> None:
    judgements, without = history.judge(entries, "a", "cpu", {"triad": 1.0}, TOLERANCE)
    assert judgements == [] and words in str(without)


@pytest.mark.parametrize("content", ["{", "[]", '{"entries": 3}', ""])
def test_a_damaged_history_is_set_aside_and_told(container: Path, content: str) -> None:
    write_text(history.path(), content)
    warnings: list[str] = []
    assert history.read(warnings) == []
    assert len(warnings) == 1 and "history.json" in warnings[0] and "set aside" in warnings[0]
    assert not history.path().exists()


def test_damaged_entries_are_left_out_and_the_last_fifty_stay(container: Path) -> None:
    wrong = [None, {}, entry(float("inf")), entry(1.0, values={"triad": "1"})]
    history.path().write_text(json.dumps({"entries": [*wrong, entry(5.0)]}))
    assert history.read([]) == [entry(5.0)]
    for number in range(1, 61):
        history.add(history.read([]), entry(float(number)))
    assert [each["values"]["triad"] for each in history.read([])] == [*range(11, 61)]


# --- what was seen meanwhile


def gpu(**changes: Any) -> GpuSample:
    made: dict[str, Any] = {
        "sm_mhz": 1980, "memory_mhz": 3201, "power_w": 700.0, "temperature_c": 60,
        "throttles": (), "uncorrectable": 0, "most_sm_mhz": 1980,
    }  # fmt: skip
    return GpuSample(**{**made, **changes})


def on_gpu(*samples: GpuSample) -> Seen:
    return Seen([Sample(0.1 * number, None, (each,)) for number, each in enumerate(samples)])


def on_cpu(*ticks: tuple[int, int, int]) -> Seen:
    return Seen([Sample(0.1 * number, Ticks(*each)) for number, each in enumerate(ticks)])


HOG = GpuProcess(4711, "python3", 20480)


@pytest.mark.parametrize(
    ("seen", "verdict", "words"),
    [
        (Seen(), PASS, ""),
        (on_cpu((0, 0, 0), (100, 98, 95), (200, 196, 190)), PASS, ""),
        (on_cpu((0, 0, 0), (100, 100, 50), (200, 200, 100)), WARN, "50% of the CPUs"),
        (on_cpu((500, 400, 9), (0, 0, 0), (100, 90, 88), (50, 40, 39)), WARN, "went backwards"),
        (on_gpu(*[gpu(throttles=("power cap",))] * 9), PASS, ""),
        (
            on_gpu(*[gpu()] * 5, *[gpu(throttles=("power cap", "thermal, by software"))] * 5),
            WARN,
            "GPU 0 was throttled (thermal, by software) in 50%",
        ),
        (on_gpu(gpu(), gpu(uncorrectable=3)), FAIL, "3 uncorrectable ECC errors"),
        (on_gpu(gpu(uncorrectable=5), gpu(uncorrectable=0)), WARN, "went backwards"),
        (on_gpu(gpu(), gpu(xids=(79,)), gpu(xids=(79, 31))), FAIL, "GPU 0 had Xid 79"),
        (on_gpu(gpu(xids=(31,)), gpu()), WARN, "GPU 0 had Xid 31 meanwhile (a program's own"),
        (on_gpu(gpu(uncorrectable=None), gpu(uncorrectable=None)), PASS, ""),
        (on_gpu(*[gpu(sm_mhz=1200)] * 60), WARN, "clock never went above 1200 of 1980 MHz"),
        (on_gpu(*[gpu(sm_mhz=1200)] * 60, gpu()), PASS, ""),
        (on_gpu(*[gpu(sm_mhz=1200)] * 9), PASS, ""),
        (on_gpu(*[gpu(sm_mhz=1200, most_sm_mhz=None)] * 60), PASS, ""),
        (Seen(processes={4711: HOG}), WARN, "python3 (pid 4711, 20480 MiB)"),
    ],
    ids=[
        "nothing", "quiet", "hog", "counters", "cap", "throttled", "ecc", "ecc back",
        "xid", "xid of a program", "unknown",
        "locked", "power cap alone", "few samples", "no highest clock", "process",
    ],
)  # fmt: skip
def test_what_is_seen_meanwhile(seen: Seen, verdict: str, words: str) -> None:
    found = Verdict((), tuple(seen.findings()), {})
    assert found.verdict == verdict
    assert words in (found.reason or "")


def test_a_slow_gpu_that_was_used_meanwhile_names_the_process() -> None:
    """As seen on an H100 beside a process that multiplies: each half as fast."""
    halves = {name: value / 2 for name, value in SEEN_ON_H100.items()}
    judgements, _ = data_sheet.judge("NVIDIA H100 80GB HBM3", halves)
    found = Verdict(tuple(judgements), tuple(Seen(processes={4711: HOG}).findings()), {})
    assert found.verdict == FAIL
    assert (found.reason or "").startswith("gemm_bf16 is 339.1 TFLOP/s, ")
    assert "3 more; the GPU was used meanwhile by python3 (pid 4711, 20480 MiB)" in (
        found.reason or ""
    )


def test_ticks_are_the_hosts_and_our_own() -> None:
    found = watch.ticks(lambda: 1)
    assert found is not None and found.own == 1 < found.busy <= found.total
    assert 0 < watch._ticks_of(os.getpid()) < found.busy


def test_counters_that_cannot_be_read_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_PROC", tmp_path)
    assert watch.ticks(lambda: 1) is None
    (tmp_path / "stat").write_text("cpu one two\n")
    assert watch.ticks(lambda: 1) is None


# --- the process that measures


class FakeProcess:
    """Stands for the measuring process: it has told what it tells."""

    pid = 4999999

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[Any], code: int = 0
) -> Measuring:
    """One whose process tells these lines."""
    (tmp_path / "log").touch()

    @contextlib.contextmanager
    def working(*_: Any) -> Iterator[Worker]:
        read, tells = os.pipe()
        text = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )

        def tell() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(tells, "w") as stream:
                stream.write(text)

        threading.Thread(target=tell).start()
        try:
            yield Worker(cast("Any", FakeProcess(code)), read)
        finally:
            os.close(read)

    monkeypatch.setattr(measuring.ordered, "working", working)
    return Measuring(0, {}, tmp_path / "log", lambda *_: None, lambda group: None)


GOOD = {"name": "triad", "value": 20.5, "spread": 1.0}


def test_what_the_process_tells_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [
        {"begins": "triad", "done": 0, "total": 2}, GOOD, {"skipped": "gemm_fp8", "why": "no FP8"},
    ]  # fmt: skip
    found = measured(monkeypatch, tmp_path, lines).run()
    assert (found.values, found.spreads, found.skipped) == (
        {"triad": 20.5}, {"triad": 1.0}, {"gemm_fp8": "no FP8"},
    )  # fmt: skip
    assert found.seen.samples


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ([GOOD], -9, "SIGKILL"),
        ([GOOD], 1, "exit code 1"),
        ([], 0, "measured nothing"),
        ([{"problem": "this image has no torch to measure with"}], 3, "no torch"),
        ([GOOD, {"problem": "torch failed: CUDA error"}], 3, "CUDA error"),
        ([GOOD, "not JSON"], 0, "no measurement: not JSON"),
        ([{**GOOD, "value": -1}], 0, "no measurement"),
        (['{"name": "triad", "value": NaN, "spread": 0}'], 0, "no measurement"),
        ([{**GOOD, "name": "other"}], 0, "no measurement"),
        ([GOOD, [1]], 0, "no measurement"),
    ],
    ids=str,
)
def test_what_is_not_whole_is_no_measurement(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[Any], code: int, words: str
) -> None:
    with pytest.raises(StageFailure) as caught:
        measured(monkeypatch, tmp_path, lines, code).run()
    message = str(caught.value)
    assert caught.value.error_type == "measurement_failed"
    assert words in message and len(message) < 400 and "\n" not in message


def test_a_clock_that_is_set_meanwhile_fails_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = iter([1000.0])
    monkeypatch.setattr(watch.time, "time", lambda: next(times, 5000.0))
    with pytest.raises(StageFailure, match=r"clock was set by \+4000 s"):
        measured(monkeypatch, tmp_path, [GOOD]).run()


def test_a_gpu_that_is_lost_meanwhile_fails_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lost(*_: Any) -> Any:
        raise GpuUnavailable("NVML does not answer: GPU is lost; reset the GPU")

    monkeypatch.setattr(watch, "ticks", lost)
    with pytest.raises(StageFailure, match="a GPU was lost: NVML does not answer: GPU is lost"):
        measured(monkeypatch, tmp_path, [GOOD]).run()


def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measuring, "_CPU_LIMIT_S", 0.0)
    with pytest.raises(StageFailure, match="not done after 0 s"):
        measured(monkeypatch, tmp_path, [GOOD]).run()


def told_by(order: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    return measure_process.run(order, lambda **line: lines.append(line)), lines


def test_an_image_without_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, lines = told_by({"gpus": 0})
    assert code == measure_process.EXIT_CANNOT_MEASURE
    assert [*lines[0]] == ["problem"] and "no torch" in lines[0]["problem"]


class FakeTorch:
    """Stands for torch on a machine whose GPU is gone, or is not seen."""

    class cuda:
        seen = True

        @classmethod
        def is_available(cls) -> bool:
            return cls.seen

        @staticmethod
        def get_device_capability(index: int) -> tuple[int, int]:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_...")


@pytest.mark.parametrize(("seen", "words"), [(True, "CUDA error"), (False, "sees no GPU")])
def test_a_gpu_that_torch_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, seen: bool, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch)
    monkeypatch.setattr(FakeTorch.cuda, "seen", seen)
    code, lines = told_by({"gpus": 1})
    assert code == measure_process.EXIT_CANNOT_MEASURE
    assert words in lines[-1]["problem"] and "\n" not in lines[-1]["problem"]


def test_a_rate_is_what_is_done_in_a_second() -> None:
    calls: list[int] = []
    work = measure.Work("triad", 0.0, 1e-6, lambda: lambda: calls.append(1))
    value, spread = measure.rate(work, lambda: None)
    assert value > 0 and spread >= 0 and len(calls) > 3


@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 2.0), (0.9, 4.0)])
def test_a_rate_is_that_of_its_quantile(
    monkeypatch: pytest.MonkeyPatch, quantile: float, expected: float
) -> None:
    """The host's other traffic takes something of a link at times, and never adds to it."""
    # Each call takes a part of a second: two warm up, and then five windows of one call each.
    parts = iter([1.0, 1.0, 1.0, 0.5, 0.25, 0.5, 1.0])
    now = [0.0]

    def call() -> None:
        now[0] += next(parts)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    work = measure.Work("h2d", 3.2, 1.0, lambda: call, quantile=quantile)
    assert measure.rate(work, lambda: None)[0] == expected


def test_a_verdict_names_what_is_worst() -> None:
    found = Verdict(
        (perf.beside("triad", 93, [100.0] * 3, "its history", TOLERANCE),),
        (Finding(FAIL, "GPU 0 is on fire"),),
        {},
    )
    assert (found.verdict, found.reason) == (FAIL, "GPU 0 is on fire")
    assert found.to_json()["judgements"][0]["verdict"] == WARN
