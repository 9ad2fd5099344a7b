"""The role image with sgl_image_source: share, as Ansible runs it over several hosts; what a host
does is a double.
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

ROOT = Path(__file__).resolve().parents[2]
DOUBLES = ROOT / "tests" / "doubles" / "image_share" / "action"
LABEL = "org.slice-bench.image-inputs"
PLAY = """\
---
- name: Ensure the image is present
  hosts: sglang
  gather_facts: false
  serial: SERIAL
  tasks:
    - name: Ensure the image is present
      ansible.builtin.import_role:
        name: slice_bench.sglang.image
"""

pytestmark = pytest.mark.slow


@dataclass
class Ran:
    code: int
    output: str
    # Who built and who gave, in order.
    log: list[str]
    # Who has the image.
    has: set[str]


class Checkout:
    """A checkout with the real role, filters and module_utils."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self._folder = folder / "hosts"
        self._folder.mkdir()
        for name in (
            "roles/image",
            "roles/settings",
            "plugins/filter",
            "plugins/module_utils",
            "plugins/plugin_utils",
        ):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).symlink_to(ROOT / name)
        (self.root / "plugins" / "action").symlink_to(DOUBLES)
        collections = self.root / ".ansible" / "collections" / "ansible_collections" / "slice_bench"
        collections.mkdir(parents=True)
        (collections / "sglang").symlink_to(self.root)
        (self.root / "ansible.cfg").write_text(
            "[defaults]\ncollections_path = .ansible/collections\n"
        )

    def run(self, hosts: dict[str, dict[str, Any]], serial: str = "100%", **settings: Any) -> Ran:
        """Run it on these hosts; for each, its variable `double`, and whether it `has` the
        image. `settings` are variables of all.
        """
        found = {}
        for name, told in hosts.items():
            image = {
                "name": told.get("image", "sglang-dev:x"),
                "labels": {LABEL: f"sha256:{told.get('kind', 'a') * 64}"},
            }
            if told.get("has"):
                (self._folder / f"{name}.image").touch()
            found[name] = {
                "double": told,
                "sgl_image": image["name"],
                "preflight_host": {
                    "architecture": told.get("architecture", "aarch64"),
                    "image": image if told.get("has") else None,
                    "run": {"live": False},
                },
            }
        shared = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "sgl_image_source": "share",
        }
        variables = {**shared, "double_folder": str(self._folder), **settings}
        (self.root / "play.yml").write_text(PLAY.replace("SERIAL", serial))
        (self.root / "hosts.json").write_text(
            json.dumps({"sglang": {"hosts": found, "vars": variables}})
        )
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANSIBLE_", "SGL_"))
        }
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "play.yml",
                "-i",
                "hosts.json",
            ],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**ours, "ANSIBLE_CONFIG": str(self.root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )
        log = self._folder / "log"
        has = {path.stem for path in self._folder.glob("*.image")}
        return Ran(
            done.returncode, done.stdout, log.read_text().splitlines() if log.exists() else [], has
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


HAS: dict[str, Any] = {"has": True}
LACKS: dict[str, Any] = {}


def test_where_nobody_has_it_one_builds_it_for_all(checkout: Checkout) -> None:
    ran = checkout.run({"one": LACKS, "two": LACKS, "three": LACKS})
    assert ran.code == 0, ran.output
    assert ran.log == ["one builds", "one gives sglang-dev:x"] and ran.has == {
        "one",
        "two",
        "three",
    }


def test_a_host_that_has_it_gives_it_once_and_nobody_builds(checkout: Checkout) -> None:
    ran = checkout.run(
        {"one": LACKS, "two": {**HAS, "image": "sglang-dev:two"}, "three": HAS, "four": LACKS}
    )
    assert ran.code == 0, ran.output
    assert ran.log == ["two gives sglang-dev:two"] and ran.has == {"one", "two", "three", "four"}


@pytest.mark.parametrize("first", [HAS, LACKS])
def test_without_sharing_each_builds_its_own_image(
    checkout: Checkout, first: dict[str, Any]
) -> None:
    ran = checkout.run({"one": first, "two": LACKS, "three": LACKS}, sgl_cache_share="none")
    assert ran.code == 0, ran.output
    lacked = {"two", "three"} if first else {"one", "two", "three"}
    assert set(ran.log) == {f"{host} builds" for host in lacked}
    assert ran.has == {"one", "two", "three"}


def test_where_all_have_it_nobody_gives_it(checkout: Checkout) -> None:
    ran = checkout.run({"one": HAS, "two": HAS})
    assert ran.code == 0 and ran.log == [], ran.output


@pytest.mark.parametrize("trouble", ["give_fails", "unreachable"])
def test_where_it_cannot_be_given_the_first_that_lacks_it_builds_it(
    checkout: Checkout, trouble: str
) -> None:
    ran = checkout.run(
        {"one": {**HAS, trouble: "no room on this host"}, "two": LACKS, "three": LACKS}
    )
    assert ran.code == 0, ran.output
    assert ran.log == [
        "one gives sglang-dev:x",
        "two builds",
        "two gives sglang-dev:x",
    ] and ran.has == {"one", "two", "three"}
    assert re.search(
        "one has the image and could not publish it: .*no room on this host", ran.output
    ), ran.output
    assert "unreachable=1" not in ran.output, "who asks is not gone because another one is"


def test_where_the_builder_fails_the_next_one_builds_and_nobody_is_asked_again(
    checkout: Checkout,
) -> None:
    broken = {"build_fails": "no space for the build"}
    ran = checkout.run(
        {
            "zero": {**HAS, "give_fails": "x"},
            "one": broken,
            "two": broken,
            "three": LACKS,
            "four": LACKS,
        }
    )
    assert ran.code == 2 and "no space for the build" in ran.output
    assert ran.log == [
        "zero gives sglang-dev:x",
        "one builds",
        "two builds",
        "three builds",
        "three gives sglang-dev:x",
    ]
    assert ran.has == {"zero", "three", "four"}


def test_where_what_was_built_cannot_be_given_each_builds_its_own(checkout: Checkout) -> None:
    ran = checkout.run({"one": {"give_fails": "the registry is down"}, "two": LACKS})
    assert ran.code == 0, ran.output
    assert ran.log == [
        "one builds",
        "one gives sglang-dev:x",
        "two builds",
        "two gives sglang-dev:x",
    ] and ran.has == {"one", "two"}
    assert "one built the image and could not publish it: the registry is down" in ran.output


@pytest.mark.parametrize("has", ["one", "three"])
def test_it_is_given_across_batches_by_one_whose_turn_was_or_comes(
    checkout: Checkout, has: str
) -> None:
    ran = checkout.run(
        {name: HAS if name == has else LACKS for name in ("one", "two", "three")}, serial="1"
    )
    assert ran.code == 0, ran.output
    assert ran.log == [f"{has} gives sglang-dev:x"] and ran.has == {"one", "two", "three"}


def test_hosts_of_another_kind_have_their_own(checkout: Checkout) -> None:
    ran = checkout.run(
        {
            "one": HAS,
            "two": {"kind": "b"},
            "three": {"architecture": "x86_64"},
            "four": LACKS,
            "five": {"kind": "b"},
        }
    )
    assert ran.code == 0, ran.output
    assert sorted(ran.log) == sorted(
        [
            "one gives sglang-dev:x",
            "two builds",
            "two gives sglang-dev:x",
            "three builds",
            "three gives sglang-dev:x",
        ]
    )
    assert ran.has == {"one", "two", "three", "four", "five"}
