"""A rebuild's old work, which lies beside the caches until its replacement stands.

A folder below /profiles/.rebuilding has one stage's files as they lay in the caches, and their
record. As long as it is there the rebuild has not ended: the next process puts them back. It is
renamed, in one step, once the new work has its record, and removed then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sgl_admin.base import files, paths
from sgl_admin.contract.stages import BY_NAME
from sgl_admin.records import caches
from sgl_admin.records.caches import SignatureRecord

_REPLACED = ".replaced-"


def set_aside(record: SignatureRecord, own: Iterable[Path]) -> None:
    """Move a stage's own files out of its caches, to the same file system. Needs the prep lock."""
    folder = paths.REBUILDING / record.stage
    folder.mkdir(parents=True)
    if record.path.exists():
        _keep(folder, record.path)
    for path in own:
        path.replace(_made(folder / path.relative_to(paths.PROFILES)))


def replaced(record: SignatureRecord) -> None:
    """The new work stands and has its record. What of the old work was not made again goes, but
    for what another record vouches for.
    """
    folder = paths.REBUILDING / record.stage
    if not folder.is_dir():
        return
    wanted = record.named_by_others()
    made_again = set()
    for path in _files(folder):
        name = path.relative_to(folder)
        if str(name) in wanted and os.path.lexists(paths.PROFILES / name):
            made_again.add(str(name))
        elif str(name) in wanted:
            path.replace(_made(paths.PROFILES / name))
    record.vouch_elsewhere(made_again, lambda path: _keep(folder, path))
    gone = paths.REBUILDING / f"{_REPLACED}{record.stage}"
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    files.fsync_folder(paths.REBUILDING)
    shutil.rmtree(gone)
    _remove_empty()


def put_back() -> list[str]:
    """With the prep lock held: put back what no replacement stands for; returns whose it was."""
    try:
        entries = sorted(os.scandir(paths.REBUILDING), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    stages = []
    for entry in entries:
        folder = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            folder.unlink(missing_ok=True)
        elif entry.name in BY_NAME:
            _put_back(folder, BY_NAME[entry.name].caches)
            stages.append(entry.name)
        else:
            shutil.rmtree(folder)
    _remove_empty()
    return stages


def settle(warnings: list[str]) -> None:
    """With the prep lock held: what a killed rebuild had set aside comes back."""
    for stage in put_back():
        warnings.append(f"a rebuild of {stage} was killed: what it was to replace was put back")


def _put_back(folder: Path, names: tuple[str, ...]) -> None:
    """The records come last: what they vouch for is whole again by then."""
    found = sorted(_files(folder), key=lambda path: path.parent.name == caches.RECORDS)
    for path in found:
        name = path.relative_to(folder)
        if name.parts[0] not in names:
            continue
        place = _made(paths.PROFILES / name)
        if place.is_dir() and not place.is_symlink():
            # Of the work that was to replace it.
            shutil.rmtree(place)
        path.replace(place)
    shutil.rmtree(folder)


def _keep(folder: Path, record: Path) -> None:
    """A record is replaced by a rename, so its old content stays here."""
    place = _made(folder / record.relative_to(paths.PROFILES))
    place.unlink(missing_ok=True)
    os.link(record, place)


def _remove_empty() -> None:
    with contextlib.suppress(OSError):
        paths.REBUILDING.rmdir()


def _files(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _folders, names in os.walk(folder) for name in names]


def _made(path: Path) -> Path:
    """A path whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
