"""The folder of MoE configuration files (SGLANG_MOE_CONFIG_DIR): SGLang's own ones, and ours among
them.

The variable replaces SGLang's built-in folder, so its files must be there too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.engine import Lookup, Release
from sgl_admin.base.errors import StageFailure
from sgl_admin.moe.space import Config
from sgl_admin.records import caches
from sgl_admin.sglang import ENGINE

CACHE = "moe_configs"
# Not part of the cache's content: which of the files came with SGLang, and which batch sizes of
# ours come of which tuning.
_BUILT_IN = ".built_in.json"
TUNED = ".tuned"


def root() -> Path:
    return paths.PROFILES / CACHE


def work(tuning: dict[str, Any]) -> Path:
    """Where a tuning keeps its journal and its compiled kernels while it lasts; a killed one leaves
    them for the next.
    """
    return root() / caches.WORK / caches.digest(tuning)


def configs() -> Path:
    return root() / ENGINE.moe.folder


def folder(triton: str) -> Path:
    return configs() / ENGINE.moe.triton_folder(triton)


def make_ready(named: str, release: Release) -> None:
    """Have what a server needs in the folder that its environment names. Raises
    StageFailure(config_missing).

    Ours gets the files that came with SGLang; another one is its operator's, and only looked at.
    """
    if Path(named) == root():
        place_built_in(release)
    elif not (Path(named) / ENGINE.moe.folder).is_dir():
        raise StageFailure(
            "config_missing",
            f"{ENGINE.moe.variable}={named} has no folder {ENGINE.moe.folder}, so the server would"
            " not start: copy SGLang's own configs into it, or leave the variable away"
            " (sgl_server_env)",
        )


def place_built_in(release: Release) -> int:
    """Put the files that came with the installed SGLang where ours are; returns how many were
    written. Raises StageFailure(config_missing).

    A file of ours stays; one that came with an earlier SGLang is replaced, or goes where the new
    one has it no more.
    """
    source = release.built_in_moe_configs()
    if source is None or not source.is_dir():
        raise StageFailure(
            "config_missing",
            f"SGLang's own MoE configurations are not at {source}: the server would not start"
            " without them",
        )
    installed = ENGINE.version()
    placed_of, placed = _built_in()
    there = {name for name in placed if (configs() / name).exists()}
    if placed_of == installed and len(there) == len(placed):
        return 0
    names = sorted(str(path.relative_to(source)) for path in source.glob(ENGINE.moe.pattern))
    ours = {str(path.relative_to(configs())) for path in configs().glob(ENGINE.moe.pattern)} - there
    # One of the down projection alone belongs to the file that it came with.
    written = [
        name for name in names if name not in ours and ENGINE.moe.main_name(name) not in ours
    ]
    # Noted before they lie there, as of no SGLang yet: else those that a killed prep leaves, one of
    # them torn, would pass for ours.
    _note_built_in("", sorted(there | set(written)))
    for name in there - set(written):
        (configs() / name).unlink(missing_ok=True)
    for name in written:
        target = configs() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / name).read_bytes())
    configs().mkdir(parents=True, exist_ok=True)
    _note_built_in(installed, written)
    return len(written)


def _built_in() -> tuple[str | None, list[str]]:
    """Of which SGLang the built-in files are (None: of one without a version), and their names;
    none where that cannot be read.
    """
    try:
        record = files.read_json(root() / _BUILT_IN) or {}
    except ValueError:
        record = {}
    names = record.get("files")
    return record.get(ENGINE.name, ""), (
        [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    )


def _note_built_in(version: str | None, names: list[str]) -> None:
    files.write_json(
        root() / _BUILT_IN, {"schema_version": "1", ENGINE.name: version, "files": names}
    )


def read(path: Path) -> dict[int, Config]:
    """The configurations of a file of SGLang's format by batch size; none where there is no such
    file, or none that can be read.
    """
    try:
        found = {int(size): config for size, config in (files.read_json(path) or {}).items()}
    except ValueError:
        return {}
    return found if all(isinstance(config, dict) for config in found.values()) else {}


def tuned_record(path: Path) -> Path:
    """Where it stands which batch sizes of the file come of which tuning."""
    return root() / TUNED / path.name


def tuned(path: Path, tuning: dict[str, Any], record_at: Path | None = None) -> dict[int, Config]:
    """What a tuning of this key has put into the file, by batch size; its record may lie
    elsewhere.
    """
    try:
        record = files.read_json(record_at or tuned_record(path)) or {}
    except ValueError:
        record = {}
    if record.get("tuning") != tuning or not isinstance(record.get("batch_sizes"), list):
        return {}
    present = read(path)
    return {
        size: present[size]
        for size in record["batch_sizes"]
        if type(size) is int and size in present
    }


def add(path: Path, tuning: dict[str, Any], size: int, config: Config) -> None:
    """Add the tuned configuration of a batch size to the file.

    Of the old ones those of the same tuning stay; those of SGLang's own, or of another tuning, are
    kept only where ours has none.
    """
    ours = {**tuned(path, tuning), size: config}
    union = dict(sorted({**read(path), **ours}.items()))
    text = json.dumps({str(size): config for size, config in union.items()}, indent=4) + "\n"
    files.write_text(path, text)
    files.write_json(
        tuned_record(path), {"schema_version": "1", "tuning": tuning, "batch_sizes": sorted(ours)}
    )
    _forget_built_in(path)


def _forget_built_in(path: Path) -> None:
    """The file is ours from now on: a new SGLang does not replace it."""
    placed_of, placed = _built_in()
    down = path.with_name(ENGINE.moe.down_name(path.name))
    names = {str(each.relative_to(configs())) for each in (path, down)}
    if names & set(placed):
        # It was tuned for another one; ours are measured with one configuration for both
        # projections.
        down.unlink(missing_ok=True)
        _note_built_in(placed_of, [name for name in placed if name not in names])


def remember(key: str, lookup: Lookup) -> None:
    """What a server of these settings asked for, so that a later prep knows it without a server."""
    files.write_json(
        root() / TUNED / f"lookup-{key}.json",
        {"schema_version": "1", "file_name": ENGINE.moe.file_name(lookup, "*")},
    )


def remembered(key: str) -> Lookup | None:
    try:
        record = files.read_json(root() / TUNED / f"lookup-{key}.json") or {}
    except ValueError:
        return None
    name = record.get("file_name")
    return ENGINE.moe.lookup(name) if isinstance(name, str) else None
