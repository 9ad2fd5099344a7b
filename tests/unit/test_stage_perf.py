"""Stage perf: when its proof stands, what it records, and what a host that is too slow gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sgl_admin.base import files, paths
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract import perf
from sgl_admin.facts import devices
from sgl_admin.facts.devices import Devices
from sgl_admin.facts.model import Model
from sgl_admin.perf import metrics, served
from sgl_admin.perf import watch as watch_module
from sgl_admin.perf.measuring import Measured
from sgl_admin.perf.watch import Sample, Seen, Ticks
from sgl_admin.prep import result as result_module
from sgl_admin.prep.plan import Decision
from sgl_admin.records.request import Request
from sgl_admin.serving.server import Timed
from sgl_admin.sglang import ENGINE
from sgl_admin.stages import perf as perf_module
from sgl_admin.stages.base import Context
from sgl_admin.stages.perf import Perf
from tests.contract import validators

CPU = {"gemm_fp32": 0.11, "triad": 12.5}
H200 = Devices(
    name="NVIDIA H200",
    count=1,
    cuda=True,
    compute_capability="9.0",
    driver_version="580.159.04",
    kinds=("NVIDIA H200",),
)
SEEN_ON_H200 = {"gemm_bf16": 780.0, "gemm_fp8": 1388.0, "hbm_copy": 4217.0, "h2d": 55.0}


class FakeWarmup:
    """Stands for the server of a prep: it answers a request in 20 ms, and each token takes 5 ms."""

    server = __import__("types").SimpleNamespace(log=Path("/nowhere"))

    def __init__(self, tokens: int = 64, started: bool = False) -> None:
        self.did: list[str] = []
        self.tokens = tokens
        self.started = started

    def rest(self) -> None:
        self.did.append("rest")
        self.started = False

    def keep_place(self) -> None:
        self.did.append("keep_place")

    def ensure_requests(self, batch_sizes: tuple[int, ...]) -> None:
        self.did.append("start")

    def timed(self, prompt: str, tokens: int) -> Timed:
        answered = min(tokens, self.tokens)
        return Timed(200, answered, 0.02 + 0.005 * (answered - 1))


class World:
    """A host whose devices measure given numbers, and preps of its stage."""

    def __init__(self, run_id: str, model: Path) -> None:
        self.values: dict[str, float] = dict(CPU)
        self.seen = Seen([Sample(0.0, Ticks(1, 1, 1)), Sample(0.1, Ticks(20, 5, 5))])
        self.devices = Devices(name="cpu", count=1, cuda=False, cpu_isa="avx2")
        self.options: dict[str, Any] = {}
        self.measured = 0
        self.run_id = run_id
        self.model = model
        self.warmup = FakeWarmup()

    @property
    def context(self) -> Context:
        return Context(
            Request(
                model=str(self.model),
                tp=1,
                stages={"perf": "ensure"},
                moe_batch_sizes=(),
                moe_dtype="auto",
                probe="never",
                server_args=(),
                server_timeout_s=1.0,
                probe_timeout_s=1.0,
                warmup_port=31999,
                options=tuple(self.options.items()),
            ),
            Model(path=str(self.model), slug="m", identity="sha256:" + "0" * 64, config={}),
            self.devices,
            (1, 2),
            self.warmup,  # type: ignore[arg-type]
            lambda *_: None,
            ENGINE.release()[0],
            run_id=self.run_id,
            served_identity="sha256:" + "1" * 64,
        )

    def ensure(self) -> dict[str, Any] | None:
        """What a prep does: nothing, or the work and its record."""
        stage = Perf()
        record = stage.record(stage.signature(self.context))
        if (record.problem([]) or stage.lacking(self.context)) is None:
            return None
        artifacts = stage.run(self.context)
        record.write(stage.content(self.context))
        return artifacts


@pytest.fixture
def world(live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(live_run, model_folder)
    (paths.run_dir(live_run) / "stages").mkdir(parents=True, exist_ok=True)
    files.write_json(paths.IMAGE_FACTS, {"image_inputs": "sha256:1", "base_image": "b"})
    (paths.TMP / "boot").parent.mkdir(parents=True, exist_ok=True)
    (paths.TMP / "boot").write_text("boot-1\n")
    monkeypatch.setattr(perf_module, "_BOOT", paths.TMP / "boot")

    class FakeMeasuring:
        def __init__(self, gpus: int, *_: Any) -> None:
            assert gpus == (1 if made.devices.cuda else 0)

        def run(self) -> Measured:
            assert not made.warmup.started, "a server would disturb the measurement"
            made.measured += 1
            return Measured(dict(made.values), dict.fromkeys(made.values, 0.5), {}, made.seen)

    monkeypatch.setattr(perf_module, "Measuring", FakeMeasuring)
    gpu = {"uuid": "GPU-1", "vbios": "96.00", "power_limit_w": 700.0}
    monkeypatch.setattr(devices, "settings", lambda visible: [gpu])
    return made


def probe_of(artifacts: dict[str, Any] | None) -> dict[str, Any]:
    assert artifacts is not None
    probe: dict[str, Any] = artifacts["perf_probe"]
    validate(probe)
    return probe


def validate(probe: dict[str, Any]) -> None:
    document = validators.example("prep_result")
    document["perf_probe"] = probe
    validators.validate_prep_result(document)


def test_it_is_measured_once_and_then_stands(world: World) -> None:
    probe = probe_of(world.ensure())
    assert (probe["ok"], probe["verdict"], probe["reason"]) == (True, "pass", None)
    assert {each["name"]: each["value"] for each in probe["measurements"]} == {
        **CPU,
        "decode": 200.0,
        "first_token": 20.0,
    }
    assert {each["reference"] for each in probe["without"]} == {"data_sheet", "history", "fleet"}
    assert world.ensure() is None and world.measured == 1
    standing = Perf().standing(world.context)
    assert standing == {"perf_probe": probe, "warnings": []}
    samples = files.read_json(paths.perf_samples(world.run_id)) or {}
    assert len(samples["samples"]) == probe["samples"]["count"] == 2


def test_a_server_that_runs_is_ended_before_devices_are_measured(world: World) -> None:
    world.warmup = FakeWarmup(started=True)
    world.ensure()
    assert world.warmup.did == ["rest", "keep_place", "start"]


def set_boot(world: World) -> None:
    (paths.TMP / "boot").write_text("boot-2\n")


def set_image(world: World) -> None:
    files.write_json(paths.IMAGE_FACTS, {"image_inputs": "sha256:2", "base_image": "b"})


def set_driver(world: World) -> None:
    world.devices = replace(world.devices, driver_version="590.1")


def set_age(world: World) -> None:
    world.options["perf_max_age"] = 0.0


def damage(world: World) -> None:
    proof(world).write_text("{")


def shorten(world: World) -> None:
    document = json.loads(proof(world).read_text())
    proof(world).write_text(json.dumps({**document, "measured_s": "now"}))


def proof(world: World) -> Path:
    [path] = Perf().content(world.context) or []
    return path


def measured_at(seconds: float) -> Callable[[World], None]:
    def change(world: World) -> None:
        document = json.loads(proof(world).read_text())
        proof(world).write_text(json.dumps({**document, "measured_s": seconds}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_boot, "the boot is another"),
        (set_image, "the image is another"),
        (set_driver, "the driver is another"),
        (set_age, "older than 0 days"),
        (measured_at(1.0), "older than 7 days"),
        (measured_at(float("nan")), "older than 7 days"),
        (measured_at(9e12), "its clock was set"),
        (damage, "cannot be read"),
        (shorten, "cannot be read"),
        (lambda world: proof(world).unlink(), "has not been measured"),
    ],
    ids=["boot", "image", "driver", "age", "old", "nan", "future", "damaged", "wrong", "gone"],
)
def test_what_has_a_host_measured_again(
    world: World, change: Callable[[World], None], words: str
) -> None:
    world.ensure()
    change(world)
    lacking = Perf().lacking(world.context)
    assert lacking is not None and words in lacking
    assert world.ensure() is not None and world.measured == 2


@pytest.mark.parametrize("field", ["vbios", "power_limit_w", "uuid"])
def test_another_setting_of_a_gpu_has_it_measured_again(
    world: World, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    world.devices, world.values = H200, dict(SEEN_ON_H200)
    assert probe_of(world.ensure())["verdict"] == "pass"
    assert world.ensure() is None
    monkeypatch.setattr(devices, "settings", lambda visible: [{field: "another"}])
    assert "a GPU, its VBIOS or its power limit" in str(Perf().lacking(world.context))


def test_a_host_that_is_too_slow_warns_and_is_measured_again(world: World) -> None:
    world.devices, world.values = H200, {**SEEN_ON_H200, "gemm_bf16": 390.0}
    artifacts = world.ensure()
    probe = probe_of(artifacts)
    assert (probe["ok"], probe["verdict"]) == (False, "fail")
    words = "gemm_bf16 is 390 TFLOP/s, 34% below the data sheet's floor (593.4)"
    assert probe["reason"] == words
    assert artifacts is not None and artifacts["warnings"] == [f"perf: fail: {words}"]
    world.values = dict(SEEN_ON_H200)
    assert probe_of(world.ensure())["verdict"] == "pass"


def test_one_that_must_be_fast_fails_its_stage_and_keeps_the_evidence(world: World) -> None:
    world.devices, world.values = H200, {**SEEN_ON_H200, "hbm_copy": 2000.0}
    world.options["perf_required"] = True
    with pytest.raises(
        StageFailure, match="this host is too slow: hbm_copy is 2000 GB/s"
    ) as failed:
        world.ensure()
    assert failed.value.error_type == "too_slow"
    probe = probe_of(failed.value.artifacts)
    decision = Decision(Perf(), "run")
    record = result_module.stage_record(decision) | result_module.error_fields(failed.value)
    record["artifacts"] = failed.value.artifacts
    assert result_module._perf_probe({"perf": record}) == probe
    assert "perf_probe" not in result_module._without_perf_probe(record)["artifacts"]


def test_a_host_that_gets_slower_is_found_by_its_history(world: World) -> None:
    for _number in range(perf.LEAST_HISTORY):
        assert probe_of(world.ensure())["verdict"] == "pass"
        set_age(world)
    world.values["triad"] *= 0.93
    probe = probe_of(world.ensure())
    assert probe["verdict"] == "warn"
    assert "triad is 11.62 GB/s, 7% below the host's own history (12.5)" in probe["reason"]
    # What warned is no reference for the next.
    assert probe_of(world.ensure())["verdict"] == "warn"


def test_a_damaged_history_costs_the_history_only(world: World) -> None:
    (paths.PROFILES / "perf" / "history.json").write_text("{")
    artifacts = world.ensure()
    assert probe_of(artifacts)["verdict"] == "pass"
    assert artifacts is not None and "set aside" in artifacts["warnings"][0]


def test_other_load_on_the_cpus_warns(world: World) -> None:
    world.seen = Seen([Sample(0.0, Ticks(0, 0, 0)), Sample(1.0, Ticks(200, 190, 90))])
    probe = probe_of(world.ensure())
    assert (probe["ok"], probe["verdict"]) == (True, "warn")
    assert "other processes had 50% of the CPUs" in probe["reason"]


def test_a_server_that_ends_its_answer_early_is_no_number(world: World) -> None:
    world.warmup = FakeWarmup(tokens=1)
    probe = probe_of(world.ensure())
    assert "decode" not in {each["name"] for each in probe["measurements"]}
    [skipped] = probe["skipped"]
    assert skipped["name"] == "decode" and "1 of 64 tokens" in skipped["reason"]


def test_each_prompt_begins_otherwise(world: World) -> None:
    prompts: list[str] = []

    class Noting(FakeWarmup):
        def timed(self, prompt: str, tokens: int) -> Timed:
            prompts.append(prompt[:8])
            return super().timed(prompt, tokens)

    served.measure(Noting(), (1,))  # type: ignore[arg-type]
    assert len(set(prompts)) == len(prompts) > 4


def test_no_host_takes_anothers_measurement(world: World) -> None:
    stage = Perf()
    world.ensure()
    assert (stage.key(world.context), stage.offer(world.context)) == (None, None)
    assert stage.foreign(world.context, None) is not None  # type: ignore[arg-type]


def test_one_that_is_not_asked_for_says_so() -> None:
    record = result_module.stage_record(Decision(Perf(), "skipped", "requested"))
    probe = result_module._perf_probe({"perf": record})
    validate(probe)
    assert (probe["ok"], probe["reason"]) == (False, "no measurement was asked for (--perf skip)")


# --- what Prometheus gets


def exposed(world: World) -> dict[str, dict[str, float]]:
    """The metrics of the run's file by their names, and each one's values by its labels' values;
    a help and a type that Prometheus' own parser knows are there for each.
    """
    text = metrics.path(world.run_id).read_text()
    found = {}
    for family in text_string_to_metric_families(text):
        assert (family.type, bool(family.documentation)) == ("gauge", True), family
        assert {sample.name for sample in family.samples} == {family.name}
        found[family.name] = {
            " ".join(sample.labels.values()): sample.value for sample in family.samples
        }
    return found


def test_prometheus_gets_the_verdict_and_the_numbers_in_base_units(world: World) -> None:
    world.devices, world.values = H200, {**SEEN_ON_H200, "gemm_bf16": 390.0}
    probe = probe_of(world.ensure())
    measured = json.loads(proof(world).read_text())["measured_s"]
    shortfall = {
        f"{each['name']} data_sheet": pytest.approx(each["percent"] / 100)
        for each in probe["judgements"]
    }
    assert probe["verdict"] == "fail" and len(shortfall) > 2
    assert exposed(world) == {
        "sgl_perf_verdict": {"pass": 0, "warn": 0, "fail": 1},
        "sgl_perf_measured_timestamp_seconds": {"": pytest.approx(measured, abs=1)},
        "sgl_perf_expires_timestamp_seconds": {"": pytest.approx(measured + 7 * 86400, abs=1)},
        "sgl_perf_operations_per_second": {"gemm_bf16": 390e12, "gemm_fp8": 1388e12},
        "sgl_perf_bytes_per_second": {"hbm_copy": 4217e9, "h2d": 55e9},
        "sgl_perf_tokens_per_second": {"decode": 200},
        "sgl_perf_duration_seconds": {"first_token": 0.02},
        "sgl_perf_shortfall_ratio": shortfall,
    }


@pytest.mark.parametrize("measurement", perf.MEASUREMENTS, ids=lambda each: each.name)
def test_every_measurement_has_a_metric_of_its_unit(measurement: perf.Measurement) -> None:
    found = [{"name": measurement.name, "value": 2.0, "unit": measurement.unit}]
    probe = {"verdict": "pass", "measurements": found, "judgements": []}
    text = metrics.render(probe, 1.0, 2.0)
    name, _help, factor = metrics.OF_UNITS[measurement.unit]
    [family] = [each for each in text_string_to_metric_families(text) if each.name == name]
    assert [(each.labels, each.value) for each in family.samples] == [
        ({"measurement": measurement.name}, 2 * factor)
    ]


def test_a_host_with_a_history_has_its_shortfall_beside_that(world: World) -> None:
    for _number in range(perf.LEAST_HISTORY):
        world.ensure()
        set_age(world)
    world.values["triad"] *= 0.93
    world.ensure()
    shortfall = exposed(world)["sgl_perf_shortfall_ratio"]
    assert shortfall["triad history"] == pytest.approx(0.07, abs=0.001)


def test_a_proof_that_stands_is_told_to_the_run_that_it_stands_in(world: World) -> None:
    """A new run begins without metrics. Writing what is there already costs no write."""
    world.ensure()
    before = exposed(world)
    metrics.withdraw(world.run_id)
    Perf().standing(world.context)
    assert exposed(world) == before
    written = metrics.path(world.run_id).stat().st_ino
    Perf().standing(world.context)
    assert metrics.path(world.run_id).stat().st_ino == written


def test_a_measurement_that_fails_leaves_no_verdict_of_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ensure()
    assert exposed(world)

    def lost(self: Perf, context: Context) -> Measured:
        raise StageFailure("measurement_failed", "a GPU was lost")

    monkeypatch.setattr(Perf, "_measure", lost)
    with pytest.raises(StageFailure):
        Perf().run(world.context)
    assert not metrics.path(world.run_id).exists()


def test_a_host_that_is_refused_as_too_slow_has_its_metrics(world: World) -> None:
    world.devices, world.values = H200, {**SEEN_ON_H200, "hbm_copy": 2000.0}
    world.options["perf_required"] = True
    with pytest.raises(StageFailure):
        world.ensure()
    assert exposed(world)["sgl_perf_verdict"] == {"pass": 0, "warn": 0, "fail": 1}


def test_a_file_in_the_metrics_place_that_is_none_is_replaced(world: World) -> None:
    place = metrics.path(world.run_id)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"sgl_perf_verdict{\xff")
    world.ensure()
    assert exposed(world)["sgl_perf_verdict"]["pass"] == 1


def test_a_prep_of_a_gpu_asks_nvml_for_its_settings_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles = Path(__file__).resolve().parents[1] / "doubles"
    nvml = tmp_path / "nvml.json"
    nvml.write_text(json.dumps({"gpus": [{"throttle": 0x44, "xids": [13]}]}))
    monkeypatch.syspath_prepend(str(doubles))
    monkeypatch.setenv("SGL_TEST_NVML", str(nvml))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    [found] = devices.settings()
    assert (found["vbios"], found["power_limit_w"]) == ("96.00.89.00.01", 700.0)
    with watch_module.watching(1, True, None) as (seen, sample):
        sample()
    [gpu] = seen.samples[0].gpus
    assert (gpu.sm_mhz, gpu.power_w, gpu.uncorrectable) == (1980, 120.0, 0)
    assert gpu.throttles == ("power cap", "thermal, by hardware")
    assert gpu.xids == ()


@pytest.mark.parametrize("fails", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_sample_has_the_xids_that_came_since_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    nvml = tmp_path / "nvml.json"
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "doubles"))
    monkeypatch.setenv("SGL_TEST_NVML", str(nvml))
    # The second and the first GPU of the host, as CUDA numbers them.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")

    def has(*xids: list[int], **machine: Any) -> None:
        nvml.write_text(json.dumps({"gpus": [{"xids": each} for each in xids], **machine}))

    has([], [13])
    with devices.watching() as sampled:
        found = [[each.xids for each in sampled()]]
        has([], [13, 31, 79])
        found += [[each.xids for each in sampled()] for _ in range(2)]
        has([48], [13, 31, 79])
        found += [[each.xids for each in sampled()]]
    assert found == [[(), ()], [(31, 79), ()], [(), ()], [(), (48,)]]
    has([48], [13], fails={fails: "NotSupported"})
    with devices.watching() as sampled:
        has([48, 48], [13], fails={fails: "NotSupported"})
        assert [each.xids for each in sampled()] == [(), ()]
