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
  - The run is told by the container's id and by the identity of its first process, so a restart or
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
      - V(absent) removes a pointer whose run is over, and refuses to remove that of a live run.
    type: str
    choices: [live, absent]
    default: live
  expected:
    description:
      - What a container that has to be created gets, C(image) (its id) and C(inputs) (the digest of
        its options).
      - In check mode the difference to the container as it is, and to its run, is shown.
    type: dict
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
    description: Shows the pointer that it removes, and with O(expected) what a start would change.
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
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    CONTAINER_LABEL,
    DockerCli,
    DockerError,
)

_POLL_S = 0.05


class ManifestModule:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.telemetry_root: str = module.params["telemetry_root"]
        self.name: str = module.params["container"]

    def look(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The run by its records, compared with the container, which is returned too."""
        container = self._container(self.name)
        run = run_record.describe(self.telemetry_root, container)
        run_record.note_elsewhere(run, container, self._container)
        return run, container

    def _container(self, name: str) -> dict[str, Any] | None:
        try:
            return DockerCli(self.module.run_command).container(name)
        except DockerError:
            if self.module.check_mode or self.module.params["state"] == "absent":
                # No Docker, no live run.
                return None
            raise

    def live(self) -> dict[str, Any]:
        started = time.monotonic()
        while True:
            run, container = self.look()
            waited = time.monotonic() - started
            if run["live"] or self.module.check_mode:
                diff = self.foretold(run, container) if self.module.check_mode else {}
                return {"changed": bool(diff), "waited_s": round(waited, 3), **diff, **run}
            status = container["status"] if container else "absent"
            # A container that starts again and again for longer than this will not come up by
            # itself.
            patience = {
                "running": self.module.params["timeout"],
                "restarting": min(10.0, self.module.params["timeout"]),
            }.get(status, 0.0)
            if waited >= patience:
                what = (
                    f"container {self.name} ({status}) has no live run after {waited:.0f} s:"
                    f" {run['reason']}"
                )
                raise run_record.RecordError(f"{what}. The end of its log:\n{self.container_log()}")
            time.sleep(_POLL_S)

    def foretold(
        self, run: dict[str, Any], container: dict[str, Any] | None
    ) -> dict[str, dict[str, Any]]:
        """The difference that a start would make; empty where nothing is expected."""
        expected = self.module.params["expected"]
        if expected is None:
            return {}
        before: dict[str, Any] = {"container": "absent"}
        if container is not None:
            before = {
                "container": container["status"],
                "image": container["image_id"],
                "options": str(container["labels"].get(CONTAINER_LABEL, "unknown")),
                "run": run["run_id"] or "none",
            }
        after = {
            "container": "running",
            "image": str(expected.get("image")),
            "options": str(expected.get("inputs")),
            "run": "a new one, which the pointer names",
        }
        return {"diff": {"before": before, "after": after}}

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
        present = os.path.lexists(os.path.join(self.telemetry_root, places.POINTER))
        if present and run["run_id"] is None and container is not None and container["running"]:
            # It cannot be followed, so it may be the running container's.
            raise run_record.RecordError(f"container {self.name} runs, and {run['reason']}")
        if present and not self.module.check_mode:
            run_record.remove_pointer(self.telemetry_root)
        pointer = os.path.join(self.telemetry_root, places.POINTER)
        names = f"{pointer} names {run['run_id'] or 'no run that can be read'}\n"
        diff = {"before": names if present else "", "after": ""}
        return {"changed": present, "waited_s": 0.0, "diff": diff, **run}

    def container_log(self) -> str:
        try:
            cli = DockerCli(self.module.run_command)
            _ignored, output, error = self.module.run_command(
                [cli.binary, "logs", "--tail", "50", self.name]
            )
            return (
                "\n".join(line for line in (output + error).splitlines() if line.strip())
                or "(empty)"
            )
        except DockerError as error:
            return str(error)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "telemetry_root": {"type": "path", "required": True},
            "container": {"type": "str", "default": "sglang-dev"},
            "state": {"type": "str", "choices": ["live", "absent"], "default": "live"},
            "expected": {"type": "dict"},
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
