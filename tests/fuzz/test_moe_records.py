"""What a tuning finds of earlier ones: its journal, the configuration files and their records, and
names in a server's log.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from sgl_admin.base.engine import Lookup
from sgl_admin.moe import config_files
from sgl_admin.moe.journal import Journal, Settled
from sgl_admin.moe.tables import Pair
from sgl_admin.sglang import ENGINE
from tests.fuzz.fuzzing import (
    damaged,
    documents,
    encoded,
    files_of,
    folder,
    fuzz,
    mostly,
    put,
    reached,
    spoiled,
    text,
    things,
)
from tests.fuzz.test_records_of_a_container import container

TILE = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 3,
}
TUNING: dict[str, Any] = {"E": 513, "N": 512, "block_shape": [128, 128], "sglang": "0.5.17"}
# What no journal here is of.
STRANGERS: dict[str, Any] = {
    "E": 513,
    "N": 512,
    "block_shape": [128, 128],
    "sglang": "of no release",
}
LINES: list[dict[str, Any]] = [
    {"tuning": TUNING},
    {"launch": "fused_moe_kernel 3", "dropped": "its compiler took more than 120 s"},
    {"measuring": [16, 0]},
    {"batch_size": 16, "trial": 0, "us": 210.0},
    {"batch_size": 16, "trial": 1, "dropped": "it hung"},
    {"measuring": [16, "a pair"]},
    {"measured": 16},
    {"batch_size": 16, "trial": "a pair", "dropped": "it hung"},
    {"batch_size": 16, "best": {"up": TILE, "down": TILE}, "row": {"after": 189.25}},
    {"checked": [16, 32]},
    {"measuring": [32, 2]},
]
KEYS = [
    "tuning", "launch", "dropped", "measuring", "measured", "batch_size", "trial", "us", "best",
    "row", "checked",
]  # fmt: skip


@st.composite
def journals(draw: st.DrawFn) -> bytes:
    """Lines of a journal in any order, most of them after its head and some of them strange."""
    lines = draw(
        st.lists(
            st.sampled_from(LINES).flatmap(
                lambda line: mostly(spoiled(line, 1), documents(*KEYS), 90)
            ),
            max_size=8,
        )
    )
    head = draw(
        mostly(
            st.just(LINES[:1]),
            st.sampled_from([[], [{"tuning": {}}], [{"tuning": None}], [{"tuning": [1]}]]),
            80,
        )
    )
    return (
        draw(mostly(st.just(b"\n"), st.sampled_from([b"\r\n", b" ", b"\n\n"]), 90)).join(
            map(encoded, [*head, *lines])
        )
        + b"\n"
    )


def typed(journal: Journal) -> None:
    """Holds what was read to what the search builds on."""
    assert all(
        type(key) is str and type(why) is str for key, why in journal.dropped_launches.items()
    )
    assert all(
        isinstance(size, int) and isinstance(number, int | str) for size, number in journal.dropped
    )
    assert all(isinstance(why, str) for why in journal.dropped.values())
    assert all(isinstance(us, float) for looks in journal.looks.values() for us in looks.values())
    assert all(
        isinstance(settled.pair, Pair) and isinstance(settled.row, dict)
        for settled in journal.best.values()
    )
    assert journal.open is None or len(journal.open) == 2


def state(journal: Journal) -> str:
    """Compared as text, as NaN is not even itself."""
    return repr(
        (
            journal.dropped_launches,
            journal.dropped,
            journal.looks,
            journal.best,
            journal.checked,
            journal.open,
        )
    )


EMPTY = repr(({}, {}, {}, {}, set(), None))


@fuzz(deep=0.35, content=damaged(journals()))
def test_any_journal_is_read_and_goes_on(content: bytes) -> None:
    with folder() as inside:
        path = inside / "journal.jsonl"
        path.write_bytes(content)
        journal = Journal(path, TUNING)
        typed(journal)
        if state(journal) != EMPTY:
            reached()
        kept = path.read_bytes()
        assert kept in (content, encoded({"tuning": TUNING}) + b"\n")
        before = state(journal)
        assert state(Journal(path, TUNING)) == before
        journal.drop(7, 8, "it hung")
        journal.settle(9, Settled(Pair(TILE, TILE), {"after": 1.5}))
        journal.close()
        again = Journal(path, TUNING)
        assert (
            state(again) == state(journal)
            and again.dropped[7, 8] == "it hung"
            and again.best[9] == Settled(Pair(TILE, TILE), {"after": 1.5})
        )
        assert path.read_bytes().startswith(kept), "it is only appended to"


@fuzz(deep=0.9, content=damaged(journals()))
def test_no_journal_has_a_result_of_another_tuning(content: bytes) -> None:
    with folder() as inside:
        path = inside / "journal.jsonl"
        path.write_bytes(content)
        assert state(Journal(path, STRANGERS)) == EMPTY
        reached()
        assert json.loads(path.read_text()) == {"tuning": STRANGERS}
        assert state(Journal(path, TUNING)) == EMPTY, "nor is what it was left there afterwards"


# --- configuration files --------------------------------------------------------------------------

NAME = "E=513,N=512,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json"
FILE: dict[str, Any] = {"1": TILE, "16": TILE, "4096": TILE}
RECORD: dict[str, Any] = {"schema_version": "1", "tuning": TUNING, "batch_sizes": [1, 16]}
BUILT_IN: dict[str, Any] = {
    "schema_version": "1",
    "sglang": "0.5.17",
    "files": [f"triton_3_6_0/{NAME}"],
}


@fuzz(
    deep=0.25,
    file=things(files_of(FILE, 2, ["1", "16", "x"])),
    record=mostly(
        st.just(encoded(RECORD)), things(files_of(RECORD, 2, ["tuning", "batch_sizes"])), 60
    ),
    built_in=mostly(
        st.just(encoded(BUILT_IN)), things(files_of(BUILT_IN, 2, ["files", "sglang"])), 60
    ),
)
def test_any_configuration_file_and_record_is_read(
    file: bytes | str, record: bytes | str, built_in: bytes | str
) -> None:
    with container():
        path = config_files.folder("3.6.0") / NAME
        put(path, file)
        put(config_files.root() / config_files.TUNED / NAME, record)
        put(config_files.root() / ".built_in.json", built_in)
        found, tuned = config_files.read(path), config_files.tuned(path, TUNING)
        assert all(type(size) is int and isinstance(config, dict) for size, config in found.items())
        assert tuned.items() <= found.items(), "what is not in the file is not tuned"
        assert config_files.tuned(path, STRANGERS) == {}
        if tuned:
            reached()
        # A file or a fifo is replaced; a folder is left alone.
        if "folder" not in (file, record, built_in):
            config_files.add(path, TUNING, 32, TILE)
            assert config_files.tuned(path, TUNING) == {**tuned, 32: TILE}
            # SGLang fails at a row without a tile, so none is kept.
            tiles = {size: config for size, config in found.items() if is_tile(config)}
            assert config_files.read(path) == {**tiles, 32: TILE}
            assert config_files.read(config_files.down_file(path)) == config_files.read(path)


def is_tile(config: dict[str, Any]) -> bool:
    height = config.get("BLOCK_SIZE_M")
    return type(height) is int and height > 0


LOOKED_UP: dict[str, Any] = {"schema_version": "1", "file_name": NAME.replace("NVIDIA_H200", "*")}


@fuzz(deep=0.2, content=things(files_of(LOOKED_UP, 2, ["file_name"])))
def test_any_record_of_what_a_server_asked_for_is_read(content: bytes | str) -> None:
    with container():
        put(config_files.root() / config_files.TUNED / "lookup-a1.json", content)
        found = config_files.remembered("a1")
        assert found is None or isinstance(found, Lookup)
        if found:
            reached()
            config_files.remember("b2", found)
            assert config_files.remembered("b2") == found


PARTS = [
    "E=",
    "513",
    ",N=",
    "512",
    ",device_name=",
    "NVIDIA_H200",
    ",dtype=",
    "fp8_w8a8",
    ",block_shape=[",
    "128",
    ", ",
    "64",
    "]",
    ".json",
]
WORDS = [
    *PARTS,
    "",
    "_down",
    ",per_channel_quant=True",
    "9" * 5000,
    "\u0663",
    "\u00b2",
    "-1",
    "007",
    "\n",
]


@st.composite
def names(draw: st.DrawFn) -> str:
    """A name of SGLang's with up to two of its parts replaced, or others put in."""
    parts = list(PARTS)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(parts) - 1))
        parts[place : place + draw(st.integers(0, 1))] = [draw(st.sampled_from(WORDS) | text())]
    return "".join(parts)


@fuzz(
    deep=0.1,
    name=mostly(names(), text() | st.lists(st.sampled_from(WORDS), max_size=16).map("".join)),
)
def test_any_name_is_read_or_passed_over(name: str) -> None:
    found = ENGINE.moe.lookup(name)
    if found is None:
        return
    reached()
    assert found.E >= 0 and found.N >= 0 and not name.endswith("_down.json")
    assert ENGINE.moe.lookup(ENGINE.moe.file_name(found, "NVIDIA H200")) == found
