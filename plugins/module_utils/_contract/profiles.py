# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Profiles: all that must be the same in a prep and in serving, by name. Each key becomes a
variable of the collection; which one, the variable says (Option.profile).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from . import options, stages, values
from .texts import one_line

VARIABLES = {option.profile: option for option in options.OPTIONS if option.profile}
_SPECULATIVE_KEY = "server.speculative"
# Each becomes an argument of the server.
SPECULATIVE = ("algorithm", "draft_model_path", "num_steps", "eagle_topk", "num_draft_tokens")
_PARTS = sorted({key.partition(".")[0] for key in VARIABLES if "." in key})
_KEYS = (*VARIABLES, "description", _SPECULATIVE_KEY)
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}
_EXPECTED = {"str": "a text", "path": "a text", "int": "a whole number", "float": "a number"}
_EXPECTED.update(bool="true or false", list="a list", dict="a mapping")


def is_name(text: str) -> bool:
    """Whether a profile may be called so: its file is <name>.yml below a folder of profiles."""
    try:
        values.KINDS["profile"].check(text)
    except values.Wrong:
        return False
    return True


def problems(profile: Any) -> list[str]:
    """All that is wrong with a profile's content, each fault in one sentence that names the key."""
    if not isinstance(profile, Mapping):
        return ["it is not a mapping of keys"]
    found = [*_unreadable(profile)]
    if not profile.get("model") or not dict(_leaves(profile)).get("model.name"):
        found.append("it names no model: add model: {name: <folder under models/>}")
    if found:
        return found
    found += [sentence for key, value in _leaves(profile) for sentence in _of_key(key, value)]
    return found or values.problems(variables(profile))


def _unreadable(profile: Mapping[Any, Any]) -> Iterator[str]:
    """Keys that there are none of, and values of another type."""
    for part in _PARTS:
        if part in profile and not isinstance(profile[part], Mapping):
            yield f"{part} must be a mapping"
    for key, value in _leaves(profile):
        if key in _PARTS:
            continue
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            yield f"{one_line(key, 60)} is not a key of a profile: {hint}"
            continue
        kind = _type(key)
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield f"{key} must be {_EXPECTED[kind]}"


def _type(key: str) -> str:
    if key in VARIABLES:
        return VARIABLES[key].type
    return "dict" if key == _SPECULATIVE_KEY else "str"


def _of_key(key: str, value: Any) -> list[str]:
    if key == _SPECULATIVE_KEY:
        unknown = [one_line(name, 60) for name in value if name not in SPECULATIVE]
        return [f"{key} has {unknown[0]}: it takes {', '.join(SPECULATIVE)}"] if unknown else []
    return values.problems_of(key, VARIABLES[key], value) if key in VARIABLES else []


def variables(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The collection's variables for a profile without problems. What it does not name is the
    inventory's, but not where the model comes from, the stages and the server's settings: a profile
    says all of these.
    """
    named = dict(_leaves(profile))
    found = {
        option.name: named[key] for key, option in VARIABLES.items() if named.get(key) is not None
    }
    found.setdefault("sgl_model_source", "present")
    modes = found.get("sgl_stages", {})
    found["sgl_stages"] = {
        stage.option: modes.get(stage.option, stage.default) for stage in stages.STAGES
    }
    words = [str(word) for word in found.get("sgl_server_args", [])]
    found["sgl_server_args"] = [*words, *_speculative(named.get(_SPECULATIVE_KEY, {}))]
    environment = found.get("sgl_server_env", {})
    found["sgl_server_env"] = {name: str(value) for name, value in environment.items()}
    return found


def _speculative(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key in SPECULATIVE:
        if key in settings:
            words += [f"--speculative-{key.replace('_', '-')}", str(settings[key])]
    return words


def _leaves(profile: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Each value with its key; those in a part, such as `server`, with a dotted one."""
    for key, value in profile.items():
        if key in _PARTS and isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield str(key), value
