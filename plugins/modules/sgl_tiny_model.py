#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sgl_tiny_model
short_description: Make a tiny random Qwen3 model folder
version_added: 1.0.0
author: "slice_bench.sglang contributors (@slice-bench)"
description:
  - Makes a whole model folder of about 230 kB with random weights, so that the real server can be
    started on a host that has no model
    and no network. Its answers are noise.
  - The folder holds C(config.json) (Qwen3ForCausalLM, 2 layers, hidden size 64, 259 tokens of
    vocabulary, bfloat16), a byte-level
    tokenizer with a chat template, C(generation_config.json), and two safetensors shards with their
    index.
  - The same O(seed) gives the same bytes on every machine.
  - A new folder is made beside and renamed, so it is there whole or not at all. A folder that this
    module made and that is damaged, or has
    another seed, gets the files that differ; any other existing folder is refused.
options:
  path:
    description:
      - The folder. Its missing parents are made too.
    type: path
    required: true
  models_root:
    description:
      - The folder that holds the models. Where it is missing, an earlier task makes it, and a check
        does not ask who may write there.
    type: path
  owner_uid:
    description:
      - The numeric user id that owns what is made. Without it, the user who runs the task.
      - It is made with this user's rights, so the user has to be able to write there.
    type: int
  owner_gid:
    description:
      - The numeric group id that owns what is made. Without it, the group of the user who runs the
        task.
    type: int
  seed:
    description:
      - The seed of the weights.
    type: int
    default: 0
attributes:
  check_mode:
    support: full
    description: Nothing is written; the result and the refusals are those of a real run.
  diff_mode:
    support: full
    description: Shows each file and directory that is made, not the content of the weights.
seealso:
  - module: slice_bench.sglang.sgl_model
notes:
  - Runs on Linux with Python 3.11 or later and its standard library.
"""

EXAMPLES = r"""
- name: A model that the server can start with
  slice_bench.sglang.sgl_tiny_model:
    path: /home/ubuntu/sglang-observability/models/slice-bench/tiny-qwen3
    owner_uid: 1000
    owner_gid: 1000
"""

RETURN = r"""
model_path:
  description: The folder.
  returned: success
  type: str
  sample: /home/ubuntu/sglang-observability/models/slice-bench/tiny-qwen3
seed:
  description: The seed of the weights.
  returned: success
  type: int
  sample: 0
reason:
  description: What was found; V(present) means that nothing had to be written.
  returned: success
  type: str
  sample: absent
written:
  description: The files that were written (that would be written, in check mode).
  returned: success
  type: list
  elements: str
  sample: [config.json, model-00001-of-00002.safetensors]
size_bytes:
  description: The size of the folder's files without the record, in bytes.
  returned: success
  type: int
  sample: 226615
"""

from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model
from ansible_collections.slice_bench.sglang.plugins.module_utils._told import ToldModule


def main() -> None:
    module = ToldModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "models_root": {"type": "path"},
            "owner_uid": {"type": "int"},
            "owner_gid": {"type": "int"},
            "seed": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        plan = tiny_model.inspect(
            params["path"],
            params["seed"],
            params["owner_uid"],
            params["owner_gid"],
            params["models_root"],
        )
        if plan.changed and not module.check_mode:
            tiny_model.make(plan)
    except tiny_model.TinyModelError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(diff=plan.diff(), **plan.result())


if __name__ == "__main__":
    main()
