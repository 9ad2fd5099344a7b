"""What a dead server is said to have died of: samples from SGLang and the libraries below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.contract.stages import ERROR_TYPES
from sgl_admin.sglang import ENGINE, deaths

SAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "deaths.json").read_text(encoding="utf-8")
)
DEATHS = [pytest.param(sample, id=sample["id"]) for sample in SAMPLES["deaths"]]
HEALTHY = [pytest.param(sample, id=sample["id"]) for sample in SAMPLES["healthy"]]
ARCHITECTURE = [
    "[2026-08-23 09:12:00 TP0] Scheduler hit an exception: Traceback (most recent call last):",
    '  File "/x/loader.py", line 3, in load',
    "    raise ValueError(name)",
    "ValueError: a cause that no table knows",
    "[2026-08-23 09:12:00] Received sigquit from a child process. It usually means it failed.",
]


@pytest.mark.parametrize("sample", DEATHS)
def test_each_death_has_its_type_words_and_remedy(sample: dict[str, Any]) -> None:
    death = ENGINE.death(sample["log"], sample["exit_code"])
    assert death.error_type == sample["error_type"], death
    assert sample["words"] in death.words
    assert sample.get("remedy", "") in death.remedy


@pytest.mark.parametrize("sample", DEATHS)
@pytest.mark.parametrize("before", HEALTHY)
def test_what_a_healthy_server_logs_changes_no_death(
    sample: dict[str, Any], before: dict[str, Any]
) -> None:
    alone = ENGINE.death(sample["log"], sample["exit_code"])
    assert ENGINE.death([*before["log"], *sample["log"]], sample["exit_code"]) == alone


@pytest.mark.parametrize("sample", HEALTHY)
def test_what_a_healthy_server_logs_is_no_cause(sample: dict[str, Any]) -> None:
    """Neither alone nor before a death of another cause."""
    for exit_code in (None, 1, -15, -11):
        death = ENGINE.death(sample["log"], exit_code)
        assert (death.error_type, death.remedy) == ("server_start_failed", ""), death
    death = ENGINE.death([*sample["log"], *ARCHITECTURE], -9)
    assert death.error_type == "server_start_failed"
    assert death.words == "ValueError: a cause that no table knows"


@pytest.mark.parametrize("sample", DEATHS)
@pytest.mark.parametrize("prefix", ["[rank0]: ", "\x1b[31m", ""])
def test_prefixes_and_colours_hide_no_cause(sample: dict[str, Any], prefix: str) -> None:
    lines = [line if line.startswith("[") else f"{prefix}{line}" for line in sample["log"]]
    assert ENGINE.death(lines, sample["exit_code"]).error_type == sample["error_type"]


@pytest.mark.parametrize("sample", SAMPLES["phrases"], ids=lambda sample: sample["line"][:40])
@pytest.mark.parametrize("certain", [True, False])
def test_each_phrase_is_known_in_a_traceback_and_without_one(
    sample: dict[str, Any], certain: bool
) -> None:
    log = [*ARCHITECTURE[:-2], sample["line"], ARCHITECTURE[-1]] if certain else [sample["line"]]
    death = ENGINE.death(log, -9 if certain else 1)
    assert death.error_type == sample["error_type"] and death.remedy
    assert sample["line"][-25:] in death.words or sample["line"][:40] in death.words


def test_every_phrase_has_a_sample() -> None:
    """One that nothing says is a guess."""
    said = [line for sample in SAMPLES["deaths"] for line in sample["log"]]
    said += [sample["line"] for sample in SAMPLES["phrases"]]
    unseen = [
        phrase
        for cause in deaths.CAUSES
        for phrase in cause.phrases
        if not any(re.search(phrase, line, re.IGNORECASE) for line in said)
    ]
    assert unseen == []
    assert all(
        sample["source"] for kind in ("deaths", "phrases", "healthy") for sample in SAMPLES[kind]
    )


def test_the_table_is_in_the_contracts_types_and_each_remedy_is_short() -> None:
    for cause in deaths.CAUSES:
        assert cause.error_type in ERROR_TYPES
        assert 10 < len(cause.remedy) <= 180 and not cause.remedy.endswith(".")


KILLED_ITSELF = "[2026-08-23 09:11:09] kill_process_tree called: parent_pid=1, include_parent=True"


@pytest.mark.parametrize(
    ("log", "exit_code", "oom_kills", "error_type"),
    [
        (["[2026-08-23 09:11:09 TP0] Load weight begin."], -9, 0, "oom"),
        (["[2026-08-23 09:11:09 TP0] Load weight begin."], 137, 0, "oom"),
        ([], -9, 0, "oom"),
        (["Loading safetensors checkpoint shards:  50% Completed | 5/10"], -9, 0, "oom"),
        # Who started it says how its child ended.
        (["bash: line 1: 811 Segmentation fault (core dumped)"], 137, 0, "server_start_failed"),
        # Without its exit code, as of a server that another process started.
        (["[2026-08-23 09:11:09 TP0] Load weight begin."], None, 0, "server_start_failed"),
        (["[2026-08-23 09:11:09 TP0] Load weight begin."], None, 1, "oom"),
        (["[2026-08-23 09:11:09 TP0] Load weight begin."], -15, 0, "server_start_failed"),
        # SGLang ends itself by SIGKILL after any failure of a child.
        ([*ARCHITECTURE, KILLED_ITSELF], -9, 0, "server_start_failed"),
        ([KILLED_ITSELF], -9, 0, "server_start_failed"),
        # The kernel's own count is believed before the words of those who lost a process.
        ([*ARCHITECTURE, KILLED_ITSELF], -9, 2, "oom"),
        (["RuntimeError: ninja exited with status 1"], 1, 1, "oom"),
        (["OSError: [Errno 28] No space left on device"], 1, 1, "insufficient_disk"),
    ],
)
def test_a_killed_server_is_called_out_of_memory(
    log: list[str], exit_code: int | None, oom_kills: int, error_type: str
) -> None:
    death = ENGINE.death(log, exit_code, oom_kills)
    assert death.error_type == error_type
    if error_type == "oom":
        assert "out-of-memory killer" in death.remedy and "free memory" in death.remedy


def test_a_traceback_whose_head_is_cut_off_is_read() -> None:
    cut = [
        "    scheduler = Scheduler(server_args)",
        "OSError: [Errno 122] Disk quota exceeded: '/x'",
    ]
    assert ENGINE.death(cut, 1).error_type == "insufficient_disk"


def test_lines_of_other_processes_between_hide_no_cause() -> None:
    log = [
        ARCHITECTURE[0],
        ARCHITECTURE[1],
        "[2026-08-23 09:12:00 TP1] Load weight end. avail mem=1 GB, out of memory is far",
        ARCHITECTURE[2],
        "OSError: [Errno 28] No space left on device",
    ]
    assert ENGINE.death(log, -9).error_type == "insufficient_disk"


def test_nothing_said_is_nothing_known() -> None:
    death = ENGINE.death([], 1)
    assert (death.error_type, death.words, death.remedy) == ("server_start_failed", "", "")
    assert ENGINE.death(["", "   "], None).words == ""
