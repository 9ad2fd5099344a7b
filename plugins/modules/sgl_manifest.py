#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_manifest
short_description: Read the manifest of the container's live run, or clear the pointer of a dead one
version_added: 1.0.0
description:
  - Follows the pointer file to the run's manifest and its C(prep_result), checks them, and tells
    whether the run that they name is the
    one that the container lives in now. A pointer that a crash left behind names a run that is
    over.
  - A run is known by the container's id and by the identity of its first process, so a restart or
    a jump of the clock does not deceive it.
options:
  telemetry_root:
    description: The telemetry folder on the host.
    type: path
    required: true
  container:
    description: Name of the container.
    type: str
    default: sglang-dev
  state:
    description:
      - V(live) waits until the pointer names the container's live run.
      - V(absent) removes a pointer whose run is over, and refuses to remove that of a live run, or
        of a container that Docker cannot be asked about.
    type: str
    choices: [live, absent]
    default: live
  timeout:
    description: Seconds to wait for the live run. A container that is not running is not waited
      for.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
    description: With O(state=live) it looks once and does not fail where there is no live run yet;
      RV(live) tells.
  diff_mode:
    support: full
    description: Shows the pointer that it removes.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Read the run
  slice_bench.sglang.sgl_manifest:
    telemetry_root: /home/ubuntu/sglang-observability/telemetry
  register: run

- name: Clear what a crash left
  slice_bench.sglang.sgl_manifest:
    telemetry_root: /home/ubuntu/sglang-observability/telemetry
    state: absent
"""

RETURN = r"""
live:
  description: Whether the run is the container's live one.
  returned: always
  type: bool
reason:
  description: Why it is not, or null.
  returned: always
  type: str
  sample: container sglang-dev is exited
run_id:
  description: The run that the pointer names, or null.
  returned: always
  type: str
  sample: container-run-20261123T091500Z-3fa9c1d2
manifest:
  description: The manifest.
  returned: always
  type: dict
paths:
  description: The manifest's paths on the host.
  returned: always
  type: dict
prep_result:
  description: Result of the run's latest prep, or null.
  returned: always
  type: dict
metrics_ready:
  description: Whether that prep has proven that the server's metrics arrive.
  returned: always
  type: bool
prep:
  description: The prep that runs in the live run now (its id, pid, stage and arguments), or null.
  returned: always
  type: dict
  sample: {prep_id: prep-20261123T091600Z-77aa01bc, pid: 812, stage: inductor, arguments: [--tp=1]}
in_use:
  description:
    - What else goes on in the container now, in words, a benchmark's server or a smoke.
    - Of a container whose records cannot be read it is what holds a lock.
  returned: always
  type: list
  elements: str
elsewhere:
  description: The name of another container, where the run is live in that one, or null.
  returned: always
  type: str
  sample: null
waited_s:
  description: Seconds waited.
  returned: always
  type: float
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _live_run as live_run
from ..module_utils import _run_record as run_record
from ..module_utils._contract import places
from ..module_utils._docker_cli import DockerCli, DockerError, DockerMissing
from ..module_utils._told import ToldModule


class ManifestModule:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.telemetry_root: str = module.params["telemetry_root"]
        self.name: str = module.params["container"]
        # Why Docker could not say whether the container exists.
        self.unknown: str | None = None

    def look(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The run by its records, compared with the container, which is returned too."""
        try:
            cli = self.docker()
            container = cli.container(self.name)
            run = run_record.describe(self.telemetry_root, container)
            run_record.note_elsewhere(run, container, cli.container)
        except DockerError as error:
            # Without Docker there is no live run. But a container outlives its daemon
            # (live-restore), and may be one that this user may not see: its run counts as live.
            missing = isinstance(error, DockerMissing)
            matters = self.module.params["state"] == "live" or (not missing and self.has_pointer())
            if matters and not self.module.check_mode:
                raise
            self.unknown = None if missing else str(error)
            return run_record.describe(self.telemetry_root, None, self.unknown), None
        return run, container

    def docker(self) -> DockerCli:
        """Raises DockerMissing."""
        return DockerCli(self.module.run_command)

    def has_pointer(self) -> bool:
        return os.path.lexists(os.path.join(self.telemetry_root, places.POINTER))

    def live(self) -> dict[str, Any]:
        if self.module.check_mode:
            return {"changed": False, "waited_s": 0.0, **self.look()[0]}
        run, waited = live_run.wait(
            self.docker(), self.telemetry_root, self.name, self.module.params["timeout"]
        )
        return {"changed": False, "waited_s": round(waited, 3), **run}

    def absent(self) -> dict[str, Any]:
        run, container = self.look()
        if run["elsewhere"]:
            raise run_record.RecordError(
                f"{run['reason']}, so its pointer is not that of container {self.name}: name"
                f" {run['elsewhere']}"
            )
        if run["live"]:
            raise run_record.RecordError(
                f"{run['run_id']} is live: stop it first (playbooks/stop.yml), which removes its"
                " pointer"
            )
        present = self.has_pointer() and self.unknown is None
        if present:
            self.demand_tree(container)
        if present and run["run_id"] is None and container is not None and container["running"]:
            # It cannot be followed, so it may be the running container's.
            raise run_record.RecordError(f"container {self.name} runs, and {run['reason']}")
        if present and not self.module.check_mode:
            run_record.remove_pointer(self.telemetry_root)
        pointer = os.path.join(self.telemetry_root, places.POINTER)
        names = f"{pointer} names {run['run_id'] or 'no run that can be read'}\n"
        diff = {"before": names if present else "", "after": ""}
        return {"changed": present, "waited_s": 0.0, "diff": diff, **run}

    def demand_tree(self, container: dict[str, Any] | None) -> None:
        """Raises RecordError where the tree is that of another container, which is up: the pointer
        may be its own, whatever it names.
        """
        try:
            other = run_record.other_of_tree(
                self.docker(), self.telemetry_root, self.name, container
            )
        except DockerMissing:
            return
        if other is not None and run_record.is_up(other):
            raise run_record.RecordError(
                f"the pointer is not that of container {self.name}, because"
                f" {self.telemetry_root} is the telemetry folder of container {other['name']}"
                f" ({other['status']}): name {other['name']}"
            )


def main() -> None:
    module = ToldModule(
        argument_spec={
            "telemetry_root": {"type": "path", "required": True},
            "container": {"type": "str", "default": "sglang-dev"},
            "state": {"type": "str", "choices": ["live", "absent"], "default": "live"},
            "timeout": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    manifest = ManifestModule(module)
    try:
        module.exit_json(
            **(manifest.absent() if module.params["state"] == "absent" else manifest.live())
        )
    except (DockerError, run_record.RecordError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
