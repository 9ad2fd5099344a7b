"""What makes another container, as the role stack has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.labels import (
    CONTAINER_LABEL,
)

ROLE = Path(__file__).resolve().parents[2] / "roles/stack"
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))


def test_all_that_makes_another_container_is_in_its_digest() -> None:
    template = (ROLE / "tasks/start.yml").read_text(encoding="utf-8")
    used = {
        name for name in VARIABLES["stack_definition"] if f"stack_definition.{name}" in template
    }
    assert used == set(VARIABLES["stack_definition"])


def test_the_image_is_asked_for_the_same_container_but_for_its_mounts() -> None:
    module = "slice_bench.sglang.sgl_container"
    start, *_ = yaml.safe_load((ROLE / "tasks/start.yml").read_text(encoding="utf-8"))
    (check,) = yaml.safe_load((ROLE / "tasks/check.yml").read_text(encoding="utf-8"))
    asked = {key: value for key, value in check[module].items() if key != "state"}
    made = start[module]
    others = {"volumes", "outdated", "telemetry_root", "checked", "start_timeout"}
    assert asked == {key: value for key, value in made.items() if key not in others}


def _decided(name: str, arguments: list[str], argv: list[str] | None, digest: str = "d") -> Any:
    """A variable of the role, for a live run whose latest prep had a server with this command."""
    result = None if argv is None else {"run": {"server": {"argv": argv}}}
    found = {"running": True, "labels": {CONTAINER_LABEL: digest}}
    values: dict[str, Any] = {
        variable: trust_as_template(value) if isinstance(value, str) else value
        for variable, value in VARIABLES.items()
    }
    values |= {
        "settings_container_label": CONTAINER_LABEL,
        "sgl_server_args": arguments,
        "sgl_keep_running": False,
        "stack_digest": "d",
        "preflight_host": {"run": {"live": True, "prep_result": result}, "container": found},
    }
    return Templar(DataLoader(), variables=values).template(trust_as_template(f"{{{{ {name} }}}}"))


@pytest.mark.parametrize(
    ("arguments", "argv", "digest", "unknown"),
    [
        ([], None, "d", False),
        (["--x", "1"], None, "d", True),
        (["--x", "1"], ["python", "--x", "1", "--y"], "d", False),
        (["--x", "1"], ["python", "--x", "11"], "d", True),
        (["--x", "1"], ["python", "--x", "2", "1"], "d", True),
        # Another container may have another SGLang.
        (["--x", "1"], ["python", "--x", "1"], "other", True),
    ],
)
def test_arguments_are_asked_for_unless_the_live_run_had_them(
    arguments: list[str], argv: list[str] | None, digest: str, unknown: bool
) -> None:
    assert _decided("stack_arguments_unknown", arguments, argv, digest) is unknown


def test_a_converged_run_asks_nothing() -> None:
    assert _decided("stack_replaces", [], None) is False
    assert _decided("stack_replaces", [], None, "other") is True
