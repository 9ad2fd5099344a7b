"""What follows from the contract is as `make generate` writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import generate

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = generate.generated()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_file_is_as_generated(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == EXPECTED[name], "run `make generate`"


def test_a_changed_default_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    [first, *others] = generate.options.OPTIONS
    changed = type(first)(first.name, first.type, first.text, "another/model")
    monkeypatch.setattr(generate.options, "OPTIONS", (changed, *others))
    name = "roles/settings/defaults/main.yml"
    assert generate.generated()[name] != EXPECTED[name]
