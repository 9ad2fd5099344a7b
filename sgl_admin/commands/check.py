"""`sgl-admin check`: whether a container of this image could start with its environment, and
whether the server takes the operator's arguments. For a container that is thrown away.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sgl_admin.base import files, paths
from sgl_admin.base.errors import Refused
from sgl_admin.commands.request_fields import FIELDS
from sgl_admin.contract.exit_codes import EXIT_USAGE
from sgl_admin.contract.texts import read_json_text, say_json
from sgl_admin.init import trial
from sgl_admin.sglang import ENGINE


def register(commands: Any) -> None:
    """Add the command to sgl-admin's; `commands` is argparse's collection of sub-commands."""
    check = commands.add_parser(
        "check",
        help="in a container that is thrown away: whether one with its environment could start",
        epilog="Prints {problems} as JSON; the exit code is 2 where there are any.",
    )
    check.set_defaults(handler=_check)
    check.add_argument(
        "--server-args",
        action="store_true",
        help="also whether the server takes the arguments that standard input has, as a JSON list",
    )


def _check(arguments: argparse.Namespace) -> int:
    found = []
    if arguments.server_args:
        found += _argument_problems(sys.stdin.buffer.read())
    found += trial.problems()
    say_json({"problems": found})
    return EXIT_USAGE if found else 0


def _argument_problems(content: bytes) -> list[str]:
    """Raises Refused where the arguments are no list."""
    try:
        given = read_json_text(content)
    except ValueError as error:
        raise Refused(EXIT_USAGE, f"standard input is not JSON: {error}") from error
    try:
        words = FIELDS["server_args"].check(given)
    except ValueError as error:
        return [f"server_args: {error}"]
    server = (files.read_json(paths.FLAVOUR) or {})["server"]
    problem = ENGINE.argument_problem((*server["args"], *words), server["env"]) if words else None
    return [problem] if problem else []
