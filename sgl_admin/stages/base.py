"""What a stage is: when it does not apply, what its work depends on, which caches it fills, and the
work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin.base import failures, files, keyed, paths
from sgl_admin.contract import stages
from sgl_admin.facts.devices import Devices
from sgl_admin.facts.model import Model
from sgl_admin.records import caches, vouched
from sgl_admin.records.archive import Broken
from sgl_admin.records.caches import SignatureRecord
from sgl_admin.sglang import ENGINE
from sgl_admin.stages import inputs
from sgl_admin.stages.inputs import Inputs

if TYPE_CHECKING:
    from sgl_admin.base.engine import Choice, Release
    from sgl_admin.records.archive import Part
    from sgl_admin.records.request import Request
    from sgl_admin.serving.warmup import Warmup
# In an archive's hints: the server that ran with what is in it.
_SERVED = "served"
_IDENTITY = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Context:
    """All that a stage may know."""

    request: Request
    model: Model
    devices: Devices
    batch_sizes: tuple[int, ...]
    warmup: Warmup
    progress: Callable[[int, int, str, str], None]
    release: Release
    run_id: str = ""
    # Of the server, beside its model and its port.
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    # Of the model's files beside its config, those that change what is compiled, with digests.
    model_files: Mapping[str, str] = field(default_factory=dict)
    # Of the server that would run: model, argv, environment and image.
    served_identity: str = ""
    # Of the arguments, those that were chosen for the operator.
    choices: tuple[Choice, ...] = ()
    # Told the process group of what a stage starts itself, None when it has ended.
    on_group: Callable[[int | None], None] = lambda group: None
    # Told each batch size whose work is finished, while others are still being done.
    on_batch_size: Callable[[int], None] = lambda size: None

    @property
    def public_names(self) -> tuple[str, ...]:
        """Whose values are shown, beside those of the names that are known."""
        names: tuple[str, ...] = tuple(self.request.option("public_names"))
        return names

    @property
    def keyed_arguments(self) -> list[str]:
        """The arguments as signatures have them."""
        shown = ENGINE.shown_arguments(self.arguments, self.public_names)
        return keyed.words(self.arguments, shown)

    def keyed_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """An environment as signatures have it."""
        shown = ENGINE.shown_environment(environment, self.public_names)
        return keyed.environment(environment, shown)


@dataclass(frozen=True)
class Offer:
    """What a host has of a stage's work and others may take."""

    signature: dict[str, Any]
    files: list[Path]
    # Whether it is all that was wanted.
    finished: bool = True
    hints: dict[str, Any] = field(default_factory=dict)


class Stage:
    """One stage. Subclasses set `name`, as in the contract, and override what differs."""

    name: str
    # Whether a server fills its caches while it runs. Such work stands for a server only when that
    # server has run with it: what a server compiles is never known for certain beforehand.
    server_made = True
    # What that which a server compiles depends on.
    depends_on = Inputs()
    # What an error of its work is called that nothing foresaw.
    failure_type = failures.OTHERWISE

    @property
    def contract(self) -> stages.Stage:
        return stages.BY_NAME[self.name]

    @property
    def caches(self) -> tuple[str, ...]:
        """The caches that it fills; the first holds its signature records."""
        return self.contract.caches

    def skip_reason(self, context: Context) -> str | None:
        """Why this stage does not apply here, by the contract's list; None when it does."""
        return None if context.devices.cuda else "no_cuda_device"

    def unsupported(self, context: Context) -> str | None:
        """Why this stage's work, which is wanted, cannot be done for such a model, in words; it has
        no signature then.
        """
        return None

    def signature(self, context: Context) -> dict[str, Any]:
        """All that changes this stage's cache: what every stage shares, and what this one
        declares.
        """
        return {
            "schema_version": "1",
            "stage": self.name,
            "device_name": context.devices.name,
            "compute_capability": context.devices.compute_capability,
            "cpu_arch": context.devices.cpu_arch,
            ENGINE.name: ENGINE.version(),
            **(inputs.signature(self.depends_on, context) if self.server_made else {}),
        }

    def record(self, signature: dict[str, Any]) -> SignatureRecord:
        return SignatureRecord(self.name, self.caches, signature)

    def trusts(self, context: Context, record: SignatureRecord) -> bool:
        """Whether the server that would run has already run with a record's work."""
        return not self.server_made or record.trusted(context.served_identity)

    def lacking(self, context: Context) -> str | None:
        """What is wanted beyond the signature and is not there, in words; None when nothing is."""
        return None

    def missing_batch_sizes(self, context: Context) -> list[int] | None:
        """Where the work is one for each batch size: for which it is still to be done."""
        return None

    def run(self, context: Context) -> dict[str, Any]:
        """Do the work; returns artifacts beyond the files. Raises StageFailure."""
        raise NotImplementedError

    def content(self, context: Context) -> Iterable[Path] | None:
        """The files that its work is; None for all that its caches hold."""
        return None

    def standing(self, context: Context) -> dict[str, Any]:
        """Artifacts beyond the files of work that stands: what a no-op reports."""
        return {}

    def key(self, context: Context) -> str | None:
        """By which hosts of the same hardware, software and settings find each other's work: no
        host has to have done any for it. None for work that each host does itself.
        """
        return caches.digest(self.signature(context))

    def offer(self, context: Context) -> Offer | None:
        """What of this stage is finished here; None where nothing is, or a prep is at it."""
        signature = self.signature(context)
        record = self.record(signature)
        content = record.content()
        if not content or caches.partial_info(self.name) is not None:
            return None
        hints = {_SERVED: context.served_identity} if self.trusts(context, record) else {}
        return Offer(signature, content, hints=hints)

    def signature_given(self, context: Context, hints: dict[str, Any]) -> dict[str, Any]:
        """This host's own wanted signature, where it knows of another host's work what that learned
        of the server.
        """
        return self.signature(context)

    def learned(self, context: Context, hints: dict[str, Any]) -> dict[str, Any]:
        """What another host's work of the same settings found out about the server, and this host
        does not know: `adopt` keeps it.
        """
        served = hints.get(_SERVED)
        return {_SERVED: served} if _is_identity(served) else {}

    def foreign(self, context: Context, part: Part) -> str | None:
        """Why a part's files are not what this stage makes, in words; None where they may be."""
        return None

    def adopt(self, part: Part, staged: Path) -> None:
        """Put another host's files, which lie verified below `staged`, where they belong; where it
        was killed in that, once more.

        Raises Broken where one is not whole, and OSError.
        """
        for entry in part.files:
            target = paths.PROFILES / entry.path
            if (source := staged / entry.path).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
            if target.stat().st_size != entry.size:
                # A power cut takes what was not on disk yet, of files that were verified before it
                # too.
                raise Broken(
                    f"{files.printable(entry.path)} has another size than it was placed with"
                )
            if vouched.sha256(target) != entry.sha256:
                raise Broken(f"{files.printable(entry.path)} was changed after it was verified")
        if part.finished:
            self.record(part.signature).write(
                (paths.PROFILES / entry.path for entry in part.files),
                served=part.hints.get(_SERVED, ""),
            )


def _is_identity(text: object) -> bool:
    return isinstance(text, str) and _IDENTITY.fullmatch(text) is not None
