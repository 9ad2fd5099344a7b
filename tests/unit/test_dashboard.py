"""The role dashboard: its dashboards as Grafana takes them, and what it writes on Grafana's
machine. Queries: tests/integration.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hosts.host import ROOT, ansible, recap

FILES = sorted((ROOT / "roles" / "dashboard" / "files" / "dashboards").glob("*.json"))
UNIT = "grafana-server.service"
SYSTEMCTL = ROOT / "tests" / "doubles" / "systemctl"

# --- the dashboards -------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def panels(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load(path)["panels"]
    return found


def host_variable(path: Path) -> dict[str, Any]:
    (variable,) = load(path)["templating"]["list"]
    assert isinstance(variable, dict)
    return variable


def test_there_are_the_dashboard_of_the_fleet_and_that_of_a_host() -> None:
    assert [path.stem for path in FILES] == ["sglang-fleet", "sglang-host"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_is_sorted_and_its_ids_stay(path: Path) -> None:
    document = load(path)
    assert path.read_text(encoding="utf-8") == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert document["uid"] == path.stem and "id" not in document
    assert [panel["id"] for panel in panels(path)] == list(range(1, len(panels(path)) + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_asks_the_host_that_is_shown(path: Path) -> None:
    source = {"type": "prometheus", "uid": f"${{{host_variable(path)['name']}}}"}
    for panel in panels(path):
        if panel["type"] != "row":
            assert panel["datasource"] == source and panel["targets"], panel["title"]
            assert [target["datasource"] for target in panel["targets"]] == [source] * len(
                panel["targets"]
            )
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_panel_lies_on_another_or_outside_the_grid(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(path):
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_the_fleet_shows_a_tile_and_a_row_for_each_host() -> None:
    """Grafana repeats a panel, and a row with what follows it, for each value of a variable that
    has several.
    """
    fleet = FILES[0]
    variable = host_variable(fleet)
    assert (
        variable["multi"] and variable["includeAll"] and variable["current"]["value"] == ["$__all"]
    )
    assert [
        (panel["type"], panel["id"])
        for panel in panels(fleet)
        if panel.get("repeat") == variable["name"]
    ] == [("stat", 1), ("row", 2)]
    assert not host_variable(FILES[1])["multi"]


def test_a_tile_leads_to_its_host() -> None:
    (link,) = panels(FILES[0])[0]["fieldConfig"]["defaults"]["links"]
    uid, variable = load(FILES[1])["uid"], host_variable(FILES[1])["name"]
    assert link["url"] == f"/d/{uid}?var-{variable}=${{host:percentencode}}"


# --- the role -------------------------------------------------------------------------------------

GPU_HOSTS: dict[str, dict[str, Any]] = {
    "gpu-02": {"sgl_bind_address": "10.1.0.2", "sgl_scrape_interval": "5s"},
    "gpu-01": {
        "sgl_bind_address": "0.0.0.0",
        "ansible_host": "10.1.0.1",
        "sgl_prometheus_port": 19090,
    },
    "gpu-03.lab": {"sgl_bind_address": "::"},
    "gpu-04": {"sgl_grafana_prometheus_url": "http://127.0.0.1:1900{{ 2 + 2 }}/$x"},
    "gpu-05": {"sgl_bind_address": "fd00::5"},
}
URLS = {
    "gpu-01": "http://10.1.0.1:19090",
    "gpu-02": "http://10.1.0.2:9090",
    "gpu-03.lab": "http://gpu-03.lab:9090",
    # What Grafana takes for $x, and not for a variable of its environment.
    "gpu-04": "http://127.0.0.1:19004/$$x",
    "gpu-05": "http://[fd00::5]:9090",
}


@dataclass
class Wall:
    """A machine with Grafana's folders: this one, in a folder of its own."""

    root: Path
    hosts: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(GPU_HOSTS))
    variables: dict[str, Any] = field(default_factory=dict)
    unit: str = UNIT

    def __post_init__(self) -> None:
        for kind in ("datasources", "dashboards"):
            (self.root / "provisioning" / kind).mkdir(parents=True)
        self.calls = self.root / "systemctl.log"

    @property
    def dashboards(self) -> Path:
        return self.root / "lib" / "dashboards" / "sglang"

    def play(self, *flags: str, check: bool = True) -> tuple[int, str]:
        """The count of changes and all that was said, in one line; the calls of systemctl are those
        of this play.
        """
        local = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        }
        places = {
            "sgl_grafana_provisioning_dir": str(self.root / "provisioning"),
            "sgl_grafana_dashboards_dir": str(self.dashboards),
        }
        inventory = self.root / "hosts.yml"
        groups = {
            "grafana": {"hosts": {"wall": local}, "vars": {**places, **self.variables}},
            "sglang": {"hosts": self.hosts},
        }
        inventory.write_text(yaml.safe_dump(groups), encoding="utf-8")
        self.calls.write_text("")
        environment = {
            "PATH": f"{SYSTEMCTL}:{os.environ['PATH']}",
            "SYSTEMCTL_DOUBLE_UNIT": self.unit,
            "SYSTEMCTL_DOUBLE_LOG": str(self.calls),
        }
        done = ansible(
            "-i",
            str(inventory),
            str(ROOT / "playbooks" / "dashboard.yml"),
            *flags,
            env=environment,
            check=check,
        )
        return recap(done.stdout)["wall"]["changed"], re.sub(r"\s+", " ", done.stdout + done.stderr)

    def refused(self, *flags: str) -> str:
        """What a play says that must end without having written anything."""
        changed, said = self.play(*flags, check=False)
        assert changed == 0 and "failed=1" in said, said
        assert self.written() == []
        return said

    def written(self) -> list[str]:
        """The files below Grafana's folders."""
        folders = (self.root / "provisioning", self.root / "lib")
        return sorted(
            str(path.relative_to(self.root))
            for folder in folders
            for path in folder.rglob("*")
            if path.is_file()
        )

    def restarts(self) -> int:
        return self.calls.read_text().splitlines().count(f"restart {UNIT}")

    def provisioned(self, kind: str) -> dict[str, Any]:
        document: dict[str, Any] = yaml.safe_load(
            (self.root / "provisioning" / kind / "sglang.yml").read_text(encoding="utf-8")
        )
        return document

    def datasources(self) -> dict[str, dict[str, Any]]:
        """By name, and no name twice."""
        found = self.provisioned("datasources")["datasources"]
        assert len({source["name"] for source in found}) == len(found)
        return {source["name"]: source for source in found}


@pytest.fixture
def wall(tmp_path: Path) -> Wall:
    return Wall(tmp_path)


@pytest.mark.slow
def test_from_nothing_to_converged(wall: Wall) -> None:
    """--check says what the run then does, and writes nothing; a second run changes nothing."""
    planned, said = wall.play("--check", "--diff")
    assert wall.written() == [] and not wall.dashboards.exists() and wall.restarts() == 0
    assert "+- name: SGLang gpu-01" in said and "+ path: " in said
    done, _ = wall.play()
    assert done == planned == 3
    assert wall.restarts() == 1
    assert wall.written() == [
        "lib/dashboards/sglang/sglang-fleet.json",
        "lib/dashboards/sglang/sglang-host.json",
        "provisioning/dashboards/sglang.yml",
        "provisioning/datasources/sglang.yml",
    ]
    for path in FILES:
        assert (wall.dashboards / path.name).read_text(encoding="utf-8") == path.read_text(
            encoding="utf-8"
        )
    modes = {oct((wall.root / name).stat().st_mode & 0o777) for name in wall.written()}
    assert modes == {"0o644"} and wall.dashboards.stat().st_mode & 0o777 == 0o755, (
        "Grafana reads them as another user"
    )
    assert wall.play("--check")[0] == 0
    assert wall.play()[0] == 0 and wall.restarts() == 0

    # Grafana rereads a dashboard by itself.
    (wall.dashboards / FILES[0].name).write_text("{}")
    assert wall.play()[0] == 1 and wall.restarts() == 0


@pytest.mark.slow
@pytest.mark.long
def test_a_datasource_for_each_host(wall: Wall) -> None:
    wall.play()
    found = wall.datasources()
    assert {name: source["url"] for name, source in found.items()} == {
        f"SGLang {host}": url for host, url in URLS.items()
    }
    assert {source["type"] for source in found.values()} == {"prometheus"}
    assert {
        name for name, source in found.items() if source["jsonData"]["timeInterval"] == "5s"
    } == {"SGLang gpu-02"}
    uids = {name: source["uid"] for name, source in found.items()}
    assert len(set(uids.values())) == len(uids) and all(
        re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", uid) for uid in uids.values()
    )
    # It is in links that people keep, so another one would be noticed.
    assert uids["SGLang gpu-01"] == "sglang-ce58ce5419d1384e"
    for path in FILES:
        shown = host_variable(path)
        assert shown["query"] == "prometheus" and all(
            re.search(shown["regex"].strip("/"), name) for name in found
        )

    # One leaves, one comes, one gets another address: the one that stays keeps the uid.
    del wall.hosts["gpu-02"]
    wall.hosts["gpu-00"] = {"sgl_bind_address": "10.1.0.9"}
    wall.hosts["gpu-01"] = {"sgl_bind_address": "10.1.0.7"}
    assert wall.play()[0] > 0 and wall.restarts() == 1
    after = wall.datasources()
    assert set(after) == {*found, "SGLang gpu-00"} - {"SGLang gpu-02"}
    assert {name: source["uid"] for name, source in after.items() if name in uids} == {
        name: uids[name] for name in after if name in uids
    }
    assert after["SGLang gpu-01"]["url"] == "http://10.1.0.7:9090"
    assert wall.provisioned("datasources")["prune"] is True


@pytest.mark.slow
@pytest.mark.long
def test_the_provider_leads_to_the_dashboards(wall: Wall) -> None:
    wall.variables["sgl_grafana_folder"] = "Lab $1"
    wall.play()
    (provider,) = wall.provisioned("dashboards")["providers"]
    assert (provider["folder"], provider["options"]["path"]) == ("Lab $$1", str(wall.dashboards))
    assert provider["type"] == "file" and 0 < provider["updateIntervalSeconds"] <= 60


@pytest.mark.slow
def test_every_host_whose_prometheus_is_on_loopback_is_refused(wall: Wall) -> None:
    wall.hosts |= {
        "gpu-06": {},
        "gpu-07": {"sgl_bind_address": "::1"},
        "gpu-08": {"sgl_bind_address": "127.0.0.11"},
        # It listens on all addresses, and the inventory knows none that leads there from elsewhere.
        "gpu-09": {"sgl_bind_address": "0.0.0.0", "ansible_host": "127.0.0.1"},
    }
    said = wall.refused()
    for host, address in {
        "gpu-06": "127.0.0.1",
        "gpu-07": "::1",
        "gpu-08": "127.0.0.11",
        "gpu-09": "127.0.0.1",
    }.items():
        assert (
            f"Grafana on wall cannot reach the Prometheus of {host}: {address} is that host's own"
            " loopback." in said
        )
        assert (
            f"Set sgl_bind_address of {host}" in said
            and f"set sgl_grafana_prometheus_url of {host}" in said
        )
    assert "the Prometheus of gpu-01" not in said


@pytest.mark.slow
@pytest.mark.long
def test_grafana_on_a_gpu_host_reads_its_loopback(wall: Wall) -> None:
    wall.hosts = {"wall": {}}
    wall.play()
    assert wall.datasources()["SGLang wall"]["url"] == "http://127.0.0.1:9090"


@pytest.mark.slow
def test_a_fleet_without_hosts_is_refused(wall: Wall) -> None:
    wall.hosts = {}
    assert "group sglang has no host" in wall.refused()


@pytest.mark.slow
def test_a_machine_without_grafanas_folders_is_refused(wall: Wall) -> None:
    (wall.root / "provisioning" / "dashboards").rmdir()
    said = wall.refused()
    assert (
        f"wall has no folder {wall.root}/provisioning/dashboards: set sgl_grafana_provisioning_dir"
        in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--check",)], ids=["run", "check"])
def test_a_machine_without_grafanas_unit_is_refused(wall: Wall, flags: tuple[str, ...]) -> None:
    wall.unit = "grafana.service"
    assert f"wall has no systemd unit {UNIT} to restart" in wall.refused(*flags)


@pytest.mark.slow
@pytest.mark.long
def test_grafana_that_is_not_to_be_restarted(wall: Wall) -> None:
    """It has no unit either, as in a container."""
    wall.unit = "grafana.service"
    wall.variables["sgl_grafana_restart"] = False
    changed, said = wall.play()
    assert (
        changed == 2
        and "Grafana on wall reads its datasources and providers at its start only" in said
    )
    assert wall.calls.read_text() == ""
    changed, said = wall.play()
    assert changed == 0 and "at its start only" not in said


@pytest.mark.slow
def test_a_variable_of_the_wrong_type_is_named(wall: Wall) -> None:
    wall.variables["sgl_grafana_restart"] = "maybe"
    assert "sgl_grafana_restart is 'maybe': set it to true or false" in wall.refused()
