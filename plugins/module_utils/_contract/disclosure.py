# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands in records, logs and command lines in place of a value that may be a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

NOT_SHOWN = "<not shown>"
# Shorter ones stand in logs by chance, and would blacken every line.
SHORTEST_HIDDEN = 4
# To the last @, as a password may be written as it is.
_CREDENTIALS = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
_QUERY_VALUE = re.compile(r"([?&;][^=&;\s?]*=)[^&;\s]+")


def without_credentials(text: str) -> str:
    """A text whose addresses have neither user, password nor values in their queries."""
    text = _URL.sub(lambda url: _QUERY_VALUE.sub(rf"\1{NOT_SHOWN}", url[0]), text)
    return _CREDENTIALS.sub(rf"\1{NOT_SHOWN}@", text)


def has_credentials(url: str) -> bool:
    return without_credentials(url) != url


def hidden_parts(words: Iterable[str], shown: Iterable[str]) -> list[str]:
    """What the words hold where their shown forms have NOT_SHOWN."""
    parts: list[str] = []
    for word, form in zip(words, shown):  # noqa: B905 - Python 3.9 has no strict
        if word == form:
            continue
        pattern = "(.*?)".join(map(re.escape, form.split(NOT_SHOWN)))
        match = re.fullmatch(pattern, word, re.DOTALL)
        for part in match.groups() if match else [word]:
            # Of user:password, and of a text within JSON, programs may print the part alone.
            parts += [part, part.partition(":")[2], _unescaped(part)]
    return [part for part in parts if part]


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def hidden_of(
    argv: Sequence[str],
    shown_argv: Sequence[str],
    env: Mapping[str, str],
    shown_env: Mapping[str, str],
) -> list[str]:
    """The values of a server that are not shown."""
    values = [shown_env.get(name, NOT_SHOWN) for name in env]
    return sorted({*hidden_parts(argv, shown_argv), *hidden_parts(env.values(), values)})


def forms(hidden: Iterable[str]) -> list[str]:
    """These values as logs may have them, the longest first: as they are, as Python prints them
    and as JSON.
    """
    found = set()
    for value in hidden:
        if len(value) >= SHORTEST_HIDDEN and not re.fullmatch(r"[\d.]+|true|false", value.lower()):
            found |= {value, repr(value)[1:-1], json.dumps(value)[1:-1]}
    return sorted(found, key=len, reverse=True)


def masked(text: str, hidden: Iterable[str]) -> str:
    """A text without these values."""
    for form in forms(hidden):
        text = text.replace(form, NOT_SHOWN)
    return text
