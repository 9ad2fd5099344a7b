"""What counts as compiled code, below /profiles and anywhere else in the container.

In a cache all counts but what is known to be something else; outside of the caches too, so a
compiler that is unknown here is named rather than missed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sgl_admin.base import paths
from sgl_admin.contract import places

# What compilers and their callers leave beside their results. FlashInfer appends to a log in its
# workspace (0.7.2, jit/core.py), and SGLang keeps which of a host's GPUs reach each other in its
# cache (custom_all_reduce_utils.py).
_SCRATCH_FILE = re.compile(
    r"\.lock$|\.tmp$|\.tmp\.|^tmp|\.log$|^gpu_p2p_access_cache_for_.*\.json$"
)
# TileLang works in the first two (0.1.12, cache/kernel_cache.py).
_SCRATCH_FOLDERS = frozenset(("tmp", ".staging"))
# Below SGLang's cache: tables and weights that it converts or downloads (arg_groups/fields/exec_.py
# and utils/runai_utils.py of 0.5.23).
_WEIGHTS = frozenset(("sglang/ple", "sglang/model_streamer"))
# Autotuners and the driver rewrite these in use: they vouch for nothing by their size.
_REWRITTEN = re.compile(r"(.*/)?autotune/.*\.json|cuda/(.*/)?index")

# Outside of the caches, files that are known to be something else: byte code, Prometheus' of
# several processes, SGLang's launch scripts (utils/numa_utils.py), what shells and editors keep.
# Inductor's precompiled headers have no variable, and are read only to compile something else
# (torch/_inductor/codecache.py).
_HARMLESS = re.compile(
    r".*\.(pyc|log|lock|sock|pid)|(counter|gauge_\w+|histogram|summary)_\d+\.db"
    r"|[a-z2-7]{52}\.h(\.gch)?|tmp[a-z0-9_]{8}"
    r"|sglang_temp_file_.*\.sh|sglang_weight_cache_.*\.ready"
    r"|\.(bash|python|sqlite)_history|\.(lesshst|viminfo|wget-hsts)"
)

# Files by path, each with its size and modification time.
Outside = dict[Path, tuple[int, int]]
# Whether a folder is looked into, by its path and stat.
_Enters = Callable[[Path, os.stat_result], bool]


def cache_files(cache: str) -> Iterator[tuple[Path, os.stat_result]]:
    """Each content file of a cache with its stat; folders that vanish meanwhile are passed over."""
    passed = {places.SIGNATURES, places.TUNING, *_SCRATCH_FOLDERS}
    weights = {paths.PROFILES / name for name in _WEIGHTS}

    def enters(place: Path, stat: os.stat_result) -> bool:
        return place.name not in passed and place not in weights

    for path, stat in _files(paths.PROFILES / cache, enters):
        if not _SCRATCH_FILE.search(path.name):
            yield path, stat


def is_rewritten(name: str) -> bool:
    """Whether a file of a cache, by its path below /profiles, changes its size in use."""
    return _REWRITTEN.fullmatch(name) is not None


def outside() -> Outside:
    """Files of the container's home and of its folders for temporary files that no mount keeps and
    that are not known to be something else than compiled code, with size and modification time.
    """
    return {
        path: (stat.st_size, stat.st_mtime_ns)
        for folder in (paths.HOME, paths.TMP, paths.VAR_TMP)
        if folder.is_dir()
        for path, stat in _files(folder, _unmounted(folder))
        # An empty file is no code: SGLang names its sockets by such.
        if stat.st_size and not _HARMLESS.fullmatch(path.name)
    }


def new_outside(now: Outside, before: Outside) -> list[str]:
    """The files of the first listing that the second lacks, or has otherwise."""
    return sorted(str(path) for path, state in now.items() if before.get(path) != state)


def _unmounted(folder: Path) -> _Enters:
    mounted = {paths.TELEMETRY, paths.PROFILES, paths.MODELS, paths.HUGGINGFACE}
    device = folder.stat().st_dev

    def enters(place: Path, stat: os.stat_result) -> bool:
        # What another user keeps there is not the server's.
        return stat.st_dev == device and place not in mounted and os.access(place, os.R_OK)

    return enters


def _files(root: Path, enters: _Enters) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files below a folder, in those folders that are entered."""
    folders = [root]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            try:
                stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False):
                if enters(Path(entry.path), stat):
                    folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), stat
