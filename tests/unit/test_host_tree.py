"""The host tree: what is made, what is refused before anything changes, and what a killed run
leaves.
"""

from __future__ import annotations

import grp
import multiprocessing
import os
import pwd
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _host_tree as host_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places
from ansible_collections.slice_bench.sglang.plugins.module_utils._host_tree import (
    HostTreeError,
    Spec,
    apply,
    inspect,
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of another owner"
)

EXPECTED = {
    *(
        "telemetry",
        "telemetry/container_runs",
        "telemetry/logs",
        "telemetry/prometheus",
        "telemetry/jaeger",
    ),
    *(
        "profiles",
        "profiles/triton",
        "profiles/torchinductor",
        "profiles/flashinfer",
        "profiles/deep_gemm",
        "profiles/tvm_ffi",
    ),
    *(
        "profiles/moe_configs",
        "profiles/moe_configs/configs",
        "profiles/.locks",
        "profiles/.in_progress",
        "models",
        "huggingface",
    ),
    # Those of later releases.
    *(f"profiles/{cache}" for cache in places.CACHES),
}


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    root = tmp_path / "sglang-observability"
    return spec_at(root)


def spec_at(root: Path) -> Spec:
    return Spec(
        root=str(root),
        telemetry=str(root / "telemetry"),
        profiles=str(root / "profiles"),
        models=str(root / "models"),
        huggingface=str(root / "huggingface"),
        uid=os.geteuid(),
        gid=os.getegid(),
    )


def converge(spec: Spec) -> host_tree.Plan:
    plan = inspect(spec)
    apply(plan)
    return plan


def refusal(spec: Spec) -> str | None:
    """For another process, to which the error itself does not go."""
    try:
        converge(spec)
    except HostTreeError as error:
        return str(error)
    return None


def snapshot(top: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in [top, *top.rglob("*")]:
        info = path.lstat()
        found[str(path)] = (info.st_mode, info.st_uid, info.st_gid)
    return found


def refused(spec: Spec, top: Path) -> str:
    """The refusal's text; the host is as it was before."""
    before = snapshot(top)
    with pytest.raises(HostTreeError) as caught:
        converge(spec)
    assert snapshot(top) == before
    return str(caught.value)


@pytest.mark.parametrize("uid", [os.geteuid(), pytest.param(65534, marks=needs_root)])
def test_runs_at_the_same_time_make_one_tree(tmp_path: Path, uid: int) -> None:
    """Each finds folders half made by the others."""
    for turn in range(10):
        one = replace(spec_at(tmp_path / str(turn)), uid=uid, gid=uid)
        with multiprocessing.get_context("fork").Pool(4) as runs:
            assert runs.map(refusal, [one] * 4, chunksize=1) == [None] * 4
        root = Path(one.root)
        assert {str(path.relative_to(root)) for path in root.rglob("*")} == EXPECTED
        assert not inspect(one).changed


def test_makes_the_whole_tree_whatever_the_umask(spec: Spec) -> None:
    old = os.umask(0o077)
    try:
        plan = converge(spec)
    finally:
        os.umask(old)
    root = Path(spec.root)
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == EXPECTED
    closed = {"profiles": 0o700, "profiles/.locks": 0o700, "huggingface": 0o700}
    opened = {".": 0o755, "models": 0o755}
    for path in [root, *root.rglob("*")]:
        info = path.stat()
        expected = {**closed, **opened}.get(str(path.relative_to(root)), 0o750)
        assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (
            expected,
            spec.uid,
            spec.gid,
        ), path
    assert plan.create == sorted(plan.create, key=plan.create.index) and plan.create[0] == spec.root
    assert {os.path.relpath(path, root) for path in plan.create} == EXPECTED | {"."}


def test_second_run_changes_nothing(spec: Spec) -> None:
    assert converge(spec).changed
    (Path(spec.profiles) / "triton" / "kernel.bin").write_bytes(b"x")
    second = inspect(spec)
    assert not second.changed
    assert second.diff() == {"before": {}, "after": {}}
    # With the root and the file.
    assert second.entries_checked == len(EXPECTED) + 2


def test_check_result_equals_the_real_one_and_makes_nothing(spec: Spec, tmp_path: Path) -> None:
    planned = inspect(spec)
    assert list(tmp_path.iterdir()) == []
    assert planned.result() == converge(spec).result()
    assert planned.diff()["before"][spec.telemetry] == "absent"
    assert planned.diff()["after"][spec.telemetry] == f"directory 0750 {spec.uid}:{spec.gid}"


def test_roots_elsewhere_and_missing_parents(spec: Spec, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    spec = replace(spec, root=str(tmp_path / "a/b/root"), models=str(tmp_path / "disk/big/models"))
    plan = converge(spec)
    assert plan.create[:3] == [
        str(tmp_path / "a"),
        str(tmp_path / "a/b"),
        str(tmp_path / "a/b/root"),
    ]
    assert Path(spec.models).is_dir() and Path(spec.telemetry, "logs").is_dir()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755, "an existing parent keeps its mode"
    assert not inspect(spec).changed


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_set_id_and_sticky_bits_stay(spec: Spec) -> None:
    converge(spec)
    os.chmod(spec.profiles, 0o2777)
    os.chmod(spec.huggingface, 0o3777)
    converge(spec)
    assert (mode(spec.profiles), mode(spec.huggingface)) == (0o2700, 0o3755)
    assert not inspect(spec).changed


def test_missing_permission_bits_are_added_and_those_of_others_go(spec: Spec) -> None:
    converge(spec)
    os.chmod(spec.root, 0o700)
    os.chmod(spec.telemetry, 0o710)
    os.chmod(spec.models, 0o555)
    os.chmod(spec.huggingface, 0o755)
    logs = os.path.join(spec.telemetry, "logs")
    os.chmod(logs, 0o775)
    plan = converge(spec)
    assert sorted(plan.chmod) == [spec.telemetry, logs]
    assert plan.diff()["before"][logs] == f"directory 0775 {spec.uid}:{spec.gid}"
    assert plan.diff()["after"][logs] == f"directory 0750 {spec.uid}:{spec.gid}"
    # The parent may be a home directory, models a read-only export, and the hub's files those of
    # other programs too.
    assert [mode(path) for path in (spec.root, spec.telemetry, spec.models, spec.huggingface)] == [
        0o700,
        0o750,
        0o555,
        0o755,
    ]
    assert not inspect(spec).changed


def test_a_home_directory_as_the_parent_keeps_its_mode(spec: Spec) -> None:
    converge(spec)
    os.chmod(spec.root, 0o775)
    Path(spec.root, ".bashrc").touch()
    assert not inspect(spec).changed
    Path(spec.root, ".bashrc").unlink()
    converge(spec)
    assert mode(spec.root) == 0o755


def test_foreign_group_stops_before_anything_changes(spec: Spec, tmp_path: Path) -> None:
    """For any user who runs this: the tree has our group and another one is expected."""
    Path(spec.profiles).mkdir(parents=True)
    wanted = replace(spec, gid=spec.gid + 1)
    text = refused(wanted, tmp_path)
    assert f"not {spec.uid}:{spec.gid + 1}" in text
    assert f"chown -R {spec.uid}:{spec.gid + 1} {spec.root}" in text
    assert f"{spec.root} is owned by {spec.uid}:{spec.gid} (" in text


@needs_root
@pytest.mark.parametrize(
    "where",
    ["telemetry/prometheus/run/wal/0001", "profiles/.locks/x", "telemetry/container_run_meta.env"],
)
def test_one_foreign_file_is_named_with_owner_and_command(
    spec: Spec, tmp_path: Path, where: str
) -> None:
    converge(spec)
    path = Path(spec.root, where)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.chown(path, 65534, 65534)
    os.rmdir(spec.models)
    text = refused(spec, tmp_path)
    assert (
        text
        == f"{path} is owned by 65534:65534 (nobody), not {spec.uid}:{spec.gid} (root): run `chown"
        f" -R {spec.uid}:{spec.gid} {path}` as root, or set sgl_ownership_ignore: true to"
        " proceed all the same"
    )


@needs_root
@pytest.mark.parametrize("which", ["root", "telemetry", "profiles", "models", "huggingface"])
def test_each_foreign_root_is_refused(spec: Spec, tmp_path: Path, which: str) -> None:
    converge(spec)
    path = spec.roots()[which]
    os.chown(path, 12345, 54321)
    text = refused(spec, tmp_path)
    assert f"{path} is owned by 12345:54321 (no such user), not {spec.uid}:{spec.gid}" in text
    assert f"chown -R {spec.uid}:{spec.gid} {path}`" in text


@needs_root
def test_recursive_chown_of_a_shared_parent_is_never_advised(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    Path(spec.root, "somebody-elses").mkdir()
    os.chown(spec.root, 12345, 12345)
    text = refused(spec, tmp_path)
    assert f"`chown {spec.uid}:{spec.gid} {spec.root}`" in text
    assert "-R" not in text


@needs_root
def test_many_mismatches_name_ten_and_the_count(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    for number in range(37):
        path = Path(spec.profiles, "triton", f"k{number:02}")
        path.touch()
        os.chown(path, 65534, 65534)
    text = refused(spec, tmp_path)
    assert text.startswith(f"37 paths are owned by others, not {spec.uid}:{spec.gid} (root): ")
    assert text.count("is owned by 65534:65534 (nobody)") == 10
    assert "k09 is owned" in text and "k10 is owned" not in text and "and 27 more" in text
    assert f"run `chown -R {spec.uid}:{spec.gid} {spec.profiles}`" in text


@needs_root
def test_a_foreign_directory_is_named_once(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    inner = Path(spec.telemetry, "jaeger", "run")
    inner.mkdir()
    for number in range(5):
        (inner / str(number)).touch()
        os.chown(inner / str(number), 65534, 65534)
    os.chown(inner, 65534, 65534)
    assert refused(spec, tmp_path).startswith(f"{inner} is owned by")


# --- parents that another user can exchange -------------------------------------------------------


OTHER, SERVICE = 12345, 65534
# The mode and owner of a parent, the owner of the folder in it, and what is said.
PARENTS = {
    "of another user": (0o755, OTHER, SERVICE, "12345:12345 (no such user), who owns {parent}"),
    "of another user, sticky": (0o1777, OTHER, SERVICE, "who|another user owns"),
    "open to all": (0o777, 0, SERVICE, "every user can exchange the tree"),
    "open to all, of the service user": (0o777, SERVICE, SERVICE, "every user can exchange"),
    "sticky, and another was first": (0o1777, 0, OTHER, "another user owns a folder or link in"),
    "sticky": (0o1777, 0, SERVICE, None),
    "sticky, and nothing there": (0o1777, 0, None, None),
    "of the service user": (0o755, SERVICE, SERVICE, None),
    "root's": (0o755, 0, SERVICE, None),
}


@needs_root
@pytest.mark.parametrize("case", PARENTS)
def test_a_parent_in_which_another_user_can_exchange_the_tree_is_refused(
    scratch: Path, case: str
) -> None:
    mode, owner, below, expected = PARENTS[case]
    parent = scratch / "parent"
    parent.mkdir()
    spec = replace(spec_at(parent / "below" / "tree"), uid=SERVICE, gid=SERVICE)
    if below is not None:
        (parent / "below").mkdir()
        os.chown(parent / "below", below, below)
    os.chown(parent, owner, owner)
    parent.chmod(mode)
    if expected is None:
        assert inspect(spec).warnings == []
        return
    with pytest.raises(HostTreeError) as error:
        inspect(spec)
    assert any(text in str(error.value) for text in expected.format(parent=parent).split("|"))
    assert str(parent) in str(error.value) and len(str(error.value)) < 400
    assert not (parent / "below" / "tree").exists()
    warnings = inspect(replace(spec, ownership_ignore=True)).warnings
    assert len(warnings) == 1 + (below == OTHER)


@needs_root
def test_a_link_of_another_user_on_the_way_to_the_tree_is_refused(scratch: Path) -> None:
    (scratch / "real" / "tree").mkdir(parents=True)
    scratch.chmod(0o1777)
    (scratch / "link").symlink_to(scratch / "real")
    os.lchown(scratch / "link", OTHER, OTHER)
    spec = spec_at(scratch / "link" / "tree")
    with pytest.raises(HostTreeError, match="another user owns a folder or link in"):
        inspect(spec)
    os.lchown(scratch / "link", 0, 0)
    assert inspect(spec).warnings == []


@needs_root
def test_each_root_has_parents_that_are_looked_at(scratch: Path) -> None:
    (scratch / "foreign").mkdir()
    os.chown(scratch / "foreign", OTHER, OTHER)
    spec = spec_at(scratch / "tree")
    for which in ("telemetry", "profiles", "models", "huggingface"):
        elsewhere: dict[str, Any] = {which: str(scratch / "foreign" / which)}
        with pytest.raises(HostTreeError, match=f"set sgl_{which}_root to a folder"):
            inspect(replace(spec, **elsewhere))


@needs_root
@pytest.mark.parametrize(("members", "warned"), [([], False), (["another"], True)])
def test_a_parent_that_a_group_may_write_is_warned_of(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], warned: bool
) -> None:
    gid = 4711
    user = pwd.struct_passwd(("bench", "x", SERVICE, gid, "", "/", "/bin/sh"))
    monkeypatch.setattr(
        grp, "getgrgid", lambda _gid: grp.struct_group(("bench", "x", gid, members))
    )
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: user)
    os.chown(scratch, 0, gid)
    scratch.chmod(0o2775)
    warnings = inspect(spec_at(scratch / "tree")).warnings
    assert [f"members of the group {gid} can exchange the tree" in text for text in warnings] == (
        [True] if warned else []
    )


@needs_root
def test_ignore_proceeds_with_a_warning_and_leaves_foreign_ones_alone(spec: Spec) -> None:
    converge(spec)
    os.chown(spec.telemetry, 65534, 65534)
    os.chmod(spec.telemetry, 0o700)
    os.rmdir(os.path.join(spec.telemetry, "logs"))
    plan = converge(replace(spec, ownership_ignore=True))
    assert plan.create == [os.path.join(spec.telemetry, "logs")]
    assert (
        len(plan.warnings) == 1
        and f"{spec.telemetry} is owned by 65534:65534 (nobody), not {spec.uid}:{spec.gid}"
        in plan.warnings[0]
    )
    info = os.stat(spec.telemetry)
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o700, 65534)
    assert plan.result()["foreign_count"] == 1


@needs_root
def test_models_and_huggingface_are_not_walked(spec: Spec) -> None:
    converge(spec)
    for top in (spec.models, spec.huggingface):
        os.mkdir(os.path.join(top, "org"))
        os.chown(os.path.join(top, "org"), 65534, 65534)
    assert not inspect(spec).changed


@needs_root
def test_links_are_checked_themselves_and_not_followed(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "foreign").touch()
    os.chown(outside / "foreign", 65534, 65534)
    link = Path(spec.profiles, "triton", "link")
    link.symlink_to(outside)
    assert not inspect(spec).changed
    os.lchown(link, 65534, 65534)
    assert f"{link} is owned by" in refused(spec, tmp_path)


@needs_root
def test_root_makes_it_for_another_user(spec: Spec, tmp_path: Path) -> None:
    wanted = replace(spec, uid=12345, gid=23456)
    converge(wanted)
    for path in [Path(spec.root), *Path(spec.root).rglob("*")]:
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456), path
    assert tmp_path.stat().st_uid == 0
    assert not inspect(wanted).changed


@needs_root
def test_lost_and_found_of_a_mount_is_no_mismatch(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(spec, uid=12345, gid=12345)
    converge(wanted)
    os.mkdir(os.path.join(spec.profiles, "lost+found"), 0o700)
    assert "lost+found is owned by 0:0 (root)" in refused(wanted, tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == spec.profiles)
    assert not inspect(wanted).changed


def test_a_user_cannot_make_it_for_another(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    text = refused(replace(spec, uid=4343), tmp_path)
    assert "runs as 4242:" in text and "become: true" in text and "sgl_user" in text


def test_a_user_outside_the_group_is_told_so(
    spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: spec.uid or 4242)
    monkeypatch.setattr(os, "getgroups", lambda: [])
    text = refused(replace(spec, uid=os.geteuid(), gid=os.getegid() + 1), tmp_path)
    assert f"is not in group {os.getegid() + 1}" in text


@pytest.mark.parametrize("which", ["root", "telemetry", "profiles", "models", "huggingface"])
def test_a_root_that_is_a_file_or_a_dangling_link(spec: Spec, tmp_path: Path, which: str) -> None:
    path = Path(spec.roots()[which])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    text = refused(spec, tmp_path)
    assert text.startswith(f"{path} is a file, but {which}") and "move it away" in text
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    text = refused(spec, tmp_path)
    assert f"{path} is a dangling symbolic link to {tmp_path / 'nowhere'}" in text
    path.unlink()
    path.symlink_to(path)
    assert "cannot be followed" in refused(spec, tmp_path)


def test_a_parent_that_is_a_file_or_a_dangling_link(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = refused(replace(spec, models=str(tmp_path / "file/a/models")), tmp_path)
    assert text.startswith(
        f"{tmp_path / 'file'} is a file, but models_root needs a directory there"
    )
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert f"{tmp_path / 'gone'} is a dangling" in refused(
        replace(spec, models=str(tmp_path / "gone/models")), tmp_path
    )


def test_inner_directory_that_is_a_file_or_a_link(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    triton = Path(spec.profiles, "triton")
    triton.rmdir()
    triton.symlink_to(tmp_path)
    assert (
        f"{triton} is a symbolic link to {tmp_path}, which the container cannot follow"
        in refused(spec, tmp_path)
    )
    triton.unlink()
    triton.touch()
    assert f"{triton} is a file" in refused(spec, tmp_path)


def test_roots_may_be_links_to_directories(spec: Spec, tmp_path: Path) -> None:
    for name in ("root", "telemetry"):
        (tmp_path / f"real-{name}").mkdir()
        # Whatever the umask: root's own group may write there, others may not.
        (tmp_path / f"real-{name}").chmod(0o775)
    Path(spec.root).symlink_to(tmp_path / "real-root")
    (tmp_path / "real-root" / "telemetry").symlink_to(tmp_path / "real-telemetry")
    converge(spec)
    assert (tmp_path / "real-telemetry" / "logs").is_dir() and (
        tmp_path / "real-root" / "profiles" / ".locks"
    ).is_dir()
    assert not inspect(spec).changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: replace(s, root="relative/path"),
            "root 'relative/path' is not an absolute path",
        ),
        (lambda s: replace(s, root=""), "root '' is not an absolute path"),
        (lambda s: replace(s, models="/"), "models_root is the root of the filesystem"),
        (lambda s: replace(s, models=s.telemetry), "telemetry_root and models_root are both"),
        (lambda s: replace(s, models=s.profiles + "/models"), "models_root"),
        (lambda s: replace(s, uid=-1), "owner_uid -1 is not a user or group id"),
    ],
)
def test_unusable_settings(
    spec: Spec, tmp_path: Path, change: Callable[[Spec], Spec], words: str
) -> None:
    assert words in refused(change(spec), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everywhere")
def test_unreadable_and_unwritable_places_are_named(spec: Spec, tmp_path: Path) -> None:
    converge(spec)
    for path in (Path(spec.models), Path(spec.profiles, "triton")):
        path.chmod(0)
        text = refused(spec, tmp_path)
        assert str(path) in text and "chmod u+rwx" in text
        path.chmod(0o775)
    closed = tmp_path / "closed"
    closed.mkdir(0o555)
    text = refused(replace(spec, models=str(closed / "models")), tmp_path)
    assert f"may not write in {closed}" in text and "become: true" in text


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs."""


@pytest.mark.parametrize("call", ["mkdir", "open", "fchmod", "rename"])
@pytest.mark.parametrize("after", [1, 2, 7, 17])
def test_a_killed_run_is_completed_by_the_next(
    spec: Spec, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    real = getattr(os, call)
    count = 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == after:
            raise Killed
        return real(*args, **kwargs)

    plan = inspect(spec)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, dying)
        # A killed process removes nothing.
        patch.setattr(os, "rmdir", lambda *a, **k: None)
        with pytest.raises(Killed):
            apply(plan)
    converge(spec)
    root = Path(spec.root)
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == EXPECTED
    assert sorted(path.name for path in root.parent.iterdir()) == [root.name]
    assert not inspect(spec).changed


@needs_root
@pytest.mark.parametrize("folder", ["models", "telemetry", "profiles/triton", "telemetry/logs"])
def test_a_leftover_of_any_owner_is_taken_away(spec: Spec, folder: str) -> None:
    converge(spec)
    made = Path(spec.root, folder)
    shutil.rmtree(made)
    leftover = made.with_name(f".sgl-new-{made.name}.0a1b2c3d")
    leftover.mkdir(0o700)
    os.chown(leftover, 65534, 65534)
    assert inspect(spec).result()["foreign_count"] == 0
    assert str(made) in converge(spec).create
    assert made.is_dir() and not leftover.exists() and not inspect(spec).changed


@needs_root
def test_a_leftover_name_hides_nothing(spec: Spec, tmp_path: Path) -> None:
    """A directory that holds something is not a leftover, whatever its name; nor is a file."""
    converge(spec)
    os.rmdir(os.path.join(spec.profiles, "triton"))
    full = Path(spec.profiles, ".sgl-new-triton.0a1b2c3d")
    full.mkdir()
    (full / "x").touch()
    os.chown(full, 65534, 65534)
    assert f"{full} is owned by" in refused(spec, tmp_path)


def test_two_first_runs_at_once_end_in_the_same_tree(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run takes our temporary directory for a leftover, or makes the directory first."""
    converge(replace(spec, root=spec.root))
    os.rmdir(spec.models)
    plan = inspect(spec)
    real = os.open
    stolen: list[str] = []

    def stealing(path: str, flags: int, *args: object, **kwargs: int) -> int:
        if str(path).startswith(".sgl-new-") and not stolen:
            stolen.append(path)
            os.rmdir(path, dir_fd=kwargs["dir_fd"])
            os.mkdir(spec.models)
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", stealing)
        apply(plan)
    assert stolen and not inspect(spec).changed
    assert not [name for name in os.listdir(spec.root) if name.startswith(".sgl-new-")]


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_that_appears_with_contents_is_not_replaced(spec: Spec, mode: int) -> None:
    """It is taken where it is as it must be: another run made it."""
    converge(spec)
    os.rmdir(spec.models)
    plan = inspect(spec)
    os.mkdir(spec.models)
    os.chmod(spec.models, mode)
    Path(spec.models, "precious").touch()
    if mode == 0o755:
        apply(plan)
    else:
        with pytest.raises(HostTreeError, match="run again"):
            apply(plan)
    assert Path(spec.models, "precious").exists()
    assert not [name for name in os.listdir(spec.root) if name.startswith(".sgl-new-")]


def test_vanishing_entries_do_not_stop_the_walk(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prometheus compacts while we walk."""
    converge(spec)
    block = Path(spec.telemetry, "prometheus", "block")
    block.mkdir()
    real = os.scandir

    def racing(path: str) -> object:
        if path == str(block):
            block.rmdir()
        return real(path)

    monkeypatch.setattr(os, "scandir", racing)
    assert not inspect(spec).changed


def test_names_that_are_not_utf8(spec: Spec) -> None:
    converge(spec)
    os.mkdir(os.fsencode(spec.telemetry) + b"/caf\xe9")
    assert not inspect(spec).changed
    assert host_tree.printable(os.fsdecode(b"/caf\xe9")) == "/caf\\xe9"


def test_commands_are_quoted() -> None:
    assert host_tree.chown_command(1, 2, ["/a b", "/c;d"]) == "chown -R 1:2 '/a b' '/c;d'"
