"""Which GPUs there are, by NVML: the double of pynvml stands for it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import failures, versions
from sgl_admin.base.errors import GpuUnavailable
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.sglang import ENGINE
from tests.unit.model_files import write_model

ROOT = Path(__file__).resolve().parents[2]
DOUBLES = ROOT / "tests" / "doubles"

FIRST, SECOND = (
    "GPU-c5533cd4-5a60-059e-348d-b6d7466932e4",
    "GPU-c5aaaaaa-1111-2222-3333-444444444444",
)
H200 = {"name": "NVIDIA H200", "uuid": SECOND}
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Says what the machine has, in the double's words; one H100 to begin with."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "CONTROL", tmp_path / "nvidiactl")
    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("SGL_TEST_NVML", str(tmp_path / "nvml.json"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def has(**what: Any) -> None:
        (tmp_path / "nvml.json").write_text(json.dumps(what))

    has()
    return has


@pytest.fixture
def torch_for_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def built(version: str | None) -> None:
        monkeypatch.setattr(versions, "cuda_runtime", lambda: version)

    built("13.0")
    return built


def names() -> list[str]:
    """The visible GPUs' UUIDs."""
    with devices._nvml() as nvml:
        return [nvml.nvmlDeviceGetUUID(gpu) for gpu in devices._visible(nvml)]


def test_another_process_may_see_other_gpus(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpus=[{"processes": [{"pid": 4999999, "memory": 1 << 30}]}, H200])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.find().name != "NVIDIA H200" == devices.find(visible="1").name
    assert len(devices.processes()) == 1 and devices.processes(visible="1") == []


def test_nvml_tells_name_capability_driver_and_cuda(machine: Machine) -> None:
    machine(driver="570.133.20", cuda=12080, gpus=[{"name": "NVIDIA GH200 480GB"}])
    found = devices.find()
    assert (found.name, found.count, found.cuda, found.kinds) == (
        "NVIDIA GH200 480GB",
        1,
        True,
        ("NVIDIA GH200 480GB",),
    )
    assert (found.compute_capability, found.driver_version, found.cuda_version) == (
        "9.0",
        "570.133.20",
        "12.8",
    )
    assert found.cpu_isa is None, "a GPU's kernels do not depend on it"


@pytest.mark.parametrize(
    ("version", "code", "cuda"),
    [(13000, 0, "13.0"), (0, 0, "12.4"), (13000, 3, "12.4"), (None, 0, "12.4")],
)
def test_the_cuda_of_the_compatibility_libraries_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: int | None, code: int, cuda: str
) -> None:
    """R550 with cuda-compat-13-0 in the image: nvidia-smi says 12.4, programs get 13.0."""

    class Library:
        """cuda.h: CUresult cuDriverGetVersion(int *driverVersion), 0 without a driver."""

        def cuDriverGetVersion(self, answer: Any) -> int:
            ctypes.cast(answer, ctypes.POINTER(ctypes.c_int))[0] = version or 0
            return code

    def load(name: str) -> Library:
        if version is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Library()

    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    machine(driver="550.163.01", cuda=12040)
    assert devices.find().cuda_version == cuda


def test_without_the_drivers_device_the_cpu_is_the_device(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").unlink()
    found = devices.find()
    assert (found.name, found.count, found.cuda, found.compute_capability) == (
        "cpu",
        1,
        False,
        None,
    ) and found.cpu_isa


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [FIRST, SECOND]),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        (f"{SECOND}", [SECOND]),
        (f" {FIRST} , 1", [FIRST, SECOND]),
        ("GPU-c5a", [SECOND]),
        ("GPU-c5", []),
        ("0,7,1", [FIRST]),
        ("0,GPU-ffff,1", [FIRST]),
        ("", []),
        ("-1", []),
        ("7", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: list[str]
) -> None:
    machine(gpus=[{}, H200])
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names() == seen
    if seen:
        assert devices.find().count == len(seen)
        assert (
            devices.find().name == {FIRST: "NVIDIA H100 80GB HBM3", SECOND: "NVIDIA H200"}[seen[0]]
        )
    else:
        with pytest.raises(RuntimeError, match="CUDA_VISIBLE_DEVICES"):
            devices.find()


def test_mig_is_refused_with_the_gpu_and_the_remedy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpus=[{}, {**H200, "mig": 1}])
    with pytest.raises(RuntimeError, match="NVIDIA H200") as refused:
        devices.find()
    assert f"nvidia-smi -i {SECOND} -mig 0" in str(refused.value) and "CUDA_VISIBLE_DEVICES" in str(
        refused.value
    )
    # The number of a GPU among the visible ones is not the host's: another one would be switched.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(RuntimeError, match=f"nvidia-smi -i {SECOND} -mig 0"):
        devices.find()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices.find().name == "NVIDIA H100 80GB HBM3", "one that is hidden does not matter"


def test_a_gpu_that_cannot_do_mig_has_it_off(machine: Machine) -> None:
    machine(gpus=[{"mig": None}])
    assert devices.find().count == 1


def test_no_pynvml_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for call in (devices.find, devices.processes, devices.throttles):
        with pytest.raises(RuntimeError, match="nvidia-ml-py"):
            call()


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("nvmlInit", "DriverNotLoaded", "Driver Not Loaded; is the container started with its"),
        ("nvmlInit", "LibraryNotFound", "NVML Shared Library Not Found; is the container"),
        ("nvmlInit", "LibRmVersionMismatch", "version mismatch.; the driver was updated"),
        # As Docker's containers say it after systemd has reloaded its units.
        ("nvmlInit", "Unknown", "Unknown Error; the container has lost its GPUs' devices"),
        ("nvmlDeviceGetHandleByIndex", "GpuIsLost", "GPU is lost; see its Xid in dmesg"),
        ("nvmlDeviceGetName", "GpuIsLost", "GPU is lost; see its Xid in dmesg"),
        ("nvmlDeviceGetMigMode", "GpuIsLost", "GPU is lost; see its Xid in dmesg"),
        ("nvmlDeviceGetName", "ResetRequired", "requires restart; see its Xid"),
        ("nvmlDeviceGetCount", "OperatingSystem", "blocked the request.; the container has lost"),
        ("nvmlInit", "NoPermission", "Insufficient Permissions; this container's user may not"),
        ("nvmlShutdown", "Uninitialized", "Uninitialized"),
    ],
)
def test_an_nvml_that_fails_is_told_in_its_words(
    machine: Machine, function: str, error: str, words: str
) -> None:
    machine(fails={function: error})
    with pytest.raises(GpuUnavailable, match="NVML does not answer: ") as caught:
        devices.find()
    assert words in str(caught.value) and len(str(caught.value)) < 400


UNANSWERED = (
    "NotSupported",
    "FunctionNotFound",
    "NoPermission",
    "NotFound",
    "NoData",
    "ArgumentVersionMismatch",
    "Deprecated",
    "LibraryMismatch",
)


@pytest.mark.parametrize("error", UNANSWERED)
@pytest.mark.parametrize(
    ("function", "field", "value"),
    [
        ("nvmlDeviceGetCudaComputeCapability", "compute_capability", None),
        ("nvmlSystemGetDriverVersion", "driver_version", None),
        ("nvmlSystemGetCudaDriverVersion_v2", "cuda_version", None),
        ("nvmlDeviceGetMigMode", "count", 1),
        ("nvmlDeviceGetName", "name", f"NVIDIA GPU {FIRST}"),
        ("nvmlDeviceGetUUID", "name", "NVIDIA H100 80GB HBM3"),
    ],
)
def test_what_nvml_cannot_be_asked_costs_that_answer_alone(
    machine: Machine, torch_for_cuda: Any, function: str, field: str, value: Any, error: str
) -> None:
    whole = devices.find()
    machine(fails={function: error})
    found = devices.find()
    assert getattr(found, field) == value
    kinds = () if field == "name" and value != whole.name else whole.kinds
    assert replace(found, **{field: getattr(whole, field)}) == replace(whole, kinds=kinds)
    assert check() == [], "what is not known refuses nothing"


@pytest.mark.parametrize("error", UNANSWERED)
def test_a_gpu_that_does_not_tell_its_processes_is_taken_for_free(
    machine: Machine, error: str
) -> None:
    """As on GPUs of some kinds of vGPU and beside older drivers."""
    machine(
        gpus=[{"processes": [{"pid": 4999999, "memory": 70 << 30}]}],
        fails={"nvmlDeviceGetComputeRunningProcesses": error},
    )
    assert devices.processes() == []
    gpu_fit.wait_until_free()
    machine(
        gpus=[{"processes": [{"pid": 4999999, "memory": 70 << 30}]}],
        fails={"nvmlSystemGetProcessName": error},
    )
    assert [found.name for found in devices.processes()] == ["a process of another container"]
    machine(fails={"nvmlDeviceGetCurrentClocksThrottleReasons": error})
    assert devices.throttles() == []


def test_mig_is_refused_though_the_gpu_does_not_tell_its_uuid(machine: Machine) -> None:
    machine(gpus=[{"mig": 1}], fails={"nvmlDeviceGetUUID": "NotSupported"})
    with pytest.raises(GpuUnavailable, match="MIG is on for GPU its UUID .*-mig 0"):
        devices.find()


def test_gpus_without_names_share_no_kernels(machine: Machine) -> None:
    """What is unknown splits rather than shares: the name is part of each signature."""
    machine(fails={"nvmlDeviceGetName": "NotSupported"})
    first = devices.find()
    machine(gpus=[{"uuid": SECOND}], fails={"nvmlDeviceGetName": "NotSupported"})
    assert devices.find().name != first.name


def test_an_nvml_that_fails_while_a_stage_waits_for_the_gpu_is_no_compilers_fault(
    machine: Machine,
) -> None:
    machine(fails={"nvmlDeviceGetComputeRunningProcesses": "GpuIsLost"})
    with pytest.raises(GpuUnavailable) as caught:
        gpu_fit.wait_until_free()
    failure = failures.from_error(caught.value)
    assert failure.error_type == "server_start_failed" and "GPU is lost" in str(failure)


def test_the_doubles_errors_are_nvidias(machine: Machine) -> None:
    """By the fixture, which is read from the wheel; all names that devices.py knows are in it."""
    import pynvml

    known = json.loads((ROOT / "tests" / "fixtures" / "nvml_errors.json").read_text())["errors"]
    assert len(known) > 25
    for name, (value, text) in known.items():
        error = getattr(pynvml, name)()
        assert isinstance(error, pynvml.NVMLError) and error.value == value
        assert str(error) == (text or f"NVML Error with code {value}")
    assert not issubclass(pynvml.NVMLLibraryMismatchError, pynvml.NVMLError)
    names = {*devices._UNANSWERED, *devices._REMEDIES}
    assert names - known.keys() == {"NVMLLibraryMismatchError"}


def test_nvml_is_shut_down_after_each_question(machine: Machine) -> None:
    import pynvml

    devices.find(), devices.processes(), devices.throttles()
    machine(gpus=[{"mig": 1}])
    with pytest.raises(RuntimeError):
        devices.find()
    assert pynvml._initialised == 0


# --- who else is there


def test_anothers_process_is_named_with_its_memory(machine: Machine) -> None:
    machine(
        gpus=[{"processes": [{"pid": 4999999, "memory": 70 << 30}]}],
        process_names={"4999999": "/opt/venv/bin/python3"},
    )
    [found] = devices.processes()
    assert str(found) == "python3 (pid 4999999, 71680 MiB)"


def test_a_process_of_another_container_is_told_without_a_name(machine: Machine) -> None:
    machine(gpus=[{"processes": [{"pid": 4999999, "memory": 1 << 30}]}])
    assert [str(found) for found in devices.processes()] == [
        "a process of another container (pid 4999999, 1024 MiB)"
    ]


def test_ones_own_group_small_ones_and_hidden_gpus_are_none_of_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"pid": os.getpid(), "memory": 8 << 30}
    machine(
        gpus=[
            {"processes": [mine, {"pid": 4999998, "memory": 255 << 20}]},
            {**H200, "processes": [{"pid": 4999999, "memory": 1 << 30}]},
        ]
    )
    assert [found.pid for found in devices.processes()] == [os.getpid(), 4999999]
    assert [found.pid for found in devices.processes(own_groups=[os.getpgid(0)])] == [4999999]
    assert [found.pid for found in devices.processes(least_mib=255)] == [
        os.getpid(),
        4999998,
        4999999,
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [found.pid for found in devices.processes()] == [os.getpid()]


def test_a_process_on_several_gpus_is_named_once_with_all_its_memory(machine: Machine) -> None:
    on_each = {"processes": [{"pid": 4999999, "memory": 200 << 20}]}
    machine(gpus=[on_each, {**H200, **on_each}])
    assert [(found.pid, found.memory_mib) for found in devices.processes()] == [(4999999, 400)]


OTHERS = {"processes": [{"pid": 4999999, "memory": 1 << 30}]}
THIRD = {"uuid": "GPU-c5bbbbbb-1111-2222-3333-444444444444"}


@pytest.mark.parametrize(
    ("gpus", "visible", "idle", "busy"),
    [
        ([{}, {"uuid": SECOND}], None, (FIRST, SECOND), ()),
        ([{}, {"uuid": SECOND}, THIRD], "2,0", (THIRD["uuid"], FIRST), ()),
        ([{}, {"uuid": SECOND}], "1", (), ()),
        ([{}], None, (), ()),
        ([{}, H200], None, (), ()),
        ([{}, H200, THIRD], None, (FIRST, THIRD["uuid"]), ()),
        ([OTHERS, {"uuid": SECOND}], None, (SECOND,), (FIRST,)),
        ([{}, {**THIRD, **OTHERS}, {"uuid": SECOND}], None, (FIRST, SECOND), (THIRD["uuid"],)),
        ([OTHERS, {"uuid": SECOND, **OTHERS}], None, (), ()),
    ],
    ids=[
        "two", "chosen", "one chosen", "one", "another kind", "two of three kinds", "first busy",
        "other busy", "all busy",
    ],
)  # fmt: skip
def test_the_idle_gpus_of_the_first_ones_kind_are_found(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[dict[str, Any]],
    visible: str | None,
    idle: tuple[str, ...],
    busy: tuple[str, ...],
) -> None:
    monkeypatch.setattr(gpu_fit, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(gpu_fit.time, "sleep", lambda seconds: None)
    machine(gpus=gpus)
    found = gpu_fit.all_idle(devices.find(visible), visible)
    assert found.idle == idle
    assert found.busy == tuple(
        f"{uuid}: in use by a process of another container (pid 4999999, 1024 MiB)" for uuid in busy
    )


def test_gpus_without_an_identity_are_not_told_apart(machine: Machine) -> None:
    machine(gpus=[{}, {}], fails={"nvmlDeviceGetUUID": "NotSupported"})
    assert gpu_fit.all_idle(devices.find()) == gpu_fit.Gpus()


def test_a_gpu_that_a_server_has_just_left_is_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(gpus=[OTHERS, {"uuid": SECOND}])
    monkeypatch.setattr(gpu_fit.time, "sleep", lambda seconds: machine(gpus=[{}, {"uuid": SECOND}]))
    assert gpu_fit.all_idle(devices.find()).idle == (FIRST, SECOND)


def test_a_process_whose_memory_the_driver_does_not_tell_is_passed_over(machine: Machine) -> None:
    machine(gpus=[{"processes": [{"pid": 4999999, "memory": None}]}])
    assert devices.processes() == []


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, []),
        (0x1 | 0x2 | 0x10 | 0x100, []),
        (0x4, ["power cap"]),
        (0x8 | 0x40, ["hardware slowdown", "thermal, by hardware"]),
        (0x20 | 0x80, ["thermal, by software", "power brake"]),
    ],
)
def test_what_holds_the_clocks_down_is_told_in_words(
    machine: Machine, reasons: int, words: list[str]
) -> None:
    machine(gpus=[{"throttle": reasons}])
    assert devices.throttles() == words


def test_a_gpu_that_does_not_tell_its_clocks_is_not_throttled(machine: Machine) -> None:
    machine(fails={"nvmlDeviceGetCurrentClocksThrottleReasons": "NotSupported"})
    assert devices.throttles() == []


# --- whether they fit


def check(tp: int = 1) -> list[str]:
    warnings: list[str] = []
    gpu_fit.check(devices.find(), tp, warnings.append)
    return warnings


def test_more_tensor_parallelism_than_gpus_is_refused(
    machine: Machine, torch_for_cuda: Any
) -> None:
    with pytest.raises(ValueError, match="tp 2 needs 2 devices.*NVIDIA H100 80GB HBM3.*--tp 1"):
        check(tp=2)


def test_two_kinds_of_gpus_are_refused_together_and_warned_of_for_one(
    machine: Machine, torch_for_cuda: Any
) -> None:
    machine(gpus=[{}, H200])
    with pytest.raises(
        ValueError,
        match=r"different kinds \(NVIDIA H100 80GB HBM3 and NVIDIA H200\).*CUDA_VISIBLE_DEVICES",
    ):
        check(tp=2)
    [warning] = check()
    assert "NVIDIA H100 80GB HBM3 and NVIDIA H200" in warning and warning.endswith(
        "for the first, NVIDIA H100 80GB HBM3"
    )
    machine(gpus=[{}, {"uuid": SECOND}])
    assert check(tp=2) == []


@pytest.mark.parametrize(
    ("cuda", "torch", "fits"),
    [(12080, "13.0", False), (13000, "13.0", True), (13000, "12.8", True), (12040, "12.8", True)],
)
def test_a_driver_runs_what_is_built_for_its_major_version_of_cuda(
    machine: Machine, torch_for_cuda: Callable[[str], None], cuda: int, torch: str, fits: bool
) -> None:
    """Within a major version older drivers run newer CUDA (minor version compatibility)."""
    torch_for_cuda(torch)
    machine(driver="570.133.20", cuda=cuda)
    if fits:
        assert check() == []
        return
    with pytest.raises(ValueError, match="driver 570.133.20 runs CUDA 12.8 at most") as refused:
        check()
    assert "built for CUDA 13.0" in str(
        refused.value
    ) and "update the host's driver, or take an image for CUDA 12" in str(refused.value)


def test_a_torch_of_unknown_cuda_fits_any_driver(
    machine: Machine, torch_for_cuda: Callable[[str | None], None]
) -> None:
    torch_for_cuda(None)
    machine(cuda=11000)
    assert check() == []


# --- versions, without importing anything


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder that holds nothing but distributions of these names and versions; alone on
    sys.path.
    """
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    versions._distributions.cache_clear()

    def has(*distributions: str) -> None:
        for distribution in distributions:
            (tmp_path / f"{distribution}.dist-info").mkdir()

    yield has
    versions._distributions.cache_clear()


@pytest.mark.parametrize(
    ("distributions", "cuda"),
    [
        (("torch-2.11.0+cu130",), "13.0"),
        (("torch-2.8.0+cu128",), "12.8"),
        (("torch-2.11.0", "nvidia_cuda_runtime-13.0.96"), "13.0"),
        (("torch-2.8.0", "nvidia_cuda_runtime_cu12-12.8.90"), "12.8"),
        (("torch-2.13.0+cpu",), None),
        ((), None),
    ],
)
def test_the_cuda_of_torch_is_in_its_version_or_its_runtimes(
    site: Any, distributions: tuple[str, ...], cuda: str | None
) -> None:
    site(*distributions)
    assert versions.cuda_runtime() == cuda


def test_a_distribution_is_found_by_any_spelling_of_its_name(site: Any) -> None:
    site("flashinfer_python-0.6.15.post1", "sgl_kernel-0.3.21")
    assert (
        versions.installed("flashinfer-python")
        == versions.installed("FlashInfer.Python")
        == "0.6.15.post1"
    )
    assert versions.installed("flashinfer") is None
    assert ENGINE.deep_gemm_version() == "0.3.21", (
        "releases that build it into their kernels have no other version of it"
    )


ALL_THAT_ASKS = """
import json, sys
from sgl_admin.facts import devices, gpu_fit
from sgl_admin.base import failures, versions
from sgl_admin.base.errors import GpuUnavailable
found = devices.find()
gpu_fit.check(found, 1, print)
devices.processes(), devices.throttles()
print(json.dumps([found.name, versions.installed("torch"), versions.cuda_runtime(), \
"torch" in sys.modules]))
"""


def test_torch_is_never_imported(machine: Machine, tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, (DOUBLES / "gpu_server", DOUBLES, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "SGL_TEST_NO_TORCH": "1"}

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert python("-c", "import torch").returncode == 97, "the hook would not see it"
    asked = python("-c", ALL_THAT_ASKS)
    assert json.loads(asked.stdout) == [
        "NVIDIA H100 80GB HBM3",
        "2.11.0+cu130",
        "13.0",
        False,
    ], asked.stderr
    model = tmp_path / "model"
    write_model(model, {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64})
    planned = python(
        "-m",
        "sgl_admin",
        "--root",
        str(tmp_path / "root"),
        "caches",
        "ensure",
        "--model",
        str(model),
        "--dry-run",
        "--json",
    )
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout[: planned.stdout.index("RESULT_STATUS")])
    assert plan["stages"]["deep_gemm"]["status"] == "would_run", "it saw the GPU"
