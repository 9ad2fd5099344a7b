"""What tests/gpu/tuning.py does on a GPU, on one whose times are known: the tuner's process and the
files are real.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sgl_admin.base import paths, versions
from sgl_admin.facts import devices
from sgl_admin.moe import compiling, config_files
from sgl_admin.moe import tuner as tuner_module
from sgl_admin.sglang import ENGINE, releases
from tests.doubles.moe_bench import DEFAULT, Bench
from tests.gpu import tuning

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RELEASE, _ = releases.of("0.5.17")
DEVICE = SimpleNamespace(
    name="NVIDIA H200", compute_capability="9.0", driver_version="580", cuda=True, count=2
)


class Measured(Bench):
    """As sgl_admin.moe.bench's, in the measuring process."""

    def __init__(self, shape: Any, release: Any, rivals: Any) -> None:
        super().__init__({}, rivals=rivals)

    def known(self, key: str) -> Any:
        return compiling.Launch(key, "m", "f", "nothing")

    def _input(self, size: int) -> Any:
        chosen = SimpleNamespace(unique=lambda: SimpleNamespace(numel=lambda: 11))

        class Ids:
            def __ge__(self, other: int) -> Any:
                return self

            def __getitem__(self, which: Any) -> Any:
                return chosen

        return SimpleNamespace(choices=[SimpleNamespace(topk_ids=Ids())])


class Compilers:
    def __init__(self, *_: Any) -> None: ...

    def compile(self, launches: Any, progress: Any) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


@pytest.fixture
def gpu(container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("MOE_GPU", json.dumps({"notes": str(notes)}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tuner_module, "_PROCESS", "tests.doubles.moe_process")
    monkeypatch.setattr(devices, "find", lambda: DEVICE)
    monkeypatch.setattr(devices, "throttles", lambda visible: [])
    monkeypatch.setattr(paths, "relocate", lambda root: None)
    monkeypatch.setattr(ENGINE, "release", lambda: (RELEASE, None))
    monkeypatch.setattr(versions, "installed", lambda name: "3.6.0")
    shipped = {"E=513,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"}
    folder = tmp_path / "site" / "triton_3_6_0"
    folder.mkdir(parents=True)
    for name in shipped:
        (folder / name).write_text(json.dumps({"1": {**DEFAULT, "num_stages": 5}, "9": DEFAULT}))
    monkeypatch.setattr(releases.Release, "built_in_moe_configs", lambda self: tmp_path / "site")
    monkeypatch.setattr(tuning, "BATCH_SIZES", (2, 16, 64))
    monkeypatch.setattr(tuning, "LARGEST", 256)


def test_the_run_on_a_gpu_tunes_and_then_measures(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    made = tuning.Tuning("fp8", tmp_path / "root", out, sample=12)
    tuned = made.tune()
    assert tuned["outcome"]["batch_sizes"] and tuned["gain"]["rows"]
    assert json.loads((out / "tuned-fp8.json").read_text())["gain"] == tuned["gain"]
    assert made.tune() == tuned, "a second command goes on with the measuring"
    up, down = config_files.read(made.path), config_files.read(config_files.down_file(made.path))
    assert list(up) == list(down) and {1, 2, 9, 16, 64, 256} <= set(up)
    assert (out / made.path.name).read_text() == made.path.read_text()
    orders: list[Any] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        order = json.loads(Path(command[-1]).read_text())
        orders.append(order)
        bench = ModuleType("sgl_admin.moe.bench")
        bench.__dict__["FusedExperts"] = Measured
        monkeypatch.setitem(sys.modules, "sgl_admin.moe.bench", bench)
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
        monkeypatch.setattr(compiling, "Compilers", Compilers)
        monkeypatch.setattr(tuning, "bandwidth", lambda torch: 4000.0)
        tuning.measure(order)

    monkeypatch.setattr(tuning.subprocess, "run", run)
    found = made.measure(100.0)
    assert list(orders[0]["rivals"]) == ["default", "shipped", "ours"]
    assert sorted(row["size"] for row in found["rows"]) == orders[0]["sizes"]
    assert found["summary"]["gain over shipped"]["slower_by_a_hundredth"] == []
    assert found["summary"]["gain over default"]["times_as_fast"] > 1


def test_the_run_takes_as_many_gpus_as_it_is_asked_for(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        devices, "named", lambda visible: [(f"GPU-{x}", DEVICE.name) for x in "abc"]
    )
    monkeypatch.setattr(devices, "processes", lambda visible: [])
    out = tmp_path / "out"
    one = tuning.Tuning("fp8", tmp_path / "one", out / "one", 12).tune()
    two = tuning.Tuning("fp8", tmp_path / "two", out / "two", 12, cards=2).tune()
    assert (one["outcome"]["gpus"], one["outcome"]["gpus_used"]) == (1, [])
    assert (two["outcome"]["gpus"], two["outcome"]["gpus_used"]) == (2, ["GPU-a", "GPU-b"])
    began = (tmp_path / "notes" / "began").read_text().splitlines()
    assert len(began) == len(set(began)) == 3
    sizes = [set(each["outcome"]["batch_sizes"]) for each in (one, two)]
    assert {2, 9, 16, 64, 256} <= sizes[0] & sizes[1]
    with pytest.raises(SystemExit, match="3 GPUs are idle"):
        tuning.Tuning("fp8", tmp_path / "four", out / "four", 12, cards=4).tune()


def test_at_least_forty_sizes_are_measured_and_where_one_row_gives_way_to_the_next() -> None:
    keys = [1, 2, 64, 1024, 4096]
    found = tuning.sizes(keys)
    assert len(found) >= 40 and found[0] == 1 and found[-1] == 16384
    assert {*keys, 33, 34, 544, 545, 2560, 2561} <= set(found)
