# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: profiles
author:
  - slice_bench.sglang contributors (@slice-bench)
version_added: 1.2.0
short_description: Profiles, as the variables that they set
description:
  - Reads profiles on the controller and returns each as a mapping of C(name) and of the variables
    that a profile can set. What a profile does not name is as the host has it.
  - A profile is looked for as C(NAME.yml) in the folders of the environment variable
    C(SLICE_BENCH_PROFILES), in C(profiles) beside the inventory, in
    C(~/.config/slice_bench/profiles), and among those of the collection.
options:
  _terms:
    description: Names of profiles, or lists of them.
    required: true
"""

EXAMPLES = r"""
- name: Show what the profiles of this host set
  ansible.builtin.debug:
    msg: "{{ query('slice_bench.sglang.profiles', sgl_profiles) }}"
"""

RETURN = r"""
_raw:
  description: One mapping for each profile.
  type: list
  elements: dict
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleError, AnsibleValueOmittedError
from ansible.plugins.lookup import LookupBase

from ..plugin_utils import profile_files


class LookupModule(LookupBase):
    def run(
        self, terms: list[Any], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        known = variables or {}
        names = [name for term in terms for name in profile_files.listed_names(term)]
        beside = known.get("inventory_dir")
        of_host = {}
        for name in profile_files.VARIABLES:
            if name in known:
                with suppress(AnsibleValueOmittedError):
                    of_host[name] = self._templar.template(known[name])
        try:
            return [profile_files.resolved(name, beside, of_host) for name in names]
        except profile_files.ProfileError as error:
            raise AnsibleError(str(error)) from error
