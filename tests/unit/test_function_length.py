"""Functions of the product have at most 60 lines. Those that had more when this rule came are named
here, and may only become fewer.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("plugins", "sgl_admin", "slice_bench", "scripts")
LIMIT = 60
STILL_LONG: set[str] = set()


def long_functions(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 > LIMIT:
                yield node.name


def test_no_function_has_more_than_sixty_lines() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in long_functions(path.read_text(encoding="utf-8"))
    }
    assert sorted(found - STILL_LONG) == [], "split it by meaning"
    assert sorted(STILL_LONG - found) == [], "no longer long: take it off the list"


def test_a_long_function_is_found() -> None:
    body = "    pass\n"
    assert list(long_functions("def f():\n" + body * LIMIT)) == ["f"]
    assert list(long_functions("def f():\n" + body * (LIMIT - 1))) == []
