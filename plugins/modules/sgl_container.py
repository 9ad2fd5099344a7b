#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_container
short_description: Create, replace or remove the container, so that a healthy one stays until its
  replacement stands
version_added: 1.1.0
description:
  - Replaces a container in one call. The new one is created beside the old one and tried in a
    container that is thrown away; then the old one is stopped and kept, and the new one is started.
    The old one is removed once the new run is published and its Prometheus is ready. Where that
    does not come, the new one is removed and the old one runs again.
  - A container that is as it is wanted is left alone, unless its run has lost its record.
  - What a run that was killed in a replacement left is settled first.
  - Where two runs do this at once, one does it and the other takes what it made.
options:
  name:
    description: Name of the container.
    type: str
    required: true
  state:
    description:
      - V(started) has the container run with these options, with a live run and a Prometheus that
        is ready.
      - V(checked) asks the image whether a container with these options could start, and whether
        its server takes O(server_args). It changes nothing.
      - V(absent) stops and removes it, unless a prep, a benchmark's server or a smoke runs in it.
    type: str
    choices: [started, checked, absent]
    default: started
  image:
    description: Id of the image. Needed unless O(state=absent).
    type: str
  user:
    description: User and group of its programs, as numbers.
    type: str
  gpus:
    description: Whether it gets the host's GPUs.
    type: bool
    default: false
  capabilities:
    description: Linux capabilities that its programs may have; all others are dropped.
    type: list
    elements: str
    default: []
  security_opts:
    description: Docker's security options.
    type: list
    elements: str
    default: []
  shm_size:
    description: >-
      Size of a C(/dev/shm) of its own. Without one, or with V(host), it shares the host's IPC.
    type: str
    default: ""
  ulimits:
    description: Limits of its processes, as C(docker run --ulimit) takes them.
    type: list
    elements: str
    default: []
  stop_timeout:
    description: Seconds in which it ends before Docker kills it.
    type: int
    default: 60
  volumes:
    description: Bind mounts, each the path on the host, a colon and the path in the container.
    type: list
    elements: str
    default: []
  environment:
    description: Its environment beyond the image's own.
    type: dict
    default: {}
  secret_environment:
    description: More of it, which is not shown and counts before O(environment).
    type: dict
    default: {}
  digest:
    description: A digest of all that makes the container. One with another digest is replaced.
    type: str
  outdated:
    description: Id of the container that the caller saw and that may be replaced. One that another
      run made in its place meanwhile is not.
    type: str
  telemetry_root:
    description: The telemetry folder on the host, which has the run's record.
    type: path
  force:
    description: With O(state=absent), end what runs in the container too.
    type: bool
    default: false
  server_args:
    description: Arguments of the server, which the image's SGLang is asked for.
    type: list
    elements: str
    default: []
  checked:
    description: Whether O(state=checked) has passed with the same options, so that the image need
      not be asked; or whether there is none to ask.
    type: bool
    default: false
  start_timeout:
    description: Seconds for the run to be published, and for Prometheus to be ready.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
    description: Says what would be done. The image is asked all the same.
  diff_mode:
    support: full
    description: Shows the container's image, digest of options and state before and after.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Stop and remove the container
  slice_bench.sglang.sgl_container:
    name: sglang-dev
    state: absent
"""

RETURN = r"""
container:
  description: The container as it is, or null.
  returned: with O(state=started)
  type: dict
live:
  description: Whether it has a live run. With it come the other values that
    M(slice_bench.sglang.sgl_manifest) returns of a run.
  returned: with O(state=started)
  type: bool
"""

from dataclasses import fields
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _container as container
from ..module_utils import _run_record as run_record
from ..module_utils import _server_arguments as server_arguments
from ..module_utils._contract.labels import CONTAINER_LABEL
from ..module_utils._docker_cli import DockerCli, DockerError, DockerMissing, DockerSilent
from ..module_utils._prometheus_api import PrometheusError
from ..module_utils._told import ToldModule

# A shorter value is hidden nowhere: it would blacken every message.
_SHORTEST_SECRET = 8


class ContainerModule:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.server_args = server_arguments.take(module)
        host = container.Host(self._run, self.params["telemetry_root"] or "")
        self.stack = container.Stack(
            host, self.params["name"], self.params["stop_timeout"], self.params["start_timeout"]
        )

    def _run(self, command: list[str], text: str) -> tuple[int, str, str]:
        code, output, error = self.module.run_command(command, data=text or None)
        return code, output, error

    def wanted(self) -> container.Definition:
        environment = {**self.params["environment"], **self.params["secret_environment"]}
        given = {option.name: self.params[option.name] for option in fields(container.Definition)}
        given["environment"] = {name: str(value) for name, value in environment.items()}
        return container.Definition(**given)

    def started(self) -> dict[str, Any]:
        if self.module.check_mode:
            return self._would_start()
        arguments = None if self.params["checked"] else self.server_args
        outcome = self.stack.started(self.wanted(), self.params["outdated"] or None, arguments)
        return {
            "changed": outcome.changed,
            "container": outcome.after,
            "diff": {"before": _shown(outcome.before), "after": _shown(outcome.after)},
            **outcome.run,
        }

    def _would_start(self) -> dict[str, Any]:
        found = DockerCli(self.module.run_command).container(self.params["name"])
        if container.fits(found, self.wanted()):
            # What a killed run left beside it would be removed, or a new run would begin.
            run = run_record.describe(self.params["telemetry_root"], found)
            changed = self.stack.left_something() or not run["live"]
            shown = {"before": _shown(found), "after": _shown(found)}
            return {"changed": changed, "container": found, "diff": shown, **run}
        self.stack.refuse_in_use(found)
        if found is not None and found["running"] and not self.params["checked"]:
            self.stack.check(self.wanted(), self.server_args)
        what = (
            "would be recreated: its image or its options changed" if found else "would be created"
        )
        after = {"image": self.params["image"], "options": self.params["digest"], "running": True}
        return {
            "changed": True,
            "msg": f"Container {self.params['name']} {what}",
            "container": found,
            "diff": {"before": _shown(found), "after": after},
            **run_record.summary(None, f"the container {what}"),
        }

    def checked(self) -> dict[str, Any]:
        self.stack.check(self.wanted(), self.server_args)
        return {"changed": False}

    def absent(self) -> dict[str, Any]:
        force = self.params["force"]
        if self.module.check_mode:
            return {"changed": bool(self.stack.may_be_removed(force))}
        return {"changed": self.stack.removed(force)}


def _shown(found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "image": found["image_id"],
        "options": found["labels"].get(CONTAINER_LABEL),
        "running": found["running"],
    }


def _unasked(params: dict[str, Any], problem: str) -> dict[str, Any]:
    """What check mode says where Docker cannot be asked: a run would stop at that, and the next one
    would start a container.
    """
    starts = params["state"] == "started"
    reason = f"Container {params['name']} would be created"
    return {
        "changed": starts,
        "msg": f"{reason}, once Docker answers ({problem})" if starts else problem,
        "container": None,
        **run_record.summary(None, reason),
    }


def main() -> None:
    texts = {"type": "list", "elements": "str", "default": []}
    module = ToldModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["started", "checked", "absent"],
                "default": "started",
            },
            "image": {"type": "str"},
            "user": {"type": "str"},
            "gpus": {"type": "bool", "default": False},
            "capabilities": texts,
            "security_opts": texts,
            "shm_size": {"type": "str", "default": ""},
            "ulimits": texts,
            "stop_timeout": {"type": "int", "default": 60},
            "volumes": texts,
            "environment": {"type": "dict", "default": {}},
            "secret_environment": {"type": "dict", "default": {}, "no_log": True},
            "digest": {"type": "str"},
            "outdated": {"type": "str"},
            "telemetry_root": {"type": "path"},
            "force": {"type": "bool", "default": False},
            "server_args": server_arguments.OPTION,
            "checked": {"type": "bool", "default": False},
            "start_timeout": {"type": "float", "default": 60},
        },
        required_if=[
            ("state", "started", ("image", "user", "digest", "telemetry_root")),
            ("state", "checked", ("image", "user", "digest")),
        ],
        supports_check_mode=True,
    )
    module.no_log_values = {
        value for value in module.no_log_values if len(value) >= _SHORTEST_SECRET
    }
    try:
        made = ContainerModule(module)
        do = {"started": made.started, "checked": made.checked, "absent": made.absent}
        result = do[module.params["state"]]()
        for warning in made.stack.warnings:
            module.warn(warning)
        module.exit_json(**result)
    except DockerError as error:
        if module.check_mode:
            module.exit_json(**_unasked(module.params, str(error)))
        # What names its remedy already is not explained once more.
        asked = isinstance(error, (DockerSilent, DockerMissing))
        module.fail_json(msg=str(error) if asked else container.advise(str(error)))
    except (container.ContainerError, run_record.RecordError, PrometheusError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
