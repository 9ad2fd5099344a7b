"""This release takes over a tree of the last one: it reads every record and compiles nothing. The
way back, of an image and of the collection, does not compile either.

tests/fixtures/README.md says where the tree comes from.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places, processes

from sgl_admin.contract.places import CACHES
from sgl_admin.contract.services import BY_NAME
from tests.contract import validators

# The fixture makes the machine that the tree is put on.
from tests.unit.test_services import Stands
from tests.unit.test_standalone import DOUBLES, Machine, machine  # noqa: F401

RELEASED = ("deep_gemm", "moe_tune", "flashinfer", "inductor")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TREE = FIXTURES / "tree-1.0.0.tar.gz"
# sgl-admin as it was in that release.
ADMIN = FIXTURES / "sgl_admin-1.0.0.tar.gz"
# The cache that holds a stage's signature records.
RECORDS = {
    "deep_gemm": "deep_gemm",
    "moe_tune": "moe_configs",
    "flashinfer": "flashinfer",
    "inductor": "torchinductor",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the tree is of an x86-64 host"),
]


class Tree:
    """The tree of the last release on a machine of this one."""

    def __init__(self, machine: Machine) -> None:  # noqa: F811 - the fixture's name
        self.machine = machine
        self.root = machine.root
        with tarfile.open(TREE) as archive:
            archive.extractall(self.root, filter="data")
        for path in filter(Path.is_file, self.root.rglob("*")):
            self._place(path)
        [self.run_id] = machine.runs()
        self.run_dir = self.telemetry / "container_runs" / self.run_id
        self.manifest = self.json(self.run_dir.with_suffix(".json"))
        self.result = self.json(self.run_dir / "prep_result.json")
        self.job = self.json(self.run_dir / "job.json")

    def _place(self, path: Path) -> None:
        """Put this machine's paths into a record, and keep its modification time."""
        status, text = path.stat(), path.read_text(encoding="utf-8")
        placed = text.replace("@ROOT@", str(self.root)).replace("@PYTHON@", sys.executable)
        assert not re.search("@[A-Z]+@", placed), path
        if placed != text:
            path.write_text(placed, encoding="utf-8")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @property
    def telemetry(self) -> Path:
        return self.root / "telemetry"

    @staticmethod
    def json(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text(encoding="utf-8"))

    def record(self, stage: str) -> Path:
        [path] = (self.root / "profiles" / RECORDS[stage] / ".signatures").glob("*.json")
        return path

    def change_signature(self, stage: str) -> None:
        record = self.json(self.record(stage))
        record["signature"]["sglang"] = "0.5.16"
        self.record(stage).write_text(json.dumps(record), encoding="utf-8")

    def profiles(self) -> dict[str, tuple[int, int]]:
        """Each file below profiles/: bytes and modification time; without when a record was last
        used.
        """
        folder = self.root / "profiles"
        found = {}
        for path in filter(Path.is_file, folder.rglob("*")):
            status = path.stat()
            if path.suffix != places.USED:
                found[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
        return found

    def run(self, *words: str) -> dict[str, Any]:
        """The JSON that a command of this release prints; it succeeds and says nothing else."""
        code, out, err = self.machine.admin(*words, "--json")
        assert (code, err) == (0, "")
        document, _ = json.JSONDecoder().raw_decode(out)
        return document

    def ensure(self, *words: str) -> dict[str, Any]:
        """The request that the job of the last release records, made again for its port."""
        argv = self.result["run"]["server"].get("argv")
        port = argv[argv.index("--port") + 1] if argv else "30000"
        return self.run("caches", "ensure", *self.job["arguments"], "--port", port, *words)

    def corrupt(self) -> list[Path]:
        return list(self.root.rglob("*.corrupt-*"))


@pytest.fixture
def tree(machine: Machine) -> Iterator[Tree]:  # noqa: F811 - the fixture
    """With its Prometheus, which --root leaves to the operator."""
    prometheus, made = Stands(BY_NAME["prometheus"]), Tree(machine)
    url = f"http://127.0.0.1:{prometheus.port}"
    made.manifest["services"]["prometheus"] = {"port": prometheus.port, "url": url}
    path = made.run_dir.with_suffix(".json")
    path.write_text(json.dumps(made.manifest), encoding="utf-8")
    yield made
    prometheus.stop()


def by_stage(result: dict[str, Any], key: str) -> dict[str, Any]:
    """Of the stages that 1.0.0 has."""
    return {name: stage[key] for name, stage in result["stages"].items() if name in RELEASED}


def test_every_stage_ran_in_the_old_prep(tree: Tree) -> None:
    assert by_stage(tree.result, "status") == dict.fromkeys(RELEASED, "ok")
    assert tree.manifest["versions"]["sgl_admin"] == "1.0.0"
    for stage in RELEASED:
        assert (
            tree.json(tree.record(stage))["signature"] == by_stage(tree.result, "signature")[stage]
        )


# Their records hold more than those of 1.0.0 did.
COMPILED = ("deep_gemm", "flashinfer", "inductor")


def test_every_stage_stands(tree: Tree) -> None:
    """The prep of 1.0.0 made it for just this server: its work is taken over."""
    before = tree.profiles()
    result = tree.ensure()
    assert by_stage(result, "status") == dict.fromkeys(RELEASED, "noop")
    assert by_stage(result, "reason") == dict.fromkeys(RELEASED, "valid_signature")
    for part in ("signature", "key"):
        now, then = by_stage(result, part), by_stage(tree.result, part)
        assert {name for name in RELEASED if now[name] != then[name]} == set(COMPILED)
    assert by_stage(result, "warnings") == dict.fromkeys(RELEASED, [])
    assert result["warnings"] == result["errors"] == []
    assert tree.machine.runs() == [tree.run_id] == [result["run"]["run_id"]]
    assert tree.machine.starts() == []
    after = tree.profiles()
    assert {name: after[name] for name in before} == before
    assert {Path(name).parent for name in after.keys() - before.keys()} == {
        Path(RECORDS[stage]) / ".signatures" for stage in COMPILED
    }
    assert tree.corrupt() == []
    again = tree.ensure()
    assert by_stage(again, "status") == dict.fromkeys(RELEASED, "noop"), "by its own records"
    assert tree.profiles() == after and tree.machine.starts() == []


def rename(tree: Tree, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the prep of 1.0.0 recorded."""
    change(tree.result)
    (tree.run_dir / "prep_result.json").write_text(json.dumps(tree.result), encoding="utf-8")


def beside_the_config(tree: Tree) -> None:
    path = tree.root / "models" / "model" / "hf_quant_config.json"
    path.write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))


def of_no_prep(tree: Tree) -> None:
    (tree.run_dir / "prep_result.json").unlink()


UNPROVEN: dict[str, Callable[[Tree], None]] = {
    "another model": lambda tree: rename(
        tree, lambda result: result["run"].update(model_identity="sha256:other")
    ),
    "other arguments": lambda tree: rename(
        tree, lambda result: result["run"]["server"]["argv"].append("--log-requests")
    ),
    "another environment": lambda tree: rename(
        tree, lambda result: result["run"]["server"]["env"].update(NCCL_DEBUG="INFO")
    ),
    "no command line": lambda tree: rename(
        tree, lambda result: result["run"]["server"].update(argv=None)
    ),
    "no server": lambda tree: rename(tree, lambda result: result["run"].update(server={})),
    "a no-op, which proves nothing": lambda tree: rename(
        tree, lambda result: [stage.update(status="noop") for stage in result["stages"].values()]
    ),
    "stages of another form": lambda tree: rename(
        tree, lambda result: result.update(stages=dict.fromkeys(RELEASED, 5))
    ),
    "a quantisation that 1.0.0 did not look at": beside_the_config,
    "no result of a prep": of_no_prep,
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_was_made_for_an_unknown_server_is_not_taken_over(tree: Tree, name: str) -> None:
    UNPROVEN[name](tree)
    plan = tree.ensure("--dry-run")
    assert by_stage(plan, "status") == {
        **dict.fromkeys(COMPILED, "would_run"),
        "moe_tune": "noop",
    }


def test_work_for_an_unknown_server_is_shown_to_be_warm_by_a_start(tree: Tree) -> None:
    """Its server starts once, reads what 1.0.0 compiled, and adds nothing to it."""
    of_no_prep(tree)
    before = tree.profiles()
    port = ("--port", str(tree.machine.port))
    code, out, _ = tree.machine.admin("caches", "ensure", "--json", *tree.job["arguments"], *port)
    result, _ = json.JSONDecoder().raw_decode(out)
    assert code == 0
    assert by_stage(result, "status") == {**dict.fromkeys(COMPILED, "ok"), "moe_tune": "noop"}
    for stage in COMPILED:
        artifacts = result["stages"][stage]["artifacts"]
        assert artifacts["files"]["count"] > 0
    # Those that 1.0.0 left in the container are all that is new, and one that its double of the
    # server did not compile.
    known = tree.result["profile_cache"]["after"]
    new = set(result["new_files"]["cache_files"]) - {
        "deep_gemm/cache/kernel.fp8_gemm.2e3f/kernel.cubin"
    }
    assert new and not [name for name in new if name.partition("/")[0] in known], new
    assert len(tree.machine.starts()) == 1
    after = tree.profiles()
    kernels = {name for name in before if "/.signatures/" not in name and ".locks" not in name}
    assert {name: after[name] for name in kernels} == {name: before[name] for name in kernels}
    assert by_stage(tree.ensure(*port), "status") == dict.fromkeys(RELEASED, "noop")
    assert len(tree.machine.starts()) == 1


@pytest.mark.parametrize("stage", RELEASED)
def test_a_stage_with_another_signature_does_not_stand(tree: Tree, stage: str) -> None:
    tree.change_signature(stage)
    plan = tree.ensure("--dry-run")
    assert by_stage(plan, "status") == {**dict.fromkeys(RELEASED, "noop"), stage: "would_run"}


def test_a_stage_with_another_signature_is_done_again(tree: Tree) -> None:
    """What test_every_stage_stands watches does change where a stage runs."""
    before = tree.profiles()
    tree.change_signature("deep_gemm")
    code, out, _ = tree.machine.admin(
        "caches", "ensure", "--json", *tree.job["arguments"], "--port", str(tree.machine.port)
    )
    result, _ = json.JSONDecoder().raw_decode(out)
    assert code == 0 and by_stage(result, "status")["deep_gemm"] == "ok"
    assert len(tree.machine.starts()) == 1
    assert tree.profiles() != before


def test_inspect_finds_every_cache_valid(tree: Tree) -> None:
    found = tree.run("caches", "inspect")
    sizes = tree.result["profile_cache"]["after"]
    for cache in sizes:
        assert {key: found[cache][key] for key in sizes[cache]} == sizes[cache]
    for stage, cache in RECORDS.items():
        assert found[cache]["valid"] and not found[cache]["partial"]
        assert found[cache]["signature"] == by_stage(tree.result, "signature")[stage]
    assert tree.corrupt() == []


def test_status_reports_the_old_prep(tree: Tree) -> None:
    prometheus = {"state": "running", "needed": True, "reason": None}
    assert tree.run("status") == {
        "job": tree.job,
        "result": tree.result,
        "services": {"prometheus": prometheus},
        "watch": {"wanted": False, "reason": None},
    }
    assert tree.corrupt() == []


def test_the_prepared_server_is_the_old_one(tree: Tree) -> None:
    assert tree.run("server", "start", "--dry-run") == tree.result["run"]["server"]
    assert tree.machine.starts() == []


def test_the_old_records_keep_the_contract(tree: Tree) -> None:
    # 1.0.0 knew fewer stages and caches.
    now = validators.example("prep_result")
    tree.result["stages"]["perf"] = now["stages"]["perf"]
    tree.result["run"]["settings"]["stages"]["perf"] = "skip"
    for sizes in tree.result["profile_cache"].values():
        sizes.update(
            {cache: {"size_bytes": 0, "file_count": 0} for cache in CACHES if cache not in sizes}
        )
    validators.validate_prep_result(tree.result)
    validators.validate_job(tree.job)
    for stage in RELEASED:
        validators.validate_stage(tree.json(tree.run_dir / "stages" / f"{stage}.json"))
    pointer = (tree.telemetry / "container_run_meta.env").read_text(encoding="utf-8")
    validators.parse_and_validate_pointer(pointer)
    # The schema knows the mounts of a container, where these folders are below the root.
    text = json.dumps(tree.manifest).replace(str(tree.root), "")
    manifest = json.loads(text.replace('"/huggingface"', '"/home/devuser/.cache/huggingface"'))
    validators.validate_manifest(manifest)


def test_the_host_reads_the_old_records(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_record.read(str(tree.telemetry))
    assert record is not None and record.run_id == tree.run_id
    assert (record.manifest, record.prep_result) == (tree.manifest, tree.result)
    container = {
        "id": tree.manifest["container_id"],
        "name": tree.manifest["container_name"],
        "running": True,
        "status": "running",
        "pid": os.getpid(),
        "started_at": tree.manifest["started_at"],
    }
    # The host sees the process that the manifest names.
    monkeypatch.setattr(processes, "identity", lambda pid: tree.manifest["pid1"])
    found = run_record.describe(str(tree.telemetry), container)
    assert found["live"] and found["reason"] is None
    assert found["prep"] is None and found["in_use"] == []
    assert found["metrics_ready"] is False, "no proof was asked for"


def test_the_host_reads_an_old_job_that_runs(tree: Tree) -> None:
    (tree.run_dir / "job.json").write_text(json.dumps({**tree.job, "state": "running"}))
    record = run_record.read(str(tree.telemetry))
    assert record is not None
    profiles = str(tree.root / "profiles")
    assert run_record.running_prep(record, profiles) is None, "its process was killed"
    with open(tree.root / "profiles" / ".locks" / "prep.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = ("prep_id", "pid", "stage", "arguments")
        found = run_record.running_prep(record, profiles)
    assert found == {key: tree.job[key] for key in keys}


# --- there and back ------------------------------------------------------------------------------

# SGLang in the image of the tree, and in the next one.
SGLANG, NEXT = "0.5.17", "0.5.17.post1"
# Loaded by each Python process, after the double of the device node: the tuner's is a double too.
SITE = f"""
import runpy
runpy.run_path({str(DOUBLES / "gpu_server" / "sitecustomize.py")!r})
try:
    from sgl_admin.moe import tuner
except ImportError:
    pass
else:
    tuner._PROCESS = "tests.doubles.moe_process"
"""
# The same in the last release, as its own double was.
OLD_SITE = """
import os
from pathlib import Path
try:
    from sgl_admin import devices
except ImportError:
    pass
else:
    devices.CONTROL = Path("/dev/null")
"""


class Host:
    """A host that is moved between images and releases of the collection."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree = tree
        self._folder = folder
        self.starts = 0

    def image(self, sglang: str) -> None:
        """Another image: its SGLang is of this release."""
        packages = self._folder / sglang
        packages.mkdir(exist_ok=True)
        (packages / "sitecustomize.py").write_text(SITE)
        about = packages / f"sglang-{sglang}.dist-info" / "METADATA"
        about.parent.mkdir(exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {sglang}\n")
        self.tree.machine.before = (packages,)

    def collection(self, old: bool, sglang: str = SGLANG) -> None:
        self.image(sglang)
        if not old:
            return
        place = self._folder / "old"
        with tarfile.open(ADMIN) as archive:
            archive.extractall(place, filter="data")
        (place / "sitecustomize.py").write_text(OLD_SITE)
        self.tree.machine.before = (place, *self.tree.machine.before)

    def looks(self) -> list[str]:
        """What the tuner has measured so far."""
        noted = self._folder / "looks"
        return noted.read_text().splitlines() if noted.exists() else []

    def foretold(self) -> dict[str, str]:
        return by_stage(self.tree.ensure("--dry-run"), "status")

    def prep(self, *words: str) -> tuple[dict[str, str], int, str]:
        """What becomes of each stage, how often its server started, and what is said meanwhile."""
        arguments = (*self.tree.job["arguments"], "--port", str(self.tree.machine.port), *words)
        code, out, err = self.tree.machine.admin("caches", "ensure", "--json", *arguments)
        assert code == 0, err + out[:3000]
        result, _ = json.JSONDecoder().raw_decode(out)
        starts = len(self.tree.machine.starts())
        started, self.starts = starts - self.starts, starts
        return by_stage(result, "status"), started, err


@pytest.fixture
def host(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("MOE_GPU", json.dumps({"notes": str(tmp_path)}))
    return Host(tree, tmp_path)


STANDS = dict.fromkeys(RELEASED, "noop")


def test_an_image_up_and_back(host: Host) -> None:
    """The table of what is done again. An image that this host has not had runs all stages. Back in
    one that it had, tuned rows come back to the file that SGLang has for both where Triton is the
    same, and a server says that it reads them: nothing is measured.
    """
    table = []
    for image in (SGLANG, NEXT, SGLANG, NEXT):
        host.image(image)
        looks = len(host.looks())
        statuses, _started, said = host.prep()
        table.append((image, statuses, len(host.looks()) > looks))
        if len(table) == 2:
            cost = said.partition(" runs ")[2].partition("\n")[0]
    back = {**STANDS, "moe_tune": "ok"}
    assert table == [
        (SGLANG, STANDS, False),
        (NEXT, dict.fromkeys(RELEASED, "ok"), True),
        (SGLANG, back, False),
        (NEXT, back, False),
    ]
    assert re.fullmatch(
        rf"{', '.join(RELEASED)} \(the image changed: sglang {SGLANG} to {NEXT}.*\);"
        r" that took about \d+ s before.*",
        cost,
    ), cost


def test_the_collection_up_and_back(host: Host) -> None:
    """Each release reads what the other one wrote. What the last release made stands in both; what
    only this one made, the last one does again, as its signatures hold less.
    """
    assert host.prep()[:2] == (STANDS, 0)
    host.collection(old=True)
    assert host.tree.machine.admin("version")[1] == "sgl-admin 1.0.0\n"
    assert host.prep()[:2] == (STANDS, 0)
    host.collection(old=False)
    assert host.prep()[:2] == (STANDS, 0)
    host.image(NEXT)
    assert host.prep()[0] == dict.fromkeys(RELEASED, "ok")
    host.collection(old=True, sglang=NEXT)
    assert host.foretold() == {**dict.fromkeys(COMPILED, "would_run"), "moe_tune": "would_run"}
    host.image(NEXT)
    assert host.prep()[:2] == (STANDS, 0)
    assert host.tree.corrupt() == []
