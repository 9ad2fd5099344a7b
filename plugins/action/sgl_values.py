# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks a host's variables on the controller, by what the contract declares of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleError, AnsibleValueOmittedError
from ansible.module_utils.common.validation import check_type_path
from ansible.utils.vars import load_extra_vars

from ..module_utils._contract import options, values
from ..module_utils._contract.texts import one_line
from ..plugin_utils import profile_files
from ..plugin_utils.told_action import ToldAction

ARGUMENT_SPEC: dict[str, Any] = {
    "hosts": {"type": "list", "elements": "str", "default": []},
    "ready_for": {"type": "str", "default": "prep"},
}
_LONGEST_REASON = 200
# What is looked for on the controller, with what helps where it is missing. Keys are read from the
# path alone, other files also beside the playbook.
_FILES = {"controller_file": "", "controller_key": ": `minisign -G -W` makes a pair of keys"}
_SIGN_KEY = "sgl_cache_sign_key"


class ActionModule(ToldAction):
    _requires_connection = False

    def act(self) -> dict[str, Any]:
        _ignored, arguments = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        ready_for = arguments["ready_for"]
        given, unreadable = _read(self._vars, self._own_value)
        problems = unreadable or self._problems(given, ready_for)
        for host in arguments["hosts"]:
            problems += [f"host {host}: {text}" for text in self._of_host(host)]
        if problems:
            return {"failed": True, "msg": "; ".join(problems)}
        named = given.get("sgl_profiles") if ready_for == "prep" else None
        listed = profile_files.listed_names(named)
        for warning in self._covered(listed, given):
            self.warn(warning)
        return {"changed": False, "profiles": listed, "sign_key": given.get(_SIGN_KEY) or None}

    def _own_value(self, name: str) -> Any:
        """A variable of this host; of those that are no option the name is enough."""
        return self._templar.template(self._vars[name]) if name in options.BY_NAME else None

    def _covered(self, profiles: list[str], given: Mapping[str, Any]) -> list[str]:
        """A warning where the inventory sets what a profile of the host sets otherwise. What -e
        sets goes before both.
        """
        if not profiles:
            return []
        inventory = self._vars["hostvars"][self._vars["inventory_hostname"]]
        by_hand = load_extra_vars(self._loader)
        set_there = {
            name: given[name]
            for name in profile_files.VARIABLES
            if name in given and name in inventory and name not in by_hand
        }
        return profile_files.covered(profiles, self._vars.get("inventory_dir"), set_there)

    def _problems(self, given: Mapping[str, Any], ready_for: str) -> list[str]:
        # What is stopped reads none of the files.
        missing = [] if ready_for == "stop" else self._missing_files(given)
        found = [*values.problems(given), *missing]
        if found or ready_for != "prep":
            return found
        return profile_files.problems(given.get("sgl_profiles"), self._vars.get("inventory_dir"))

    def _of_host(self, host: str) -> list[str]:
        """Of another host, what its inventory sets."""
        variables = self._vars["hostvars"][host]
        names = [name for name in variables if str(name).startswith(options.PREFIX)]
        given, unreadable = _read(names, variables.__getitem__)
        return [*unreadable, *values.problems(given)]

    def _missing_files(self, given: Mapping[str, Any]) -> list[str]:
        missing = []
        for name, value in given.items():
            kind = options.BY_NAME[name].kind if name in options.BY_NAME and value else None
            if kind in _FILES and not self._is_there(kind, str(value)):
                shown = one_line(value, _LONGEST_REASON)
                missing.append(
                    f"{name} is {shown}, and the controller has no such file{_FILES[kind]}"
                )
        return missing

    def _is_there(self, kind: str, path: str) -> bool:
        if kind == "controller_key":
            return os.path.isfile(check_type_path(path))
        try:
            self._find_needle("files", path)
        except AnsibleError:
            return False
        return True


def _read(names: Iterable[str], value_of: Callable[[str], Any]) -> tuple[dict[str, Any], list[str]]:
    """Variables by name, without those that are omitted, and why others cannot be read."""
    given: dict[str, Any] = {}
    unreadable: list[str] = []
    for name in names:
        try:
            given[name] = value_of(name)
        except AnsibleValueOmittedError:
            continue
        except AnsibleError as error:
            unreadable.append(f"{name} cannot be read: {one_line(error, _LONGEST_REASON)}")
    return given, unreadable
