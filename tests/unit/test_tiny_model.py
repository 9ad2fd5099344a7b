"""The tiny model: its files are what the formats ask for, the same each time, and there whole or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _tiny_model as tiny_model
from ansible_collections.slice_bench.sglang.plugins.module_utils._tiny_model import (
    TinyModelError,
    inspect,
    make,
)
from hypothesis import given
from hypothesis import strategies as st

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of another owner"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "org" / "tiny"


def converge(
    path: Path, seed: int = 0, uid: int | None = None, gid: int | None = None
) -> tiny_model.Plan:
    plan = inspect(str(path), seed, uid, gid)
    if plan.changed:
        make(plan)
    return plan


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def read_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_folder_has_every_file_and_nothing_else(path: Path) -> None:
    plan = converge(path)
    assert sorted(contents(path)) == sorted([*tiny_model.file_names(), tiny_model.RECORD])
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]
    assert plan.size_bytes == sum(
        len(data) for name, data in contents(path).items() if name != tiny_model.RECORD
    )
    for file in path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o755


def test_second_run_changes_nothing(path: Path) -> None:
    converge(path)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    plan = converge(path)
    assert not plan.changed and plan.diff() == {"before": {}, "after": {}}
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_check_result_equals_the_real_one_and_makes_nothing(path: Path, tmp_path: Path) -> None:
    planned = inspect(str(path))
    assert list(tmp_path.iterdir()) == []
    assert planned.result() == converge(path).result()
    assert planned.diff()["before"][str(path / "config.json")] == "absent"


def test_same_seed_same_bytes_other_seed_other_weights() -> None:
    first, other = tiny_model.files(7), tiny_model.files(8)
    tiny_model.files.cache_clear()
    again = tiny_model.files(7)
    assert again is not first
    assert first == again
    assert {name for name in first if first[name] != other[name]} == set(tiny_model.SHARDS)


def test_bytes_are_those_of_every_release_and_machine() -> None:
    """Raise GENERATOR when this changes, so that existing folders are made again."""
    digest = hashlib.sha256(
        b"".join(data for _, data in sorted(tiny_model.files(0).items()))
    ).hexdigest()
    assert (tiny_model.GENERATOR, digest) == (
        1,
        "d521530622518668ea20a6f4cd54802d2978cfe1288d18a2c4108c850e85ec77",
    )


def test_shards_are_valid_safetensors_and_the_index_covers_them() -> None:
    files = tiny_model.files(0)
    index = json.loads(files[tiny_model.INDEX])
    seen, total = {}, 0
    for shard in tiny_model.SHARDS:
        header, data = read_safetensors(files[shard])
        assert header.pop("__metadata__") == {"format": "pt"}
        assert struct.unpack("<Q", files[shard][:8])[0] % 8 == 0
        end = 0
        for name, tensor in header.items():
            start, stop = tensor["data_offsets"]
            assert start == end, "no gap between tensors"
            assert stop - start == 2 * math.prod(tensor["shape"]) and tensor["dtype"] == "BF16"
            end = stop
            seen[name] = tuple(tensor["shape"])
            assert index["weight_map"][name] == shard
            if name.endswith("norm.weight"):
                assert data[start:stop] == b"\x80\x3f" * (len(data[start:stop]) // 2)
        assert end == len(data)
        total += end
    assert seen == dict(tiny_model.tensors())
    assert set(index["weight_map"]) == set(seen) and index["metadata"]["total_size"] == total
    assert set(index["weight_map"].values()) == set(tiny_model.SHARDS)


def test_shapes_follow_the_config() -> None:
    config = tiny_model.config()
    shapes = dict(tiny_model.tensors())
    assert (
        shapes["model.embed_tokens.weight"]
        == shapes["lm_head.weight"]
        == (config["vocab_size"], config["hidden_size"])
    )
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        assert shapes[prefix + "self_attn.q_proj.weight"] == (
            config["num_attention_heads"] * config["head_dim"],
            config["hidden_size"],
        )
        assert shapes[prefix + "self_attn.k_proj.weight"] == (
            config["num_key_value_heads"] * config["head_dim"],
            config["hidden_size"],
        )
        assert shapes[prefix + "self_attn.q_norm.weight"] == (config["head_dim"],)
        assert shapes[prefix + "mlp.down_proj.weight"] == (
            config["hidden_size"],
            config["intermediate_size"],
        )
    assert f"model.layers.{config['num_hidden_layers']}.input_layernorm.weight" not in shapes


def test_weights_have_mean_zero_and_standard_deviation_two_hundredths() -> None:
    raw = tiny_model.weights("model.embed_tokens.weight", (259, 64), 0)
    values = [
        struct.unpack("<f", b"\0\0" + raw[place : place + 2])[0] for place in range(0, len(raw), 2)
    ]
    mean = sum(values) / len(values)
    assert abs(mean) < 0.001
    assert math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) == pytest.approx(
        0.02, rel=0.05
    )


@given(st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32))
def test_bfloat16_rounds_to_the_nearest(value: float) -> None:
    rounded = struct.unpack("<f", b"\0\0" + tiny_model.bfloat16(value))[0]
    # 8 bits of significand; below the smallest normal number the step is constant
    assert abs(rounded - value) <= max(abs(value) * 2**-8, 2.0**-134)


def test_tokenizer_maps_each_byte_and_the_special_tokens() -> None:
    files = tiny_model.files(0)
    tokenizer, settings = (
        json.loads(files["tokenizer.json"]),
        json.loads(files["tokenizer_config.json"]),
    )
    assert (
        sorted(tokenizer["model"]["vocab"].values()) == list(range(256))
        and tokenizer["model"]["merges"] == []
    )
    # Of the byte-level table: printable ASCII stands for itself, a space is U+0120, a newline
    # U+010A.
    assert {tokenizer["model"]["vocab"][character] for character in "A~\u0120\u010a"} == {
        65,
        126,
        32,
        10,
    }
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert added == {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    assert {
        int(number): token["content"] for number, token in settings["added_tokens_decoder"].items()
    } == {number: content for content, number in added.items()}
    config, generation = (
        json.loads(files["config.json"]),
        json.loads(files["generation_config.json"]),
    )
    assert config["eos_token_id"] == added[settings["eos_token"]] == generation["eos_token_id"][0]
    assert config["vocab_size"] == 256 + len(added)


@pytest.mark.parametrize("name", [*tiny_model.file_names()])
def test_a_damaged_or_missing_file_is_repaired_and_extra_files_stay(path: Path, name: str) -> None:
    converge(path)
    whole = contents(path)
    (path / "notes.txt").write_text("mine")
    data = whole[name]
    for damage in (data[:-1], bytes([data[0] ^ 1]) + data[1:], None):
        (path / name).unlink()
        if damage is not None:
            (path / name).write_bytes(damage)
        plan = converge(path)
        assert plan.write == [name] and plan.reason == "damaged"
        assert contents(path) == whole | {"notes.txt": b"mine"}


def test_another_seed_or_generator_rewrites(path: Path) -> None:
    converge(path)
    assert converge(path, seed=1).reason == "another seed or release"
    assert (path / tiny_model.SHARDS[0]).read_bytes() == tiny_model.files(1)[tiny_model.SHARDS[0]]
    assert not converge(path, seed=1).changed
    record = json.loads((path / tiny_model.RECORD).read_bytes())
    (path / tiny_model.RECORD).write_text(json.dumps(record | {"generator": 0}))
    assert converge(path, seed=1).changed and not converge(path, seed=1).changed


@pytest.mark.parametrize(
    "record",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"made_by": "another"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_folder_that_is_not_ours_is_refused_untouched(path: Path, record: bytes | None) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if record is not None:
        (path / tiny_model.RECORD).write_bytes(record)
    before = contents(path)
    with pytest.raises(
        TinyModelError,
        match=rf"{path} was not made by this module .* not overwritten: set the path",
    ):
        converge(path)
    assert contents(path) == before


@pytest.mark.parametrize("listed", [None, [], {}, {"config.json": 3}, "x"])
def test_a_record_with_other_types_is_made_anew(path: Path, listed: object) -> None:
    converge(path)
    record = json.loads((path / tiny_model.RECORD).read_bytes())
    (path / tiny_model.RECORD).write_text(json.dumps(record | {"files": listed}))
    assert converge(path).changed and not converge(path).changed


def test_files_and_links_in_the_way_are_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(TinyModelError, match="exists and is not a directory"):
        converge(path)
    path.unlink()
    path.symlink_to(tmp_path)
    with pytest.raises(TinyModelError, match="exists and is not a directory"):
        converge(path)
    (tmp_path / "file").touch()
    with pytest.raises(TinyModelError, match="file is a file"):
        converge(tmp_path / "file" / "tiny")


@pytest.mark.parametrize("bad", ["", "relative", "/"])
def test_unusable_paths(bad: str) -> None:
    with pytest.raises(TinyModelError, match="not an absolute path of a folder"):
        inspect(bad)


def test_a_user_cannot_make_it_for_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(TinyModelError, match="become: true"):
        inspect(str(path), uid=4343)


@pytest.fixture
def models() -> Iterator[Path]:
    """The service user's, below folders that everybody enters: pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="sgl-tiny-"))
    folder.chmod(0o755)
    (folder / "models").mkdir()
    os.chown(folder / "models", 12345, 23456)
    yield folder / "models"
    shutil.rmtree(folder)


@needs_root
def test_new_parents_and_files_get_the_owner(models: Path) -> None:
    path = models / "org" / "tiny"
    converge(path, uid=12345, gid=23456)
    for made in (path.parent, path, *path.iterdir()):
        assert (made.stat().st_uid, made.stat().st_gid) == (12345, 23456), made
    (path / "config.json").unlink()
    converge(path, uid=12345, gid=23456)
    assert (path / "config.json").stat().st_uid == 12345
    assert os.geteuid() == 0


@needs_root
def test_root_makes_it_only_where_its_owner_could(models: Path) -> None:
    os.chown(models, 0, 0)
    with pytest.raises(TinyModelError, match=f"uid 12345 may not write in {models}: make that"):
        inspect(str(models / "tiny"), uid=12345, gid=23456)
    assert os.geteuid() == 0 and list(models.iterdir()) == []
    # A check of a bare host: the tree that is to hold it is not made yet.
    root = models / "tree" / "models"
    plan = inspect(str(root / "tiny"), uid=12345, gid=23456, models_root=str(root))
    assert plan.changed and list(models.iterdir()) == []


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours runs."""


STEPS = [("open", 3), ("fchmod", 4), ("fsync", 1), ("fsync", 5), ("rename", 2), ("rename", 8)]


@pytest.mark.parametrize(
    ("state", "call", "after"),
    [("absent", "mkdir", 1), ("absent", "mkdir", 2), ("absent", "rename", 1)]
    + [(state, *step) for state in ("absent", "other seed") for step in STEPS],
)
def test_a_killed_run_leaves_nothing_half(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, call: str, after: int
) -> None:
    if state == "other seed":
        converge(path, seed=1)
    else:
        (tmp_path / "models").mkdir()
    real = getattr(os, call)
    count = 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal count
        # Of the openings those that make a file.
        count += call != "open" or bool(int(str(args[1])) & os.O_CREAT)
        if count == after:
            raise Killed
        return real(*args, **kwargs)

    plan = inspect(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, dying)
        # A killed process removes nothing.
        patch.setattr(tiny_model.safe_tree, "remove_tree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            make(plan)
    if state == "absent":
        assert not path.exists()
    converge(path)
    assert contents(path) == tiny_model.files(0) | {
        tiny_model.RECORD: (path / tiny_model.RECORD).read_bytes()
    }
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]
    assert [entry.name for entry in path.parent.parent.iterdir()] == ["org"]
    assert not inspect(str(path)).changed


@pytest.mark.parametrize("planted", ["link", "another user's"])
def test_what_is_planted_in_the_new_folders_place_is_not_written_to(
    path: Path, tmp_path: Path, planted: str
) -> None:
    path.parent.mkdir(parents=True)
    secret, place = tmp_path / "secret", path.with_name(".sgl-tiny-tiny")
    secret.mkdir()
    if planted == "link":
        place.symlink_to(secret)
    elif os.geteuid() == 0:
        place.mkdir()
        os.chown(place, 12345, 23456)
    else:
        pytest.skip("only root can make a folder of another owner")
    with pytest.raises(TinyModelError, match="cannot be made"):
        converge(path)
    assert list(secret.iterdir()) == [] and not path.exists()


def test_a_folder_that_appears_meanwhile_is_not_overwritten(path: Path) -> None:
    path.parent.mkdir(parents=True)
    plan = inspect(str(path))
    path.mkdir()
    (path / "precious").touch()
    with pytest.raises(TinyModelError, match="was not made by this module"):
        make(plan)
    assert [entry.name for entry in path.iterdir()] == ["precious"]
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]


def test_two_runs_at_once_end_in_the_same_folder(path: Path) -> None:
    path.parent.mkdir(parents=True)
    first, second = inspect(str(path)), inspect(str(path))
    make(first)
    make(second)
    assert not inspect(str(path)).changed and [entry.name for entry in path.parent.iterdir()] == [
        "tiny"
    ]
