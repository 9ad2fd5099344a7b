"""A download by the hub's own client from a double of the hub: resumed, verified, and failed in
words with the remedy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import ModelError
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_stage import Request, Stage
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_staging import Staging

from tests.doubles.hub import COMMIT, Hub, serving
from tests.doubles.model_folder import contents, flip, make_model, shard_name
from tests.doubles.model_hub_client import ProcessClient
from tests.integration.installation import docker, module

SHARD = 3 << 20
FIRST, SECOND = shard_name(0, 2), shard_name(1, 2)
TOKEN = "hf_0123456789abcdefgh"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    make_model(tmp_path / "published", 2, SHARD)
    with serving(Hub(tmp_path / "published")) as made:
        yield made


@pytest.fixture
def client() -> Iterator[ProcessClient]:
    made = ProcessClient()
    yield made
    made.end()


class Bench:
    """One host to bring the model to."""

    def __init__(self, root: Path, hub: Hub, client: ProcessClient) -> None:
        self.root, self.hub, self.client = root, hub, client
        self.model = root / "org" / "m"
        root.mkdir(mode=0o755)
        self.staging = Staging(str(self.model), str(root), os.geteuid(), os.getegid())

    def stage(
        self, budget_s: float | None = None, run: str = "1", **options: Any
    ) -> dict[str, Any]:
        given: dict[str, Any] = {
            "path": str(self.model),
            "models_root": str(self.root),
            "source": "hub",
            "origin": "org/m",
            "run": run,
        }
        given.update(endpoint=self.hub.endpoint, uid=os.geteuid(), gid=os.getegid())
        return Stage(Request(**{**given, **options}), self.client).slice(budget_s)

    def await_bytes(self, wanted: int, **options: Any) -> dict[str, Any]:
        """The first slice that has so many bytes on the disk."""
        deadline = time.monotonic() + 60
        while (answer := self.stage(budget_s=0.0, **options))["bytes_done"] < wanted:
            assert time.monotonic() < deadline
        return answer

    def refused(self, **options: Any) -> str:
        with pytest.raises(ModelError) as caught:
            self.stage(**options)
        text = str(caught.value)
        assert text.isprintable() and ": " in text and TOKEN not in text
        return text


@pytest.fixture
def bench(tmp_path: Path, hub: Hub, client: ProcessClient) -> Bench:
    return Bench(tmp_path / "models", hub, client)


def test_a_model_comes_from_the_hub_and_stays(
    bench: Bench, hub: Hub, client: ProcessClient
) -> None:
    answer = bench.stage()
    assert (
        answer["changed"] and answer["verified"] and contents(bench.model) == contents(hub.folder)
    )
    source = json.loads((bench.model / ".sgl-model.json").read_bytes())["source"]
    assert source == {
        "kind": "hub",
        "from": "org/m",
        "endpoint": hub.endpoint,
        "revision": "main",
        "commit": COMMIT,
    }
    assert os.listdir(bench.root / ".staging") == [os.path.basename(bench.staging.lock)]
    for revision in ("main", COMMIT):
        again = bench.stage(revision=revision)
        assert again["changed"] is False and again["verified"]
    assert len(client.started) == 1, "nobody asks the hub for what is there"


def test_it_is_followed_in_slices_and_another_run_attaches(
    bench: Bench, hub: Hub, client: ProcessClient
) -> None:
    hub.holds[SECOND] = 1 << 20
    answer = bench.stage(budget_s=0.0)
    assert answer["phase"] == "downloading" and not answer["done"]
    assert hub.held.wait(60)
    answer = bench.await_bytes(SHARD, run="2")
    assert (
        answer["bytes_total"]
        == sum(len(data) for data in contents(hub.folder).values())
        > answer["bytes_done"]
    )
    assert "is on its way" in bench.refused(revision=COMMIT, run="3")
    hub.release.set()
    assert bench.stage(run="2")["verified"] and len(client.started) == 1


def publish_large(hub: Hub) -> str:
    """One shard of more than the 10 MB that the client writes at a time; returns its name."""
    for file in hub.folder.iterdir():
        file.unlink()
    make_model(hub.folder, 1, 24 << 20)
    return shard_name(0, 1)


def test_a_client_that_was_killed_is_told_and_the_next_run_goes_on(
    bench: Bench, hub: Hub, client: ProcessClient
) -> None:
    name = publish_large(hub)
    hub.holds[name] = 23 << 20
    bench.stage(budget_s=0.0)
    assert hub.held.wait(60)
    bench.await_bytes(20 << 20, run="1")
    client.end()
    assert "ended before its end" in bench.refused(run="1")
    hub.holds.clear()
    before = hub.bytes_sent[name]
    assert bench.stage(run="2")["verified"] and contents(bench.model) == contents(hub.folder)
    assert hub.bytes_sent[name] - before < 8 << 20


def test_a_connection_that_breaks_goes_on_in_the_middle(bench: Bench, hub: Hub) -> None:
    name = publish_large(hub)
    hub.cuts[name] = 21 << 20
    assert bench.stage()["verified"] and contents(bench.model) == contents(hub.folder)
    assert not hub.cuts and hub.bytes_sent[name] < 30 << 20


def test_a_file_that_arrives_wrong_is_named_and_got_again(bench: Bench, hub: Hub) -> None:
    hub.spoiled.add(FIRST)
    text = bench.refused()
    assert FIRST in text and SECOND not in text and "sha256" in text and not bench.model.exists()
    hub.spoiled.clear()
    sent = hub.bytes_sent[SECOND]
    assert bench.stage(run="2")["verified"] and hub.bytes_sent[SECOND] == sent


def test_only_a_damaged_file_is_downloaded_again(bench: Bench, hub: Hub) -> None:
    bench.stage()
    flip(bench.model / FIRST)
    sent = dict(hub.bytes_sent)
    answer = bench.stage(run="2")
    assert (
        answer["changed"] and answer["verified"] and contents(bench.model) == contents(hub.folder)
    )
    assert hub.bytes_sent[SECOND] == sent[SECOND] and hub.bytes_sent[FIRST] > sent[FIRST]


def test_a_mirror_whose_list_has_no_digests(bench: Bench, hub: Hub) -> None:
    hub.bare_list = True
    assert bench.stage()["verified"] and contents(bench.model) == contents(hub.folder)


def test_weights_of_other_formats_are_not_wanted(bench: Bench, hub: Hub) -> None:
    (hub.folder / "pytorch_model.bin").write_bytes(b"x")
    assert bench.stage()["verified"] and not (bench.model / "pytorch_model.bin").exists()


def test_the_token_reaches_the_hub_and_nothing_else(
    bench: Bench, hub: Hub, client: ProcessClient
) -> None:
    hub.token = TOKEN
    assert bench.stage(token=TOKEN)["verified"] and TOKEN in hub.tokens_seen
    assert TOKEN not in " ".join(client.arguments)
    for file in bench.root.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        ({"token": TOKEN}, {}, "it is private, which needs a token, or it does not exist"),
        ({"token": "other"}, {"token": TOKEN}, "the token is not valid for it"),
        ({"gated": True}, {"token": TOKEN}, "accept the model's terms"),
        (
            {},
            {"origin": "org/nothing", "token": TOKEN},
            "has no org/nothing at main (404): check the name",
        ),
        ({}, {"revision": "nowhere"}, "has no org/m at nowhere (404)"),
        (
            {},
            {"endpoint": "http://127.0.0.1:9"},
            "http://127.0.0.1:9 cannot be reached from this host",
        ),
    ],
)
def test_a_refusal_is_a_sentence_with_the_remedy(
    bench: Bench, hub: Hub, spoil: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    for name, value in spoil.items():
        setattr(hub, name, value)
    assert said in bench.refused(**options)
    assert not bench.model.exists()


def test_a_state_that_nobody_wrote_for_good_begins_anew(bench: Bench) -> None:
    place = Path(bench.staging.folder)
    place.mkdir(parents=True)
    for text in (
        "[]",
        "{",
        json.dumps(
            {
                "repo": "org/m",
                "revision": "main",
                "status": "done",
                "files": {"../x": {}, "config.json": 7},
            }
        ),
    ):
        (place / ".sgl-hub.json").write_text(text)
        try:
            bench.stage(budget_s=0.0)
        except ModelError as error:
            assert str(error).isprintable()
        assert not bench.model.exists()


# --- in the image ---------------------------------------------------------------------------------


def test_the_images_own_client_brings_the_model(image: str, tmp_path: Path, hub: Hub) -> None:
    """The real container: as the owner, with the token, gone when it is done."""
    hub.token = TOKEN
    root = tmp_path / "models"
    root.mkdir(mode=0o755)
    arguments = {
        "path": str(root / "org" / "m"),
        "models_root": str(root),
        "source": "hub",
        "from": "org/m",
        "endpoint": hub.endpoint,
    }
    refused = module("sgl_model_stage", {**arguments, "image": image})
    assert refused["failed"] and "needs a token" in refused["msg"]
    answer = module("sgl_model_stage", {**arguments, "image": image, "token": TOKEN})
    assert not answer["failed"], answer["msg"]
    assert (
        answer["changed"]
        and answer["verified"]
        and contents(root / "org" / "m") == contents(hub.folder)
    )
    assert all(
        (file.stat().st_uid, file.stat().st_gid) == (os.geteuid(), os.getegid())
        for file in (root / "org").rglob("*")
    )
    assert "sgl-stage-" not in docker("container", "ls", "--all", "--format", "{{.Names}}").stdout
    assert TOKEN not in json.dumps(answer)
