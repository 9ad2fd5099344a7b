"""The site's index lists every page, and its tools are locked like the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def listed() -> set[str]:
    """The pages that the index's tables of contents name, from the checkout's root."""
    text = (ROOT / "scripts" / "site" / "index.md").read_text(encoding="utf-8")
    patterns = [
        line
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    found = {path for pattern in patterns for path in ROOT.glob(f"{pattern}.md")}
    return {str(path.relative_to(ROOT)) for path in found}


def test_every_page_is_in_the_sites_index() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 30
    assert sorted(pages - listed()) == []


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("requirements/*.in"), *ROOT.glob("execution_environment/*.in")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_requirements_file_is_locked_by_digest(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [locked] = re.findall(r"^\tfor file in (.*); do", makefile, re.MULTILINE)
    assert str(path.relative_to(ROOT).with_suffix("")) in locked.split()
    text = path.with_suffix(".txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines and all("--hash=sha256:" in line for line in lines)
    assert not re.search(r"^--.*url", text, re.MULTILINE)
