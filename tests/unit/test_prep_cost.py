"""What a prep says of stages that run although this host has records of their work: which, why, and
how long they took.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sgl_admin.base import files, paths, versions
from sgl_admin.contract import texts
from sgl_admin.contract.records import MADE_IN
from tests.contract import validators
from tests.unit.sharing import ALL, VERSIONS, Host, admin, on_a_gpu

DIGEST = "sha256:" + "ab" * 32
OLD, NEW = (f"lmsysorg/sglang:v{version}@sha256:abababababab" for version in ("0.5.17", "0.5.18"))


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have this process run in an image with this release of SGLang."""
    monkeypatch.setattr(paths, "IMAGE_FACTS", tmp_path / "image.json")

    def run_in(sglang: str, **others: str) -> None:
        installed = {**VERSIONS, "sglang": sglang, **others}
        monkeypatch.setattr(versions, "installed", installed.get)
        name = f"lmsysorg/sglang:v{sglang}"
        base = {"name": name, "digest": DIGEST}
        files.write_json(paths.IMAGE_FACTS, {"image_inputs": str(installed), "base_image": base})

    return run_in


@pytest.fixture
def host(
    live_run: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: Callable[[str], None],
) -> Iterator[Host]:
    """A host with a GPU that was prepared with SGLang 0.5.17."""
    on_a_gpu(monkeypatch)
    image("0.5.17")
    made = Host(model_folder)
    for stage, content in ALL.items():
        made.finish(stage, content)
        took(made, stage, 100)
    yield made


def took(host: Host, stage: str, seconds: float) -> None:
    """A prep worked so long on a stage."""
    plan = host.prep()
    [decision] = [each for each in plan.decisions if each.stage.name == stage]
    decision.record.write(served=plan.context.served_identity, seconds=seconds)


class Change(NamedTuple):
    """What is other than in the prep before, and what the prep says of it."""

    make: Callable[[Host, Callable[..., None], pytest.MonkeyPatch], object]
    said: str | None


def other_model(host: Host, image: object, patch: pytest.MonkeyPatch) -> None:
    config = Path(host.words[1], "config.json")
    document = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**document, "num_attention_heads": 7}), encoding="utf-8")


def ask(*words: str) -> Callable[[Host, object, pytest.MonkeyPatch], None]:
    def change(host: Host, image: object, patch: pytest.MonkeyPatch) -> None:
        host.words = (*host.words, *words)

    return change


CHANGES = {
    "nothing": Change(lambda host, image, patch: None, None),
    "the image": Change(
        lambda host, image, patch: image("0.5.18"),
        f"runs deep_gemm, flashinfer, inductor (the image changed from {OLD} to {NEW}:"
        " sglang 0.5.17 to 0.5.18); that took about 5 min before",
    ),
    "a package of the image": Change(
        lambda host, image, patch: image("0.5.17", triton="3.7.0"),
        "runs inductor (the image changed: triton 3.6.0 to 3.7.0); that took about 100 s before;"
        " starts the server to check deep_gemm, flashinfer (this server (model, arguments,"
        " environment, image) has not run with these caches yet: it is started once, and compiles"
        " only what is missing)",
    ),
    "the model": Change(
        other_model,
        "runs deep_gemm, flashinfer, inductor (another model); that took about 5 min before",
    ),
    "a variable, whose value may be a secret": Change(
        ask("--server-env", "SGLANG_SOME_TOKEN=s3cret"),
        "runs deep_gemm, flashinfer, inductor (variables changed: SGLANG_SOME_TOKEN); that took"
        " about 5 min before",
    ),
    "an argument": Change(
        ask("--server-arg=--kv-cache-dtype", "--server-arg=fp8_e5m2"),
        "runs deep_gemm, flashinfer, inductor (the server's arguments changed: --kv-cache-dtype);"
        " that took about 5 min before",
    ),
    "one stage is asked for again": Change(
        ask("--inductor", "rebuild"),
        "runs inductor (rebuild was requested); that took about 100 s before",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_cost_names_stages_reasons_and_times(
    host: Host, image: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    CHANGES[name].make(host, image, monkeypatch)
    assert host.prep().cost == CHANGES[name].said


def test_a_bare_host_repeats_nothing(
    live_run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    assert Host(model_folder).prep().cost is None


def test_work_is_compared_with_that_of_the_same_model(
    host: Host, image: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model that was upgraded first has fewer differences."""
    before = Path(host.words[1], "config.json").read_text(encoding="utf-8")
    other_model(host, image, monkeypatch)
    image("0.5.18")
    took(host, "inductor", 7)
    Path(host.words[1], "config.json").write_text(before, encoding="utf-8")
    said = host.prep().cost
    assert said is not None and "another model" not in said
    assert said.endswith("that took about 5 min before")


def test_a_record_keeps_the_longest_time(host: Host) -> None:
    took(host, "inductor", 40)
    assert host.record().summary()[MADE_IN] == 100  # type: ignore[index]
    host.record().write()
    took(host, "inductor", 250)
    assert host.record().summary()[MADE_IN] == 250  # type: ignore[index]


@pytest.mark.parametrize("value", ["soon", True, -1, None, float("inf"), [1]])
def test_a_time_that_is_none_is_no_time(
    host: Host, image: Callable[..., None], value: object
) -> None:
    record = host.record()
    document = files.read_json(record.path) or {}
    document["summary"][MADE_IN] = value
    record.path.write_text(json.dumps(document), encoding="utf-8")
    image("0.5.18")
    assert (host.prep().cost or "").endswith(
        "that took about 3 min before without inductor, whose time no record has"
    )


def test_the_time_of_an_earlier_release_is_in_the_result_of_its_prep(
    host: Host, live_run: str, image: Callable[..., None]
) -> None:
    record = host.record()
    document = files.read_json(record.path) or {}
    del document["summary"][MADE_IN]
    record.path.write_text(json.dumps(document), encoding="utf-8")
    done = {"ran": True, "status": "ok", "duration_s": 3000, "signature": record.signature}
    result = paths.prep_result("run-of-before")
    result.parent.mkdir(parents=True)
    document = {**validators.example("prep_result"), "stages": {"inductor": done}}
    result.write_text(json.dumps(document), encoding="utf-8")
    image("0.5.18")
    assert (host.prep().cost or "").endswith("that took about 53 min before")


def test_a_record_that_cannot_be_read_is_passed_over(
    host: Host, image: Callable[..., None]
) -> None:
    host.record().path.write_text("{", encoding="utf-8")
    image("0.5.18")
    assert "runs deep_gemm, flashinfer (" in (host.prep().cost or "")


def test_a_dry_run_says_the_cost(host: Host, image: Callable[..., None]) -> None:
    image("0.5.18")
    words = ("caches", "ensure", *host.words, "--dry-run")
    said = host.prep().cost
    assert f"a prep {said}\n" in admin(*words).out
    document = admin(*words, "--json").out.rpartition("\nRESULT_STATUS")[0]
    assert json.loads(document)["cost"] == said


def test_the_way_back_costs_nothing(host: Host, image: Callable[..., None]) -> None:
    image("0.5.18")
    for stage in ALL:
        took(host, stage, 10)
    assert host.prep().cost is None
    image("0.5.17")
    assert host.prep().cost is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_a_duration_reads_well(seconds: float, text: str) -> None:
    assert texts.duration(seconds) == text
