"""Functions of the product have at most 60 lines, and its lines at most 100 columns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("plugins", "sgl_admin", "slice_bench", "scripts")
LINES = 60
COLUMNS = 100
# A line that is one URL or one digest cannot be split.
ONE_WORD = re.compile(r"\s*\S*(?:://|[0-9a-f]{40})\S*")


def sources() -> Iterator[tuple[Path, str]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_symlink():
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > LINES:
                yield node.name


def long_lines(source: str) -> Iterator[int]:
    """Also those that ruff lets pass: lines without a space, and lines that end in a noqa."""
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > COLUMNS and not ONE_WORD.fullmatch(line):
            yield number


def test_no_function_has_more_than_sixty_lines() -> None:
    found = [f"{path}: {name}" for path, source in sources() for name in long_functions(source)]
    assert found == [], "split it by meaning"


def test_no_line_has_more_than_a_hundred_columns() -> None:
    found = [f"{path}:{number}" for path, source in sources() for number in long_lines(source)]
    assert found == []


def test_a_long_function_is_found() -> None:
    body = "    pass\n"
    assert list(long_functions("def f():\n" + body * LINES)) == ["f"]
    assert list(long_functions("def f():\n" + body * (LINES - 1))) == []


def test_a_long_line_is_found() -> None:
    assert list(long_lines("x\n" + "x" * (COLUMNS + 1))) == [2]
    assert list(long_lines("x" * COLUMNS)) == []
    assert list(long_lines("x = 1  # noqa: F841 - " + "x" * COLUMNS)) == [1]
    assert list(long_lines("    https://example.com/" + "x" * COLUMNS)) == []
    assert list(long_lines("    image@sha256:" + "0123456789abcdef" * 6)) == []
