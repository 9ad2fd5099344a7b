"""A stage is a no-op exactly when its signature was finished and the files that it vouches for are
whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.base import files, paths
from sgl_admin.base.locks import try_lock
from sgl_admin.records import caches, compiled, vouched

SIGNATURE: dict[str, Any] = {"stage": "inductor", "torch": "2.13.0", "batch_sizes": [1, 4]}


@pytest.fixture
def record(container: Path) -> caches.SignatureRecord:
    """A finished stage with a file in each of its two caches."""
    (paths.PROFILES / "torchinductor" / "ab").mkdir()
    (paths.PROFILES / "torchinductor" / "ab" / "graph.py").write_text("x = 1\n")
    (paths.PROFILES / "triton" / "kernel.so").write_bytes(b"12345")
    made = caches.SignatureRecord("inductor", ("torchinductor", "triton"), SIGNATURE)
    assert made.write()["count"] == 2
    return made


def again(**changes: Any) -> caches.SignatureRecord:
    return caches.SignatureRecord("inductor", ("torchinductor", "triton"), {**SIGNATURE, **changes})


def test_finished_and_whole_is_no_problem(record: caches.SignatureRecord) -> None:
    assert again().problem([]) is None
    assert record.summary() == {
        "count": 2,
        "bytes": 11,
        "latest_mtime_iso": caches.clock.utc(
            (paths.PROFILES / "triton" / "kernel.so").stat().st_mtime
        ),
    }


@pytest.mark.parametrize("changes", [{"torch": "2.13.1"}, {"batch_sizes": [1]}, {"new": None}])
def test_another_signature_is_other_work(
    record: caches.SignatureRecord, changes: dict[str, Any]
) -> None:
    assert again(**changes).problem([]) == "no finished work with this signature"
    assert again().problem([]) is None


def test_two_signatures_stand_beside_each_other(record: caches.SignatureRecord) -> None:
    again(model_identity="another").write()
    assert again().problem([]) is None and again(model_identity="another").problem([]) is None


def test_the_order_of_a_signatures_keys_does_not_matter(record: caches.SignatureRecord) -> None:
    turned = caches.SignatureRecord(
        "inductor", ("torchinductor", "triton"), dict(reversed(SIGNATURE.items()))
    )
    assert turned.problem([]) is None


def test_a_missing_file_is_named(record: caches.SignatureRecord) -> None:
    (paths.PROFILES / "triton" / "kernel.so").unlink()
    assert again().problem([]) == "triton/kernel.so is missing"


def test_a_file_of_another_size_is_named(record: caches.SignatureRecord) -> None:
    (paths.PROFILES / "torchinductor" / "ab" / "graph.py").write_text("")
    assert again().problem([]) == "torchinductor/ab/graph.py has changed its size"


def test_a_file_more_is_no_problem(record: caches.SignatureRecord) -> None:
    (paths.PROFILES / "triton" / "of-another-model.so").write_bytes(b"1")
    assert again().problem([]) is None


@pytest.mark.parametrize("name", ["x.lock", "x.tmp", "x.tmp.17", "tmpa7f3", "tmp.pid_12"])
def test_scratch_files_are_not_vouched_for(container: Path, name: str) -> None:
    (paths.PROFILES / "triton" / name).write_bytes(b"1")
    (paths.PROFILES / "triton" / "kernel.so").write_bytes(b"1")
    record = again()
    assert record.write()["count"] == 1
    (paths.PROFILES / "triton" / name).unlink()
    assert record.problem([]) is None


def test_links_are_not_followed(container: Path) -> None:
    (paths.PROFILES / "triton" / "link").symlink_to("/etc")
    (paths.PROFILES / "triton" / "file-link").symlink_to("/etc/passwd")
    assert list(caches.cache_files("triton")) == []


def test_records_are_no_content_of_their_cache(record: caches.SignatureRecord) -> None:
    record.write()
    assert record.write()["count"] == 2


def test_a_corrupt_record_counts_as_missing_and_stays(record: caches.SignatureRecord) -> None:
    record.path.write_text("{")
    unreadable: list[str] = []
    assert again().problem(unreadable) == "no finished work with this signature"
    assert len(unreadable) == 1 and f"{record.path} is not valid JSON" in unreadable[0]
    assert record.path.read_text() == "{"


def test_a_record_without_files_vouches_for_nothing(record: caches.SignatureRecord) -> None:
    files.write_json(record.path, {"signature": SIGNATURE, "summary": {}, "files": None})
    unreadable: list[str] = []
    assert again().problem(unreadable) == "no finished work with this signature"
    assert "has no valid files" in unreadable[0]


def test_snapshot_tells_valid_empty_damaged_and_partial(record: caches.SignatureRecord) -> None:
    found = caches.snapshot()
    assert (found["torchinductor"]["valid"], found["torchinductor"]["reason"]) == (True, None)
    assert found["torchinductor"]["signature"] == SIGNATURE
    assert found["torchinductor"]["host_path"] == "/host/profiles/torchinductor"
    assert (
        found["flashinfer"]["valid"],
        found["flashinfer"]["reason"],
        found["flashinfer"]["file_count"],
    ) == (False, "empty", 0)
    (paths.PROFILES / "torchinductor" / "ab" / "graph.py").unlink()
    (paths.PROFILES / "torchinductor" / "ab" / "other.py").write_text("")
    assert caches.snapshot()["torchinductor"]["reason"] == "torchinductor/ab/graph.py is missing"
    files.write_json(
        paths.IN_PROGRESS / "inductor.json",
        {"stage": "inductor", "owner_pid": 7, "started_at": "2026-11-23T09:15:00Z"},
    )
    partial = caches.snapshot()["torchinductor"]
    assert (partial["valid"], partial["reason"], partial["partial"]) == (
        False,
        "in_progress_or_aborted",
        True,
    )
    assert partial["partial_info"]["owner_pid"] == 7
    json.dumps(partial)


def test_an_owner_is_dead_when_its_marker_is_there_and_its_lock_is_not(container: Path) -> None:
    assert caches.dead_owner("inductor") is False
    (paths.IN_PROGRESS / "inductor.json").write_text("torn")
    assert caches.dead_owner("inductor") is True
    lock = try_lock("inductor")
    assert lock is not None
    assert caches.dead_owner("inductor") is False
    os.close(lock)
    assert caches.dead_owner("inductor") is True


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a\nb"])
def test_a_name_that_no_file_can_have_is_missing(record: caches.SignatureRecord, name: str) -> None:
    files.write_json(record.path, {"signature": SIGNATURE, "summary": {}, "files": {name: 1}})
    problem = again().problem([])
    assert problem is not None and problem.endswith("is missing") and problem.isprintable()


def test_a_snapshot_passes_over_what_is_no_cache_and_no_record(
    record: caches.SignatureRecord,
) -> None:
    (paths.PROFILES / "flashinfer").rmdir()
    (paths.PROFILES / "flashinfer").write_text("a file")
    record.path.with_name("inductor-lost.json").symlink_to("nowhere")
    found = caches.snapshot()
    assert found["flashinfer"]["reason"] == "empty" and found["torchinductor"]["valid"] is True


# --- all that is compiled, and nothing else -------------------------------------------------------

# As FlashInfer 0.7.2, TileLang 0.1.12, SGLang 0.5.23 and DeepGEMM's pre-compilation name theirs.
NO_CONTENT = (
    "flashinfer/.cache/flashinfer/0.7.2/90a/flashinfer_jit.log",
    "tilelang/tmp/17_1f2e.so",
    "tilelang/0.1.12/.staging/17/kernel_lib.so",
    "sglang/ple/model/table.bin",
    "sglang/model_streamer/1f2e/model.safetensors",
    "sglang/gpu_p2p_access_cache_for_0,1.json",
    "deep_gemm/locks/GEMM_n4096_k2048_g1.lock",
)
CONTENT = (
    "flashinfer/.cache/flashinfer/cubins/fmha.cubin",
    "sglang/flashinfer/autotune/0.7.2/90a/1f2e/rank_tp0_pp0_dp0.json",
    "sglang/torch_compile_cache/1f2e/rank_0_0/x/inductor_cache/ab/graph.py",
    "sglang/cute_aot/1f2e/kernel.o",
    "cuda/580.159.04/a/b/1f2e",
    "tilelang/0.1.12/1f2e/kernel_lib.so",
)


def lay(name: str, content: bytes = b"x") -> None:
    path = paths.PROFILES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_what_is_no_compiled_code_is_no_content(container: Path) -> None:
    for name in (*NO_CONTENT, *CONTENT):
        lay(name)
    listed = {path for known in caches.listing().values() for path in known}
    assert {str(path.relative_to(paths.PROFILES)) for path in listed} == set(CONTENT)


@pytest.mark.parametrize(
    ("name", "stands"),
    [
        ("sglang/flashinfer/autotune/0.7.2/90a/1f2e/rank_tp0_pp0_dp0.json", True),
        ("cuda/580.159.04/index", True),
        ("cuda/580.159.04/a/b/1f2e", False),
        ("sglang/cute_aot/1f2e/kernel.o", False),
    ],
)
def test_a_file_that_is_rewritten_in_use_is_not_held_to_its_size(
    container: Path, name: str, stands: bool
) -> None:
    lay(name)
    made = caches.SignatureRecord("inductor", ("sglang", "cuda"), SIGNATURE)
    made.write()
    lay(name, b"longer")
    assert (made.problem([]) is None) is stands
    (paths.PROFILES / name).unlink()
    assert made.problem([]) == f"{name} is missing"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("home/devuser/.nv/ComputeCache/a/b/1f2e", True),
        ("home/devuser/.tilelang/cache/0.1.12/1f2e/kernel_lib.so", True),
        ("home/devuser/.cache/unheard-of/kernel", True),
        ("tmp/torchinductor_devuser/ab/graph.py", True),
        ("tmp/devuser/cutlass_python_cache/1f2e.mlir", True),
        ("var/tmp/kernel.cubin", True),
        ("tmp/tmpab12cd_3/counter_417.db", False),
        ("tmp/tmpab12cd_3/gauge_mostrecent_417.db", False),
        ("tmp/tmpab12cd_3", False),
        # Seen in a container of the local flavour: what Inductor compiles later includes it.
        (f"tmp/torchinductor_devuser/precompiled_headers/{'c7' * 26}.h.gch", False),
        ("home/devuser/.cache/huggingface/hub/model.safetensors", False),
        ("tmp/x/__pycache__/x.cpython-312.pyc", False),
        ("home/devuser/.bash_history", False),
    ],
)
def test_what_is_compiled_outside_of_the_caches_is_found(
    container: Path, name: str, named: bool
) -> None:
    path = container / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    (path.parent / "socket").touch()
    assert compiled.new_outside(compiled.outside(), {}) == ([str(path)] if named else [])


def test_without_a_container_nothing_outside_of_its_folder_is_looked_at() -> None:
    script = "from sgl_admin.base import paths; print(paths.HOME, paths.TMP, paths.VAR_TMP)"
    environment = {**os.environ, paths.ROOT_VARIABLE: "/some/root"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert all(place.startswith("/some/root/") for place in done.stdout.split())


@pytest.mark.parametrize(("driver", "folder"), [("580.159.04", "580.159.04"), ("a/../b", "a_.._b")])
def test_what_a_driver_compiles_has_a_folder_of_its_version(
    container: Path, driver: str, folder: str
) -> None:
    expected = {"CUDA_CACHE_PATH": str(paths.PROFILES / "cuda" / folder)}
    assert caches.driver_environment(driver) == expected
    assert caches.driver_environment(None) == {}


# --- where another user can write -----------------------------------------------------------------

KERNEL = "triton/kernel.so"
OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")


def member_replaces() -> None:
    """In place: of the same size, and with the time that it had."""
    path = paths.PROFILES / KERNEL
    before = path.stat()
    with open(path, "r+b") as stream:
        stream.write(b"evil!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def group_may_write() -> None:
    for name in (".", "triton"):
        (paths.PROFILES / name).chmod(0o775)
    (paths.PROFILES / KERNEL).touch()
    (paths.PROFILES / KERNEL).chmod(0o664)


def closed() -> None:
    paths.PROFILES.chmod(0o700)


def made() -> caches.SignatureRecord:
    (paths.PROFILES / KERNEL).write_bytes(b"12345")
    record = again()
    record.write()
    return record


@pytest.mark.parametrize("opened", [True, False])
def test_a_kernel_that_a_member_of_the_group_replaced_is_not_run(
    container: Path, opened: bool
) -> None:
    """Open when it was recorded, and closed by the next release since, or open still."""
    group_may_write()
    made()
    if not opened:
        closed()
    assert again().problem([]) is None
    member_replaces()
    assert again().problem([]) == f"{KERNEL} has changed its content"


def test_a_kernel_that_was_opened_later_is_read(container: Path) -> None:
    closed()
    made()
    group_may_write()
    assert again().problem([]) is None
    member_replaces()
    assert again().problem([]) == f"{KERNEL} has changed its content"


@needs_root
def test_a_kernel_that_another_user_put_there_is_read(container: Path) -> None:
    closed()
    made()
    path = paths.PROFILES / KERNEL
    before = path.stat()
    path.unlink()
    path.write_bytes(b"evil!")
    os.chown(path, OTHER, OTHER)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again().problem([]) == f"{KERNEL} has changed its content"


@needs_root
@pytest.mark.parametrize("how", ["writable", "owner", "folder", "link"])
def test_a_record_that_another_user_could_write_vouches_for_nothing(
    container: Path, how: str
) -> None:
    group_may_write()
    record = made()
    if how == "writable":
        record.path.chmod(0o664)
    elif how == "owner":
        os.chown(record.path, OTHER, OTHER)
    elif how == "folder":
        record.path.parent.chmod(0o775)
    else:
        record.path.rename(record.path.with_name("own"))
        record.path.symlink_to("own")
    assert again().problem([]) == "its signature record could be changed by other users"


def test_a_record_and_its_folder_are_the_owners_alone(container: Path) -> None:
    before = os.umask(0)
    try:
        record = made()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (record.path.parent, record.path)] == [
        0o700,
        0o600,
    ]


def test_what_nobody_else_can_write_is_not_read_again(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converged run costs what it did."""
    closed()
    made()
    monkeypatch.setattr(vouched, "_digests", lambda names: pytest.fail(str(names)) if names else [])
    assert again().problem([]) is None


def test_a_kernel_with_another_time_is_read_and_may_be_the_same(container: Path) -> None:
    closed()
    made()
    os.utime(paths.PROFILES / KERNEL, (1, 1))
    assert again().problem([]) is None
    (paths.PROFILES / KERNEL).write_bytes(b"evil!")
    assert again().problem([]) == f"{KERNEL} has changed its content"


def test_work_that_is_closed_by_now_is_read_once_more_and_then_not_again(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_may_write()
    record = made()
    closed()
    record.settle()
    (paths.PROFILES / KERNEL).chmod(0o640)
    vouched._sha256.cache_clear()
    assert files.read_json(record.path)[vouched.EXPOSED] is False  # type: ignore[index]
    monkeypatch.setattr(vouched, "_digests", lambda names: pytest.fail(str(names)) if names else [])
    assert again().problem([]) is None


@pytest.mark.parametrize("opened", [True, False])
def test_a_record_of_1_0_0_stands_where_nobody_else_can_write(
    container: Path, opened: bool
) -> None:
    record = made()
    document = files.read_json(record.path)
    assert document is not None
    for key in (vouched.DIGESTS, vouched.EXPOSED):
        del document[key]
    files.write_json(record.path, document, mode=0o600)
    if opened:
        group_may_write()
        assert "has no digest" in (again().problem([]) or "")
    else:
        closed()
        assert again().problem([]) is None
