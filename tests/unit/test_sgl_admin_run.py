"""Which run is the live one, and every way in which there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sgl_admin.base import files, paths
from sgl_admin.records import run

OTHER = "container-run-20261123T091600Z-00000000"


def test_the_live_run_is_read(live_run: str) -> None:
    found = run.live()
    assert found.run_id == live_run and found.manifest["container_run_id"] == live_run
    assert (
        run.pointer_text(live_run).splitlines()[1]
        == f"CONTAINER_RUN_META_JSON_HOST=/host/telemetry/container_runs/{live_run}.json"
    )


def refusal() -> str:
    with pytest.raises(run.NoLiveRun) as caught:
        run.live()
    message = str(caught.value)
    assert "\n" not in message and "start the container again (playbooks/start.yml)" in message
    return message


def test_before_the_init_has_begun(live_run: str) -> None:
    paths.LIVE_RUN.unlink()
    assert "has not begun a run" in refusal()


def test_without_a_pointer(live_run: str) -> None:
    paths.POINTER.unlink()
    assert "no pointer" in refusal() and live_run in refusal()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"CONTAINER_RUN_META_JSON=\n",
        b"SOMETHING=else\n",
        b"\xff\xfe",
        b"CONTAINER_RUN_META_JSON",
    ],
)
def test_a_pointer_that_names_nothing(live_run: str, content: bytes) -> None:
    paths.POINTER.write_bytes(content)
    assert "no pointer" in refusal()


def test_a_pointer_of_another_run(live_run: str) -> None:
    files.write_json(paths.manifest(OTHER), {"paths": {}})
    files.write_text(paths.POINTER, run.pointer_text(OTHER))
    assert OTHER in refusal() and live_run in refusal()


def test_a_missing_manifest(live_run: str) -> None:
    paths.manifest(live_run).unlink()
    assert f"{live_run}.json is missing" in refusal()


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_manifest_that_is_no_object(live_run: str, content: str) -> None:
    paths.manifest(live_run).write_text(content)
    assert f"{live_run}.json" in refusal()


@pytest.mark.parametrize("content", ["{}", '{"paths": null}', '{"paths": []}'])
def test_a_manifest_without_paths(live_run: str, content: str) -> None:
    paths.manifest(live_run).write_text(content)
    assert "has no paths" in refusal()


def test_the_prep_results_paths_are_added_once(live_run: str) -> None:
    found = run.live()
    found.add_prep_result_paths()
    written = files.read_json(paths.manifest(live_run))
    assert written is not None
    assert written["paths"]["container"]["prep_result"] == str(paths.prep_result(live_run))
    assert (
        written["paths"]["host"]["prep_result"]
        == f"/host/telemetry/container_runs/{live_run}/prep_result.json"
    )
    assert {key: value for key, value in written.items() if key != "paths"} == {
        key: value for key, value in found.manifest.items() if key != "paths"
    }
    inode = paths.manifest(live_run).stat().st_ino
    run.live().add_prep_result_paths()
    assert paths.manifest(live_run).stat().st_ino == inode, "it was written again"


def test_a_pointer_that_may_not_be_read_is_an_error_of_its_own(
    live_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(paths.POINTER))

    monkeypatch.setattr(files, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        run.live()


def test_paths_outside_the_mounts_have_no_name_on_the_host(container: Path) -> None:
    assert paths.to_host("/etc/passwd") is None
    assert paths.to_host(paths.MODELS / "a" / "b") == "/host/models/a/b"
    assert paths.to_host(paths.TELEMETRY) == "/host/telemetry"


def test_a_root_that_the_environment_does_not_name_has_no_name_on_the_host(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGL_HOST_MODELS_ROOT")
    assert paths.to_host(paths.MODELS / "a") is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("services",), []),
        (("services", "sglang", "port"), 99999),
        (("services", "sglang", "port"), True),
        (("services", "prometheus", "url"), None),
        (("paths", "host"), []),
        (("container_run_id",), OTHER),
    ],
)
def test_a_manifest_without_what_a_prep_needs_is_named_with_it(
    live_run: str, place: tuple[str, ...], value: object
) -> None:
    manifest = files.read_json(paths.manifest(live_run)) or {}
    node = manifest
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    files.write_json(paths.manifest(live_run), manifest)
    assert f"has no valid {place[0]}" in refusal()


def test_a_pointer_that_is_a_pipe_is_none(live_run: str) -> None:
    paths.POINTER.unlink()
    os.mkfifo(paths.POINTER)
    assert "no pointer" in refusal()
