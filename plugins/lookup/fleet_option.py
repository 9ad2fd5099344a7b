# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_option
author:
  - slice_bench.sglang contributors (@slice-bench)
version_added: 1.1.0
short_description: A variable that holds for the whole fleet
description:
  - Returns a variable of the first host of group C(sglang), or its default. A play's own keywords,
    such as C(serial), know no host and no role defaults.
options:
  _terms:
    description: Names of variables.
    required: true
"""

EXAMPLES = r"""
- name: Prepare hosts
  hosts: sglang
  serial: "{{ lookup('slice_bench.sglang.fleet_option', 'sgl_batch') }}"
  tasks: []
"""

RETURN = r"""
_raw:
  description: The values; numbers are numbers, whatever the inventory has them as.
  type: list
  elements: raw
"""

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

from ..module_utils._contract import options, values

_NUMBERS = {"int": int, "float": float}


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        known = variables or {}
        hosts = known.get("groups", {}).get("sglang", [])
        # What only lists hosts or tasks has no variables of hosts.
        variables_of = known.get("hostvars")
        inventory = variables_of[hosts[0]] if hosts and variables_of is not None else {}
        return [_value(name, inventory) for name in terms]


def _value(name: str, inventory: Mapping[str, Any]) -> Any:
    option = options.BY_NAME[name]
    value = inventory[name] if name in inventory else option.default
    if problems := values.problems({name: value}):
        raise AnsibleError("; ".join(problems))
    return _NUMBERS.get(option.type, str)(value)
