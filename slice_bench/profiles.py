"""Profiles, for the front: all that must be the same in a prep and in serving, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgl_admin.contract import profiles
from slice_bench.caller import WrongUsage
from slice_bench.collection import profile_files


def folders() -> list[Path]:
    found: list[Path] = profile_files().folders()
    return found


def known() -> list[str]:
    found: list[str] = profile_files().known()
    return found


def load(name: str, beside: str | None = None) -> dict[str, Any]:
    """A profile's content. Raises WrongUsage: there is none of that name, or it is wrong."""
    files = profile_files()
    try:
        found: dict[str, Any] = files.load(name, beside)
    except files.ProfileError as error:
        raise WrongUsage(str(error)) from error
    return found


def variables(profile: dict[str, Any]) -> dict[str, Any]:
    """The collection's variables for a profile."""
    return profiles.variables(profile)
