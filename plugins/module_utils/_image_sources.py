# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An image that was built elsewhere: pulled from a registry, or loaded from an archive that `docker
save` wrote.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from . import _image_parts as image_parts
from ._contract import records
from ._docker_cli import DockerCli, Runner
from ._image_parts import ImageError, alone, check_image


class _Elsewhere:
    """The image `name`, which was built elsewhere."""

    def __init__(self, run: Runner, name: str, flavour: str, platform: str | None) -> None:
        """Raises DockerError where Docker cannot be used, ImageError for a platform that there is
        not.
        """
        self._docker = DockerCli(run)
        self._architecture = image_parts.architecture_of(platform)
        self._flavour = flavour
        self.name = name

    def found(self) -> dict[str, Any] | None:
        return self._docker.image(self.name)


class Pulled(_Elsewhere):
    """The image, by a registry's reference to it."""

    step = "pull"

    def __init__(
        self, run: Runner, name: str, flavour: str, platform: str | None, reference: str
    ) -> None:
        super().__init__(run, name, flavour, platform)
        self.reference = self.wanted = reference

    def is_current(self, image: dict[str, Any] | None) -> bool:
        if image is None or not image_parts.fits(image, self._architecture, self._flavour):
            return False
        if "@" in self.reference:
            return pulled_by_digest(image, self.reference)
        source = self._docker.image(self.reference)
        return source is not None and source["id"] == image["id"]

    def make(self) -> dict[str, Any]:
        """Pull and check it, and give it its name. Raises ImageError, DockerError."""
        image = image_parts.pull(self._docker, self.reference, self._architecture, "sgl_image_pull")
        check_image(self._docker, image, self._architecture, self._flavour)
        return _named(self._docker, self.reference, self.name)

    def warning(self, image: dict[str, Any]) -> str | None:
        """What is to be said of a reference that another image may have tomorrow."""
        return image_parts.tag_warning(self.reference, image, "sgl_image_pull")

    def settle(self) -> None:
        """Nothing is noted of an image that is pulled."""


def pulled_by_digest(image: dict[str, Any], reference: str) -> bool:
    """Whether an image is the one of a reference with a digest."""
    _ignored, _ignored, digest = reference.partition("@")
    return any(name.partition("@")[2] == digest for name in image.get("repo_digests", []))


class Loaded(_Elsewhere):
    """The image, from an archive on this host. What was loaded is noted, so that a converged
    host needs the archive no more.
    """

    step = "load"

    def __init__(
        self,
        run: Runner,
        name: str,
        flavour: str,
        platform: str | None,
        archive: str,
        sha256: str | None,
        build_dir: str,
    ) -> None:
        super().__init__(run, name, flavour, platform)
        self.archive = archive
        self._sha256 = sha256.lower().removeprefix("sha256:") if sha256 else None
        self._proven: dict[str, Any] | None = None
        self.wanted = f"sha256:{self._sha256}" if self._sha256 else archive
        digest = hashlib.sha256(name.encode()).hexdigest()
        self._note = Path(build_dir, f"loaded-{digest[:16]}.json")

    def is_current(self, image: dict[str, Any] | None) -> bool:
        note = self._noted()
        if (
            image is None
            or note.get("image_id") != image["id"]
            or not image_parts.fits(image, self._architecture, self._flavour)
        ):
            return False
        if self._sha256 and note.get("sha256"):
            return bool(note["sha256"] == self._sha256)
        if note.get("archive") != self.archive:
            return False
        stamp = self._stamp()
        if stamp is None:
            return not self._sha256
        if note.get("stamp") != stamp or (self._sha256 and self._digest() != self._sha256):
            return False
        self._proven = {**note, "sha256": self._sha256} if self._sha256 else None
        return True

    def settle(self) -> None:
        """Note a digest that was only now asked for, so that not every run reads the whole archive
        for it.
        """
        if self._proven:
            with alone(str(self._note.parent)):
                self._write(self._proven)

    def make(self) -> dict[str, Any]:
        """Check and load the archive, and give the image its name. Raises ImageError,
        DockerError.
        """
        stamp = self._stamp()
        if stamp is None:
            raise ImageError(
                f"there is no archive {self.archive} on this host: put it there, or set"
                " sgl_image_archive to where it is"
            )
        if self._sha256 and (found := self._digest()) != self._sha256:
            raise ImageError(
                f"{self.archive} has the sha256 digest {found}, and sgl_image_archive_sha256 is"
                f" {self._sha256}: it is incomplete, or another archive"
            )
        source = self._only_name()
        before = self._docker.image(source) if source != self.name else None
        self._docker.call("load", "--input", self.archive)
        image = self._docker.image(source)
        if image is None:
            raise ImageError(f"{source}, which {self.archive} holds, vanished; run this again")
        check_image(self._docker, image, self._architecture, self._flavour)
        named = _named(self._docker, source, self.name)
        self._give_back(source, before)
        note = {"archive": self.archive, "stamp": stamp, "sha256": self._sha256}
        self._write({**note, "image_id": named["id"]})
        return named

    def _write(self, note: dict[str, Any]) -> None:
        """In place of the one before; the caller holds the build folder."""
        records.sweep_temporaries(self._note.parent, self._note.name)
        records.write_json(self._note, note, 0o600)

    def _only_name(self) -> str:
        """The one name in the archive. Raises ImageError where it has none, or several."""
        names = image_parts.archive_names(self.archive)
        full = {image_parts.full_name(name) for name in names}
        ours = image_parts.full_name(self.name) in full
        if len(full) > 1 and ours:
            image_parts.check_names(self.archive, self.name)
        if len(full) != 1:
            raise ImageError(
                f"{self.archive} holds {len(names)} names of images"
                f" ({', '.join(sorted(names))[:150]}), none of them {self.name}: save one image"
                " alone, by its name"
            )
        return self.name if ours else names.pop()

    def _give_back(self, source: str, before: dict[str, Any] | None) -> None:
        """The archive's own name goes back to the image that had it. Raises DockerError."""
        if source == self.name:
            return
        if before is not None:
            self._docker.call("tag", before["id"], source)
        else:
            self._docker.call("rmi", source)

    def warning(self, image: dict[str, Any]) -> str | None:
        return None

    def _stamp(self) -> list[int] | None:
        """Size and time of the archive; None where it is not there."""
        try:
            status = os.stat(self.archive)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def _digest(self) -> str:
        try:
            return image_parts.sha256_of(self.archive)
        except OSError as error:
            raise ImageError(f"{self.archive} cannot be read: {error.strerror}") from error

    def _noted(self) -> dict[str, Any]:
        try:
            return records.read_json(self._note) or {}
        except (OSError, ValueError):
            return {}


def _named(docker: DockerCli, source: str, name: str) -> dict[str, Any]:
    """Give an image the name that the container is created from. Raises ImageError, DockerError."""
    if source != name:
        docker.call("tag", source, name)
    image = docker.image(name)
    if image is None:
        raise ImageError(f"image {name} vanished; run this again")
    return image
