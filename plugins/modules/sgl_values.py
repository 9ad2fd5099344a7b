#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_values
short_description: Check every variable of this collection before anything changes
version_added: 1.1.0
description:
  - Checks the type, range and form of each C(sgl_) variable that the host has, and that no two of
    them contradict each other.
  - A C(sgl_) variable that this collection does not have is refused, with the nearest name that it
    has. So are unknown keys of a mapping.
  - Everything wrong is in one message, one sentence for each fault.
  - The role P(slice_bench.sglang.preflight#role) begins with it. What only the host knows, such as
    its addresses, M(slice_bench.sglang.sgl_host_info) checks.
options:
  hosts:
    description: Other hosts whose variables are checked too, as their inventory sets them.
    type: list
    elements: str
    default: []
  ready_for:
    description:
      - What the host must be ready for, as in M(slice_bench.sglang.sgl_host_info).
      - The files of C(sgl_profiles) are read for V(prep) only. A profile that is wrong or missing
        does not keep a host from being stopped.
    type: str
    default: prep
attributes:
  action:
    support: full
    description: It runs on the controller and does not reach the host.
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Check the variables
  slice_bench.sglang.sgl_values:
"""

RETURN = r"""
msg:
  description: What is wrong, each fault in one sentence.
  returned: failure
  type: str
  sample: "sgl_tp is 0: set it to a whole number from 1 to 1024"
profiles:
  description: The profiles that are to be prepared, in their order.
  returned: success
  type: list
  elements: str
  sample: [custom/sglang/qwen3-next-80b-fp8-baseline]
sign_key:
  description: The key on the controller that signs the report. Null where none is set.
  returned: success
  type: str
  sample: ~/.minisign/sgl.key
"""
