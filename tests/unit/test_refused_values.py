"""Real runs of the playbooks on this machine: what is wrong ends in one sentence, before Docker is
asked anything and before anything changes; what would do nothing is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slice_bench.sglang.plugins.lookup import group as group_lookup

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))
LONGEST = 400
LOCAL = {
    "ansible_connection": "local",
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
}


@dataclass
class Lab:
    """A prepared tree, its pointer, and a docker that says when it is called."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "tree"

    def play(self, name: str, *flags: str, **variables: Any) -> tuple[int, str]:
        given = {"sgl_root": str(self.root), "sgl_container": "sglang-values-test", **variables}
        done = subprocess.run(
            [ANSIBLE, str(ROOT / "playbooks" / f"{name}.yml"), "-e", json.dumps(given), *flags],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "SGL_REPORT_DIR": "",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def inventory(self, hosts: list[str], group: str = "sglang") -> str:
        path = self.folder / "hosts.yml"
        path.write_text(yaml.safe_dump({group: {"hosts": {name: dict(LOCAL) for name in hosts}}}))
        return str(path)

    def state(self) -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in self.folder.rglob("*")
        }


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "tree" / "telemetry").mkdir(parents=True)
    (tmp_path / "tree" / "telemetry" / "container_run_meta.env").write_text("CONTAINER_RUN=x\n")
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/docker-was-called\nexit 1\n')
    docker.chmod(0o755)
    return Lab(tmp_path)


def message(output: str) -> str:
    """The failed task's message, in one line."""
    found = re.findall(r"^\[ERROR\]: (?:Task failed: Action failed: )?(.*)$", output, re.MULTILINE)
    assert len(found) == 1, output
    return str(found[0])


ROWS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("prep", {"sgl_modle": "x"}, ("sgl_modle", "sgl_model?")),
    ("prep", {"sgl_stages.moe": "skip"}, ("sgl_stages.moe", "mapping")),
    ("prep", {"sgl_shm_size": "lots"}, ("sgl_shm_size", "lots")),
    ("prep", {"sgl_tp": {"a": 1}}, ("sgl_tp", "whole number")),
    ("prep", {"sgl_prometheus_port": 9100}, ("sgl_node_exporter_port", "both 9100")),
    ("prep", {"sgl_batch": "lots"}, ("sgl_batch", "lots")),
    ("prep", {"sgl_server_args": ["--api-k=hunter2"]}, ("sgl_server_args", "--api-k")),
    ("prep", {"sgl_profiles": ["nowhere"]}, ("there is no profile", "nowhere")),
    ("prep", {"sgl_hub_token": "{{ nowhere }}"}, ("sgl_hub_token cannot be read", "nowhere")),
    ("prep", {"sgl_cache_share": "registry"}, ("sgl_cache_registry names none",)),
    ("prep", {"sgl_cache_sign_key": "~/no/such.key"}, ("sgl_cache_sign_key", "minisign -G")),
    ("start", {"sgl_prometheus_port": 99999}, ("sgl_prometheus_port", "65535")),
    ("start", {"sgl_root": "/srv/a:b"}, ("sgl_root", "colon")),
    ("stop", {"sgl_container": "bad name"}, ("sgl_container", "bad name")),
    ("validate", {"sgl_capabilities": ["SYS_FOO"]}, ("sgl_capabilities", "SYS_FOO")),
    ("smoke", {"sgl_smoke_scenario": "/no/such.yml"}, ("sgl_smoke_scenario", "no such file")),
    ("look", {"sgl_tp": "many"}, ("sgl_tp", "whole number")),
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_wrong_value_ends_in_one_sentence_before_anything_changes(lab: Lab, number: int) -> None:
    playbook, variables, words = ROWS[number]
    before = lab.state()
    # By turns a run and a look.
    code, output = lab.play(playbook, *(["--check"] * (number % 2)), **variables)
    said = message(output)
    assert code == 2 and all(word in said for word in words), output
    assert len(said) < LONGEST and "hunter2" not in output
    # The sentence, twice as Ansible shows each failure, and no page around it.
    assert len(output.splitlines()) < 30
    assert lab.state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing", [{"sgl_profiles": ["nowhere"]}, {"sgl_server_api_key_file": "/nowhere"}]
)
def test_a_file_that_is_missing_keeps_no_host_from_being_stopped(
    lab: Lab, missing: dict[str, Any]
) -> None:
    code, output = lab.play("stop", **missing)
    assert "nowhere" not in message(output), output
    # This docker, which was reached, does nothing.
    assert code == 2 and (lab.folder / "docker-was-called").exists()


@pytest.mark.slow
def test_the_dashboard_checks_its_own_host_and_the_fleet(lab: Lab) -> None:
    inventory = lab.inventory(["wall"], "grafana")
    fleet = lab.folder / "fleet.yml"
    hosts = {"gpu-01": {"sgl_prometheus_port": "http"}}
    fleet.write_text(yaml.safe_dump({"sglang": {"hosts": hosts}}))
    code, output = lab.play("dashboard", "-i", inventory, "-i", str(fleet), sgl_grafana_restart="x")
    said = message(output)
    assert code == 2 and "sgl_grafana_restart is 'x'" in said
    assert "host gpu-01: sgl_prometheus_port is 'http'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("playbook", "flags", "words"),
    [
        ("prep", ("--tags", "image"), ("--tags image", "selects nothing")),
        ("start", ("--skip-tags", "all"), ("--skip-tags all", "selects nothing")),
        ("stop", ("--start-at-task", "Stop the stack"), ("--start-at-task",)),
        ("dashboard", (), ("no host in the group grafana",)),
        ("prep", ("-i", "inventories/gh20"), ("inventories/gh20",)),
        ("smoke", ("-i", "lonely,", "--limit", "lonely"), ("no host in the group sglang",)),
    ],
)
def test_a_run_that_would_do_nothing_is_an_error(
    lab: Lab, playbook: str, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    before = lab.state()
    code, output = lab.play(playbook, *flags)
    said = message(output)
    assert code != 0 and all(word in said for word in words) and len(said) < LONGEST, output
    assert lab.state() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "playbook", sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
)
def test_no_playbook_passes_over_an_inventory_without_its_group(lab: Lab, playbook: str) -> None:
    before = lab.state()
    code, output = lab.play(playbook, "-i", "lonely,")
    said = message(output)
    group = "grafana" if playbook == "dashboard" else "sglang"
    assert code != 0 and f"no host in the group {group}" in said and len(said) < LONGEST, output
    assert lab.state() == before


@pytest.mark.slow
def test_a_limit_that_leaves_no_host_of_the_group(lab: Lab) -> None:
    inventory = lab.folder / "both.yml"
    groups = {
        "sglang": {"hosts": {"gpu-01": dict(LOCAL)}},
        "grafana": {"hosts": {"wall": dict(LOCAL)}},
    }
    inventory.write_text(yaml.safe_dump(groups))
    code, output = lab.play("prep", "-i", str(inventory), "--limit", "wall")
    assert code != 0 and "--limit wall leaves no host of the group sglang" in message(output)


@pytest.mark.slow
def test_listings_and_an_importing_playbook_run_nothing_and_fail_on_nothing(lab: Lab) -> None:
    for flag in ("--syntax-check", "--list-hosts", "--list-tasks", "--list-tags"):
        code, output = lab.play("prep", "-i", "lonely,", flag)
        assert code == 0, output
    site = lab.folder / "site.yml"
    site.write_text("- import_playbook: slice_bench.sglang.prep\n")
    done = subprocess.run(
        [ANSIBLE, "-i", "lonely,", str(site), "--tags", "web"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


ODD_NAMES = ["fe80::1%eth0", "a b", "a,b", "x:y", "!not", "~regular", "&both"]


@pytest.mark.slow
def test_no_host_is_dropped_for_its_name(lab: Lab) -> None:
    """A name that reads as a pattern, too, comes through both plays."""
    # As the client of Docker 20.10 on a host where nothing is yet.
    (lab.folder / "bin" / "docker").write_text(
        "#!/bin/sh\n"
        'if [ "$2" = inspect ]; then echo "Error: No such $1: $3" >&2; exit 1; fi\n'
        "echo 20.10.24\n"
    )
    inventory = lab.folder / "odd.yml"
    hosts = {name: dict(LOCAL) for name in ODD_NAMES}
    inventory.write_text(yaml.safe_dump({"sglang": {"hosts": hosts}}))
    code, output = lab.play(
        "prep",
        "--check",
        "-i",
        str(inventory),
        sgl_allow_root=True,
        sgl_model="tiny/x",
        sgl_model_source="tiny",
        sgl_bind_address="127.0.0.1",
        sgl_root="{{ '%s' ~ (inventory_hostname | hash('md5')) }}" % (lab.folder / "t"),
        **{f"sgl_{name}_port": port for name, port in FREE_PORTS.items()},
    )
    summed_up = set(re.findall(r"^ +host: '?(.*?)'?$", output, re.MULTILINE))
    assert summed_up == set(ODD_NAMES), output[-3000:]
    assert code == 0


FREE_PORTS = {"prometheus": 28190, "node_exporter": 28191, "sglang": 28192}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ()),
        ({"tags": ["all"]}, ()),
        ({"tags": ["untagged"]}, ()),
        ({"skip_tags": ["image"]}, ()),
        ({"inventory": ["a,b"]}, ()),
        ({"tags": ["moe", "image"]}, ("--tags moe,image",)),
        ({"tags": ["tagged"]}, ("--tags tagged",)),
        ({"tags": ["always"]}, ("--tags always",)),
        ({"tags": ["never"]}, ("--tags never",)),
        ({"skip_tags": ["untagged"]}, ("--skip-tags untagged",)),
        ({"inventory": ["/no/such"]}, ("/no/such", "-i")),
        ({"start_at_task": "x"}, ("--start-at-task",)),
    ],
)
def test_what_would_do_nothing(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    variables = {"groups": {"sglang": ["a"]}, "ansible_play_hosts_all": ["a", "b"]}
    problem = group_lookup.nothing_to_do("sglang", arguments, variables)
    assert (problem is None) == (not words)
    assert all(word in (problem or "") for word in words) and len(problem or "") < LONGEST


def test_no_task_of_the_collection_has_a_tag() -> None:
    """The lookup `group` counts on it."""
    places = [*ROOT.glob("roles/*/*/*.yml"), *ROOT.glob("playbooks/**/*.yml")]
    tagged = [
        path.name
        for path in places
        if re.search(r"^\s*(- )?tags:", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(places) > 30 and tagged == []
