#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_share
short_description: Give a host's finished kernel caches or image to others, or take theirs
version_added: 1.0.0
description:
  - With O(state=given), finished stages are packed by C(sgl-admin caches export) and put where
    other hosts find them. What is there
    already is not put there again, and nothing that is in progress is packed.
  - With O(state=taken), what others gave is handed to C(sgl-admin caches import), which verifies
    every byte and refuses what is not
    exactly what this host would make itself. What nobody gave yet is C(absent) in RV(items), which
    is no failure.
  - Images go the same two ways.
options:
  state:
    description: Whether the host gives or takes.
    type: str
    choices: [given, taken]
    required: true
  items:
    description: What is given or taken.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description: Kernel caches of a stage, or an image.
        type: str
        choices: [caches, image]
        default: caches
      name:
        description: The name by which hosts find it, such as the stage with its key of the plan of
          M(slice_bench.sglang.sgl_prep).
        type: str
        required: true
      stage:
        description: The stage, of caches.
        type: str
        choices: [deep_gemm, moe_tune, flashinfer, inductor]
      image:
        description: The name of the image on the host.
        type: str
      whole:
        description: Whether the name stands for all of a stage. A part, as one host's share of the
          batch sizes, is given anew each time.
        type: bool
        default: true
      from:
        description: Take it from here, a registry's V(name@sha256:...), whatever its name stands
          for.
        type: str
  through:
    description: By a folder of the controller, or by an OCI registry.
    type: str
    choices: [relay, registry]
    default: relay
  registry:
    description:
      - The repository in the registry, without a tag. The host's Docker is the client, with its
        credentials and certificates.
      - Required with O(through=registry).
    type: str
  directory:
    description: The folder of the controller.
    type: str
    default: ~/.cache/slice_bench.sglang/caches
  sign_key:
    description: A secret key of minisign, without a password, on the controller. What is given is
      signed with it.
    type: path
  verify_key:
    description: A public key of minisign on the controller. What is taken must be signed with its
      secret key.
    type: path
  container:
    description: Name of the container.
    type: str
    default: sglang-dev
  prep:
    description: The options of M(slice_bench.sglang.sgl_prep) that say what is wanted. Required for
      caches.
    type: dict
  step:
    description: What this call does. Set by the action plugin.
    type: str
    choices: [pack, push, look, fetch, take]
  item:
    description: The item that it does it with. Set by the action plugin.
    type: dict
  path:
    description: Its archive on the host. Set by the action plugin.
    type: path
  reference:
    description: Where a registry has it. Set by the action plugin.
    type: str
  digest:
    description: Its digest. Set by the action plugin.
    type: str
  signature:
    description: Its signature. Set by the action plugin.
    type: str
attributes:
  action:
    support: full
    description: It runs on the controller, which has the folder and the keys.
  check_mode:
    support: partial
    description: Says that something would be given or taken.
    details: It looks at nothing, so it does not know what is there already.
  diff_mode:
    support: none
    description: RV(items) tells.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Give what this host has compiled
  slice_bench.sglang.sgl_share:
    state: given
    items:
      - {name: inductor-1f0c2a9b7d3e4f56, stage: inductor}
    prep: {model: /models/tiny/qwen3-tiny}

- name: Take what another host has compiled, from a registry
  slice_bench.sglang.sgl_share:
    state: taken
    through: registry
    registry: registry.example.com/sgl-caches
    items:
      - {name: inductor-1f0c2a9b7d3e4f56, stage: inductor}
    prep: {model: /models/tiny/qwen3-tiny}
"""

RETURN = r"""
items:
  description:
    - For each name its C(status). Given, it is V(given), V(there) or V(unfinished). Taken, it is
      V(imported), V(loaded), V(standing)
      (the host's own work stands) or V(absent).
    - Also C(digest), C(bytes), C(files), C(finished), and C(from), where it came from or went.
  returned: success
  type: dict
  sample: {inductor-1f0c2a9b7d3e4f56: {status: imported, files: 49, bytes: 1100000, finished: true}}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerCli,
    DockerError,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._shared_work import (
    Host,
    ShareError,
)


def main() -> None:
    """One step on the host; the action plugin says which."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["given", "taken"]},
            "items": {"type": "list", "elements": "dict", "required": True},
            "through": {"type": "str", "default": "relay", "choices": ["relay", "registry"]},
            "registry": {"type": "str"},
            "directory": {"type": "str", "default": "~/.cache/slice_bench.sglang/caches"},
            "sign_key": {"type": "path", "no_log": False},
            "verify_key": {"type": "path", "no_log": False},
            "container": {"type": "str", "default": "sglang-dev"},
            "prep": {"type": "dict"},
            "step": {"type": "str", "choices": ["pack", "push", "look", "fetch", "take"]},
            "item": {"type": "dict"},
            "path": {"type": "path"},
            "reference": {"type": "str"},
            "digest": {"type": "str"},
            "signature": {"type": "str"},
        },
        supports_check_mode=True,
    )
    given = module.params
    if given["step"] is None:
        module.fail_json(
            msg=(
                "only the action plugin reaches the controller: call this as"
                " slice_bench.sglang.sgl_share"
            )
        )
    try:
        host = Host(DockerCli(module.run_command), given["container"])
        module.exit_json(**_step(host, given))
    except (ShareError, DockerError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


def _step(host: Host, given: dict[str, Any]) -> dict[str, Any]:
    step, item, path, reference = (given[name] for name in ("step", "item", "path", "reference"))
    if step == "pack":
        return {"changed": False, "packed": host.pack(item, path), "path": path}
    if step == "look":
        return {"changed": False, "source": host.look(reference)}
    if step == "push":
        return {
            "changed": True,
            "source": host.push(item, path, reference, given["digest"], given["signature"]),
        }
    if step == "fetch":
        return {"changed": False, "fetched": host.fetch(item, reference, path)}
    return {"changed": True, "taken": host.take(item, path, given["digest"])}


if __name__ == "__main__":
    main()
