"""How another host's files come into the caches: verified beside them first, then all of them or none.

A folder below /profiles/.incoming is an import. Without its commit record nothing of it counts, and the next command removes it; with it
everything in it was verified, and whoever comes next finishes placing it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sgl_admin import clock, files, paths
from sgl_admin.errors import EXIT_NO_RESULT, Refused
from sgl_admin.locks import locked
from sgl_admin.share.archive import Broken, Entry, Manifest, Part, Reader, parse
from sgl_admin.stages import STAGES

_COMMIT, _FILES = "commit.json", "files"
_LOCK_TIMEOUT_S = 60.0
# Left free, for the records of what is placed.
_RESERVE = 64 << 20
_STAGES = {stage.name: stage for stage in STAGES}


def check_paths(part: Part) -> str | None:
    """Why a part's files cannot be placed: outside of its stage's caches, or through a link that leads out of them."""
    caches = _STAGES[part.stage].caches
    for folder in sorted({str(Path(entry.path).parent) for entry in part.files}):
        cache = folder.partition("/")[0]
        if cache not in caches:
            return f"{files.printable(folder)} is not a folder of this stage ({', '.join(caches)})"
        if not Path(os.path.realpath(paths.PROFILES / folder)).is_relative_to(os.path.realpath(paths.PROFILES / cache)):
            return f"{paths.to_host(paths.PROFILES / folder)} is a link that leads out of the cache: remove it"
    return None


def receive(reader: Reader, parts: tuple[Part, ...]) -> Path:
    """Verify the archive to its end, and lay these parts of it beside the caches; returns their folder. Needs the prep lock.

    Raises Broken, Refused for want of space, and OSError; then nothing is left of it.
    """
    _check_space(sum(part.size for part in parts))
    folder = paths.INCOMING / clock.new_id("import")
    wanted = {entry for part in parts for entry in part.files}
    try:
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
            for entry in here:
                _finish(path, folder / _FILES / entry.path, entry)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _finish(content: Path, path: Path, entry: Entry) -> None:
    if path != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(content, path)
    os.chmod(path, entry.mode)
    # Ninja and Triton compare times: with new ones FlashInfer's kernels would be built once more.
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _check_space(size: int) -> None:
    usage = os.statvfs(paths.PROFILES)
    free = usage.f_bavail * usage.f_frsize
    if size + _RESERVE > free:
        raise Refused(
            EXIT_NO_RESULT,
            f"the archive's files take {size / 1e9:.1f} GB, and {paths.to_host(paths.PROFILES) or paths.PROFILES} has {free / 1e9:.1f} GB "
            "free: free some and run again",
        )


def commit(folder: Path, parts: tuple[Part, ...]) -> None:
    """From here on what `receive` returned counts, whoever is killed. Raises OSError; then nothing is left of it."""
    try:
        files.write_text(folder / _COMMIT, Manifest(parts).content.decode())
    except BaseException:
        if not (folder / _COMMIT).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _place(folder)


def settle(warnings: list[str]) -> None:
    """With the prep lock held: finish or forget what a killed import left."""
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
            except (Broken, ValueError, FileNotFoundError) as error:
                warnings.append(f"an import that was killed cannot be finished ({error}); it is forgotten")
                shutil.rmtree(folder)


def _place(folder: Path) -> None:
    manifest = parse(files.read_bytes(folder / _COMMIT))
    with ExitStack() as held:
        for part in manifest.parts:
            held.enter_context(locked(part.stage, _LOCK_TIMEOUT_S))
        for part in manifest.parts:
            _STAGES[part.stage].adopt(part, folder / _FILES)
    shutil.rmtree(folder)
