"""JSON of files, programs and other hosts is read by one function, which refuses what is nested
deeper than a walk through it may go.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from sgl_admin.contract.texts import clean, read_json_text

TOP = Path(__file__).resolve().parents[2]
# Programs that read only what this product wrote, and what asks whether SGLang could read a value.
OWN_WRITERS = {
    "plugins/module_utils/_contract/disclosure.py",
    "plugins/module_utils/_contract/texts.py",
    "plugins/module_utils/_image_build.py",
    "sgl_admin/base/disguise.py",
    "sgl_admin/base/ordered.py",
    "sgl_admin/facts/image_facts.py",
    "sgl_admin/moe/tuner.py",
    "sgl_admin/sglang/argument_parser.py",
    "slice_bench/playbook.py",
}


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("levels", [99, 100])
def test_what_a_walk_can_take_is_read(opening: str, closing: str, levels: int) -> None:
    text = opening * levels + "1" + closing * levels
    value = read_json_text(text)
    assert value == json.loads(text) == clean(value)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("levels", [101, 900, 20_000])
def test_what_is_nested_deeper_is_refused(opening: str, closing: str, levels: int) -> None:
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        read_json_text(opening * levels + "1" + closing * levels)


@pytest.mark.parametrize("text", ["", "{", "nul", b"\xff", '{"a": 1}{'])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json_text(text)


def test_other_json_than_our_own_is_read_by_that_function() -> None:
    readers = {
        str(file.relative_to(TOP))
        for folder in ("plugins", "sgl_admin", "slice_bench")
        for file in (TOP / folder).rglob("*.py")
        if any(
            isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    }
    workers = {name for name in readers if name.endswith("worker.py")}
    assert readers - workers == OWN_WRITERS
