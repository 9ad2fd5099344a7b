#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sgl_model
short_description: Verify that a model folder is whole and fits the host
version_added: 1.0.0
author: "slice_bench.sglang contributors (@slice-bench)"
description:
  - Verifies a model in the Hugging Face layout before a server spends minutes on loading it.
  - C(config.json) must parse and name an architecture. Every shard that
    C(model.safetensors.index.json) names must be there, as long as its own header says, and hold
    the tensors that the index expects in it; without an index the C(-of-N) in the names says how
    many there are. A PyTorch model needs its C(*.bin) files whole.
  - A tokenizer must be there, and its files must be readable.
  - What a server may survive is a warning.
  - Verifies that O(tp) is at most the number of devices and divides the model's attention heads.
  - Changes nothing. Of the weights only the headers are read.
options:
  path:
    description:
      - The model's folder on the host.
    type: path
    required: true
  models_root:
    description:
      - The directory that the container sees, at another place. When given, the model must be below
        it and must be reached without a
        symbolic link that is absolute or leaves it, since such a link dangles in the container.
    type: path
  tp:
    description:
      - The tensor parallel size, in devices.
    type: int
    default: 1
  device_count:
    description:
      - The number of GPUs that the host has. Without a GPU the CPU counts as one device, so V(0) is
        taken as V(1).
    type: int
    default: 1
  device_name:
    description:
      - The name of the device, for the message when O(tp) does not fit.
    type: str
    default: CPU
  server_args:
    description:
      - The arguments that the server is started with. With C(--tokenizer-path) or
        C(--skip-tokenizer-init) the folder needs no tokenizer, and with a C(--load-format) of other
        files no weights that are read here.
    type: list
    elements: str
    default: []
  owner_uid:
    description:
      - The numeric user id as which the server runs. When given, the mode bits must let it read the
        model.
    type: int
  owner_gid:
    description:
      - The numeric group id as which the server runs.
    type: int
  may_be_missing:
    description:
      - Report a folder that does not exist as RV(model.missing) and do not fail, because a later
        task can make it.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Never changes anything. It only looks.
  diff_mode:
    support: none
    description: There is nothing to show, since nothing is changed.
seealso:
  - module: slice_bench.sglang.sgl_model_stage
notes:
  - Runs on Linux with Python 3.9 or later and its standard library.
"""

EXAMPLES = r"""
- name: The model is whole and fits this host
  slice_bench.sglang.sgl_model:
    path: /home/ubuntu/sglang-observability/models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    models_root: /home/ubuntu/sglang-observability/models
    tp: 1
    device_count: 1
    device_name: NVIDIA GH200 480GB
  register: verified

- name: Its identity
  ansible.builtin.debug:
    var: verified.model.identity
"""

RETURN = r"""
model:
  description: The model. All but RV(model.path), RV(model.slug) and RV(model.missing) are null when
    it is missing.
  returned: success
  type: dict
  contains:
    path:
      description: The folder on the host.
      type: str
      returned: success
    slug:
      description: The folder's own name.
      type: str
      returned: success
    missing:
      description: Whether the folder does not exist; true only with O(may_be_missing).
      type: bool
      returned: success
    identity:
      description:
        - V(sha256:) and the hex digest over C(config.json) and then, when there is one,
          C(model.safetensors.index.json), each
          as its name, a NUL byte, its length in bytes as a decimal number, a NUL byte, and its
          bytes.
      type: str
      returned: success
    architecture:
      description: The first of C(architectures) in C(config.json).
      type: str
      returned: success
    moe:
      description: Whether the model is a mixture of experts.
      type: bool
      returned: success
    size_bytes:
      description: The size of the weight files, in bytes.
      type: int
      returned: success
    shards:
      description: The number of weight files.
      type: int
      returned: success
  sample:
    path: /home/ubuntu/sglang-observability/models/Qwen/Qwen3-Next-80B-A3B-Thinking-FP8
    slug: Qwen3-Next-80B-A3B-Thinking-FP8
    missing: false
    identity: sha256:5f2b0c3f1d7e4a6b8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d
    architecture: Qwen3NextForCausalLM
    moe: true
    size_bytes: 82143560704
    shards: 9
"""

from ..module_utils import _model_files as model_files
from ..module_utils import _server_arguments as server_arguments
from ..module_utils._told import ToldModule


def main() -> None:
    module = ToldModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "models_root": {"type": "path"},
            "tp": {"type": "int", "default": 1},
            "device_count": {"type": "int", "default": 1},
            "device_name": {"type": "str", "default": "CPU"},
            "server_args": server_arguments.OPTION,
            "owner_uid": {"type": "int"},
            "owner_gid": {"type": "int"},
            "may_be_missing": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    arguments, params = server_arguments.take(module), module.params
    try:
        model = model_files.inspect_model(
            params["path"],
            tp=params["tp"],
            device_count=params["device_count"],
            device_name=params["device_name"],
            root=params["models_root"],
            uid=params["owner_uid"],
            gid=params["owner_gid"],
            server_args=arguments,
            warn=module.warn,
        )
    except model_files.ModelMissing as exc:
        if not params["may_be_missing"]:
            module.fail_json(msg=str(exc))
        model = model_files.missing_model(params["path"])
    except model_files.ModelError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, model=model)


if __name__ == "__main__":
    main()
