#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_host_info
short_description: Tell what a run needs to know of a host, in one round trip
version_added: 1.0.0
description:
  - Returns the service user, what Docker says, the container and the image as they are, and the devices that kernels are for.
  - Takes the place of fact gathering, which costs a second a host and knows none of this.
  - Needs nothing on the host but Python. What stops a prep of this host is told in RV(problems), and failed on only with O(must_be_ready).
options:
  user:
    description:
      - The service user, who owns the host tree and whose uid and gid the container runs with.
      - By default the user who called sudo, where this runs as root by sudo, or else the user who connects.
    type: str
  container:
    description: Name of the container to look at.
    type: str
    default: sglang-dev
  image:
    description: Name of the image to look at.
    type: str
    default: sglang-dev:local
  must_be_ready:
    description:
      - Fail where something stops a prep of this host, naming each thing and its remedy. In check mode it warns instead, as a host that is
        not prepared yet may well lack Docker.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: It only looks. See O(must_be_ready) for what does not fail then.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Look at the host
  slice_bench.sglang.sgl_host_info:
  register: host

- name: Look at the host as the service account sees it
  slice_bench.sglang.sgl_host_info:
    user: bench
"""

RETURN = r"""
user:
  description: The service user.
  returned: always
  type: dict
  sample: {name: ubuntu, uid: 1000, gid: 1000, home: /home/ubuntu}
acting:
  description: The uid that the modules run with on the host.
  returned: always
  type: int
  sample: 1000
docker:
  description: >-
    Whether Docker can be used, and otherwise the reason with the remedy. The version is asked only where neither
    container nor image exists.
  returned: always
  type: dict
  sample: {available: true, version: 28.2.2, problem: null}
container:
  description: The container as it is, or null.
  returned: always
  type: dict
  sample: {id: 4b1f0c..., running: true, started_at: '2026-11-23T09:15:00Z', labels: {}}
image:
  description: The image as it is, or null.
  returned: always
  type: dict
  sample: {id: 'sha256:...', labels: {}, architecture: arm64}
devices:
  description: The GPUs by the driver's own tool; a host without one counts its CPU as one device.
  returned: always
  type: dict
  sample: {count: 1, name: NVIDIA GH200 480GB, cuda: true}
architecture:
  description: The host's CPU architecture.
  returned: always
  type: str
  sample: aarch64
problems:
  description: What stops a prep of this host, each with its remedy.
  returned: always
  type: list
  elements: str
  sample: []
"""

import importlib.util
import os
import platform
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils.docker_cli import DockerCli, DockerError


def service_user(name: str | None) -> dict[str, Any]:
    """The passwd entry of the service user. Raises KeyError where there is none."""
    if name is None and os.geteuid() == 0:
        name = os.environ.get("SUDO_USER")
    entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    return {"name": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid, "home": entry.pw_dir}


def find_devices(module: AnsibleModule) -> dict[str, Any]:
    """GPUs as nvidia-smi names them; without its device file there is no driver, and the tool need not be asked."""
    tool = module.get_bin_path("nvidia-smi") if os.path.exists("/dev/nvidiactl") else None
    if tool is not None:
        code, output, error = module.run_command([tool, "--query-gpu=name", "--format=csv,noheader"])
        names = [line.strip() for line in output.splitlines() if line.strip()]
        if code or not names:
            module.fail_json(msg=f"nvidia-smi names no GPU: {(error or output).strip()}; mend the driver first (dmesg tells of Xid errors)")
        return {"count": len(names), "name": names[0], "cuda": True}
    return {"count": 1, "name": "cpu", "cuda": False}


def find_problems(user: dict[str, Any], docker: dict[str, Any]) -> list[str]:
    """What stops a prep of this host, each with its remedy."""
    problems = []
    if docker["problem"]:
        problems.append(docker["problem"])
    if importlib.util.find_spec("requests") is None:
        problems.append(
            "this host's Python lacks the requests package, which Ansible's Docker modules need: `apt-get install python3-requests`"
        )
    if os.geteuid() not in (0, user["uid"]):
        problems.append(
            f"modules run as uid {os.geteuid()} here, and the service user is {user['name']} ({user['uid']}): "
            "set ansible_become to true, or sgl_user to the user who connects"
        )
    return problems


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str"},
            "container": {"type": "str", "default": "sglang-dev"},
            "image": {"type": "str", "default": "sglang-dev:local"},
            "must_be_ready": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        user = service_user(module.params["user"])
    except KeyError:
        module.fail_json(msg=f"no user {module.params['user'] or os.geteuid()} on this host: create it, or set sgl_user to one that exists")
    docker: dict[str, Any] = {"available": False, "version": None, "problem": None}
    container = image = None
    try:
        cli = DockerCli(module.run_command)
        container = cli.container(module.params["container"])
        image = cli.image(module.params["image"])
        # A container or an image is answer enough that the daemon is there: its version is asked only for the others.
        docker.update(available=True, version=None if container or image else cli.version())
    except DockerError as error:
        docker["problem"] = str(error)
    problems = find_problems(user, docker)
    if problems and module.params["must_be_ready"]:
        if not module.check_mode:
            module.fail_json(msg="; ".join(problems), problems=problems)
        module.warn(f"A run without --check would stop here: {'; '.join(problems)}")
    module.exit_json(
        changed=False,
        problems=problems,
        user=user,
        acting=os.geteuid(),
        docker=docker,
        container=container,
        image=image,
        devices=find_devices(module),
        architecture=platform.machine(),
    )


if __name__ == "__main__":
    main()
