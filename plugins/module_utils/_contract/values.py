# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks variables by what the contract declares of them: type, range, choices and kind.

Each fault is one sentence that names the variable, its value and what it must be. What only a host
knows (its addresses, its users, its free ports) the preflight checks there.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from . import options, places, services
from .disclosure import has_credentials
from .options import Option
from .texts import one_line

_LONGEST_SHOWN = 60
# As Ansible takes them (ansible.module_utils.parsing.convert_bool).
_BOOLEANS = ("y", "yes", "on", "1", "true", "t", "n", "no", "off", "0", "false", "f")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# argparse takes an unambiguous beginning of a flag for the flag: each with its shortest one.
_KEY_FLAGS = {"--api-key": "--ap", "--admin-api-key": "--ad"}
KEYS = "sgl-admin gives the server its keys itself, from sgl_server_api_key_file: remove it here"
# Names that Ansible would take for a variable of this collection if they were spelled right.
_MISSPELLED_PREFIX = re.compile(r"(sgl|slg|gsl|gls|lsg|lgs|sglang)[-_.]")


class Wrong(ValueError):
    """A value that cannot be used; the text says why, or is empty where the kind says enough."""


@dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a check, which raises Wrong."""

    expects: str
    check: Callable[[Any], None]


def problems(given: Mapping[str, Any]) -> list[str]:
    """All that is wrong with these variables, by name, each fault in one sentence."""
    found = [*unknown(given)]
    for name, value in given.items():
        if name in options.BY_NAME:
            found += problems_of(name, options.BY_NAME[name], value)
    return found or _contradictions(given)


def unknown(names: Iterable[str]) -> Iterator[str]:
    """Names that look like variables of this collection and are not, with the nearest one."""
    for name in names:
        if name in options.BY_NAME:
            continue
        plain = re.sub(r"[-.]", "_", str(name).lower())
        prefix, _separator, rest = plain.partition("_")
        meant = options.PREFIX + rest
        if name.startswith(options.PREFIX):
            yield _unknown_variable(str(name), meant)
        elif _MISSPELLED_PREFIX.match(str(name).lower()) and meant in options.BY_NAME:
            yield f"{_shown(name, quote=False)} is not a variable of this collection: write {meant}"


def _unknown_variable(name: str, meant: str) -> str:
    shown = _shown(name, quote=False)
    head, dot, part = name.partition(".")
    if dot and head in options.BY_NAME and options.BY_NAME[head].type == "dict":
        return (
            f"{shown} is not a variable: {head} is a mapping, so write"
            f' -e \'{{"{head}": {{"{_shown(part, quote=False)}": ...}}}}\''
        )
    # Without the prefix, which is in all of them.
    known = [known.removeprefix(options.PREFIX) for known in options.BY_NAME]
    near = difflib.get_close_matches(meant.removeprefix(options.PREFIX), known, 1, 0.6)
    if near:
        meant = options.PREFIX + near[0]
        return f"{shown} is not a variable of this collection: did you mean {meant}?"
    return (
        f"{shown} is not a variable of this collection, which owns the prefix {options.PREFIX}:"
        " remove it, or rename a variable of your own"
    )


def problems_of(name: str, option: Option, value: Any) -> list[str]:
    """What is wrong with the value of an option that is called so there, each fault in one
    sentence.
    """
    if _is_default(option, value):
        return []
    try:
        if option.type == "list":
            return list(_of_list(name, option, value))
        if option.type == "dict":
            return list(_of_mapping(name, option, value))
        _check_one(option, option.type, value)
    except Wrong as reason:
        return [_sentence(name, option, value, str(reason), expected(option))]
    return []


def _is_default(option: Option, value: Any) -> bool:
    # What is computed by default, and a part of a mapping, cannot be left empty.
    if value is None and (option.jinja or option.name not in options.BY_NAME):
        return False
    return value == option.default and isinstance(value, bool) == isinstance(option.default, bool)


def _of_list(name: str, option: Option, value: Any) -> Iterator[str]:
    # Ansible parts a text at its commas, also for the modules.
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, int) and not isinstance(items, bool):
        items = [items]
    if not isinstance(items, (list, tuple)):
        raise Wrong
    for item in items:
        try:
            _check_one(option, option.elements, item)
        except Wrong as reason:
            what = f"each item of {name}"
            yield _sentence(name, option, item, str(reason), _item(option), what=what)


def _of_mapping(name: str, option: Option, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        raise Wrong
    parts = {part.name: part for part in option.parts}
    for key, entry in value.items():
        if not parts:
            break
        if key not in parts:
            near = difflib.get_close_matches(str(key), parts, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "remove it:"
            yield f"{name}.{_shown(key, quote=False)} is unknown: {hint} {name} takes" + (
                f" {', '.join(parts)}"
            )
            continue
        yield from problems_of(f"{name}.{key}", parts[key], entry)
    if option.kind:
        KINDS[option.kind].check(value)


def _sentence(
    name: str, option: Option, value: Any, reason: str, expects: str, what: str = ""
) -> str:
    """One sentence; of an option that may hold a secret, without the value."""
    if reason:
        return f"{name} {reason}"
    if option.no_log:
        shown = f"{name} has a wrong value"
    elif value is None or value == "":
        shown = f"{name} is empty"
    else:
        shown = f"{name} {'has' if what else 'is'} {_shown(value)}"
    remedy = f"{shown}: set {what or 'it'} to {expects}"
    near = _nearest(option, value)
    return f"{remedy}; did you mean {near}?" if near else remedy


def _nearest(option: Option, value: Any) -> str | None:
    names = option.choices or (CAPABILITIES if option.kind == "capability" else ())
    if not isinstance(value, str) or option.no_log:
        return None
    near = difflib.get_close_matches(value, names, 1, 0.6)
    return near[0] if near else None


def _shown(value: Any, quote: bool = True) -> str:
    line = one_line(value, _LONGEST_SHOWN)
    return f"'{line}'" if quote and isinstance(value, str) else line


# --- what an option takes, in words


def expected(option: Option) -> str:
    """What its value must be."""
    if option.type == "list":
        return f"a list, each item {_item(option)}"
    if option.kind:
        return KINDS[option.kind].expects
    if option.type == "dict":
        if option.parts:
            return f"a mapping of any of {', '.join(part.name for part in option.parts)}"
        return "a mapping"
    return _item(option)


def _item(option: Option) -> str:
    kind = option.elements or option.type
    if option.choices:
        return f"one of {', '.join(option.choices)}"
    if kind in ("int", "float"):
        return f"{'a whole number' if kind == 'int' else 'a number'}{_range(option)}"
    if kind == "bool":
        return "true or false"
    return KINDS[option.kind or "line"].expects


def _range(option: Option) -> str:
    low, high = option.minimum, option.maximum
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low:g}"
    return f" from {low or 0:.0f} to {high:.0f}"


# --- one value


def _check_one(option: Option, kind: str, value: Any) -> None:
    if kind in ("int", "float"):
        number = _number(kind, value)
        if option.minimum is not None and number < option.minimum:
            raise Wrong
        if option.maximum is not None and number > option.maximum:
            raise Wrong
    elif kind == "bool":
        if not isinstance(value, bool) and str(value).lower() not in _BOOLEANS:
            raise Wrong
    elif kind in ("str", "path"):
        _check_text(option, value)


def _number(kind: str, value: Any) -> float:
    if isinstance(value, str):
        pattern = r"[+-]?[0-9]+" if kind == "int" else r"[+-]?[0-9]+(\.[0-9]+)?"
        if len(value) > 20 or not re.fullmatch(pattern, value):
            raise Wrong
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong
    if kind == "int" and not isinstance(value, int):
        raise Wrong
    if not -(2**63) < value < 2**63:
        raise Wrong
    return value


def _check_text(option: Option, value: Any) -> None:
    if option.choices:
        if not isinstance(value, str) or value not in option.choices:
            raise Wrong
        return
    # YAML reads 10 and 13.0 as numbers, and a template makes them text again.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Wrong
    KINDS[option.kind or "line"].check(value)


# --- kinds of text


def _pattern(pattern: str) -> Callable[[Any], None]:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any) -> None:
        if not compiled.fullmatch(value):
            raise Wrong

    return check


# Begins the pattern of a number that must not be zero.
_NOT_ZERO = r"(?=.*[1-9])"


def _line(value: Any) -> None:
    if not value.strip() or not value.isprintable() or not passable(value):
        raise Wrong


def passable(text: str) -> bool:
    """Whether a process can be given the text as an argument or in its environment."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _model(value: Any) -> None:
    # A prep needs one, and says so; starting and stopping does not.
    if not value:
        return
    _line(value)
    parts = value.rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or value.startswith("~"):
        raise Wrong


def _host_path(value: Any) -> None:
    # A leading ~ or $HOME is expanded on the host.
    if value[:1] not in ("/", "~", "$") or not value.isprintable() or not passable(value):
        raise Wrong


def _mounted(value: Any) -> None:
    _host_path(value)
    if problem := places.unmountable(value):
        raise Wrong(problem)
    if value.rstrip("/") == "":
        raise Wrong("is the root of the filesystem: set it to a folder of its own")


def _url(value: Any) -> None:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise Wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Wrong
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise Wrong
    if has_credentials(value):
        raise Wrong(
            "has a user, a password or a query in its address, which logs would show: put what the"
            " server asks for into ~/.netrc on the host, and set it to the address without"
        )


def _address(value: Any) -> None:
    """An address without brackets or scope, or a name that may be one of the host's."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
        if len(value) > 253 or not re.fullmatch(rf"({label}\.)*{label}", value, re.ASCII):
            raise Wrong from None
        # A name whose last label is a number would be read as an address.
        if value.rpartition(".")[2].isdigit():
            raise Wrong from None
    else:
        if "%" in value:
            raise Wrong


# As Prometheus writes durations; of a unit longer than a second there can only be zero.
_SCRAPE_INTERVAL = re.compile(
    r"(?:0+y)?(?:0+w)?(?:0+d)?(?:0+h)?(?:0+m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?"
)
_LONGEST_SCRAPE_INTERVAL_MS = 15_000


def _scrape_interval(value: Any) -> None:
    match = _SCRAPE_INTERVAL.fullmatch(value) if len(value) <= 20 else None
    if match is None:
        raise Wrong
    seconds, milliseconds = (int(number or 0) for number in match.groups())
    # A prep waits 30 s for Prometheus to account for its tokens.
    if not 1 <= 1000 * seconds + milliseconds <= _LONGEST_SCRAPE_INTERVAL_MS:
        raise Wrong


# capabilities(7), as moby's daemon knows them without the prefix.
CAPABILITIES = (
    "ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF",
    "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID",
    "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE",
    "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE",
    "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME",
    "SYS_TTY_CONFIG", "WAKE_ALARM",
)  # fmt: skip
# docker/go-units, ulimit.go.
_ULIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip


def _capability(value: Any) -> None:
    if value.upper().removeprefix("CAP_") not in CAPABILITIES:
        raise Wrong


def _ulimit(value: Any) -> None:
    match = re.fullmatch(r"([a-z]+)=(-1|[0-9]{1,18})(?::(-1|[0-9]{1,18}))?", value, re.ASCII)
    if not match or match[1] not in _ULIMITS:
        raise Wrong
    soft, hard = int(match[2]), int(match[3] or match[2])
    if hard != -1 and not 0 <= soft <= hard:
        raise Wrong(f"has '{value}', whose soft limit is above the hard one: lower the first")


# distribution/reference, regexp.go.
_DOMAIN = (
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_NAME = rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"(?::[\w][\w.-]{0,127})?"


def _repository(value: Any) -> None:
    _pattern(_NAME)(value)
    host, slash, _rest = value.partition("/")
    # Docker takes a first part without a dot or a port for a folder of its own registry.
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        raise Wrong


def _batch(value: Any) -> None:
    match = re.fullmatch(r"([0-9]{1,6})(%?)", value, re.ASCII)
    if not match or int(match[1]) < 1 or (match[2] and int(match[1]) > 100):
        raise Wrong


# --- kinds of mappings and arguments

_OWN_VARIABLES: dict[str, str] = {
    **{option.variable: f"set {option.name}" for option in options.OPTIONS if option.variable},
    **{mount.variable: f"set sgl_{mount.folder}_root" for mount in places.MOUNTS},
    **dict.fromkeys(places.CACHE_VARIABLES, "leave it out"),
}


def _environment(value: Any) -> None:
    for name, setting in value.items():
        _check_variable(name, setting)
        if not isinstance(setting, str):
            raise Wrong(f"has {name} without quotes: write its value in quotes, as text")
        if name in _OWN_VARIABLES:
            raise Wrong(f"has {name}, which this collection sets itself: {_OWN_VARIABLES[name]}")


def _server_environment(value: Any) -> None:
    for name, setting in value.items():
        _check_variable(name, setting)
        if name in places.CACHE_VARIABLES:
            raise Wrong(f"has {name}, which this collection sets itself: leave it out")


def _check_variable(name: Any, setting: Any) -> None:
    if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
        raise Wrong(
            f"has the name {_shown(name)}: an environment variable has letters, digits and _, and"
            " does not begin with a digit"
        )
    if isinstance(setting, bool) or not isinstance(setting, (str, int, float)):
        raise Wrong(f"has {name} without a text: write its value in quotes")
    if not passable(str(setting)):
        raise Wrong(f"has {name} with a character that no environment may hold: remove it")


def key_flag(word: str) -> str | None:
    """The flag of a server's argument that gives it a key; None for others."""
    name = word.partition("=")[0]
    flag = name.replace("_", "-")
    given = any(
        known.startswith(flag) and flag.startswith(shortest)
        for known, shortest in _KEY_FLAGS.items()
    )
    return name if given else None


def _server_argument(value: Any) -> None:
    if flag := key_flag(value):
        raise Wrong(f"has {flag}: {KEYS}")
    if not value or not passable(value) or "\n" in value:
        raise Wrong


def _downloads(value: Any) -> None:
    for name, entry in value.items():
        if name not in services.BY_NAME:
            raise Wrong(
                f"has {_shown(name)}: it takes the names of services, {', '.join(services.BY_NAME)}"
            )
        if not isinstance(entry, Mapping) or not entry or set(entry) - {"version", "sha256"}:
            raise Wrong(f"has {name}, which must be a mapping of version and sha256")
        if "version" in entry and not re.fullmatch(
            r"[0-9A-Za-z][0-9A-Za-z.+-]*", str(entry["version"])
        ):
            raise Wrong(f"has {name}.version {_shown(entry['version'])}: set it to a version")
        if "sha256" in entry and not re.fullmatch(r"[0-9a-f]{64}", str(entry["sha256"])):
            raise Wrong(f"has {name}.sha256, which must be 64 hexadecimal digits in lower case")


KINDS: dict[str, Kind] = {
    "line": Kind("one line of text", _line),
    "word": Kind("one word of letters, digits, _ and -", _pattern(r"[A-Za-z0-9][A-Za-z0-9_-]*")),
    # What is read of an environment variable that is not set is empty.
    "token": Kind("a token, without spaces", _pattern(r"[\x21-\x7e]*")),
    "model": Kind("a folder under the models folder, such as Qwen/Qwen3-8B", _model),
    # What git itself refuses of a reference (git-check-ref-format), and what would be a flag.
    "revision": Kind(
        "a branch, tag or commit", _pattern(r"(?!-)(?!.*\.\.)[^\s~^:?*\[\\\x00-\x1f\x7f]+(?<!/)")
    ),
    "user": Kind(
        "the name of a user of the host", _pattern(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,254}\$?")
    ),
    "host_path": Kind("an absolute path on the host, such as /srv/sglang", _host_path),
    "mounted": Kind("an absolute path on the host, such as /srv/sglang", _mounted),
    "controller_path": Kind("a path on the controller", _line),
    "controller_file": Kind("a file on the controller", _line),
    "controller_key": Kind("a file on the controller", _line),
    "url": Kind("an address such as https://mirror.example.com", _url),
    # A file of that name, with .yml, below a folder of profiles.
    "profile": Kind(
        "the name of a profile, such as custom/sglang/mine",
        _pattern(r"(?!.{201})[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"),
    ),
    "image": Kind(
        "an image such as registry.example.com/name:tag",
        _pattern(rf"{_NAME}{_TAG}(?:@sha256:[0-9a-f]{{64}})?"),
    ),
    "image_name": Kind(
        "a name such as sglang-dev:local, in lower case and without a digest",
        _pattern(rf"{_NAME}{_TAG}"),
    ),
    "repository": Kind(
        "a repository without a tag, such as registry.example.com/sgl-caches", _repository
    ),
    "sha256": Kind("64 hexadecimal digits in lower case", _pattern(r"[0-9a-f]{64}")),
    "cuda_version": Kind("a version such as 13.0", _pattern(r"[0-9]{1,3}\.[0-9]{1,3}")),
    "downloads": Kind("a mapping such as {jaeger: {sha256: ...}}", _downloads),
    # moby, daemon/names/names.go.
    "container_name": Kind(
        "two or more letters, digits, _, . and -, of which the first is a letter or digit",
        _pattern(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}"),
    ),
    "address": Kind("an address of the host without brackets, such as 127.0.0.1", _address),
    # prometheus/common, model/time.go.
    "scrape_interval": Kind(
        "a duration of Prometheus from 1ms to 15s, such as 1s or 500ms", _scrape_interval
    ),
    # alecthomas/units, bytes.go, which reads Prometheus' flag.
    "prometheus_size": Kind(
        "a size with its unit, such as 512MB or 10GB",
        _pattern(_NOT_ZERO + r"[0-9]{1,15}([KMGTPE]i?)?B"),
    ),
    # Go's time.ParseDuration, which knows no days.
    "go_duration": Kind(
        "a duration in h, m and s, such as 72h or 1h30m",
        _pattern(_NOT_ZERO + r"([0-9]{1,9}(\.[0-9]{1,9})?(ms|h|m|s))+"),
    ),
    "capability": Kind("a Linux capability such as SYS_ADMIN", _capability),
    # Docker's own (docker/go-units, size.go) as far as Ansible's human_to_bytes reads it too.
    "shm_size": Kind(
        "a size such as 32g or 512m, or host",
        _pattern("host|" + _NOT_ZERO + r"[0-9]{1,15}(\.[0-9]{1,3})?([bBkKmMgGtT]|[KMGT]B)?"),
    ),
    "ulimit": Kind("a limit such as nofile=1048576 or stack=67108864:67108864", _ulimit),
    "environment": Kind("a mapping of environment variables to texts in quotes", _environment),
    "server_environment": Kind("a mapping of environment variables to texts", _server_environment),
    "public_name": Kind(
        "an argument such as --name, or a variable such as MY_NAME",
        _pattern(r"--[a-z][a-z0-9-]*|[A-Za-z_][A-Za-z0-9_]*"),
    ),
    "server_argument": Kind("one argument, such as --mem-fraction-static=0.8", _server_argument),
    "batch": Kind("a number of hosts of at least 1, or a share from 1% to 100%", _batch),
}


# --- values that contradict each other


def _contradictions(given: Mapping[str, Any]) -> list[str]:
    return [*_ports_twice(given), *_wrong_source(given), *_no_registry(given)]


def _ports_twice(given: Mapping[str, Any]) -> Iterator[str]:
    """Two services at one port; which of them a host has, its flavour says."""
    gpu = given.get("sgl_flavour", options.BY_NAME["sgl_flavour"].default) != "local"
    holders: dict[int, str] = {}
    for port in services.ports_of(gpu=gpu).values():
        number = int(given.get(port.option, port.default))
        if number in holders:
            yield f"{holders[number]} and {port.option} are both {number}: give each its own port"
        holders.setdefault(number, port.option)


def _no_registry(given: Mapping[str, Any]) -> Iterator[str]:
    if given.get("sgl_cache_share") == "registry" and not given.get("sgl_cache_registry"):
        yield (
            "sgl_cache_share is registry, and sgl_cache_registry names none: set it to a repository"
            " such as registry.example.com/sgl-caches"
        )


def _wrong_source(given: Mapping[str, Any]) -> Iterator[str]:
    """A model's origin that does not fit where it comes from."""
    source, origin = given.get("sgl_model_source"), given.get("sgl_model_from")
    if not isinstance(origin, str) or not origin:
        return
    if source == "hub" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", origin, re.ASCII):
        yield (
            f"sgl_model_from is {_shown(origin)}, and sgl_model_source is hub: set it to a"
            " repository such as Qwen/Qwen3-8B"
        )
    if source == "local" and origin[:1] not in ("/", "~", "$"):
        yield (
            f"sgl_model_from is {_shown(origin)}, and sgl_model_source is local: set it to an"
            " absolute path on the host"
        )
