# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bounds what this collection keeps outside of the host tree: reports and shared archives on the
controller, downloads for image builds and images on a host. It goes by its own names and labels
alone: everything else there belongs to others.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import _safe_tree as safe_tree
from ._contract import locks, pruning, trees
from ._contract.labels import INPUTS_LABEL, NAME_LABEL
from ._contract.texts import one_line, read_json_text
from ._docker_cli import DockerCli, DockerError
from ._image_parts import repository_of

# What a report, its signature and the log of a failed playbook are called. Group 2 is the time.
_REPORT = re.compile(r"((?:report|[a-z]+)-(\d{8}T\d{6}Z)-\w+)\.(?:html|json(?:\.minisig)?|log)")
_ARCHIVE = re.compile(r"(.+)\.tar(?:\.corrupt-\d+)?")
# In the build folder, see _image_build.py and _image_downloads.py.
_BUILDS = re.compile(r"wheelhouse(?:-\w+)?-[0-9a-f]{16}|programs|sums")
# Folders whose entries are each of one release.
_SHELVES = ("programs", "sums")
_SIZE = re.compile(r"([\d.]+) ?([kMGT]?B)")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Outside:
    def __init__(self, keep: Mapping[str, int], now: float, dry_run: bool) -> None:
        self._keep = keep
        self._now = now
        self._dry_run = dry_run
        self.summary = pruning.Summary()

    def _old(self, kind: str, changed: float) -> bool:
        return changed < self._now - self._keep[kind] * pruning.A_DAY_S

    def _remove(self, kind: str, folder: int, name: str) -> None:
        size = trees.allocated(folder, name)
        if not self._dry_run:
            trees.remove_tree(folder, name)
        self.summary.of(kind).add(size)

    # --- on the controller

    def reports(self, path: str) -> None:
        """A report's page, data and signature count as one."""
        with folder_at(path) as folder:
            if folder is None:
                return
            found: dict[str, list[str]] = {}
            for name in os.listdir(folder):
                if match := _REPORT.fullmatch(name):
                    found.setdefault(f"{match[2]} {match[1]}", []).append(name)
            beyond = sorted(found)[: -self._keep["reports"] or None]
            for each in beyond:
                for name in found[each]:
                    self._remove("reports", folder, name)

    def shared(self, path: str) -> None:
        """Archives of a folder for relays. A record without its archive counts for nothing."""
        with folder_at(path) as folder, self._locked("shared", folder, ".lock") as alone:
            if folder is None or not alone:
                return
            for name in sorted(os.listdir(folder)):
                match = _ARCHIVE.fullmatch(name)
                if match is None or not self._is_shared(folder, match[1], name):
                    continue
                record = f"{match[1]}.json"
                used = max(trees.latest_change(folder, each) for each in (name, record))
                if self._old("shared", used):
                    self._remove("shared", folder, name)
                    if name.endswith(".tar") and not self._dry_run:
                        trees.remove_tree(folder, record)

    @staticmethod
    def _is_shared(folder: int, name: str, archive: str) -> bool:
        """Whether a record of ours is beside an archive, or it was set aside by its name."""
        if not archive.endswith(".tar"):
            return True
        try:
            descriptor = safe_tree.open_file_at(folder, f"{name}.json", name)
            with open(descriptor, "rb") as stream:
                record = read_json_text(stream.read(1 << 20))
        except (OSError, ValueError):
            return False
        return isinstance(record, dict) and {"digest", "sha256", "bytes", "finished"} <= set(record)

    # --- on a host

    def builds(self, path: str) -> None:
        with folder_at(path) as folder, self._locked("builds", folder, ".lock") as alone:
            if folder is None or not alone:
                return
            for name in sorted(os.listdir(folder)):
                if not _BUILDS.fullmatch(name):
                    continue
                if name not in _SHELVES:
                    self._remove_old("builds", folder, name)
                    continue
                with trees.inner(folder, name) as shelf:
                    if shelf is not None:
                        for entry in sorted(os.listdir(shelf)):
                            self._remove_old("builds", shelf, entry)

    def _remove_old(self, kind: str, folder: int, name: str) -> None:
        if self._old(kind, trees.latest_change(folder, name)):
            self._remove(kind, folder, name)

    def images(
        self, docker: DockerCli, name: str, every: bool = False, container: str | None = None
    ) -> None:
        """Images of ours that no container uses, but the newest ones and the one that has the name;
        with `every`, these too. What has another name, or lost one, is another's. A dry run may
        foretell that `container` is gone by then. Raises DockerError.
        """
        used = _used_images(docker, container if self._dry_run else None)
        current = docker.image(name)
        repository = repository_of(name)
        found = [
            image
            for image in _our_images(docker)
            if image["Id"] not in used and _is_ours(image, repository)
        ]
        found.sort(key=lambda image: str(image.get("Created", "")), reverse=True)
        if not every:
            others = [image for image in found if current is None or image["Id"] != current["id"]]
            found = others[self._keep["images"] :]
        sizes = _unique_sizes(docker) if found else {}
        for image in found:
            names = [tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]
            if not self._dry_run:
                try:
                    docker.call("image", "rm", *(names or [image["Id"]]))
                except DockerError as error:
                    self.summary.kept.append(
                        f"image {image['Id'][:19]} is not removed: {one_line(error, 200)}"
                    )
                    continue
            self.summary.of("images").add(sizes.get(image["Id"], 0))

    @contextlib.contextmanager
    def _locked(self, kind: str, folder: int | None, name: str) -> Iterator[bool]:
        """Whether no other process works in the folder; it is held as long as this lasts. A dry run
        makes no file.
        """
        if folder is None or (self._dry_run and not safe_tree.exists(folder, name)):
            yield True
            return
        descriptor = locks.open_file(name, dir_fd=folder)
        try:
            try:
                locks.take(descriptor, 0, name)
                alone = True
            except OSError:
                alone = False
                self.summary.kept.append(
                    f"{pruning.WORDS[kind]} stay: {locks.holder(descriptor)} works there"
                )
            yield alone
        finally:
            os.close(descriptor)


def folder_at(path: str) -> contextlib.AbstractContextManager[int | None]:
    """A folder of the host, opened by `safe_tree.open_folder`; None where it is not there."""
    return trees.opened(lambda: safe_tree.open_folder(os.path.abspath(path)))


def _our_images(docker: DockerCli) -> list[dict[str, Any]]:
    words = ["image", "ls", "--all", "--no-trunc", "--quiet", "--filter", f"label={INPUTS_LABEL}"]
    ids = sorted(set(docker.call(*words).split()))
    found = [docker.inspect("image", each) for each in ids]
    return [image for image in found if image is not None]


def _is_ours(image: dict[str, Any], repository: str) -> bool:
    """Whether it has no names but ours; one that has none must have been built for ours."""
    tags = [tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]
    if not tags:
        labels = (image.get("Config") or {}).get("Labels") or {}
        tags = [labels.get(NAME_LABEL, "")]
    return all(repository_of(tag) == repository for tag in tags)


def _used_images(docker: DockerCli, without: str | None) -> set[str]:
    """The images of all other containers, those too that do not run. Raises DockerError."""
    listed = docker.call("ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Names}}")
    rows = [line.partition(" ") for line in listed.splitlines()]
    ids = [container for container, _space, name in rows if name != without]
    if not ids:
        return set()
    listed = docker.call("container", "inspect", "--format", "{{.Image}}", *ids)
    return set(listed.split())


def _unique_sizes(docker: DockerCli) -> dict[str, int]:
    """What only this image takes, of each image, by its id; nothing where Docker does not say."""
    try:
        output = docker.call("system", "df", "--verbose", "--format", "{{json .Images}}")
        images = read_json_text(output)
    except (DockerError, ValueError):
        return {}
    sizes = {}
    for image in images if isinstance(images, list) else []:
        match = _SIZE.fullmatch(str(image.get("UniqueSize"))) if isinstance(image, dict) else None
        if match:
            sizes[str(image.get("ID"))] = int(float(match[1]) * _UNITS[match[2]])
    return sizes
