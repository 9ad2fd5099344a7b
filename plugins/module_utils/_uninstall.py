# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Takes off a host tree what this collection made in it, by the contract's names, and says what is
left.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from . import _safe_tree as safe_tree
from ._contract import places, pruning, trees
from ._contract.texts import path_line

_TELEMETRY = (
    places.POINTER,
    places.DIGEST_KEY,
    places.PREPARED,
    *places.TELEMETRY_FOLDERS,
    pruning.ASIDE,
)
_PROFILES = (
    *places.CACHES,
    places.LOCKS,
    places.IN_PROGRESS,
    places.INCOMING,
    places.REBUILDING,
    places.BYTE_CODE,
    pruning.ASIDE,
)


class Uninstall:
    def __init__(self, roots: Mapping[str, str], dry_run: bool) -> None:
        """`roots` are root, telemetry, profiles, models and huggingface."""
        self._roots = roots
        self._dry_run = dry_run
        self.freed = pruning.Freed()
        self.left: list[str] = []

    def run(self, caches: bool, models: bool) -> None:
        """Raises OSError."""
        roots = self._roots
        self._named(roots["telemetry"], _TELEMETRY)
        if caches:
            self._named(roots["profiles"], _PROFILES)
        else:
            self._keep(roots["profiles"], "sgl_uninstall_caches")
        for name in ("models", "huggingface"):
            if models and os.path.dirname(roots[name]) == roots["root"]:
                self._whole(roots[name])
            else:
                self._keep(roots[name], "sgl_uninstall_models", outside=models)
        self._rmdir(roots["root"])

    def _named(self, path: str, names: tuple[str, ...]) -> None:
        """Remove these names in a folder, and the folder where nothing else is in it."""
        try:
            with safe_tree.folder(path) as folder:
                present = os.listdir(folder)
                for name in names:
                    if name in present:
                        self._remove(folder, name)
                others = sorted(set(present) - set(names))
        except FileNotFoundError:
            return
        if others:
            shown = ", ".join(path_line(name) for name in others[:3])
            self.left.append(f"{path_line(path)} (it holds {shown}, which is not ours)")
            return
        self._rmdir(path)

    def _whole(self, path: str) -> None:
        parent, name = os.path.split(path)
        try:
            with safe_tree.folder(parent) as folder:
                if safe_tree.exists(folder, name):
                    self._remove(folder, name)
        except FileNotFoundError:
            return

    def _remove(self, folder: int, name: str) -> None:
        self.freed.add(trees.allocated(folder, name))
        if not self._dry_run:
            trees.remove_tree(folder, name)

    def _keep(self, path: str, variable: str, outside: bool = False) -> None:
        parent, name = os.path.split(path)
        try:
            with safe_tree.folder(parent) as folder:
                if not safe_tree.exists(folder, name):
                    return
                size = pruning.size(trees.allocated(folder, name))
        except FileNotFoundError:
            return
        why = "it is outside of sgl_root" if outside else f"{variable}: true removes it"
        self.left.append(f"{path_line(path)} ({size}; {why})")

    def _rmdir(self, path: str) -> None:
        """Remove a folder that is empty; one that is a mount, or a link, stays."""
        if self._dry_run:
            return
        parent, name = os.path.split(path)
        try:
            with safe_tree.folder(parent) as folder:
                os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if not any(line.startswith(path_line(path)) for line in self.left):
                self.left.append(f"{path_line(path)} ({error.strerror})")
