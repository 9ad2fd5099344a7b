"""The stages on a GPU, through the real prep, job, warm-up and server; doubles stand for NVML, for
SGLang and for the MoE tuner.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import clock, files, locks, paths, processes, versions
from sgl_admin.base.errors import StageFailure
from sgl_admin.commands import main as cli
from sgl_admin.commands import request as request_cli
from sgl_admin.contract import stages
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.moe import config_files
from sgl_admin.moe.shape import MoeShape
from sgl_admin.moe.tables import Pair
from sgl_admin.moe.tuner import Found, Order, Outcome
from sgl_admin.prep import execute as execute_module
from sgl_admin.prep.execute import Execution, confirm_proof
from sgl_admin.prep.plan import Plan, plan_prep
from sgl_admin.records import caches, run
from sgl_admin.records.job import Job
from sgl_admin.serving import benchmark_server, server
from sgl_admin.sglang.public_flags import FLAGS
from sgl_admin.stages import moe_tune
from tests.contract import validators
from tests.unit.model_files import write_model

# It starts processes, and mostly waits for them.
pytestmark = pytest.mark.slow

DOUBLES = Path(__file__).resolve().parents[1] / "doubles"
# Whose work the double of the server does.
NAMES = ("deep_gemm", "moe_tune", "flashinfer", "inductor")
COMPILED = {"deep_gemm", "flashinfer", "inductor"}
H100 = "NVIDIA H100 80GB HBM3"
GPU_CACHES = tuple(cache for name in NAMES for cache in stages.BY_NAME[name].caches)
DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "rope_theta": 1000000,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
# The shapes of Qwen3-Next-80B-A3B-FP8, whose shared expert the server fuses into the routed ones:
# 513.
NEXT = {
    **DENSE,
    "architectures": ["Qwen3NextForCausalLM"],
    "hidden_size": 2048,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "quantization_config": {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
}
# Of an unknown architecture: by its config 512.
UNKNOWN = {**NEXT, "architectures": ["SomeNextForCausalLM"]}


def file_name(experts: int = 513, device: str = H100) -> str:
    return (
        f"E={experts},N=512,device_name={device.replace(' ', '_')},dtype=fp8_w8a8,block_shape=[128,"
        " 128].json"
    )


def configuration(size: int, tuned: int = 1) -> dict[str, int]:
    """One that tells for which batch size, and in which tuning, it was found."""
    return {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 64,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": tuned,
        "num_warps": 4,
        "num_stages": 2 + size % 4,
    }


def measured(size: int) -> dict[str, Any]:
    """What a tuning notes of a row (verdict.py)."""
    return {
        "default": 120.0 + size,
        "shipped": None,
        "nearest": None,
        "previous": None,
        "after": 100.0 + size,
        "source": "tuned",
        "noise": 0.002,
    }


class World:
    """A machine with a GPU, preps on it, and what they leave."""

    def __init__(
        self, folder: Path, run_id: str, port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder = folder
        self.run_id = run_id
        self.port = port
        self.monkeypatch = monkeypatch
        self.model = paths.MODELS / "model"
        self.tunings: list[tuple[MoeShape, list[int]]] = []
        self.orders: list[Order] = []
        self.gpus: list[gpu_fit.Gpus] = []
        # Called as the tuner comes to a batch size.
        self.at: Callable[[int], None] = lambda size: None
        self.nvml()
        self.server()
        self.config(NEXT)
        self.install(DOUBLES / "gpu_server")

    def nvml(self, **machine: Any) -> None:
        (self.folder / "nvml.json").write_text(json.dumps(machine))

    def server(self, **told: Any) -> None:
        (self.folder / "server.json").write_text(
            json.dumps({"journal": str(self.folder / "journal"), **told})
        )

    def config(self, config: dict[str, Any]) -> None:
        write_model(self.model, config)

    def install(self, site: Path) -> None:
        """Have this folder's SGLang be the installed one, for this process and the server's."""
        self.monkeypatch.syspath_prepend(str(DOUBLES))
        self.monkeypatch.syspath_prepend(str(site))
        self.monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (site, DOUBLES))))
        versions._distributions.cache_clear()

    def site(self, **changes: str | None) -> Path:
        """A copy of the double, with distributions of other versions, or (None) without them."""
        site = self.folder / "site"
        shutil.copytree(DOUBLES / "gpu_server", site, dirs_exist_ok=True)
        for project, version in changes.items():
            for folder in site.glob(f"{project}-*.dist-info"):
                shutil.rmtree(folder)
            if version is not None:
                (site / f"{project}-{version}.dist-info").mkdir()
        return site

    def starts(self) -> list[dict[str, Any]]:
        journal = self.folder / "journal"
        return (
            [json.loads(line) for line in journal.read_text().splitlines()]
            if journal.exists()
            else []
        )

    def plan(self, *arguments: str) -> Plan:
        words = [
            "caches",
            "ensure",
            "--probe",
            "never",
            "--port",
            str(self.port),
            "--model",
            str(self.model),
        ]
        if not any(word.startswith("--moe-batch-sizes") for word in arguments):
            words.append("--moe-batch-sizes=64")
        live = run.live()
        parsed = cli._parser().parse_args([*words, *arguments])
        return plan_prep(live, request_cli.of(parsed, live))

    def execution(self, *arguments: str) -> Execution:
        """One that has not begun, as the process of a prep has it."""
        plan = confirm_proof(self.plan(*arguments))
        return Execution(plan, Job(self.run_id, plan.request, clock.new_id("prep")))

    def execute(self, *arguments: str) -> tuple[dict[str, Any], int]:
        """A prep that SIGTERM interrupts, as its own process has it; its records are held to the
        contract, and it leaves nothing behind.
        """
        made = self.execution(*arguments)
        before = signal.signal(signal.SIGTERM, lambda *_: made.interrupt())
        try:
            result, exit_code = made.run()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert files.read_json(paths.prep_result(self.run_id)) == result
        validators.validate_prep_result(result)
        for name in NAMES:
            validators.validate_stage(files.read_json(paths.stage_file(self.run_id, name)))
        job = files.read_json(paths.job(self.run_id)) or {}
        validators.validate_job(job)
        assert job["exit_code"] == exit_code and job["server"] is None
        self.assert_nothing_is_left()
        # No server does its work (test_stage_perf).
        assert result["stages"].pop("perf")["status"] == "skipped"
        return result, exit_code

    def assert_nothing_is_left(self) -> None:
        for start in self.starts():
            assert not processes.group_is_running(start["pid"]), (
                "a process of the server, which is its group's first"
            )
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((server.HOST, self.port))
        assert not list(paths.IN_PROGRESS.iterdir()), "a marker"
        for lock in paths.LOCKS.glob("*.lock"):
            assert not locks.held(lock.stem), f"the lock {lock.stem}"

    @property
    def moe_file(self) -> Path:
        return config_files.root() / "configs" / "triton_3_6_0" / file_name()

    def tuned_sizes(self) -> list[list[int]]:
        return [sizes for _, sizes in self.tunings]


@pytest.fixture
def port() -> int:
    with socket.socket() as trial:
        trial.bind((server.HOST, 0))
        return int(trial.getsockname()[1])


@pytest.fixture
def world(
    live_run: str, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(devices, "CONTROL", tmp_path)
    monkeypatch.setenv("SGL_TEST_NVML", str(tmp_path / "nvml.json"))
    monkeypatch.setenv("SGL_TEST_GPU_SERVER", str(tmp_path / "server.json"))
    for variable in ("CUDA_VISIBLE_DEVICES", "SGLANG_MOE_CONFIG_DIR"):
        monkeypatch.delenv(variable, raising=False)
    for variable, cache in paths.CACHE_VARIABLES.items():
        monkeypatch.setenv(variable, str(paths.PROFILES / cache))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    # Whatever room this machine has; and no test waits long for one who stays.
    monkeypatch.setattr(gpu_fit, "_CACHE_BYTES", 0)
    monkeypatch.setattr(gpu_fit, "_PATIENCE_S", 0.2)
    flavour = {
        "flavour": "gh200",
        "server": {"args": [], "env": {}, "batch_sizes": [1, 2]},
        "services": [],
    }
    files.write_json(paths.FLAVOUR, flavour)
    made = World(tmp_path, live_run, port, monkeypatch)

    class FakeTuner:
        """Stands for the tuner: it finds a configuration for each batch size at once. It wants the
        GPU alone.
        """

        def __init__(
            self, shape: MoeShape, order: Order, tuning: dict[str, Any], *more: Any
        ) -> None:
            self.shape = shape
            made.orders.append(order)
            made.gpus.append(more[-1])
            self.outcome = Outcome(configurations=len(order.configs))

        def run(self, batch_sizes: list[int], found: Found) -> Outcome:
            assert not any(processes.group_is_running(start["pid"]) for start in made.starts()), (
                "a server has the GPU"
            )
            made.tunings.append((self.shape, batch_sizes))
            for size in batch_sizes:
                made.at(size)
                found_config = configuration(size, len(made.tunings))
                found(size, Pair(found_config, found_config), measured(size))
                self.outcome.batch_sizes.append(size)
            return self.outcome

    monkeypatch.setattr(moe_tune, "Tuner", FakeTuner)
    yield made
    for start in made.starts():
        processes.end_group(start["pid"])
    versions._distributions.cache_clear()


def statuses(result: dict[str, Any]) -> list[str]:
    return [result["stages"][name]["status"] for name in NAMES]


def error(result: dict[str, Any], name: str) -> tuple[str, str]:
    stage = result["stages"][name]
    return stage["error_type"], "; ".join(stage["errors"])


# --- a prep from cold caches, and the next one


def test_a_cold_prep_fills_every_cache_and_a_second_one_starts_nothing(world: World) -> None:
    result, exit_code = world.execute()
    assert (statuses(result), result["status"], exit_code) == (["ok"] * 4, "ok", 0)
    found = result["run"]
    assert (
        found["device_name"],
        found["compute_capability"],
        found["driver_version"],
        found["cuda"],
    ) == (
        H100,
        "9.0",
        "580.159.04",
        "13.0",
    )
    assert (found["torch_version"], found["triton_version"], found["deep_gemm_version"]) == (
        "2.11.0+cu130",
        "3.6.0",
        "0.1.5.post1",
    )
    artifacts = {name: result["stages"][name]["artifacts"] for name in NAMES}
    assert artifacts["deep_gemm"]["kernels"] == 1 and artifacts["deep_gemm"]["server_ready_s"] > 0
    # The first one compiles, the last one answers with what was tuned.
    for start in result["server_starts"]:
        assert [one["phase"] for one in start["phases"]] == ["imports"] and start["ready_s"] > 0
    assert result["server_starts"][0]["ready_s"] == artifacts["deep_gemm"]["server_ready_s"]
    assert result["server_starts"][-1]["first_request_s"] > 0 and result["start_advice"] == []
    assert all(artifacts[name]["compiled_files"] > 0 for name in COMPILED)
    # What sampling needs is built by the first request that samples.
    assert (
        artifacts["flashinfer"]["libraries"] == 4
        and artifacts["flashinfer"]["first_sampled_request_s"] > 0
    )
    assert (
        artifacts["moe_tune"]["available_batch_sizes"]
        == artifacts["moe_tune"]["new_batch_sizes"]
        == [64]
    )
    assert all(result["profile_cache"]["before"][cache]["file_count"] == 0 for cache in GPU_CACHES)
    assert all(result["profile_cache"]["after"][cache]["file_count"] > 0 for cache in GPU_CACHES)
    servers = len(world.starts())
    began = time.monotonic()
    again, exit_code = world.execute()
    assert time.monotonic() - began < 1
    assert (
        (statuses(again), exit_code) == (["noop"] * 4, 0)
        and len(world.starts()) == servers
        and len(world.tunings) == 1
    )
    assert {stage["reason"] for stage in again["stages"].values()} == {"valid_signature"}
    assert again["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is True
    assert again["stages"]["moe_tune"]["artifacts"]["skipped_batch_sizes"] == [64]


def test_what_was_chosen_for_the_operator_is_said(world: World, tmp_path: Path) -> None:
    kernels = tmp_path / "arm64" / "sgl_kernel"
    kernels.mkdir(parents=True)
    (kernels / "__init__.py").touch()
    world.monkeypatch.syspath_prepend(str(kernels.parent))
    world.monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    result, _ = world.execute()
    server = result["run"]["server"]
    [choice] = server["chosen"]
    assert choice["arguments"] == ["--attention-backend", "flashinfer"] and choice["reason"]
    assert server["argv"][-2:] == choice["arguments"]
    signature = result["stages"]["flashinfer"]["signature"]
    assert ["--attention-backend", "flashinfer"] in signature["arguments"]
    # The operator's own argument always wins.
    result, _ = world.execute("--server-arg=--attention-backend=triton")
    assert result["run"]["server"]["chosen"] == []
    world.config({**NEXT, "vision_config": {"depth": 27}})
    result, exit_code = world.execute()
    assert result["run"]["server"]["argv"][-2:] == ["--mm-attention-backend", "triton_attn"]
    assert exit_code == 0, "the server takes both"


def test_another_server_is_started_once_and_shows_what_it_compiles(world: World) -> None:
    world.execute()
    servers = len(world.starts())
    arguments = ("--server-arg=--served-model-name=name",)
    result, _ = world.execute(*arguments)
    assert statuses(result) == ["ok", "noop", "ok", "ok"] and len(world.starts()) == servers + 1
    assert len(world.tunings) == 1
    for name in COMPILED:
        assert result["stages"][name]["artifacts"]["compiled_files"] == 0, name
    for words in (arguments, ()):
        again, _ = world.execute(*words)
        assert statuses(again) == ["noop"] * 4 and len(world.starts()) == servers + 1


def test_a_file_outside_of_the_caches_is_named(world: World) -> None:
    """FIRST_CONTACT 11: a new container would compile it once more."""
    planted = paths.HOME / ".somewhere" / "kernel.so"
    world.server(plants=str(planted))
    result, exit_code = world.execute()
    assert exit_code == 0 and result["new_files"]["outside_files"] == [str(planted)]
    assert result["new_files"]["outside"] == 1 and result["new_files"]["in_caches"] > 5
    [warning] = [words for words in result["warnings"] if "outside of the caches" in words]
    assert str(planted) in warning
    world.server()
    again, _ = world.execute("--server-arg=--served-model-name=name")
    assert again["new_files"] == {
        "in_caches": 0,
        "cache_files": [],
        "outside": 0,
        "outside_files": [],
    }
    assert not any("outside of the caches" in words for words in again["warnings"])


def test_what_is_compiled_after_a_stage_was_recorded_is_part_of_its_record(world: World) -> None:
    result, _ = world.execute()
    late = "deep_gemm/cache/kernel.fp8_gemm.2e3f/kernel.cubin"
    signature = result["stages"]["deep_gemm"]["signature"]
    recorded = caches.SignatureRecord("deep_gemm", ("deep_gemm",), signature)
    assert paths.PROFILES / late in recorded.content()
    assert result["stages"]["deep_gemm"]["artifacts"]["files"] == recorded.summary()
    again, _ = world.execute()
    assert statuses(again) == ["noop"] * 4


def test_another_driver_compiles_into_a_folder_of_its_own(world: World) -> None:
    world.execute()
    servers = len(world.starts())
    world.nvml(driver="590.10")
    result, _ = world.execute()
    assert statuses(result) == ["ok", "noop", "ok", "ok"] and len(world.starts()) == servers + 1
    assert result["new_files"]["cache_files"] == ["cuda/590.10/a/b/1f2e"]
    again, _ = world.execute()
    assert statuses(again) == ["noop"] * 4


def test_the_server_inherits_no_variable_of_ours(world: World) -> None:
    """SGLang takes each for an old name of its own, and warns of it in each process."""
    world.monkeypatch.setenv("SGL_PROMETHEUS_PORT", "9090")
    world.monkeypatch.setenv("SGL_ENABLE_TORCH_COMPILE", "1")
    world.execute()
    environment = world.starts()[-1]["env"]
    inherited = {name for name in environment if name.startswith("SGL_")}
    assert "SGL_ENABLE_TORCH_COMPILE" in inherited, "a user's own stays"
    assert not any(name.startswith(("SGL_HOST_", "SGL_PROM", "SGL_DG_")) for name in inherited)


def test_memory_that_nobody_holds_is_said_before_the_start(world: World) -> None:
    """FIRST_CONTACT 8: the page cache of a Grace host in the GPU's memory."""
    world.nvml(
        driver="550.90", gpus=[{"name": "NVIDIA GH200 480GB", "memory": (20 << 30, 96 << 30)}]
    )
    result, _ = world.execute()
    [warning] = [words for words in result["warnings"] if "free before" in words]
    assert "20480 of 98304 MiB" in warning


def test_flashinfers_packages_of_several_versions_are_said_before_the_start(world: World) -> None:
    world.install(world.site(flashinfer_cubin="0.6.11"))
    result, _ = world.execute()
    [warning] = [words for words in result["warnings"] if "flashinfer-cubin" in words]
    assert "0.6.11" in warning and "0.6.15" in warning


def test_a_nonsense_argument_is_never_warm(world: World) -> None:
    """The double, as SGLang, ends at an argument that it does not know."""
    world.execute()
    result, exit_code = world.execute("--server-arg=--nonsense-flag")
    assert exit_code != 0 and statuses(result) == ["error", "noop", "error", "error"]
    assert statuses(world.execute()[0]) == ["noop"] * 4


@pytest.mark.parametrize("version", ["3.6.0+git8c5d", "3.6.0rc1"])
def test_a_triton_that_is_no_release_gets_no_folder(world: World, version: str) -> None:
    world.install(world.site(triton=version))
    result, _ = world.execute()
    kind, why = error(result, "moe_tune")
    assert kind == "unsupported" and version in why and "--moe skip" in why
    folders = [path.name for path in (config_files.root() / "configs").glob("triton_*")]
    assert all(name.removeprefix("triton_").replace("_", "").isdigit() for name in folders)


def test_one_server_serves_all_stages_but_for_the_one_that_reads_what_was_tuned(
    world: World,
) -> None:
    world.execute()
    assert len(world.starts()) == 2, "one that says what it looks up, and one that reads it"
    result, _ = world.execute(
        "--deep-gemm",
        "rebuild",
        "--moe",
        "ensure",
        "--flashinfer",
        "rebuild",
        "--inductor",
        "rebuild",
    )
    assert statuses(result) == ["ok", "noop", "ok", "ok"] and len(world.starts()) == 3


def test_a_server_is_started_after_tuning_and_says_that_it_read_the_file(world: World) -> None:
    result, _ = world.execute("--moe", "ensure")
    found = result["stages"]["moe_tune"]["artifacts"]
    assert found["verified_in_log"] is True and found["config_file"]["container_path"] == str(
        world.moe_file
    )
    log = paths.log(world.run_id).read_text()
    looked_up, read = (
        f"Config file not found at {world.moe_file}",
        f"Using MoE kernel config from {world.moe_file}.",
    )
    assert log.count(looked_up) == log.count(read) == 1 and log.index(looked_up) < log.index(read)
    # SGLang's own format: batch size -> launch configuration.
    assert json.loads(world.moe_file.read_text()) == {"64": configuration(64)}


def test_the_servers_own_name_of_the_file_counts_and_not_the_configs(world: World) -> None:
    world.config(UNKNOWN)
    assert next(iter(world.plan().decisions[1:])).signature["E"] == 512  # type: ignore[index]
    result, _ = world.execute()
    assert statuses(result) == ["ok"] * 4 and [shape.lookup.E for shape, _ in world.tunings] == [
        513
    ]
    assert result["stages"]["moe_tune"]["signature"]["E"] == 513, (
        "it is the signature of what was done"
    )
    assert world.tunings[0][0].rows_per_token == 11 and world.moe_file.exists()
    assert not world.moe_file.with_name(file_name(512)).exists()
    servers = len(world.starts())
    again, _ = world.execute()
    assert statuses(again) == ["noop"] * 4 and len(world.starts()) == servers
    assert again["stages"]["moe_tune"]["signature"]["E"] == 513


def test_what_a_server_looked_up_is_remembered_for_preps_without_one(world: World) -> None:
    world.config(UNKNOWN)
    world.execute("--moe", "ensure")
    servers = len(world.starts())
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=64,128", "--moe-fusion", "skip")
    assert statuses(result)[1] == "ok" and len(world.starts()) == servers
    assert [(shape.lookup.E, sizes) for shape, sizes in world.tunings] == [
        (513, [64]),
        (513, [128]),
    ]


def test_without_fusion_no_server_is_started_for_moe_and_nothing_is_said_to_be_read(
    world: World,
) -> None:
    result, exit_code = world.execute("--moe", "ensure", "--moe-fusion", "skip")
    assert (statuses(result), exit_code) == (
        ["skipped", "ok", "skipped", "skipped"],
        0,
    ) and world.starts() == []
    assert result["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is None, "it was not asked"
    again, _ = world.execute("--moe", "ensure", "--moe-fusion", "skip")
    assert (
        statuses(again)[1] == "noop"
        and again["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is None
    )


def test_what_was_tuned_without_a_server_is_verified_by_the_first_prep_that_may(
    world: World,
) -> None:
    world.execute("--moe", "ensure", "--moe-fusion", "skip")
    assert (
        world.plan("--moe", "ensure").to_json()["stages"]["moe_tune"]["reason"]
        == "no server has said yet that it reads the configurations"
    )
    result, _ = world.execute("--moe", "ensure")
    assert (
        statuses(result)[1] == "ok"
        and result["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is True
    )
    assert world.tuned_sizes() == [[64]] and len(world.starts()) == 1, (
        "nothing is tuned again, and one server says both"
    )
    assert statuses(world.execute("--moe", "ensure")[0])[1] == "noop"


def test_only_a_new_batch_size_is_tuned_and_the_file_is_the_union(world: World) -> None:
    world.execute("--moe", "ensure")
    assert (
        "batch sizes 16, 128"
        in world.plan("--moe", "ensure", "--moe-batch-sizes=16,64,128").to_json()["stages"][
            "moe_tune"
        ]["reason"]
    )
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16,64,128")
    assert world.tuned_sizes() == [[64], [16, 128]]
    found = result["stages"]["moe_tune"]["artifacts"]
    assert (
        found["available_batch_sizes"],
        found["new_batch_sizes"],
        found["skipped_batch_sizes"],
    ) == ([16, 64, 128], [16, 128], [64])
    assert json.loads(world.moe_file.read_text()) == {
        "16": configuration(16, 2),
        "64": configuration(64, 1),
        "128": configuration(128, 2),
    }
    fewer, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=128")
    assert statuses(fewer)[1] == "noop"
    assert fewer["stages"]["moe_tune"]["artifacts"]["available_batch_sizes"] == [
        16,
        64,
        128,
    ], "none is lost"


def test_the_file_answers_for_every_size_that_the_server_can_ask_for(world: World) -> None:
    """Also where it asks for more than it did when the file was tuned."""
    words = ("--moe", "ensure", "--moe-batch-sizes=16,100")
    less = ("--server-arg=--chunked-prefill-size", "--server-arg=2048")
    result, _ = world.execute(*words, *less)
    assert statuses(result)[1] == "ok", error(result, "moe_tune")
    [order] = world.orders
    assert order.ladder[0] == 1 and order.ladder[-1] == 2048 and {16, 100, 1536} < set(order.ladder)
    assert order.known == {} and order.down_tma and list(order.rivals)[0] == "default"
    fewer = ("--server-arg=--chunked-prefill-size", "--server-arg=1024")
    assert world.execute(*words, *fewer)[0]["stages"]["moe_tune"]["status"] == "noop"
    more = ("--server-arg=--chunked-prefill-size", "--server-arg=4096")
    stage = world.plan(*words, *more).to_json()["stages"]["moe_tune"]
    assert stage["reason"] == "the batch sizes between the tuned ones have not been measured"
    result, _ = world.execute(*words, *more)
    assert result["stages"]["moe_tune"]["status"] == "ok" and world.tuned_sizes() == [[16, 100], []]
    assert set(world.orders[1].known) == {16, 100} and world.orders[1].ladder[-1] == 4096
    assert "previous" in world.orders[1].rivals


def test_a_tuning_that_ended_before_all_sizes_were_filled_goes_on(world: World) -> None:
    def fail(size: int) -> None:
        if size == 64:
            raise StageFailure("tuner_failed", "killed")

    world.at = fail
    world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    world.at = lambda size: None
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16")
    assert result["stages"]["moe_tune"]["status"] == "ok" and world.tuned_sizes()[1:] == [[]]


def test_the_gain_is_part_of_the_result_also_when_nothing_is_left_to_do(world: World) -> None:
    result, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    gain = result["stages"]["moe_tune"]["artifacts"]["gain"]
    assert [row["batch_size"] for row in gain["rows"]] == [16, 64]
    assert gain["rows"][0]["default"] == 136.0 and gain["times_as_fast"]["default"] == 1.147
    assert gain["worst"]["default"] == {"batch_size": 64, "times_as_fast": 1.122}
    again, _ = world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    stage = again["stages"]["moe_tune"]
    assert stage["status"] == "noop" and stage["artifacts"]["gain"] == gain


def test_what_an_earlier_release_tuned_stands_until_more_is_asked_for(world: World) -> None:
    """Its signature has no method, and no size between the tuned ones was filled."""
    context = world.plan("--moe", "ensure", "--moe-batch-sizes=16,64").context
    shape = moe_tune._expected(context)
    tuning = moe_tune._tuning(context, shape)
    earlier = {key: value for key, value in tuning.items() if key != "method"}
    earlier["configurations"] = 1280
    for size in (16, 64):
        config_files.add(world.moe_file, earlier, size, configuration(size), both=False)
    tuned = moe_tune._tuning(context, shape)
    assert tuned == earlier and moe_tune._missing(context, shape) == []
    assert moe_tune._is_filled(context, shape)
    more = world.plan("--moe", "ensure", "--moe-batch-sizes=16,64,128").context
    assert moe_tune._tuning(more, shape)["method"] == 2
    assert moe_tune._missing(more, shape) == [16, 64, 128]
    again = world.plan("--moe", "rebuild", "--moe-batch-sizes=16,64").context
    assert moe_tune._tuning(again, shape)["method"] == 2


def test_a_rebuild_tunes_all_that_is_wanted_again(world: World) -> None:
    world.execute("--moe", "ensure", "--moe-batch-sizes=16,64")
    result, _ = world.execute("--moe", "rebuild")
    assert statuses(result)[1] == "ok" and world.tuned_sizes() == [[16, 64], [64]]
    assert json.loads(world.moe_file.read_text()) == {
        "16": configuration(16, 1),
        "64": configuration(64, 2),
    }, "what was not asked for stays"
    assert result["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is True
    assert_built_in_files_are_there()


REBUILD = [
    word
    for name in ("deep-gemm", "moe", "flashinfer", "inductor")
    for word in (f"--{name}", "rebuild")
]


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Another process' server at this port."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((server.HOST, port))
        holder.listen()
        yield


@contextmanager
def serving() -> Iterator[None]:
    """A benchmark's server, of whatever container of these caches: its lock is all that is left
    to tell of it.
    """
    lock = locks.try_lock(benchmark_server.SERVES)
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


@pytest.mark.parametrize("record", [None, "stopped", "ended"])
@pytest.mark.parametrize("obstacle", ["its port is taken", "a benchmark's server"])
def test_a_rebuild_that_cannot_start_its_server_leaves_all_work_as_it_was(
    world: World, obstacle: str, record: str | None
) -> None:
    world.execute()
    if record is not None:
        ended = {"server_id": "server-1", "state": record, "pgid": 2**21, "start_ticks": "1"}
        asked = {"argv": ["x"], "env": {}, "port": 31998, "log_start": 0}
        files.write_json(paths.server(world.run_id), {**ended, **asked})
    before = caches.listing()
    made = world.execution(*REBUILD)
    with listening(world.port) if obstacle == "its port is taken" else serving():
        result, exit_code = made.run()
    assert exit_code == 10 and statuses(result) == ["error"] * 4
    assert {error(result, name)[0] for name in NAMES} == {"port_busy"}
    assert before and caches.listing() == before, "no file is gone, new or another one"
    assert world.plan().nothing_to_do, "the old work counts"


def test_a_deleted_file_is_tuned_again(world: World) -> None:
    world.execute("--moe", "ensure")
    world.moe_file.unlink()
    assert statuses(world.execute("--moe", "ensure")[0])[1] == "ok" and world.tuned_sizes() == [
        [64],
        [64],
    ]


def assert_built_in_files_are_there() -> None:
    own = (
        DOUBLES
        / "gpu_server"
        / "sglang"
        / "srt"
        / "layers"
        / "moe"
        / "moe_runner"
        / "triton_utils"
        / "configs"
    )
    names = [path.relative_to(own) for path in own.glob("*/*.json")]
    assert len(names) == 3
    for name in names:
        assert (config_files.root() / "configs" / name).read_bytes() == (own / name).read_bytes()


def test_the_server_has_its_cache_variables_and_finds_sglangs_own_files_beside_ours(
    world: World,
) -> None:
    world.execute("--deep-gemm", "ensure")
    [started] = world.starts()
    wanted = {
        variable: str(paths.PROFILES / cache) for variable, cache in paths.CACHE_VARIABLES.items()
    }
    # The driver's own has a folder for its version, and a name that SGLang had before 0.5.9 is left
    # out, as it would warn of it.
    wanted["CUDA_CACHE_PATH"] += "/580.159.04"
    del wanted["SGL_DG_CACHE_DIR"]
    found = {key: value for key, value in started["env"].items() if not key.startswith("SGL_TEST_")}
    assert found == {
        **wanted,
        "SGLANG_MOE_CONFIG_DIR": str(config_files.root()),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert_built_in_files_are_there()


def test_a_model_without_experts_has_nothing_to_tune(world: World) -> None:
    world.config(DENSE)
    result, exit_code = world.execute()
    assert (statuses(result), exit_code) == (["ok", "skipped", "ok", "ok"], 0)
    assert result["stages"]["moe_tune"]["reason"] == "no_moe_layers" and len(world.starts()) == 1


def test_two_gpus_whose_names_begin_alike_have_caches_of_their_own(world: World) -> None:
    world.nvml(gpus=[{"name": "NVIDIA GH200 480GB"}])
    world.execute()
    world.nvml(gpus=[{"name": "NVIDIA GH200 120GB"}])
    assert [decision.action for decision in world.plan().decisions] == [*["run"] * 4, "skipped"]
    result, _ = world.execute("--moe", "ensure")
    made = {path.name for path in world.moe_file.parent.glob("*GH200*")}
    names = [file_name(device=f"NVIDIA GH200 {size}") for size in ("480GB", "120GB")]
    assert made == {*names, *(name.replace(".json", "_down.json") for name in names)}
    assert result["stages"]["moe_tune"]["artifacts"]["verified_in_log"] is True
    world.nvml(gpus=[{"name": "NVIDIA GH200 480GB"}])
    assert world.plan().nothing_to_do, "the first one's stand"


# --- what goes wrong


def test_a_server_that_looks_nothing_up_is_unsupported_and_told_how_to_go_on(world: World) -> None:
    result, exit_code = world.execute(
        "--server-arg=--moe-runner-backend", "--server-arg=flashinfer_cutlass"
    )
    assert (statuses(result), result["status"], exit_code) == (
        ["ok", "error", "ok", "ok"],
        "partial",
        11,
    )
    kind, words = error(result, "moe_tune")
    assert kind == "unsupported" and "--moe-runner-backend" in words and "--moe skip" in words
    assert world.tunings == [], "hours are not spent on what nobody reads"


def test_experts_without_a_tuning_are_unsupported_in_plan_and_result(world: World) -> None:
    world.config({**NEXT, "quantization_config": {"quant_method": "awq", "bits": 4}})
    assert "awq" in world.plan().to_json()["stages"]["moe_tune"]["reason"]
    result, exit_code = world.execute()
    assert (statuses(result), exit_code) == (["ok", "error", "ok", "ok"], 11)
    kind, words = error(result, "moe_tune")
    assert (
        kind == "unsupported"
        and "awq" in words
        and "--moe skip" in words
        and result["stages"]["moe_tune"]["signature"] is None
    )
    assert len(world.starts()) == 1


# Qwen/Qwen3-30B-A3B, whose server asks for E=32,N=768 on each of four GPUs with --ep-size 4.
QWEN3_30B = {
    **DENSE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
FOUR_WITH_EP = ("--tp", "4", "--server-arg=--ep-size", "--server-arg=4")


@pytest.mark.parametrize("fusion", ["ensure", "skip"])
def test_with_expert_parallelism_the_file_that_the_server_asks_for_is_tuned(
    world: World, fusion: str
) -> None:
    world.config(QWEN3_30B)
    world.nvml(gpus=[{"uuid": f"GPU-{number}"} for number in range(4)])
    result, _ = world.execute("--moe", "ensure", "--moe-fusion", fusion, *FOUR_WITH_EP)
    found = result["stages"]["moe_tune"]["artifacts"]
    path = Path(found["config_file"]["container_path"])
    assert path.name == f"E=32,N=768,device_name={H100.replace(' ', '_')}.json"
    assert found["verified_in_log"] is (True if fusion == "ensure" else None)
    [(shape, sizes)] = world.tunings
    assert (shape.ranks, shape.routed, shape.lookup.N, sizes) == (4, 32, 768, [64])
    result, _ = world.execute("--moe", "ensure", *FOUR_WITH_EP)
    found = result["stages"]["moe_tune"]["artifacts"]
    assert found["verified_in_log"] is True and len(world.tunings) == 1
    assert f"Using MoE kernel config from {path}." in paths.log(world.run_id).read_text()


@pytest.mark.parametrize("kind", [",dtype=int8_w8a16", ",dtype=int4_w4a16,block_shape=[0, 128]"])
def test_a_server_that_asks_for_another_data_type_gets_no_file_of_that_name(
    world: World, kind: str
) -> None:
    world.config(QWEN3_30B)
    world.server(moe_kind=kind)
    result, exit_code = world.execute("--moe", "ensure")
    why, words = error(result, "moe_tune")
    assert (why, exit_code, world.tunings) == ("unsupported", 11, [])
    asked = f"E=128,N=768,device_name={H100.replace(' ', '_')}"
    assert f"it asks for {asked}{kind}.json" in words
    assert "its experts are of another data type than the model's config says" in words


def test_experts_that_are_tuned_without_a_gate_have_a_signature_of_their_own(world: World) -> None:
    world.config({**QWEN3_30B, "architectures": ["NemotronHForCausalLM"], "hidden_act": "relu2"})
    found = world.plan("--moe", "ensure").decisions[1].signature
    assert found is not None and found["gated"] is False and "ep" not in found
    world.config(QWEN3_30B)
    found = world.plan("--moe", "ensure").decisions[1].signature
    assert found is not None and not found.keys() & {"gated", "ep"}, "as of earlier releases"


def test_a_server_that_does_not_read_our_file_fails_the_tuning(world: World) -> None:
    world.server(device_name="NVIDIA H100 PCIe")
    result, exit_code = world.execute("--moe", "ensure")
    kind, words = error(result, "moe_tune")
    assert (kind, exit_code) == ("tuner_failed", 11) and str(world.moe_file) in words
    assert world.plan("--moe", "ensure").decisions[1].action == "run", "it is not vouched for"
    assert (
        statuses(world.execute("--moe", "ensure")[0])[1] == "error" and len(world.starts()) == 3
    ), "one look is enough"
    # What was tuned is kept all the same.
    world.server()
    result, _ = world.execute("--moe", "ensure")
    assert statuses(result)[1] == "ok" and world.tuned_sizes() == [[64]]


def test_a_sglang_without_configurations_starts_no_server(world: World) -> None:
    site = world.site()
    shutil.rmtree(site / "sglang" / "srt")
    world.install(site)
    result, exit_code = world.execute()
    assert (result["status"], exit_code) == ("error", 10) and world.starts() == []
    kind, words = error(result, "deep_gemm")
    assert kind == "config_missing" and str(site / "sglang") in words


def test_an_operators_folder_without_configs_starts_no_server(world: World) -> None:
    folder = world.folder / "own"
    folder.mkdir()
    result, _ = world.execute(f"--server-env=SGLANG_MOE_CONFIG_DIR={folder}")
    assert {stage["error_type"] for stage in result["stages"].values()} == {
        "config_missing"
    } and world.starts() == []
    assert all(str(folder) in error(result, name)[1] for name in NAMES)
    # Without the check the server would have died of it.
    (folder / "configs").mkdir()
    result, _ = world.execute(
        f"--server-env=SGLANG_MOE_CONFIG_DIR={folder}", "--deep-gemm", "ensure"
    )
    assert statuses(result)[0] == "ok" and world.starts()[0]["env"]["SGLANG_MOE_CONFIG_DIR"] == str(
        folder
    )


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"
    " capacity of 79.11 GiB"
)
NINJA = "RuntimeError: ninja exited with status 1"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (OOM, "oom"),
        (f"{NINJA}\n/bin/sh: 1: nvcc: not found", "compile_failed"),
        (
            f"{NINJA}\nfatal error: error writing to /tmp/x.o: No space left on device",
            "insufficient_disk",
        ),
        ("ValueError: unknown architecture", "server_start_failed"),
    ],
    ids=["oom", "compile_failed", "insufficient_disk", "other"],
)
def test_a_server_that_dies_is_told_by_what_it_died_of_and_not_tried_again(
    world: World, words: str, kind: str
) -> None:
    world.server(dies=words)
    result, exit_code = world.execute()
    assert (result["status"], exit_code) == ("error", 10) and len(world.starts()) == 1
    assert {stage["error_type"] for stage in result["stages"].values()} == {kind}
    assert words.splitlines()[0] in result["stages"]["deep_gemm"]["log_tail"]
    message = error(result, "deep_gemm")[1]
    said = words.splitlines()[-1] if kind in ("compile_failed", "insufficient_disk") else words
    assert (
        said[:80] in message and f"the log is {paths.to_host(paths.log(world.run_id))}" in message
    )
    assert [result["stages"][name]["status_code"] for name in NAMES] == [10, 11, 12, 13]
    world.server()
    assert world.execute()[1] == 0, "nothing of it stands in the way"


def test_the_cause_is_found_above_the_tracebacks_of_those_that_died_after_it(world: World) -> None:
    world.server(
        dies="\n".join([OOM, *(f"  File other.py, line {number}" for number in range(200))])
    )
    result, _ = world.execute("--deep-gemm", "ensure")
    assert (
        error(result, "deep_gemm")[0] == "oom"
        and len(result["stages"]["deep_gemm"]["log_tail"]) == 20
    )


def test_a_full_disk_starts_no_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_fit, "_CACHE_BYTES", 1 << 62)
    result, _ = world.execute()
    assert {stage["error_type"] for stage in result["stages"].values()} == {
        "insufficient_disk"
    } and world.starts() == []
    assert "/host/profiles" in error(result, "deep_gemm")[1]


def test_a_disk_that_fills_up_while_a_stage_works_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(size: int) -> None:
        raise OSError(28, "No space left on device", str(world.moe_file))

    world.at = full
    result, exit_code = world.execute()
    assert (statuses(result), exit_code) == (["ok", "error", "ok", "ok"], 11)
    kind, words = error(result, "moe_tune")
    assert kind == "insufficient_disk" and "/host/profiles/moe_configs" in words


def test_a_taken_port_is_told_with_its_holder(world: World) -> None:
    with socket.socket() as holder:
        holder.bind((server.HOST, world.port))
        holder.listen()
        made = world.execution()
        result, exit_code = made.run()
    assert (
        exit_code == 10
        and {result["stages"][name]["error_type"] for name in NAMES} == {"port_busy"}
        and world.starts() == []
    )
    assert (
        f"port {world.port}" in error(result, "deep_gemm")[1]
        and f"pid {os.getpid()}" in error(result, "deep_gemm")[1]
    )
    world.assert_nothing_is_left()


def test_the_place_of_the_server_is_waited_for_and_then_busy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_server, "_LOCK_TIMEOUT_S", 0.1)
    held = locks.try_lock(benchmark_server.LOCK)
    assert held is not None
    made = world.execution("--deep-gemm", "ensure")
    result, _ = made.run()
    os.close(held)
    assert error(result, "deep_gemm")[0] == "port_busy" and world.starts() == []
    world.assert_nothing_is_left()


def test_a_silent_server_is_unhealthy_after_its_time_and_ended(world: World) -> None:
    world.server(silent=True)
    result, exit_code = world.execute("--server-timeout", "0.6")
    assert exit_code == 10 and {stage["error_type"] for stage in result["stages"].values()} == {
        "server_unhealthy_timeout"
    }
    assert len(world.starts()) == 1


def test_an_open_port_is_no_healthy_server(world: World) -> None:
    """For a while the real one listens and answers 503."""
    world.server(ready_s=600)
    result, _ = world.execute("--deep-gemm", "ensure", "--server-timeout", "0.8")
    assert error(result, "deep_gemm")[0] == "server_unhealthy_timeout"
    assert "Uvicorn running" in "\n".join(result["stages"]["deep_gemm"]["log_tail"])


def test_a_server_that_holds_its_port_against_sigterm_is_killed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_TERMINATE_S", 0.2)
    world.server(holds_port=True)
    result, exit_code = world.execute("--deep-gemm", "ensure")
    assert (statuses(result)[0], exit_code, result["errors"]) == ("ok", 0, []) and len(
        world.starts()
    ) == 1


def test_a_server_that_does_not_answer_its_requests_fails_only_who_asks(world: World) -> None:
    world.server(http_500=True)
    result, exit_code = world.execute()
    assert (statuses(result), exit_code) == (["ok", "ok", "error", "error"], 12)
    assert (
        error(result, "flashinfer")[0] == "request_failed"
        and "500" in error(result, "flashinfer")[1]
    )


def test_a_flag_that_the_server_does_not_take_is_in_the_log_tail(world: World) -> None:
    result, _ = world.execute("--deep-gemm", "ensure", "--server-arg=--no-such-flag")
    kind, words = error(result, "deep_gemm")
    assert kind == "unsupported" and "(exit code 2)" in words and "sgl_server_args" in words
    assert "launch_server.py: error: unrecognized arguments: --no-such-flag" in words
    assert "unrecognized arguments: --no-such-flag" in result["stages"]["deep_gemm"]["log_tail"][-1]


def test_a_busy_gpu_starts_no_server_and_is_told_with_who_holds_it(world: World) -> None:
    world.nvml(
        gpus=[{"processes": [{"pid": 4999999, "memory": 70 << 30}]}],
        process_names={"4999999": "/usr/bin/vllm"},
    )
    result, exit_code = world.execute()
    assert (
        (result["status"], exit_code) == ("error", 10)
        and world.starts() == []
        and world.tunings == []
    )
    assert {stage["error_type"] for stage in result["stages"].values()} == {"gpu_busy"}
    assert "vllm (pid 4999999, 71680 MiB)" in error(result, "deep_gemm")[1]
    world.nvml()
    assert world.execute()[1] == 0


def test_a_gpu_that_another_takes_while_the_server_is_down_is_not_tuned_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(group: int) -> None:
        world.nvml(gpus=[{"processes": [{"pid": 4999999, "memory": 70 << 30}]}])

    real = execute_module.Warmup.rest

    def rest(made: Any) -> None:
        real(made)
        busy(0)

    monkeypatch.setattr(execute_module.Warmup, "rest", rest)
    result, _ = world.execute("--moe", "ensure")
    assert error(result, "moe_tune")[0] == "gpu_busy" and world.tunings == []


def test_a_stage_that_another_works_at_for_too_long_times_out_and_the_rest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute_module, "_LOCK_TIMEOUT_S", 0.1)
    held = locks.try_lock("moe_tune")
    assert held is not None
    made = world.execution()
    result, exit_code = made.run()
    os.close(held)
    assert (statuses(result), exit_code) == (["ok", "error", "ok", "ok"], 11) and error(
        result, "moe_tune"
    )[0] == "lock_timeout"
    world.assert_nothing_is_left()


def test_sigterm_while_tuning_keeps_what_is_found_and_the_next_prep_goes_on(world: World) -> None:
    def stop(size: int) -> None:
        if size == 64:
            os.kill(os.getpid(), signal.SIGTERM)

    world.at = stop
    result, exit_code = world.execute("--moe-batch-sizes=16,64,128")
    assert (statuses(result), exit_code) == (["ok", "error", "error", "error"], 11)
    assert {result["stages"][name]["error_type"] for name in NAMES[1:]} == {"interrupted"}
    assert (files.read_json(paths.job(world.run_id)) or {})["state"] == "interrupted"
    assert len(world.starts()) == 1, "nothing is begun after that"
    assert list(config_files.read(world.moe_file)) == [16]
    world.at = lambda size: None
    result, exit_code = world.execute("--moe-batch-sizes=16,64,128")
    assert (statuses(result), exit_code) == (["noop", "ok", "ok", "ok"], 0)
    assert world.tuned_sizes() == [[16, 64, 128], [64, 128]]
    assert result["stages"]["moe_tune"]["artifacts"]["available_batch_sizes"] == [16, 64, 128]


def test_sigterm_while_the_server_starts_ends_it(world: World) -> None:
    world.server(ready_s=600)
    made = world.execution()
    before = signal.signal(signal.SIGTERM, lambda *_: made.interrupt())
    real = made._warmup._tick

    def tick() -> None:
        real()
        if world.starts():
            os.kill(os.getpid(), signal.SIGTERM)

    made._warmup._tick = tick
    try:
        result, _ = made.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {result["stages"][name]["error_type"] for name in NAMES} == {"interrupted"} and len(
        world.starts()
    ) == 1
    world.assert_nothing_is_left()


# --- signatures


def signatures(world: World, *arguments: str) -> dict[str, dict[str, Any]]:
    versions._distributions.cache_clear()
    return {
        decision.stage.name: decision.signature or {}
        for decision in world.plan(*arguments).decisions
        if decision.stage.name in NAMES
    }


def changed(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name in NAMES if before[name] != after[name]}


SHARED = {
    "schema_version",
    "stage",
    "device_name",
    "compute_capability",
    "cpu_arch",
    "sglang",
    "tp",
}


# What inputs.py declares of every stage whose cache a server fills.
SERVER = {
    "inputs_version",
    "cuda",
    "sgl_kernel",
    "model_config",
    "model_files",
    "arguments",
    "environment",
    "named_files",
}


def test_a_signature_names_what_its_cache_depends_on_and_nothing_else(world: World) -> None:
    names = {name: set(signature) - SHARED for name, signature in signatures(world).items()}
    assert all(set(signature) >= SHARED for signature in signatures(world).values())
    assert names == {
        "deep_gemm": {*SERVER, "deep_gemm"},
        "moe_tune": {
            "triton",
            "E",
            "N",
            "hidden_size",
            "rows_per_token",
            "dtype",
            "block_shape",
            "method",
            "configurations",
        },
        "flashinfer": {*SERVER, "flashinfer", "tvm_ffi", "cutlass_dsl", "tilelang"},
        "inductor": {*SERVER, "cpu_isa", "torch", "triton", "batch_sizes"},
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("--served-model-name", "name"), ("--served-model-name=name",), ("--log-level", "debug"),
        ("--watchdog-timeout", "600"), ("--enable-cache-report",), ("--random-seed", "7"),
        ("--extra-metric-labels", '{"a": "b"}'), ("--tool-call-parser", "qwen"),
    ],
)  # fmt: skip
def test_what_changes_no_kernel_changes_no_signature(
    world: World, arguments: tuple[str, ...]
) -> None:
    before = signatures(world)
    assert (
        changed(before, signatures(world, *(f"--server-arg={word}" for word in arguments))) == set()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--context-length", "32768"), ("--context-length=32768",), ("--max-total-tokens", "4096"),
        ("--mem-fraction-static", "0.6"), ("--max-running-requests", "16"),
    ],
)  # fmt: skip
def test_how_long_a_context_is_costs_no_tuning_and_no_kernel(
    world: World, arguments: tuple[str, ...]
) -> None:
    """What torch.compile makes may hold the sizes of its tensors."""
    before = signatures(world)
    after = signatures(world, *(f"--server-arg={word}" for word in arguments))
    assert changed(before, after) == {"inductor"}
    world.config({**NEXT, "max_position_embeddings": 4096})
    assert changed(before, signatures(world)) == {"inductor"}


def test_ports_timeouts_and_the_probe_change_no_signature(world: World) -> None:
    before = signatures(world)
    world.port += 1
    assert (
        changed(
            before,
            signatures(
                world,
                "--server-timeout",
                "9",
                "--probe-timeout",
                "3",
                "--server-env=NCCL_DEBUG=INFO",
            ),
        )
        == set()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--attention-backend", "flashinfer"), ("--kv-cache-dtype=fp8_e5m2",),
        ("--chunked-prefill-size", "4096"), ("--disable-cuda-graph",),
        ("--moe-runner-backend", "triton"), ("--page-size", "64"),
        ("--sampling-backend", "pytorch"), ("--ep-size", "1"), ("--load-format", "bitsandbytes"),
        ("--model-loader-extra-config", "{}"), ("--preferred-sampling-params", '{"top_k": 1}'),
        ("--a-flag-that-nobody-knows",), ("--api-server-workers", "2"), ("--log-level-x", "debug"),
    ],
)  # fmt: skip
def test_a_flag_that_chooses_kernels_changes_every_signature_but_the_tunings(
    world: World, arguments: tuple[str, ...]
) -> None:
    before, after = (
        signatures(world),
        signatures(world, *(f"--server-arg={word}" for word in arguments)),
    )
    assert changed(before, after) == {"deep_gemm", "flashinfer", "inductor"}
    flag, equals, value = arguments[0].partition("=")
    taken = [[flag, value] if equals else list(arguments)]
    if flag in FLAGS:
        assert after["inductor"]["arguments"] == taken
    else:
        # Of an unknown flag, the value is a digest.
        [[name, *values]] = after["inductor"]["arguments"]
        assert name == flag and all(text.startswith("keyed:") for text in values)
        assert len(values) == len(taken[0]) - 1


def test_the_order_of_flags_changes_no_signature(world: World) -> None:
    one, other = (
        ("--server-arg=--page-size", "--server-arg=64"),
        (
            "--server-arg=--attention-backend",
            "--server-arg=fa3",
        ),
    )
    assert changed(signatures(world, *one, *other), signatures(world, *other, *one)) == set()


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (("--cuda-graph-bs", "1,2,4"), {"inductor"}),
        (("--moe-sample", "32"), {"moe_tune"}),
        (("--moe-batch-sizes=2,4",), set()),
        (("--moe-fusion", "skip"), set()),
        (("--server-arg=--disable-shared-experts-fusion",), set(NAMES)),
    ],
)
def test_an_option_of_the_prep_changes_whom_it_concerns(
    world: World, arguments: tuple[str, ...], stages: set[str]
) -> None:
    assert changed(signatures(world), signatures(world, *arguments)) == stages


@pytest.mark.parametrize(
    ("distribution", "version", "stages"),
    [
        ("sglang", "0.5.18", set(NAMES)),
        ("torch", "2.11.1+cu130", {"inductor"}),
        ("torch", "2.11.0+cu128", {"deep_gemm", "flashinfer", "inductor"}),
        ("triton", "3.6.1", {"moe_tune", "inductor"}),
        ("flashinfer_python", "0.6.16", {"flashinfer"}),
        ("apache_tvm_ffi", "0.1.12", {"flashinfer"}),
        ("sgl_deep_gemm", "0.1.6", {"deep_gemm"}),
        ("opentelemetry_sdk", "1.39.0", set()),
    ],
)
def test_a_new_version_changes_the_signatures_of_what_it_generates(
    world: World, distribution: str, version: str, stages: set[str]
) -> None:
    before = signatures(world)
    world.install(world.site(**{distribution: version}))
    assert changed(before, signatures(world)) == stages


@pytest.mark.parametrize(
    ("difference", "stages"),
    [
        ({"name": "NVIDIA H100 PCIe"}, set(NAMES)),
        ({"capability": [10, 0]}, set(NAMES)),
        ({"uuid": "GPU-c5aaaaaa-1111-2222-3333-444444444444", "throttle": 4}, set()),
    ],
)
def test_the_kind_of_gpu_changes_every_signature_and_which_one_it_is_none(
    world: World, difference: dict[str, Any], stages: set[str]
) -> None:
    before = signatures(world)
    world.nvml(gpus=[difference], driver="590.10", cuda=13010)
    assert changed(before, signatures(world)) == stages, "nor does the driver"


def test_the_cpus_architecture_changes_every_signature(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's caches hold compiled host launchers."""
    before = signatures(world)
    found = devices.find()
    monkeypatch.setattr(
        devices, "find", lambda visible: devices.Devices(**{**vars(found), "cpu_arch": "another"})
    )
    assert changed(before, signatures(world)) == set(NAMES)


def test_a_prep_is_for_the_gpus_that_its_server_sees(world: World) -> None:
    uuid = "GPU-c5aaaaaa-1111-2222-3333-444444444444"
    world.nvml(gpus=[{}, {"name": "NVIDIA H200", "uuid": uuid}])
    plan = world.plan(f"--server-env={devices.VISIBLE}={uuid}")
    assert (plan.context.devices.name, plan.context.devices.count) == ("NVIDIA H200", 1)
    assert plan.server_environment[devices.VISIBLE] == uuid
    assert devices.VISIBLE not in os.environ, "this process keeps its own environment"


def test_tensor_parallelism_changes_every_signature(world: World) -> None:
    world.nvml(gpus=[{}, {"uuid": "GPU-c5aaaaaa-1111-2222-3333-444444444444"}])
    one, two = signatures(world), signatures(world, "--tp", "2")
    assert changed(one, two) == set(NAMES) and (one["moe_tune"]["N"], two["moe_tune"]["N"]) == (
        512,
        256,
    )


@pytest.mark.parametrize(
    ("difference", "stages"),
    [
        ({"rope_theta": 5.0, "num_hidden_layers": 48}, COMPILED),
        ({"torch_dtype": "float16"}, COMPILED),
        ({"num_key_value_heads": 2}, COMPILED),
        ({"num_experts": 256}, set(NAMES)),
        ({"moe_intermediate_size": 1024, "shared_expert_intermediate_size": 1024}, set(NAMES)),
        ({"hidden_size": 4096}, set(NAMES)),
        (
            {"quantization_config": {**NEXT["quantization_config"], "weight_block_size": [64, 64]}},
            set(NAMES),
        ),
    ],
)
def test_a_models_shapes_change_the_signatures_of_what_is_made_for_them(
    world: World, difference: dict[str, Any], stages: set[str]
) -> None:
    before = signatures(world)
    world.config({**NEXT, **difference})
    assert changed(before, signatures(world)) == stages


# --- releases of SGLang


def with_tracing(world: World, status: str) -> None:
    manifest = files.read_json(paths.manifest(world.run_id)) or {}
    manifest["telemetry_surfaces"] = {"tracing": {"status": status}}
    manifest["services"]["jaeger"] = {"url": "http://127.0.0.1:16686", "otlp_grpc": 4317}
    files.write_json(paths.manifest(world.run_id), manifest)


@pytest.mark.parametrize(
    ("release", "graphs", "traces"),
    [
        ("0.5.3", "--cuda-graph-bs", "--oltp-traces-endpoint"),
        ("0.5.9", "--cuda-graph-bs", "--otlp-traces-endpoint"),
        ("0.5.17", "--cuda-graph-bs-decode", "--otlp-traces-endpoint"),
        ("0.5.23", "--cuda-graph-bs-decode", "--otlp-traces-endpoint"),
    ],
)
def test_a_release_gets_flags_that_it_takes(
    world: World, release: str, graphs: str, traces: str
) -> None:
    site = world.site(sglang=release)
    moe = site / "sglang" / "srt" / "layers" / "moe"
    if release in ("0.5.3", "0.5.9"):
        (moe / "moe_runner" / "triton_utils").rename(moe / "fused_moe_triton")
    world.install(site)
    with_tracing(world, "running")
    result, exit_code = world.execute("--deep-gemm", "ensure", "--cuda-graph-bs", "1,2")
    assert exit_code == 0, result["stages"]["deep_gemm"]["log_tail"]
    argv = world.starts()[0]["argv"]
    at, traced = argv.index(graphs), argv.index("--enable-trace")
    assert argv[at : at + 3] == [graphs, "1", "2"] and argv[traced : traced + 3] == [
        "--enable-trace",
        traces,
        "127.0.0.1:4317",
    ]
    assert result["warnings"] == []


def test_a_flag_of_an_older_release_would_end_a_newer_ones_start(world: World) -> None:
    """What the table of releases is for: as the real 0.5.23, the double does not guess."""
    world.install(world.site(sglang="0.5.23"))
    result, _ = world.execute(
        "--deep-gemm", "ensure", "--server-arg=--cuda-graph-bs", "--server-arg=1"
    )
    assert re.search(
        "ambiguous option: --cuda-graph-bs could match",
        "\n".join(result["stages"]["deep_gemm"]["log_tail"]),
    )


@pytest.mark.parametrize("status", [None, "expected", "degraded", "failed", "unavailable"])
def test_tracing_is_asked_for_only_where_it_runs(world: World, status: str | None) -> None:
    with_tracing(world, "running")
    assert "--enable-trace" in world.plan().server_argv
    if status is None:
        manifest = files.read_json(paths.manifest(world.run_id)) or {}
        del manifest["telemetry_surfaces"]
        files.write_json(paths.manifest(world.run_id), manifest)
    else:
        with_tracing(world, status)
    assert not any("trace" in word for word in world.plan().server_argv)


def test_an_unknown_newer_release_is_taken_for_the_newest_with_a_warning(world: World) -> None:
    world.install(world.site(sglang="0.6.1"))
    result, exit_code = world.execute()
    assert (statuses(result), exit_code) == (["ok"] * 4, 0)
    assert any("0.6.1 is newer" in warning for warning in result["warnings"])


def test_the_tuner_gets_all_idle_gpus(world: World) -> None:
    """Those that the server's CUDA_VISIBLE_DEVICES shows; a host with one needs no name for it."""
    second = "GPU-c5aaaaaa-1111-2222-3333-444444444444"
    world.nvml(gpus=[{"name": "NVIDIA H200"}, {"name": "NVIDIA H200", "uuid": second}])
    result, _ = world.execute()
    assert statuses(result) == ["ok"] * 4
    [gpus] = world.gpus
    assert len(gpus.idle) == 2 and gpus.idle[1] == second and gpus.busy == ()
