# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts a model in its place on a host: copied beside, in slices that can be killed, verified, and
swapped in whole.

All that a slice has to know of the ones before is on the disk, below ``<models root>/.staging``:
the next one goes on, in any process. The name of the model always holds the old files or the new
ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from . import _model_digests as model_digests
from . import _model_files as model_files
from . import _safe_tree as safe_tree
from ._contract import locks, places, records
from ._contract.texts import path_line
from ._host_tree import TEMP_NAME, HostTreeError, make_directory, missing_directories
from ._model_digests import MEMO, RECORD, SOURCE_MEMO, STATE, Digest, Memo, Progress, Slice
from ._model_files import ModelError, ModelMissing, several

STAGING = ".staging"
# The cache of huggingface_hub: snapshots/<commit>/<file> links to ../../blobs/<digest>.
HUB_SNAPSHOTS, HUB_BLOBS = "snapshots", "blobs"
# A slice ends on time also where a disk writes 10 MB/s.
_CHUNK = 16 << 20
_SPARE = 0.01
# A run that goes on calls this more often; one that was killed does not hold up another source for
# longer.
_GOES_ON_S = 60.0
_FILE_MODE, _DIR_MODE = 0o664, 0o775
_GROUP_WRITES = 0o020
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NO_COPY_RANGE = (
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EEXIST)


class SourceFile(NamedTuple):
    """A file of the source: bytes, modification time (negative where it has none that counts), and
    its digest where it has one.
    """

    size: int
    mtime_ns: int
    digest: Digest | None


Files = Mapping[str, SourceFile]


@dataclass(frozen=True)
class Request:
    """The module's options; ``source`` is any but controller, ``origin`` its option ``from``."""

    path: str
    models_root: str
    source: str
    uid: int
    gid: int
    origin: str = ""
    revision: str = "main"
    endpoint: str | None = None
    token: str | None = None
    full: bool = False
    # tp, device_count and device_name, as inspect_model takes them.
    fitting: dict[str, Any] | None = None
    # Names the run that asks, so that a client of it that died differs from one of an earlier run.
    run: str = ""
    # What the controller has, where it sends the files; and whether they are still to be sent.
    manifest: dict[str, Any] | None = None
    prepare: bool = False


def survey(source: str) -> dict[str, SourceFile]:
    """The files of a model's folder, links followed, with the digests that it came with. Raises
    ModelMissing and ModelError.
    """
    shown = path_line(source)
    try:
        is_folder = stat.S_ISDIR(os.stat(source).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except OSError as error:
        raise model_files.unreadable(source, error) from error
    if not is_folder:
        raise ModelMissing(
            f"the source {shown} is not an existing folder: set it to the folder that holds the"
            " model's config.json"
        )
    record = model_digests.read_record(source)
    files: dict[str, SourceFile] = {}
    recorded = record.files if record.origin == "record" else {}
    # A record may name files of a hidden folder, as the hub has them.
    for name in sorted(
        {
            *model_digests.model_names(source),
            *(name for name in recorded if os.path.lexists(os.path.join(source, name))),
        }
    ):
        file = os.path.join(source, name)
        try:
            refuse_leaving(source, file)
            info = os.stat(file)
        except FileNotFoundError:
            raise ModelError(
                f"{path_line(file)} is a dangling symbolic link: finish the download of the source,"
                " or remove the link"
            ) from None
        except OSError as error:
            raise model_files.unreadable(file, error) from error
        if not stat.S_ISREG(info.st_mode):
            raise ModelError(
                f"{path_line(file)} is no regular file, which a model does not have: remove it from"
                " the source"
            )
        digest = record.files.get(name)
        if digest and digest.size not in (None, info.st_size):
            raise ModelError(
                f"the source is damaged: {path_line(file)} has {info.st_size} bytes, and"
                f" {digest.size} were recorded: get it again"
            )
        files[name] = SourceFile(info.st_size, info.st_mtime_ns, digest)
    lacking = sorted(set(recorded) - set(files))
    if lacking:
        raise ModelError(
            f"the source {shown} lacks"
            f" {several([path_line(name) for name in lacking], len(recorded), 'files')}: get it"
            " again"
        )
    return files


def refuse_leaving(source: str, file: str, descriptor: int | None = None) -> None:
    """A link of the source may lead to another file of it, or as in the hub's cache to the blobs
    beside the snapshots. Raises ModelError for one that leads elsewhere.

    ``descriptor`` is the open file: what it is, the link cannot change any more.
    """
    opened = file if descriptor is None else f"/proc/self/fd/{descriptor}"
    top, target = os.path.realpath(source), os.path.realpath(opened)
    inside = [top]
    if os.path.basename(os.path.dirname(top)) == HUB_SNAPSHOTS:
        inside.append(os.path.join(os.path.dirname(os.path.dirname(top)), HUB_BLOBS))
    if not any(target.startswith(folder.rstrip("/") + "/") for folder in inside):
        raise ModelError(
            f"{path_line(file)} leads to {path_line(target)}, which is outside of the source: copy"
            " that file into the source, or set the source to the folder that has it"
        )


def read_source(
    source: str,
    files: Files,
    memo_file: str,
    *,
    budget_s: float | None = None,
    progress: Progress | None = None,
) -> tuple[Slice, dict[str, SourceFile]]:
    """Read the files of the source that came without a digest, in slices kept in ``memo_file``; the
    files with what is known then.

    Raises ModelError.
    """
    memo = Memo(memo_file)
    wanted = {name: file for name, file in files.items() if file.digest is None}
    infos = {name: os.stat(os.path.join(source, name)) for name in wanted}
    try:
        part = model_digests.read_files(
            source, infos, {}, memo, budget_s=budget_s, progress=progress
        )
    except OSError as error:
        raise ModelError(
            f"{path_line(memo_file)} cannot be written ({error.strerror}): free space there, and"
            " run this again"
        ) from error
    known = dict(files)
    for name, file in wanted.items():
        if entry := memo.vouches(name, infos[name]):
            known[name] = file._replace(
                digest=Digest(model_digests.SHA256, entry.sha256, entry.size)
            )
    return part, known


class Staging:
    """The place beside the model where it is put together, and the way from there to its name."""

    def __init__(self, path: str, root: str, uid: int, gid: int) -> None:
        """``path`` is the model's folder, ``root`` the models root; what is made belongs to
        uid:gid. Raises ModelError.
        """
        self.path, self.root = os.path.normpath(path), os.path.normpath(root)
        inside = os.path.relpath(self.path, self.root)
        if (
            not os.path.isabs(path)
            or not os.path.isabs(root)
            or "\0" in path
            or inside == "."
            or inside.split("/")[0] in ("..", STAGING)
        ):
            raise ModelError(
                f"the model {path_line(path)} is not below the models root {path_line(root)}: set"
                " sgl_model to a name below it"
            )
        self.uid, self.gid = uid, gid
        # The process that has the lock, where this one did not get it.
        self.holder = ""
        # The digest keeps a/b and a--b apart, and each from what is beside another's.
        slug = f"{inside.replace('/', '--')}-{hashlib.sha256(os.fsencode(inside)).hexdigest()[:12]}"
        self.folder = os.path.join(self.root, STAGING, slug)
        self.memo_file = os.path.join(self.folder, MEMO)
        self.source_memo = os.path.join(self.folder, SOURCE_MEMO)
        # Each writer of the folder holds this lock.
        self.lock = os.path.join(self.root, STAGING, f"lock.{slug}")
        self._aside = os.path.join(self.root, STAGING, f"old.{slug}")
        self._gone = os.path.join(self.root, STAGING, f"gone.{slug}.")
        self._state = os.path.join(self.folder, STATE)

    # --- before -----------------------------------------------------------------------------------

    def check_source(self, source: str) -> None:
        """Raises ModelError where the source is the model itself, or one lies in the other."""
        here, there = os.path.realpath(self.path), os.path.realpath(source)
        staged = os.path.realpath(self.folder)
        if here == there:
            raise ModelError(
                f"the source {path_line(source)} is the model's own folder: set the source to"
                " present to verify it where it is"
            )
        for one, other in ((here, there), (there, here), (staged, there), (there, staged)):
            if one == other or one.startswith(other.rstrip("/") + "/"):
                raise ModelError(
                    f"the source {path_line(source)} and the model {path_line(self.path)} lie in"
                    " one another: move one of them"
                )

    def holds(self, files: Files) -> bool:
        """The model has these files and no others, none known to be wrong: by size and modification
        time, or by recorded digest.
        """
        if not os.path.isdir(self.path):
            return False
        try:
            record = model_digests.read_record(self.path)
            sound = record.origin == "record" and model_digests.quick(self.path).sound
        except ModelError:
            return False
        return (
            sound
            and set(record.files) == set(files)
            and all(self._same(name, file, record.files[name]) for name, file in files.items())
        )

    def _same(self, name: str, file: SourceFile, recorded: Digest) -> bool:
        info = os.stat(os.path.join(self.path, name))
        if file.digest and file.digest.kind == recorded.kind:
            return file.digest.value == recorded.value
        return info.st_size == file.size and same_time(info.st_mtime_ns, file.mtime_ns)

    @contextlib.contextmanager
    def alone(self, wait_s: float) -> Iterator[bool]:
        """Holds the staging of this model; False where another run still has it after ``wait_s``
        seconds. Raises ModelError.
        """
        with self._doing("open", self.lock):
            self._make_private(os.path.dirname(self.folder))
            fd = locks.open_file(self.lock)
        with os.fdopen(fd, "r+", encoding="ascii", errors="replace"):
            mine = True
            try:
                locks.take(fd, wait_s, self.lock)
            except locks.LockTimeout:
                mine, self.holder = False, locks.holder(fd)
            if mine:
                with contextlib.suppress(PermissionError):
                    if os.fstat(fd).st_uid != self.uid:
                        os.fchown(fd, self.uid, self.gid)
                self._recover()
            yield mine

    def _recover(self) -> None:
        """What a killed run left: the old model aside, where two names cannot be exchanged at once,
        and folders without their name.
        """
        for parent in (os.path.dirname(self.folder), os.path.dirname(self.path)):
            for name in os.listdir(parent) if os.path.isdir(parent) else ():
                if TEMP_NAME.fullmatch(name):
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(parent, name))
                if os.path.join(parent, name).startswith(self._gone):
                    shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
        if os.path.lexists(self._aside):
            if os.path.lexists(self.path):
                _remove(self._aside)
            else:
                os.rename(self._aside, self.path)

    def clean(self) -> str | None:
        """Throw away what earlier runs left of this staging, once the model is in its place;
        returns whence that came.
        """
        source: str | None = self._read_state()["source"]
        self._throw_away()
        return source

    def _throw_away(self) -> None:
        """Take the folder's name away first: a writer that has outlived its run then writes into
        nothing.
        """
        gone = f"{self._gone}{secrets.token_hex(8)}"
        try:
            os.rename(self.folder, gone)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("rename", self.folder, error) from error
        # Such a writer may hinder this, and what it leaves goes with the next run.
        shutil.rmtree(gone, ignore_errors=True)

    @property
    def begun(self) -> bool:
        """Some run has left something of this staging."""
        return os.path.lexists(self.folder) or os.path.lexists(self._aside)

    def check_place(self) -> None:
        """Raises ModelError where the container would not see the model there, or what is there is
        not one model.
        """
        if why := model_files.outside_mount(os.path.dirname(self.path), self.root):
            raise ModelError(
                f"the container would not see the model: the folder of {path_line(self.path)}"
                f" {why}: set sgl_model to a name that lies below {path_line(self.root)} itself"
            )
        refuse_strangers(self.path)

    def begin(self, source: str, run: str) -> str | None:
        """Make the place, and note whence the files come and who brings them.

        What was begun from elsewhere is thrown away, and that source returned. Raises ModelError,
        also where another run is at that.
        """
        self.check_place()
        document = self._read_state()
        other: str | None = document["source"] if document["source"] != source else None
        if other:
            if document["run"] not in (None, run) and self._goes_on():
                raise ModelError(
                    f"another run stages the model {path_line(self.path)} from another source"
                    f" ({other.partition(':')[0]}): run this again when that one is done, or a"
                    " minute after it was ended"
                )
            self._throw_away()
        self._make(self.folder)
        if (document["source"], document["run"]) != (source, run):
            parts = document["parts"] if document["source"] == source else {}
            self._write_state({"source": source, "run": run, "parts": parts})
        else:
            # Its time says that this run goes on, also while a full disk takes no new file.
            with self._doing("write", self._state):
                os.utime(self._state)
        return other

    def _goes_on(self) -> bool:
        """Something was done here lately: a slice, or a file that has arrived."""
        touched = max(os.stat(path).st_mtime for path in (self.folder, self._state))
        return 0 <= time.time() - touched < _GOES_ON_S

    def rest(self, run: str) -> None:
        """The run has failed: another source need not wait for it."""
        document = self._read_state()
        if document["source"] and document["run"] == run:
            with contextlib.suppress(ModelError):
                self._write_state({**document, "run": None})

    def _read_state(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with contextlib.suppress(ModelError):
            found = model_files.json_object(self._state, model_files.load(self._state))
        source, run, parts = (found.get(key) for key in ("source", "run", "parts"))
        return {
            "source": source if isinstance(source, str) else None,
            "run": run if isinstance(run, str) else None,
            "parts": parts if isinstance(parts, dict) else {},
        }

    def _write_state(self, document: dict[str, Any]) -> None:
        with self._doing("write", self._state):
            model_digests.write_json(self._state, document)

    # --- files ------------------------------------------------------------------------------------

    def reuse(self, files: Files, recorded: Files) -> int:
        """Take over, by hard link, what of the old model was read on this host and is what is
        wanted; returns the bytes.

        ``recorded`` are the files as surveyed. One that came without the digest that is recorded of
        it must also have the modification time, by which the next run knows it. A file of another
        owner is not taken over, as its owner would have to be changed.
        """
        memo, old = Memo(self.memo_file), Memo(os.path.join(self.path, MEMO))
        taken = 0
        for name, file in files.items():
            source = os.path.join(self.path, name)
            try:
                info = os.lstat(source)
            except OSError:
                continue
            entry = old.vouches(name, info, file.digest.kind) if file.digest else None
            if (
                entry is None
                or file.digest is None
                or entry.digest(file.digest.kind) != file.digest.value
                or self._is_complete(name, file, memo)
            ):
                continue
            digest = recorded[name].digest
            by_time = (digest is not None and digest.kind == model_digests.SHA256) or same_time(
                info.st_mtime_ns, file.mtime_ns
            )
            if (
                not by_time
                or not stat.S_ISREG(info.st_mode)
                or (info.st_uid, info.st_gid) != (self.uid, self.gid)
            ):
                continue
            target = os.path.join(self.folder, name)
            self._make(os.path.dirname(target))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise self._failed("link", target, error) from error
                continue
            memo.entries[name] = entry
            taken += info.st_size
        if taken:
            with self._doing("write", memo.file):
                memo.save()
        return taken

    def took_over(self, files: Files) -> bool:
        """Some file still has its name in the old model too."""
        return any(os.lstat(os.path.join(self.folder, name)).st_nlink > 1 for name in files)

    def _is_complete(self, name: str, file: SourceFile, memo: Memo) -> bool:
        """The staged file is there: as the source has it by size and time, or as it was read here
        and is wanted.
        """
        try:
            info = os.lstat(os.path.join(self.folder, name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(info.st_mode) or info.st_size != file.size:
            return False
        entry = memo.vouches(name, info, file.digest.kind) if file.digest else None
        if entry and file.digest:
            return entry.digest(file.digest.kind) == file.digest.value
        return same_time(info.st_mtime_ns, file.mtime_ns)

    def incomplete(self, files: Files) -> list[str]:
        memo = Memo(self.memo_file)
        return [name for name, file in files.items() if not self._is_complete(name, file, memo)]

    def check_space(self, bytes_missing: int) -> None:
        """Raises ModelError where the file system cannot take that and 1 % more."""
        needed = int(bytes_missing * (1 + _SPARE))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ModelError(
                f"{path_line(self.root)} has {free / 1e9:.1f} GB free and the model needs"
                f" {needed / 1e9:.1f} GB more: free space there, or move the models root"
                " (sgl_models_root)"
            )

    def copy(self, source: str, files: Files, budget_s: float | None) -> Slice:
        """Copy what is not there yet, for ``budget_s`` seconds; a file that was begun goes on where
        it stopped. Raises ModelError.
        """
        deadline = time.monotonic() + budget_s if budget_s is not None else float("inf")
        missing = self.incomplete(files)
        total = sum(file.size for file in files.values())
        begun = {name: self._begun(name, files[name]) for name in missing}
        left = sum(files[name].size - begun[name] for name in missing)
        self.check_space(left)
        before = total - left
        moved = 0

        def count(bytes_copied: int) -> bool:
            """Whether to go on."""
            nonlocal moved
            moved += bytes_copied
            return time.monotonic() < deadline

        for place, name in enumerate(missing):
            whole = self._copy_file(source, name, files[name], begun[name], count)
            if not whole or (not count(0) and place + 1 < len(missing)):
                return Slice(False, before + moved, total, moved)
        return Slice(True, total, total, moved)

    def write(self, name: str, content: bytes) -> None:
        """A file that is made here. Raises ModelError."""
        path = os.path.join(self.folder, name)
        with self._doing("write", path):
            with open(path, "wb", opener=records.without_blocking) as file:
                file.write(content)

    def _begun(self, name: str, file: SourceFile) -> int:
        """How many bytes of a file are there already; none where it was begun from another state of
        the source.
        """
        if self._read_state()["parts"].get(name) != [file.size, file.mtime_ns]:
            return 0
        try:
            info = os.lstat(os.path.join(self.folder, name) + ".part")
        except OSError:
            return 0
        return info.st_size if stat.S_ISREG(info.st_mode) and info.st_size <= file.size else 0

    def _copy_file(self, folder: str, name: str, file: SourceFile, offset: int, count: Any) -> bool:
        source, target = (os.path.join(top, name) for top in (folder, self.folder))
        part = f"{target}.part"
        self._make(os.path.dirname(target))
        state = self._read_state()
        if not offset:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            state["parts"][name] = [file.size, file.mtime_ns]
            self._write_state(state)
        with self._doing("copy to", target):
            with open(source, "rb", buffering=0, opener=records.without_blocking) as read:
                refuse_leaving(folder, source, read.fileno())
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with open(fd, "wb", buffering=0) as write:
                    _unchanged(source, read.fileno(), file)
                    os.fchmod(fd, self._staged_mode(os.fstat(read.fileno()).st_mode))
                    while offset < file.size:
                        copied = copy_range(
                            read.fileno(), fd, offset, min(_CHUNK, file.size - offset)
                        )
                        if not copied:
                            break
                        offset += copied
                        if not count(copied) and offset < file.size:
                            return False
                    if offset < file.size:
                        raise OSError(errno.EIO, "the source ends too early")
                    _unchanged(source, read.fileno(), file)
                    os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
                    os.fsync(write.fileno())
            if os.path.isdir(target):
                _remove(target)
            os.rename(part, target)
        return True

    def verify(self, files: Files, source: str, budget_s: float | None) -> Slice:
        """Read the staged files, in slices, against the digests of ``files``. One that differs is
        removed, so that it is copied again.

        Raises ModelError that names those.
        """
        memo = Memo(self.memo_file)
        infos: dict[str, os.stat_result] = {}
        for name in files:
            try:
                infos[name] = os.lstat(os.path.join(self.folder, name))
            except OSError as error:
                raise ModelError(
                    f"{path_line(name)} did not arrive from {path_line(source)}: run this again to"
                    " get it"
                ) from error
        kinds = {name: file.digest.kind for name, file in files.items() if file.digest}
        with self._doing("write", self.memo_file):
            part = model_digests.read_files(self.folder, infos, kinds, memo, budget_s=budget_s)
        if part.done:
            self._refuse_damaged(files, source, memo)
        return part

    def _refuse_damaged(self, files: Files, source: str, memo: Memo) -> None:
        """Remove the files whose digest differs. Raises ModelError that names those."""
        damaged = [
            (name, file.digest)
            for name, file in files.items()
            if file.digest and memo.entries[name].digest(file.digest.kind) != file.digest.value
        ]
        if not damaged:
            return
        texts = [
            model_digests.difference(name, digest, memo.entries[name]) for name, digest in damaged
        ]
        for name, _digest in damaged:
            _remove(os.path.join(self.folder, name))
        raise ModelError(
            f"files from {path_line(source)} differ from their digests,"
            f" {several(texts, len(files), 'files')}: run this again (only these are"
            " copied), and if they differ again, fetch the source again"
        )

    # --- into place -------------------------------------------------------------------------------

    def swap(self, files: Files, source: dict[str, Any], **fitting: Any) -> None:
        """Give the verified files owner, modes, record and memo, and the model's name to them.
        Raises ModelError.

        ``fitting`` goes to :func:`model_files.inspect_model`, which has the last word. The old
        model goes when the new one has its name.
        """
        with self._doing("put", self.path):
            self._tidy(files)
            self._hand_over()
            memo = Memo(self.memo_file)
            if not set(files) <= set(memo.entries):
                raise ModelError(
                    f"another process changed {path_line(self.folder)} while the model was staged:"
                    " run this again"
                )
            memo.entries = {name: memo.entries[name] for name in files}
            model_digests.write_record(self.folder, source, memo.entries)
            memo.save()
            model_files.inspect_model(
                self.folder, root=self.root, uid=self.uid, gid=self.gid, **fitting
            )
            refuse_strangers(self.path)
            self._make(os.path.dirname(self.path))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._state)
            self._rename()
            records.fsync_folder(os.path.dirname(self.path))
            _remove(self.folder)
            _remove(self._aside)

    def _tidy(self, files: Files) -> None:
        """Remove whatever is no file of the model."""
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
        kept = {*files, *folders, MEMO, STATE}
        for folder, inside, names in os.walk(self.folder):
            place = os.path.relpath(folder, self.folder)
            relative = {
                name: os.path.normpath(os.path.join(place, name)) for name in inside + names
            }
            for name in relative:
                if relative[name] not in kept:
                    _remove(os.path.join(folder, name))
            inside[:] = [name for name in inside if relative[name] in folders]

    def _hand_over(self) -> None:
        """Owner and mode of all that was made here, and all of it on the disk."""
        for folder, _folders, names in os.walk(self.folder):
            for path, mode in (
                (folder, self._allowed(_DIR_MODE)),
                *((os.path.join(folder, name), None) for name in names),
            ):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    info = os.fstat(fd)
                    # A file with a second name was taken over from the old model, whose it still
                    # is.
                    if mode is not None or info.st_nlink == 1:
                        if (info.st_uid, info.st_gid) != (self.uid, self.gid):
                            os.fchown(fd, self.uid, self.gid)
                        wanted = self._staged_mode(info.st_mode) if mode is None else mode
                        if info.st_mode & 0o777 != wanted:
                            os.fchmod(fd, wanted | info.st_mode & stat.S_ISGID)
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def _allowed(self, mode: int) -> int:
        """The group may write where it may write in the models root."""
        with contextlib.suppress(OSError):
            if os.stat(self.root).st_mode & _GROUP_WRITES:
                return mode
        return mode & ~_GROUP_WRITES

    def _staged_mode(self, source: int) -> int:
        """Of a staged file: only users who could read the source may read it."""
        if source & 0o004:
            return self._allowed(_FILE_MODE)
        return self._allowed(_FILE_MODE & (0o600 | source & 0o040 | (source & 0o040) >> 1))

    def _rename(self) -> None:
        if not os.path.lexists(self.path):
            os.rename(self.folder, self.path)
            return
        try:
            exchange(self.folder, self.path)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            # A file system without the exchange, as NFS: what is left by a kill in between is put
            # right by the next run.
            os.rename(self.path, self._aside)
            os.rename(self.folder, self.path)

    def _make_private(self, folder: str) -> None:
        """The folder of the locks, which other users cannot enter. Raises ModelError, OSError."""
        self._make(folder, places.LOCK_RIGHTS.new)
        with safe_tree.folder(folder) as fd:
            info = os.fstat(fd)
            if info.st_uid == os.geteuid() and info.st_mode & places.LOCK_RIGHTS.refused:
                os.fchmod(fd, places.LOCK_RIGHTS.new)

    def _make(self, folder: str, mode: int | None = None) -> None:
        """Make a folder and its missing parents, for the owner. Raises ModelError."""
        if os.path.isdir(folder) and not (
            folder.startswith(self.folder) and os.path.islink(folder)
        ):
            return
        try:
            missing, base = missing_directories("the models root", folder)
            for path in missing:
                setgid = os.stat(base).st_mode & stat.S_ISGID
                own = mode if mode is not None and path == folder else self._allowed(_DIR_MODE)
                make_directory(path, self.uid, self.gid, own | setgid)
        except HostTreeError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise self._failed("make", folder, error) from error

    @contextlib.contextmanager
    def _doing(self, what: str, path: str) -> Iterator[None]:
        """Raises ModelError, with the remedy, for an OSError meanwhile."""
        try:
            yield
        except OSError as error:
            raise self._failed(what, path, error) from error

    def _failed(self, doing: str, path: str, error: OSError) -> ModelError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free space there and run this again, which goes on from here"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "run the task as the owner of the models root or with become: true"
        else:
            remedy = (
                "check the file systems that hold the source and the models root, and run this"
                " again"
            )
        return ModelError(f"cannot {doing} {path_line(path)} ({error.strerror or error}): {remedy}")


def same_time(one: int, other: int) -> bool:
    """Equal, in nanoseconds, or cut off as a file system does that knows 100 ns (CIFS), 1 us or
    whole seconds (ext3) alone.
    """
    return one == other or any(
        one - one % unit == other or other - other % unit == one for unit in (100, 1000, 10**9)
    )


def copy_range(source: int, target: int, offset: int, count: int) -> int:
    """Copy up to ``count`` bytes at ``offset`` between two descriptors, in the kernel where it can;
    0 at the end of the source.
    """
    try:
        copied = os.copy_file_range(source, target, count, offset, offset)
        if copied:
            return copied
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    data = os.pread(source, count, offset)
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], offset + written)
    return written


def exchange(one: str, other: str) -> None:
    """Swap two names in one step. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), one)


def _unchanged(path: str, fd: int, file: SourceFile) -> None:
    info = os.fstat(fd)
    if (info.st_size, info.st_mtime_ns) != (file.size, file.mtime_ns):
        raise ModelError(
            f"{path_line(path)} changed while it was copied: run this again once nothing writes to"
            " the source"
        )


def _remove(path: str) -> None:
    """Raises OSError."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def refuse_strangers(path: str) -> None:
    """Raises ModelError where the folder that would be replaced is not one model: it would be
    removed with all that is in it.
    """
    if os.path.islink(path) or not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise ModelError(
            f"{path_line(path)} is a file: move it away, or set sgl_model to another name"
        )
    try:
        recorded = model_digests.read_record(path).files
    except ModelError:
        recorded = {}
    for folder, folders, names in os.walk(path):
        is_model = model_files.CONFIG in names and any(
            name.endswith(".safetensors") for name in names
        )
        if folder == path:
            foreign = (
                bool(folders or names) and model_files.CONFIG not in names and RECORD not in names
            )
        else:
            foreign = (
                is_model
                and os.path.relpath(os.path.join(folder, model_files.CONFIG), path) not in recorded
            )
        if foreign:
            raise ModelError(
                f"{path_line(folder)} would be removed and is not the model's own: move it away, or"
                " set sgl_model to another name"
            )
