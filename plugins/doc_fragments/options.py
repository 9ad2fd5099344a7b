# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The documentation of options that are variables too: each text stands in the contract."""

from __future__ import annotations

import json

from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import options


def _fragment(named: dict[str, options.Option]) -> str:
    """YAML, of which JSON is a part. A variable is no option of the module that has this text."""
    documented = {name: option.documented() for name, option in named.items()}
    return json.dumps({"options": documented}).replace("O(sgl_", "C(sgl_")


class ModuleDocFragment:
    HOST_INFO = _fragment(dict(options.of_module(options.INFO)))
    PREP = _fragment(options.prep_options())
