"""How another host's files come into the caches: verified beside them first, then all of them or
none.

A folder below /profiles/.incoming is an import. Without its commit record nothing of it counts, and
the next command removes it; with it everything in it was verified, and the next command finishes
placing it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sgl_admin.base import clock, files, paths, rights
from sgl_admin.base.errors import Refused
from sgl_admin.base.locks import locked
from sgl_admin.contract import places
from sgl_admin.contract.exit_codes import EXIT_NO_RESULT
from sgl_admin.records import rebuilding
from sgl_admin.records.archive import Broken, Entry, Manifest, Part, Reader, parse
from sgl_admin.records.caches import RECORDS
from sgl_admin.stages import STAGES

_COMMIT, _FILES = "commit.json", "files"
_LOCK_TIMEOUT_S = 60.0
# Left free, for the records of what is placed.
_RESERVE = 64 << 20
_STAGES = {stage.name: stage for stage in STAGES}
# How placing fails where something else lies in its way, or what is to be placed is gone: not for
# want of room or of a permission.
_IN_THE_WAY = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def check_paths(part: Part) -> str | None:
    """Why a part's files cannot be placed: outside of its stage's caches, or what lies there is in
    their way.
    """
    caches = _STAGES[part.stage].caches
    for folder in sorted({str(Path(entry.path).parent) for entry in part.files}):
        cache = folder.partition("/")[0]
        if cache not in caches:
            return f"{files.printable(folder)} is not a folder of this stage ({', '.join(caches)})"
        place = paths.PROFILES / folder
        if not Path(os.path.realpath(place)).is_relative_to(
            os.path.realpath(paths.PROFILES / cache)
        ):
            return f"{_on_host(folder)} is a link that leads out of the cache: remove it"
        there = next(above for above in (place, *place.parents) if os.path.lexists(above))
        if not there.is_dir():
            return f"{_on_host(there)} is not a folder: remove it"
        if there.stat().st_dev != paths.PROFILES.stat().st_dev:
            return f"{_on_host(folder)} is on another file system than {_on_host('.')}"
    for entry in part.files:
        if (path := paths.PROFILES / entry.path).is_dir() and not path.is_symlink():
            return f"{_on_host(entry.path)} is a folder, and a file in the archive: remove it"
    return None


def _on_host(name: Path | str) -> str:
    path = paths.PROFILES / name
    return files.printable(paths.to_host(path) or str(path))


def receive(reader: Reader, parts: tuple[Part, ...]) -> Path:
    """Verify the archive to its end, and lay these parts of it beside the caches; returns their
    folder. Needs the prep lock.

    Raises Broken, Refused for want of space, and OSError; then nothing is left of it.
    """
    _check_space(sum(part.size for part in parts))
    folder = paths.INCOMING / clock.new_id("import")
    wanted = {entry for part in parts for entry in part.files}
    try:
        # What is verified here is not another user's to change before it is placed.
        paths.INCOMING.mkdir(places.LOCK_RIGHTS.new, exist_ok=True)
        (folder / _FILES).mkdir(parents=True)
        copies: list[tuple[Path, list[Entry]]] = []

        def place_of(found: list[Entry]) -> BinaryIO | None:
            here = [entry for entry in found if entry in wanted]
            if not here:
                return None
            path = folder / _FILES / here[0].path
            path.parent.mkdir(parents=True, exist_ok=True)
            copies.append((path, here))
            return open(path, "xb", buffering=0)

        reader.read(place_of)
        for path, here in copies:
            # The first one is copied to the others, and its mode may allow no reading.
            for entry in reversed(here):
                _finish(path, folder / _FILES / entry.path, entry)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _finish(content: Path, path: Path, entry: Entry) -> None:
    if path != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, path)
    # What the host that gave it grants to others is not this one's to grant.
    os.chmod(path, entry.mode & ~rights.umask())
    # Ninja and Triton compare times: with new ones FlashInfer's kernels would be built once more.
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _check_space(size: int) -> None:
    free = shutil.disk_usage(paths.PROFILES).free
    if size + _RESERVE > free:
        raise Refused(
            EXIT_NO_RESULT,
            f"the archive's files take {size / 1e9:.1f} GB, and"
            f" {paths.to_host(paths.PROFILES) or paths.PROFILES} has {free / 1e9:.1f} GB free: free"
            " some and run again",
        )


def commit(folder: Path, parts: tuple[Part, ...]) -> None:
    """From here on what `receive` returned counts, whichever process is killed. Raises OSError and
    Broken; before that, nothing is left of it.
    """
    try:
        files.write_text(folder / _COMMIT, Manifest(parts).content.decode())
    except BaseException:
        if not (folder / _COMMIT).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _place(folder)


def settle(warnings: list[str]) -> None:
    """With the prep lock held: put back what a killed rebuild left, and finish or forget what a
    killed import left.
    """
    rebuilding.settle(warnings)
    try:
        folders = sorted(os.scandir(paths.INCOMING), key=lambda found: found.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for found in folders:
        folder = Path(found.path)
        if not found.is_dir(follow_symlinks=False):
            folder.unlink(missing_ok=True)
        elif not (folder / _COMMIT).exists():
            shutil.rmtree(folder)
        else:
            try:
                _place(folder)
            except (Broken, ValueError, *_IN_THE_WAY) as error:
                warnings.append(
                    files.printable(
                        f"an import that was killed cannot be finished ({error}); it is forgotten"
                    )
                )
                shutil.rmtree(folder)


def _place(folder: Path) -> None:
    manifest = parse(files.read_bytes(folder / _COMMIT))
    if unknown := [part.stage for part in manifest.parts if part.stage not in _STAGES]:
        raise Broken(f"this release knows no stage {unknown[0]}")
    with ExitStack() as held:
        for part in manifest.parts:
            held.enter_context(locked(part.stage, _LOCK_TIMEOUT_S))
        for part in manifest.parts:
            # Of an earlier try that was killed.
            for cache in _STAGES[part.stage].caches:
                files.sweep_temporaries(paths.PROFILES / cache / RECORDS)
            _STAGES[part.stage].adopt(part, folder / _FILES)
            if part.finished:
                # A prep that was killed at it left its marker, and would have the stage done again.
                (paths.IN_PROGRESS / f"{part.stage}.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
