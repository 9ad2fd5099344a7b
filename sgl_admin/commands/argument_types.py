"""Types of command-line arguments; each raises argparse.ArgumentTypeError with what it takes."""

from __future__ import annotations

import argparse
import math
import re

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def port(text: str) -> int:
    if positive(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: the last one is {2**16 - 1}")
    return int(text)


def seconds(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def server_argument(text: str) -> str:
    name = text.partition("=")[0]
    if name.endswith("api-key"):
        raise argparse.ArgumentTypeError(
            f"{name} would stand in the records; the server of a prep listens on loopback and needs"
            " no key"
        )
    return text


def server_setting(text: str) -> str:
    name, given, _ = text.partition("=")
    if not given or not _VARIABLE.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    if _SECRET.search(name):
        raise argparse.ArgumentTypeError(
            f"{name} would stand in the records: give it to the container instead (sgl_environment)"
        )
    return text


def batch_sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(item.strip()) for item in text.split(",")}))
