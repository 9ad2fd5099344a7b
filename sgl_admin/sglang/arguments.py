"""Which of the server's arguments an operator may give: not those that sgl-admin sets itself, and
none that the installed SGLang's own parser refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from sgl_admin.contract import places
from sgl_admin.contract.texts import read_json_text
from sgl_admin.sglang import command_line, metrics, packages

_PARSER = "sgl_admin.sglang.argument_parser"
# Importing SGLang takes 5 to 15 seconds on an idle machine.
_TIMEOUT_S = 180.0
_LONGEST = 300
_BY_PREP = "is set by sgl-admin itself"
# What an operator may not give, and why.
_OWNED = {
    "--model-path": f"{_BY_PREP}, from the prep's model (sgl_model)",
    "--model": f"{_BY_PREP}, from the prep's model (sgl_model)",
    "--tp-size": f"{_BY_PREP}, from the prep's tp (sgl_tp)",
    "--tensor-parallel-size": f"{_BY_PREP}, from the prep's tp (sgl_tp)",
    command_line.HOST_FLAG: f"{_BY_PREP}: the server listens on loopback",
    command_line.PORT_FLAG: f"{_BY_PREP}, from sgl_sglang_port, which Prometheus scrapes",
    metrics.FLAG: _BY_PREP,
    "--config": "names a file whose content no record has: give its arguments themselves",
    "--help": "starts no server",
    "-h": "starts no server",
}


def owned(word: str) -> str | None:
    """Why this argument may not be given, where it is one that sgl-admin sets itself, or an
    abbreviation of one that argparse takes.
    """
    name = word.partition("=")[0]
    if not name.startswith("-") or name in ("-", "--"):
        return None
    flag = name.replace("_", "-")
    for known, why in _OWNED.items():
        if flag == known:
            return f"{name} {why}"
        # One letter after the dashes is short for several, which the parser refuses itself.
        if len(flag) > len("--x") and known.startswith(flag):
            return f"{name}, which is short for {known}, {why}"
    return None


def problem(arguments: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """Why the installed SGLang does not take these arguments, by its own parser in a process of its
    own; None where it takes them, and where its parser cannot be asked.
    """
    argv = command_line.command("model", 1, 1, list(arguments))[3:]
    try:
        # PyTorch makes its cache's folder when it is imported.
        with tempfile.TemporaryDirectory() as scratch:
            caches = dict.fromkeys(places.CACHE_VARIABLES, scratch)
            done = subprocess.run(
                [sys.executable, "-P", "-m", _PARSER],
                input=json.dumps(argv),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd="/",
                env={**os.environ, **environment, **caches},
                timeout=_TIMEOUT_S,
                check=False,
            )
        said = read_json_text(done.stdout)["problem"] if done.returncode == 0 else None
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return None
    if said is None:
        return None
    text = " ".join(f"{packages.NAME} {packages.version() or ''} {said}".split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
