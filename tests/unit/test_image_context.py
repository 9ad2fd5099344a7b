"""The image is made again exactly when what it is made from has changed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.image_context import digest, pack

OPTIONS = {"flavour": "local", "base_name": None, "base_suite": None}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    return make(tmp_path / "context")


def make(folder: Path) -> Path:
    for name, content in {
        "Dockerfile": "FROM x\n",
        "bin/sgl-admin": "#!/bin/sh\n",
        "../package/sgl_admin/a.py": "a = 1\n",
        "flavours/local/flavour.json": "{}",
        "flavours/gh200/flavour.json": "{}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "bin/sgl-admin").chmod(0o755)
    return folder


def packed(context: Path, flavour: str = "local") -> bytes:
    return pack(str(context), flavour, context.parent / "package" / "sgl_admin")


def of(context: Path, flavour: str = "local", **options: Any) -> str:
    return digest(packed(context, flavour), {**OPTIONS, **options})


def test_the_same_content_is_the_same_image(context: Path, tmp_path: Path) -> None:
    first = of(context)
    assert first.startswith("sha256:") and len(first) == 71
    assert of(make(tmp_path / "another" / "place")) == first
    os.utime(context / "Dockerfile", (0, 0))
    (context / "Dockerfile").chmod(0o664)
    (context / ".." / "package" / "sgl_admin" / "__pycache__").mkdir()
    (context / ".." / "package" / "sgl_admin" / "__pycache__" / "a.cpython-311.pyc").write_bytes(
        b"x"
    )
    (context / "flavours" / "gh200" / "flavour.json").write_text('{"other": 1}')
    assert of(context) == first


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "Dockerfile").write_text("FROM y\n"),
        lambda folder: (folder / "../package/sgl_admin/b.py").write_text(""),
        lambda folder: (folder / "../package/sgl_admin/a.py").rename(
            folder / "../package/sgl_admin/c.py"
        ),
        lambda folder: (folder / "../package/sgl_admin/a.py").chmod(0o755),
        lambda folder: (folder / "bin/sgl-admin").chmod(0o644),
        lambda folder: (folder / "flavours/local/flavour.json").write_text('{"services": []}'),
        lambda folder: (folder / "Dockerfile").unlink(),
    ],
)
def test_other_content_is_another_image(context: Path, change: Callable[[Path], Any]) -> None:
    first = of(context)
    change(context)
    assert of(context) != first


@pytest.mark.parametrize(
    "options", [{"base_name": "other:1"}, {"base_suite": "trixie"}, {"flavour": "gh200"}]
)
def test_other_options_make_another_image(context: Path, options: dict[str, str]) -> None:
    assert of(context, **options) != of(context)


def test_the_archive_holds_one_flavour_and_no_owner_or_time(context: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(context))) as archive:
        entries = {entry.name: entry for entry in archive}
    assert sorted(entries) == [
        "Dockerfile",
        "bin/sgl-admin",
        "flavours/local/flavour.json",
        "sgl_admin/a.py",
    ]
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}
    assert {name: entry.mode for name, entry in entries.items() if entry.mode != 0o644} == {
        "bin/sgl-admin": 0o755
    }


@pytest.mark.parametrize("flavour", ["gh300", "", "../flavours/local", "."])
def test_an_unknown_flavour_is_refused_with_the_known_ones(context: Path, flavour: str) -> None:
    with pytest.raises(AnsibleActionFail, match=r"set sgl_flavour to one of gh200, local"):
        pack(str(context), flavour)


def test_a_context_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="one of none"):
        pack(str(tmp_path), "local")
