"""Modules and module_utils run on the host's Python, which is 3.9 on RHEL 9 and its kin
(ansible-core 2.19 and later support targets from 3.8 or 3.9 on).

Syntax is ruff's (per-file-target-version); this finds what only fails once it is reached, and runs
modules by a real Python 3.9 where this machine has one.
"""

from __future__ import annotations

import ast
import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("modules", "module_utils")
    for path in (ROOT / "plugins" / folder).rglob("*.py")
)

# Of the standard library, what Python 3.10 to 3.14 added ("What's New In Python" of each), by
# module; `*` for a module of its own.
ADDED = {
    "builtins": {"aiter", "anext", "EncodingWarning", "ExceptionGroup", "BaseExceptionGroup",
                 "PythonFinalizationError"},
    "types": {"NoneType", "EllipsisType", "NotImplementedType", "UnionType", "get_original_bases"},
    "typing": {"TypeGuard", "TypeIs", "ParamSpec", "Concatenate", "TypeAlias", "TypeAliasType",
               "is_typeddict", "Self", "Never", "LiteralString", "NotRequired", "Required",
               "Unpack", "TypeVarTuple", "ReadOnly", "assert_never", "assert_type", "reveal_type",
               "dataclass_transform", "override", "clear_overloads", "get_overloads"},
    "itertools": {"pairwise", "batched"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "EnumCheck", "verify", "member", "nonmember", "property"},
    "contextlib": {"aclosing", "chdir"},
    "hashlib": {"file_digest"},
    "inspect": {"get_annotations", "getmembers_static", "markcoroutinefunction"},
    "os": {"eventfd", "splice", "process_cpu_count", "path.splitroot", "path.isjunction",
           "path.isreserved", "login_tty", "setns", "unshare"},
    "os.path": {"splitroot", "isjunction", "isreserved", "ALLOW_MISSING"},
    "sys": {"exception", "stdlib_module_names", "orig_argv", "activate_stack_trampoline"},
    "math": {"cbrt", "exp2", "sumprod", "fma"},
    "operator": {"call"},
    "copy": {"replace"},
    "warnings": {"deprecated"},
    "traceback": {"print_list_stack"},
    "statistics": {"covariance", "correlation", "linear_regression", "kde"},
    "tomllib": {"*"},
    "wsgiref.types": {"*"},
    "annotationlib": {"*"},
    "string.templatelib": {"*"},
    "compression": {"*"},
}  # fmt: skip
# Methods whose names nothing older has.
ADDED_METHODS = {"bit_count", "hardlink_to", "is_junction", "add_note", "walk_up", "from_uri"}
# Keyword arguments that came later, by the callable's last name.
ADDED_KEYWORDS = {
    "zip": {"strict"},
    "map": {"strict"},
    "dataclass": {"slots", "kw_only", "match_args", "weakref_slot"},
    "field": {"kw_only"},
    "bisect": {"key"}, "bisect_left": {"key"}, "bisect_right": {"key"}, "insort": {"key"},
    "glob": {"root_dir", "dir_fd", "include_hidden"}, "iglob": {"root_dir", "dir_fd"},
    "exists": {"follow_symlinks"}, "is_dir": {"follow_symlinks"},
    "TemporaryDirectory": {"ignore_cleanup_errors", "delete"},
    "NamedTemporaryFile": {"delete_on_close"},
    "rmtree": {"dir_fd", "onexc"},
    "Popen": {"process_group"}, "run": {"process_group"},
    "extract": {"filter"}, "extractall": {"filter"},
}  # fmt: skip


def newer(tree: ast.AST) -> Iterator[str]:
    """What a tree uses at run time that Python 3.9 does not have."""
    names: dict[str, str] = {}
    for node in _at_run_time(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name
                if "*" in ADDED.get(alias.name, ()):
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if ADDED.get(node.module or "", set()) & {alias.name, "*"}:
                    yield f"{node.lineno}: from {node.module} import {alias.name}"
        elif isinstance(node, ast.Name) and node.id in ADDED["builtins"]:
            yield f"{node.lineno}: {node.id}"
        elif isinstance(node, ast.Attribute):
            owner = names.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            if node.attr in ADDED_METHODS or node.attr in ADDED.get(owner, ()):
                yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    for keyword in node.keywords:
        if keyword.arg in ADDED_KEYWORDS.get(name, ()):
            yield f"{node.lineno}: {name}({keyword.arg}=)"
    if name in ("isinstance", "issubclass", "cast", "TypeVar", "NewType"):
        for argument in node.args:
            for part in ast.walk(argument):
                if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr):
                    yield f"{node.lineno}: {name}(... | ...)"


def _at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Each node but annotations, which `from __future__ import annotations` keeps as text, and what
    only a type checker reads.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            yield node
            yield from _at_run_time(node)


def _aliases(tree: ast.Module) -> Iterator[str]:
    """Types that are joined where a module is imported: `Kind = int | str`."""
    for node in _at_run_time(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
            parts = [
                part for part in ast.walk(node.value) if isinstance(part, ast.Name | ast.Constant)
            ]
            known = {"int", "str", "bool", "float", "bytes", "list", "dict", "tuple", "set", "None"}
            shown = {getattr(part, "id", str(getattr(part, "value", ""))) for part in parts}
            if isinstance(node.value.op, ast.BitOr) and shown & known:
                yield f"{node.lineno}: an alias of types joined by |"


@pytest.mark.parametrize(
    "line",
    [
        "from types import NoneType",
        "import types\nx = types.NoneType",
        "import tomllib",
        "zip(a, b, strict=True)",
        "isinstance(x, int | str)",
        "isinstance(x, (int, bytes | str))",
        "f((1).bit_count())",
        "from itertools import pairwise",
        "import dataclasses\n@dataclasses.dataclass(slots=True)\nclass A: pass",
        "from datetime import UTC",
        "def f():\n    from typing import TypeGuard",
    ],
)
def test_what_is_newer_is_found(line: str) -> None:
    assert list(newer(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "def f(a: int | None) -> int | str: ...",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from typing import TypeGuard",
        "a = {**b} | c",
        "x = flags | 1",
        "isinstance(x, (int, str))",
    ],
)
def test_what_is_as_old_is_not(line: str) -> None:
    assert not list(newer(ast.parse(line)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_what_runs_on_a_host_needs_no_python_newer_than_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    assert [*newer(tree), *_aliases(tree)] == []
    assert any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    ) or not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _python39() -> str | None:
    """A Python 3.9 of this machine: on the PATH, or one that pyenv installed."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = [shutil.which("python3.9"), *glob.glob(f"{root}/versions/3.9.*/bin/python3.9")]
    for path in found:
        if path and subprocess.run([path, "-c", "import ssl"], check=False).returncode == 0:
            return path
    return None


PYTHON39 = _python39()
IMPORTING = """
import importlib, json, sys, types
root, site, *names = sys.argv[1:]
sys.path.append(site)
for name in ("ansible_collections", "ansible_collections.slice_bench"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
collection = types.ModuleType("ansible_collections.slice_bench.sglang")
collection.__path__ = [root]
sys.modules[collection.__name__] = collection
failed = {}
for name in names:
    try:
        importlib.import_module("ansible_collections.slice_bench.sglang." + name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps([sys.version_info[:2], failed]))
"""


@pytest.mark.skipif(PYTHON39 is None, reason="this machine has no Python 3.9")
def test_everything_is_imported_by_a_real_python_3_9(tmp_path: Path) -> None:
    import ansible

    # Of the controller's packages ansible alone, as a module has it.
    (tmp_path / "ansible").symlink_to(Path(ansible.__file__).parent)
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    done = subprocess.run(
        [str(PYTHON39), "-c", IMPORTING, str(ROOT), str(tmp_path), *names],
        stdout=subprocess.PIPE, check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout) == [[3, 9], {}]


@pytest.mark.slow
@pytest.mark.skipif(PYTHON39 is None, reason="this machine has no Python 3.9")
def test_a_host_with_python_3_9_is_looked_at_and_given_its_folders(tmp_path: Path) -> None:
    """The modules as Ansible sends them, by the interpreter of a RHEL 9."""
    play = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "tasks": [
                {
                    "slice_bench.sglang.sgl_host_info": {
                        "ready_for": "tree",
                        "root": str(tmp_path / "tree"),
                        "allow_root": True,
                    }
                },
                {
                    "slice_bench.sglang.sgl_model_stage": {
                        "path": str(tmp_path / "models" / "tiny"),
                        "models_root": str(tmp_path / "models"),
                        "source": "tiny",
                    }
                },
            ],
        }
    ]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            "--inventory", "localhost,", "--connection", "local",
            "--extra-vars", json.dumps({"ansible_python_interpreter": PYTHON39}),
            str(tmp_path / "play.yml"),
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "models" / "tiny" / "config.json").is_file()
