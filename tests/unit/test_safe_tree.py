"""Root in a tree that another user may write: each test plays that user, as uid 65534, and
exchanges a folder or a file for a link between the moment root looks at it and the moment it acts.
"""

from __future__ import annotations

import ast
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action.sgl_model_stage import receiver
from ansible_collections.slice_bench.sglang.plugins.module_utils import _host_tree as host_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_staging as model_staging,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils import _safe_tree as safe_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import trees
from ansible_collections.slice_bench.sglang.plugins.module_utils._host_tree import (
    HostTreeError,
    Spec,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_stage import Request, Stage
from ansible_collections.slice_bench.sglang.plugins.module_utils._run_record import RecordError

from tests.doubles.model_folder import make_model

ROOT = Path(__file__).resolve().parents[2]
USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray")


@pytest.fixture
def host(scratch: Path) -> Path:
    return scratch


@pytest.fixture
def home(host: Path) -> Path:
    """What the attacker owns."""
    folder = host / "home"
    folder.mkdir()
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture
def secret(host: Path) -> Path:
    """A folder of root's, and what it must look like after each attack."""
    folder = host / "secret"
    folder.mkdir(mode=0o755)
    for name in ("config.json", "shadow", "model.safetensors"):
        (folder / name).write_text("root's")
        (folder / name).chmod(0o600)
    return folder


def looks(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    return {
        str(path): (
            path.lstat().st_uid,
            path.lstat().st_gid,
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (folder, *folder.rglob("*"))
    }


def as_user(act: Callable[[], None]) -> None:
    """Run it in a process of the attacker's, with no right of root's."""
    child = os.fork()
    if not child:
        try:
            os.seteuid(0)
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            act()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def exchange(path: Path, target: Path) -> Callable[[], None]:
    """The attack: the name leads to the target afterwards."""

    def act() -> None:
        if os.path.lexists(path):
            path.rename(path.with_name(f"{path.name}.aside"))
        path.symlink_to(target)

    return lambda: as_user(act)


def before(patch: pytest.MonkeyPatch, owner: Any, name: str, attack: Callable[[], None]) -> None:
    """The scheduler: the attack runs once, right before the named function."""
    real, pending = getattr(owner, name), [attack]

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*args, **kwargs)

    patch.setattr(owner, name, scheduled)


def own(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, USER, USER)


# --- models ---------------------------------------------------------------------------------------


def request(home: Path, origin: Path, /, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "path": str(home / "models" / "org" / "m"),
        "models_root": str(home / "models"),
        "source": "local",
        "origin": str(origin),
        "uid": USER,
        "gid": USER,
    }
    return Request(**{**values, **changes})


@pytest.fixture
def source(host: Path, home: Path) -> Path:
    (home / "models").mkdir()
    own(home)
    make_model(host / "source", 2, 4096)
    for path in (host / "source").iterdir():
        path.chmod(0o644)
    return host / "source"


STEPS = [
    "_tidy",
    "_hand_over",
    "_rename",
    "verify",
    "copy",
    "swap",
    "begin",
    "_write_state",
    "_make",
]


@needs_root
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["staging", "slug", "org"])
def test_a_folder_exchanged_while_a_model_is_staged_leads_root_nowhere(
    home: Path, source: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, step: str, place: str
) -> None:
    wanted = looks(secret)
    stage = Stage(request(home, source))
    folder = Path(stage.staging.folder)
    name = {"slug": folder, "staging": folder.parent, "org": home / "models" / "org"}[place]
    before(monkeypatch, model_staging.Staging, step, exchange(name, secret))
    try:
        stage.slice()
    except (ModelError, OSError) as error:
        assert str(error)
    assert looks(secret) == wanted
    assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_root
@pytest.mark.parametrize("place", ["slug", "staging"])
def test_a_staging_that_is_a_link_before_the_run_leads_root_nowhere(
    home: Path, source: Path, secret: Path, place: str
) -> None:
    wanted = looks(secret)
    folder = Path(Stage(request(home, source)).staging.folder)
    if place == "slug":
        as_user(lambda: folder.parent.mkdir())
    exchange(folder if place == "slug" else folder.parent, secret)()
    with pytest.raises(ModelError):
        Stage(request(home, source)).slice()
    assert looks(secret) == wanted


@needs_root
def test_records_of_a_model_that_is_verified_are_written_as_its_owner(
    home: Path, source: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = home / "models" / "org" / "m"
    Stage(request(home, source)).slice()
    (model / model_digests.RECORD).unlink()
    wanted = looks(secret)
    before(monkeypatch, model_digests, "write_json", exchange(model, secret))
    with pytest.raises((ModelError, OSError)):
        Stage(request(home, source, source="present", full=True)).slice()
    assert looks(secret) == wanted


@needs_root
@pytest.mark.parametrize("uid", [0, USER])
def test_a_link_that_leaves_the_source_is_refused_by_name(
    home: Path, source: Path, secret: Path, uid: int
) -> None:
    (source / "vocab.json").symlink_to(secret / "shadow")
    if uid == 0:
        os.chown(home / "models", 0, 0)
    with pytest.raises(ModelError, match=r"vocab\.json leads to .*shadow, which is outside"):
        Stage(request(home, source, uid=uid, gid=uid)).slice()
    assert not (home / "models" / "org" / "m").exists()


@needs_root
def test_a_file_of_the_source_that_becomes_a_link_is_not_copied(
    home: Path, source: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(source)
    for folder in (source.parent, home / "models"):
        os.chown(folder, 0, 0)
    shard = sorted(source.glob("*.safetensors"))[0]
    size, time_ns = shard.stat().st_size, shard.stat().st_mtime_ns
    # Size and time tell nothing apart.
    (secret / "shadow").write_bytes(b"s" * size)
    os.utime(secret / "shadow", ns=(time_ns, time_ns))
    before(monkeypatch, model_staging.Staging, "copy", exchange(shard, secret / "shadow"))
    with pytest.raises(ModelError, match="outside of the source"):
        Stage(request(home, source, uid=0, gid=0)).slice()


@needs_root
def test_the_hubs_cache_is_a_source(host: Path, home: Path, source: Path) -> None:
    snapshot, blobs = host / "hub" / "snapshots" / "abc", host / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert Stage(request(home, snapshot)).slice()["verified"]


@needs_root
@pytest.mark.parametrize(
    ("mode", "staged"), [(0o644, 0o644), (0o640, 0o640), (0o600, 0o600), (0o666, 0o644)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_nobody_reads_a_staged_file_who_could_not_read_the_source(
    home: Path, source: Path, mode: int, staged: int, shared: bool
) -> None:
    own(source)
    for path in source.iterdir():
        path.chmod(mode)
    if shared:
        # The group may write in the models root, so it may write to what it can read there.
        (home / "models").chmod(0o775)
        staged |= (staged & 0o040) >> 1
    Stage(request(home, source)).slice()
    for path in (home / "models" / "org" / "m").glob("*.safetensors"):
        info = path.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (staged, USER), path


@needs_root
def test_a_source_that_the_service_user_cannot_read_is_refused(home: Path, source: Path) -> None:
    (source / "config.json").chmod(0o600)
    with pytest.raises(ModelError, match=r"config\.json"):
        Stage(request(home, source)).slice()


def test_root_sends_files_from_the_controller_as_the_models_owner() -> None:
    assert receiver("/l", "root", (1000, 1001)).startswith(
        "sudo -n -u root setpriv --reuid=1000 --regid=1001 --clear-groups flock "
    )


@needs_root
def test_docker_is_called_as_root_from_within(home: Path) -> None:
    with safe_tree.acting_as(USER, USER):
        assert (os.geteuid(), os.getegid(), os.getgroups()) != (0, 0, [0])
        with safe_tree.as_before():
            assert (os.geteuid(), os.getegid()) == (0, 0)
        assert (os.geteuid(), os.getegid()) == (USER, USER)
    assert (os.geteuid(), os.getegid()) == (0, 0)


@needs_root
def test_the_service_user_cannot_signal_root_that_acts_as_it(host: Path) -> None:
    target, said = os.getpid(), host / "said"
    said.touch()
    said.chmod(0o666)

    def signal() -> None:
        try:
            os.kill(target, 0)
        except PermissionError:
            said.write_text("refused")

    with safe_tree.acting_as(USER, USER):
        as_user(signal)
    assert said.read_text() == "refused"


# --- the tree -------------------------------------------------------------------------------------


def spec(root: Path) -> Spec:
    return Spec(
        root=str(root),
        telemetry=str(root / "telemetry"),
        profiles=str(root / "profiles"),
        models=str(root / "models"),
        huggingface=str(root / "huggingface"),
        uid=USER,
        gid=USER,
    )


@needs_root
@pytest.mark.parametrize(
    "place", [".", "telemetry", "profiles", "telemetry/logs", "profiles/triton"]
)
def test_a_folder_exchanged_between_plan_and_deed_leads_root_nowhere(
    home: Path, secret: Path, place: str
) -> None:
    wanted = looks(secret)
    tree = home / "obs"
    host_tree.apply(host_tree.inspect(spec(tree)))
    # Something is left to make and to set below each place.
    for name in ("telemetry/logs", "telemetry/jaeger", "profiles/tvm_ffi", "profiles/triton"):
        if name == place:
            (tree / name).chmod(0o700)
        else:
            (tree / name).rmdir()
    (tree / "models").rmdir()
    plan = host_tree.inspect(spec(tree))
    assert plan.create and (plan.chmod or "/" not in place)
    exchange(tree / place, secret)()
    with pytest.raises(HostTreeError):
        host_tree.apply(plan)
    assert looks(secret) == wanted


@needs_root
@pytest.mark.parametrize("place", ["parent", "root", "telemetry", "models"])
def test_a_link_of_the_users_is_refused_before_anything_is_made(
    home: Path, secret: Path, place: str
) -> None:
    tree = home / "parent" / "obs"
    as_user(lambda: os.makedirs(tree))
    exchange({"parent": tree.parent, "root": tree}.get(place, tree / place), secret)()
    wanted = looks(secret)
    with pytest.raises(HostTreeError, match="symbolic link that another user can change"):
        host_tree.apply(host_tree.inspect(spec(tree)))
    assert looks(secret) == wanted


@needs_root
def test_a_telemetry_exchanged_at_its_scan_shows_nothing_of_roots(
    home: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = home / "obs"
    host_tree.apply(host_tree.inspect(spec(tree)))
    before(monkeypatch, host_tree, "_scan", exchange(tree / "telemetry", secret))
    with pytest.raises(HostTreeError) as caught:
        host_tree.inspect(spec(tree))
    assert "shadow" not in str(caught.value)


@needs_root
def test_a_link_of_roots_own_is_followed(host: Path) -> None:
    (host / "disk").mkdir()
    os.chown(host / "disk", USER, USER)
    (host / "obs").symlink_to("disk")
    host_tree.apply(host_tree.inspect(spec(host / "obs")))
    assert (host / "disk" / "telemetry").stat().st_uid == USER


@needs_root
def test_a_folder_exchanged_while_it_is_made_is_not_handed_over(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker puts a folder of a third user into the temporary one's place."""
    other = home / "other"
    other.mkdir(mode=0o700)
    os.chown(other, 12345, 12345)

    def attack() -> None:
        (made,) = home.glob(f"{safe_tree.TEMP_PREFIX}*")
        made.rename(home / "aside")
        other.rename(made)

    real = os.mkdir

    def mkdir(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        as_user(attack)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with safe_tree.folder(str(home)) as parent, pytest.raises(OSError, match="replaced the folder"):
        safe_tree.make_folder(parent, "made", USER, USER, 0o775)
    assert [path.stat().st_uid for path in home.glob(f"{safe_tree.TEMP_PREFIX}*")] in ([], [12345])


@needs_root
@pytest.mark.parametrize("levels", [1, 300])
def test_a_deep_tree_is_removed_or_refused_and_its_links_are_not_followed(
    home: Path, secret: Path, levels: int
) -> None:
    wanted = looks(secret)

    def dig() -> None:
        os.chdir(home)
        for _ in range(levels):
            os.mkdir("x")
            os.chdir("x")
        os.symlink(secret, "link")

    as_user(dig)
    with safe_tree.folder(str(home)) as parent:
        if levels < 200:
            trees.remove_tree(parent, "x")
            assert os.listdir(home) == []
        else:
            with pytest.raises(OSError, match="folders deep"):
                trees.remove_tree(parent, "x")
    assert looks(secret) == wanted


# --- records --------------------------------------------------------------------------------------

RUN = "container-run-20261123T091500Z-3fa9c1d2"


def pointer(telemetry: Path, manifest: Path) -> None:
    telemetry.mkdir(exist_ok=True)
    (telemetry / "latest_container_run.env").write_text("")
    (telemetry / run_record.places.POINTER).write_text(f"CONTAINER_RUN_META_JSON_HOST={manifest}\n")


@pytest.mark.parametrize(
    "named", ["{host}/secret/{run}.json", "{host}/home/../secret/{run}.json", "/dev/{run}.json"]
)
def test_a_manifest_outside_of_the_telemetry_is_not_opened(
    host: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    telemetry = host / "telemetry"
    pointer(telemetry, Path(named.format(host=host, run=RUN)))
    (secret / f"{RUN}.json").write_text("{}")
    with pytest.raises(RecordError, match="is not below"):
        run_record.read(str(telemetry))


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "device"])
def test_a_record_that_is_no_file_is_not_read(host: Path, secret: Path, kind: str) -> None:
    telemetry = host / "telemetry"
    manifest = telemetry / "container_runs" / f"{RUN}.json"
    pointer(telemetry, manifest)
    (secret / f"{RUN}.json").write_text(json.dumps({"secret": 1}))
    if kind == "link to a folder":
        manifest.parent.symlink_to(secret)
    else:
        manifest.parent.mkdir()
        if kind == "link":
            manifest.symlink_to(secret / f"{RUN}.json")
        elif kind == "pipe":
            os.mkfifo(manifest)
        else:
            try:
                os.mknod(manifest, stat.S_IFCHR | 0o600, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("this machine lets nobody make a device")
    with pytest.raises(RecordError, match="is not a file|does not exist"):
        run_record.read(str(telemetry))


# --- the rule -------------------------------------------------------------------------------------

# These run as root on the tree itself: nothing in them goes by path.
BY_DESCRIPTOR = ("_host_tree", "_run_record", "_safe_tree")
# These go by path, as the models' owner: their callers take those rights first.
AS_OWNER = ("_model_staging", "_model_stage", "_model_hub", "_model_digests")
ACTING = {
    "os": "chown lchown chmod mkdir makedirs rename renames replace unlink remove rmdir "
    "removedirs open link symlink truncate utime mkfifo mknod walk listdir".split()
}
PATH_METHODS = (
    "write_text write_bytes mkdir rename unlink rmdir touch chmod symlink_to hardlink_to"
    " read_text read_bytes"
).split()


def by_path(tree: ast.AST) -> list[str]:
    """The calls that act on a path: without an open folder, or by way of shutil or pathlib."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        words = ast.unparse(node.func).split(".")
        keywords = {keyword.arg for keyword in node.keywords}
        open_folder = keywords & {"dir_fd", "src_dir_fd"}
        first = ast.unparse(node.args[0]) if node.args else ""
        bad = (
            (words[0] == "os" and len(words) == 2 and words[1] in ACTING["os"] and not open_folder)
            or words[0] == "shutil"
            or (words[0] not in ("os", "safe_tree") and words[-1] in PATH_METHODS)
            or (words == ["open"] and not first.startswith(("safe_tree.open_file(", "open_file(")))
        )
        if bad:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


# An open folder is their argument, or the root of all.
ON_DESCRIPTORS = (
    "os.open('/'",
    "os.listdir(new)",
    "os.listdir(descriptor)",
    "os.listdir(inside)",
    "os.listdir(fd)",
    "os.listdir(parent_fd)",
    "os.open(path, flags | os.O_NONBLOCK",
)


@pytest.mark.parametrize("name", BY_DESCRIPTOR)
def test_what_runs_as_root_on_the_tree_goes_by_descriptor(name: str) -> None:
    tree = ast.parse((ROOT / "plugins" / "module_utils" / f"{name}.py").read_text())
    found = [
        call for call in by_path(tree) if not call.partition(": ")[2].startswith(ON_DESCRIPTORS)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "os.chown(path, 1, 1)",
        "os.mkdir(path)",
        "os.rename(a, b)",
        "open(path, 'w')",
        "shutil.rmtree(path)",
        "Path(path).write_text('')",
        "os.open(path, 0)",
    ],
)
def test_the_rule_finds_a_call_by_path(text: str) -> None:
    assert by_path(ast.parse(text))


def test_what_goes_by_path_is_reached_only_as_the_owner() -> None:
    """The modules import these for their texts and types alone; work is Stage's, which takes the
    owner's rights.
    """
    importing = {
        path.stem
        for path in (ROOT / "plugins").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        & {"_model_staging", "_model_stage", "_model_hub"}
    }
    assert importing == {"_model_hub", "_model_stage", "sgl_model_stage"}
    stage = ast.parse((ROOT / "plugins/module_utils/_model_stage.py").read_text())
    (stage_class,) = (n for n in stage.body if isinstance(n, ast.ClassDef) and n.name == "Stage")
    public = [
        method
        for method in stage_class.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
    ]
    assert {method.name for method in public} == {"plan", "slice"}
    assert all("with self._as_owner():" in ast.unparse(method) for method in public)
