"""The built archive, installed into an empty project as docs/how-to/use-in-your-project.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sgl_admin.contract import options
from tests.contract import validators

# Builds the archive, and runs Ansible.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "use-in-your-project.md").read_text(encoding="utf-8")


class Project:
    """An empty folder with the page's ansible.cfg, and this machine as its one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        [settings] = re.findall(r"^    (\[defaults\]\n(?:(?:    .*)?\n)+)", PAGE, re.MULTILINE)
        (folder / "ansible.cfg").write_text(re.sub(r"^    ", "", settings, flags=re.MULTILINE))
        # A tree that is a file: the preflight refuses it before it needs Docker.
        (folder / "tree").touch()
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "sgl_root": str(folder / "tree"),
            "sgl_container": "sglang-dev-project",
            "sgl_model": "tiny/qwen3-tiny",
            "sgl_model_source": "tiny",
            "sgl_flavour": "local",
        }
        inventory = {"sglang": {"hosts": {"this-machine": host}}}
        (folder / "inventory").write_text(yaml.safe_dump(inventory))

    def run(self, program: str, *words: str, cwd: Path | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name(program)), *words],
            cwd=cwd or self.folder,
            env={
                **{key: text for key, text in os.environ.items() if not key.startswith("ANSIBLE_")},
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_HOME": str(self.folder / ".ansible"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("project"))
    archives = tmp_path_factory.mktemp("archives")
    build = ("collection", "build", "--output-path", str(archives))
    code, output = made.run("ansible-galaxy", *build, cwd=ROOT)
    assert code == 0, output
    [archive] = archives.glob("slice_bench-sglang-*.tar.gz")
    # Without a Galaxy server, as the page says: community.docker is in the Python package ansible.
    install = ("collection", "install", str(archive), "-p", "collections", "--no-deps", "--offline")
    code, output = made.run("ansible-galaxy", *install)
    assert code == 0, output
    return made


def test_a_project_runs_the_installed_collection(project: Project) -> None:
    # The dashboard's hosts are another group.
    names = sorted({path.stem for path in (ROOT / "playbooks").glob("*.yml")} - {"dashboard"})
    playbooks = [f"slice_bench.sglang.{name}" for name in names]
    code, output = project.run("ansible-playbook", *playbooks, "--syntax-check")
    assert code == 0, output
    assert len(playbooks) > 5


def test_a_prep_of_a_project_ends_in_a_report(project: Project) -> None:
    code, output = project.run("ansible-playbook", "slice_bench.sglang.prep")
    assert code == 2, output
    tree = str(project.folder / "tree")
    assert tree in output and "callback" not in output
    [page] = (project.folder / "reports").glob("*.html")
    report = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    validators.validate_report(report)
    [host] = report["hosts"]
    assert host["host"] == "this-machine" and tree in host["problem"]
    assert tree in page.read_text(encoding="utf-8")


def test_the_manual_of_a_project_has_the_users_variables_alone(project: Project) -> None:
    code, output = project.run("ansible-doc", "-t", "role", "slice_bench.sglang.preflight")
    assert code == 0, output
    names = re.findall(r"^[=-]\s+(\w+)", output, re.MULTILINE)
    users = {option.name for option in options.OPTIONS if option not in options.GRAFANA}
    assert set(names) == users
