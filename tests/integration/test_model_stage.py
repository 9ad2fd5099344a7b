"""Models brought by the module and its action, on this host: killed, resumed, found damaged,
repaired, and sent by a real rsync.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_digests import quick
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_staging import Staging

from tests.doubles.model_folder import INDEX, contents, flip, make_model, shard_name
from tests.integration.installation import ROOT, Play, ansible, module

MIB = 1 << 20
SHARDS, SHARD = 3, 17 * MIB
DOUBLES = ROOT / "tests" / "doubles"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_model(tmp_path / "source", SHARDS, SHARD)
    return tmp_path / "source"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir(mode=0o755)
    return folder


def shard(number: int) -> str:
    return shard_name(number, SHARDS)


def of(source: Path) -> dict[str, Any]:
    """The option `from`, whose name is a word of Python."""
    return {"from": str(source)}


def arguments(root: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(root / "org" / "m"), "models_root": str(root), **options}


def stage(root: Path, *flags: str, **options: Any) -> dict[str, Any]:
    return module("sgl_model_stage", arguments(root, **options), *flags)


def staging(root: Path) -> Staging:
    return Staging(str(root / "org" / "m"), str(root), os.geteuid(), os.getegid())


def good(answer: dict[str, Any]) -> dict[str, Any]:
    assert not answer["failed"], answer.get("msg")
    assert answer["done"] and answer["verified"]
    return answer


def size_of(folder: Path) -> int:
    return sum(len(data) for data in contents(folder).values())


def killed(root: Path, source: Path, call: str) -> Play:
    """A staging whose module is killed at that call."""
    options = json.dumps(arguments(root, source="local", **of(source)))
    environment = {"PYTHONPATH": str(DOUBLES / "model_kill"), "SGL_TEST_KILL": call}
    return ansible(
        "ansible",
        "localhost",
        "--module-name",
        "slice_bench.sglang.sgl_model_stage",
        "--args",
        options,
        environment=environment,
    )


def test_killed_in_the_middle_it_goes_on_and_the_old_model_stays_until_then(
    root: Path, source: Path
) -> None:
    make_model(root / "org" / "m", 1, 1000, seed=9)
    old = contents(root / "org" / "m")
    # config.json, two calls for each shard of 17 MiB: the fifth is the second half of the second
    # shard.
    play = killed(root, source, "copy_file_range:5")
    assert play.code != 0 and contents(root / "org" / "m") == old
    place = Path(staging(root).folder)
    assert (place / f"{shard(1)}.part").stat().st_size == 16 * MIB and (place / shard(0)).exists()
    answer = good(stage(root, source="local", **of(source)))
    copied = 77 + (source / shard(0)).stat().st_size + 16 * MIB
    assert answer["changed"] and answer["bytes_moved"] <= size_of(source) - copied + 200
    assert (
        contents(root / "org" / "m") == contents(source) and quick(str(root / "org" / "m")).verified
    )


@pytest.mark.parametrize("call", ["rename:1", "fsync:4", "link:1", "rename:12", "rename:14"])
def test_killed_at_other_places_the_next_run_ends_it(root: Path, source: Path, call: str) -> None:
    make_model(root / "org" / "m", 1, 1000, seed=9)
    old = contents(root / "org" / "m")
    killed(root, source, call)
    assert contents(root / "org" / "m") in (old, contents(source))
    good(stage(root, source="local", **of(source)))
    assert contents(root / "org" / "m") == contents(source) and os.listdir(root / ".staging") == [
        os.path.basename(staging(root).lock)
    ]


def test_a_second_run_reads_and_copies_nothing(root: Path, source: Path) -> None:
    assert (
        stage(root, "--check", source="local", **of(source))["changed"] and os.listdir(root) == []
    )
    options = json.dumps(arguments(root, source="local", **of(source)))
    shown = ansible(
        "ansible",
        "localhost",
        "--module-name",
        "slice_bench.sglang.sgl_model_stage",
        "--args",
        options,
        "--check",
        "--diff",
    )
    assert (
        f"-{root}/org/m: absent" in shown.output
        and f"+{root}/org/m: local {source}" in shown.output
    )
    assert good(stage(root, source="local", **of(source)))["changed"]
    again = good(stage(root, source="local", **of(source)))
    assert again["changed"] is False and again["bytes_moved"] == 0
    assert stage(root, "--check", source="local", **of(source))["changed"] is False


def test_one_flipped_byte_is_found_named_and_repaired(root: Path, source: Path) -> None:
    good(stage(root, source="local", **of(source)))
    flip(root / "org" / "m" / shard(1), 9 * MIB, keep_time=True)
    assert good(stage(root))["bytes_moved"] == 0, "size and time are as they were"
    answer = stage(root, verify="full")
    assert (
        answer["failed"]
        and shard(1) in answer["msg"]
        and shard(0) not in answer["msg"]
        and "stage it again" in answer["msg"]
    )
    answer = good(stage(root, source="local", **of(source)))
    assert answer["changed"] and answer["bytes_moved"] == (source / shard(1)).stat().st_size
    assert contents(root / "org" / "m") == contents(source)


def test_a_missing_shard_and_a_wrong_index_are_named(root: Path, source: Path) -> None:
    good(stage(root, source="local", **of(source)))
    (root / "org" / "m" / shard(2)).unlink()
    answer = stage(root)
    assert answer["failed"] and shard(2) in answer["msg"]
    good(stage(root, source="local", **of(source)))
    old = contents(root / "org" / "m")
    index = json.loads((source / INDEX).read_bytes())
    index["weight_map"]["more"] = "model-00009-of-00009.safetensors"
    (source / INDEX).write_text(json.dumps(index))
    answer = stage(root, source="local", **of(source))
    assert (
        answer["failed"]
        and "model-00009-of-00009.safetensors" in answer["msg"]
        and contents(root / "org" / "m") == old
    )


def test_a_model_without_a_record_gets_one_by_a_full_reading(root: Path, source: Path) -> None:
    shutil.copytree(source, root / "org" / "m")
    answer = stage(root)
    assert not answer["failed"] and (answer["recorded"], answer["verified"], answer["changed"]) == (
        False,
        False,
        False,
    )
    assert stage(root, "--check", verify="full")["changed"] is True
    assert good(stage(root, verify="full"))["changed"] is True
    assert good(stage(root, verify="full"))["changed"] is False


def test_from_the_controller_to_itself(root: Path, source: Path) -> None:
    assert good(stage(root, source="controller", **of(source)))["changed"]
    assert contents(root / "org" / "m") == contents(source)


# --- by rsync -------------------------------------------------------------------------------------


@pytest.fixture
def rsync() -> None:
    assert shutil.which("rsync"), "there is no rsync to test with: run `apt-get install rsync`"


class Remote:
    """This host as a remote one: a real rsync on both sides, and the double of ssh between them."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.log, self.home = root, work / "ssh.log", work / "home"
        self.home.mkdir()

    def stage(
        self, *flags: str, environment: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        variables = {
            "ansible_connection": "ssh",
            "ansible_ssh_executable": str(DOUBLES / "model_ssh.py"),
            "ansible_ssh_common_args": f"-o 'UserKnownHostsFile={self.root}/with space'",
            "ansible_port": 2299,
            "ansible_python_interpreter": sys.executable,
        }
        given = json.dumps(arguments(self.root, source="controller", **options))
        done = ansible(
            *(
                "ansible",
                "all",
                "--inventory",
                "box,",
                "--extra-vars",
                json.dumps(variables),
                "--args",
                given,
                *flags,
            ),
            *("--module-name", "slice_bench.sglang.sgl_model_stage"),
            environment={
                "SGL_TEST_SSH_LOG": str(self.log),
                "HOME": str(self.home),
                **(environment or {}),
            },
        )
        start = done.output.index("=> {") + 3
        answer: dict[str, Any] = json.JSONDecoder().raw_decode(done.output[start:])[0]
        return {"failed": done.code != 0, **answer}

    @property
    def rsync_calls(self) -> list[list[str]]:
        lines = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [words for words in lines if "--server" in words]


@pytest.fixture
def remote(root: Path, tmp_path: Path) -> Remote:
    return Remote(root, tmp_path)


def test_rsync_sends_what_is_not_there_over_the_connections_own_ssh(
    rsync: None, remote: Remote, source: Path
) -> None:
    assert remote.stage("--check", **of(source))["changed"] and not (remote.root / "org").exists()
    answer = good(remote.stage(**of(source)))
    assert answer["changed"] and contents(remote.root / "org" / "m") == contents(source)
    (call,) = remote.rsync_calls
    assert f"UserKnownHostsFile={remote.root}/with space" in call
    assert "-p" in call and "2299" in call and "box" in call
    again = good(remote.stage(**of(source)))
    assert again["changed"] is False and len(remote.rsync_calls) == 1
    flip(remote.root / "org" / "m" / shard(1))
    inode = (remote.root / "org" / "m" / shard(0)).stat().st_ino
    assert good(remote.stage(**of(source)))["changed"]
    assert (
        contents(remote.root / "org" / "m") == contents(source)
        and (remote.root / "org" / "m" / shard(0)).stat().st_ino == inode
    )


def test_rsync_holds_the_stagings_lock_and_says_so_where_another_has_it(
    rsync: None, remote: Remote, source: Path, tmp_path: Path
) -> None:
    held, go_on = tmp_path / "held", tmp_path / "go-on"
    os.mkfifo(held)
    os.mkfifo(go_on)
    # The receiver of another run, as its controller left it: it holds the lock until the pipe is
    # closed here.
    hold = [
        "flock",
        staging(remote.root).lock,
        "sh",
        "-c",
        f"echo x > {shlex.quote(str(held))}; cat {shlex.quote(str(go_on))}",
    ]
    with open(os.open(go_on, os.O_RDWR), "wb"):
        answer = remote.stage(
            environment={"SGL_TEST_SSH_BEFORE": shlex.join(hold), "SGL_TEST_SSH_HELD": str(held)},
            **of(source),
        )
        assert (
            answer["failed"]
            and "another run sends or stages the same model on box: run this again" in answer["msg"]
        ), answer["msg"]
        with staging(remote.root).alone(0.0) as mine:
            assert not mine
    assert good(remote.stage(**of(source)))["changed"] and contents(
        remote.root / "org" / "m"
    ) == contents(source)


def test_without_rsync_the_side_is_named(
    rsync: None, remote: Remote, source: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in (
        "sh",
        "sleep",
        "mkdir",
        "echo",
        "rm",
        "cat",
        "chmod",
        "umask",
        "python3",
        "env",
        "flock",
    ):
        if found := shutil.which(name):
            (bare / name).symlink_to(found)
    answer = remote.stage(environment={"SGL_TEST_SSH_PATH": str(bare)}, **of(source))
    assert (
        answer["failed"]
        and "rsync is not installed on box: run `apt-get install rsync`" in answer["msg"]
    )
    answer = remote.stage(environment={"PATH": str(bare)}, **of(source))
    assert answer["failed"] and "rsync is not installed on the controller" in answer["msg"]
