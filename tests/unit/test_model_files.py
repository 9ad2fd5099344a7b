"""The model's folder: whole ones are described, all others refused in a sentence that names the
thing and the remedy.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _model_files as model_files
from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.records import (
    model_identity,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._model_files import (
    ModelError,
    ModelMissing,
    inspect_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.model_folder import make_tiny_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models root, open to everybody (pytest's own directories above it are not)."""
    root = tmp_path / "models"
    root.mkdir(mode=0o755)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model folder; the tests spoil copies of it."""
    folder = tmp_path_factory.mktemp("made") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture
def path(models: Path, tiny: Path) -> Path:
    folder = models / "org" / "tiny"
    folder.parent.mkdir(mode=0o755)
    shutil.copytree(tiny, folder)
    return folder


def edit(file: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(file.read_bytes())
    changed = change(value)
    file.write_text(json.dumps(value if changed is None else changed))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        inspect_model(str(path), **options)
    assert "\n" not in str(caught.value) and ": " in str(caught.value)
    return str(caught.value)


def identity(path: Path, *server_args: str) -> str:
    found: str = inspect_model(str(path), server_args=server_args)["identity"]
    return found


def single_file(path: Path) -> None:
    """One shard without an index, as small models come."""
    (path / tiny_model.INDEX).unlink()
    (path / tiny_model.SHARDS[1]).unlink()
    (path / tiny_model.SHARDS[0]).rename(path / "model.safetensors")


def test_a_whole_model_is_described(path: Path) -> None:
    assert inspect_model(str(path) + "/", tp=2, device_count=2) == {
        "path": str(path),
        "slug": "tiny",
        "missing": False,
        "identity": model_identity(
            [(name, (path / name).read_bytes()) for name in ("config.json", tiny_model.INDEX)]
        ),
        "architecture": "Qwen3ForCausalLM",
        "moe": False,
        "size_bytes": sum((path / shard).stat().st_size for shard in tiny_model.SHARDS),
        "shards": 2,
    }


def test_identity_formula(path: Path) -> None:
    config, index = (path / "config.json").read_bytes(), (path / tiny_model.INDEX).read_bytes()
    text = b"config.json\0" + str(len(config)).encode() + b"\0" + config
    with_index = text + b"model.safetensors.index.json\0" + str(len(index)).encode() + b"\0" + index
    assert identity(path) == "sha256:" + hashlib.sha256(with_index).hexdigest()
    single_file(path)
    assert identity(path) == "sha256:" + hashlib.sha256(text).hexdigest()


def test_identity_follows_config_and_index_and_nothing_else(path: Path) -> None:
    first = identity(path)
    (path / "tokenizer.json").unlink()
    without = "--skip-tokenizer-init"
    assert identity(path, without) == first
    edit(path / "config.json", lambda config: config.update(rope_theta=1.0))
    second = identity(path, without)
    edit(path / tiny_model.INDEX, lambda index: index["metadata"].update(note=1))
    assert len({first, second, identity(path, without)}) == 3


def test_identity_has_a_known_value() -> None:
    """sgl-admin computes the same; a change here is a change of the contract."""
    expected = "555dc36908b373a3f3e1385198743caa43cec99dc8fc7fa119d66a679b1ae929"
    assert model_identity([("config.json", b"{}")]) == f"sha256:{expected}"


def test_single_file_model(path: Path) -> None:
    single_file(path)
    assert inspect_model(str(path))["shards"] == 1
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").touch()
    assert "has no *.safetensors file: use a model in the safetensors format" in refused(path)


def test_missing_folder_is_an_error_of_its_own(models: Path) -> None:
    with pytest.raises(
        ModelMissing,
        match=f"the model {models}/gone does not exist: put the model there, or set sgl_model",
    ):
        inspect_model(str(models / "gone"))
    (models / "link").symlink_to("gone")
    with pytest.raises(ModelMissing, match="is a dangling symbolic link"):
        inspect_model(str(models / "link"))
    assert model_files.missing_model(str(models / "gone")).keys() == inspect_keys()
    assert model_files.missing_model(str(models / "gone") + "/")["slug"] == "gone"


def inspect_keys() -> set[str]:
    return {"path", "slug", "missing", "identity", "architecture", "moe", "size_bytes", "shards"}


def test_not_a_directory_and_no_config(path: Path) -> None:
    assert "is not a directory: set sgl_model" in refused(path / "config.json")
    (path / "config.json").unlink()
    assert f"the model {path} has no config.json: set sgl_model" in refused(path)


@pytest.mark.parametrize("bad", ["", "relative", "a\0b"])
def test_unusable_paths(bad: str) -> None:
    assert "is not an absolute path" in refused(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["config.json", tiny_model.INDEX])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'"text"', "holds a JSON str, not an object"),
    ],
    ids=["empty", "cut", "binary", "deep", "huge number", "list", "null", "string"],
)
def test_malformed_json(path: Path, name: str, data: bytes, words: str) -> None:
    (path / name).write_bytes(data)
    text = refused(path)
    assert f"{path / name} {words}" in text and "copy or download the model again" in text


@pytest.mark.parametrize(
    "value", [None, [], "Qwen3ForCausalLM", [1], [""], ["../x"], {"a": 1}, [["deep"]]]
)
def test_no_architecture(path: Path, value: object) -> None:
    edit(path / "config.json", lambda config: config.update(architectures=value))
    assert f"{path}/config.json names no architecture (architectures is " in refused(path)


@pytest.mark.parametrize("value", [None, [], {}, "x", 1])
def test_no_weight_map(path: Path, value: object) -> None:
    edit(path / tiny_model.INDEX, lambda index: index.update(weight_map=value))
    assert "has no weight_map that names the shards" in refused(path)


@pytest.mark.parametrize("value", [None, 1, "", [], {}, "a\0b", "\ud800"])
def test_a_shard_name_of_a_wrong_type(path: Path, value: object) -> None:
    edit(
        path / tiny_model.INDEX,
        lambda index: index["weight_map"].update({"model.norm.weight": value}),
    )
    assert 'as the file of "model.norm.weight": copy or download' in refused(path)


@pytest.mark.parametrize("value", ["../other/model.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_a_shard_outside_the_folder(path: Path, value: str) -> None:
    edit(
        path / tiny_model.INDEX,
        lambda index: index["weight_map"].update({"model.norm.weight": value}),
    )
    assert f"names the shard {json.dumps(value)}, which lies outside its folder" in refused(path)


def test_missing_shards_are_named_five_and_counted(path: Path) -> None:
    names = {f"t{number}": f"model-{number:05}-of-00009.safetensors" for number in range(1, 10)}
    edit(path / tiny_model.INDEX, lambda index: index["weight_map"].update(names))
    text = refused(path)
    assert f"the model {path} lacks 9 of 11 shards: model-00001-of-00009.safetensors, " in text
    assert "model-00005-of-00009.safetensors and 4 more: finish its copy or download" in text
    assert "model-00006-of-00009" not in text


def test_one_missing_shard(path: Path) -> None:
    (path / tiny_model.SHARDS[1]).unlink()
    assert f"lacks 1 of 2 shards: {tiny_model.SHARDS[1]}: finish" in refused(path)


@pytest.mark.parametrize("length", [0, 4, 9, 500, -1])
def test_a_shard_that_is_cut_off(path: Path, length: int) -> None:
    shard = path / tiny_model.SHARDS[0]
    data = shard.read_bytes()
    shard.write_bytes(data[:length])
    reason = {
        0: "empty",
        4: "no safetensors file",
        9: "cut off at 9 bytes",
        500: "cut off at 500 bytes",
    }
    wanted = reason.get(length, f"cut off: {len(data) - 1} of {len(data)} bytes")
    assert (
        f"damaged weights in 1 of 2 shards: {shard.name} ({wanted}): copy or download these again"
        in refused(path)
    )


@pytest.mark.parametrize("offsets", [[None, 80], [0, "80"], [0], [0, -1], [0, 10**30]])
def test_a_header_that_gives_a_tensor_no_place(path: Path, offsets: list[object]) -> None:
    """Where such a tensor ends is unknown: the others' ends must not pass for the end of the
    file.
    """
    header = json.dumps({"a": {"data_offsets": [0, 40]}, "b": {"data_offsets": offsets}}).encode()
    (path / tiny_model.SHARDS[0]).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 40)
    assert f"{tiny_model.SHARDS[0]} (its header gives a tensor no place)" in refused(path)


def test_a_shard_that_is_something_else(path: Path) -> None:
    (path / tiny_model.SHARDS[0]).write_bytes(struct.pack("<Q", 4) + b"[12]")
    assert "(no safetensors file)" in refused(path)


def test_a_shard_that_is_a_directory_or_a_fifo(path: Path) -> None:
    shard = path / tiny_model.SHARDS[0]
    shard.unlink()
    shard.mkdir()
    assert f"{shard.name} (not a file)" in refused(path)
    shard.rmdir()
    os.mkfifo(shard)
    assert f"{shard.name} (not a file)" in refused(path)


def test_a_config_that_is_a_fifo_does_not_block(path: Path) -> None:
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    assert "not a regular file" in refused(path)


@pytest.mark.parametrize(
    ("tp", "count", "name", "words"),
    [
        (
            2,
            1,
            "NVIDIA GH200 480GB",
            "tp 2 needs 2 devices, this host has 1 (NVIDIA GH200 480GB): set sgl_tp: 1,",
        ),
        (2, 0, "", "tp 2 needs 2 devices, this host has 1 (CPU): set sgl_tp: 1,"),
        (
            8,
            4,
            "NVIDIA H200",
            "tp 8 needs 8 devices, this host has 4 (NVIDIA H200): set sgl_tp: 4 or less,",
        ),
        (0, 1, "CPU", "tp 0 is not a number of devices: set sgl_tp to 1 or more"),
        (-1, 1, "CPU", "tp -1 is not a number of devices"),
    ],
)
def test_tp_and_devices(path: Path, tp: int, count: int, name: str, words: str) -> None:
    assert refused(path, tp=tp, device_count=count, device_name=name).startswith(words)


def test_tp_is_checked_before_the_folder(models: Path) -> None:
    assert refused(models / "gone", tp=2).startswith("tp 2 needs 2 devices")


def test_tp_must_divide_the_heads(path: Path) -> None:
    edit(path / "config.json", lambda config: config.update(num_attention_heads=6))
    text = refused(path, tp=4, device_count=8)
    assert (
        text == "tp 4 does not divide the 6 attention heads (num_attention_heads) of"
        f" {path}/config.json: set sgl_tp: 3"
    )
    assert inspect_model(str(path), tp=6, device_count=8)["shards"] == 2


def test_heads_of_the_language_part_and_of_older_names(path: Path) -> None:
    def nested(config: dict[str, Any]) -> None:
        del config["num_attention_heads"]
        config["vision_config"] = {"num_attention_heads": 7}
        config["thinker_config"] = {"text_config": {"num_attention_heads": 4, "num_experts": 8}}

    edit(path / "config.json", nested)
    assert inspect_model(str(path), tp=4, device_count=4)["moe"] is True
    assert "does not divide the 4 attention heads" in refused(path, tp=3, device_count=4)
    edit(path / "config.json", lambda config: config.pop("thinker_config") and None)
    assert inspect_model(str(path), tp=3, device_count=3)["architecture"] == "Qwen3ForCausalLM"


@pytest.mark.parametrize("heads", ["4", 0, -4, 4.0, True, [4], {}])
def test_heads_of_a_wrong_type(path: Path, heads: object) -> None:
    edit(path / "config.json", lambda config: config.update(num_attention_heads=heads))
    assert f"has num_attention_heads {json.dumps(heads)}, not a positive number" in refused(path)


@pytest.mark.parametrize(
    ("extra", "moe"),
    [
        ({"num_experts": 512}, True),
        ({"n_routed_experts": 256}, True),
        ({"num_local_experts": 8}, True),
        ({"moe_num_experts": [64, 64]}, True),
        ({"text_config": {"num_local_experts": 16}}, True),
        ({"num_experts": 0}, False),
        ({"num_experts": 1}, False),
        ({"num_experts": None, "n_routed_experts": "8"}, False),
        ({"num_experts": True}, False),
        ({"vision_config": {"num_experts": 8}}, False),
    ],
)
def test_mixture_of_experts(path: Path, extra: dict[str, Any], moe: bool) -> None:
    edit(path / "config.json", lambda config: config.update(extra))
    assert inspect_model(str(path))["moe"] is moe


def test_a_model_must_be_below_the_mounted_root(path: Path, models: Path, tmp_path: Path) -> None:
    assert inspect_model(str(path), root=str(models))["slug"] == "tiny"
    assert inspect_model(str(path), root="/")["slug"] == "tiny"
    other = tmp_path / "models-2"
    other.mkdir()
    assert f"{path} is not below {other}: move or copy the model" in refused(path, root=str(other))
    assert "is not below" in refused(tmp_path / "models" / ".." / "x", root=str(models))


def test_links_that_dangle_in_the_container_are_refused(
    path: Path, models: Path, tmp_path: Path
) -> None:
    """The container sees the root at another place, so an absolute link is dead there though it
    works here.
    """
    link = models / "org" / "link"
    for target in (str(path), str(tmp_path / "elsewhere"), "../../elsewhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        shutil.copytree(path, tmp_path / "elsewhere")
        assert inspect_model(str(link))["slug"] == "link", "it works on the host"
        assert f"the container cannot see the model: {link} " in refused(link, root=str(models))
    link.unlink()
    link.symlink_to("../org/./tiny")
    assert inspect_model(str(link), root=str(models))["slug"] == "link"


def test_shards_that_are_links_are_followed_as_the_container_would(
    path: Path, models: Path, tmp_path: Path
) -> None:
    """The Hugging Face cache keeps files in blobs/ and relative links to them."""
    shard = path / tiny_model.SHARDS[0]
    blobs = models / "blobs"
    blobs.mkdir()
    shard.rename(blobs / "abc")
    shard.symlink_to("../../blobs/abc")
    assert inspect_model(str(path), root=str(models))["shards"] == 2
    shard.unlink()
    shard.symlink_to(blobs / "abc")
    text = refused(path, root=str(models))
    assert (
        f"the container cannot see {shard}: it is reached by the absolute symbolic link {shard} ->"
        f" {blobs}/abc" in text
    )


def test_links_in_a_circle(models: Path) -> None:
    (models / "a").symlink_to("b")
    (models / "b").symlink_to("a")
    assert "in a circle" in refused(models / "a", root=str(models))
    assert "cannot be read" in refused(models / "a")


def test_who_runs_the_server_must_be_able_to_read(path: Path, models: Path) -> None:
    other = os.geteuid() + 4242
    assert inspect_model(str(path), root=str(models), uid=other, gid=other)["slug"] == "tiny"
    shard = path / tiny_model.SHARDS[1]
    shard.chmod(0o640)
    text = refused(path, root=str(models), uid=other, gid=other)
    assert (
        text
        == f"{shard} cannot be read by uid {other}, as which the server runs: run `chmod -R a+rX"
        f" {path}`"
    )
    assert (
        inspect_model(str(path), root=str(models), uid=other, gid=shard.stat().st_gid)["slug"]
        == "tiny"
    )
    assert (
        inspect_model(str(path), root=str(models), uid=shard.stat().st_uid, gid=other)["slug"]
        == "tiny"
    )
    shard.chmod(0o644)
    path.parent.chmod(0o700)
    assert f"run `chmod a+rx {path.parent}`" in refused(
        path, root=str(models), uid=other, gid=other
    )
    path.parent.chmod(0o711)
    assert inspect_model(str(path), root=str(models), uid=other, gid=other)["slug"] == "tiny"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everywhere")
def test_what_the_task_itself_cannot_read(path: Path) -> None:
    for file in (path / "config.json", path / tiny_model.SHARDS[0], path):
        file.chmod(0)
        text = refused(path)
        assert (
            f"{file} cannot be read by uid {os.geteuid()} (Permission denied): run `chmod" in text
        )
        file.chmod(0o775)


@pytest.mark.parametrize("name", ["a\nb.safetensors", "\x1b[31m.safetensors", "x" * 5000])
def test_a_strange_shard_is_named_in_one_line_of_a_bearable_length(path: Path, name: str) -> None:
    edit(path / tiny_model.INDEX, lambda index: index["weight_map"].update({"strange": name}))
    assert refused(path).isprintable() and len(refused(path)) < 1000


def test_heads_beyond_counting_are_not_written_out(path: Path) -> None:
    edit(path / "config.json", lambda config: config.update(num_attention_heads=10**4000 + 1))
    assert len(refused(path, tp=3, device_count=3)) < 1000


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = [
    "architectures",
    "num_attention_heads",
    "num_experts",
    "text_config",
    "thinker_config",
    "moe_num_experts",
]


@settings(max_examples=60)
@given(
    config=st.dictionaries(st.sampled_from(KEYS), json_values) | json_values,
    weight_map=st.dictionaries(st.text(max_size=5), json_values, max_size=3) | json_values,
)
def test_any_json_gives_a_description_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, config: object, weight_map: object
) -> None:
    folder = tmp_path_factory.mktemp("model")
    if isinstance(config, dict):
        config.setdefault("architectures", ["X"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / tiny_model.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    try:
        model = inspect_model(str(folder), root=str(folder.parent))
    except ModelError as exc:
        assert ": " in str(exc)
    else:
        assert model.keys() == inspect_keys()
