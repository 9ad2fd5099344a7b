#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sgl_host_dirs
short_description: Make the host tree after checking who owns what is there
version_added: 1.0.0
author: "slice_bench.sglang contributors (@slice-bench)"
description:
  - Makes the directories that the container mounts, with the service user's owner and modes that
    close them to other users, in one round trip.
  - Before anything changes it checks that the roots, and everything inside O(telemetry_root) and
    O(profiles_root), belong to
    O(owner_uid):O(owner_gid). An entry of another owner stops the task and names the path, its
    owner and the C(chown) to run.
    O(models_root) and O(huggingface_root) are large and not walked; only they themselves are
    checked.
  - Below O(telemetry_root) it makes C(container_runs), C(logs), C(prometheus) and C(jaeger). Below
    O(profiles_root) it makes a folder for each kernel cache, such as C(triton), and
    C(moe_configs/configs), C(.locks) and C(.in_progress).
  - Nothing that existed is ever chowned. An existing directory of O(telemetry_root) and
    O(profiles_root) gets the permission bits that it lacks, and loses those that let other users
    in, or its group write without O(group_writable); so do its files. Of O(root) (unless it holds
    anything else, as a home directory does), O(models_root) and O(huggingface_root) only
    the right of others to write goes.
  - A new directory is made under a temporary name C(.sgl-new-*), given its owner and mode, and
    renamed. What a killed run left under such a
    name is taken away by the next one that makes the directory.
  - C(lost+found) at the top of a filesystem that is mounted at O(telemetry_root) or
    O(profiles_root) is no mismatch.
options:
  root:
    description:
      - The parent directory of the tree. It is made, with its missing parents, when it is not
        there.
    type: path
    required: true
  telemetry_root:
    description:
      - The directory that holds run manifests, logs, Prometheus' and Jaeger's data.
    type: path
    required: true
  profiles_root:
    description:
      - The directory that holds the kernel caches.
    type: path
    required: true
  models_root:
    description:
      - The directory that holds the models.
    type: path
    required: true
  huggingface_root:
    description:
      - The directory that holds the Hugging Face cache.
    type: path
    required: true
  owner_uid:
    description:
      - The numeric user id that owns the tree, which is also the user id of the services in the
        container.
      - A task that does not run as root can only make directories for its own user.
    type: int
    required: true
  owner_gid:
    description:
      - The numeric group id that owns the tree.
    type: int
    required: true
  group_writable:
    description:
      - Whether members of the tree's group may write in it. The locks are the owner's all the
        same.
    type: bool
    default: false
    version_added: 1.1.0
  ownership_ignore:
    description:
      - Proceed, with a warning that names them, when paths have another owner.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Nothing is made; the result and the ownership check are those of a real run.
  diff_mode:
    support: full
    description: Shows each path that is made or gets another mode, before and after.
notes:
  - Runs on Linux with Python 3.9 or later and its standard library.
"""

EXAMPLES = r"""
- name: The host tree is there and belongs to the service user
  slice_bench.sglang.sgl_host_dirs:
    root: /home/ubuntu/sglang-observability
    telemetry_root: /home/ubuntu/sglang-observability/telemetry
    profiles_root: /home/ubuntu/sglang-observability/profiles
    models_root: /home/ubuntu/sglang-observability/models
    huggingface_root: /home/ubuntu/sglang-observability/huggingface
    owner_uid: 1000
    owner_gid: 1000

- name: Models on a disk of their own, a tree for all members of the group
  slice_bench.sglang.sgl_host_dirs:
    root: /srv/sglang
    telemetry_root: /srv/sglang/telemetry
    profiles_root: /srv/sglang/profiles
    models_root: /mnt/nvme/models
    huggingface_root: /mnt/nvme/huggingface
    owner_uid: 1000
    owner_gid: 1000
    group_writable: true
  become: true
"""

RETURN = r"""
created:
  description: The directories that were made, parents first (that would be made, in check mode).
  returned: success
  type: list
  elements: str
  sample: [/srv/sglang, /srv/sglang/telemetry, /srv/sglang/telemetry/container_runs]
mode_changed:
  description: The existing directories whose permission bits were changed.
  returned: success
  type: list
  elements: str
  sample: [/srv/sglang/profiles/triton]
paths:
  description: The roots.
  returned: success
  type: dict
  contains:
    root: {description: The parent., type: str, returned: success}
    telemetry: {description: Mounted at /telemetry., type: str, returned: success}
    profiles: {description: Mounted at /profiles., type: str, returned: success}
    models: {description: Mounted at /models., type: str, returned: success}
    huggingface: {description: Mounted at the container user's Hugging Face cache., type: str,
      returned: success}
  sample:
    root: /srv/sglang
    telemetry: /srv/sglang/telemetry
    profiles: /srv/sglang/profiles
    models: /srv/sglang/models
    huggingface: /srv/sglang/huggingface
owner:
  description: The owner that the tree has.
  returned: success
  type: dict
  contains:
    uid: {description: Numeric user id., type: int, returned: success}
    gid: {description: Numeric group id., type: int, returned: success}
  sample: {uid: 1000, gid: 1000}
foreign_count:
  description: How many paths have another owner; above 0 only with O(ownership_ignore).
  returned: success
  type: int
  sample: 0
entries_checked:
  description: How many existing entries had their owner checked.
  returned: success
  type: int
  sample: 4312
"""

from typing import Any

from ..module_utils import _host_tree as host_tree
from ..module_utils._told import ToldModule

_ROOTS = ("root", *(f"{name}_root" for name in host_tree.ROOTS[1:]))


def main() -> None:
    module = ToldModule(
        argument_spec={
            **{name: {"type": "path", "required": True} for name in _ROOTS},
            "owner_uid": {"type": "int", "required": True},
            "owner_gid": {"type": "int", "required": True},
            "group_writable": {"type": "bool", "default": False},
            "ownership_ignore": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        paths: dict[str, Any] = {
            name.removesuffix("_root"): host_tree.clean_path(params[name]) for name in _ROOTS
        }
        spec = host_tree.Spec(
            **paths,
            uid=params["owner_uid"],
            gid=params["owner_gid"],
            group_writable=params["group_writable"],
            ownership_ignore=params["ownership_ignore"],
        )
        plan = host_tree.inspect(spec)
        for warning in plan.warnings:
            module.warn(warning)
        if plan.changed and not module.check_mode:
            host_tree.apply(plan)
    except host_tree.HostTreeError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(diff=plan.diff(), **plan.result())


if __name__ == "__main__":
    main()
