"""Asks the parser of the installed SGLang about a command line: a process of its own, as it imports
SGLang and so torch.

Standard input: the words after the program's name, as a JSON list; standard output: {"problem":
text or null}. The parser is `sglang.srt.server_args.ServerArgs.add_cli_args`, which every release
since 0.3 has.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import re
import sys
from typing import Any, NoReturn

# How SGLang describes an argument that takes JSON: "A dictionary in JSON string format", "Config in
# json format".
_SAYS_JSON = re.compile(r"\bin json (string )?format", re.IGNORECASE)


class _Refused(Exception):
    """The parser does not take the command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Refused(message or "ends without a server")


def problem(parser: argparse.ArgumentParser, argv: list[str]) -> str | None:
    """Why the parser does not take these words; None where it does."""
    known = list(parser._option_string_actions)
    for word in argv:
        if word.startswith("--") and (said := _unknown(word.partition("=")[0], known)):
            return said
    try:
        parsed = parser.parse_args(argv)
    except (_Refused, SystemExit) as refusal:
        return f"refuses the server's arguments: {refusal}"
    except Exception as error:
        # Actions of SGLang's own raise for what they do not take any more.
        return f"refuses the server's arguments: {error or type(error).__name__}"
    return next(filter(None, (_broken_json(action, parsed) for action in parser._actions)), None)


def _unknown(name: str, known: list[str]) -> str | None:
    if name in known:
        return None
    meant = [option for option in known if option.startswith(name)] if name != "--" else []
    if len(meant) == 1:
        # Records and signatures go by the whole name.
        return f"takes {name} as short for {meant[0]}: write that"
    if meant:
        return f"does not know {name}, which is short for any of {', '.join(meant[:4])}"
    nearest = difflib.get_close_matches(name, known, 1)
    return f"does not know {name}" + (f"; nearest: {nearest[0]}" if nearest else "")


def _broken_json(action: argparse.Action, parsed: argparse.Namespace) -> str | None:
    """What argparse takes as a text, and the server then reads as JSON."""
    value: Any = getattr(parsed, action.dest, None)
    if not isinstance(value, str) or value.startswith("@") or os.path.isfile(value):
        return None
    described = action.help or ""
    is_object = action.default == "{}"
    may_be = "json" in described.lower() and value.lstrip().startswith("{")
    if not (is_object or may_be or _SAYS_JSON.search(described)):
        return None
    try:
        read = json.loads(value)
        if is_object and not isinstance(read, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        # Not the value: it may hold a secret.
        return f"reads {action.option_strings[0]} as JSON, which its value is not: {error}"
    return None


def main() -> int:
    answer = os.dup(1)
    # What SGLang prints while it is imported goes elsewhere.
    os.dup2(2, 1)
    argv = json.load(sys.stdin)
    server_args = importlib.import_module("sglang.srt.server_args")
    parser = _Parser(add_help=True)
    server_args.ServerArgs.add_cli_args(parser)
    os.write(answer, json.dumps({"problem": problem(parser, argv)}).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
