"""SGLang's own packages, read as they lie on the package index: nothing of them is imported, and of
what they hold only single functions that need no library are run.

A wheel that holds sources is downloaded once into a cache; of a wheel of kernels, which is too
large for that, the list of its files is read alone. pip's settings say which index that is.
"""

from __future__ import annotations

import ast
import functools
import io
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CACHE = Path("~/.cache/slice_bench.sglang/upstream").expanduser()
NEWEST = "newest"
ARCHITECTURES = ("x86_64", "aarch64")
_PYTHON = "3.11"
# pip takes a platform by its exact name: those that SGLang's wheels have had.
_MANYLINUX = ("manylinux_2_35", "manylinux_2_34", "manylinux_2_28", "manylinux2014")
_RANGE_BYTES = 1 << 18


class Package:
    """The Python files of a wheel, and what its metadata requires."""

    def __init__(self, wheel: Path) -> None:
        self.name, self.version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            self.names = archive.namelist()
            self.files = {
                name: archive.read(name).decode("utf-8-sig")
                for name in self.names
                if name.endswith(".py")
            }
            [metadata] = (name for name in self.names if name.endswith(".dist-info/METADATA"))
            self._metadata = archive.read(metadata).decode("utf-8")

    def matching(self, pattern: str) -> Iterator[str]:
        return (text for name, text in self.files.items() if re.fullmatch(pattern, name))

    def required(self, distribution: str) -> str | None:
        """The version that the package pins of another one."""
        pinned = re.search(
            rf"^Requires-Dist: {distribution}==([\w.]+)\s*$", self._metadata, re.MULTILINE
        )
        return pinned[1] if pinned else None

    @functools.cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Of the server."""
        return {
            name: ast.parse(text)
            for name, text in self.files.items()
            if name.startswith("sglang/srt/")
        }

    def module(self, dotted: str) -> str | None:
        """The file of a module or package."""
        stem = dotted.replace(".", "/")
        return next(
            (name for name in (f"{stem}.py", f"{stem}/__init__.py") if name in self.files), None
        )

    def function(self, module: str, name: str, **names: Any) -> Callable[..., Any]:
        """A function of a module by itself, with `names` in the place of what it calls."""
        tree = ast.parse(self.files[self.module(module) or ""])
        [found] = (
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
        )
        for argument in found.args.args:
            argument.annotation = None
        found.returns = None
        scope = dict(names)
        exec(compile(ast.Module([found], []), module, "exec"), scope)  # noqa: S102 - of the index, as asked for by name
        made: Callable[..., Any] = scope[name]
        return made


def flags(sglang: Package) -> list[str]:
    """Of the fields of ServerArgs, wherever a release declares them, and those added by hand."""
    found: set[str] = set()
    for text in sglang.matching(r"sglang/srt/(server_args|arg_groups/.*)\.py"):
        found.update(re.findall(r'"(--[a-z0-9][a-z0-9-]+)"', text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (
                node.name == "ServerArgs" or "Struct" in map(_last, node.bases)
            ):
                found.update(f"--{name.replace('_', '-')}" for name in annotated(node))
    return sorted(found)


def _last(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else ""


def annotated(node: ast.ClassDef) -> Iterator[str]:
    """The names of a class's annotated attributes."""
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            if not each.target.id.startswith("_"):
                yield each.target.id


def variables(sglang: Package) -> set[str]:
    [text] = sglang.matching("sglang/srt/environ.py")
    return set(re.findall(r"^    ([A-Z][A-Z0-9_]+) = Env", text, re.MULTILINE))


@functools.cache
def texts(sglang: Package, value: str) -> frozenset[str]:
    """Every text of the server, with `value` in the place of what is formatted into it."""
    found: set[str] = set()
    for node in (node for tree in sglang.trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(re.sub(r"%[sdr]", lambda _: value, node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = (
                str(part.value) if isinstance(part, ast.Constant) else value for part in node.values
            )
            found.add("".join(parts))
    return frozenset(found)


# --- the package index


def sources(version: str, cache: Path = CACHE) -> Package:
    """SGLang's wheel of a release, or of the newest one. Raises RuntimeError."""
    wheel = next(cache.glob(f"sglang-{version}-*.whl"), None)
    if wheel is None:
        requirement = "sglang" if version == NEWEST else f"sglang=={version}"
        url = _url(requirement, "x86_64")
        cache.mkdir(parents=True, exist_ok=True)
        wheel = cache / url.rpartition("/")[2]
        if not wheel.exists():
            _download(url, wheel)
    return Package(wheel)


def kernel_files(distribution: str, version: str, architecture: str) -> list[str]:
    """The files in a wheel of kernels. Raises RuntimeError."""
    return _remote_names(_url(f"{distribution}=={version}", architecture))


def _url(requirement: str, architecture: str) -> str:
    """Where pip would download a wheel from."""
    options = [f"--platform={name}_{architecture}" for name in _MANYLINUX]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps",
         "--ignore-installed", "--only-binary=:all:", f"--python-version={_PYTHON}", *options,
         "--target", "/nonexistent", "--report", "-", requirement],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"pip finds no {requirement} for {architecture}: {done.stderr[-300:]}")
    [wheel] = json.loads(done.stdout)["install"]
    url: str = wheel["download_info"]["url"]
    return url


def _open(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    authorities = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    context = ssl.create_default_context(cafile=authorities)
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=180, context=context) as answer:
        return answer.status, answer.read()


def _download(url: str, target: Path) -> None:
    partial = target.with_suffix(".partial")
    partial.write_bytes(_open(url, {})[1])
    partial.rename(target)


def _remote_names(url: str) -> list[str]:
    """The names in a zip archive, from its end: its directory is there."""
    size = _RANGE_BYTES
    while True:
        status, end = _open(url, {"Range": f"bytes=-{size}"})
        try:
            with zipfile.ZipFile(io.BytesIO(end)) as archive:
                return archive.namelist()
        except (zipfile.BadZipFile, ValueError) as error:
            if status != 206 or size > 1 << 24:
                raise RuntimeError(f"{url} is no zip archive whose end can be read") from error
            size *= 8
