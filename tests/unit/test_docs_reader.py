"""The reader in docs/reference/files.md knows a live run from a stale pointer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract import validators

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")


@pytest.fixture
def reader() -> dict[str, Any]:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(program, "files.md", "exec"), names)  # noqa: S102 - what is tested
    return names


@pytest.fixture
def telemetry(tmp_path: Path) -> Path:
    """A telemetry root with the contract's example of a run, ready."""
    manifest = validators.example("manifest")
    path = tmp_path / f"{manifest['container_run_id']}.json"
    result = tmp_path / "prep_result.json"
    manifest["paths"]["host"]["prep_result"] = str(result)
    path.write_text(json.dumps(manifest))
    result.write_text(json.dumps(validators.example("prep_result")))
    (tmp_path / "container_run_meta.env").write_text(f"CONTAINER_RUN_META_JSON_HOST={path}\n")
    return tmp_path


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """A docker that describes the manifest's container, with what is changed."""
    manifest = validators.example("manifest")
    state = {"Running": True, "StartedAt": "2026-11-23T09:14:58.1234567Z"}
    container = {"Id": manifest["container_id"], "State": {**state, **changed.pop("State", {})}}
    text = json.dumps([{**container, **changed}])
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_a_live_run_is_ready(
    reader: dict[str, Any], telemetry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker(telemetry, monkeypatch)
    assert reader["live_manifest"](telemetry)["container_name"] == "sglang-dev"
    assert reader["metrics_ready"](telemetry) is True


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"State": {"Running": False}}, id="stopped"),
        pytest.param({"Id": "0" * 64}, id="another container"),
        pytest.param({"State": {"StartedAt": "2026-11-23T09:15:02Z"}}, id="restarted"),
    ],
)
def test_a_stale_pointer_is_not_ready(
    reader: dict[str, Any],
    telemetry: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
) -> None:
    docker(telemetry, monkeypatch, **changed)
    assert reader["live_manifest"](telemetry) is None
    assert reader["metrics_ready"](telemetry) is False


def test_without_a_container_or_a_pointer_nothing_is_ready(
    reader: dict[str, Any], telemetry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker(telemetry, monkeypatch)
    (telemetry / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert reader["metrics_ready"](telemetry) is False
    (telemetry / "container_run_meta.env").unlink()
    assert reader["metrics_ready"](telemetry) is False
