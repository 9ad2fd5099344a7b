"""What is installed, and where: also a package that was installed editable, as SGLang's images do
it (`pip install --no-deps -e python[all]` in upstream's docker/Dockerfile).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from sgl_admin.base import versions
from sgl_admin.sglang import packages

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


@pytest.mark.parametrize(
    ("cubin", "jit", "environment", "refused"),
    [
        ("0.7.2", "0.7.2+cu130", {}, None),
        (None, None, {}, None),
        ("0.6.11", None, {}, "flashinfer-cubin 0.6.11"),
        ("0.7.2", "0.7.1+cu130", {}, "flashinfer-jit-cache 0.7.1+cu130"),
        ("0.6.11", None, {"FLASHINFER_DISABLE_VERSION_CHECK": "1"}, None),
        ("0.6.11", None, {"FLASHINFER_CUBIN_DIR": "/cubins"}, None),
    ],
)
def test_flashinfers_packages_have_to_be_of_one_version(
    monkeypatch: pytest.MonkeyPatch,
    cubin: str | None,
    jit: str | None,
    environment: dict[str, str],
    refused: str | None,
) -> None:
    """As flashinfer-python 0.7.2 compares them (flashinfer/jit/env.py)."""
    found = {"flashinfer-python": "0.7.2", "flashinfer-cubin": cubin, "flashinfer-jit-cache": jit}
    monkeypatch.setattr(versions, "installed", found.get)
    problem = packages.mismatch(environment)
    assert (problem is None) if refused is None else (problem is not None and refused in problem)


@pytest.mark.parametrize(
    ("writable", "compiled", "kept_elsewhere"),
    [(True, False, False), (False, True, False), (False, False, True)],
)
def test_byte_code_has_a_place_where_it_cannot_lie_beside_its_source(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writable: bool,
    compiled: bool,
    kept_elsewhere: bool,
) -> None:
    package = tmp_path / "sglang"
    (package / "__pycache__").mkdir(parents=True)
    main = package / "launch_server.py"
    main.touch()
    if compiled:
        Path(importlib.util.cache_from_source(str(main))).touch()
    monkeypatch.setattr(versions, "package_folder", lambda name: package)
    monkeypatch.setattr(packages.os, "access", lambda path, mode: writable)
    expected = {"PYTHONPYCACHEPREFIX": "/profiles/.byte_code"} if kept_elsewhere else {}
    for writes, more in (("", {}), ("1", {"PYTHONDONTWRITEBYTECODE": ""})):
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", writes)
        found = packages.byte_code_environment(Path("/profiles/.byte_code"))
        assert found == (expected | more if expected else {})
