#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_prep
short_description: Warm the kernel caches in the container and prove that the server's metrics
  arrive
version_added: 1.0.0
description:
  - Runs C(sgl-admin caches ensure) in the container as a detached job and follows it, showing its
    progress. The prep goes on when the
    connection or the controller is lost; the same task run again attaches to it.
  - Where every cache is warm and the run's proof stands, it is one round trip and nothing changes.
options:
  container:
    description: Name of the container, which must run.
    type: str
    default: sglang-dev
  assume_started:
    description: In check mode, whether the container would be running by now; where it would have
      to be started first, a prep would follow.
    type: bool
    default: true
  standing:
    description:
      - Do it only where nothing is left to do; else return RV(plan) and begin nothing. A prep of
        the same request that runs is followed.
      - For a fleet, which sees first what one host can take from another.
    type: bool
    default: false
  give:
    description:
      - Share each batch size of the mixture-of-experts kernel as soon as it is tuned, so that
        another host can go on where this one fails.
      - The options of M(slice_bench.sglang.sgl_share), without its C(state).
    type: dict
  earlier:
    description: In check mode, where the container would be started first, the C(prep_result) of
      the latest prep. It says what may run again, and how long that took.
    type: dict
extends_documentation_fragment:
  - slice_bench.sglang.options.prep
attributes:
  action:
    support: full
    description: It runs on the controller, and reaches the container by the docker client of the
      host.
  check_mode:
    support: full
    description: Asks sgl-admin for a dry run.
  diff_mode:
    support: full
    description: Shows each stage's state before and after.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Warm the caches
  slice_bench.sglang.sgl_prep:
    model: /models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    tp: 1

- name: Tune the mixture-of-experts kernel for two batch sizes
  slice_bench.sglang.sgl_prep:
    model: /models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    moe: ensure
    moe_batch_sizes: [512, 4096]
"""

RETURN = r"""
prep_id:
  description: Id of the prep.
  returned: when a prep was run
  type: str
  sample: prep-20261123T091600Z-77aa01bc
profile:
  description: The profile that the prep is of.
  returned: with O(profile)
  type: str
status:
  description: V(ok), V(partial) or V(error).
  returned: when a prep has ended
  type: str
stages:
  description: Each stage's state.
  returned: always
  type: dict
  sample: {deep_gemm: skipped, moe_tune: skipped, flashinfer: skipped, inductor: noop}
metrics_ready:
  description: Whether Prometheus accounts for the tokens that were sent.
  returned: when a prep has ended
  type: bool
probe:
  description:
    - What would become of the proof of METRICS_READY. V(stands) where the run holds it for the
      server that this request describes, V(would_run), or V(skipped) with O(probe=never).
  returned: in check mode
  type: str
  sample: stands
result:
  description: The whole C(prep_result).
  returned: when a prep has ended
  type: dict
exit_code:
  description: sgl-admin's, by its manual; also where the prep did not begin.
  returned: when sgl-admin was asked
  type: int
  sample: 0
plan:
  description:
    - What is left to do. For each stage C(status), C(reason), C(signature), and C(key), by which
      hosts of the same kind find each other's work. C(cached) is true where a stage's files are
      whole and only a start has to show that they are what this server needs.
  returned: with O(standing), when something is
  type: dict
job:
  description: The job's record.
  returned: when a prep was run
  type: dict
"""
