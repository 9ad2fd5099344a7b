"""What another user of the host can hold or read of the tree: each test plays that user, alone or
as a member of the tree's group.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.slice_bench.sglang.plugins.callback import report
from ansible_collections.slice_bench.sglang.plugins.module_utils import _host_tree as host_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils import _image_parts as image_parts
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import locks, places
from ansible_collections.slice_bench.sglang.plugins.plugin_utils import share_store

OWNER, GROUP, OTHER = 12345, 12346, 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play several users")
LOCK = f"profiles/{places.LOCKS}/{places.LOCK_PREP}.lock"
KERNEL, RECORD = "profiles/triton/ABC/kernel.so", "telemetry/container_runs/run/prep_result.json"
LOG = "telemetry/logs/run.log"


@pytest.fixture
def root() -> Iterator[Path]:
    """A tree's place that everybody may look for: pytest's own is closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="sgl-least-"))
    folder.chmod(0o755)
    yield folder / "tree"
    shutil.rmtree(folder)


def spec(root: Path, *, group_writable: bool = False) -> host_tree.Spec:
    return host_tree.Spec(
        root=str(root),
        telemetry=str(root / "telemetry"),
        profiles=str(root / "profiles"),
        models=str(root / "models"),
        huggingface=str(root / "huggingface"),
        uid=OWNER,
        gid=GROUP,
        group_writable=group_writable,
    )


def converge(wanted: host_tree.Spec) -> host_tree.Plan:
    plan = host_tree.inspect(wanted)
    host_tree.apply(plan)
    return plan


def fill(root: Path, umask: int) -> None:
    """What a container's processes leave in a tree, with their umask."""
    for name in (LOCK, KERNEL, RECORD, LOG):
        path = root / name
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o777 & ~umask)
                os.chown(folder, OWNER, GROUP)
        path.write_text(name)
        path.chmod(0o666 & ~umask)
        os.chown(path, OWNER, GROUP)


def old_tree(root: Path) -> None:
    """As release 1.0.0 left it: umask 002, and folders of mode 0775."""
    root.mkdir()
    os.chown(root, OWNER, GROUP)
    fill(root, 0o002)
    converge(spec(root))
    for path in [root, *root.rglob("*")]:
        path.chmod(0o775 if path.is_dir() else 0o664)


def as_other(action: Callable[[], object], *, member: bool) -> bool:
    """Whether another user gets this done."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([GROUP] if member else [])
            os.setgid(OTHER)
            os.setuid(OTHER)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def hold(path: Path) -> None:
    with open(path, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)


def look(path: Path) -> None:
    path.read_bytes()


def change(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.write(b"x")


def exchange(path: Path) -> None:
    path.rename(path.with_name("mine"))


# action, path, whether a member of the group may without sgl_group_writable, and with it.
RIGHTS: list[tuple[Callable[[Path], object], str, bool, bool]] = [
    (hold, LOCK, False, False),
    (change, LOCK, False, False),
    (exchange, LOCK, False, False),
    (exchange, str(Path(LOCK).parent), False, False),
    (look, KERNEL, False, True),
    (change, KERNEL, False, True),
    (exchange, KERNEL, False, True),
    (look, RECORD, True, True),
    (change, RECORD, False, True),
    (exchange, RECORD, False, True),
    (look, LOG, True, True),
    (change, LOG, False, True),
    (exchange, "telemetry/logs", False, True),
    (exchange, "profiles", False, False),
    (exchange, "models", False, False),
]


@needs_root
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("group_writable", [False, True])
@pytest.mark.parametrize(("action", "name", "alone", "shared"), RIGHTS)
def test_what_another_user_gets_at(
    root: Path,
    action: Callable[[Path], object],
    name: str,
    alone: bool,
    shared: bool,
    group_writable: bool,
    old: bool,
) -> None:
    wanted = spec(root, group_writable=group_writable)
    if old:
        old_tree(root)
        assert as_other(lambda: hold(root / LOCK), member=False), "1.0.0 let everybody hold it"
        assert converge(wanted).changed
    else:
        converge(wanted)
        fill(root, places.umask(group_writable))
    assert not host_tree.inspect(wanted).changed
    before = (root / name).stat().st_ino
    assert not as_other(lambda: action(root / name), member=False)
    may = as_other(lambda: action(root / name), member=True)
    assert may is (shared if group_writable else alone)
    assert may or (root / name).stat().st_ino == before


@needs_root
def test_an_old_tree_is_closed_once_and_a_kill_leaves_nothing_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any change of a mode, the next run does the rest."""
    real = os.fchmod
    for deaths in range(100):
        left = iter(range(deaths))

        def fchmod(descriptor: int, mode: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(descriptor, mode)

        old_tree(root)
        monkeypatch.setattr(os, "fchmod", fchmod)
        try:
            host_tree.apply(host_tree.inspect(spec(root)))
            killed = False
        except KeyboardInterrupt:
            killed = True
        monkeypatch.setattr(os, "fchmod", real)
        converge(spec(root))
        assert not host_tree.inspect(spec(root)).changed
        modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in (LOCK, RECORD, LOG)}
        # The folder of telemetry lets only the group through to what runs left in it.
        assert modes == {LOCK: 0o600, RECORD: 0o644, LOG: 0o640}
        if not killed:
            break
        shutil.rmtree(root)
    assert not killed and deaths > 10


HOLD = """
import fcntl, os, sys
stream = open(sys.argv[1], "rb")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
fcntl.flock(stream, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A lock that another process opened while it was open to all."""
    path = tmp_path / "locks" / ".lock"
    path.parent.mkdir()
    path.touch(0o664)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.read(1) == b"\n"
    yield path, process.pid
    process.communicate()


def in_words(error: Exception, path: Path, pid: int) -> bool:
    return (
        re.search(rf"{re.escape(str(path))} is held by pid {pid} of uid 65534 \(\w", str(error))
        is not None
    )


@needs_root
def test_a_lock_that_somebody_else_has_is_told_with_pid_and_user(held: tuple[Path, int]) -> None:
    path, pid = held
    descriptor = locks.open_file(str(path))
    began = time.monotonic()
    with pytest.raises(locks.LockTimeout) as caught:
        locks.take(descriptor, 0.3, str(path))
    os.close(descriptor)
    assert in_words(caught.value, path, pid) and len(str(caught.value)) < 400
    assert "\n" not in str(caught.value) and 0.3 <= time.monotonic() - began < 5
    assert stat.S_IMODE(path.stat().st_mode) == places.LOCK_MODE, "the next one cannot open it"


@needs_root
def test_no_playbook_waits_without_an_end(
    held: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller's folder of shared work, and the folder of builds."""
    path, pid = held
    for module in (share_store, image_parts):
        monkeypatch.setattr(module, "_LOCK_S", 0.2)
    with pytest.raises(locks.LockTimeout) as caught, image_parts.alone(str(path.parent)):
        pytest.fail("the folder that another one has was taken")
    assert in_words(caught.value, path, pid)
    store = share_store.Store(str(path.parent))
    written = store.incoming("a")
    written.touch()
    with pytest.raises(locks.LockTimeout) as caught:
        store.put("a", written, {})
    assert in_words(caught.value, path, pid)


def test_no_lock_is_made_but_by_the_contracts_own_function() -> None:
    """`flock` elsewhere would be of a file that others can open, or wait without an end."""
    top = Path(__file__).resolve().parents[2]
    takes = {
        str(path.relative_to(top)): path.read_text(encoding="utf-8").count("LOCK_EX")
        for folder in ("plugins", "sgl_admin", "slice_bench")
        for path in (top / folder).rglob("*.py")
        if "LOCK_EX" in path.read_text(encoding="utf-8")
    }
    assert set(takes) == {
        "plugins/module_utils/_contract/locks.py",
        "sgl_admin/base/locks.py",
    }


@needs_root
def test_what_runs_is_told_with_who_holds_its_lock(held: tuple[Path, int]) -> None:
    path, pid = held
    profiles = path.parent.parent
    folder = profiles / places.LOCKS
    path.parent.rename(folder)
    (folder / path.name).rename(folder / f"{places.LOCK_SMOKE}.lock")
    container = {"status": "running", "name": "c", "pid": os.getpid()}
    (told,) = run_record.in_use(container, str(profiles))
    assert told.startswith("a smoke (") and f"is held by pid {pid} of uid 65534 (" in told


def test_the_controllers_report_and_shared_work_are_the_owners(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        report._write(tmp_path / "report.json", "{}")
        share_store.Store(str(tmp_path / "caches")).incoming("a")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("report.json", "caches")]
    assert modes == [0o640, 0o700]
