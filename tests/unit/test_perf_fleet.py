"""A host that is slow beside its fleet fails, as Ansible runs the tasks over made-up hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_perf import TOLERANCE, fleet

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PLAY = f"""\
---
- name: Prepare hosts to benchmark
  hosts: all
  gather_facts: false
  serial: [1, 100%]
  tasks:
    - name: Take what the host measured
      ansible.builtin.set_fact:
        provider_prep_done: "{{{{ made_up }}}}"
      when: made_up is defined

    - name: Compare the host with its fleet
      ansible.builtin.include_tasks: {ROOT}/playbooks/tasks/perf_fleet.yml
"""


def run(folder: Path, hosts: dict[str, Any]) -> dict[str, str]:
    """The hosts that fail, each with its reason."""
    (folder / "play.yml").write_text(PLAY)
    found = {name: {"made_up": each} if each is not None else {} for name, each in hosts.items()}
    shared = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": found, "vars": shared}}))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", str(folder / "hosts.json"), str(folder / "play.yml")),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [
        line.partition("fatal: [")[2] for line in done.stdout.splitlines() if "fatal: [" in line
    ]
    assert done.returncode == (2 if failed else 0), done.stdout + done.stderr
    return {line.partition("]")[0]: json.loads(line.partition("=> ")[2])["msg"] for line in failed}


def results(hosts: int, **factors: float) -> dict[str, Any]:
    tolerance = {"warn": TOLERANCE.warn, "fail": TOLERANCE.fail}
    return {
        host: {"result": {"perf_probe": {**probe, "tolerance": tolerance}}}
        for host, probe in fleet(1, hosts, **factors).items()
    }


def test_a_host_that_is_slow_beside_its_fleet_fails(tmp_path: Path) -> None:
    hosts = results(6, h3_gemm_bf16=0.85, h4_hbm_copy=0.93)
    # One that failed before, or was not measured, has no result.
    found = run(tmp_path, {**hosts, "g": None, "h": {"result": None}})
    # A warning fails no host.
    assert set(found) == {"h3"}
    assert "15% below the median of 6 hosts" in found["h3"], found


def test_hosts_that_are_as_fast_as_each_other_pass(tmp_path: Path) -> None:
    assert run(tmp_path, results(5)) == {}


def test_too_few_hosts_are_no_fleet(tmp_path: Path) -> None:
    assert run(tmp_path, results(3, h1_gemm_bf16=0.5)) == {}
