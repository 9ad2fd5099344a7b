"""The fields of a request for a prep, each declared once: as flags of the command line and as keys
of the JSON document that `--request` reads.

An option of the contract that is only passed through needs no entry here: its type, choices and
text make the field (`passed_through`).

A field's `check` takes the JSON value and returns what the Request holds. Its `parse` makes a JSON
value of a flag's text. Both raise ValueError with a sentence about the value.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sgl_admin.contract import options, profiles, values
from sgl_admin.contract.options import Option
from sgl_admin.contract.stages import MODES, PROBES
from sgl_admin.sglang import ENGINE

_LAST_PORT = 2**16 - 1
_LONGEST_SHOWN = 100
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Field:
    name: str
    # None where the command line has several flags for it.
    flag: str | None
    check: Callable[[Any], Any]
    help: str
    parse: Callable[[str], Any] = str
    # What the Request holds without it; None where that depends on the run.
    default: Any = None
    metavar: str | None = None
    # The flag may be repeated: `parse` then makes a list or an object with one entry.
    repeated: bool = False

    def add_to(self, parser: Any) -> None:
        """Add the flag to a parser or a group of one. What is not given is not in the namespace."""
        if self.flag is None:
            return
        shown = "" if self.default in (None, ()) else f" (default: {self.default})"
        parser.add_argument(
            self.flag,
            dest=self.name,
            type=flag_type(self.parse, self.check),
            action="extend" if self.repeated else "store",
            default=argparse.SUPPRESS,
            metavar=self.metavar,
            help=f"{self.help}{shown}",
        )


def flag_type(parse: Callable[[str], Any], check: Callable[[Any], Any]) -> Callable[[str], Any]:
    """A type for argparse, whose errors are those of `parse` and `check`."""

    def of_text(text: str) -> Any:
        try:
            return check(parse(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return of_text


# --- what flags say


def whole_number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(text: str) -> list[int | str]:
    return [whole_number(item.strip()) for item in text.split(",")]


def _one_word(text: str) -> list[str]:
    return [text]


def _one_setting(text: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        # Not the text: it may hold a secret.
        raise ValueError("a variable of the server is not KEY=VALUE")
    return {name: value}


# --- what values may be


def _of_type(kind: type, problem: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"{_shown(value)} is {problem}")
        return value

    return check


_text, _flag = _of_type(str, "not a text"), _of_type(bool, "neither true nor false")
_list, _object = _of_type(list, "not a list"), _of_type(dict, "not an object")


def _folder(value: Any) -> str:
    folder = _text(value)
    if not folder.strip():
        raise ValueError("no folder is named")
    return folder.rstrip("/") or "/"


def _profile(value: Any) -> str:
    name = _text(value)
    if name and not profiles.is_name(name):
        raise ValueError(f"{_shown(name)} is not the name of a profile")
    return name


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{_shown(value)} is not a whole number above 0")
    return value


def _port(value: Any) -> int:
    if _positive(value) > _LAST_PORT:
        raise ValueError(f"{_shown(value)} is not a port: the last one is {_LAST_PORT}")
    return int(value)


def seconds(value: Any) -> float:
    return _amount(value, "a number of seconds")


def _amount(value: Any, meaning: str = "a number of 0 or more") -> float:
    if type(value) in (int, float) and 0 <= value < math.inf:
        try:
            return float(value)
        except OverflowError:
            pass
    raise ValueError(f"{_shown(value)} is not {meaning}")


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(sorted({_positive(size) for size in _list(value)}))


def one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{_shown(value)} is not one of {', '.join(choices)}")
        return value

    return check


def _modes(value: Any) -> dict[str, str]:
    check = one_of(*MODES)
    return {name: check(mode) for name, mode in _object(value).items()}


def _server_arguments(value: Any) -> tuple[str, ...]:
    return tuple(_server_argument(_text(word)) for word in _list(value))


def _server_argument(word: str) -> str:
    if name := values.key_flag(word):
        raise ValueError(f"{name}: {values.KEYS}")
    if why := ENGINE.owned_argument(word):
        raise ValueError(why)
    if not values.passable(word):
        # Not its value: it may hold a secret.
        raise ValueError(f"{word.partition('=')[0]!r} has a character that no argument may hold")
    return word


def _server_settings(value: Any) -> tuple[str, ...]:
    return tuple(_server_setting(name, _text(text)) for name, text in _object(value).items())


def _server_setting(name: str, value: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{_shown(name)} is not the name of a variable")
    if not values.passable(value):
        # Not the value: it may hold a secret.
        raise ValueError(f"{name} has a value that no environment may hold")
    return f"{name}={value}"


def _api_key(value: Any) -> str:
    # An HTTP header has it.
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]*", value):
        raise ValueError("the key is not one word of printable ASCII characters")
    return value


def _passable(text: str) -> str:
    """A text that a process can be given as an argument or in its environment."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{_shown(text)} is not valid Unicode") from None
    if "\0" in text:
        raise ValueError(f"{_shown(text)} holds a NUL character")
    return text


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


# --- the fields

_OPTIONS = options.prep_options()
_FUSIONS = _OPTIONS["moe_fusion"].choices

FIELDS = {
    field.name: field
    for field in (
        Field("model", "--model", _folder, "the model's folder in the container, under /models"),
        Field(
            "tp",
            "--tp",
            _positive,
            "tensor parallel size",
            whole_number,
            default=_OPTIONS["tp"].default,
        ),
        # Each stage has a flag of its own.
        Field("stages", None, _modes, "the mode of each stage by its name"),
        Field(
            "moe_batch_sizes",
            "--moe-batch-sizes",
            _sizes,
            "batch sizes to tune the MoE kernel for",
            _numbers,
            default=(),
            metavar="N,N,...",
        ),
        Field(
            "moe_sample",
            "--moe-sample",
            _positive,
            "try only a fixed sample of so many configurations (default: all)",
            whole_number,
            metavar="N",
        ),
        Field(
            "moe_dtype",
            "--moe-dtype",
            _text,
            "data type of the expert weights",
            default=_OPTIONS["moe_dtype"].default,
        ),
        Field(
            "probe",
            "--probe",
            one_of(*PROBES),
            "prove METRICS_READY (default: auto, only while this run has no proof; with --root:"
            " never)",
            metavar=f"{{{','.join(PROBES)}}}",
        ),
        Field(
            "server_args",
            "--server-arg",
            _server_arguments,
            "one more argument of the server; may be repeated",
            _one_word,
            default=(),
            metavar="ARG",
            repeated=True,
        ),
        Field(
            "server_env",
            "--server-env",
            _server_settings,
            "one more environment variable of the server; may be repeated",
            _one_setting,
            default=(),
            metavar="KEY=VALUE",
            repeated=True,
        ),
        Field(
            "profile",
            "--profile",
            _profile,
            "the profile that it is of, by which `sgl-admin server start` names its server",
            default="",
            metavar="NAME",
        ),
        # No flag: everybody sees a command line.
        Field("server_api_key", None, _api_key, "the key that the server asks for", default=""),
        Field(
            "cuda_graph_batch_sizes",
            "--cuda-graph-bs",
            _sizes,
            "batch sizes that the server captures CUDA graphs for, and that it is warmed with"
            " (default: the image's)",
            _numbers,
            default=(),
            metavar="N,N,...",
        ),
        Field(
            "moe_fusion",
            "--moe-fusion",
            one_of(*_FUSIONS),
            "after tuning the MoE kernel, compile and verify the fused kernels with a server",
            default=_OPTIONS["moe_fusion"].default,
            metavar=f"{{{','.join(_FUSIONS)}}}",
        ),
        Field(
            "server_timeout",
            "--server-timeout",
            seconds,
            "for the server to become healthy",
            number,
            default=seconds(_OPTIONS["server_timeout"].default),
            metavar="S",
        ),
        Field(
            "probe_timeout",
            "--probe-timeout",
            seconds,
            "for Prometheus to account for the tokens",
            number,
            default=seconds(_OPTIONS["probe_timeout"].default),
            metavar="S",
        ),
        Field(
            "port",
            "--port",
            _port,
            "the server's port while it warms up (default: the one that Prometheus scrapes)",
            whole_number,
        ),
    )
}


# --- options of the contract that are only passed through


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{_shown(value)} is not a whole number")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_passable(_text(word)) for word in _list(value))


def _truth(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


# By type and elements: what the value may be, and what a flag says.
_BY_TYPE: dict[tuple[str, str], tuple[Callable[[Any], Any], Callable[[str], Any]]] = {
    ("str", ""): (_text, str),
    ("int", ""): (_whole, whole_number),
    ("float", ""): (_amount, number),
    ("bool", ""): (_flag, _truth),
    ("list", "int"): (_sizes, _numbers),
    ("list", "str"): (_texts, lambda text: text.split(",")),
}


def passed_through(name: str, option: Option) -> Field:
    """The field of an option that needs no check of its own."""
    check, parse = _BY_TYPE[option.type, option.elements]
    if option.choices:
        check = one_of(*option.choices)
    default = tuple(option.default) if isinstance(option.default, list) else option.default
    flag = f"--{name.replace('_', '-')}"
    return Field(name, flag, check, option.text, parse, default)


PASSED_THROUGH = {
    name: passed_through(name, option)
    for name, option in options.of_module(options.PREP)
    if name not in FIELDS and name != "container"
}
FIELDS.update(PASSED_THROUGH)
