# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The programs that an image takes from their projects' release archives: fetched by the host,
checked by digest, resumed where cut off.

An archive whose digest is not pinned is checked against the sums file that its release publishes,
fetched over TLS.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.urls import open_url

from ._image_parts import ELF_HEAD_BYTES, ImageError, elf_architecture, sha256_of

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_ORIGIN = "https://github.com"
_OPTIONS = ("version", "sha256")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A line of sha256sum, or of `shasum -b`: the digest, and the name behind a space or an asterisk.
_SUM = re.compile(r"([0-9a-f]{64})[ \t]+\*?(?:\./)?(\S+)")
_MAX_SUMS = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One release archive, and the program in it. Without `pinned`, the digest is the one that the
    release's own sums file has.
    """

    name: str
    url: str
    program: str
    sha256: str
    pinned: bool = True

    @property
    def file(self) -> str:
        return _file(self.url)

    @property
    def shown(self) -> str:
        return _shown(self.url)

    def warning(self) -> str | None:
        """What to say of an archive whose digest is not pinned."""
        if self.pinned:
            return None
        return (
            f"the digest of {self.file} is not pinned, so it was checked against the sums file of"
            f" its release: pin it with sgl_image_downloads: {{{self.name}: {{sha256:"
            f" {self.sha256}}}}}"
        )


def _file(url: str) -> str:
    return url.rpartition("/")[2]


def _shown(url: str) -> str:
    """The address for a message: without the name and password that a mirror's may hold."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True)
class Unpinned:
    """A release archive whose digest is not pinned, and its release's sums file."""

    name: str
    file: str
    sums: str

    @property
    def remedy(self) -> str:
        """The command that prints the digest, and where it belongs."""
        return (
            f"`curl -fsSL {_shown(self.sums)} | grep {self.file}` prints it; set"
            f" sgl_image_downloads: {{{self.name}: {{sha256: ...}}}}"
        )


@dataclass(frozen=True)
class PublishedSums:
    """The digests that releases publish of their own archives. One that was read is kept under
    `folder`; `brought` is a folder of archives that may hold the sums files too.
    """

    folder: str
    brought: str | None = None
    ca_bundle: str | None = None

    def digest(self, archive: Unpinned) -> str:
        """Raises ImageError."""
        try:
            with open(self._kept(archive.file), encoding="ascii", errors="replace") as stream:
                if _DIGEST.fullmatch(kept := stream.read()):
                    return kept
        except FileNotFoundError:
            pass
        digest = _sum_of(archive, self._brought(archive) or self._fetched(archive))
        os.makedirs(os.path.dirname(self._kept(archive.file)), exist_ok=True)
        with open(self._kept(archive.file), "w", encoding="ascii") as stream:
            stream.write(digest)
        return digest

    def forget(self, archive: Archive) -> None:
        """The next run reads the sums file again."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._kept(archive.file))

    def _kept(self, file: str) -> str:
        return os.path.join(self.folder, "sums", f"{file}.sha256")

    def _brought(self, archive: Unpinned) -> str | None:
        if not self.brought:
            return None
        try:
            path = os.path.join(self.brought, _file(archive.sums))
            with open(path, encoding="utf-8", errors="replace") as stream:
                return stream.read(_MAX_SUMS)
        except FileNotFoundError:
            return None

    def _fetched(self, archive: Unpinned) -> str:
        reason = "its address is not https, and such an answer proves nothing"
        try:
            if archive.sums.startswith("https://"):
                with open_url(archive.sums, timeout=_TIMEOUT_S, ca_path=self.ca_bundle) as answer:
                    # A redirection may lead elsewhere.
                    if answer.geturl().startswith("https://"):
                        return answer.read(_MAX_SUMS).decode(errors="replace")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error).replace(archive.sums, _shown(archive.sums))
        raise ImageError(
            f"the digest of {archive.file} is not pinned, and {_file(archive.sums)} of its release"
            f" cannot be fetched ({reason[:120]}): {archive.remedy}"
        )


def _sum_of(archive: Unpinned, text: str) -> str:
    for line in text.splitlines():
        entry = _SUM.fullmatch(line.strip())
        if entry and entry[2] == archive.file:
            return entry[1]
    raise ImageError(
        f"the digest of {archive.file} is not pinned, and {_file(archive.sums)} of its release does"
        f" not list it: set sgl_image_downloads: {{{archive.name}: {{sha256: ...}}}}"
    )


def forbidden(archive: Unpinned) -> str:
    """In place of PublishedSums.digest, for a lab that wants pinned digests only."""
    raise ImageError(
        f"the digest of {archive.file} is not pinned, and sgl_image_require_digests is true:"
        f" {archive.remedy}"
    )


def archives(
    recipe: dict[str, Any],
    given: dict[str, Any],
    architecture: str,
    mirror: str | None,
    published: Callable[[Unpinned], str],
) -> list[Archive]:
    """The archives that a flavour's recipe names, with the operator's versions and digests. Raises
    ImageError.

    `given` is by name: `{jaeger: {version: ..., sha256: ...}}`. A mirror has the paths of
    github.com under its own address. `published` gives the digest of an archive that is not pinned.
    """
    known = recipe.get("downloads", {})
    if strange := sorted(set(given) - set(known)):
        raise ImageError(
            f"sgl_image_downloads names {', '.join(strange)}, and this flavour downloads"
            f" {', '.join(known) or 'nothing'}"
        )
    made = []
    for name, entry in known.items():
        own = given.get(name) or {}
        if not isinstance(own, dict) or set(own) - set(_OPTIONS):
            raise ImageError(f"sgl_image_downloads.{name} takes {' and '.join(_OPTIONS)}")
        version = str(own.get("version") or entry["version"])
        if not _VERSION.fullmatch(version):
            raise ImageError(f"sgl_image_downloads.{name}.version is no version: {version!r}")
        major = str(entry.get("major", ""))
        if major and version.partition(".")[0] != major:
            raise ImageError(
                f"sgl_image_downloads.{name}.version is {version}, and this image runs {name}"
                f" {major} alone, as other majors have other programs and flags: set a version"
                f" {major}.x, or leave it out ({entry['version']})"
            )
        # Another version is another file: the pinned digest is not its.
        sha256 = own.get("sha256") or (
            entry["sha256"].get(architecture) if version == entry["version"] else None
        )
        if sha256 and not _DIGEST.fullmatch(str(sha256)):
            raise ImageError(f"sgl_image_downloads.{name}.sha256 is no sha256 digest: {sha256!r}")
        url, sums = (
            _mirrored(entry[key].format(version=version, architecture=architecture), mirror)
            for key in ("url", "sums")
        )
        digest = str(sha256) if sha256 else published(Unpinned(name, _file(url), sums))
        made.append(Archive(name, url, entry["program"], digest, pinned=bool(sha256)))
    return made


def _mirrored(url: str, mirror: str | None) -> str:
    return mirror.rstrip("/") + url.removeprefix(_ORIGIN) if mirror else url


def program(archive: Archive, folder: str) -> str:
    """Where the program of an archive is, or will be, once it is unpacked."""
    return os.path.join(folder, "programs", archive.sha256[:16], archive.program)


def provide(
    archive: Archive, folder: str, architecture: str, fetched: str | None, ca_bundle: str | None
) -> None:
    """Have the program of an archive under `folder`. Raises ImageError; what was fetched until then
    is gone on with the next time.

    `fetched` is the operator's folder of archives: one that lies there is not downloaded.
    """
    target = program(archive, folder)
    if os.path.exists(target):
        return
    brought = os.path.join(fetched, archive.file) if fetched else None
    if brought and os.path.exists(brought):
        remedy = f"{brought} is another file than the one wanted: bring the right one"
        _must_be(archive, brought, remedy)
        _unpack(archive, brought, target, architecture)
        return
    path = os.path.join(folder, "downloads", archive.file)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _fetch(archive, path, ca_bundle, fetched)
    _unpack(archive, path, target, architecture)
    os.unlink(path)


def _fetch(archive: Archive, path: str, ca_bundle: str | None, fetched: str | None) -> None:
    """Fetch an archive to `path`, going on where an earlier try was cut off."""
    begun = os.path.getsize(path) if os.path.exists(path) else 0
    headers = {"Range": f"bytes={begun}-"} if begun else None
    try:
        # Proxies are those of the environment, as for pip and the build. Some mirrors call an
        # archive's own gzip an encoding of theirs.
        with open_url(
            archive.url, headers=headers, timeout=_TIMEOUT_S, ca_path=ca_bundle, decompress=False
        ) as answer:
            begun = begun if answer.getcode() == 206 else 0
            with open(path, "ab" if begun else "wb") as target:
                shutil.copyfileobj(answer, target, _CHUNK)
            promised = answer.headers.get("Content-Length", "")
        came = os.path.getsize(path) - begun
        if promised.isdecimal() and came < int(promised):
            raise http.client.IncompleteRead(b"", int(promised) - came)
    except urllib.error.HTTPError as error:
        # 416: it was whole already, or is longer than it should be; the digest tells.
        if error.code != 416:
            raise ImageError(_unreachable(archive, fetched, str(error))) from error
    except http.client.IncompleteRead as error:
        kept = os.path.getsize(path)
        cut = f"it was cut off, and goes on after {kept} bytes when this is run again"
        raise ImageError(_unreachable(archive, fetched, cut)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(_unreachable(archive, fetched, str(error))) from error
    refusal = (
        f"{archive.shown} gave another file than the one wanted, which is thrown away: see what the"
        " mirror has"
    )
    try:
        _must_be(archive, path, refusal)
    except ImageError:
        os.unlink(path)
        raise


def _unreachable(archive: Archive, fetched: str | None, error: str) -> str:
    where = fetched or "a folder of this host"
    return (
        f"{archive.shown} cannot be fetched: {error.replace(archive.url, archive.shown)}; "
        f"set sgl_download_mirror to a mirror of github.com, or put {archive.file} into {where} "
        f"{'' if fetched else 'and set sgl_download_dir to it'}".rstrip()
    )


def _must_be(archive: Archive, path: str, remedy: str) -> None:
    if (found := sha256_of(path)) != archive.sha256:
        raise ImageError(f"{remedy} (sha256 {found}, wanted {archive.sha256})")


def _unpack(archive: Archive, path: str, target: str, architecture: str) -> None:
    """Take the program out of an archive, under its own name only once it is whole."""
    programs = os.path.dirname(os.path.dirname(target))
    os.makedirs(programs, exist_ok=True)
    # In the build folder itself, from which the next build removes what a killed one left.
    partial = tempfile.mkdtemp(prefix="program-", suffix=".partial", dir=os.path.dirname(programs))
    try:
        with tarfile.open(path) as packed:
            files = (entry for entry in packed if entry.isfile())
            named = (each for each in files if os.path.basename(each.name) == archive.program)
            entry = next(named, None)
            content = packed.extractfile(entry) if entry is not None else None
            if content is None:
                raise ImageError(
                    f"{archive.file} holds no program {archive.program}: it is not the archive that"
                    " it is named for"
                )
            unpacked = os.path.join(partial, archive.program)
            with open(unpacked, "wb") as stream:
                shutil.copyfileobj(content, stream, _CHUNK)
        os.chmod(unpacked, 0o755)  # noqa: S103 - a program
        with open(unpacked, "rb") as stream:
            found = elf_architecture(stream.read(ELF_HEAD_BYTES))
        if found != architecture:
            raise ImageError(
                f"{archive.program} of {archive.file} is a program for"
                f" {found or 'no Linux that is known'}, not for {architecture}"
            )
        os.chmod(partial, 0o755)  # noqa: S103 - its folder
        shutil.rmtree(os.path.dirname(target), ignore_errors=True)
        os.replace(partial, os.path.dirname(target))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageError(f"{archive.file} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
