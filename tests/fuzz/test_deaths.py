"""What is in a dead server's log: whatever it is, the death has a type, and what a healthy server
says between changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from sgl_admin.contract.stages import ERROR_TYPES
from sgl_admin.sglang import ENGINE, deaths
from tests.fuzz.fuzzing import fuzz, reached

SAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "deaths.json").read_text(encoding="utf-8")
)
DEATHS = st.sampled_from(SAMPLES["deaths"])
HEALTHY = st.sampled_from([line for sample in SAMPLES["healthy"] for line in sample["log"]])
LOGGED = HEALTHY.filter(lambda line: line.startswith("[20"))
LINES = (
    st.sampled_from([line for sample in SAMPLES["deaths"] for line in sample["log"]])
    | HEALTHY
    | st.sampled_from(["", " ", "Process X:", "Traceback (most recent call last):", "\x1b[31m"])
    | st.text(max_size=40)
)
CODES = st.none() | st.integers(-70, 256)


@fuzz(deep=0.2, lines=st.lists(LINES, max_size=30), code=CODES, kills=st.integers(0, 3))
def test_any_log_has_a_death_of_the_contracts_types(
    lines: list[str], code: int | None, kills: int
) -> None:
    death = ENGINE.death(lines, code, kills)
    assert death.error_type in ERROR_TYPES and len(death.remedy) < 300
    assert death.words == "" or any(death.words[-20:] in line for line in lines), death
    assert not kills or death.error_type not in ("server_start_failed", "compile_failed")
    if death.error_type != "server_start_failed":
        reached()


@fuzz(
    deep=1.0, sample=DEATHS, before=st.lists(LOGGED, max_size=6), after=st.lists(LOGGED, max_size=2)
)
def test_what_others_log_around_a_death_changes_no_type(
    sample: dict[str, Any], before: list[str], after: list[str]
) -> None:
    log, code = sample["log"], sample["exit_code"]
    assert ENGINE.death([*before, *log, *after], code) == ENGINE.death(log, code)
    reached()


@pytest.mark.slow
@pytest.mark.long
def test_a_death_of_a_huge_log_is_found_in_time() -> None:
    """No phrase of the table takes long on a line that nearly matches it."""
    lines = ["Traceback (most recent call last):", *("device" * 20_000 for _ in range(20))]
    lines += ["error (" * 20_000, "permission denied " * 10_000, "[rank0]: " * 10_000]
    assert ENGINE.death(lines).error_type == "permissions_unexpected"
    assert deaths.CAUSES
