"""What a killed tuning leaves of its journal, and what the next one makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.moe.journal import Journal, Settled
from sgl_admin.moe.tables import Pair

TUNING: dict[str, Any] = {"E": 513, "N": 512, "block_shape": [128, 128], "sglang": "0.5.17"}
CONFIG = {
    "BLOCK_SIZE_M": 16,
    "BLOCK_SIZE_N": 64,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 3,
}
PAIR = Pair(CONFIG, {**CONFIG, "USE_TMA": True})
ROW = {"default": 200.0, "after": 189.25, "source": "tuned"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path) -> Journal:
    """One of everything that a tuning writes."""
    journal = Journal(path, TUNING)
    journal.drop_launch("fused_moe_kernel 3", "its compiler took more than 120 s")
    journal.measuring(16, 0)
    journal.look(16, 0, 210)
    journal.measuring(16, 1)
    journal.drop(16, 1, "OutOfResources: shared memory")
    journal.measuring(16, 2)
    journal.look(16, 2, 190.5)
    journal.measuring(16, PAIR.key)
    journal.measured(16)
    journal.measuring(16, "another pair")
    journal.drop(16, "another pair", "OutOfResources: registers")
    journal.settle(16, Settled(PAIR, ROW))
    journal.check(16, 32)
    journal.measuring(32, 2)
    journal.look(32, 2, 250.0)
    journal.close()
    return journal


def state(journal: Journal) -> tuple[Any, ...]:
    return (
        journal.dropped_launches,
        journal.dropped,
        journal.looks,
        journal.best,
        journal.checked,
        journal.open,
    )


def lines_of(lines: list[dict[str, Any]]) -> tuple[Any, ...]:
    """What these lines say, by other code than the journal's."""
    launches: dict[str, str] = {}
    dropped: dict[tuple[int, Any], str] = {}
    looks: dict[int, dict[int, float]] = {}
    best: dict[int, Any] = {}
    checked: set[tuple[int, ...]] = set()
    open_: tuple[int, ...] | None = None
    for line in lines:
        if "tuning" in line:
            continue
        open_ = (
            tuple(line["measuring"])
            if "measuring" in line
            else None
            if "batch_size" in line or "measured" in line
            else open_
        )
        if "launch" in line:
            launches[line["launch"]] = line["dropped"]
        elif "dropped" in line:
            dropped[line["batch_size"], line["trial"]] = line["dropped"]
        elif "best" in line:
            pair = Pair(line["best"]["up"], line["best"]["down"])
            best[line["batch_size"]] = Settled(pair, line["row"])
        elif "checked" in line:
            checked.add(tuple(line["checked"]))
        elif "us" in line:
            looks.setdefault(line["batch_size"], {})[line["trial"]] = line["us"]
    return launches, dropped, looks, best, checked, open_


def test_what_was_written_is_read(path: Path) -> None:
    written = write(path)
    expected = (
        {"fused_moe_kernel 3": "its compiler took more than 120 s"},
        {
            (16, 1): "OutOfResources: shared memory",
            (16, "another pair"): "OutOfResources: registers",
        },
        {16: {0: 210.0, 2: 190.5}, 32: {2: 250.0}},
        {16: Settled(PAIR, ROW)},
        {(16, 32)},
        None,
    )
    assert state(written) == expected and state(Journal(path, TUNING)) == expected


def test_every_prefix_of_a_journal_is_one_of_its_whole_lines(path: Path) -> None:
    write(path)
    content = path.read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    header = content.index(b"\n") + 1
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        # A last line without its newline is whole all the same.
        whole = content[:end].count(b"\n") + (
            end < len(content) and content[end : end + 1] == b"\n"
        )
        journal = Journal(path, TUNING)
        assert state(journal) == lines_of(lines[:whole]), end
        journal.drop(64, 7, "hung")
        journal.look(64, 8, 1.5)
        journal.close()
        again = Journal(path, TUNING)
        assert (
            state(again) == state(journal)
            and again.dropped[64, 7] == "hung"
            and again.looks[64] == {8: 1.5}
        ), end
        if end >= header:
            assert path.read_bytes().startswith(content[:end]), "what was known is not written anew"


def test_a_journal_that_ends_while_measuring_names_what_it_was(path: Path) -> None:
    journal = Journal(path, TUNING)
    assert journal.open is None
    journal.measuring(16, 5)
    assert Journal(path, TUNING).open == (16, 5)
    journal.drop_launch("x", "its compiler ended with exit code 1")
    assert Journal(path, TUNING).open == (16, 5)
    for write_end in (
        lambda: journal.look(16, 5, 1),
        lambda: journal.drop(16, 5, "no"),
        lambda: journal.settle(16, Settled(PAIR, ROW)),
        lambda: journal.measured(16),
    ):
        write_end()
        assert Journal(path, TUNING).open is None
        journal.measuring(16, 6)
    journal.close()


@pytest.mark.parametrize("other", [{**TUNING, "N": 256}, {}, {**TUNING, "more": None}])
def test_another_tuning_starts_anew(path: Path, other: dict[str, Any]) -> None:
    write(path)
    journal = Journal(path, other)
    assert state(journal) == ({}, {}, {}, {}, set(), None)
    journal.look(2, 1, 5)
    journal.close()
    assert path.read_text().splitlines() == [
        json.dumps({"tuning": other}),
        '{"batch_size": 2, "trial": 1, "us": 5.0}',
    ]
    assert state(Journal(path, TUNING)) == ({}, {}, {}, {}, set(), None), "and back again"


def test_findings_below_another_tunings_name_are_not_taken(path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"tuning": TUNING}, {"batch_size": 2, "trial": 1, "us": 5.0}, {"tuning": {"E": 8}},
        {"batch_size": 2, "trial": 2, "us": 1.0}, {"tuning": TUNING},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Journal(path, TUNING).looks == {2: {1: 5.0}}


@pytest.mark.parametrize(
    "line",
    ["", "{", "null", "[1]", "\x00\xff", "[" * 100_000, '{"measuring": [1]}',
     '{"measuring": ["16", 2]}', '{"batch_size": 16, "trial": 3, "us": "fast"}',
     '{"batch_size": 16, "best": {"up": 1}, "row": {}}',
     '{"batch_size": 16, "trial": 3}', '{"batch_size": 16, "best": [1]}',
     '{"batch_size": ' + "9" * 5000 + ', "trial": 3, "us": 1.0}'],
)  # fmt: skip
def test_a_line_that_is_none_is_passed_over(path: Path, line: str) -> None:
    written = write(path)
    content = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for place in range(1, len(content) + 1):
        path.write_text(
            "".join([*content[:place], line + "\n", *content[place:]]), encoding="utf-8"
        )
        assert state(Journal(path, TUNING)) == state(written)


def test_a_journal_that_is_missing_begins(path: Path) -> None:
    Journal(path, TUNING)
    assert path.read_text() == json.dumps({"tuning": TUNING}) + "\n"


def beside(path: Path, name: str = "GPU-b") -> Journal:
    return Journal(path.with_name(f"journal-{name}.jsonl"), TUNING)


def test_what_another_gpus_journal_has_settled_is_taken_up_with_its_looks(path: Path) -> None:
    own = Journal(path, TUNING)
    own.look(16, 7, 1.0)
    own.look(32, 7, 1.0)
    other = beside(path)
    other.look(16, 0, 210.0)
    other.drop(16, 1, "it crashed")
    other.drop_launch("x", "its compiler crashed")
    other.look(64, 0, 5.0)
    assert own.best == {}
    other.settle(16, Settled(PAIR, ROW))
    other.check(16, 32)
    own.refresh()
    assert own.best == {16: Settled(PAIR, ROW)} and own.checked == {(16, 32)}
    assert own.dropped == {(16, 1): "it crashed"} and list(own.dropped_launches) == ["x"]
    assert own.looks == {16: {0: 210.0}, 32: {7: 1.0}}, "of one GPU each, and no others'"
    # A host that has one GPU left, or another one, has the same from the files alone.
    for name in ("journal.jsonl", "journal-GPU-c.jsonl"):
        assert set(Journal(path.with_name(name), TUNING).best) == {16}


def test_what_a_process_beside_this_one_has_begun_is_left_to_it(path: Path) -> None:
    other = beside(path)
    own = Journal(path, TUNING, [path, other.path])
    beside(path, "GPU-c").measuring(128, 0)
    other.measuring(64, 0)
    other.measuring(16, 0)
    own.measuring(32, 0)
    own.refresh()
    assert own.begun_beside == {16, 64} and own.begun == {32}
    other.settle(16, Settled(PAIR, ROW))
    own.refresh()
    assert own.begun_beside == {64}
    own.settle(64, Settled(PAIR, ROW))
    own.refresh()
    assert own.begun_beside == set()


def test_a_line_that_another_process_is_writing_is_read_when_it_is_whole(path: Path) -> None:
    own, other = Journal(path, TUNING), beside(path)
    other.settle(16, Settled(PAIR, ROW))
    content = other.path.read_bytes()
    for end in range(len(content) + 1):
        other.path.write_bytes(content[:end])
        own.refresh()
        assert bool(own.best) == (end == len(content)), end


@pytest.mark.parametrize("tuning", [{**TUNING, "N": 256}, {}])
def test_another_tunings_journal_beside_is_not_taken_up(path: Path, tuning: dict[str, Any]) -> None:
    other = Journal(path.with_name("journal-GPU-b.jsonl"), tuning)
    other.settle(16, Settled(PAIR, ROW))
    own = Journal(path, TUNING)
    assert own.best == {}
    # Its process begins it again.
    Journal(other.path, TUNING).settle(32, Settled(PAIR, ROW))
    own.refresh()
    assert set(own.best) == {32}


def test_a_finding_is_there_for_others_before_the_writer_goes_on(path: Path) -> None:
    journal = Journal(path, TUNING)
    journal.measuring(16, 0)
    assert Journal(path, TUNING).open == (16, 0)
    journal.settle(16, Settled(PAIR, ROW))
    assert Journal(path, TUNING).best == {16: Settled(PAIR, ROW)}
    journal.close()
    journal.close()
