"""A standard output that cannot be written is reported in one sentence, with an exit code other
than 0.
"""

from __future__ import annotations

import sys
from typing import TextIO

import pytest

from sgl_admin.commands import main as cli
from slice_bench import cli as front

_KEPT: list[TextIO] = []


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "words", [["version"], ["caches", "inspect"], ["caches", "inspect", "--json"], ["status"]]
)
def test_sgl_admin_says_that_its_output_is_full(
    live_run: str,
    words: list[str],
    buffered: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", open_full(buffered))
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the standard output" in error and "Errno" not in error


@pytest.mark.parametrize("buffered", [True, False])
def test_the_front_says_that_its_output_is_full(
    buffered: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", open_full(buffered))
    assert front.main(["profiles"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the standard output" in error


def open_full(buffered: bool) -> TextIO:
    """As PYTHONUNBUFFERED does it, or by default."""
    stream = open("/dev/full", "w", encoding="utf-8")
    stream.reconfigure(write_through=not buffered)
    # Closing it would flush it once more.
    _KEPT.append(stream)
    return stream
