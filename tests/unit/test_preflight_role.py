"""What the role preflight asks for where the operator says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    name: value
    for role in ("settings", "preflight")
    for name, value in yaml.safe_load(
        (ROOT / f"roles/{role}/vars/main.yml").read_text(encoding="utf-8")
    ).items()
}
INVENTORY = yaml.safe_load(
    (ROOT / "inventories/gh200/group_vars/sglang.yml").read_text(encoding="utf-8")
)
OMITTED = "{{ omit }}"
DEFAULTS = {
    "sgl_flavour": "gh200",
    "sgl_image_source": "build",
    "sgl_image_base": OMITTED,
    "sgl_image_cuda": OMITTED,
}


def trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: trusted(inner) for key, inner in value.items()}
    return trust_as_template(value) if isinstance(value, str) else value


def asked(expression: str, given: dict[str, str]) -> Any:
    """What a template of the role's tasks is for an operator's variables; None where the module is
    not given that option.
    """
    values = trusted({**VARIABLES, **DEFAULTS, **given, "wanted": f"{{{{ {expression} }}}}"})
    # A list leaves out what is omitted.
    found = Templar(DataLoader(), variables=values).template(trust_as_template("{{ [wanted] }}"))
    return found[0] if found else None


@pytest.mark.parametrize(
    ("given", "cuda"),
    [
        ({}, "13.0"),
        ({"sgl_image_source": "share"}, "13.0"),
        ({"sgl_image_cuda": "12.9"}, "12.9"),
        # Of another image only itself can say.
        ({"sgl_image_base": "lmsysorg/sglang:v0.5.19-cu129"}, None),
        ({"sgl_image_source": "pull"}, None),
        ({"sgl_flavour": "local"}, None),
    ],
    ids=["build", "share", "said", "another base", "pull", "local"],
)
def test_the_bases_cuda_is_known_before_it_is_pulled(
    given: dict[str, str], cuda: str | None
) -> None:
    assert asked("preflight_image_cuda", given) == cuda
    assert INVENTORY["sgl_image_cuda"] == asked("preflight_image_cuda", {})


@pytest.mark.parametrize(("flavour", "space"), [("local", 8), ("gh200", 120)])
def test_an_image_for_gpus_needs_more_room(flavour: str, space: int) -> None:
    assert asked("preflight_space_gb.docker", {"sgl_flavour": flavour}) == space
    assert INVENTORY["sgl_space_gb"]["docker"] == asked("preflight_space_gb.docker", {})


def test_the_module_is_asked_by_these() -> None:
    _, look = yaml.safe_load((ROOT / "roles/preflight/tasks/main.yml").read_text(encoding="utf-8"))
    options = look["slice_bench.sglang.sgl_host_info"]
    assert options["image_cuda"] == "{{ preflight_image_cuda }}"
    assert options["space_gb"] == "{{ preflight_space_gb | combine(sgl_space_gb) }}"
