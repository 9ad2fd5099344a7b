# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a module says. Files, containers and programs of the host put words into it, which Ansible
shows as they are: none of them has a control character.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._contract.texts import clean


class ToldModule(AnsibleModule):
    """A module whose answer, failure and warnings may be shown on a terminal."""

    def exit_json(self, **kwargs: Any) -> None:
        super().exit_json(**clean(kwargs))

    def fail_json(self, msg: str, **kwargs: Any) -> None:
        super().fail_json(clean(msg), **clean(kwargs))

    def warn(self, warning: str) -> None:
        super().warn(clean(warning))
