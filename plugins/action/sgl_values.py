# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks a host's variables on the controller, by what the contract declares of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError, AnsibleValueOmittedError
from ansible.module_utils.common.validation import check_type_path
from ansible.utils.vars import load_extra_vars
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import options, values
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.texts import one_line
from ansible_collections.slice_bench.sglang.plugins.plugin_utils import (
    host_variables,
    profile_files,
)
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.told_action import ToldAction

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
    _supports_check_mode = True

    def act(self, tmp: str | None, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self.begin(tmp, task_vars)
        _ignored, given = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        known = task_vars or {}
        prepares = given["ready_for"] == "prep"
        problems = self._of_this_host(known, given["ready_for"])
        for host in given["hosts"]:
            problems += [f"host {host}: {text}" for text in self._of_host(host, known)]
        if problems:
            return {**result, "failed": True, "msg": "; ".join(problems)}
        named = self._templar.template(known.get("sgl_profiles")) if prepares else None
        listed = profile_files.listed_names(named)
        for warning in self._covered(listed, known):
            self.warn(warning)
        key = host_variables.templated([_SIGN_KEY], known, self._templar).get(_SIGN_KEY)
        return {**result, "changed": False, "profiles": listed, "sign_key": key or None}

    def _covered(self, profiles: list[str], known: Mapping[str, Any]) -> list[str]:
        """A warning where the inventory sets what a profile of the host sets otherwise. What -e
        sets goes before both.
        """
        if not profiles:
            return []
        inventory = known["hostvars"][known["inventory_hostname"]]
        by_hand = load_extra_vars(self._loader)
        set_there = [
            name for name in profile_files.VARIABLES if name in inventory and name not in by_hand
        ]
        given = host_variables.templated(set_there, known, self._templar)
        return profile_files.covered(profiles, known.get("inventory_dir"), given)

    def _of_this_host(self, known: Mapping[str, Any], ready_for: str) -> list[str]:
        given: dict[str, Any] = {}
        unreadable: list[str] = []
        for name in known:
            if name not in options.BY_NAME:
                given[name] = None
                continue
            try:
                given[name] = self._templar.template(known[name])
            except AnsibleValueOmittedError:
                continue
            except AnsibleError as error:
                unreadable.append(f"{name} cannot be read: {one_line(error, _LONGEST_REASON)}")
        if unreadable:
            return unreadable
        # What is stopped reads none of them.
        missing = [] if ready_for == "stop" else self._missing_files(given)
        found = [*values.problems(given), *missing]
        if found or ready_for != "prep":
            return found
        return profile_files.problems(given.get("sgl_profiles"), known.get("inventory_dir"))

    def _of_host(self, host: str, known: Mapping[str, Any]) -> list[str]:
        """Of another host, what its inventory sets."""
        variables = known["hostvars"][host]
        given: dict[str, Any] = {}
        unreadable: list[str] = []
        for name in variables:
            if not str(name).startswith(options.PREFIX):
                continue
            try:
                given[name] = variables[name]
            except AnsibleError as error:
                unreadable.append(f"{name} cannot be read: {one_line(error, _LONGEST_REASON)}")
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
