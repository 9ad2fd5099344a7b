"""A model brought and held to its digests by prep.yml itself. No stage runs here, so no server is
needed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_admin.contract import stages
from tests.doubles.hub import Hub, serving
from tests.doubles.model_folder import contents, flip, make_tiny_model
from tests.integration.installation import Play, Site

pytestmark = pytest.mark.slow
NO_STAGES = {
    "sgl_stages": dict.fromkeys(stages.OPTIONS.values(), "skip"),
    "sgl_probe": "never",
}
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def lab() -> Iterator[Path]:
    """A folder with a model that every user can read, as a lab has them."""
    with tempfile.TemporaryDirectory(prefix="sglang-it-lab-") as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "qwen3-tiny"
        make_tiny_model(folder)
        yield folder


def prepare(site: Site, *flags: str, **variables: Any) -> Play:
    return site.play("prep", *flags, variables={**NO_STAGES, "sgl_model": "lab/tiny", **variables})


def good(play: Play) -> Play:
    assert play.code == 0, play.output
    return play


def test_a_model_from_a_folder_of_the_host(bare: Site, lab: Path) -> None:
    local = {"sgl_model_source": "local", "sgl_model_from": str(lab)}
    model = bare.root / "models" / "lab" / "tiny"
    assert "changed=0" not in good(prepare(bare, "--check", **local)).output and not model.exists()
    good(prepare(bare, **local))
    assert contents(model) == contents(lab)
    assert (model.stat().st_uid, model.stat().st_gid) == bare.owner
    assert good(prepare(bare, **local)).changed == 0
    assert good(prepare(bare, "--check", **local)).changed == 0

    flip(model / SHARD)
    found = prepare(bare, sgl_model_source="present")
    assert found.code == 2 and SHARD in found.text and "stage it again" in found.text
    repaired = good(prepare(bare, **local))
    assert repaired.changed == 1 and contents(model) == contents(lab)

    (model / SHARD).unlink()
    missing = prepare(bare, sgl_model_source="present")
    assert missing.code == 2 and SHARD in missing.text
    good(prepare(bare, **local))
    # A bad disk changes a byte and keeps the time: only a full reading finds it.
    flip(model / SHARD, keep_time=True)
    assert good(prepare(bare, sgl_model_source="present")).changed == 0
    full = prepare(bare, sgl_model_source="present", sgl_model_verify="full")
    assert full.code == 2 and SHARD in full.text
    assert good(prepare(bare, **local)).changed == 1


def test_what_cannot_be_staged_is_refused_before_anything_changes(
    bare: Site, lab: Path, tmp_path: Path
) -> None:
    # pytest's own folder is closed to other users.
    closed = tmp_path / "closed"
    shutil.copytree(lab, closed)
    for variables, words in (
        ({"sgl_model_source": "local"}, "set sgl_model_from"),
        ({"sgl_model_source": "local", "sgl_model_from": str(closed)}, "cannot be read by uid"),
        (
            {"sgl_model_source": "local", "sgl_model_from": str(lab.with_name("none"))},
            "is not an existing folder",
        ),
    ):
        play = prepare(bare, **variables)
        assert play.code == 2 and words in play.text, play.output
        assert not bare.root.exists() and bare.inspect() is None
    broken = lab.with_name("broken")
    shutil.copytree(lab, broken)
    (broken / SHARD).unlink()
    play = prepare(bare, sgl_model_source="local", sgl_model_from=str(broken))
    assert play.code == 2 and SHARD in play.text and not bare.root.exists()


def test_a_model_from_the_hub_by_the_images_own_client(bare: Site, lab: Path) -> None:
    with serving(Hub(lab, token="hf_planted0123456789")) as hub:
        given = {
            "sgl_model_source": "hub",
            "sgl_model_from": hub.repo,
            "sgl_hub_endpoint": hub.endpoint,
            "sgl_hub_token": "hf_planted0123456789",
        }
        first = good(prepare(bare, "-vvv", **given))
        assert contents(bare.root / "models" / "lab" / "tiny") == contents(lab)
        assert "hf_planted0123456789" not in first.output.replace(
            '"sgl_hub_token": "hf_planted0123456789"', ""
        )
    # The hub is not asked again, nor is it there any more.
    assert good(prepare(bare, **given)).changed == 0
