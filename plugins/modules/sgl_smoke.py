#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_smoke
short_description: Chat with the prepared server by a scenario, and keep what it said
version_added: 1.0.0
description:
  - Runs a scenario of one-shot and multi-turn tests over C(/v1/chat/completions) with C(sgl-admin
    smoke) in the container, as a detached
    job, and follows it, showing each test as it ends.
  - A healthy server of the run is used and left running. Where none is, exactly the prepared one is
    started, and stopped in the end with
    all its processes.
  - Transcripts, metrics and one summary are kept under the run's folder. A test that fails says
    whether it was V(http_error),
    V(timeout) or V(schema_error).
options:
  container:
    description: Name of the container.
    type: str
    default: sglang-dev
  scenario:
    description:
      - The tests. C(name); C(defaults) and C(tests), a list of C(name), C(turns) (texts of the
        user, one for one-shot), C(system).
      - Options of a test, or in C(defaults) of all, are C(temperature), C(max_tokens), C(timeout_s)
        (seconds for a turn's whole answer),
        C(stream), C(top_p) and C(seed).
    type: dict
    required: true
  server_timeout:
    description: Seconds for a server that is started to become healthy.
    type: float
    default: 1800
attributes:
  action:
    support: full
    description: It runs on the controller, and reaches the container by the docker client of the
      host.
  check_mode:
    support: full
    description: Says that a smoke would be run, and runs none.
  diff_mode:
    support: none
    description: A smoke changes nothing but its own records.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Ask the prepared server one question
  slice_bench.sglang.sgl_smoke:
    scenario:
      name: greeting
      tests:
        - name: hello
          turns: [Say hello.]
"""

RETURN = r"""
summary:
  description: The whole summary.
  returned: when a smoke was run
  type: dict
path:
  description: The summary's file in the container.
  returned: when a smoke was run
  type: str
path_on_host:
  description: The summary's file on the host.
  returned: when a smoke was run
  type: str
tests:
  description: For each test V(passed), V(not_run), or the kind of its failure.
  returned: when a smoke was run
  type: dict
  sample: {one-shot: passed, multi-turn: timeout}
exit_code:
  description: sgl-admin's, by its manual; also where the smoke did not begin.
  returned: when sgl-admin was asked
  type: int
  sample: 0
"""
