#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sgl_model_stage
short_description: Bring a model to its place on the host, and verify its bytes
version_added: 1.0.0
author: "slice_bench.sglang contributors (@slice-bench)"
description:
  - Copies or downloads a model to C(.staging) in O(models_root), verifies each file by its digest,
    and only then gives it its name, in one
    step. The name always holds the old model or the new one, each whole.
  - Works in slices that may be killed. What was copied, downloaded or read is not copied,
    downloaded or read again.
  - The digests are those that the source came with, by an earlier staging or from the hub, or else
    those of the source's files as read.
    They are kept in C(.sgl-model.json) in the model's folder.
  - What this host has read of a model is kept in C(.sgl-verified.json) beside it, and holds for as
    long as size, modification time and
    inode of a file are the same. So an unchanged model is verified in less than a second.
  - Where files of a model are damaged, only these are brought again. Files of the old model that
    are verified are taken over by hard link.
  - Two runs that stage the same model from the same source take turns, and share what is done. From
    another source it is refused while
    a run goes on.
options:
  path:
    description:
      - The model's folder on the host, below O(models_root).
      - A folder there that is replaced is removed with all that is in it. One that is no model, or
        holds another one, is refused.
    type: path
    required: true
  models_root:
    description:
      - The directory of the models, which the container sees. The staged files need its file
        system.
    type: path
    required: true
  source:
    description:
      - V(local) copies from a folder of the host, and V(controller) from one of the controller, by
        rsync.
      - V(hub) downloads with the hub's own client in a container of O(image), which goes on when
        the connection is lost.
      - V(tiny) makes a tiny random Qwen3 on the spot, the same each time; it takes no other model's
        place.
      - V(present) only verifies what is there.
      - V(staged) is what the action plugin makes of V(controller).
    type: str
    choices: [present, tiny, local, controller, hub, staged]
    default: present
  from:
    description:
      - The folder, or with V(hub) the repository, as in V(Qwen/Qwen3-0.6B).
    type: str
  revision:
    description:
      - With V(hub), the branch, tag or commit. A model that was made from it is taken as it is, so
        a branch is not followed.
    type: str
    default: main
  endpoint:
    description:
      - With V(hub), the address of a mirror instead of the hub itself.
    type: str
  token:
    description:
      - With V(hub), the access token. It goes to the client through its environment, never on a
        command line.
    type: str
  image:
    description:
      - With V(hub), name or id of the image that has the client.
    type: str
  owner_uid:
    description:
      - The numeric user id to own the model. By default the one that the task runs as.
    type: int
  owner_gid:
    description:
      - The numeric group id to own the model.
    type: int
  verify:
    description:
      - V(quick) reads what changed since it was read. A model without any recorded digest is
        verified by its structure alone.
      - V(full) reads every file; of a model without any recorded digest it records what it reads.
    type: str
    choices: [quick, full]
    default: quick
  budget_s:
    description:
      - Seconds after which the call returns with RV(done=false), to be called again. By default it
        returns at the end.
    type: float
  tp:
    description:
      - The tensor parallel size, in devices.
    type: int
    default: 1
  server_args:
    description:
      - The arguments that the server is started with. With C(--tokenizer-path) or
        C(--skip-tokenizer-init) the folder needs no tokenizer, and with a C(--load-format) of other
        files no weights that are read here.
    type: list
    elements: str
    default: []
  device_count:
    description:
      - The number of GPUs that the host has; V(0) is taken as V(1).
    type: int
    default: 1
  device_name:
    description:
      - The name of the device, for the message when O(tp) does not fit.
    type: str
    default: CPU
  run_id:
    description:
      - What tells this run from others. Set by the action plugin.
    type: str
    default: ""
  manifest:
    description:
      - The files that the controller has. Set by the action plugin.
    type: dict
  prepare:
    description:
      - Whether the files are still to be sent. Set by the action plugin.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Tells whether the model would be brought, and changes and reads nothing.
  diff_mode:
    support: full
    description: Shows where the model comes from, before and after.
seealso:
  - module: slice_bench.sglang.sgl_model
notes:
  - Runs on Linux with Python 3.9 or later and its standard library. V(hub) needs Docker,
    V(controller) needs rsync on both sides and flock
    (util-linux) on the host.
"""

EXAMPLES = r"""
- name: The model, from the hub
  slice_bench.sglang.sgl_model_stage:
    path: /home/ubuntu/sglang-observability/models/Qwen/Qwen3-0.6B
    models_root: /home/ubuntu/sglang-observability/models
    source: hub
    from: Qwen/Qwen3-0.6B
    revision: c1899de289a04d12100db370d81485cdf75e47ca
    token: "{{ vault_hub_token }}"
    image: sglang-dev:gh200

- name: The model that is there is what was recorded, every byte
  slice_bench.sglang.sgl_model_stage:
    path: /home/ubuntu/sglang-observability/models/Qwen/Qwen3-0.6B
    models_root: /home/ubuntu/sglang-observability/models
    verify: full
"""

RETURN = r"""
done:
  description: Whether nothing is left to do. Without O(budget_s) always true.
  returned: success
  type: bool
phase:
  description: What is under way, V(waiting), V(reading), V(sending), V(copying), V(downloading) or
    V(verifying), or else V(done).
  returned: success
  type: str
  sample: done
waits_for:
  description: The process that stages this model, as far as the host shows it.
  returned: while RV(phase) is V(waiting)
  type: str
  sample: pid 4711 of uid 1000 (python3)
bytes_done:
  description: How far the phase is, in bytes.
  returned: success
  type: int
  sample: 82143560704
bytes_total:
  description: How much there is to the phase, in bytes; 0 where that is not known.
  returned: success
  type: int
  sample: 82143560704
bytes_moved:
  description: What this call itself copied or read, in bytes; through the action, what all its
    calls copied or read.
  returned: success
  type: int
  sample: 0
verified:
  description: Whether every file is, as this host has read it, what was recorded.
  returned: success
  type: bool
recorded:
  description: Whether there are recorded digests at all.
  returned: success
  type: bool
model:
  description: The model as M(slice_bench.sglang.sgl_model) describes it; null while it is not done.
  returned: success
  type: dict
  sample:
    path: /home/ubuntu/sglang-observability/models/Qwen/Qwen3-0.6B
    slug: Qwen3-0.6B
    missing: false
    identity: sha256:5f2b0c3f1d7e4a6b8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d
    architecture: Qwen3ForCausalLM
    moe: false
    size_bytes: 1503300328
    shards: 1
staging:
  description: Where the controller is to send the files to.
  returned: while they are to be sent
  type: str
  sample: /home/ubuntu/sglang-observability/models/.staging/Qwen--Qwen3-0.6B-fb68f5a6d13f
lock:
  description: The file whose lock is to be held while they are sent.
  returned: while they are to be sent
  type: str
  sample: /home/ubuntu/sglang-observability/models/.staging/lock.Qwen--Qwen3-0.6B-fb68f5a6d13f
missing:
  description: The files that are to be sent.
  returned: while they are to be sent
  type: list
  elements: str
  sample: [model.safetensors]
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _model_digests as model_digests
from ..module_utils import _safe_tree as safe_tree
from ..module_utils import _server_arguments as server_arguments
from ..module_utils._contract.texts import path_line
from ..module_utils._docker_cli import DockerCli
from ..module_utils._model_files import ModelError
from ..module_utils._model_hub import ContainerClient
from ..module_utils._model_stage import Request, Stage
from ..module_utils._told import ToldModule


def main() -> None:
    module = _module()
    arguments = server_arguments.take(module)
    given = {**module.params, server_arguments.NAME: arguments}
    if given["source"] == "controller":
        module.fail_json(
            msg=(
                "only the action plugin reaches the controller: call this as"
                " slice_bench.sglang.sgl_model_stage"
            )
        )
    uid = os.geteuid() if given["owner_uid"] is None else given["owner_uid"]
    gid = os.getegid() if given["owner_gid"] is None else given["owner_gid"]

    request = Request(
        path=given["path"],
        models_root=given["models_root"],
        source=given["source"],
        origin=given["from"] or "",
        revision=given["revision"],
        endpoint=given["endpoint"],
        token=given["token"],
        uid=uid,
        gid=gid,
        full=given["verify"] == "full",
        fitting={
            name: given[name] for name in ("tp", "device_count", "device_name", "server_args")
        },
        run=given["run_id"] or str(os.getpid()),
        manifest=given["manifest"],
        prepare=given["prepare"],
    )
    try:
        stage = Stage(
            request,
            ContainerClient(partial(_docker, module), given["image"] or "", request.path, uid, gid),
        )
        with safe_tree.acting_as(uid, gid):
            before = came_from(request.path)
        answer = stage.plan() if module.check_mode else stage.slice(given["budget_s"])
    except ModelError as error:
        module.fail_json(msg=str(error))
    for warning in answer.pop("warnings"):
        module.warn(warning)
    if answer["changed"]:
        after = (
            f"{request.source} {path_line(request.origin)}".rstrip()
            if request.source != "present"
            else "recorded as it is"
        )
        answer["diff"] = {
            "before": f"{path_line(request.path)}: {before}\n",
            "after": f"{path_line(request.path)}: {after}\n",
        }
    module.exit_json(**answer)


def _docker(module: AnsibleModule, environment: Mapping[str, str]) -> DockerCli:
    def call(arguments: list[str]) -> tuple[int, str, str]:
        # Docker's socket is root's, and the model is worked on as its owner.
        with safe_tree.as_before():
            answer: tuple[int, str, str] = module.run_command(
                arguments, environ_update=dict(environment)
            )
        return answer

    return DockerCli(call)


def _module() -> AnsibleModule:
    return ToldModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "models_root": {"type": "path", "required": True},
            "source": {
                "type": "str",
                "choices": ["present", "tiny", "local", "controller", "hub", "staged"],
                "default": "present",
            },
            "from": {"type": "str"},
            "revision": {"type": "str", "default": "main"},
            "endpoint": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "image": {"type": "str"},
            "owner_uid": {"type": "int"},
            "owner_gid": {"type": "int"},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "budget_s": {"type": "float"},
            "tp": {"type": "int", "default": 1},
            "server_args": server_arguments.OPTION,
            "device_count": {"type": "int", "default": 1},
            "device_name": {"type": "str", "default": "CPU"},
            "run_id": {"type": "str", "default": ""},
            "manifest": {"type": "dict"},
            "prepare": {"type": "bool", "default": False},
        },
        required_if=[
            ("source", "local", ["from"]),
            ("source", "controller", ["from"]),
            ("source", "hub", ["from", "image"]),
        ],
        supports_check_mode=True,
    )


def came_from(path: str) -> str:
    """Where the model that is there came from, for the diff."""
    if not os.path.lexists(path):
        return "absent"
    try:
        source: dict[str, Any] = model_digests.read_record(path).source
    except ModelError:
        return "of an unreadable record"
    return (
        f"{source['kind']} {source.get('from', '')}".strip()
        if source.get("kind")
        else "not recorded"
    )


if __name__ == "__main__":
    main()
