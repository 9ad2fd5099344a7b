"""What follows from the contract is as `make generate` writes it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


CONTRACT = Path("plugins/module_utils/_contract")
# By what is added: the contract's file, the line before which it stands, itself, and where its name
# is then listed whole: file, and the list's key or the name of a definition.
ADDED = {
    "stage": (
        "stages.py",
        '    Stage("deep_gemm", ',
        '    Stage("added_one", "added_one", ("triton",), 77, "x"),',
        {"prep_result": ["stages"], "report": ["stages"]},
    ),
    "exporter": (
        "services.py",
        '    Service(\n        "dcgm_exporter",',
        '    Service("added_one", (Port("added_one", 9, "X."),), "/", 21, "added_metrics", ("x",),'
        " exporter=True),",
        {"manifest": ["services", "versions", "exporters_state"]},
    ),
    "cache": (
        "places.py",
        '    "triton": (',
        '    "added_one": ("ADDED_ONE_DIR",),',
        {"prep_result": ["before", "after"]},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_to_the_contract_is_in_schemas_and_examples(
    tmp_path: Path, name: str
) -> None:
    file, before, added, listed = ADDED[name]
    for part in ("plugins", "roles", "schemas", "scripts", "sgl_admin/contract", "slice_bench"):
        _copy(part, tmp_path)
    for part in (".github", "docs", "meta", "playbooks", "requirements", "pyproject.toml"):
        _copy(part, tmp_path)
    _copy(generate.EXAMPLES, tmp_path)
    (tmp_path / "sgl_admin" / "__init__.py").touch()
    contract = tmp_path / CONTRACT / file
    text = contract.read_text(encoding="utf-8")
    assert text.count(before) == 1
    contract.write_text(text.replace(before, f"{added}\n{before}"), encoding="utf-8")
    for written in (True, False):
        said = subprocess.run(
            [sys.executable, "scripts/generate.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert bool(said) is written, "what is whole stays as it is"
    for document, keys in listed.items():
        example = json.loads((tmp_path / generate.EXAMPLES / f"{document}.json").read_text())
        for key in keys:
            parts = list(_at(example, key))
            assert parts and all("added_one" in part for part in parts), (document, key)
    for path in (tmp_path / "schemas").glob("*.json"):
        for found in re.findall(r'"required": (\[[^\]]+\])', path.read_text(encoding="utf-8")):
            assert len(set(json.loads(found))) == len(json.loads(found)), (path.name, found)


def _copy(part: str, into: Path) -> None:
    source, target = ROOT / part, into / part
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)


def _at(document: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects of this key, wherever in a document, that list something."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key and isinstance(value, dict) and value:
                yield value
            yield from _at(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from _at(value, key)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("sgl_model", "no", id="a prep asks for it"),
        pytest.param("sgl_prometheus_port", "yes", id="of the container's environment"),
        pytest.param("sgl_shm_size", "yes", id="of its definition, by another variable"),
        pytest.param("sgl_environment", "yes", id="of its definition"),
        pytest.param("sgl_models_root", "yes", id="a mount"),
        pytest.param("sgl_owner_uid", "yes", id="its user"),
        pytest.param("sgl_image_base", "if the image changes", id="makes the image"),
        pytest.param("sgl_image_cuda", "no", id="only checked"),
        pytest.param("sgl_throttle", "no", id="only how it is made"),
    ],
)
def test_a_variable_says_whether_it_recreates_the_container(name: str, expected: str) -> None:
    assert generate.new_container(generate.options.BY_NAME[name]) == expected


def test_every_name_of_the_containers_definition_is_known_to_recreate_it() -> None:
    """The definition's indirections are all followed, so no variable of it is left out."""
    variables = generate.yaml.safe_load(generate._read("roles/stack/vars/main.yml"))
    definition = json.dumps(variables["stack_definition"])
    named = {name for name in re.findall(r"\bstack_\w+", definition) if name in variables}
    assert named - {"stack_image_id"} == set(generate._DEFINED_BY)
