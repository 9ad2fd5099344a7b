"""The scenario's hosts, as they are after the converge, and an installation on the fault image
beside theirs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.fleet import FAULT_REFERENCE, NAMES, REPOSITORY, Fleet
from tests.hosts.host import (
    FAULT_IMAGE,
    ROOT,
    STACK_VARIABLES,
    TestHost,
    recap,
    start_ansible,
    write_inventory,
)

PREP = str(ROOT / "playbooks" / "prep.yml")


class Outcome:
    """What a run of prep.yml came to: exit code, output, counts by host, and its report."""

    def __init__(self, code: int, output: str, reports: Path) -> None:
        self.code = code
        self.output = output
        self.counts = recap(output)
        self.report: dict[str, Any] = json.loads(
            max(reports.glob("*.json"), key=lambda path: path.stat().st_mtime).read_text()
        )

    def host(self, name: str) -> dict[str, Any]:
        return next(host for host in self.report["hosts"] if host["host"] == name)

    def ready(self) -> list[str]:
        return [host["host"] for host in self.report["hosts"] if host["metrics_ready"] is True]

    def ran(self) -> list[str]:
        """The hosts that did the inductor stage's work in this run."""
        return [
            host["host"]
            for host in self.report["hosts"]
            if host["stages"].get("inductor", {}).get("status") == "ok"
        ]


class Installation:
    """One installation on each of the hosts: its variables, its records and its caches."""

    def __init__(
        self, fleet: Fleet, folder: Path, root: str, container: str, variables: dict[str, Any]
    ) -> None:
        self.fleet = fleet
        self.folder = folder
        self.root = root
        self.container = container
        self.variables = variables
        self.host_variables = fleet.host_vars()

    def machine(self, name: str) -> TestHost:
        return self.fleet.hosts[NAMES.index(name)]

    def start(self, *arguments: str, **variables: Any) -> Any:
        """Begin prep.yml, with further variables for all hosts."""
        inventory = write_inventory(
            self.folder / "hosts.yml", self.host_variables, {**self.variables, **variables}
        )
        return start_ansible(
            "-i",
            str(inventory),
            PREP,
            *arguments,
            env={"SGL_REPORT_DIR": str(self.folder / "reports")},
        )

    def end(self, playbook: Any) -> Outcome:
        output, error = playbook.communicate(timeout=600)
        return Outcome(playbook.returncode, output + error, self.folder / "reports")

    def prep(self, *arguments: str, **variables: Any) -> Outcome:
        return self.end(self.start(*arguments, **variables))

    def forget_caches(self, *names: str) -> None:
        """The hosts' caches are as on bare hosts."""
        for name in names or NAMES:
            self.machine(name).execute("find", f"{self.root}/profiles", "-mindepth", "2", "-delete")

    def caches(self, name: str) -> dict[str, tuple[str, str]]:
        """sha256 digest and time of each file that the inductor stage's record vouches for."""
        machine = self.machine(name)
        record = machine.execute(
            "sh",
            "-c",
            f"cat {self.root}/profiles/torchinductor/.signatures/inductor-*.json",
            check=False,
        )
        files = sorted(json.loads(record)["files"]) if record else []
        paths = [f"{self.root}/profiles/{file}" for file in files]
        if not paths:
            return {}
        digests = [line.split()[0] for line in machine.execute("sha256sum", *paths).splitlines()]
        times = machine.execute("stat", "--format=%.9Y", *paths).splitlines()
        return {file: both for file, *both in zip(files, digests, times, strict=True)}  # type: ignore[misc]

    def prep_result(self, name: str) -> dict[str, Any]:
        pointer = self.machine(name).execute("cat", f"{self.root}/telemetry/container_run_meta.env")
        manifest = dict(line.partition("=")[::2] for line in pointer.splitlines())[
            "CONTAINER_RUN_META_JSON_HOST"
        ]
        found: dict[str, Any] = json.loads(
            self.machine(name).execute("cat", f"{manifest.removesuffix('.json')}/prep_result.json")
        )
        return found

    def leftovers(self, name: str) -> list[str]:
        """Temporary files, markers and staged imports in the tree, and in Docker what sharing made
        on its way.
        """
        machine = self.machine(name)
        found = machine.execute(
            "find",
            self.root,
            "-name",
            "*.tmp",
            "-o",
            "-path",
            "*/.in_progress/*",
            "-o",
            "-path",
            "*/.incoming/*",
        ).splitlines()
        images = machine.execute(
            "docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"
        ).splitlines()
        containers = machine.execute(
            "docker", "container", "ls", "--all", "--format", "{{.Names}}"
        ).splitlines()
        found += [image for image in images if "inductor-" in image]
        return found + [
            container for container in containers if container not in ("sglang-dev", self.container)
        ]


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    return Fleet(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "fleet")


@pytest.fixture(scope="session")
def converged(fleet: Fleet) -> Installation:
    """What the scenario's converge made."""
    return Installation(
        fleet,
        Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]),
        "/home/ops/sglang-observability",
        "sglang-dev",
        {},
    )


@pytest.fixture(scope="session")
def first_report() -> dict[str, Any]:
    """The report of the converge, which found bare hosts."""
    reports = sorted(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]).glob("reports/*.json"))
    found = [json.loads(path.read_text()) for path in reports]
    return next(report for report in found if not report["check_mode"])


@pytest.fixture(scope="session")
def faults(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An installation whose server is a double that starts at once: what is tested with it is how
    hosts share, and fail.
    """
    variables = {
        **STACK_VARIABLES,
        "sgl_image": FAULT_IMAGE,
        "sgl_image_source": "pull",
        "sgl_image_pull": FAULT_REFERENCE,
        "sgl_container": "sglang-dev-faults",
        "sgl_root": "/home/ops/faults",
        "sgl_prometheus_port": 19790,
        "sgl_node_exporter_port": 19799,
        "sgl_sglang_port": 31790,
        "sgl_scrape_interval": "200ms",
        "sgl_environment": {"SGL_TEST_SERVER": "1"},
        "sgl_cache_share": "registry",
        "sgl_cache_registry": f"{REPOSITORY}-faults",
    }
    return Installation(
        fleet, tmp_path_factory.mktemp("faults"), "/home/ops/faults", "sglang-dev-faults", variables
    )
