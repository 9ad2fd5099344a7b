#!/usr/bin/python
# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: sgl_prune
short_description: Remove what is beyond its bound, or all that this collection brought to a host
version_added: 1.2.0
description:
  - With O(state=bounded) removes old runs, caches that nothing used for long, old tuning journals,
    downloads for image builds, images, reports and shared archives, as far as O(keep) says. What
    an option names is looked at, and nothing else.
  - What is in use stays. Locks say so, and what cannot be read counts as in use.
  - What goes is renamed first. A prune that is killed leaves whole records, and the next one
    removes the rest.
  - With O(state=absent) removes the host tree, images and downloads. Caches and models stay unless
    they are asked for.
options:
  state:
    description: Whether to keep what O(keep) says, or nothing.
    type: str
    choices: [bounded, absent]
    default: bounded
  keep:
    description: The number to keep, or the days, of each kind; see the variable C(sgl_keep).
    type: dict
    default: {}
  roots:
    description: The folders of the host tree, C(root), C(telemetry), C(profiles), C(models) and
      C(huggingface).
    type: dict
  owner_uid:
    description: Numeric user id that owns the tree.
    type: int
  owner_gid:
    description: Numeric group id that owns the tree.
    type: int
  build_dir:
    description: Folder on the host that keeps what the next build needs.
    type: path
  image:
    description: Name of the image. Other images of this collection with this name or none are
      pruned.
    type: str
  container:
    description: With O(state=absent), the container that is stopped before, so that check mode can
      say what becomes of its image.
    type: str
  report_dir:
    description: Folder with reports.
    type: path
  cache_dir:
    description: Folder with archives that hosts share.
    type: path
  caches:
    description: With O(state=absent), remove the kernel caches too.
    type: bool
    default: false
  models:
    description: With O(state=absent), remove models and the Hugging Face cache too, where they are
      in the tree's root.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says what would be removed.
  diff_mode:
    support: none
    description: RV(freed) says what is removed.
author:
  - slice_bench.sglang contributors (@slice-bench)
"""

EXAMPLES = r"""
- name: Keep the reports of the last 50 runs
  slice_bench.sglang.sgl_prune:
    report_dir: reports
    keep: {reports: 50}
  delegate_to: localhost
"""

RETURN = r"""
freed:
  description: Of each kind that something goes of, C(count) and C(bytes).
  returned: success
  type: dict
  sample: {runs: {count: 12, bytes: 48104972288}}
bytes:
  description: All of it.
  returned: success
  type: int
kept:
  description: What stays although it is beyond its bound, and why; with O(state=absent), what is
    left.
  returned: success
  type: list
  elements: str
said:
  description: The same for a person, a line for each kind.
  returned: success
  type: list
  elements: str
"""

import contextlib
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _safe_tree as safe_tree
from ..module_utils._contract import pruning
from ..module_utils._docker_cli import DockerCli, DockerError, DockerMissing
from ..module_utils._prune import Outside, folder_at
from ..module_utils._told import ToldModule
from ..module_utils._uninstall import Uninstall


class PruneModule:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params: dict[str, Any] = module.params
        self.dry_run: bool = module.check_mode
        self.keep = pruning.bounds(self.params["keep"])
        # At the end of all of it nothing is young enough to stay.
        now = float("inf") if self.params["state"] == "absent" else time.time()
        self.outside = Outside(self.keep, now, self.dry_run)

    def bounded(self) -> dict[str, Any]:
        summary = self.outside.summary
        if self.params["roots"]:
            found = self.tree(self.params["roots"])
            summary.freed.update(found.freed)
            summary.kept += found.kept
        self.beside(every=False)
        return self.answer(summary)

    def tree(self, roots: dict[str, str]) -> pruning.Summary:
        """As the tree's owner: a link leads no further than that user could go."""
        owner = self.params["owner_uid"], self.params["owner_gid"]
        with safe_tree.acting_as(*owner), folder_at(roots["telemetry"]) as telemetry:
            with folder_at(roots["profiles"]) as profiles:
                tree = pruning.Tree(telemetry, profiles, self.keep, time.time())
                return tree.prune(self.dry_run)

    def absent(self) -> dict[str, Any]:
        roots = self.params["roots"]
        summary = self.outside.summary
        if roots:
            if not self.dry_run:
                self.demand_rest(roots)
            done = Uninstall(roots, self.dry_run)
            done.run(self.params["caches"], self.params["models"])
            summary.freed["tree"] = done.freed
            summary.kept += done.left
        self.beside(every=True)
        return self.answer(summary)

    def demand_rest(self, roots: dict[str, str]) -> None:
        """Raises PruneError where something uses the tree."""
        for name in ("profiles", "telemetry"):
            with folder_at(roots[name]) as folder:
                used = pruning.used_by(**{name: folder})
            if used is not None:
                raise pruning.PruneError(
                    f"{roots[name]} is in use: {used}; stop it first (playbooks/stop.yml for the"
                    " container that has this tree)"
                )

    def beside(self, every: bool) -> None:
        if self.params["build_dir"]:
            self.outside.builds(self.params["build_dir"])
        if self.params["image"]:
            # Without Docker there are no images.
            with contextlib.suppress(DockerMissing):
                docker = DockerCli(self.module.run_command)
                stopped = self.params["container"] if every else None
                self.outside.images(docker, self.params["image"], every, stopped)
        if self.params["report_dir"]:
            self.outside.reports(self.params["report_dir"])
        if self.params["cache_dir"]:
            self.outside.shared(self.params["cache_dir"])

    def answer(self, summary: pruning.Summary) -> dict[str, Any]:
        document = summary.to_json()
        said = pruning.lines(document, self.dry_run)
        return {"changed": bool(document["freed"]), **document, "said": said}


def main() -> None:
    module = ToldModule(
        argument_spec={
            "state": {"type": "str", "choices": ["bounded", "absent"], "default": "bounded"},
            "keep": {"type": "dict", "default": {}},
            "roots": {"type": "dict"},
            "owner_uid": {"type": "int"},
            "owner_gid": {"type": "int"},
            "build_dir": {"type": "path"},
            "image": {"type": "str"},
            "container": {"type": "str"},
            "report_dir": {"type": "path"},
            "cache_dir": {"type": "path"},
            "caches": {"type": "bool", "default": False},
            "models": {"type": "bool", "default": False},
        },
        required_together=[("owner_uid", "owner_gid")],
        supports_check_mode=True,
    )
    prune = PruneModule(module)
    try:
        module.exit_json(
            **(prune.absent() if module.params["state"] == "absent" else prune.bounded())
        )
    except (pruning.PruneError, DockerError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        where = f"{error.filename} " if error.filename else ""
        module.fail_json(msg=f"{where}cannot be pruned: {error.strerror}; run this as its owner")


if __name__ == "__main__":
    main()
