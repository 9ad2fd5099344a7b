"""`sgl-admin prune`: remove what is beyond its bound of old runs, caches and tuning journals."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Refused
from sgl_admin.contract import pruning, trees
from sgl_admin.contract.exit_codes import EXIT_BUSY, EXIT_NO_RESULT, EXIT_OK, EXIT_USAGE
from sgl_admin.contract.texts import say, say_json

_KINDS = {kind.name: kind for kind in pruning.KINDS if kind.in_tree}


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    prune = commands.add_parser(
        "prune",
        help="remove old runs, caches that nothing used for long, and old tuning journals",
        epilog=(
            "What is in use stays: locks say so, and what cannot be read counts as in use. Images"
            " and what lies outside of the host tree are playbooks/prune.yml's. Exit code"
            f" {EXIT_BUSY}: another prune runs."
        ),
    )
    prune.set_defaults(handler=_prune)
    prune.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    prune.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="KIND=NUMBER",
        help=(
            "how many runs, or for how many days since they were last used caches and journals, are"
            " kept (by default "
            + ", ".join(f"{name}={kind.default}" for name, kind in _KINDS.items())
            + ")"
        ),
    )
    prune.add_argument("--json", action="store_true", help="print {freed, bytes, kept} as JSON")


def _prune(arguments: argparse.Namespace) -> int:
    keep = pruning.bounds(_given(arguments.keep))
    with ExitStack() as stack:
        telemetry = stack.enter_context(_folder(paths.TELEMETRY))
        profiles = stack.enter_context(_folder(paths.PROFILES))
        tree = pruning.Tree(telemetry, profiles, keep, time.time())
        try:
            summary = tree.prune(arguments.dry_run, _live())
        except pruning.PruneError as error:
            raise Refused(EXIT_BUSY, str(error)) from error
    if arguments.json:
        say_json(summary.to_json())
        return EXIT_OK
    for line in pruning.lines(summary.to_json(), arguments.dry_run):
        say(line)
    return EXIT_OK


def _given(words: list[str]) -> dict[str, int]:
    """Raises Refused (usage)."""
    given = {}
    for word in words:
        kind, _, number = word.partition("=")
        if kind not in _KINDS or not number.isdecimal() or len(number) > 6:
            raise Refused(
                EXIT_USAGE,
                f"--keep {word}: write KIND=NUMBER with one of {', '.join(_KINDS)}, such as"
                " --keep runs=10",
            )
        given[kind] = int(number)
    return given


def _live() -> list[str]:
    """The run of this container, which has no pointer yet while it starts. Raises Refused where it
    cannot be read.
    """
    try:
        return [files.read_bytes(paths.LIVE_RUN).decode().strip()]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise Refused(EXIT_NO_RESULT, f"which run is live is unknown: {error}") from error


def _folder(path: Path) -> AbstractContextManager[int | None]:
    return trees.opened(lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
