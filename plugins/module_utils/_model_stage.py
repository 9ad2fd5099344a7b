# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One slice of bringing a model to its place and verifying it: what is on the disk decides what
comes next.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import replace
from typing import Any

from . import _model_digests as model_digests
from . import _model_files as model_files
from . import _model_hub as model_hub
from . import _safe_tree as safe_tree
from . import _tiny_model as tiny_model
from ._contract.texts import path_line
from ._model_digests import HUB_STATE, SHA256, Digest, Slice, Verification
from ._model_files import ModelError, ModelMissing
from ._model_staging import Files, Request, SourceFile, Staging, read_source, survey

# Between two looks at a download.
_POLL_S = 1.0


def listing(files: Files) -> dict[str, Any]:
    """The files as JSON."""
    return {
        name: {
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            **({file.digest.kind: file.digest.value} if file.digest else {}),
        }
        for name, file in files.items()
    }


def listed(manifest: dict[str, Any]) -> dict[str, SourceFile]:
    """The files of :func:`listing`. Raises ModelError."""
    files: dict[str, SourceFile] = {}
    for name, value in manifest.items():
        value = value if isinstance(value, dict) else {}
        kinds = [kind for kind in (SHA256, model_digests.GIT_SHA1) if kind in value]
        numbers = all(model_digests.is_number(value.get(key)) for key in ("size", "mtime_ns"))
        if (
            not numbers
            or not model_digests.may_count(name)
            or not all(model_digests.is_digest(kind, value[kind]) for kind in kinds)
        ):
            raise ModelError(
                f"the manifest's entry {path_line(name)[:80]!r} cannot be used: call this as"
                " slice_bench.sglang.sgl_model_stage"
            )
        digest = Digest(kinds[0], value[kinds[0]], value["size"]) if kinds else None
        files[name] = SourceFile(value["size"], value["mtime_ns"], digest)
    return files


class Stage:
    """What is asked, and the slices to get there."""

    def __init__(self, request: Request, client: model_hub.ContainerClient | None = None) -> None:
        """``client`` is needed for a download alone. Raises ModelError."""
        if request.source == "local":
            request = replace(request, origin=os.path.expanduser(request.origin))
        self.request = request
        self.client = client
        self.staging = Staging(request.path, request.models_root, request.uid, request.gid)
        self.path = self.staging.path
        self.warnings: list[str] = []
        self._deadline: float | None = None

    def plan(self) -> dict[str, Any]:
        """What :meth:`slice` would come to in the end, with nothing changed. Raises ModelError for
        what it would refuse.
        """
        with self._as_owner():
            return self._plan()

    def slice(self, budget_s: float | None = None) -> dict[str, Any]:
        """Go on for about ``budget_s`` seconds, or to the end. Raises ModelError."""
        with self._as_owner():
            return self._slice(budget_s)

    def _as_owner(self) -> contextlib.AbstractContextManager[None]:
        """Root reads the source and writes the model with the rights of the service user alone, who
        may exchange any folder of either while this works.
        """
        return safe_tree.acting_as(self.request.uid, self.request.gid)

    def _plan(self) -> dict[str, Any]:
        if self.request.source == "present" or self._is_current(self._files()):
            model, found = self._model(), model_digests.quick(self.path)
            records = self.request.full and (not found.recorded or bool(found.unrecorded))
            return self._answer("done", changed=records, found=found, model=model)
        self.staging.check_place()
        self._refuse_another()
        return self._answer("done", changed=True, model=model_files.missing_model(self.path))

    def _slice(self, budget_s: float | None) -> dict[str, Any]:
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        if self.request.source == "present":
            return self._verify()
        files = self._files()
        if self._is_current(files):
            try:
                return self._verify()
            except ModelError as error:
                gone = files is None and self.request.source == "local"
                if gone or model_digests.quick(self.path).sound:
                    raise
                self.warnings.append(f"{error}, which is done now")
        with self.staging.alone(self._left or 0.0) as mine:
            answer = self._stage(files) if mine else None
        if answer and budget_s is None and answer["phase"] == "verifying":
            again = self._slice(None)
            return {
                **again,
                "changed": True,
                "bytes_moved": answer["bytes_moved"] + again["bytes_moved"],
            }
        if answer:
            return answer
        if budget_s is not None:
            return {**self._answer("waiting"), "waits_for": self.staging.holder}
        raise ModelError(
            f"the model {path_line(self.path)} is staged by another run"
            f" ({self.staging.holder or 'unknown'}): run this again when it is done"
        )

    @property
    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _files(self) -> dict[str, SourceFile] | None:
        """The source's files, where they are known without a download. Raises ModelError for a
        source that is no model.
        """
        request = self.request
        if request.source == "local":
            try:
                files = survey(request.origin)
            except ModelMissing as error:
                if not self._is_current(None):
                    raise
                self.warnings.append(f"{error}; the model that was made from it is there")
                return None
            self.staging.check_source(request.origin)
            model_files.inspect_model(os.path.abspath(request.origin), **(request.fitting or {}))
            return files
        if request.source == "staged":
            if request.manifest is None:
                raise ModelError(
                    "the manifest is missing: call this as slice_bench.sglang.sgl_model_stage,"
                    " whose action plugin makes it"
                )
            return listed(request.manifest)
        return None

    def _is_current(self, files: Files | None) -> bool:
        """The model is there and, as far as it is known without reading, what is asked for."""
        if files is not None:
            return self.staging.holds(files)
        try:
            record, found = model_digests.read_record(self.path), model_digests.quick(self.path)
        except ModelError:
            return False
        revisions = (record.source.get("revision"), record.source.get("commit"))
        wanted = self._source(None)
        same = all(record.source.get(key) == wanted[key] for key in ("kind", "from", "endpoint"))
        return (
            record.origin == "record"
            and found.sound
            and same
            and (wanted["kind"] != "hub" or self.request.revision in revisions)
        )

    def _source(self, commit: str | None) -> dict[str, Any]:
        """Whence the model comes, for its record."""
        request = self.request
        hub = request.source == "hub"
        return {
            "kind": "controller" if request.source == "staged" else request.source,
            "from": path_line(request.origin),
            "endpoint": request.endpoint or model_hub.PUBLIC_HUB if hub else None,
            "revision": request.revision if hub else None,
            "commit": commit,
        }

    # --- phases -----------------------------------------------------------------------------------

    def _stage(self, files: dict[str, SourceFile] | None) -> dict[str, Any]:
        """Go on, with the staging for this run alone."""
        try:
            if self._is_current(files):
                # Another run has finished it while this one waited.
                return self._verify(alone=True)
            if self.request.source == "tiny":
                return self._make()
            if files is None:
                return self._download()
            return self._arrived(files) if self.request.source == "staged" else self._copy(files)
        except ModelError:
            self.staging.rest(self.request.run)
            raise

    def _end_client(self, thrown_away: str | None) -> None:
        """End the hub's client that has filled a staging which was thrown away; should it go on,
        then into a folder without a name.
        """
        if thrown_away and thrown_away.startswith("hub:") and self.client:
            with contextlib.suppress(ModelError):
                self.client.stop()

    def _verify(self, *, alone: bool = False) -> dict[str, Any]:
        """The model is in its place: is it what it was? ``alone`` where this run holds the
        staging.
        """
        model = self._model()
        found = model_digests.verify(self.path, full=self.request.full, budget_s=self._left)
        self.warnings += found.warnings
        if found.done and self.staging.begun and self.request.source != "present":
            with contextlib.nullcontext(True) if alone else self.staging.alone(0.0) as mine:
                if mine:
                    self._end_client(self.staging.clean())
        return self._answer(
            "done" if found.done else "verifying",
            changed=found.wrote_record,
            found=found,
            model=model if found.done else None,
        )

    def _refuse_another(self) -> None:
        """Raises ModelError where the tiny model would take the place of a real one."""
        if self.request.source == "tiny" and os.path.lexists(self.path):
            with contextlib.suppress(ModelError):
                if model_digests.read_record(self.path).source.get("kind") == "tiny":
                    return
            raise ModelError(
                f"{path_line(self.path)} is no tiny model and is not overwritten: set sgl_model to"
                " a folder that does not exist, or remove this one"
            )

    def _make(self) -> dict[str, Any]:
        self._refuse_another()
        self._end_client(self.staging.begin("tiny:", self.request.run))
        files = {}
        for name, content in tiny_model.files().items():
            self.staging.write(name, content)
            digest = Digest(SHA256, hashlib.sha256(content).hexdigest(), len(content))
            files[name] = SourceFile(len(content), -1, digest)
        return self._verified(files, 0, None)

    def _copy(self, files: dict[str, SourceFile]) -> dict[str, Any]:
        staging, origin = self.staging, self.request.origin
        self._end_client(staging.begin(f"local:{origin}", self.request.run))
        part, known = read_source(origin, files, staging.source_memo, budget_s=self._left)
        if not part.done:
            return self._answer("reading", part=part)
        staging.reuse(known, files)
        part = staging.copy(origin, known, self._left)
        if not part.done:
            return self._answer("copying", part=part)
        return self._verified(known, part.bytes_moved, None)

    def _arrived(self, files: dict[str, SourceFile]) -> dict[str, Any]:
        staging = self.staging
        self._end_client(staging.begin(f"controller:{self.request.origin}", self.request.run))
        staging.reuse(files, files)
        missing = staging.incomplete(files)
        total, left = (sum(files[name].size for name in names) for names in (files, missing))
        if self.request.prepare:
            # Without the digests it is unknown which files of the old model are kept.
            if all(file.digest for file in files.values()):
                staging.check_space(left)
            answer = self._answer("sending", part=Slice(False, total - left, total))
            return {**answer, "staging": staging.folder, "lock": staging.lock, "missing": missing}
        if missing:
            texts = [path_line(name) for name in missing]
            raise ModelError(
                f"{model_files.several(texts, len(files), 'files')} did not arrive as they are on"
                " the controller: run this again"
            )
        return self._verified(files, 0, None)

    def _download(self) -> dict[str, Any]:
        request, staging = self.request, self.staging
        self._end_client(staging.begin(f"hub:{request.endpoint}:{request.origin}", request.run))
        if self.client is None:
            raise ModelError("there is no client for the hub: set the image that has it")
        state = os.path.join(staging.folder, HUB_STATE)
        if not os.path.lexists(state):
            self._reuse_old()
        while True:
            followed = model_hub.follow(staging.folder, request, self.client)
            if followed.files is not None:
                break
            if self._left is not None and self._left < _POLL_S:
                return self._answer(
                    "downloading", part=Slice(False, followed.bytes_done, followed.bytes_total)
                )
            time.sleep(_POLL_S)
        try:
            return self._verified(followed.files, 0, followed.commit)
        except ModelError:
            # What was removed is to be downloaded again.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(state)
            raise

    def _reuse_old(self) -> None:
        """What is there of the same repository and was read on this host: the client compares it
        with the hub and keeps what is right.
        """
        with contextlib.suppress(ModelError):
            record = model_digests.read_record(self.path)
            if record.source.get("from") == self._source(None)["from"]:
                old = {
                    name: SourceFile(digest.size or 0, -1, digest)
                    for name, digest in record.files.items()
                }
                self.staging.reuse(old, old)

    def _verified(
        self, files: dict[str, SourceFile], moved: int, commit: str | None
    ) -> dict[str, Any]:
        """Verify what is staged and give it the model's name."""
        staging = self.staging
        unknown = [path_line(name) for name, file in files.items() if file.digest is None]
        if unknown:
            raise ModelError(
                f"there is no digest of {model_files.several(unknown, len(files), 'files')}: stage"
                " the model by its action"
            )
        part = staging.verify(files, self._source(None)["from"], self._left)
        if not part.done:
            return self._answer(
                "verifying", part=Slice(False, part.bytes_done, part.bytes_total, moved)
            )
        # What was taken over from the old model was read by an earlier run.
        read_again = self.request.full and staging.took_over(files)
        staging.swap(files, self._source(commit), **(self.request.fitting or {}))
        if read_again:
            part = Slice(False, 0, part.bytes_total, moved)
            return self._answer("verifying", changed=True, part=part)
        answer = self._answer(
            "done", changed=True, found=model_digests.quick(self.path), model=self._model()
        )
        return {**answer, "bytes_moved": moved}

    # --- answers ----------------------------------------------------------------------------------

    def _model(self) -> dict[str, Any]:
        request = self.request
        return model_files.inspect_model(
            self.path,
            root=self.staging.root,
            uid=request.uid,
            gid=request.gid,
            **(request.fitting or {}),
        )

    def _answer(
        self,
        phase: str,
        *,
        changed: bool = False,
        part: Slice | None = None,
        found: Verification | None = None,
        model: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """``changed`` is of the model in its place and its record: what lies beside it yet does not
        count.
        """
        found = found or Verification(recorded=False)
        part = part or Slice(found.done, found.bytes_done, found.bytes_total, found.bytes_read)
        return {
            "changed": changed,
            "done": phase == "done",
            "phase": phase,
            "bytes_done": part.bytes_done,
            "bytes_total": part.bytes_total,
            "bytes_moved": part.bytes_moved,
            "verified": found.verified,
            "recorded": found.recorded,
            "model": model,
            "warnings": self.warnings,
        }
