"""The site's index lists every page, its tools are locked like the others, and the workflows of a
forge run what is there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import generate

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


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_is_there_with_the_least_rights(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps(path):
        command = step.get("run", "")
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for program in re.findall(r"(?:^|\s)((?:\.ci|scripts)/\S+)", command):
            assert os.access(ROOT / program, os.X_OK), program
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
    assert any("run" in step for step in steps(path))


def test_the_site_that_is_published_is_the_one_that_is_built() -> None:
    [uploaded] = [
        step["with"]["path"]
        for step in steps(ROOT / ".github" / "workflows" / "docs.yml")
        if "upload-pages-artifact" in step.get("uses", "")
    ]
    script = (ROOT / "scripts" / "site.sh").read_text(encoding="utf-8")
    [folder] = re.findall(r"^readonly SITE=(\S+)", script, re.MULTILINE)
    assert uploaded == f"{folder}/html" and 'say "the site is $SITE/html' in script


def test_each_locked_ansible_core_is_checked() -> None:
    """One Python of the matrix for each ansible-core in requirements/base.txt."""
    cores = generate.locked_cores()
    assert len(cores) == 2
    assert {generate.core_of(python) for python in generate.checked_pythons()} == set(cores)
