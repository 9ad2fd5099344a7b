"""The folder of MoE configuration files (SGLANG_MOE_CONFIG_DIR): SGLang's own ones, and ours among
them.

The variable replaces SGLang's built-in folder, so its files must be there too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.engine import Lookup, Release
from sgl_admin.base.errors import StageFailure
from sgl_admin.contract.records import is_integer
from sgl_admin.moe import tables, verdict
from sgl_admin.moe.space import Config
from sgl_admin.moe.tables import Pair
from sgl_admin.records import caches
from sgl_admin.sglang import ENGINE

CACHE = "moe_configs"
# Not part of the cache's content: which of the files are not ours (they came with SGLang, or stand
# there until something is tuned), and which batch sizes of ours come of which tuning.
_BUILT_IN = ".built_in.json"
TUNED = ".tuned"
# In it: tunings whose rows gave way to another one's, as after a change of the image.
_REPLACED = "replaced"


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
            " not start: copy SGLang's own configs into it, or leave the variable out"
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
    record = files.read_valid(root() / _BUILT_IN)
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


def down_file(path: Path) -> Path:
    """Its neighbour, for the down projection alone."""
    return path.with_name(ENGINE.moe.down_name(path.name))


def rows(path: Path) -> dict[int, Pair]:
    """What a file and its neighbour have a server launch, by batch size; none where there is
    none.
    """
    return tables.whole(_usable(read(path)), _usable(read(down_file(path))))


def _usable(table: dict[int, Config]) -> dict[int, Config]:
    """The rows that a server can start with."""
    return {
        size: config
        for size, config in table.items()
        if is_integer(config.get("BLOCK_SIZE_M")) and config["BLOCK_SIZE_M"] > 0
    }


# --- rivals


def rivals(path: Path, release: Release, devices: Sequence[str], triton: str) -> dict[str, Any]:
    """The tables of both projections that a tuned row has to beat, by name: SGLang's defaults, what
    it ships for this GPU and for the nearest ones (`devices`), and what stands at `path` now.
    """
    lookup = ENGINE.moe.lookup(path.name)
    found: dict[str, Any] = {verdict.DEFAULT: {"up": None, "down": None}}
    source = release.built_in_moe_configs()
    if source is not None and source.is_dir() and lookup is not None:
        for number, device in enumerate(devices):
            name = ENGINE.moe.file_name(lookup, device)
            if up := _shipped(source, triton, name):
                down = _shipped(source, triton, ENGINE.moe.down_name(name))
                rival = verdict.SHIPPED if number == 0 else f"{verdict.NEAREST}:{device}"
                found[rival] = {"up": up, "down": down or None}
    _, placed = _built_in()
    if path.exists() and str(path.relative_to(configs())) not in placed:
        if before := rows(path):
            found[verdict.PREVIOUS] = {
                "up": {size: pair.up for size, pair in before.items()},
                "down": {size: pair.down for size, pair in before.items()},
            }
    return found


def _shipped(source: Path, triton: str, name: str) -> dict[int, Config]:
    """A file as SGLang finds it: of this Triton, or else of the newest one that has it."""
    folders = sorted(
        source.glob(ENGINE.moe.triton_folder("*")),
        key=lambda each: [int(part) for part in re.findall(r"\d+", each.name)],
        reverse=True,
    )
    for folder in (source / ENGINE.moe.triton_folder(triton), *folders):
        if (folder / name).exists():
            return read(folder / name)
    return {}


# --- ours


def tuned_record(path: Path) -> Path:
    """Where it stands which batch sizes of the file come of which tuning."""
    return root() / TUNED / path.name


def _record(path: Path, tuning: dict[str, Any], record_at: Path | None = None) -> dict[str, Any]:
    """The record of this tuning; empty where it is another one's."""
    record = files.read_valid(record_at or tuned_record(path))
    return record if record.get("tuning") == tuning else {}


def tuned(path: Path, tuning: dict[str, Any], record_at: Path | None = None) -> dict[int, Config]:
    """What a tuning of this key has put into the file, by batch size; its record may lie
    elsewhere.
    """
    record = _record(path, tuning, record_at)
    sizes = record.get("batch_sizes")
    if not isinstance(sizes, list):
        return {}
    present = _usable(read(path))
    # Where the other file is gone, SGLang would take this one's rows for it.
    other = _usable(read(down_file(path))) if record.get("both") is True else present
    return {
        size: present[size]
        for size in sizes
        if is_integer(size) and size in present and size in other
    }


def gains(
    path: Path, tuning: dict[str, Any], record_at: Path | None = None
) -> dict[int, dict[str, Any]]:
    """What was measured for each batch size (verdict.py); empty where that is not known."""
    measured = _record(path, tuning, record_at).get("measured")
    if not isinstance(measured, dict):
        return {}
    return {
        int(size): row
        for size, row in measured.items()
        if size.isascii() and size.isdigit() and len(size) < 10 and verdict.is_row(row)
    }


def filled_to(path: Path, tuning: dict[str, Any], record_at: Path | None = None) -> int:
    """Up to which size the rows between the tuned ones were measured and checked."""
    largest = _record(path, tuning, record_at).get("filled_to")
    return largest if is_integer(largest) else 0


def filled(path: Path, tuning: dict[str, Any], largest: int) -> None:
    """Note that the file answers for every size up to this one."""
    if record := _record(path, tuning):
        files.write_json(tuned_record(path), {**record, "filled_to": largest})


def lay(path: Path, base: dict[int, Pair], both: bool) -> None:
    """Have rows stand where there is no file, until what is tuned replaces them: with a few rows
    alone, one of them would answer for every size.
    """
    if path.exists():
        return
    placed_of, placed = _built_in()
    # Before they lie there, as what came with SGLang: they are not ours.
    _note_built_in(placed_of, sorted({*placed, *_names(path)}))
    _write_rows(path, base, both)


def add(
    path: Path,
    tuning: dict[str, Any],
    size: int,
    up: Config,
    down: Config | None = None,
    row: dict[str, Any] | None = None,
    both: bool = True,
) -> None:
    """Add the configurations of a batch size to the file and, where SGLang reads one for the down
    projection (`both`), to its neighbour; without one, the down projection takes the same.

    Of the old ones those of the same tuning stay; those of SGLang's own, or of another tuning, are
    kept only where ours has none.
    """
    ours = sorted({*tuned(path, tuning), size})
    measured = {str(other): each for other, each in gains(path, tuning).items()}
    record = {
        "schema_version": "1",
        "tuning": tuning,
        "batch_sizes": ours,
        "both": both,
        "measured": {**measured, **({str(size): row} if row else {})},
        "filled_to": filled_to(path, tuning),
    }
    _keep(path, tuning)
    _write_rows(path, {**rows(path), size: Pair(up, down or up)}, both)
    files.write_json(tuned_record(path), record)
    _forget_built_in(path)


def _replaced(path: Path, tuning: Any) -> Path:
    """Where the files of a tuning are kept."""
    return root() / TUNED / _REPLACED / f"{caches.digest(tuning)}-{path.stem}"


def _keep(path: Path, tuning: dict[str, Any]) -> None:
    """Put aside what another tuning than this has put into the file."""
    record = files.read_valid(tuned_record(path))
    if not isinstance(record.get("tuning"), dict) or record["tuning"] == tuning:
        return
    folder = _replaced(path, record["tuning"])
    copy(path, folder / path.name)
    files.write_json(folder / f"record-{path.name}", record)


def copy(source: Path, target: Path) -> None:
    """Have a file and its neighbour hold what another file and its neighbour hold."""
    for here, there in ((down_file(source), down_file(target)), (source, target)):
        if table := read(here):
            _write(there, table)
        else:
            there.unlink(missing_ok=True)


def replaced(path: Path, tuning: dict[str, Any]) -> dict[int, Config]:
    """The batch sizes of a tuning whose rows gave way to another one's, with their rows; none where
    the file has this tuning's.
    """
    if _record(path, tuning):
        return {}
    folder = _replaced(path, tuning)
    return tuned(folder / path.name, tuning, folder / f"record-{path.name}")


def take_back(path: Path, tuning: dict[str, Any]) -> None:
    """Have such a tuning's rows in the file again, as they were. What stands there is kept."""
    if not replaced(path, tuning):
        return
    folder = _replaced(path, tuning)
    record = _record(path, tuning, folder / f"record-{path.name}")
    _keep(path, tuning)
    # Removed first: where this is killed, the next call finds no record and takes the rows back.
    tuned_record(path).unlink(missing_ok=True)
    copy(folder / path.name, path)
    files.write_json(tuned_record(path), record)
    _forget_built_in(path)


def _write_rows(path: Path, pairs: dict[int, Pair], both: bool) -> None:
    """The down projection's first: without the other file it only changes SGLang's defaults."""
    ordered = dict(sorted(pairs.items()))
    if both:
        _write(down_file(path), {size: pair.down for size, pair in ordered.items()})
    _write(path, {size: pair.up for size, pair in ordered.items()})


def _write(path: Path, table: dict[int, Config]) -> None:
    text = json.dumps({str(size): config for size, config in table.items()}, indent=4) + "\n"
    files.write_text(path, text)


def _names(path: Path) -> set[str]:
    return {str(each.relative_to(configs())) for each in (path, down_file(path))}


def _forget_built_in(path: Path) -> None:
    """The files are ours from now on: a new SGLang does not replace them."""
    placed_of, placed = _built_in()
    names = _names(path)
    if names & set(placed):
        _note_built_in(placed_of, [name for name in placed if name not in names])


def remember(key: str, lookup: Lookup) -> None:
    """What a server of these settings asked for, so that a later prep knows it without a server."""
    files.write_json(
        root() / TUNED / f"lookup-{key}.json",
        {"schema_version": "1", "file_name": ENGINE.moe.file_name(lookup, "*")},
    )


def remembered(key: str) -> Lookup | None:
    name = files.read_valid(root() / TUNED / f"lookup-{key}.json").get("file_name")
    return ENGINE.moe.lookup(name) if isinstance(name, str) else None
