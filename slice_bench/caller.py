"""What the caller's environment asks for, as the collection's variables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_TEXTS = {
    "HOST_OBS_ROOT": "sgl_root",
    "HOST_TELEMETRY_ROOT": "sgl_telemetry_root",
    "HOST_PROFILES_ROOT": "sgl_profiles_root",
    "HOST_MODELS_ROOT": "sgl_models_root",
    "HOST_HF_ROOT": "sgl_huggingface_root",
    "CONTAINER_NAME": "sgl_container",
    "IMAGE_NAME": "sgl_image",
}
_NUMBERS = {
    "EXPECT_OWNER_UID": "sgl_owner_uid",
    "EXPECT_OWNER_GID": "sgl_owner_gid",
    "EXPECT_POINTER_OWNER_UID": "sgl_pointer_owner_uid",
    "EXPECT_POINTER_OWNER_GID": "sgl_pointer_owner_gid",
}
_FLAGS = {"HOST_DIR_OWNERSHIP_IGNORE": "sgl_ownership_ignore"}
# The variable that each of the environment becomes.
ENVIRONMENT = {**_TEXTS, **_NUMBERS, **_FLAGS}

MANUAL = """\
environment:
  HOST_OBS_ROOT                the host tree (default: ~/sglang-observability of the service user)
  HOST_TELEMETRY_ROOT, HOST_PROFILES_ROOT, HOST_MODELS_ROOT, HOST_HF_ROOT
                               its parts, where they are not in it
  CONTAINER_NAME, IMAGE_NAME   of the container, in place of the inventory's
  HOST_DIR_OWNERSHIP_IGNORE=1  warn of other users' files in the tree, instead of refusing them
  EXPECT_OWNER_UID, EXPECT_OWNER_GID
                               who must own the tree, where that is not the service user
  EXPECT_POINTER_OWNER_UID, EXPECT_POINTER_OWNER_GID
                               who must own the pointer, where that is not the tree's owner
  VALIDATE_ONLY=1              start: only make and check the directories; Docker is not asked
  SLICE_BENCH_PROFILES         folders with your own profiles, separated by colons
  SGL_REPORT_DIR               where the report of a prep goes (default: reports/ in the checkout)
  ANSIBLE_INVENTORY            an inventory with this machine and its other settings (default: \
inventories/local)
  SLICE_BENCH_VERBOSE=1        show what Ansible prints; where a command fails it names a file \
with all of it

exit codes: 0 done, 2 wrong usage, 3 something belongs to another user, 5 (stop) something runs in
            the container, 1 anything else;
            provider-prep, server, perf and smoke end with that of sgl-admin, where it was asked:
            4 no live run, 5 busy, 6 no proof, 7 the server is not healthy (`server status` too),
            8 a test of the smoke failed, 10 to 14 a stage failed;
            perf: 4, 5 and 6 as these, 14 the host is too slow or was not measured
"""


class WrongUsage(Exception):
    """What was asked cannot be understood (exit code 2)."""


@dataclass(frozen=True)
class Caller:
    """`variables` are extra variables of a playbook; a variable that the caller did not set is left
    to the inventory. `flags` are ansible-playbook's.
    """

    variables: dict[str, Any]
    validate_only: bool
    verbose: bool
    # Whether the caller names an inventory, and does not take that of this machine.
    own_inventory: bool = False
    flags: tuple[str, ...] = ()

    @property
    def inventory_dir(self) -> str | None:
        """The folder of the inventory that the caller names, which may have profiles beside it."""
        named = [
            value
            for flag, value in zip(self.flags, self.flags[1:], strict=False)
            if flag == "--inventory"
        ]
        inventory = named[-1] if named else os.environ.get("ANSIBLE_INVENTORY", "")
        if not os.path.exists(inventory):
            return None
        path = os.path.abspath(inventory)
        return path if os.path.isdir(path) else os.path.dirname(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which host, and what is to be other than its inventory says."""
    parser.add_argument(
        "-i",
        "--inventory",
        action="append",
        default=[],
        help="the inventory with the host (default: ANSIBLE_INVENTORY, or else this machine)",
    )
    parser.add_argument("-l", "--limit", help="the host, where the inventory has several")
    parser.add_argument(
        "-e",
        "--extra-vars",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable sgl_... in place of the inventory's; @FILE for several",
    )


def with_arguments(caller: Caller, arguments: argparse.Namespace) -> Caller:
    """The caller with what the options of `add_arguments` say. Raises WrongUsage where an inventory
    is missing.
    """
    named = list(getattr(arguments, "inventory", []))
    # A path is the caller's, who may stand elsewhere than the checkout.
    flags = [word for name in named for word in ("--inventory", _inventory(name))]
    if limit := getattr(arguments, "limit", None):
        flags += ["--limit", limit]
    for given in getattr(arguments, "extra_vars", []):
        is_file = given.startswith("@")
        flags += ["--extra-vars", f"@{os.path.abspath(given[1:])}" if is_file else given]
    return replace(caller, flags=tuple(flags), own_inventory=caller.own_inventory or bool(named))


def _inventory(name: str) -> str:
    if "," in name:
        return name
    if not os.path.exists(name):
        raise WrongUsage(f"there is no inventory {name}")
    return os.path.abspath(name)


def from_environment(environment: Mapping[str, str] = os.environ) -> Caller:
    """Raises WrongUsage where a number is invalid, or the inventory is missing."""
    variables: dict[str, Any] = {}
    if inventory := environment.get("ANSIBLE_INVENTORY"):
        _inventory(inventory)
    for name, variable in _TEXTS.items():
        if value := environment.get(name):
            # A path is the caller's, who may stand elsewhere than the checkout.
            variables[variable] = (
                os.path.abspath(os.path.expanduser(value)) if name.startswith("HOST_") else value
            )
    for name, variable in _NUMBERS.items():
        if value := environment.get(name):
            if not value.isdecimal():
                raise WrongUsage(f"{name}={value!r} is not a number: set it to what `id` prints")
            variables[variable] = int(value)
    for name, variable in _FLAGS.items():
        if environment.get(name) == "1":
            variables[variable] = True
    return Caller(
        variables,
        environment.get("VALIDATE_ONLY") == "1",
        environment.get("SLICE_BENCH_VERBOSE") == "1",
        bool(inventory),
    )
