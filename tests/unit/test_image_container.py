"""What makes another container, as the role stack has it."""

from __future__ import annotations

from pathlib import Path

import yaml

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
    (start,) = yaml.safe_load((ROLE / "tasks/start.yml").read_text(encoding="utf-8"))
    (check,) = yaml.safe_load((ROLE / "tasks/check.yml").read_text(encoding="utf-8"))
    asked = {key: value for key, value in check[module].items() if key != "state"}
    made = start[module]
    others = {"volumes", "outdated", "telemetry_root", "profiles_root", "checked", "start_timeout"}
    assert asked == {key: value for key, value in made.items() if key not in others}
