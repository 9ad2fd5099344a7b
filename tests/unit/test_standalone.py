"""`sgl-admin --root FOLDER`, as a command of its own: without a container, below one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import locks, paths, processes
from sgl_admin.base.errors import Refused
from sgl_admin.commands import main as cli
from sgl_admin.contract import places
from sgl_admin.contract.exit_codes import EXIT_NO_RESULT
from sgl_admin.records import standalone
from sgl_admin.serving import server
from tests.contract import validators
from tests.unit.model_files import write_model

# It starts processes, and mostly waits for them.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DOUBLES = ROOT / "tests" / "doubles"

CACHES = {**places.CACHE_VARIABLES, "SGLANG_MOE_CONFIG_DIR": "moe_configs"}


@dataclass
class Machine:
    """A machine with a GPU and SGLang, by their doubles, and no container."""

    folder: Path
    root: Path
    port: int
    # What is found before the doubles: other packages, another sgl-admin.
    before: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        places = (*self.before, DOUBLES / "gpu_server", DOUBLES, ROOT)
        ours = {
            "PYTHONPATH": os.pathsep.join(map(str, places)),
            "SGL_TEST_NVML": str(self.folder / "nvml.json"),
            "SGL_TEST_GPU_SERVER": str(self.folder / "server.json"),
            "SGL_TEST_NO_TORCH": "1",
        }
        return {
            name: value
            for name, value in {**os.environ, **ours}.items()
            if name not in CACHES and not name.startswith("SGL_HOST_")
        }

    def begin(self, *words: str, root: Path | str | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "sgl_admin", "--root", str(root or self.root), *words],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def admin(self, *words: str, root: Path | str | None = None) -> tuple[int, str, str]:
        process = self.begin(*words, root=root)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def ensure(self, *words: str) -> tuple[int, dict[str, Any], str]:
        code, out, err = self.admin(
            "caches",
            "ensure",
            "--json",
            "--model",
            str(self.model),
            "--port",
            str(self.port),
            *words,
        )
        assert "RESULT_JSON" in out, err
        return code, json.loads(out[: out.index("RESULT_JSON")]), err

    @property
    def model(self) -> Path:
        return self.folder / "elsewhere" / "model"

    def starts(self) -> list[dict[str, Any]]:
        journal = self.folder / "journal"
        return (
            [json.loads(line) for line in journal.read_text().splitlines()]
            if journal.exists()
            else []
        )

    def runs(self) -> list[str]:
        return sorted(
            path.stem for path in (self.root / "telemetry" / "container_runs").glob("*.json")
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with socket.socket() as trial:
        trial.bind((server.HOST, 0))
        made = Machine(tmp_path, tmp_path / "root", int(trial.getsockname()[1]))
    write_model(made.model, {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024})
    (tmp_path / "nvml.json").write_text("{}")
    (tmp_path / "server.json").write_text(json.dumps({"journal": str(tmp_path / "journal")}))
    yield made
    for start in made.starts():
        processes.end_group(start["pid"])


def test_a_prep_works_below_its_root_and_nowhere_else(machine: Machine) -> None:
    code, result, said = machine.ensure()
    assert (code, result["status"]) == (0, "ok"), said
    assert [
        result["stages"][name]["status"]
        for name in ("deep_gemm", "moe_tune", "flashinfer", "inductor")
    ] == [
        "ok",
        "skipped",
        "ok",
        "ok",
    ]
    assert result["run"]["device_name"] == "NVIDIA H100 80GB HBM3"
    validators.validate_prep_result(result)
    [run_id] = machine.runs()
    assert result["run"]["run_id"] == run_id
    records = machine.root / "telemetry" / "container_runs" / run_id
    assert json.loads((records / "prep_result.json").read_text()) == result
    validators.validate_job(json.loads((records / "job.json").read_text()))
    for name in ("deep_gemm", "inductor"):
        validators.validate_stage(json.loads((records / "stages" / f"{name}.json").read_text()))
    pointer = machine.root / "telemetry" / "container_run_meta.env"
    assert pointer.stat().st_mode & 0o777 == 0o600
    manifest = records.with_suffix(".json")
    assert validators.parse_and_validate_pointer(pointer.read_text()) == {
        "CONTAINER_RUN_META_JSON": str(manifest), "CONTAINER_RUN_META_JSON_HOST": str(manifest),
    }  # fmt: skip
    places = json.loads(manifest.read_text())["paths"]
    assert places["host"] == places["container"] and places["host"]["prep_result"] == str(
        records / "prep_result.json"
    )
    assert "Uvicorn running" in (machine.root / "telemetry" / "logs" / f"{run_id}.log").read_text()
    # The server got the place of its caches, and used it.
    [start] = machine.starts()
    places = {name: str(machine.root / "profiles" / cache) for name, cache in CACHES.items()}
    # The driver's has a folder for its version; a server would warn of the old name.
    places["CUDA_CACHE_PATH"] += "/580.159.04"
    del places["SGL_DG_CACHE_DIR"]
    assert {name: start["env"].get(name) for name in places} == places
    for cache in set(CACHES.values()):
        assert any(path.is_file() for path in (machine.root / "profiles" / cache).rglob("*")), cache
    assert not processes.group_is_running(start["pid"])
    # What the test itself put beside the root is still all there is.
    assert {path.name for path in machine.folder.iterdir()} == {
        "root",
        "elsewhere",
        "nvml.json",
        "server.json",
        "journal",
    }


def test_no_proof_is_asked_for_where_no_prometheus_is(machine: Machine) -> None:
    _, out, _ = machine.admin(
        "caches", "ensure", "--dry-run", "--json", "--model", str(machine.model)
    )
    assert json.loads(out[: out.index("RESULT_STATUS")])["telemetry_probe"] == "skipped"
    _, out, _ = machine.admin(
        "caches", "ensure", "--dry-run", "--json", "--model", str(machine.model), "--probe", "auto"
    )
    assert json.loads(out[: out.index("RESULT_STATUS")])["telemetry_probe"] == "would_run", (
        "but whoever has one may ask"
    )


def test_a_second_call_keeps_the_run_and_finds_nothing_to_do(machine: Machine) -> None:
    machine.ensure()
    before = machine.runs()
    code, result, _ = machine.ensure()
    assert code == 0 and {stage["status"] for stage in result["stages"].values()} == {
        "noop",
        "skipped",
    }
    assert machine.runs() == before == [result["run"]["run_id"]] and len(machine.starts()) == 1
    code, out, _ = machine.admin("status", "--json")
    assert (
        code == 0
        and json.loads(out)["job"]["run_id"] == before[0]
        and json.loads(out)["job"]["state"] == "done"
    )


def test_the_root_may_be_named_from_where_one_stands(machine: Machine) -> None:
    assert machine.admin("status", root="root")[0] == EXIT_NO_RESULT, "no prep yet"
    before = machine.runs()
    assert (
        len(before) == 1
        and machine.admin("status")[0] == EXIT_NO_RESULT
        and machine.runs() == before
    )


@pytest.mark.parametrize("root", ["/", "/..", "//", "a file"])
def test_a_root_that_is_no_folder_to_work_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    """In this process, where what comes after the refusal cannot be done: as root, it would make
    folders in /.
    """

    def relocate(folder: Path) -> None:
        raise AssertionError(f"{folder} is worked in")

    monkeypatch.setattr(paths, "relocate", relocate)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("of the operator's")
    assert cli.main(["--root", root, "status"]) == 2
    assert f"--root {root} is no folder to work in" in capsys.readouterr().err
    assert (tmp_path / "a file").read_text() == "of the operator's"


def test_a_root_below_a_file_is_told(machine: Machine) -> None:
    code, _, err = machine.admin("status", root="nvml.json/root")
    assert code == 1 and "nvml.json" in err and "Traceback" not in err


def test_several_at_once_begin_one_run(machine: Machine) -> None:
    calls = [machine.begin("status") for _ in range(4)]
    ended = [(call.communicate(timeout=60), call.returncode) for call in calls]
    assert [code for _, code in ended] == [EXIT_NO_RESULT] * 4, ended
    [run_id] = machine.runs()
    assert {out for (out, _), _ in ended} == {f"no prep yet in {run_id}\n"}


def test_a_run_that_another_begins_for_too_long_is_told(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it sets for its children, and where everything is, ends with this test: the fixture puts
    # the places back.
    for variable in (paths.ROOT_VARIABLE, *paths.CACHE_VARIABLES):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(standalone, "_LOCK_TIMEOUT_S", 0.1)
    root = tmp_path / "root"
    monkeypatch.setattr(paths, "LOCKS", root / "profiles" / ".locks")
    held = locks.try_lock("standalone")
    assert held is not None
    with pytest.raises(Refused, match="another sgl-admin begins a run there") as refused:
        standalone.begin(str(root))
    os.close(held)
    assert refused.value.exit_code == 2 and not list(
        (root / "telemetry" / "container_runs").iterdir()
    )


def test_two_preps_at_once_are_one_prep(machine: Machine) -> None:
    words = (
        "caches",
        "ensure",
        "--json",
        "--model",
        str(machine.model),
        "--port",
        str(machine.port),
    )
    calls = [machine.begin(*words) for _ in range(2)]
    ended = [(call.communicate(timeout=60), call.returncode) for call in calls]
    assert [code for _, code in ended] == [0, 0], ended
    assert len(machine.starts()) == 1 and len(machine.runs()) == 1


def test_a_run_whose_beginning_was_cut_short_is_begun_anew(machine: Machine) -> None:
    machine.admin("status")
    (machine.root / "telemetry" / "container_run_meta.env").unlink()
    code, out, _ = machine.admin("status")
    assert (
        code == EXIT_NO_RESULT
        and len(machine.runs()) == 2
        and any(run_id in out for run_id in machine.runs())
    )


def test_the_prepared_server_starts_and_stops_there(machine: Machine) -> None:
    machine.ensure()
    code, out, err = machine.admin("server", "start", "--json")
    started = json.loads(out)
    assert (code, started["healthy"]) == (0, True), err
    record = started["server"]
    assert record["port"] == machine.port and processes.group_is_running(record["pgid"])
    of_prep, of_benchmark = machine.starts()
    assert of_benchmark["argv"] == of_prep["argv"] and of_benchmark["env"] == of_prep["env"], (
        "it finds what was prepared"
    )
    code, _, err = machine.admin(
        "caches",
        "ensure",
        "--inductor",
        "rebuild",
        "--model",
        str(machine.model),
        "--port",
        str(machine.port),
    )
    assert code == 13 and len(machine.starts()) == 2, "no prep takes its place"
    code, out, _ = machine.admin("server", "stop", "--json")
    assert (
        code == 0
        and json.loads(out)["server"]["state"] == "stopped"
        and not processes.group_is_running(record["pgid"])
    )


def test_a_fast_start_leaves_out_what_the_prep_did(machine: Machine) -> None:
    """Only the server of a benchmark, which is the prepared one all the same."""
    setting = {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"}
    _, result, _ = machine.ensure("--server-fast-start", "true")
    assert result["run"]["server"]["start_env"] == setting
    code, out, err = machine.admin("server", "start", "--json")
    assert code == 0, err
    record = json.loads(out)["server"]
    of_prep, of_benchmark = machine.starts()
    assert of_benchmark["env"] == {**of_prep["env"], **setting} and record["start_env"] == setting
    code, out, _ = machine.admin("server", "start", "--json")
    assert code == 0 and json.loads(out)["server"]["server_id"] == record["server_id"]
    code, out, err = machine.admin("server", "start", "--dry-run", "--json")
    assert json.loads(out)["env"]["SGLANG_JIT_DEEPGEMM_PRECOMPILE"] == "0", err
    machine.admin("server", "stop")
    _, result, _ = machine.ensure()
    assert result["run"]["server"]["start_env"] == {}


def test_a_machine_without_a_gpu_warms_what_the_cpu_compiles(machine: Machine) -> None:
    (machine.folder / "nvml.json").unlink()
    without = {
        name: value for name, value in machine.environment.items() if name != "SGL_TEST_NVML"
    }
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "sgl_admin",
            "--root",
            str(machine.root),
            "caches",
            "ensure",
            "--json",
            "--model",
            str(machine.model),
            "--port",
            str(machine.port),
        ],
        env=without,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout[: done.stdout.index("RESULT_JSON")])
    assert result["run"]["device_name"] == "cpu" and result["stages"]["inductor"]["status"] == "ok"
    assert {
        result["stages"][name]["reason"] for name in ("deep_gemm", "moe_tune", "flashinfer")
    } == {"no_cuda_device"}
