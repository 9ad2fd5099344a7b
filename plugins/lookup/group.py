# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: group
author:
  - slice_bench.sglang contributors (@slice-bench)
version_added: 1.1.0
short_description: The name of a group that has hosts for this run
description:
  - Returns the group's name, for a play's C(hosts). Fails where one of this collection's playbooks
    would do nothing, which Ansible itself reports as a success.
  - An inventory that is not there, a group without hosts, a limit that leaves none, a tag that no
    task has, and C(--start-at-task) are such runs.
  - A playbook that imports one of this collection's may have other work to do, and only gets the
    name. So do C(--syntax-check) and the listings.
options:
  _terms:
    description: The group.
    required: true
"""

EXAMPLES = r"""
- name: Prepare hosts
  hosts: "{{ lookup('slice_bench.sglang.group', 'sglang') }}"
  tasks: []
"""

RETURN = r"""
_raw:
  description: The group's name.
  type: list
  elements: str
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleError
from ansible.playbook.task import Task
from ansible.plugins.lookup import LookupBase

from ..module_utils._contract.texts import one_line

_COLLECTION = "slice_bench.sglang."
_PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
_LISTINGS = ("syntax", "listhosts", "listtasks", "listtags")
_LONGEST_SHOWN = 80


class LookupModule(LookupBase):
    def run(
        self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[str]:
        arguments = context.CLIARGS
        if _is_ours(arguments) and not any(arguments.get(name) for name in _LISTINGS):
            for group in terms:
                if problem := nothing_to_do(group, arguments, variables or {}):
                    raise AnsibleError(problem)
        return terms


def _is_ours(arguments: Mapping[str, Any]) -> bool:
    """Whether the command line names this collection's own playbooks only."""
    playbooks = arguments.get("args") or ()
    return bool(playbooks) and all(
        str(name).startswith(_COLLECTION) or Path(name).resolve().parent == _PLAYBOOKS
        for name in playbooks
    )


def nothing_to_do(
    group: str, arguments: Mapping[str, Any], variables: Mapping[str, Any]
) -> str | None:
    """Why a run with these arguments would do nothing; None where it has something to do."""
    for source in arguments.get("inventory") or ():
        if "," not in source and not os.path.exists(source):
            return f"there is no inventory {_shown(source)}: name a file or folder with -i"
    hosts = variables.get("groups", {}).get(group, [])
    limit, left = arguments.get("subset"), variables.get("ansible_play_hosts_all", hosts)
    # One that breaks off in the middle leaves hosts that no play is run on.
    if not hosts or (not limit and not set(hosts) & set(left)):
        return (
            f"the inventory has no host in the group {group}, or could not be read (see the"
            " warnings above): name another one with -i, or put hosts into that group"
        )
    if not set(hosts) & set(left):
        return (
            f"--limit {_shown(limit)} leaves no host of the group {group}: name one of"
            f" {_shown(', '.join(hosts))}"
        )
    # The tasks of these playbooks have no tags.
    run, skip = list(arguments.get("tags") or ["all"]), list(arguments.get("skip_tags") or [])
    if not Task().evaluate_tags(run, skip, {}):
        given = f"--tags {','.join(run)}" if run != ["all"] else f"--skip-tags {','.join(skip)}"
        return (
            f"{_shown(given)} selects nothing, as no task of this playbook has a tag: run it"
            " without (sgl_stages chooses stages)"
        )
    if arguments.get("start_at_task"):
        return (
            "--start-at-task leaves out the look at the host that the other tasks need: run this"
            " playbook without it"
        )
    return None


def _shown(text: object) -> str:
    return one_line(text, _LONGEST_SHOWN)
