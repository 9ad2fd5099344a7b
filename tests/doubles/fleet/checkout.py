"""A checkout in which playbooks/prep.yml runs without hosts: hosts are names, and what a host would
do is done by the actions beside this.

The playbook, the roles preflight, provider_prep and cache_share, the filters, the callback and the
front are the real ones. The roles between the preflight and the prep, which make directories,
image, model and container, have nothing in them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
_REAL = (
    "sgl_admin",
    "playbooks",
    "plugins/filter",
    "plugins/callback",
    "plugins/lookup",
    "plugins/action/sgl_values.py",
    "plugins/plugin_utils",
    "plugins/module_utils",
    "roles/preflight",
    "roles/settings",
    "roles/provider_prep",
    "roles/cache_share",
)
_EMPTY = ("host_dirs", "image", "model")
_STACK = """\
- name: Be a container that was just started
  ansible.builtin.set_fact:
    stack_run: {live: false, run_id: null, metrics_ready: false}
    stack_outdated: false
    stack_live: false
    stack_would_start: false
"""


@dataclass
class Ran:
    """What a run came to, and its report, where it left one."""

    code: int
    output: str
    report: dict[str, Any] | None
    page: str | None


class FleetCheckout:
    """`root` is the checkout; what is warm on which host is kept between its runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.states = folder / "hosts"
        self._reports = folder / "reports"
        self._inventory = folder / "hosts.json"
        self.states.mkdir()
        for name in _REAL:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).symlink_to(ROOT / name)
        for double in (Path(__file__).parent / "action").glob("*.py"):
            (self.root / "plugins" / "action" / double.name).symlink_to(double)
        for name, tasks in {**dict.fromkeys(_EMPTY, "[]\n"), "stack": _STACK}.items():
            (self.root / "roles" / name / "tasks").mkdir(parents=True)
            (self.root / "roles" / name / "tasks" / "main.yml").write_text(f"---\n{tasks}")
        stack = self.root / "roles" / "stack" / "tasks"
        (stack / "bring.yml").write_text("---\n[]\n")
        (stack / "prep.yml").write_text(f"---\n{_STACK}")
        collections = self.root / ".ansible" / "collections" / "ansible_collections" / "slice_bench"
        collections.mkdir(parents=True)
        (collections / "sglang").symlink_to(self.root)
        shutil.copy(ROOT / "ansible.cfg", self.root)
        # The front finds its checkout by where its own files really lie.
        shutil.copytree(
            ROOT / "slice_bench",
            self.root / "slice_bench",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (self.root / ".venv").symlink_to(sys.prefix)

    def hosts(self, hosts: dict[str, dict[str, Any]], **variables: Any) -> Path:
        """Write the inventory: for each host, its variable `double`; returns its path."""
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "sgl_model": "x",
        }
        document = {
            "sglang": {
                "hosts": {name: {"double": told} for name, told in hosts.items()},
                "vars": {**local, "double_folder": str(self.states), **variables},
            }
        }
        self._inventory.write_text(json.dumps(document))
        return self._inventory

    @property
    def environment(self) -> dict[str, str]:
        """Of the user who runs a playbook in it."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANSIBLE_", "SGL_", "HOST_"))
        }
        return {
            **ours,
            "ANSIBLE_CONFIG": str(self.root / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "SGL_REPORT_DIR": str(self._reports),
        }

    def front(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Begin `python -m slice_bench.cli`, in a session of its own, without waiting for its
        end.
        """
        environment = {**self.environment, "PYTHONPATH": str(self.root)}
        del environment["ANSIBLE_CONFIG"]
        # A shell's background job ignores SIGINT, and the front would inherit that and send Ansible
        # no SIGTERM. Ansible, which has SIGINT alone then, can wait for a dead worker's lock.
        return subprocess.Popen(
            ["env", "--default-signal=INT", sys.executable, "-m", "slice_bench.cli", *words],
            cwd=cwd or self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str) -> Ran:
        """Run the playbook on the inventory that was written last."""
        shutil.rmtree(self._reports, ignore_errors=True)
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "playbooks/prep.yml",
                "-i",
                str(self._inventory),
                *flags,
            ],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        found = list(self._reports.glob("*.json"))
        report = json.loads(found[0].read_text(encoding="utf-8")) if found else None
        return Ran(
            done.returncode,
            done.stdout,
            report,
            found[0].with_suffix(".html").read_text(encoding="utf-8") if found else None,
        )
