"""One reading of a model: whatever is wrong with a folder, the host and the container say the same,
with the remedy that works; what a server may survive is a warning.
"""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import (
    ModelError,
    inspect_model,
)

from sgl_admin.facts import model
from tests.unit.model_files import CONFIG, POINTER, safetensors, write_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models" / "m")


def refused(path: Path, *arguments: str) -> str:
    """What both worlds say of a model that they refuse."""
    with pytest.raises(ModelError) as host:
        inspect_model(str(path), server_args=arguments)
    with pytest.raises(model.UnusableModel) as container:
        model.load(str(path), arguments)
    assert str(host.value) == str(container.value)
    text = str(host.value)
    assert len(text) < 400 + 2 * len(str(path)) and text.isprintable() and ": " in text
    return text


def taken(path: Path, *arguments: str) -> list[str]:
    """The warnings of both worlds about a model that they take."""
    warnings: list[str] = []
    host = inspect_model(str(path), server_args=arguments, warn=warnings.append)
    container = model.load(str(path), arguments)
    assert list(container.warnings) == warnings
    assert (container.identity, container.has_experts) == (host["identity"], host["moe"])
    return warnings


def shard(number: int, count: int, end: str = "safetensors") -> str:
    return f"model-{number:05}-of-{count:05}.{end}"


def split(path: Path, count: int, index: bool = False) -> list[str]:
    """Have the weights lie in so many files."""
    (path / "model.safetensors").unlink(missing_ok=True)
    names = [shard(number, count) for number in range(1, count + 1)]
    for number, name in enumerate(names):
        (path / name).write_bytes(safetensors([f"t{number}"]))
    if index:
        write_index(path, {f"t{number}": name for number, name in enumerate(names)})
    return names


def write_index(path: Path, weight_map: dict[str, str], name: str = INDEX) -> None:
    (path / name).write_text(json.dumps({"weight_map": weight_map}))


def pytorch(file: Path) -> None:
    """As torch.save writes since 1.6: a ZIP archive without compression."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00." * 200)


# --- weights --------------------------------------------------------------------------------------


def test_whole_models_of_each_layout_are_taken(path: Path) -> None:
    assert taken(path) == []
    split(path, 3)
    assert taken(path) == []
    split(path, 3, index=True)
    assert taken(path) == []
    assert inspect_model(str(path))["shards"] == 3


def cut(path: Path, *numbers: int) -> None:
    for number in numbers:
        (path / shard(number, 2)).unlink()


def no_index_one_missing(path: Path) -> None:
    split(path, 2)
    cut(path, 2)


def no_index_of_two_splits(path: Path) -> None:
    split(path, 2)
    split(path, 3)
    cut(path, 1)
    (path / shard(3, 3)).unlink()


def unfinished(path: Path, where: str) -> None:
    file = path / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"part")


def indexed(path: Path, change: Callable[[Path], object]) -> None:
    split(path, 2, index=True)
    change(path)


def other_split(path: Path) -> None:
    split(path, 15)
    write_index(path, {f"t{number}": shard(number, 30) for number in range(1, 31)})


def pointers(path: Path, *names: str) -> None:
    for name in names:
        (path / name).write_bytes(POINTER)


def clone_with_pointers(path: Path) -> None:
    (path / ".git").mkdir()
    pointers(path, "model.safetensors")


def dangling(path: Path) -> None:
    """The snapshot of a cache that was copied without its blobs."""
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("../../blobs/abc")


def longer(path: Path) -> None:
    (path / "model.safetensors").write_bytes(safetensors() + b"\0")


def pytorch_parts(path: Path, count: int, there: int) -> None:
    (path / "model.safetensors").unlink()
    names = [f"pytorch_model-{number:05}-of-{count:05}.bin" for number in range(1, count + 1)]
    for name in names[:there]:
        pytorch(path / name)
    write_index(
        path,
        {f"t{number}": name for number, name in enumerate(names)},
        "pytorch_model.bin.index.json",
    )


def cut_pytorch(path: Path) -> None:
    pytorch_parts(path, 1, 1)
    file = path / "pytorch_model-00001-of-00001.bin"
    file.write_bytes(file.read_bytes()[:-40])


def consolidated(path: Path) -> None:
    (path / "model.safetensors").unlink()
    write_index(
        path,
        {
            "a": "consolidated-00001-of-00002.safetensors",
            "b": "consolidated-00002-of-00002.safetensors",
        },
        "consolidated.safetensors.index.json",
    )
    (path / "consolidated-00001-of-00002.safetensors").write_bytes(safetensors(["a"]))


def header_of_nothing(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b'{"a": 1, ')


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no index, a shard missing": (
        no_index_one_missing,
        ("lacks 1 of 2 shards: model-00002-of-00002.safetensors: finish its copy or download",),
    ),
    "no index, two splits, none whole": (
        no_index_of_two_splits,
        ("lacks 1 of 3 shards: model-00003-of-00003.safetensors",),
    ),
    "incomplete beside": (
        lambda path: unfinished(path, "model-2.safetensors.incomplete"),
        ("has an unfinished download (model-2.safetensors.incomplete)", "finish the download"),
    ),
    "incomplete of huggingface_hub": (
        lambda path: unfinished(path, ".cache/huggingface/download/x.abc.incomplete"),
        ("(.cache/huggingface/download/x.abc.incomplete)",),
    ),
    "aria2": (lambda path: unfinished(path, "m2.safetensors.aria2"), ("unfinished download",)),
    "index, a shard missing": (
        lambda path: indexed(path, lambda each: cut(each, 1)),
        ("lacks 1 of 2 shards: model-00001-of-00002.safetensors: finish its copy",),
    ),
    "index of another split": (
        other_split,
        (
            "names 30 shards, and the folder has the 15 of another split",
            "take the one that belongs",
        ),
    ),
    "index names a tensor that the shard lacks": (
        lambda path: indexed(
            path,
            lambda each: write_index(
                each, {"t0": shard(1, 2), "t1": shard(2, 2), "t9": shard(2, 2)}
            ),
        ),
        ("lacks tensors", 'in 1 of 2 shards: model-00002-of-00002.safetensors ("t9")'),
    ),
    "tensors of swapped shards": (
        lambda path: indexed(
            path, lambda each: write_index(each, {"t1": shard(1, 2), "t0": shard(2, 2)})
        ),
        ("lacks tensors", "in 2 of 2 shards", "of different downloads"),
    ),
    "pointers in a clone": (clone_with_pointers, ("Git LFS pointers", "run `git lfs pull` in /")),
    "pointers in a copy": (
        lambda path: pointers(path, "model.safetensors"),
        ("Git LFS pointers in place of 1 of 1 shards: model.safetensors", "git lfs pull"),
    ),
    "one pointer among shards": (
        lambda path: indexed(path, lambda each: pointers(each, shard(2, 2))),
        ("Git LFS pointers in place of 1 of 2 shards: model-00002-of-00002.safetensors",),
    ),
    "config is a pointer": (
        lambda path: pointers(path, "config.json"),
        ("config.json is a Git LFS pointer: run `git lfs pull`",),
    ),
    "index is a pointer": (lambda path: pointers(path, INDEX), (f"{INDEX} is a Git LFS pointer",)),
    "dangling link": (dangling, ("a link to ../../blobs/abc, which is not there", "cp -L")),
    "longer than the header says": (longer, ("longer than its header says",)),
    "header cut inside": (header_of_nothing, ("its header is not JSON",)),
    "pytorch, a part missing": (
        lambda path: pytorch_parts(path, 3, 2),
        ("lacks 1 of 3 shards: pytorch_model-00003-of-00003.bin", "pytorch_model.bin.index.json"),
    ),
    "pytorch, cut": (cut_pytorch, ("pytorch_model-00001-of-00001.bin (cut off",)),
    "consolidated, a part missing": (
        consolidated,
        ("lacks 1 of 2 shards: consolidated-00002-of-00002.safetensors",),
    ),
    "gguf": (
        lambda path: (path / "model.safetensors").rename(path / "model.gguf"),
        ("has no *.safetensors file", "(it has model.gguf)"),
    ),
}


@pytest.mark.parametrize("row", REFUSED)
def test_weights_that_are_not_whole_are_refused_with_the_remedy(path: Path, row: str) -> None:
    spoil, words = REFUSED[row]
    spoil(path)
    text = refused(path)
    for word in words:
        assert word in text, text


def test_what_a_server_may_survive_is_a_warning(path: Path) -> None:
    split(path, 2)
    (path / shard(1, 3)).write_bytes(safetensors(["t0"]))
    [warning] = taken(path)
    assert "a part of a split into 3 files beside a whole one" in warning


# SGLang reads all *.safetensors of a folder without an index but for Mistral's pair (0.5.3 to
# 0.5.23, model_loader/weight_utils.py, filter_duplicate_safetensors_files).
@pytest.mark.parametrize(
    ("names", "shared", "again"),
    [
        ([shard(1, 2), shard(2, 2), *(shard(each, 3) for each in (1, 2, 3))], "t", shard(1, 3)),
        ([shard(1, 2), shard(2, 2), "model.safetensors"], "t", "model.safetensors"),
        (["a.safetensors", "b.safetensors"], "t", "b.safetensors"),
        (["consolidated.safetensors", "model.safetensors"], "t", None),
        ([shard(1, 2), shard(2, 2)], None, None),
    ],
)
def test_a_tensor_that_two_files_hold_is_a_warning(
    path: Path, names: list[str], shared: str | None, again: str | None
) -> None:
    (path / "model.safetensors").unlink()
    for name in names:
        (path / name).write_bytes(safetensors([name, *([shared] if shared else [])]))
    warnings = taken(path)
    assert len(warnings) == (again is not None)
    for warning in warnings:
        assert f'{again} ("{shared}")' in warning and len(warning) < 400 + len(str(path))
    write_index(path, {name: name for name in names})
    assert taken(path) == [], "the index says which file counts"


def test_a_leftover_beside_weights_that_are_proven_whole_is_no_matter(path: Path) -> None:
    split(path, 2, index=True)
    unfinished(path, "README.md.incomplete")
    assert taken(path) == []
    (path / INDEX).unlink()
    assert taken(path) == []


def test_layers_that_the_config_names_and_the_weights_lack_are_a_warning(path: Path) -> None:
    config = {**CONFIG, "text_config": {"num_hidden_layers": 4}, "num_hidden_layers": 1}
    (path / "config.json").write_text(json.dumps(config))
    layers = [f"model.layers.{number}.norm.weight" for number in (0, 2)]
    (path / "model.safetensors").write_bytes(safetensors(layers))
    [warning] = taken(path)
    assert "has no weights for 2 of the 4 layers that its config names (1, 3)" in warning


def test_a_pytorch_model_is_taken(path: Path) -> None:
    pytorch_parts(path, 2, 2)
    assert taken(path) == []
    (path / "training_args.bin").write_bytes(b"")
    assert inspect_model(str(path))["shards"] == 2
    (path / "pytorch_model.bin.index.json").unlink()
    assert inspect_model(str(path))["shards"] == 2
    (path / "pytorch_model-00001-of-00002.bin").unlink()
    assert "lacks 1 of 2 shards: pytorch_model-00001-of-00002.bin" in refused(path)


def test_mistrals_own_file_beside_those_of_transformers_is_not_read(path: Path) -> None:
    (path / "consolidated.safetensors").write_bytes(b"")
    assert taken(path) == [] and inspect_model(str(path))["shards"] == 1


def test_both_worlds_compute_the_same_identity(path: Path) -> None:
    def both() -> str:
        taken(path)
        return model.load(str(path)).identity

    first = both()
    write_index(path, {"model.norm.weight": "model.safetensors"})
    second = both()
    (path / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 1.0}))
    (path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert len({first, second, both()}) == 3


def test_a_config_alone_is_enough_for_a_plan_and_for_no_host(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no \*.safetensors file"):
        inspect_model(str(path))
    assert model.load(str(path)).config == CONFIG
    (path / INDEX).write_text("{}")
    assert "has no weight_map" in refused(path)


def test_a_server_that_reads_no_weights_needs_none(path: Path) -> None:
    (path / "model.safetensors").unlink()
    assert taken(path, "--load-format", "dummy") == []
    assert taken(path, "--load-format=dummy") == []
    assert "has no *.safetensors file" in refused(path, "--load-format", "auto")


# --- folders that contain a model -----------------------------------------------------------------


def cache(root: Path, *revisions: str) -> Path:
    """As huggingface_hub lays it out: links into blobs."""
    repository = root / "models--org--name"
    for revision in revisions:
        folder = write_model(repository / "snapshots" / revision)
        (repository / "blobs").mkdir(exist_ok=True)
        for file in list(folder.iterdir()):
            blob = repository / "blobs" / f"{revision}-{file.name}"
            file.rename(blob)
            file.symlink_to(f"../../blobs/{blob.name}")
    return repository


def test_the_root_of_a_cache_is_named_with_the_folder_to_take(tmp_path: Path) -> None:
    repository = cache(tmp_path, "abc")
    assert taken(repository / "snapshots" / "abc") == []
    for folder, inside in (
        (repository, "snapshots/abc"),
        (tmp_path, "models--org--name/snapshots/abc"),
        (repository / "snapshots", "abc"),
    ):
        text = refused(folder)
        assert f"set sgl_model to that folder ({folder / inside})" in text


def test_of_several_revisions_the_main_one_is_named_or_all(tmp_path: Path) -> None:
    repository = cache(tmp_path, "abc", "def")
    assert "2 models are below it (snapshots/abc, snapshots/def)" in refused(repository)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("def\n")
    assert f"({repository}/snapshots/def)" in refused(repository)
    shutil.rmtree(repository / "snapshots")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    assert "whose download is not finished" in refused(repository)


def test_an_unfinished_blob_of_a_snapshot_without_an_index_is_told(tmp_path: Path) -> None:
    repository = cache(tmp_path, "abc")
    (repository / "blobs" / "0123.incomplete").touch()
    assert "../../blobs/0123.incomplete" in refused(repository / "snapshots" / "abc")


def test_a_folder_with_a_model_one_step_down_is_named(path: Path) -> None:
    assert f"set sgl_model to that folder ({path})" in refused(path.parent)
    write_model(path.parent / "n")
    assert "2 models are below it (m, n): set sgl_model to one of these" in refused(path.parent)


def test_mistrals_own_format_is_named(path: Path) -> None:
    (path / "config.json").rename(path / "params.json")
    assert "is in Mistral's own format (params.json, no config.json)" in refused(path)


# --- tokenizer ------------------------------------------------------------------------------------

TOKENIZERS: list[tuple[str, ...]] = [
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("tokenizer.model.v3",),
    ("tekken.json",),
    ("tiktoken.model",),
    ("qwen.tiktoken",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("tokenization_own.py", "own.vocabulary"),
]


@pytest.mark.parametrize("names", TOKENIZERS)
def test_each_kind_of_tokenizer_counts(path: Path, names: tuple[str, ...]) -> None:
    (path / "tokenizer.json").unlink()
    assert "has no tokenizer (tokenizer.json, tokenizer.model" in refused(path)
    for name in names:
        (path / name).write_text('{"model": {}}' if name.endswith(".json") else "x")
    assert taken(path) == []


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(content)


def half_a_pair(path: Path) -> None:
    (path / "tokenizer.json").rename(path / "vocab.json")


def tokenizer_link(path: Path) -> None:
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.json").symlink_to("../../blobs/t")


def config_link(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("../../blobs/c")


TOKENIZERS_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (write("tokenizer.json", POINTER), "tokenizer.json: Git LFS pointers"),
    "pointer, SentencePiece": (write("tokenizer.model", POINTER), "tokenizer.model: Git LFS"),
    "broken": (write("tokenizer.json", b'{"model": {'), "tokenizer.json is not valid JSON"),
    "broken in the middle": (write("tokenizer.json", b'{"a": , "model": {}}'), "not valid JSON"),
    "a page": (write("tokenizer.json", b"<!doctype html><html>"), "not valid JSON"),
    "empty": (write("tokenizer.model", b""), "tokenizer.model is empty"),
    "a mark": (write("tokenizer.json", b"\xef\xbb\xbf{}"), "UTF-8 with such a mark"),
    "config broken": (write("tokenizer_config.json", b"{"), "tokenizer_config.json is not valid"),
    "config pointer": (write("tokenizer_config.json", POINTER), "tokenizer_config.json: Git LFS"),
    "half a pair": (half_a_pair, "vocab.json has no merges.txt beside it"),
    "config link": (config_link, "config.json is a link to ../../blobs/c, which is not there"),
    "dangling link": (tokenizer_link, "tokenizer.json is a link to ../../blobs/t, which is not"),
}


@pytest.mark.parametrize("row", TOKENIZERS_REFUSED)
def test_a_tokenizer_that_no_server_can_read_is_refused(path: Path, row: str) -> None:
    spoil, words = TOKENIZERS_REFUSED[row]
    spoil(path)
    assert words in refused(path)


def test_a_server_that_reads_no_tokenizer_here_needs_none(path: Path) -> None:
    (path / "tokenizer.json").write_bytes(POINTER)
    assert taken(path, "--skip-tokenizer-init") == []
    assert taken(path, "--tokenizer-path", "/models/other") == []


def test_files_that_a_server_may_do_without_are_warnings(path: Path) -> None:
    (path / "generation_config.json").write_bytes(b"{")
    (path / "chat_template.jinja").write_bytes(POINTER)
    (path / "tokenizer.json").write_text("{}")
    text = "\n".join(taken(path))
    assert "tokenizer.json has no model" in text and "generation_config.json is not valid" in text
    assert "chat_template.jinja is a Git LFS pointer" in text


# --- encodings ------------------------------------------------------------------------------------

# transformers opens config.json with encoding="utf-8" (configuration_utils._dict_from_json_file).
WELL = json.dumps(CONFIG)
ENCODINGS: dict[str, tuple[bytes, str | None]] = {
    "UTF-8": (b'{"architectures": ["A"], "note": "\xc3\xa9"}', None),
    "byte order mark": (b"\xef\xbb\xbf" + WELL.encode(), "UTF-8 with such a mark"),
    "UTF-16": (WELL.encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (WELL.encode("utf-16-le"), "UTF-16"),
    "UTF-32": (WELL.encode("utf-32"), "UTF-32"),
    "latin-1": (b'{"architectures": ["A"], "note": "\xe9"}', "byte 0xe9 at 34 is not UTF-8"),
    "repeated key": (b'{"architectures": [], "architectures": ["A"]}', None),
    "NaN": (b'{"architectures": ["A"], "rope": NaN, "top": Infinity}', None),
    "huge number": (b'{"architectures": ["A"], "n": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    "deep": (b'{"architectures": ["A"], "n": ' + b"[" * 200_000, "is not valid JSON"),
    "NUL": (WELL.encode() + b"\0", "is not valid JSON"),
    "two documents": (WELL.encode() * 2, "is not valid JSON"),
}


@pytest.mark.parametrize("row", ENCODINGS)
def test_a_config_is_read_as_the_server_reads_it(path: Path, row: str) -> None:
    content, words = ENCODINGS[row]
    (path / "config.json").write_bytes(content)
    if words is None:
        assert taken(path) == []
    else:
        assert words in refused(path)


# --- experts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        ({"num_experts": 128}, True),
        ({"thinker_config": {"text_config": {"num_experts": 128}}}, True),
        ({"language_config": {"n_routed_experts": 64}}, True),
        ({"text_config": {"llm_config": {"num_local_experts": 8}}}, True),
        ({"moe_num_experts": [64, 64]}, True),
        ({"ffn_config": {"moe_num_experts": 16}}, True),
        ({"num_experts": 1}, False),
        ({"num_experts": True}, False),
        ({"num_experts": "8"}, False),
        ({"vision_config": {"num_experts": 8}}, False),
        ({"talker_config": {"text_config": {"num_experts": 8}}}, False),
    ],
)
def test_both_worlds_count_experts_alike(path: Path, config: dict[str, Any], experts: bool) -> None:
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    assert taken(path) == [] and model.load(str(path)).has_experts is experts


def test_modelopts_file_is_read_and_refused_like_any_other(path: Path) -> None:
    found = {"quantization": {"quant_algo": "FP8"}}
    (path / "hf_quant_config.json").write_text(json.dumps(found))
    assert taken(path) == [] and model.load(str(path)).modelopt == found
    (path / "hf_quant_config.json").write_bytes(POINTER)
    assert "hf_quant_config.json is a Git LFS pointer" in refused(path)
