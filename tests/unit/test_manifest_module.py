"""What module sgl_manifest refuses, foretells and shows; Docker is a double."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _run_record as run_record
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import CONTAINER_LABEL
from ansible_collections.slice_bench.sglang.plugins.modules.sgl_manifest import ManifestModule

# The fixture writes the contract's examples as files.
from tests.unit.test_run_record import Records, records  # noqa: F401

EXPECTED = {"image": "sha256:new", "inputs": "digest-new"}


class Manifest(ManifestModule):
    """The module on a host with these containers, by name and by id."""

    def __init__(self, telemetry: Path, there: dict[str, Any], **given: Any) -> None:
        params = {"telemetry_root": str(telemetry), "container": "sglang-dev", "timeout": 0}
        params = {**params, "state": "live", "expected": None, **given}
        check_mode = params.pop("check_mode", False)
        super().__init__(SimpleNamespace(params=params, check_mode=check_mode))
        self._there = there

    def _container(self, name: str) -> dict[str, Any] | None:
        return self._there.get(name)

    def container_log(self) -> str:
        return "(empty)"


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


def test_check_mode_shows_what_a_start_would_change(
    records: Records,  # noqa: F811 - the fixture's name
) -> None:
    outdated = records.container(image_id="sha256:old", labels={CONTAINER_LABEL: "digest-old"})
    there = {"sglang-dev": outdated}
    foretold = Manifest(records.telemetry, there, expected=EXPECTED, check_mode=True).live()
    assert foretold["changed"] is True
    before, after = foretold["diff"]["before"], foretold["diff"]["after"]
    assert before == {
        "container": "running",
        "image": "sha256:old",
        "options": "digest-old",
        "run": records.run_id,
    }
    assert (after["image"], after["options"]) == ("sha256:new", "digest-new")
    assert after["run"].startswith("a new one")
    bare = Manifest(records.telemetry, {}, expected=EXPECTED, check_mode=True).live()
    assert bare["diff"]["before"] == {"container": "absent"} and bare["changed"] is True


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_live_run_that_is_kept_shows_no_difference(
    records: Records,  # noqa: F811 - the fixture's name
    check_mode: bool,
) -> None:
    live = {"sglang-dev": records.container()}
    result = Manifest(records.telemetry, live, check_mode=check_mode).live()
    assert result["live"] is True and result["changed"] is False and "diff" not in result
