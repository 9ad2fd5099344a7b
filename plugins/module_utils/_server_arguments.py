# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The server's arguments as an option of a module. Their values may be secrets: neither the host's
log nor the module's answer has them.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._contract.disclosure import NOT_SHOWN

NAME = "server_args"
# Ansible logs each call of a module on the host, but for such options.
OPTION: dict[str, Any] = {"type": "list", "elements": "str", "default": [], "no_log": True}


def take(module: AnsibleModule) -> list[str]:
    """The arguments, which the module's answer shows no longer.

    Ansible would also blacken each of these words in all that the module says; most are common.
    """
    words: list[str] = module.params[NAME] or []
    module.params[NAME] = [NOT_SHOWN] * len(words)
    module.no_log_values = set(module.no_log_values) - set(words)
    return words
