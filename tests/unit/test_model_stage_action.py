"""What the action sgl_model_stage shows, and how it hands the connection's settings to rsync."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.action import sgl_model_stage
from ansible_collections.slice_bench.sglang.plugins.action.sgl_model_stage import (
    Shown,
    describe,
    explain,
    receiver,
    rsync_words,
    ssh_command,
)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("copying", 12_300_000_000, 80_100_000_000, 210.4),
            "copying: 12.3 of 80.1 GB (15 %), about 210 s left",
        ),
        (("reading", 0, 50_000_000, None), "reading: 0.0 of 50.0 MB (0 %)"),
        (("downloading", 3_000_000, 0, None), "downloading: 3.0 MB"),
        (("waiting", 0, 0, None), "waiting for another run that stages it"),
    ],
)
def test_a_line_of_progress(given: tuple[str, int, int, float | None], said: str) -> None:
    assert describe(*given) == said


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_each_phase_is_told_and_then_a_line_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sgl_model_stage, "time", clock)
    said: list[str] = []
    shown = Shown(said.append)
    for second in range(31):
        clock.now = 100.0 + second
        shown.progress("copying", second * 10**9, 100 * 10**9)
    shown.progress("verifying", 0, 100 * 10**9)
    assert (
        said[0] == "copying: 0.0 of 100.0 GB (0 %)"
        and said[1].endswith("about 91 s left")
        and said[-1].startswith("verifying: ")
    )
    assert len(said) == 5


def test_ssh_gets_the_connections_settings() -> None:
    settings: dict[str, Any] = {
        "ssh_executable": "/opt/ssh",
        "ssh_args": "-C -o ControlMaster=auto",
        "ssh_common_args": "-o 'ProxyCommand=ssh -W %h:%p jump'",
        "port": 2222,
        "private_key_file": "/keys/one",
        "host_key_checking": False,
    }
    words = ssh_command(settings.get)
    assert (
        words[0] == "/opt/ssh" and "ProxyCommand=ssh -W %h:%p jump" in words and "-C" not in words
    )
    for pair in (
        ["-p", "2222"],
        ["-i", "/keys/one"],
        ["-o", "StrictHostKeyChecking=no"],
        ["-o", "ControlMaster=auto"],
    ):
        assert pair in [words[place : place + 2] for place in range(len(words))]
    assert rsync_words(["ssh", "-o", "A=b c", "it's", ""]) == "ssh -o 'A=b c' 'it''s' ''"


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (None, ["flock", "--nonblock", "--conflict-exit-code", "75", "/a b/lock.m", "rsync"]),
        (
            "bench",
            [
                "sudo",
                "-n",
                "-u",
                "bench",
                "flock",
                "--nonblock",
                "--conflict-exit-code",
                "75",
                "/a b/lock.m",
                "rsync",
            ],
        ),
    ],
)
def test_the_receiver_holds_the_lock(user: str | None, words: list[str]) -> None:
    assert shlex.split(receiver("/a b/lock.m", user)) == words


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (
            75,
            "rsync error: unexplained error (code 75)\n",
            "another run sends or stages the same model on box: run this again",
        ),
        (
            12,
            "rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n",
            "another run sends or stages the same model",
        ),
        (
            255,
            (
                "Host key verification failed.\nrsync: connection unexpectedly closed (0 bytes"
                " received so far)\n"
            ),
            "ended with exit code 255",
        ),
        (
            12,
            "flock: failed to execute rsync: No such file or directory\n",
            "rsync is not installed on box",
        ),
        (
            127,
            "sh: 1: rsync: not found",
            "rsync is not installed on box: run `apt-get install rsync` there",
        ),
        (
            12,
            "bash: line 1: rsync: command not found\nrsync error",
            "rsync is not installed on box",
        ),
        (12, "sudo: a password is required\n", "sudo on box wants a password"),
        (12, "sudo: rsync: command not found\n", "rsync is not installed on box"),
        (
            255,
            "ssh: connect to host box port 22: Connection refused\nrsync: closed\n",
            "Connection refused / rsync: closed): run this again",
        ),
    ],
)
def test_a_failure_of_rsync_is_a_sentence_with_the_remedy(code: int, said: str, told: str) -> None:
    assert told in explain(code, said, "box")
