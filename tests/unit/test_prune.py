"""What a prune removes and what it leaves: by age and number, whole or not at all, and nothing that
is in use.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _uninstall
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import (
    places,
    pruning,
    records,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import NAME_LABEL
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerError
from ansible_collections.slice_bench.sglang.plugins.module_utils._prune import Outside
from ansible_collections.slice_bench.sglang.plugins.module_utils._uninstall import Uninstall

from sgl_admin.base import paths
from sgl_admin.commands import main as cli
from sgl_admin.records import caches as cache_records

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))

NOW = 1_795_000_000.0
DAY = 86400


class Site:
    """A host tree with runs, a day apart and the oldest first, and caches."""

    def __init__(self, top: Path) -> None:
        self.telemetry, self.profiles = top / "telemetry", top / "profiles"
        for folder in places.TELEMETRY_FOLDERS:
            (self.telemetry / folder).mkdir(parents=True)
        for folder in places.PROFILES_FOLDERS:
            (self.profiles / folder).mkdir(parents=True)
        self.runs: list[str] = []

    def parts(self, run_id: str) -> list[Path]:
        top = self.telemetry
        return [
            top / places.RUNS / f"{run_id}.json",
            top / places.RUNS / run_id / "stages" / "inductor.json",
            top / places.LOGS / f"{run_id}.log",
            top / places.PROMETHEUS / run_id / "lock",
            top / places.PROMETHEUS / run_id / "wal" / "00000001",
            top / places.JAEGER / run_id / "key" / "MANIFEST",
        ]

    def add_runs(self, number: int) -> None:
        for day in range(len(self.runs), len(self.runs) + number):
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(NOW - (1000 - day) * DAY))
            run_id = f"container-run-{stamp}-{day:08x}"
            for part in self.parts(run_id):
                part.parent.mkdir(parents=True, exist_ok=True)
                part.write_text("x" * 5000)
            self.runs.append(run_id)

    def point(self, run_id: str) -> None:
        text = records.pointer_text(self.telemetry / places.RUNS / f"{run_id}.json", "/x")
        (self.telemetry / places.POINTER).write_text(text)

    def cache(self, name: str, days: float, *names: str, stage: str = "inductor") -> Path:
        """A signature's record that was written so many days ago, with its files."""
        for each in names:
            path = self.profiles / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("k" * 9000)
            os.utime(path, (NOW - days * DAY,) * 2)
        folder = self.profiles / names[0].split("/")[0] / places.SIGNATURES
        folder.mkdir(exist_ok=True)
        record = folder / f"{stage}-{name}.json"
        listed = dict.fromkeys(names, 9000)
        record.write_text(json.dumps({"signature": {}, "summary": {}, "files": listed}))
        os.utime(record, (NOW - days * DAY,) * 2)
        return record

    def prune(self, dry_run: bool = False, live: tuple[str, ...] = (), **keep: int) -> Any:
        with ExitStack() as stack:
            opened = []
            for top in (self.telemetry, self.profiles):
                opened.append(os.open(top, os.O_RDONLY))
                stack.callback(os.close, opened[-1])
            tree = pruning.Tree(opened[0], opened[1], pruning.bounds(keep), NOW)
            return tree.prune(dry_run, live).to_json()

    def there(self) -> list[str]:
        """The runs that are whole; raises AssertionError where a part of one is left."""
        whole = []
        for run_id in self.runs:
            found = {part.exists() for part in self.parts(run_id)}
            assert len(found) == 1, f"a part of {run_id} is left"
            whole += [run_id] * found.pop()
        return whole

    def state(self) -> dict[str, Any]:
        top = self.telemetry.parent
        return {
            str(path.relative_to(top)): path.lstat().st_mtime_ns for path in sorted(top.rglob("*"))
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "tree")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- runs -----------------------------------------------------------------------------------------


def test_the_newest_runs_stay(site: Site) -> None:
    site.add_runs(12)
    foretold = site.prune(dry_run=True, runs=5)
    assert len(site.there()) == 12
    done = site.prune(runs=5)
    assert foretold == done and done["freed"]["runs"]["count"] == 7
    assert done["bytes"] == done["freed"]["runs"]["bytes"] > 7 * 6 * 5000
    assert site.there() == site.runs[-5:]
    assert not (site.telemetry / pruning.ASIDE).exists()
    assert site.prune(runs=5) == {"freed": {}, "bytes": 0, "kept": []}


Hold = Callable[[Site, str], Any]
HOLDS: dict[str, Hold] = {
    "prometheus": lambda site, run: locked(site.telemetry / places.PROMETHEUS / run / "lock"),
    "jaeger's keys": lambda site, run: locked(site.telemetry / places.JAEGER / run / "key"),
    "jaeger's values": lambda site, run: locked(_made(site, run)),
}


def _made(site: Site, run: str) -> Path:
    folder = site.telemetry / places.JAEGER / run / "data"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", HOLDS)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_run_whose_services_hold_a_lock_stays(site: Site, name: str, dry_run: bool) -> None:
    site.add_runs(6)
    with HOLDS[name](site, site.runs[1]):
        done = site.prune(dry_run, runs=2)
    assert done["kept"] == [f"{site.runs[1]} stays: one of its services runs"]
    assert done["freed"]["runs"]["count"] == 3
    if not dry_run:
        assert site.there() == [site.runs[1], *site.runs[-2:]]


def test_the_run_that_the_pointer_names_stays_and_so_does_the_containers_own(site: Site) -> None:
    site.add_runs(6)
    site.point(site.runs[0])
    done = site.prune(live=(site.runs[2],), runs=1)
    assert site.there() == [site.runs[0], site.runs[2], site.runs[5]]
    assert len(done["kept"]) == 2 and all("it is the live run" in line for line in done["kept"])


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\xff" * 9, None])
def test_where_the_pointer_cannot_be_read_every_run_stays(
    site: Site, content: bytes | None
) -> None:
    site.add_runs(4)
    pointer = site.telemetry / places.POINTER
    if content is None:
        pointer.symlink_to("/etc/hostname")
    else:
        pointer.write_bytes(content)
    done = site.prune(runs=1)
    assert len(site.there()) == 4 and done["freed"] == {}
    assert "3 runs beyond the bound stay: the pointer" in done["kept"][0]


@pytest.mark.parametrize("name", places.RUN_LOCKS)
def test_without_a_pointer_a_lock_keeps_every_run(site: Site, name: str) -> None:
    site.add_runs(4)
    with locked(site.profiles / places.LOCKS / f"{name}.lock"):
        assert site.prune(runs=1)["freed"] == {}
    assert len(site.there()) == 4


def test_what_is_not_ours_stays(site: Site, tmp_path: Path) -> None:
    site.add_runs(3)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    theirs = [
        site.telemetry / "notes.txt",
        site.telemetry / places.LOGS / "my.log",
        site.telemetry / places.RUNS / "container-run-mine.json",
    ]
    for path in theirs:
        path.write_text("theirs")
    # The service user may have put a link in a run's place.
    link = site.telemetry / places.PROMETHEUS / site.runs[0] / "wal" / "link"
    link.symlink_to(outside)
    site.prune(runs=1)
    assert all(path.exists() for path in theirs) and (outside / "file").read_text() == "theirs"
    assert not link.parent.exists()


def test_a_folder_of_the_tree_that_is_a_link_is_not_followed(site: Site, tmp_path: Path) -> None:
    site.add_runs(3)
    moved = tmp_path / "moved"
    (site.telemetry / places.LOGS).rename(moved)
    (site.telemetry / places.LOGS).symlink_to(moved)
    with pytest.raises(OSError, match="Not a directory|Too many levels"):
        site.prune(runs=1)
    assert len(list(moved.iterdir())) == 3


def test_a_link_that_takes_a_folders_place_between_two_looks_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service exchanges it while it is counted and removed, at each call that names it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x" * 10**6)
    left = 0

    def exchanging(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *words: Any, **named: Any) -> Any:
            nonlocal left
            if path == "wal":
                left -= 1
                if left == 0:
                    folder = named["dir_fd"]
                    os.rename("wal", "moved", src_dir_fd=folder, dst_dir_fd=folder)
                    os.symlink(outside, "wal", dir_fd=folder)
            return real(path, *words, **named)

        return call

    turns = 0
    while left <= 0:
        turns += 1
        left = turns
        site = Site(tmp_path / f"tree {turns}")
        site.add_runs(2)
        with monkeypatch.context() as patched:
            for name in ("stat", "open", "rmdir"):
                patched.setattr(os, name, exchanging(getattr(os, name)))
            first = site.prune(runs=1)
        assert "is not removed" in str(first["kept"]) or first["freed"]["runs"]["count"] == 1
        second = site.prune(runs=1)
        assert site.there() == site.runs[1:] and second["kept"] == []
        assert max(first["bytes"], second["bytes"]) < 10**6
        assert not (site.telemetry / pruning.ASIDE).exists()
        assert (outside / "file").stat().st_size == 10**6
    assert turns > 4, "it was looked at, opened and removed"


def test_another_prune_is_waited_for_by_the_user(site: Site) -> None:
    site.add_runs(3)
    with (
        locked(site.profiles / places.LOCKS / "prune.lock"),
        pytest.raises(pruning.PruneError, match="another prune runs on this host"),
    ):
        site.prune(runs=1)


# --- caches and journals --------------------------------------------------------------------------


def test_caches_that_nothing_used_for_long_go_with_their_records(site: Site) -> None:
    old = site.cache("0" * 16, 100, "torchinductor/a/x.so", "triton/a/shared.cubin")
    new = site.cache("1" * 16, 10, "torchinductor/b/y.so", "triton/a/shared.cubin")
    os.utime(site.profiles / "triton/a/shared.cubin", (NOW - 100 * DAY,) * 2)
    tuned = site.cache("2" * 16, 500, "moe_configs/configs/E=8.json", stage="moe_tune")
    foretold = site.prune(dry_run=True)
    assert old.exists()
    done = site.prune()
    assert foretold == done and done["freed"] == {"caches": {"count": 1, "bytes": 12288}}
    assert not old.exists() and new.exists() and tuned.exists()
    assert not (site.profiles / "torchinductor/a").exists()
    assert (site.profiles / "triton/a/shared.cubin").exists(), "another record names it"
    assert (site.profiles / "moe_configs/configs/E=8.json").exists(), "it costs hours"
    assert not (site.profiles / pruning.ASIDE).exists()


def test_what_a_prep_or_a_server_used_lately_stays(site: Site) -> None:
    old = site.cache("0" * 16, 100, "torchinductor/a/x.so")
    old.with_suffix(places.USED).touch()
    assert site.prune()["freed"] == {} and old.exists()


def test_a_file_that_was_written_since_stays(site: Site) -> None:
    site.cache("0" * 16, 100, "torchinductor/a/x.so", "torchinductor/a/y.so")
    os.utime(site.profiles / "torchinductor/a/y.so", (NOW, NOW))
    assert site.prune()["freed"]["caches"]["count"] == 1
    assert (site.profiles / "torchinductor/a/y.so").exists()


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("name", ["prep", "serving", "server", "smoke", "inductor"])
def test_while_any_lock_is_held_caches_and_journals_stay(
    site: Site, name: str, dry_run: bool
) -> None:
    old = site.cache("0" * 16, 100, "torchinductor/a/x.so")
    with locked(site.profiles / places.LOCKS / f"{name}.lock"):
        done = site.prune(dry_run)
    assert done["freed"] == {} and old.exists()
    assert done["kept"] == [
        f"caches and tuning journals stay: the lock {name}.lock is held, so they are in use"
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 1}', "[" * 100_000])
def test_where_a_record_cannot_be_read_all_caches_stay(site: Site, content: str) -> None:
    old = site.cache("0" * 16, 100, "torchinductor/a/x.so")
    site.cache("1" * 16, 1, "triton/a/x").write_text(content)
    done = site.prune()
    assert done["freed"] == {} and old.exists() and "cannot be read" in done["kept"][0]


@pytest.mark.parametrize(
    "name",
    ["../telemetry/x", "torchinductor/../../x", "/etc/x", "", "x", "models/m/x", "triton//x"],
)
def test_a_record_reaches_nothing_outside_of_the_caches(site: Site, name: str) -> None:
    record = site.cache("0" * 16, 100, "torchinductor/a/x.so")
    record.write_text(json.dumps({"files": {name: 1}}))
    os.utime(record, (NOW - 100 * DAY,) * 2)
    before = {path for path in site.state() if "signatures" not in path}
    assert site.prune()["freed"] == {}
    assert before <= set(site.state())


def test_journals_of_old_tunings_go(site: Site) -> None:
    work = site.profiles / places.MOE_CONFIGS / places.TUNING
    for name, days in (("old", 40), ("new", 3)):
        (work / name).mkdir(parents=True)
        (work / name / "journal.jsonl").write_text("{}\n")
        os.utime(work / name / "journal.jsonl", (NOW - days * DAY,) * 2)
        os.utime(work / name, (NOW - 50 * DAY,) * 2)
    assert site.prune()["freed"]["journals"]["count"] == 1
    assert [path.name for path in work.iterdir()] == ["new"]


# --- killed anywhere ------------------------------------------------------------------------------


class Killed(BaseException):
    """In place of SIGKILL, before a call that would change the disk."""


@pytest.mark.slow
def test_a_prune_that_is_killed_anywhere_leaves_whole_records(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*words, **named)

        return call

    def fresh(name: str) -> Site:
        made = Site(tmp_path / name)
        made.add_runs(3)
        made.cache("0" * 16, 100, "torchinductor/a/x.so", "torchinductor/b/y.so")
        made.cache("1" * 16, 1, "torchinductor/c/z.so")
        return made

    deaths = 0
    for number in range(200):
        made = fresh(str(number))
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            left[0] = number
            try:
                made.prune(runs=1)
                break
            except Killed:
                deaths += 1
        for run_id in made.runs:
            manifest, *parts = made.parts(run_id)
            assert not manifest.exists() or all(part.exists() for part in parts)
        for record in made.profiles.glob("*/.signatures/*.json"):
            listed = json.loads(record.read_text())["files"]
            assert all((made.profiles / name).exists() for name in listed)
        made.prune(runs=1)
        assert made.there() == made.runs[-1:]
        rest = [path for path in made.profiles.rglob("*.so")]
        assert [path.name for path in rest] == ["z.so"]
        assert not list(made.telemetry.parent.rglob(pruning.ASIDE))
    assert deaths > 20


# --- a year ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_year_comes_back_to_its_bound_and_nothing_live_is_touched(
    site: Site, tmp_path: Path
) -> None:
    site.add_runs(400)
    site.point(site.runs[398])
    for day in range(0, 360, 4):
        site.cache(f"{day:016x}", day, *(f"torchinductor/{day}/{n}.so" for n in range(20)))
    reports = tmp_path / "reports"
    reports.mkdir()
    for number in range(1000):
        for ending in ("html", "json", "json.minisig"):
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(NOW - number * 3600))
            (reports / f"report-{stamp}-{number:08x}.{ending}").write_text("r")
    (reports / "mine.html").write_text("theirs")
    with locked(site.telemetry / places.PROMETHEUS / site.runs[7] / "lock"):
        done = site.prune()
    assert done["freed"]["runs"]["count"] == 400 - 30 - 1
    assert site.there() == [site.runs[7], *site.runs[-30:]]
    # A day of the bound is still in it.
    stay = [day for day in range(0, 360, 4) if day <= 90]
    assert {int(path.name) for path in site.profiles.glob("torchinductor/[0-9]*")} == set(stay)
    assert done["freed"]["caches"]["count"] == (90 - len(stay)) * 20
    outside = Outside(pruning.bounds({}), NOW, dry_run=False)
    outside.reports(str(reports))
    assert outside.summary.of("reports").count == 3 * (1000 - 200)
    assert len(list(reports.iterdir())) == 601 and (reports / "mine.html").exists()
    assert site.prune()["freed"]["runs"]["count"] == 1, "the service has ended"
    assert site.prune() == {"freed": {}, "bytes": 0, "kept": []}


# --- outside of the tree --------------------------------------------------------------------------


def test_shared_archives_that_were_not_used_for_long_go(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    record = {"digest": "sha256:1", "sha256": "1", "bytes": 1, "finished": True}
    for name, days in (("old", 100), ("new", 5)):
        for path, text in (
            (folder / f"{name}.tar", "x"),
            (folder / f"{name}.json", json.dumps(record)),
        ):
            path.write_text(text)
            os.utime(path, (NOW - days * DAY,) * 2)
    theirs = [folder / "backup.tar", folder / "backup.json"]
    for path in theirs:
        path.write_text("{}")
        os.utime(path, (NOW - 900 * DAY,) * 2)
    for dry_run in (True, False):
        outside = Outside(pruning.bounds({}), NOW, dry_run)
        outside.shared(str(folder))
        assert outside.summary.of("shared").count == 1
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"new.tar", "new.json", "backup.tar", "backup.json"}
    with locked(folder / ".lock"):
        outside = Outside(pruning.bounds({"shared": 0}), NOW, dry_run=False)
        outside.shared(str(folder))
    assert outside.summary.to_json()["freed"] == {} and "stay:" in outside.summary.kept[0]


def test_downloads_for_builds_go_and_a_folder_of_another_name_stays(tmp_path: Path) -> None:
    names = [
        "wheelhouse-0123456789abcdef",
        "programs/0123456789abcdef",
        "sums/a.sha256",
        "caches/x",
    ]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        os.utime(tmp_path / name, (NOW - 100 * DAY,) * 2)
    outside = Outside(pruning.bounds({}), NOW, dry_run=False)
    outside.builds(str(tmp_path))
    assert outside.summary.of("builds").count == 3
    assert (tmp_path / "caches/x").exists()


class Images:
    """Stands for Docker's client: images with a label of ours, by what `docker image inspect` and
    `docker system df` of 28.2 print.
    """

    def __init__(self, images: dict[str, list[str]], used: tuple[str, ...] = ()) -> None:
        self.images, self.used = images, used
        self.removed: list[str] = []

    def call(self, *words: str) -> str:
        if words[:2] == ("image", "rm"):
            if "sha256:busy" in words:
                raise DockerError("conflict: image is being used")
            self.removed += words[2:]
            return ""
        if words[0] == "ps":
            return "c1 sglang-dev\n" if self.used else ""
        if words[0] == "container":
            return "\n".join(self.used)
        if words[0] == "system":
            sizes = [{"ID": name, "UniqueSize": "2.255MB"} for name in self.images]
            return json.dumps(sizes)
        return "\n".join(self.images)

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        number = list(self.images).index(name)
        built_for = "lab/other:1" if "other" in name else "sglang-dev:gh200"
        return {
            "Id": name,
            "Created": f"2026-11-{30 - number:02}",
            "RepoTags": self.images[name],
            "Config": {"Labels": {} if "unlabelled" in name else {NAME_LABEL: built_for}},
        }

    def image(self, name: str) -> dict[str, Any] | None:
        return next(({"id": key} for key, tags in self.images.items() if name in tags), None)


def test_old_images_of_ours_go_and_no_other(tmp_path: Path) -> None:
    docker = Images(
        {
            "sha256:current": ["sglang-dev:gh200"],
            "sha256:kept1": [],
            "sha256:kept2": [],
            "sha256:old": ["<none>:<none>"],
            "sha256:older": ["sglang-dev:before"],
            "sha256:theirs": ["lab/serve:1"],
            "sha256:both": ["sglang-dev:x", "lab/serve:2"],
            "sha256:used": [],
            "sha256:busy": [],
            # They had the name of another installation's image, or an earlier release built them.
            "sha256:other": [],
            "sha256:unlabelled": [],
        },
        used=("sha256:used",),
    )
    foretold = Outside(pruning.bounds({}), NOW, dry_run=True)
    foretold.images(docker, "sglang-dev:gh200")  # type: ignore[arg-type]
    assert docker.removed == [] and foretold.summary.of("images").count == 3
    foretold.images(docker, "sglang-dev:gh200", every=True, container="sglang-dev")  # type: ignore[arg-type]
    assert foretold.summary.of("images").count == 3 + 7, "that container is gone by then"
    outside = Outside(pruning.bounds({}), NOW, dry_run=False)
    outside.images(docker, "sglang-dev:gh200")  # type: ignore[arg-type]
    assert docker.removed == ["sha256:old", "sglang-dev:before"]
    assert outside.summary.to_json()["freed"]["images"] == {"count": 2, "bytes": 2 * 2_255_000}
    assert "sha256:busy is not removed: conflict" in outside.summary.kept[0]
    outside.images(docker, "sglang-dev:gh200", every=True)  # type: ignore[arg-type]
    assert "sglang-dev:gh200" in docker.removed and "lab/serve:1" not in docker.removed


# --- uninstall ------------------------------------------------------------------------------------


def roots_of(site: Site) -> dict[str, str]:
    top = site.telemetry.parent
    names = ("telemetry", "profiles", "models", "huggingface")
    return {"root": str(top), **{name: str(top / name) for name in names}}


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("models", [True, False])
def test_uninstall_takes_off_what_was_brought(site: Site, caches: bool, models: bool) -> None:
    site.add_runs(2)
    site.point(site.runs[1])
    (site.telemetry / places.DIGEST_KEY).write_text("k")
    site.cache("0" * 16, 1, "torchinductor/a/x.so")
    roots = roots_of(site)
    for name in ("models", "huggingface"):
        (Path(roots[name]) / "m").mkdir(parents=True)
    before = site.state()
    foretold = Uninstall(roots, dry_run=True)
    foretold.run(caches, models)
    assert site.state() == before
    done = Uninstall(roots, dry_run=False)
    done.run(caches, models)
    assert done.freed == foretold.freed
    assert not Path(roots["telemetry"]).exists()
    assert Path(roots["profiles"]).exists() is not caches
    assert Path(roots["models"]).exists() is not models
    assert Path(roots["root"]).exists() is not (caches and models)
    again = Uninstall(roots, dry_run=False)
    again.run(caches, models)
    assert again.freed.count == 0


def test_uninstall_knows_every_place_that_sgl_admin_has_in_telemetry() -> None:
    """The servers' commands in `.prepared` stayed, with the values that are not shown."""
    here = {
        path.name
        for path in vars(paths).values()
        if isinstance(path, Path) and path.parent == paths.TELEMETRY
    }
    assert places.PREPARED in here and here <= {*_uninstall._TELEMETRY}


def test_uninstall_leaves_what_is_not_ours_and_says_so(site: Site, tmp_path: Path) -> None:
    roots = {**roots_of(site), "models": str(tmp_path / "lab-models")}
    Path(roots["models"]).mkdir()
    (site.telemetry / "notes.txt").write_text("theirs")
    done = Uninstall(roots, dry_run=False)
    done.run(caches=True, models=True)
    assert sorted(path.name for path in site.telemetry.iterdir()) == ["notes.txt"]
    said = "\n".join(done.left)
    assert "it holds notes.txt, which is not ours" in said
    assert "lab-models" in said and "outside of sgl_root" in said


# --- the command ----------------------------------------------------------------------------------


def test_the_command_keeps_its_own_run_and_says_what_it_freed(
    live_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [f"container-run-20251123T09150{n}Z-3fa9c1d2" for n in range(3)]
    for run_id in old:
        paths.manifest(run_id).write_text("{}")
    paths.POINTER.unlink()
    assert cli.main(["prune", "--keep", "runs=1", "--dry-run"]) == 0
    assert "would free" in capsys.readouterr().out
    assert cli.main(["prune", "--keep", "runs=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed"]["runs"]["count"] == 3
    assert [path.name for path in paths.RUNS.glob("*.json")] == [f"{live_run}.json"]


@pytest.mark.parametrize("word", ["runs", "runs=x", "runs=-1", "other=1", "images=1"])
def test_a_bound_that_is_none_is_wrong_usage(
    live_run: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prune", "--keep", word]) == 2
    assert "write KIND=NUMBER" in capsys.readouterr().err


def test_a_prep_and_a_server_note_that_they_use_a_cache(container: Path) -> None:
    record = cache_records.SignatureRecord("inductor", ("torchinductor", "triton"), {"a": 1})
    record.write([], served="sha256:1")
    used = record.path.with_suffix(places.USED)
    cache_records.note_use("sha256:2")
    assert not used.exists()
    cache_records.note_use("sha256:1")
    assert used.exists()
    used.unlink()
    record.used()
    assert used.exists()


_PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_tasks: {tasks}
      when: sgl_prune | bool
"""


def _after_a_prep(folder: Path, *flags: str) -> str:
    """What prep.yml does last, on a host that its roles have looked at; returns what it prints."""
    tree = {name: str(folder / name) for name in ("root", "telemetry", "profiles")}
    seen = {"tree": {"paths": tree, "owner": {"uid": os.getuid(), "gid": os.getgid()}}}
    variables = {
        "ansible_python_interpreter": sys.executable,
        "preflight_host": seen,
        "sgl_prune": True,
        "sgl_keep": {"runs": 1, "reports": 1},
        "sgl_image": "",
        "sgl_image_build_dir": "",
        "sgl_cache_dir": "",
    }
    play = folder / "play.yml"
    play.write_text(_PLAY.format(tasks=ROOT / "playbooks" / "tasks" / "prune.yml"))
    done = subprocess.run(
        [ANSIBLE, "-i", "localhost,", "-e", json.dumps(variables), *flags, str(play)],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "SGL_REPORT_DIR": str(folder / "reports"),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_prep_that_prunes_says_what_it_freed(tmp_path: Path) -> None:
    for name in ("profiles", "reports", "telemetry/container_runs"):
        (tmp_path / name).mkdir(parents=True)
    for day in (21, 22, 23):
        stamp = f"202601{day}T000000Z-000000{day}"
        for place in (
            tmp_path / "telemetry" / "container_runs" / f"container-run-{stamp}.json",
            tmp_path / "reports" / f"report-{stamp}.json",
        ):
            place.write_text("{}")
    assert "runs: 2" in (foretold := _after_a_prep(tmp_path, "--check"))
    assert "reports: 2" in foretold and "would free" in foretold
    done = _after_a_prep(tmp_path)
    assert "runs: 2" in done and "reports: 2" in done and "would free" not in done
    [run] = (tmp_path / "telemetry" / "container_runs").iterdir()
    [report] = (tmp_path / "reports").iterdir()
    assert "0123T" in run.name and "0123T" in report.name
    assert "changed=0" in _after_a_prep(tmp_path)
