"""Two servers have one identity exactly where nothing that makes their process differs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_admin.base import paths
from sgl_admin.records import served

ARGV = ["python", "-m", "sglang.launch_server", "--model-path", "MODEL", "--tp-size", "1"]
FILES = {
    "config.json": b'{"num_hidden_layers": 2}',
    "tokenizer.json": b'{"model": {}}',
    "generation_config.json": b"{}",
    "hf_quant_config.json": b'{"quantization": {}}',
    "model-00001-of-00002.safetensors": bytes(200_000),
    "model-00002-of-00002.safetensors": bytes(100),
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "configuration_x.py": b"x = 1\n",
    "encoder/config.json": b"{}",
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "models" / "m"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    return folder


def identity(
    model: Path, *arguments: str, env: dict[str, str] | None = None, image: str = "i"
) -> str:
    argv = [str(model) if word == "MODEL" else word for word in (*ARGV, *arguments)]
    return served.identity(argv, env or {}, image)


def test_it_is_the_same_until_something_differs(model: Path) -> None:
    assert identity(model) == identity(model)
    assert identity(model).startswith("sha256:") and len(identity(model)) == 71


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["content", "gone", "longer"])
def test_each_file_of_the_model_counts(model: Path, name: str, change: str) -> None:
    before = identity(model)
    path = model / name
    if change == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content + b"x" if change == "longer" else content[:-1] + b"#")
        os.utime(path, ns=(10**18, 10**18))
    assert identity(model) != before


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "adapter_model.bin", "tekken.json", "extra.safetensors"]
)
def test_a_file_more_counts(model: Path, name: str) -> None:
    before = identity(model)
    (model / name).write_bytes(b"x")
    assert identity(model) != before


@pytest.mark.parametrize("offset", [0, 1000, 100_000, 199_999])
def test_weights_of_the_same_size_and_time_are_told_apart_by_samples(
    model: Path, offset: int
) -> None:
    """A fine-tuned copy differs everywhere; a piece of the size of a tensor is enough."""
    before = identity(model)
    path = model / "model-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    start = min(offset, len(content) - 16_000)
    content[start : start + 16_000] = b"\1" * 16_000
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    assert identity(model) != before


def test_weights_that_were_written_again_count(model: Path) -> None:
    before = identity(model)
    os.utime(model / "model-00001-of-00002.safetensors", ns=(10**18 + 1, 10**18 + 1))
    assert identity(model) != before


def test_what_belongs_to_a_checkout_or_our_own_notes_does_not_count(model: Path) -> None:
    before = identity(model)
    for name in (".sgl-verified.json", ".git/HEAD", ".cache/huggingface/x", "__pycache__/x.pyc"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("x")
    assert identity(model) == before


def test_links_of_a_hub_snapshot_count_as_what_they_lead_to(model: Path, tmp_path: Path) -> None:
    before = identity(model)
    for name in FILES:
        blob = tmp_path / "blobs" / name.replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        (model / name).rename(blob)
        (model / name).symlink_to(blob)
    assert identity(model) == before
    (tmp_path / "blobs" / "tokenizer.json").write_text("other")
    assert identity(model) != before


def word(place: Path) -> list[Callable[[], tuple[str, ...]]]:
    quoted = json.dumps({"path": str(place)})
    return [
        lambda: ("--chat-template", str(place)),
        lambda: (f"--chat-template={place}",),
        lambda: ("--lora-paths", f"name={place}"),
        lambda: ("--json-model-override-args", quoted),
        lambda: ("--tokenizer-path", os.path.relpath(place, os.environ["HOME"])),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("folder", [False, True])
def test_files_that_arguments_name_count(
    model: Path, tmp_path: Path, number: int, folder: bool
) -> None:
    place = tmp_path / "named"
    file = place / "a.json" if folder else place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("1")
    words = word(place)[number]()
    before = identity(model, *words)
    file.write_text("2")
    assert identity(model, *words) != before


def test_a_file_that_a_setting_names_counts(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text("1")
    before = identity(model, env={"SGLANG_SETTINGS": str(file)})
    file.write_text("2")
    assert identity(model, env={"SGLANG_SETTINGS": str(file)}) != before


def test_the_caches_do_not_count(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PROFILES", tmp_path / "profiles")
    cache = tmp_path / "profiles" / "moe_configs"
    cache.mkdir(parents=True)
    before = identity(model, env={"SGLANG_MOE_CONFIG_DIR": str(cache)})
    (cache / "E=8.json").write_text("{}")
    assert identity(model, env={"SGLANG_MOE_CONFIG_DIR": str(cache)}) == before


@pytest.mark.parametrize("value", ["/", "..", ".", "\0", "x" * 5000, "a\nb", "~"])
def test_a_word_that_names_no_file_of_the_server_is_only_a_word(model: Path, value: str) -> None:
    assert identity(model, value) != identity(model)


@pytest.mark.parametrize(
    "name", ["HOSTNAME", "TERM", "PWD", "SGL_HOST_MODELS_ROOT", "SSH_TTY", "PYTHONUNBUFFERED"]
)
def test_variables_of_the_caller_do_not_count(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = identity(model)
    monkeypatch.setenv(name, "x" + os.environ.get(name, ""))
    assert identity(model) == before


@pytest.mark.parametrize(
    "name", ["CUDA_VISIBLE_DEVICES", "SGLANG_X", "TORCHINDUCTOR_X", "NCCL_X", "LD_PRELOAD", "NEW"]
)
def test_other_variables_of_the_container_count(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = identity(model)
    monkeypatch.setenv(name, "x" + os.environ.get(name, ""))
    assert identity(model) != before


@pytest.mark.parametrize("word", ["/", "//", "//root/..", "//home", "///", "A=//", "."])
def test_what_holds_the_servers_home_is_no_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Else all of the machine would tell one server from another."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert list(served.paths_in(word)) == []


_WORDS = st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0/"), max_size=8))
_ENVIRONMENTS = st.dictionaries(
    st.sampled_from(["A", "SGLANG_B", "CUDA_VISIBLE_DEVICES"]), st.text(max_size=4), max_size=2
)
_SERVERS = st.tuples(_WORDS, _ENVIRONMENTS, st.sampled_from(["image 1", "image 2"]))


@given(_SERVERS, _SERVERS)
def test_two_servers_are_one_exactly_where_nothing_differs(
    one: tuple[list[str], dict[str, str], str], two: tuple[list[str], dict[str, str], str]
) -> None:
    def known_as(server: tuple[list[str], dict[str, str], str]) -> str:
        argv, environment, image = server
        return served.identity(["python", *argv], environment, image)

    assert (known_as(one) == known_as(two)) is (one == two)
    assert known_as(one) == known_as((list(one[0]), dict(reversed(one[1].items())), one[2]))
