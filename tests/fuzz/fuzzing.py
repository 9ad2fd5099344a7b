"""What the fuzz tests share: a test with its examples, unexpected values, and the
contract's examples spoiled at random.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# A tree in memory, where there is one: what is tested is what is read, not whether it outlasts a
# power cut.
_MEMORY = Path("/dev/shm")
# No example takes a second; only one that hangs takes so long.
_PATIENCE_S = 20.0
# So many examples tell a share. Further ones lower it: Hypothesis draws nothing twice, and what is
# usual runs out.
_TELLING = 1000


class _Tally:
    """The first examples of the test that runs, up to _TELLING, and how many of them got past the
    first check.
    """

    examples = 0
    deep = 0


def reached() -> None:
    """Called once in an example that got past the first check."""
    _Tally.deep += _Tally.examples <= _TELLING


def fuzz(
    *, deep: float, **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A test with examples of `strategies`, more in the slow lane; it fails also where less than
    the share `deep` of the first 1,000 calls `reached`.

    That share is half of what is usual or less: which examples come depends on the constants in
    whatever modules are loaded.
    """

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        @functools.wraps(test)
        def counted(**drawn: Any) -> None:
            _Tally.examples += 1
            with _in_time():
                test(**drawn)

        examples = settings.get_profile("fuzz")(given(**strategies)(counted))

        def run() -> None:
            _Tally.examples = _Tally.deep = 0
            examples()
            told = min(_Tally.examples, _TELLING)
            # Fewer say little of a share: there it is only seen that some get there.
            share = deep if told == _TELLING else deep / 4
            assert _Tally.deep >= share * told, (
                f"only {_Tally.deep} of the first {told} examples got past the first check"
            )

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return pytest.mark.repeated(run)

    return decorate


@contextmanager
def _in_time() -> Iterator[None]:
    """Ends an example that hangs, so that it is reported as any other failure."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"an example takes longer than {_PATIENCE_S:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    made = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def one_line(message: str) -> None:
    """Holds a message to what a person can be shown: one line, of characters that print, and no
    essay.
    """
    assert message.strip(), "an empty message"
    assert message.isprintable(), f"a message with characters that do not print: {message!r:.300}"
    assert len(message) < 4000, f"a message of {len(message)} characters: {message[:300]}"


@st.composite
def mostly(
    draw: st.DrawFn, usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any], percent: int = 85
) -> Any:
    """The usual in so many of a hundred examples; `|` would take both as often."""
    return draw(usual if draw(_HUNDRED) < percent else other)


@st.composite
def partly(
    draw: st.DrawFn, good: dict[str, Any], strange: dict[str, st.SearchStrategy[Any]], most: int = 2
) -> dict[str, Any]:
    """The good things, with up to `most` of them strange: were more so, the first would hide the
    others.
    """
    chosen = draw(st.sets(st.sampled_from(sorted(strange)), max_size=most))
    return {name: draw(strange[name]) if name in chosen else thing for name, thing in good.items()}


# --- values ---------------------------------------------------------------------------------------

# JSON that json.dumps cannot write is named by a word, which `encoded` replaces.
_MADE = re.compile(r'"@(deep|digits):(\d+)@"')
_STRINGS = [
    *[
        "",
        "\0",
        "/",
        ".",
        "..",
        "/a\0b",
        "/dev/null",
        "\ud800",
        "/\udcff",
        "a\nb",
        "/a\nb",
        "\x1b[31m",
        "x" * 5000,
        "/" + "y" * 5000,
    ],
    *[
        "0",
        "1",
        "12",
        "9999",
        "1_0",
        "\u0663",
        "NaN",
        "+Inf",
        "-Inf",
        "1e999",
        "true",
        "yes",
        "ok",
        "running",
        "done",
        "~",
        "{",
        "{0}",
        "%s",
    ],
    *[
        "2026-11-23T09:15:00Z",
        "2026-11-23",
        "http://127.0.0.1:9",
        "http://a:99999",
        "http://[::1",
        "http://a b/\u00e9",
    ],
]
_NUMBERS = [
    0,
    -1,
    1,
    2,
    5,
    255,
    256,
    65535,
    65536,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**400,
    0.0,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
]


@functools.cache
def text() -> st.SearchStrategy[str]:
    """Any text, halves of surrogate pairs and control characters among it."""
    return st.sampled_from(_STRINGS) | st.text(st.characters(exclude_categories=()), max_size=8)


def _made() -> st.SearchStrategy[str]:
    """Numbers of many digits, and lists so deep that Python may or may not follow."""
    deep = st.sampled_from([5, 200, 2000, 50_000]) | st.integers(850, 1000)
    return deep.map(lambda depth: f"@deep:{depth}@") | st.sampled_from([4000, 4301, 100_000]).map(
        lambda count: f"@digits:{count}@"
    )


@functools.cache
def scalars() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(_NUMBERS),
        text(),
        st.integers(),
        st.floats(),
        _made(),
    )


@functools.cache
def documents(*keys: str) -> st.SearchStrategy[Any]:
    """Any JSON document, with `keys` among its keys; made once, as Hypothesis checks each strategy
    that it has not seen.
    """
    names = text() | st.sampled_from(keys) if keys else text()
    return st.recursive(
        scalars(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    )


def _places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in items:
        yield from _places(value, (*path, key))


_CHANGES = st.sampled_from(["replace", "replace", "drop", "rename", "copy"])
_DAMAGES = st.sampled_from(["whole"] * 7 + ["cut", "overwritten", "other"])
_HUNDRED = st.integers(0, 99)


@st.composite
def spoiled(
    draw: st.DrawFn, document: Any, most: int = 3, values: st.SearchStrategy[Any] | None = None
) -> Any:
    """The document with up to `most` of its nodes dropped, renamed, replaced by `values` or by a
    copy of another node.
    """
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(made))[1:]
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        parent = functools.reduce(lambda node, step: node[step], above, made)
        match draw(_CHANGES):
            case "drop":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(text())] = parent.pop(key)
            case "copy":
                other = draw(st.sampled_from(places))
                parent[key] = copy.deepcopy(
                    functools.reduce(lambda node, step: node[step], other, made)
                )
            case _:
                parent[key] = draw(values if values is not None else documents())
    return made


def encoded(document: Any) -> bytes:
    """The document as JSON, with what its words of `_made` stand for."""

    def make(found: re.Match[str]) -> str:
        count = int(found[2])
        return "[" * count + "]" * count if found[1] == "deep" else "9" * count

    return _MADE.sub(make, json.dumps(document)).encode()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of `whole`, most often as they are; else cut off, overwritten or replaced by others."""
    content = draw(whole)
    match draw(_DAMAGES):
        case "cut":
            return content[: draw(st.integers(0, len(content)))]
        case "overwritten":
            start = draw(st.integers(0, len(content)))
            return (
                content[:start]
                + draw(st.binary(max_size=6))
                + content[start + draw(st.integers(0, 6)) :]
            )
        case "other":
            return draw(
                st.binary(max_size=40)
                | st.sampled_from(
                    [
                        b"",
                        b"[]",
                        b"null",
                        b"\xff\xfe",
                        b"\xef\xbb\xbf{}",
                        b"[" * 100_000,
                        b'{"a":' * 3000,
                    ]
                )
            )
        case _:
            return content


def files_of(document: Any, most: int = 3, keys: Iterable[str] = ()) -> st.SearchStrategy[bytes]:
    """The bytes of a file that should hold `document`: most often it, spoiled; else any other JSON,
    or none.
    """
    return damaged(mostly(spoiled(document, most), documents(*keys)).map(encoded))


# What may lie where a file should be, other than a file.
_STRANGE = ["missing", "folder", "fifo", "loop"]


def things(contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes | str]:
    """What lies at a path: mostly a file of these contents."""
    return mostly(contents, st.sampled_from(_STRANGE), 94)


def put(path: Path, thing: bytes | str) -> None:
    """Lay a thing of `things` at the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(thing, bytes):
        path.write_bytes(thing)
    elif thing == "folder":
        path.mkdir()
    elif thing == "fifo":
        os.mkfifo(path)
    elif thing == "loop":
        path.symlink_to(path.name)


def kept(path: Path) -> bytes | str:
    """What lies at the path now, in the terms of `things`."""
    if path.is_symlink():
        return "loop"
    if not path.exists():
        return "missing"
    return "folder" if path.is_dir() else "fifo" if path.is_fifo() else path.read_bytes()
