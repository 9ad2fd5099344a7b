"""A folder of sgl_admin imports from itself and from the folders before it, and of SGLang's wing
only the engine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "sgl_admin"
# From the bottom.
ORDER = (
    "contract",
    "base",
    "records",
    "sglang",
    "facts",
    "serving",
    "moe",
    "perf",
    "stages",
    "prep",
    "share",
    "smoke",
    "init",
    "commands",
)
# What other folders may import from a wing.
WINGS = {"sglang": ("ENGINE", "Release")}


def imports(file: Path, root: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and full name, in parts, of each import, also in functions and for types only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(root).parts[: -node.level]) if node.level else []
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield node.lineno, (*package, *module, alias.name)


def offences(root: Path) -> list[str]:
    """Each import that breaks the order or reaches into a wing."""
    found = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        folder = file.relative_to(root).parts[1]
        for line, name in imports(file, root):
            if len(name) < 2 or name[0] != PACKAGE:
                continue
            if why := offence(folder, name):
                found.append(f"{file.relative_to(root)}:{line}: {'.'.join(name)}: {why}")
    return found


def offence(folder: str, name: tuple[str, ...]) -> str | None:
    """What is wrong with an import of this name in a folder, or in a file beside the folders."""
    target = name[1]
    if target not in ORDER or target == folder:
        # The package's own names, such as its version.
        return None
    if folder == "__main__.py":
        return None
    if folder not in ORDER:
        return f"{folder} imports from no folder"
    if ORDER.index(target) > ORDER.index(folder):
        return f"{target} is above {folder}"
    if target in WINGS and name[2:] not in [(each,) for each in WINGS[target]]:
        return f"other folders know {target} by {WINGS[target][0]} only"
    return None


def test_every_folder_is_in_the_order() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders - set(ORDER) == set()


def test_every_import_leads_down() -> None:
    assert offences(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "why"),
    [
        ("records/job.py", "from sgl_admin.serving import server", "serving is above records"),
        ("records/job.py", "from sgl_admin.serving.server import x", "serving is above records"),
        ("records/job.py", "import sgl_admin.serving.server", "serving is above records"),
        ("records/job.py", "from sgl_admin import serving", "serving is above records"),
        ("records/job.py", "from ..serving import server", "serving is above records"),
        ("records/job.py", "def f():\n    from sgl_admin.moe import x", "moe is above records"),
        ("records/job.py", "if 0:\n    from sgl_admin.moe import x", "moe is above records"),
        (
            "stages/base.py",
            "from sgl_admin.sglang import releases",
            "other folders know sglang by ENGINE only",
        ),
        (
            "stages/base.py",
            "from sgl_admin.sglang.kernels import ENGINE",
            "other folders know sglang by ENGINE only",
        ),
        ("__init__.py", "from sgl_admin.base import paths", "__init__.py imports from no folder"),
        ("stages/base.py", "from sgl_admin.sglang import ENGINE", None),
        ("stages/base.py", "from sgl_admin.base import paths", None),
        ("stages/base.py", "from sgl_admin import __version__", None),
        ("stages/base.py", "from sgl_admin.stages.other import x", None),
        ("stages/base.py", "import json", None),
        ("sglang/engine.py", "from sgl_admin.sglang import releases", None),
        ("__main__.py", "from sgl_admin.commands.main import main", None),
    ],
)
def test_an_import_that_leads_up_or_into_the_wing_is_named(
    tmp_path: Path, file: str, line: str, why: str | None
) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line + "\n")
    found = offences(tmp_path)
    if why is None:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(f"{PACKAGE}/{file}:{line.count(chr(10)) + 1}: ")
    assert found[0].endswith(why)
