"""What is installed, and where: also a package that was installed editable, as SGLang's images do
it (`pip install --no-deps -e python[all]` in upstream's docker/Dockerfile).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As upstream's python/pyproject.toml: a flat layout whose packages are found.
PROJECT = """\
[build-system]
requires = ["setuptools>=61"]
build-backend = "setuptools.build_meta"

[project]
name = "sglang"
version = "0.5.23"

[tool.setuptools.packages.find]
exclude = ["assets*", "benchmark*", "tests*"]
"""
BUILD = "from setuptools.build_meta import build_editable; print(build_editable('.'))"
ASK = """\
import json
from sgl_admin.base import versions
found = versions.package_folder("sglang")
print(json.dumps([versions.installed("sglang"), str(found), versions.package_folder("no_such")]))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment with SGLang installed editable, by setuptools itself."""
    project = tmp_path / "sgl-workspace" / "sglang" / "python"
    (project / "sglang").mkdir(parents=True)
    (project / "sglang" / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (project / "pyproject.toml").write_text(PROJECT)
    subprocess.run(
        [sys.executable, "-c", BUILD], cwd=project, check=True, capture_output=True, timeout=120
    )
    [wheel] = project.glob("*.whl")
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    [site] = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert list(site.glob("__editable___sglang_*_finder.py")), "not the layout of upstream's image"
    assert not (site / "sglang").exists()
    return environment / "bin" / "python"


def test_an_editable_package_is_found_and_not_imported(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(python), "-P", "-c", ASK],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sgl-workspace" / "sglang" / "python" / "sglang"
    assert json.loads(done.stdout) == ["0.5.23", str(folder), None]
