"""docs/contributing/faults.md promises a test for each of its lines."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rows() -> list[str]:
    """The tables' lines, without their heads."""
    lines = (ROOT / "docs" / "contributing" / "faults.md").read_text(encoding="utf-8").splitlines()
    return [
        line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("| ") and not after.startswith("|---")
    ]


def known() -> set[str]:
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "molecule").rglob("test_*.py")]
    return {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_every_line_names_its_tests() -> None:
    there = known()
    assert len(rows()) > 30
    without = [row for row in rows() if not re.search(r"`test_\w+`", row)]
    assert without == []
    assert (
        sorted({name for row in rows() for name in re.findall(r"`(test_\w+)`", row)} - there) == []
    )


def test_every_test_of_a_refusal_is_a_line() -> None:
    text = (ROOT / "docs" / "contributing" / "faults.md").read_text(encoding="utf-8")
    refused = re.findall(
        r"^def (test_\w+)",
        (ROOT / "tests" / "integration" / "test_refused.py").read_text(),
        re.MULTILINE,
    )
    assert [name for name in refused if f"`{name}`" not in text] == []


def test_security_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "contributing" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert sorted(named - known()) == []
