# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host's own values of variables, as its inventory and its roles set them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleValueOmittedError


def templated(names: Iterable[str], known: Mapping[str, Any], templar: Any) -> dict[str, Any]:
    """Those of the names that the host has, by Ansible's templating; what is omitted is left out.
    Raises AnsibleError for a value that cannot be read.
    """
    found = {}
    for name in names:
        if name in known:
            with suppress(AnsibleValueOmittedError):
                found[name] = templar.template(known[name])
    return found
