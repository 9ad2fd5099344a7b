"""Where the scenario's stack is, and what it said, for a test that fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from testinfra.host import Host

from tests.contract import validators

LOG_LINES = 60


class Stack(NamedTuple):
    """The scenario's variables, and the run that its pointer names."""

    variables: dict[str, Any]
    root: Path
    container: str
    pointer: Path
    manifest: dict[str, Any]
    prep_result: dict[str, Any]

    @property
    def ports(self) -> dict[str, int]:
        return {
            name: self.variables[f"sgl_{name}_port"]
            for name in ("prometheus", "node_exporter", "sglang")
        }


def _variables() -> dict[str, Any]:
    configuration = yaml.safe_load(Path(os.environ["MOLECULE_FILE"]).read_text(encoding="utf-8"))
    found: dict[str, Any] = configuration["provisioner"]["inventory"]["group_vars"]["sglang"]
    return found


def _root() -> Path:
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "sglang-observability"


@pytest.fixture(scope="session")
def stack() -> Stack:
    variables, root = _variables(), _root()
    pointer = root / "telemetry" / "container_run_meta.env"
    named = validators.parse_and_validate_pointer(pointer.read_text(encoding="utf-8"))
    manifest = json.loads(Path(named["CONTAINER_RUN_META_JSON_HOST"]).read_text(encoding="utf-8"))
    prep_result = json.loads(
        Path(manifest["paths"]["host"]["prep_result"]).read_text(encoding="utf-8")
    )
    return Stack(variables, root, variables["sgl_container"], pointer, manifest, prep_result)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failure shows what the container printed and the end of the run's log."""
    report: Any = yield
    if report.failed:
        host = Host.get_host("local://")
        printed = host.run(
            "docker logs --tail %s %s", str(LOG_LINES), _variables()["sgl_container"]
        )
        report.sections.append(("docker logs", printed.stdout + printed.stderr))
        for log in sorted((_root() / "telemetry" / "logs").glob("*.log")):
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"the end of {log}", "\n".join(tail)))
    return report
