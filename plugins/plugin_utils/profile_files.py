# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds and reads profiles on the controller."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..module_utils._contract import profiles
from ..module_utils._contract.texts import one_line

# What a profile can set.
VARIABLES = tuple(option.name for option in profiles.VARIABLES.values())
SHIPPED = Path(__file__).resolve().parents[2] / "profiles"
_LONGEST_REASON = 200


class ProfileError(ValueError):
    """A profile that is not there, or is wrong; the message names it."""


def folders(beside: str | None = None) -> list[Path]:
    """Where profiles are looked for, in this order: SLICE_BENCH_PROFILES (folders, separated by
    colons), `profiles` beside the inventory, the user's own, the shipped ones.
    """
    named = [
        Path(folder).expanduser()
        for folder in os.environ.get("SLICE_BENCH_PROFILES", "").split(os.pathsep)
        if folder
    ]
    inventory = [Path(beside) / "profiles"] if beside else []
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [*named, *inventory, config / "slice_bench" / "profiles", SHIPPED]


def known(beside: str | None = None) -> list[str]:
    """The names of all profiles."""
    return sorted({name for folder in folders(beside) for name in _names(folder)})


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.yml"):
        yield str(path.relative_to(folder).with_suffix(""))


def load(name: str, beside: str | None = None) -> dict[str, Any]:
    """A profile's content. Raises ProfileError: there is none of that name, or it is wrong."""
    for folder in folders(beside) if profiles.is_name(name) else []:
        path = folder / f"{name}.yml"
        if path.is_file():
            return _read(path)
    raise ProfileError(
        f"there is no profile '{one_line(name, 60)}': it takes one of"
        f" {', '.join(known(beside))}, or one of yours in {folders(beside)[0]}/<name>.yml"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = one_line(" ".join(str(error).split()), _LONGEST_REASON)
        raise ProfileError(f"profile {path} is not YAML: {reason}") from error
    except OSError as error:
        raise ProfileError(f"profile {path} cannot be read: {error.strerror}") from error
    if found := profiles.problems(document):
        raise ProfileError("; ".join(f"profile {path}: {problem}" for problem in found))
    return dict(document)


def problems(names: Any, beside: str | None = None) -> list[str]:
    """What is wrong with the profiles of these names, each fault in one sentence."""
    found = []
    listed = listed_names(names)
    for name in dict.fromkeys(listed):
        if listed.count(name) > 1:
            found.append(f"sgl_profiles has {one_line(name, 60)} twice: remove one")
        try:
            load(name, beside)
        except ProfileError as error:
            found.append(str(error))
    return found


def covered(names: list[str], beside: str | None, given: Mapping[str, Any]) -> list[str]:
    """For each profile a sentence that names the variables of `given` that it sets otherwise."""
    found = []
    for name in names:
        ours = profiles.variables(load(name, beside))
        without_effect = sorted(
            variable for variable, value in given.items() if ours.get(variable, value) != value
        )
        if without_effect:
            found.append(
                f"not used from the inventory: {', '.join(without_effect)}. Profile"
                f" {one_line(name, 60)} of sgl_profiles sets that: change it in a profile of your"
                " own, or remove sgl_profiles"
            )
    return found


def listed_names(names: Any) -> list[str]:
    """A list of names as Ansible takes one: a text is parted at its commas."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    return [str(name) for name in names or []]


def resolved(name: str, beside: str | None, of_host: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's name and all variables that profiles have: as it says, or else as the host has
    them.
    """
    defaults = {
        option.name: option.default
        for option in profiles.VARIABLES.values()
        if option.default is not None
    }
    return {"name": name, **defaults, **of_host, **profiles.variables(load(name, beside))}
