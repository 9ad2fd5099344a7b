"""A model's way to its place: resumed where it stopped, verified before it gets its name, and never
half there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action import sgl_model_stage
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_digests as model_digests,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _model_staging as model_staging,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_digests import quick
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_hub import ContainerClient
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_stage import (
    Request,
    Stage,
    listed,
    listing,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_staging import (
    Staging,
    survey,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.model_folder import INDEX, contents, flip, make_model, shard_name

MIB = 1 << 20
SHARD = 3 * MIB


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_staging, "_CHUNK", MIB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_model(tmp_path / "source", 2, SHARD)
    return tmp_path / "source"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir(mode=0o755)
    return folder


def request(root: Path, source: Path | str = "", /, **options: Any) -> Request:
    given: dict[str, Any] = {
        "path": str(root / "org" / "m"),
        "models_root": str(root),
        "source": "local",
        "origin": str(source),
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
    return Request(**{**given, **options})


def stage(
    root: Path, source: Path | str = "", /, budget_s: float | None = None, **options: Any
) -> dict[str, Any]:
    return Stage(request(root, source, **options)).slice(budget_s)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable() and ": " in text
    return text


def model(root: Path) -> Path:
    return root / "org" / "m"


def staging(root: Path, name: str = "org/m") -> Staging:
    return Staging(str(root / name), str(root), os.geteuid(), os.getegid())


def nothing_left(root: Path) -> bool:
    return os.listdir(root / ".staging") == [os.path.basename(staging(root).lock)] and os.listdir(
        root / "org"
    ) == ["m"]


def test_a_model_is_copied_whole_and_once(root: Path, source: Path) -> None:
    assert Stage(request(root, source)).plan()["changed"] is True and os.listdir(root) == []
    answer = stage(root, source)
    assert (answer["changed"], answer["done"], answer["verified"], answer["recorded"]) == (
        True,
        True,
        True,
        True,
    )
    assert contents(model(root)) == contents(source) and nothing_left(root)
    for file in source.iterdir():
        copy = model(root) / file.name
        assert (
            copy.stat().st_mtime_ns == file.stat().st_mtime_ns
            and stat.S_IMODE(copy.stat().st_mode) == 0o644
        )
    assert stat.S_IMODE(model(root).stat().st_mode) == 0o755
    again = stage(root, source)
    assert again["changed"] is False and again["verified"] and again["bytes_moved"] == 0
    assert Stage(request(root, source)).plan()["changed"] is False


def test_slices_copy_each_byte_once(root: Path, source: Path) -> None:
    moved = {"reading": 0, "copying": 0, "verifying": 0, "done": 0}
    seen: list[str] = []
    while not seen or seen[-1] != "done":
        answer = stage(root, source, budget_s=0.0)
        seen.append(answer["phase"])
        moved[answer["phase"]] += answer["bytes_moved"]
        assert answer["bytes_done"] <= answer["bytes_total"] and len(seen) < 100
    total = sum(len(data) for data in contents(source).values())
    assert (
        moved["reading"] <= total and moved["copying"] + moved["verifying"] + moved["done"] <= total
    )
    assert (
        seen == sorted(seen, key=["reading", "copying", "verifying", "done"].index)
        and seen.count("copying") > 4
    )
    assert contents(model(root)) == contents(source)


def test_a_source_that_changed_begins_its_file_anew(root: Path, source: Path) -> None:
    while stage(root, source, budget_s=0.0)["phase"] != "copying":
        pass
    make_model(source, 2, SHARD, seed=1)
    assert stage(root, source)["verified"] and contents(model(root)) == contents(source)


def test_another_source_begins_anew(root: Path, source: Path, tmp_path: Path) -> None:
    while stage(root, source, budget_s=0.0)["phase"] != "copying":
        pass
    other = tmp_path / "other"
    make_model(other, 2, SHARD, seed=2)
    for file in other.iterdir():  # as like as can be without being the same
        os.utime(file, ns=(0, (source / file.name).stat().st_mtime_ns))
    text = ""
    try:
        stage(root, other)
    except ModelError as error:
        text = str(error)
    # A whole file of the other source looked finished: it is found, named and copied again.
    assert text == "" or "only these are copied" in text
    assert stage(root, other)["verified"] and contents(model(root)) == contents(other)


@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, None])
def test_without_a_copy_in_the_kernel(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    def refuse(*_: Any) -> int:
        if error is None:
            return 0
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert stage(root, source)["verified"] and contents(model(root)) == contents(source)


def test_links_to_files_are_followed_and_dangling_ones_named(
    root: Path, source: Path, tmp_path: Path
) -> None:
    (source / ".blobs").mkdir()
    for file in [path for path in source.iterdir() if path.is_file()]:
        file.rename(source / ".blobs" / file.name)
        file.symlink_to(source / ".blobs" / file.name)
    stage(root, source)
    assert not any(file.is_symlink() for file in model(root).iterdir()) and contents(
        model(root)
    ) == {name: data for name, data in contents(source).items() if not name.startswith(".blobs")}
    (source / "more.json").symlink_to("nowhere")
    assert "more.json is a dangling symbolic link" in refused(lambda: stage(root, source))
    (source / "more.json").unlink()
    os.mkfifo(source / "pipe")
    assert "pipe is no regular file" in refused(lambda: stage(root, source))


def test_unfinished_downloads_and_hidden_folders_stay_behind(root: Path, source: Path) -> None:
    for name in ("a.part", "b.incomplete", ".cache/x", ".git/config", "sub/tokenizer.model"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("x")
    stage(root, source)
    assert sorted(contents(model(root))) == sorted(
        ["config.json", "tokenizer.json", INDEX, "sub/tokenizer.model", *names()]
    )
    assert stage(root, source)["changed"] is False


def names(count: int = 2) -> list[str]:
    return [shard_name(number, count) for number in range(count)]


# --- what is refused ------------------------------------------------------------------------------


def test_source_and_model_in_one_another_are_refused(
    root: Path, source: Path, tmp_path: Path
) -> None:
    stage(root, source)
    assert "own folder" in refused(lambda: stage(root, model(root)))
    (tmp_path / "alias").symlink_to(model(root))
    assert "own folder" in refused(lambda: stage(root, tmp_path / "alias"))
    make_model(model(root) / "inner", 1, 10)
    assert "in one another" in refused(lambda: stage(root, model(root) / "inner"))
    assert "in one another" in refused(lambda: stage(source, source, path=str(source / "m")))


@pytest.mark.parametrize(
    "path", ["/elsewhere/m", "{root}", "{root}/../m", "{root}/.staging/m", "relative"]
)
def test_only_a_model_below_the_root(root: Path, source: Path, path: str) -> None:
    assert "is not below the models root" in refused(
        lambda: stage(root, source, path=path.format(root=root))
    )


def test_a_full_disk_is_seen_before_anything_is_copied(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2 * SHARD))
    text = refused(lambda: stage(root, source))
    assert str(root) in text and "GB free" in text and "GB more" in text
    assert not list((root / ".staging").rglob("*.part"))


def test_a_folder_that_is_no_model_is_not_replaced(root: Path, source: Path) -> None:
    make_model(model(root) / "inner", 1, 10)
    text = refused(lambda: stage(root, source))
    assert "would be removed" in text and (model(root) / "inner" / "config.json").exists()
    assert "would be removed" in refused(lambda: Stage(request(root, source)).plan())
    shutil.rmtree(model(root) / "inner")
    make_model(model(root), 1, 10)
    make_model(model(root) / "lora", 1, 10)
    assert f"{model(root)}/lora would be removed" in refused(lambda: stage(root, source))


def test_a_folder_that_the_container_does_not_see_is_refused_before_anything_is_copied(
    root: Path, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "org").symlink_to(tmp_path / "elsewhere")
    for call in (lambda: Stage(request(root, source)).plan(), lambda: stage(root, source)):
        assert "would not see the model" in refused(call)
    assert os.listdir(tmp_path / "elsewhere") == [] and not Path(staging(root).folder).exists()
    (root / "org").unlink()
    (root / "org").mkdir()
    model(root).symlink_to(tmp_path / "elsewhere")
    assert stage(root, source)["verified"] and not model(root).is_symlink()


def test_a_source_that_is_no_model_is_refused_before_it_is_copied(root: Path, source: Path) -> None:
    (source / names()[0]).unlink()
    assert names()[0] in refused(lambda: stage(root, source))
    assert not (root / ".staging").exists()
    assert "is not an existing folder" in refused(lambda: stage(root, source / "nowhere"))


def test_a_source_that_differs_from_its_own_record_keeps_the_old_model(
    root: Path, source: Path
) -> None:
    model_digests.verify(str(source), full=True)
    make_model(model(root), 2, 10, seed=3)
    old = contents(model(root))
    flip(source / names()[0])
    text = refused(lambda: stage(root, source))
    assert "sha256" in text and names()[0] in text and contents(model(root)) == old


def test_a_source_that_went_away_does_not_matter_to_what_was_made_from_it(
    root: Path, source: Path
) -> None:
    stage(root, source)
    shutil.rmtree(source)
    answer = stage(root, source)
    assert (
        answer["changed"] is False
        and answer["verified"]
        and "is not an existing folder" in answer["warnings"][0]
    )
    flip(model(root) / names()[0])
    client = HubClient()
    assert (
        names()[0] in refused(lambda: Stage(request(root, source), client).slice(0.0))
        and not client.started
    )


# --- repair ---------------------------------------------------------------------------------------


def test_only_the_damaged_file_is_copied_again(root: Path, source: Path) -> None:
    stage(root, source)
    inodes = {name: (model(root) / name).stat().st_ino for name in names()}
    flip(model(root) / names()[1], keep_time=True)
    answer = stage(root, source, full=True)
    assert answer["changed"] and answer["verified"] and names()[1] in answer["warnings"][0]
    # All that was asked for is read once more, as what is taken over was read before.
    total = sum(len(data) for data in contents(source).values())
    assert answer["bytes_moved"] == (source / names()[1]).stat().st_size + total
    assert (model(root) / names()[0]).stat().st_ino == inodes[names()[0]]
    assert (model(root) / names()[1]).stat().st_ino != inodes[names()[1]]
    assert contents(model(root)) == contents(source) and nothing_left(root)


def test_present_names_the_damage_and_changes_nothing(root: Path, source: Path) -> None:
    stage(root, source)
    flip(model(root) / names()[1])
    assert names()[1] in refused(lambda: Stage(request(root, "", source="present")).slice())
    assert (model(root) / names()[1]).exists()


def test_the_plan_knows_that_a_full_reading_records(root: Path, source: Path) -> None:
    stage(root, source)
    record = model(root) / model_digests.RECORD
    document = json.loads(record.read_bytes())
    del document["files"]["config.json"]
    record.write_text(json.dumps(document))
    for changed in (True, False):
        planned = Stage(request(root, "", source="present", full=True)).plan()["changed"]
        assert (planned, stage(root, "", source="present", full=True)["changed"]) == (
            changed,
            changed,
        )


def test_a_new_version_takes_over_what_is_the_same(root: Path, source: Path) -> None:
    (source / "README.md").write_text("the first version")
    stage(root, source)
    config = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 7}))
    (source / "README.md").unlink()
    answer = stage(root, source)
    assert answer["changed"] and answer["bytes_moved"] == (source / "config.json").stat().st_size
    assert contents(model(root)) == contents(source)


@pytest.mark.parametrize("budget_s", [None, 0.0])
def test_a_full_reading_finds_what_rotted_in_a_file_that_was_taken_over(
    root: Path, source: Path, budget_s: float | None
) -> None:
    stage(root, source)
    flip(model(root) / names()[0], keep_time=True)
    (source / "new.json").write_text("{}")
    answer: dict[str, Any] = {"done": False}
    for _slice in range(100):
        if not answer["done"]:
            answer = stage(root, source, full=True, budget_s=budget_s)
    assert answer["done"] and answer["verified"] and contents(model(root)) == contents(source)


def by_action(root: Path, source: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The action's answer where each slice ends as soon as it may, and the phases of the slices
    that say that they changed something.
    """
    action = object.__new__(sgl_model_stage.ActionModule)
    changes: list[str] = []

    def call(_arguments: dict[str, Any]) -> dict[str, Any]:
        answer = stage(root, source, budget_s=0.0, **options)
        changes.extend([answer["phase"]] if answer["changed"] else [])
        return {**answer, "diff": changes[-1]} if answer["changed"] else answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action, "_call", call)
        patch.setattr(action, "_task", SimpleNamespace(check_mode=False), raising=False)
        shown = sgl_model_stage.Shown(lambda _text: None)
        patch.setattr(action, "_shown", shown, raising=False)
        return action._slices({}), changes


def test_the_action_says_changed_where_a_slice_put_the_model_in_its_place(
    root: Path, source: Path
) -> None:
    answer, changes = by_action(root, source)
    assert answer["done"] and answer["changed"] and changes == ["done"]
    for full in (False, True):
        answer, changes = by_action(root, source, full=full)
        assert answer["verified"] and not answer["changed"] and changes == []
    # What is taken over is read once more, after the model has its name.
    (source / "new.json").write_text("{}")
    answer, changes = by_action(root, source, full=True)
    assert answer["verified"] and answer["changed"] and changes == ["verifying"]
    assert answer["diff"] == "verifying"
    answer, changes = by_action(root, source, full=True)
    assert answer["verified"] and not answer["changed"] and changes == []


def test_a_small_file_of_the_hub_that_was_touched_is_brought_once(root: Path, source: Path) -> None:
    data = (source / "config.json").read_bytes()
    git_name = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    noted = source / ".cache/huggingface/download/config.json.metadata"
    noted.parent.mkdir(parents=True)
    noted.write_text(f"{'c' * 40}\n{git_name}\n1.0\n")
    stage(root, source)
    os.utime(source / "config.json", (10**9, 10**9))
    assert stage(root, source)["changed"] is True
    assert stage(root, source)["changed"] is False


def test_a_model_with_a_model_of_its_own_inside_is_repaired(root: Path, source: Path) -> None:
    make_model(source / "1_Dense", 1, 1000)
    stage(root, source)
    flip(model(root) / names()[0])
    assert stage(root, source)["verified"] and contents(model(root)) == contents(source)
    make_model(model(root) / "mine", 1, 10)
    flip(model(root) / names()[0])
    assert f"{model(root)}/mine would be removed" in refused(lambda: stage(root, source))


def test_a_hidden_folder_that_the_sources_record_names_comes_too(root: Path, source: Path) -> None:
    (source / ".eval").mkdir()
    (source / ".eval" / "x.yaml").write_text("a")
    files = {name: file for name, file in contents(source).items()}
    read = {
        name: model_digests.Entry(len(data), 0, 0, hashlib.sha256(data).hexdigest(), None)
        for name, data in files.items()
    }
    model_digests.write_record(str(source), {"kind": "hub"}, read)
    assert stage(root, source)["verified"] and contents(model(root)) == files
    assert stage(root, source)["changed"] is False
    (source / ".eval" / "x.yaml").unlink()
    assert "lacks 1 of 6 files: .eval/x.yaml" in refused(lambda: stage(root, source))


# --- the tiny model -------------------------------------------------------------------------------


def test_the_tiny_model_is_made_whole_and_once(root: Path) -> None:
    planned = Stage(request(root, source="tiny")).plan()
    assert planned["changed"] and os.listdir(root) == []
    made = stage(root, source="tiny")
    assert made["changed"] and made["verified"]
    assert made["model"]["architecture"] == "Qwen3ForCausalLM"
    assert contents(model(root)) == tiny_model.files() and nothing_left(root)
    assert {file.stat().st_mode & 0o777 for file in model(root).iterdir()} == {0o644}
    again = stage(root, source="tiny")
    assert again["verified"] and not again["changed"]
    assert not Stage(request(root, source="tiny")).plan()["changed"]


def test_a_damaged_tiny_model_is_made_again(root: Path) -> None:
    stage(root, source="tiny")
    for damaged in tiny_model.files():
        (model(root) / damaged).write_bytes(b"damaged")
        assert stage(root, source="tiny")["changed"]
        assert contents(model(root)) == tiny_model.files()


def test_the_tiny_model_takes_no_other_models_place(root: Path, source: Path) -> None:
    stage(root, source)
    before = contents(model(root))
    for run in (Stage(request(root, source="tiny")).plan, lambda: stage(root, source="tiny")):
        assert "is no tiny model and is not overwritten: set sgl_model to" in refused(run)
    assert contents(model(root)) == before


# --- killed ---------------------------------------------------------------------------------------

CALLS = [
    "rename",
    "fsync",
    "unlink",
    "utime",
    "link",
    "copy_file_range",
    "fchmod",
    "rmdir",
    "mkdir",
]


class Killed(BaseException):
    """The process is gone: what would run after it does not."""


def killed_at(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, run: Callable[[], Any]
) -> bool:
    """Run, and at the numberth such call end at once; from there on no call of the process does
    anything. Whether it came so far.
    """
    count, dead = 0, False
    with monkeypatch.context() as patch:

        def wrap(name: str) -> None:
            real = getattr(os, name)

            def called(*arguments: Any, **options: Any) -> Any:
                nonlocal count, dead
                if name == call and not dead:
                    count += 1
                    dead = count == number
                if dead:
                    raise Killed
                return real(*arguments, **options)

            patch.setattr(os, name, called)

        real_exchange = model_staging.exchange

        def exchange(one: str, other: str) -> None:
            nonlocal count, dead
            if call == "exchange" and not dead:
                count += 1
                if count == number:
                    if number % 2 == 0:
                        real_exchange(one, other)
                    dead = True
                    raise Killed
            if dead:
                raise Killed
            real_exchange(one, other)

        for name in CALLS:
            wrap(name)
        patch.setattr(model_staging, "exchange", exchange)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.slow
@settings(max_examples=60)
@given(
    call=st.sampled_from([*CALLS, "exchange"]),
    number=st.integers(1, 30),
    has_old=st.booleans(),
    no_exchange=st.booleans(),
    made_here=st.booleans(),
)
def test_killed_anywhere_the_name_holds_one_whole_model(
    tmp_path_factory: pytest.TempPathFactory,
    call: str,
    number: int,
    has_old: bool,
    no_exchange: bool,
    made_here: bool,
) -> None:
    base = tmp_path_factory.mktemp("killed")
    root, source = base / "models", base / "source"
    root.mkdir(mode=0o755)
    make_model(source, 2, 10_000)
    old: dict[str, bytes] = {}
    if has_old and made_here:
        stage(root, source="tiny")
        (model(root) / "config.json").write_bytes(b"damaged")
        old = contents(model(root))
    elif has_old:
        make_model(base / "before", 2, 10_000, seed=5)
        stage(root, base / "before")
        old = contents(model(root))

    def bring() -> dict[str, Any]:
        return stage(root, source="tiny") if made_here else stage(root, source)

    new = tiny_model.files() if made_here else contents(source)
    with pytest.MonkeyPatch.context() as patch:
        if no_exchange:

            def refuse(*_: Any) -> None:
                raise OSError(errno.EINVAL, "no exchange here")

            patch.setattr(model_staging, "exchange", refuse)
        killed_at(patch, call, number, bring)
        found = contents(model(root)) if model(root).exists() else {}
        # Without the exchange there is a moment with no model, which the next run puts right.
        assert found in ([old, new] if not no_exchange else [old, new, {}])
        answer = bring()
    assert answer["done"] and answer["verified"] and contents(model(root)) == new
    assert quick(str(model(root))).verified and nothing_left(root)
    shutil.rmtree(base)


def test_killed_while_it_copies_it_goes_on(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed_at(monkeypatch, "copy_file_range", 8, lambda: stage(root, source))
    moved = stage(root, source)["bytes_moved"]
    total = sum(len(data) for data in contents(source).values())
    assert total - 6 * MIB < moved < total - 5 * MIB and contents(model(root)) == contents(source)


def test_a_leftover_behind_a_finished_model_goes(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(model(root), 1, 10, seed=4)
    assert killed_at(monkeypatch, "exchange", 2, lambda: None) is False
    place = Path(staging(root).folder)
    monkeypatch.setattr(
        model_staging,
        "_remove",
        lambda path: (_ for _ in ()).throw(Killed()) if path == str(place) else None,
    )
    with pytest.raises(Killed):
        stage(root, source)
    monkeypatch.undo()
    assert place.exists() and contents(model(root)) == contents(source)
    assert stage(root, source)["changed"] is False and nothing_left(root)


# --- two runs -------------------------------------------------------------------------------------


def test_another_run_is_named_or_waited_for(root: Path, source: Path) -> None:
    with staging(root).alone(0.0) as mine:
        assert mine
        assert f"is staged by another run (pid {os.getpid()} of uid {os.geteuid()} (" in refused(
            lambda: stage(root, source)
        )
        answer = stage(root, source, budget_s=0.0)
        assert (answer["phase"], answer["changed"]) == ("waiting", False)
    assert stage(root, source)["done"]


class HubClient(ContainerClient):
    """A client that goes on when its run is gone, with the folder itself in its hands, as a
    container has it by its mount.
    """

    def __init__(self) -> None:
        self.is_running = False
        self.folder = -1
        self.started = 0

    def running(self) -> bool:
        return self.is_running

    def start(self, folder: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.is_running, self.folder = True, os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.started += 1

    def stop(self) -> None:
        self.is_running = False

    def write(self, name: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self.folder)
        os.close(fd)


def from_hub(root: Path, client: HubClient, **options: Any) -> dict[str, Any]:
    return Stage(request(root, "org/m", source="hub", **options), client).slice(0.0)


def test_a_run_that_goes_on_needs_no_space_to_say_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client says best what a full disk is to a download, or it needs no more."""
    client = HubClient()
    from_hub(root, client, run="1")
    state = Path(staging(root).folder) / model_digests.STATE
    os.utime(state, (0, 0))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model_digests, "write_json", full)
    assert from_hub(root, client, run="1")["phase"] == "downloading"
    assert state.stat().st_mtime > time.time() - 60
    # Who brings the files has to be written.
    assert "free space there" in refused(lambda: from_hub(root, client, run="2"))


def test_a_client_of_the_hub_that_outlives_its_run_writes_into_nothing(
    root: Path, source: Path
) -> None:
    client = HubClient()
    assert from_hub(root, client)["phase"] == "downloading" and client.running()
    assert Stage(request(root, source), client).slice()["verified"] and not client.running()
    with pytest.raises(FileNotFoundError):
        client.write(names()[0])
    assert contents(model(root)) == contents(source) and nothing_left(root)


def test_a_client_of_the_hub_that_cannot_be_ended_writes_into_nothing_either(
    root: Path, source: Path
) -> None:
    client = HubClient()
    from_hub(root, client)
    assert stage(root, source)["verified"] and client.running()
    with pytest.raises(FileNotFoundError):
        client.write(names()[0])
    assert contents(model(root)) == contents(source)
    shutil.rmtree(model(root))
    assert from_hub(root, client)["phase"] == "downloading" and client.started == 2, (
        "the stray one is replaced"
    )


def test_a_leftover_of_the_hub_behind_a_finished_model_goes_with_its_client(
    root: Path, source: Path
) -> None:
    stage(root, source)
    client = HubClient()
    from_hub(root, client)
    assert Stage(request(root, source), client).slice()["changed"] is False
    assert not client.running() and nothing_left(root)


def test_what_a_stray_writer_hinders_goes_with_the_next_run(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub(root, HubClient())
    monkeypatch.setattr(shutil, "rmtree", lambda _path, ignore_errors=False: None)
    assert stage(root, source)["verified"] and not nothing_left(root)
    monkeypatch.undo()
    with staging(root).alone(0.0):
        assert nothing_left(root)


def test_another_source_is_refused_while_a_run_goes_on(
    root: Path, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_model(other, 2, SHARD, seed=2)
    while stage(root, source, budget_s=0.0, run="1")["phase"] != "copying":
        pass
    place = Path(staging(root).folder)
    assert "another run stages" in refused(lambda: stage(root, other, run="2"))
    begun = place.stat().st_ino
    assert (
        stage(root, source, budget_s=0.0, run="3")["phase"] in ("copying", "verifying")
        and place.stat().st_ino == begun
    )
    # A run that was killed long ago holds up no other.
    for path in (place, place / model_digests.STATE):
        os.utime(path, (0, 0))
    assert stage(root, other, run="2")["verified"] and contents(model(root)) == contents(other)


def test_a_run_that_failed_holds_up_nobody(root: Path, source: Path, tmp_path: Path) -> None:
    model_digests.verify(str(source), full=True)
    flip(source / names()[0])
    assert "sha256" in refused(lambda: stage(root, source, run="1"))
    make_model(tmp_path / "other", 2, SHARD, seed=2)
    assert stage(root, tmp_path / "other", run="2")["verified"]


def test_a_run_that_waited_does_not_stage_the_finished_model_again(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Staging.alone

    def late(self: Staging, wait_s: float) -> Any:
        monkeypatch.undo()
        stage(root, source)
        return alone(self, wait_s)

    monkeypatch.setattr(Staging, "alone", late)
    answer = stage(root, source)
    assert (
        answer["verified"]
        and (answer["changed"], answer["bytes_moved"]) == (False, 0)
        and nothing_left(root)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("m", "m.old"), ("m", "m.lock"), ("a/b", "a--b"), ("m", "old.m"), ("m", "lock.m")],
)
def test_the_stagings_of_two_models_do_not_meet(
    root: Path, source: Path, tmp_path: Path, one: str, other: str
) -> None:
    half = tmp_path / "half"
    make_model(half, 2, SHARD, seed=6)
    for begun, last in ((one, other), (other, one)):
        while stage(root, half, path=str(root / begun), budget_s=0.0)["phase"] != "copying":
            pass
        assert (
            stage(root, source, path=str(root / last))["verified"] and not (root / begun).exists()
        )
        assert stage(root, half, path=str(root / begun))["verified"] and contents(
            root / begun
        ) == contents(half)
        shutil.rmtree(root / one)
        shutil.rmtree(root / other)


# --- from the controller --------------------------------------------------------------------------


def sent(root: Path, source: Path, /, **options: Any) -> dict[str, Any]:
    """The steps of the action plugin, with a plain copy for rsync."""
    _slice, files = model_staging.read_source(
        str(source), survey(str(source)), str(root.parent / "memo.json")
    )
    manifest: dict[str, Any] = {"source": "staged", "manifest": listing(files), **options}
    answer = stage(root, source, prepare=True, **manifest)
    if answer["phase"] == "sending":
        for name in answer["missing"]:
            shutil.copy2(source / name, Path(answer["staging"]) / name)
        answer = {**stage(root, source, **manifest), "sent": answer["missing"]}
    return answer


def test_what_the_controller_sent_is_verified_and_swapped_in(root: Path, source: Path) -> None:
    answer = sent(root, source)
    assert answer["verified"] and contents(model(root)) == contents(source) and nothing_left(root)
    assert sent(root, source)["changed"] is False
    flip(model(root) / names()[0])
    answer = sent(root, source)
    assert answer["sent"] == [names()[0]] and answer["verified"]


def test_the_space_is_looked_at_once_it_is_known_what_is_missing(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(root, source)
    flip(model(root) / names()[0])
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2 * SHARD))
    undigested: dict[str, Any] = {
        "source": "staged",
        "manifest": listing(survey(str(source))),
        "prepare": True,
    }
    assert stage(root, source, **undigested)["phase"] == "sending"
    assert sent(root, source)["sent"] == [names()[0]]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=SHARD // 2))
    flip(model(root) / names()[0])
    assert "GB free" in refused(lambda: sent(root, source))


def test_what_did_not_arrive_whole_is_named(root: Path, source: Path) -> None:
    _slice, files = model_staging.read_source(
        str(source), survey(str(source)), str(root.parent / "memo.json")
    )
    manifest: dict[str, Any] = {"source": "staged", "manifest": listing(files)}
    place = Path(stage(root, source, prepare=True, **manifest)["staging"])
    for file in source.iterdir():
        shutil.copy2(file, place / file.name)
    flip(place / names()[0], keep_time=True)
    assert names()[0] in refused(lambda: stage(root, source, **manifest))
    assert not (place / names()[0]).exists() and not model(root).exists()
    assert f"5 files: {names()[0]} did not arrive" in refused(
        lambda: stage(root, source, **manifest)
    )


@given(
    st.dictionaries(
        st.text(max_size=5) | st.just("../x"),
        st.none() | st.dictionaries(st.sampled_from(["size", "mtime_ns", "sha256"]), st.integers()),
        max_size=3,
    )
)
def test_a_manifest_is_read_or_refused(manifest: dict[str, Any]) -> None:
    try:
        files = listed(manifest)
    except ModelError as error:
        assert str(error).isprintable()
        return
    assert listing(files) == manifest
