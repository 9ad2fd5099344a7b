"""What module sgl_manifest refuses and shows, and what it does where Docker cannot be asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import places
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import (
    DockerMissing,
    DockerSilent,
)
from ansible_collections.slice_bench.sglang.plugins.modules.sgl_manifest import ManifestModule

from tests.doubles import docker_words
from tests.doubles.docker_words import absent
from tests.doubles.nvidia_smi import Answer

# The fixture writes the contract's examples as files.
from tests.unit.test_run_record import Records, records  # noqa: F401


@pytest.fixture
def telemetry(tmp_path: Path, docker_folder: Path) -> Path:
    """A telemetry folder with the pointer of some run, on a host with a docker client."""
    (tmp_path / "telemetry").mkdir()
    (tmp_path / "telemetry" / places.POINTER).write_text("CONTAINER_RUN_META_JSON_HOST=/x.json\n")
    return tmp_path / "telemetry"


def manifest(
    telemetry: Path, state: str, answer: Answer | None, check_mode: bool = False
) -> ManifestModule:
    """The module with a docker that answers so when it is asked for the container."""

    def run(command: list[str]) -> Answer:
        return absent(command) if answer is None or "inspect" not in command else answer

    params: dict[str, Any] = {
        "telemetry_root": str(telemetry),
        "container": "box",
        "state": state,
        "timeout": 0,
    }
    module = SimpleNamespace(params=params, check_mode=check_mode, run_command=run)
    return ManifestModule(cast(AnsibleModule, module))


@pytest.mark.parametrize("release", docker_words.SILENT)
def test_a_pointer_stays_where_docker_does_not_answer(telemetry: Path, release: str) -> None:
    words, remedy = docker_words.SILENT[release]
    for state in ("absent", "live"):
        with pytest.raises(DockerSilent) as refusal:
            getattr(manifest(telemetry, state, (1, "[]\n", words)), state)()
        assert remedy in str(refusal.value)
    assert (telemetry / places.POINTER).exists()


@pytest.mark.parametrize("release", docker_words.SILENT)
def test_a_dry_run_says_that_nothing_is_known(telemetry: Path, release: str) -> None:
    words, _remedy = docker_words.SILENT[release]
    for state in ("absent", "live"):
        result = getattr(manifest(telemetry, state, (1, "", words), check_mode=True), state)()
        assert result["changed"] is result["live"] is False
    assert (telemetry / places.POINTER).exists()


def test_without_a_pointer_docker_need_not_answer(telemetry: Path) -> None:
    (telemetry / places.POINTER).unlink()
    words, _remedy = docker_words.SILENT["29, no socket"]
    assert manifest(telemetry, "absent", (1, "", words)).absent()["changed"] is False


@pytest.mark.parametrize("release", docker_words.CONTAINER)
def test_the_pointer_of_a_container_that_is_gone_is_removed(telemetry: Path, release: str) -> None:
    gone = manifest(telemetry, "absent", (1, "[]\n", docker_words.CONTAINER[release]))
    assert gone.absent()["changed"] is True
    assert not (telemetry / places.POINTER).exists()


def test_the_pointer_of_a_host_without_docker_is_removed(
    telemetry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(DockerMissing):
        manifest(telemetry, "live", None).live()
    assert manifest(telemetry, "absent", None).absent()["changed"] is True
    assert not (telemetry / places.POINTER).exists()


class Manifest(ManifestModule):
    """The module on a host with these containers, by name and by id."""

    def __init__(self, telemetry: Path, there: dict[str, Any], **given: Any) -> None:
        params = {"telemetry_root": str(telemetry), "container": "sglang-dev", "timeout": 0}
        params = {**params, "state": "live", **given}
        check_mode = params.pop("check_mode", False)
        super().__init__(SimpleNamespace(params=params, check_mode=check_mode))
        self._there = there

    def docker(self) -> Any:
        mounting = [each for each in self._there.values() if each.get("mounts")]
        return SimpleNamespace(container=self._there.get, mounting=lambda source, target: mounting)


def elsewhere(records: Records) -> dict[str, Any]:  # noqa: F811 - the fixture's name
    return {records.manifest["container_id"]: records.container(name="sglang-gpu7")}


@pytest.mark.parametrize("check_mode", [True, False])
def test_the_pointer_of_a_run_in_another_container_stays(
    records: Records,  # noqa: F811 - the fixture's name
    check_mode: bool,
) -> None:
    module = Manifest(records.telemetry, elsewhere(records), state="absent", check_mode=check_mode)
    with pytest.raises(run_record.RecordError, match="is live in container sglang-gpu7"):
        module.absent()
    assert records.pointer.exists()


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("text", [None, "", "CONTAINER_RUN_META_JSON_HOST=/x\n"])
def test_a_pointer_that_is_removed_is_shown(
    records: Records,  # noqa: F811 - the fixture's name
    text: str | None,
    check_mode: bool,
) -> None:
    if text is not None:
        records.pointer.write_text(text)
    named = records.run_id if text is None else "no run that can be read"
    module = Manifest(records.telemetry, {}, state="absent", check_mode=check_mode)
    result = module.absent()
    assert result["changed"] is True and records.pointer.exists() is check_mode
    assert result["diff"] == {"before": f"{records.pointer} names {named}\n", "after": ""}
    if not check_mode:
        again = module.absent()
        assert (again["changed"], again["diff"]) == (False, {"before": "", "after": ""})


@pytest.mark.parametrize("text", ["", "x", "CONTAINER_RUN_META_JSON_HOST=/x\n"])
@pytest.mark.parametrize("status", ["running", "paused", "exited"])
def test_a_pointer_of_a_tree_that_another_container_has_stays_while_that_one_is_up(
    records: Records,  # noqa: F811 - the fixture's name
    status: str,
    text: str,
) -> None:
    records.pointer.write_text(text)
    mounts = {"/telemetry": str(records.telemetry)}
    other = records.container(name="sglang-gpu7", id="d" * 64, status=status, mounts=mounts)
    module = Manifest(records.telemetry, {"d" * 64: other}, state="absent")
    if status == "exited":
        assert module.absent()["changed"] is True
        return
    with pytest.raises(run_record.RecordError, match=rf"sglang-gpu7 \({status}\)"):
        module.absent()
    assert records.pointer.exists()
