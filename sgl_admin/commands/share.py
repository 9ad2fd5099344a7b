"""`sgl-admin caches export`, `import` and `verify`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sgl_admin.base import files, locks
from sgl_admin.base.errors import Refused
from sgl_admin.commands import request as request_cli
from sgl_admin.contract.exit_codes import EXIT_ARCHIVE, EXIT_BUSY, EXIT_NO_RESULT, EXIT_USAGE
from sgl_admin.contract.texts import say, say_json
from sgl_admin.prep.execute import set_aside
from sgl_admin.prep.plan import Plan, plan_prep
from sgl_admin.records import archive, caches, job, run
from sgl_admin.records.archive import Broken, Changed, Manifest, Part, Reader
from sgl_admin.records.request import Request
from sgl_admin.share import incoming

_STANDARD = "-"
# How often a file that changes while it is packed is packed again: batch sizes come one by one.
_TRIES = 3
# Of another host's signature, that a reason names.
_MOST_FIELDS = 8


def register(actions: Any) -> None:
    """The commands among those of `caches`."""
    export = actions.add_parser(
        "export",
        help="pack what is finished for other hosts",
        epilog=(
            "Takes the arguments of `ensure`: the stages that it would ensure are packed, as far as"
            " they are finished."
        ),
    )
    export.set_defaults(handler=_export)
    _add_file(export, "the archive that is written; - is standard output")
    take = actions.add_parser(
        "import",
        help=(
            "take another host's finished work, where it is what `ensure` with the same arguments"
            " would do here"
        ),
    )
    take.set_defaults(handler=_import)
    _add_file(take, "the archive; - is standard input")
    for command in (export, take):
        request_cli.add_arguments(command)
    verify = actions.add_parser("verify", help="read an archive to its end, and say what it holds")
    verify.set_defaults(handler=_verify)
    _add_file(verify, "the archive; - is standard input")
    for command in (take, verify):
        command.add_argument(
            "--digest", metavar="SHA256", help="refuse another archive than the one of this digest"
        )
    for command in (export, take, verify):
        command.add_argument("--json", action="store_true", help="print it as JSON")


def _add_file(command: argparse.ArgumentParser, help_text: str) -> None:
    command.add_argument("file", metavar="FILE", help=help_text)


# --- export --------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
    live = run.live()
    plan = plan_prep(live, request_cli.of(arguments, live))
    for attempt in range(_TRIES):
        manifest, lacking = _pack(plan)
        if not manifest.parts:
            whys = "; ".join(f"{stage}: {why}" for stage, why in lacking.items())
            raise Refused(
                EXIT_NO_RESULT, f"nothing to export: {whys or 'every stage is skipped here'}"
            )
        try:
            with _written(arguments.file) as stream:
                # Who reads a stream needs to know how long it gets.
                summary = {**_summary(manifest), "file": arguments.file, "lacking": lacking}
                if arguments.file == _STANDARD:
                    _print(summary, arguments.json, sys.stderr)
                archive.write(manifest, stream)
            break
        except Changed as error:
            if arguments.file == _STANDARD or attempt + 1 == _TRIES:
                raise Refused(
                    EXIT_NO_RESULT, f"{error} while it was packed; run this again"
                ) from error
    if arguments.file != _STANDARD:
        _print(summary, arguments.json, sys.stdout)
    return 0


def _pack(plan: Plan) -> tuple[Manifest, dict[str, str]]:
    """What is finished, and why the rest is not there."""
    parts, lacking = [], {}
    for decision in plan.decisions:
        stage = decision.stage
        offer = stage.offer(plan.context) if decision.signature is not None else None
        if offer is None or decision.key is None:
            if decision.action != "skipped":
                lacking[stage.name] = "nothing of it is finished"
            continue
        try:
            content = archive.entries(offer.files)
        except Changed as error:
            lacking[stage.name] = str(error)
            continue
        parts.append(
            Part(
                stage.name,
                decision.key,
                offer.signature,
                offer.finished,
                offer.hints,
                content,
            )
        )
    return Manifest(tuple(parts)), lacking


@contextmanager
def _written(name: str) -> Iterator[BinaryIO]:
    """A stream without a buffer; a file gets its name when it is whole."""
    if name == _STANDARD:
        yield os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        return
    path = Path(name)
    descriptor, temporary = files.create_beside(path)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- import --------------------------------------------------------------------------------------


def _import(arguments: argparse.Namespace) -> int:
    if arguments.file == arguments.request == _STANDARD:
        raise Refused(
            EXIT_USAGE, "standard input is the archive: give the request by flags or in a file"
        )
    live = run.live()
    request = request_cli.of(arguments, live)
    warnings: list[str] = []
    with locks.tried(job.LOCK) as lock:
        if lock is None:
            record = job.read(live.run_id)
            who = (
                f"{record['prep_id']} (pid {record['pid']}) runs"
                if record is not None and job.alive(record)
                else f"a prep or an import ({locks.holder(job.LOCK)}) begins"
            )
            raise Refused(
                EXIT_BUSY,
                f"busy: {who} on this host; wait for it (sgl-admin status --watch) and run this"
                " again",
            )
        incoming.settle(warnings)
        with _opened(arguments.file, arguments.digest) as reader:
            outcome = _take(live, request, reader, warnings)
    outcome["warnings"] = warnings
    if arguments.json:
        say_json(outcome, indent=2)
    else:
        for stage, what in outcome["stages"].items():
            say(f"{stage:12} {what['status']:8} {what['reason'] or ''}".rstrip())
        for warning in warnings:
            say(f"sgl-admin: warning: {warning}", file=sys.stderr)
    return (
        EXIT_ARCHIVE
        if any(what["status"] == "refused" for what in outcome["stages"].values())
        else 0
    )


def _take(live: run.Run, request: Request, reader: Reader, warnings: list[str]) -> dict[str, Any]:
    plan = plan_prep(live, request)
    verdicts = {part.stage: _verdict(plan, part) for part in reader.manifest.parts}
    taken = tuple(part for part in reader.manifest.parts if verdicts[part.stage][0] == "imported")
    if taken:
        folder = incoming.receive(reader, taken)
        stages = {decision.stage.name: decision.stage for decision in plan.decisions}
        # What is placed may have the name of a record that cannot be read.
        set_aside(plan, warnings)
        incoming.commit(
            folder,
            tuple(
                replace(part, hints=stages[part.stage].learned(plan.context, part.hints))
                for part in taken
            ),
        )
        # What was taken has to be what this host would have made.
        left = plan_prep(live, request).to_json()["stages"]
        for part in taken:
            if part.finished and left[part.stage]["status"] != "noop":
                verdicts[part.stage] = (
                    "imported",
                    f"something is still to be done: {left[part.stage]['reason']}",
                )
    else:
        reader.read(lambda entries: None)
    return {
        "schema_version": "1",
        "digest": reader.manifest.digest,
        "stages": {
            part.stage: {
                "status": verdicts[part.stage][0],
                "reason": verdicts[part.stage][1],
                "key": part.key,
                "finished": part.finished,
                "files": len(part.files),
                "bytes": part.size,
            }
            for part in reader.manifest.parts
        },
    }


def _verdict(plan: Plan, part: Part) -> tuple[str, str | None]:
    """What becomes of a part here: `imported`, `standing` or `refused`, and why."""
    decision = next((each for each in plan.decisions if each.stage.name == part.stage), None)
    if decision is None:
        return "refused", "this release knows no such stage"
    if decision.action == "skipped":
        return "refused", f"it is skipped here ({decision.reason})"
    if decision.signature is None:
        return "refused", decision.explanation or "it cannot be done here"
    if decision.action == "noop":
        return "standing", "this host's own work stands"
    if plan.request.stages[part.stage] == "rebuild":
        return "refused", "this host rebuilds it (rebuild)"
    wanted = decision.stage.signature_given(plan.context, part.hints)
    if (
        why := difference(part.signature, wanted)
        or incoming.check_paths(part)
        or decision.stage.foreign(plan.context, part)
    ) is not None:
        return "refused", why
    return "imported", None if part.finished else "what is finished so far"


def difference(theirs: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """In which fields another host's signature differs from the one that is wanted here; None where
    it is the same.
    """
    names = {"cpu_arch": "CPU architecture", "device_name": "GPU"}
    theirs, wanted = _by_field(theirs, wanted), _by_field(wanted, theirs)
    found = [
        f"{_cut(names.get(key, key))}: made for {_shown(theirs, key)}, and this host wants"
        f" {_shown(wanted, key)}"
        for key in sorted({*theirs, *wanted})
        # As they are digested: to Python, true and 1.0 are 1.
        if caches.digest({key: theirs[key]} if key in theirs else {})
        != caches.digest({key: wanted[key]} if key in wanted else {})
    ]
    more = [f"{len(found) - _MOST_FIELDS} more"] if len(found) > _MOST_FIELDS else []
    return (
        files.printable("its signature differs in " + "; ".join([*found[:_MOST_FIELDS], *more]))
        if found
        else None
    )


def _by_field(signature: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A signature in which objects that both have are single fields: `model_config.hidden_size`."""
    fields: dict[str, Any] = {}
    for key, value in signature.items():
        if isinstance(value, dict) and isinstance(other.get(key), dict):
            fields.update((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            fields[key] = value
    return fields


def _shown(signature: dict[str, Any], key: str) -> str:
    value = signature.get(key, "nothing")
    return _cut(value if isinstance(value, str) else json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


# --- verify, and what they share
# -----------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace) -> int:
    with _opened(arguments.file, arguments.digest) as reader:
        reader.read(lambda entries: None)
    _print({**_summary(reader.manifest), "file": arguments.file}, arguments.json, sys.stdout)
    return 0


@contextmanager
def _opened(name: str, digest: str | None) -> Iterator[Reader]:
    """Raises Refused where the archive is broken, or another one: then nothing of it was taken."""
    what = "standard input" if name == _STANDARD else name
    try:
        stream = (
            os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
            if name == _STANDARD
            else open(name, "rb", buffering=0)
        )
    except OSError as error:
        raise Refused(EXIT_USAGE, f"{name}: {error.strerror}") from error
    with stream:
        try:
            reader = Reader(stream)
            if digest is not None and reader.manifest.digest.partition(":")[
                2
            ] != digest.lower().removeprefix("sha256:"):
                raise Broken(
                    f"it is {reader.manifest.digest}, and {files.printable(digest)} was expected"
                )
            yield reader
        except Broken as error:
            raise Refused(
                EXIT_ARCHIVE,
                f"the archive from {what} is refused, nothing of it was taken: {error}",
            ) from error


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": "1",
        "digest": manifest.digest,
        "bytes": archive.size_of(manifest),
        "stages": {
            part.stage: {
                "key": part.key,
                "finished": part.finished,
                "files": len(part.files),
                "bytes": part.size,
                "signature": part.signature,
            }
            for part in manifest.parts
        },
    }


def _print(summary: dict[str, Any], as_json: bool, stream: TextIO) -> None:
    if as_json:
        say(json.dumps(summary), stream)
        return
    for stage, found in summary["stages"].items():
        more = "" if found["finished"] else "  what is finished so far"
        say(
            f"{stage:12} {found['files']:7} files {found['bytes'] / 2**20:10.1f} MiB "
            f" {found['key']}{more}",
            stream,
        )
    say(summary["digest"], stream)
