"""What Docker says when it refuses a container, and what the role stack makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

VARIABLES = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "roles/stack/vars/main.yml").read_text(encoding="utf-8")
)

NO_TOOLKIT = (
    'Error starting container c1: 500 Server Error ("could not select device driver "nvidia" with'
    ' capabilities: [[gpu]]")'
)
OLD_DRIVER = (
    "OCI runtime create failed: runc create failed: unable to start container process: error during"
    " container init: error running prestart hook #0: exit status 1, stderr: nvidia-container-cli:"
    " requirement error: unsatisfied condition: cuda>=12.9, please update your driver to a newer"
    " version, or use an earlier cuda container: unknown"
)
NO_RLIMIT = (
    "error during container init: error setting rlimits for ready process: error setting rlimit"
    " type 8: operation not permitted"
)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (NO_TOOLKIT, "install the NVIDIA Container Toolkit"),
        (OLD_DRIVER, "install the driver that the message names"),
        (NO_RLIMIT, "set sgl_ulimits"),
    ],
)
def test_dockers_refusals_have_a_remedy(said: str, remedy: str) -> None:
    found = [text for words, text in VARIABLES["stack_lacks"].items() if words in said]
    assert len(found) == 1 and remedy in found[0]


def test_all_that_makes_another_container_is_in_its_digest() -> None:
    template = (Path(__file__).resolve().parents[2] / "roles/stack/tasks/create.yml").read_text(
        encoding="utf-8"
    )
    used = {
        name for name in VARIABLES["stack_definition"] if f"stack_definition.{name}" in template
    }
    # The image is created by its id, which the definition holds.
    assert used | {"image"} == set(VARIABLES["stack_definition"])
