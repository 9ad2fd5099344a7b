# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tiny random Qwen3 model, made on the spot with the standard library: no download, no
transformers.

It is a whole model folder (config, byte-level tokenizer, two safetensors shards with their index)
that transformers and SGLang load like any other, so a host without a model or a network can run the
real server. The same seed gives the same bytes on every machine and with every Python: the weights
come from SHAKE-256, not from :mod:`random`, whose distributions may change between releases.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shlex
import stat
import struct
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.module_utils import _safe_tree as safe_tree
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract.texts import (
    read_json_text,
)
from ansible_collections.slice_bench.sglang.plugins.module_utils._host_tree import (
    HostTreeError,
    clean_path,
    missing_directories,
    owner_text,
    printable,
)

RECORD = ".sgl_tiny_model.json"
# Raised whenever the bytes that a seed gives change, so that a folder of an older release is made
# again.
GENERATOR = 1
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 64, 2, 4, 2, 16, 128
# Each byte and each special token, and no row more: a random model would emit ids that the
# tokenizer does not know.
VOCAB = 256 + len(SPECIALS)
_STD = 0.02
_TEMP = ".tmp"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


class TinyModelError(Exception):
    """The folder cannot be made; the text names the path and the remedy."""


@dataclass
class Plan:
    """What :func:`make` will do: make the folder, rewrite the files that differ, or nothing."""

    path: str
    seed: int
    uid: int | None
    gid: int | None
    # Another task makes the folder above it.
    root_is_planned: bool = False
    create: bool = False
    write: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    reason: str = "present"
    size_bytes: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.write)

    def diff(self) -> dict[str, dict[str, str]]:
        """Before and after of each path that changes, for ``--diff``."""
        before: dict[str, str] = {}
        after: dict[str, str] = {}
        for path in self.parents:
            before[printable(path)], after[printable(path)] = "absent", "directory"
        for name in self.write:
            path = printable(os.path.join(self.path, name))
            before[path] = "absent" if self.create else "absent or different"
            after[path] = f"generator {GENERATOR}, seed {self.seed}"
        return {"before": before, "after": after}

    def result(self) -> dict[str, Any]:
        return {
            "changed": self.changed,
            "model_path": printable(self.path),
            "seed": self.seed,
            "reason": self.reason,
            "written": sorted(self.write),
            "size_bytes": self.size_bytes,
        }


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def config() -> dict[str, Any]:
    """config.json. ``torch_dtype`` is the name that transformers before 4.56 reads; later ones read
    it too.
    """
    eos = 256 + SPECIALS.index(IM_END)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 256 + SPECIALS.index(END_OF_TEXT),
        "eos_token_id": eos,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": _STD,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "max_window_layers": LAYERS,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB,
    }


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level BPE vocabulary (the GPT-2 table)."""
    printable_bytes = {
        *range(ord("!"), ord("~") + 1),
        *range(0xA1, 0xAC + 1),
        *range(0xAE, 0xFF + 1),
    }
    table, extra = [], 0
    for byte in range(256):
        if byte in printable_bytes:
            table.append(chr(byte))
        else:
            table.append(chr(256 + extra))
            extra += 1
    return table


def _tokenizer() -> dict[str, Any]:
    def special(number: int, content: str) -> dict[str, Any]:
        flags = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        return {"id": number, "content": content, **flags}

    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special(256 + number, content) for number, content in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    decoder = {
        str(256 + number): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, content in enumerate(SPECIALS)
    }
    return {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 4096,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _generation_config() -> dict[str, Any]:
    number = {content: 256 + place for place, content in enumerate(SPECIALS)}
    return {
        "bos_token_id": number[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [number[IM_END], number[END_OF_TEXT]],
        "pad_token_id": number[END_OF_TEXT],
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }


def tensors() -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each weight, in the order of the layers."""
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (VOCAB, HIDDEN))]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found += [
            (prefix + "input_layernorm.weight", (HIDDEN,)),
            (prefix + "self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)),
            (prefix + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)),
            (prefix + "self_attn.q_norm.weight", (HEAD_DIM,)),
            (prefix + "self_attn.k_norm.weight", (HEAD_DIM,)),
            (prefix + "post_attention_layernorm.weight", (HIDDEN,)),
            (prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)),
            (prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)),
            (prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)),
        ]
    return [*found, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (VOCAB, HIDDEN))]


def bfloat16(value: float) -> bytes:
    """The two little-endian bytes of the nearest bfloat16 (ties to even); finite values only."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


# The sum of four bytes is near enough to normal: mean 510, variance 4 * (256**2 - 1) / 12.
_NORMAL = [
    bfloat16(_STD * (total - 510) / (4 * (256**2 - 1) / 12) ** 0.5) for total in range(4 * 255 + 1)
]


def weights(name: str, shape: tuple[int, ...], seed: int) -> bytes:
    """The tensor's raw bytes: ones for a norm, else values of mean 0 and standard deviation
    0.02.
    """
    count = 1
    for size in shape:
        count *= size
    if name.endswith("norm.weight"):
        return bfloat16(1.0) * count
    noise = hashlib.shake_256(f"{seed}\0{name}".encode()).digest(4 * count)
    return b"".join(
        map(
            _NORMAL.__getitem__,
            map(sum, zip(noise[0::4], noise[1::4], noise[2::4], noise[3::4])),
        )
    )


def safetensors(parts: list[tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file: 8 bytes little-endian header length, JSON header padded to 8 bytes, raw
    tensors without gaps.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, raw in parts:
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(part[2] for part in parts)])


@functools.lru_cache(maxsize=2)
def files(seed: int) -> dict[str, bytes]:
    """Each file of the folder but the record. The second shard starts at layer 1, so that no shard
    can be left out.
    """
    made = [(name, shape, weights(name, shape, seed)) for name, shape in tensors()]
    cut = next(place for place, part in enumerate(made) if part[0].startswith("model.layers.1."))
    halves = (made[:cut], made[cut:])
    index = {
        "metadata": {"total_size": sum(len(part[2]) for part in made)},
        "weight_map": {part[0]: shard for shard, half in zip(SHARDS, halves) for part in half},
    }
    return {
        "config.json": _json_bytes(config()),
        "generation_config.json": _json_bytes(_generation_config()),
        "tokenizer.json": _json_bytes(_tokenizer()),
        "tokenizer_config.json": _json_bytes(_tokenizer_config()),
        INDEX: _json_bytes(index),
        **{shard: safetensors(half) for shard, half in zip(SHARDS, halves)},
    }


def file_names() -> list[str]:
    return [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        INDEX,
        *SHARDS,
    ]


def _record(seed: int, made: dict[str, bytes]) -> dict[str, Any]:
    return {
        "made_by": "slice_bench.sglang.sgl_tiny_model",
        "generator": GENERATOR,
        "seed": seed,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in made.items()
        },
    }


def _differing(path: str, seed: int) -> list[str]:
    """The files that are missing or not what the record says; all of them when the record is of
    another seed or release.

    Raises TinyModelError when there is no usable record: then the folder is not ours to write in.
    """
    shown = printable(path)
    foreign = (
        f"{shown} was not made by this module (no valid {RECORD} in it) and is not overwritten"
    )
    remedy = "set the path to a folder that does not exist, or remove this one"
    try:
        record = read_json_text(safe_tree.read_file(os.path.join(path, RECORD), 1 << 20, path))
    except (FileNotFoundError, ValueError):
        raise TinyModelError(f"{foreign}: {remedy}") from None
    except OSError as exc:
        raise TinyModelError(
            f"{shown}/{RECORD} cannot be read ({exc.strerror}): make it readable, or run with"
            " become: true"
        ) from exc
    if not isinstance(record, dict) or record.get("made_by") != "slice_bench.sglang.sgl_tiny_model":
        raise TinyModelError(f"{foreign}: {remedy}")
    listed = record.get("files")
    if (
        record.get("generator") != GENERATOR
        or record.get("seed") != seed
        or not isinstance(listed, dict)
    ):
        return [*file_names(), RECORD]
    if set(listed) != set(file_names()):
        return [*file_names(), RECORD]
    different = []
    for name in file_names():
        wanted = listed[name] if isinstance(listed[name], dict) else {}
        try:
            with open(safe_tree.open_file(os.path.join(path, name), path), "rb") as handle:
                same = os.fstat(handle.fileno()).st_size == wanted.get("size") and _sha256(
                    handle.read()
                ) == wanted.get("sha256")
        except (OSError, ValueError):
            same = False
        if not same:
            different.append(name)
    return different


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def inspect(
    path: str,
    seed: int = 0,
    uid: int | None = None,
    gid: int | None = None,
    models_root: str | None = None,
) -> Plan:
    """Read the host and decide. Raises TinyModelError, with nothing changed, for what must be
    refused. Where ``models_root`` is missing, another task makes it before, so that its owner can
    write there.
    """
    path = clean_path(path)
    _check_request(path, uid, gid)
    plan = Plan(path, seed, uid, gid)
    plan.root_is_planned = models_root is not None and not os.path.lexists(models_root)
    with _as_owner(plan):
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            _plan_folder(plan)
        except OSError as exc:
            raise TinyModelError(
                f"{printable(path)} cannot be read ({exc.strerror}): run the task with become: true"
            ) from exc
        else:
            _plan_files(plan, info)
        plan.size_bytes = sum(map(len, files(seed).values())) if plan.write else _size(path)
    return plan


def _as_owner(plan: Plan) -> contextlib.AbstractContextManager[None]:
    """Everything is read and made with the rights of the model's owner."""
    return safe_tree.acting_as(
        os.geteuid() if plan.uid is None else plan.uid,
        os.getegid() if plan.gid is None else plan.gid,
    )


def _check_request(path: str, uid: int | None, gid: int | None) -> None:
    if not os.path.isabs(path) or path == "/" or "\0" in path:
        raise TinyModelError(
            f"path '{printable(path)}' is not an absolute path of a folder: set it to one below the"
            " models root"
        )
    for name, number in (("owner_uid", uid), ("owner_gid", gid)):
        if number is not None and not 0 <= number < 2**32 - 1:
            raise TinyModelError(
                f"{name} {number} is not a user or group id: set it to the number that `id` prints"
                " for the service user"
            )
    euid = os.geteuid()
    if uid is not None and euid not in (0, uid):
        raise TinyModelError(
            f"the task runs as {owner_text(euid, os.getegid())}, which cannot make files for uid"
            f" {uid}: run it with become: true, or set sgl_user to the user who connects"
        )


def _plan_folder(plan: Plan) -> None:
    """Plan to make the folder with all its files."""
    plan.create = True
    plan.reason = "absent"
    plan.write = [*file_names(), RECORD]
    try:
        missing, base = missing_directories("path", plan.path)
    except HostTreeError as exc:
        raise TinyModelError(str(exc)) from exc
    plan.parents = missing[:-1]
    may_write = os.access(
        base, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids
    )
    if not may_write and not plan.root_is_planned:
        raise TinyModelError(
            f"{printable(plan.path)} cannot be made: uid {os.geteuid()} may not write in"
            f" {printable(base)}: make that folder writable for it, or run the task with become:"
            " true"
        )


def _plan_files(plan: Plan, info: os.stat_result) -> None:
    """Plan to write the files of an existing folder that differ."""
    if not stat.S_ISDIR(info.st_mode):
        raise TinyModelError(
            f"{printable(plan.path)} exists and is not a directory: set the path to a folder that"
            " does not exist"
        )
    plan.write = _differing(plan.path, plan.seed)
    if plan.write:
        plan.reason = "another seed or release" if RECORD in plan.write else "damaged"


def _size(path: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for name in file_names())


def make(plan: Plan) -> None:
    """Do what the plan says. A new folder appears whole or not at all; in one of ours the record is
    written last. What a killed run left has the names that this one writes.

    Raises TinyModelError.
    """
    if not plan.write:
        return
    parent, name = os.path.split(plan.path)
    with _as_owner(plan):
        doing = plan.path
        try:
            for doing in plan.parents:
                with safe_tree.folder(os.path.dirname(doing)) as holder:
                    os.close(_folder(holder, os.path.basename(doing), plan))
            doing = plan.path
            with safe_tree.folder(parent) as parent_fd:
                if plan.create:
                    _make_whole(plan, parent_fd, name)
                else:
                    _fill(os.open(name, _FOLDER, dir_fd=parent_fd), plan)
        except OSError as exc:
            raise _os_error(doing, exc) from exc


def _make_whole(plan: Plan, parent_fd: int, name: str) -> None:
    """Make the folder beside and rename it. A second run at the same time writes the same bytes
    there, so that it does not matter whose rename comes first.
    """
    temporary = f".sgl-tiny-{name}"
    try:
        _fill(_folder(parent_fd, temporary, plan), plan)
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        os.fsync(parent_fd)
    except OSError:
        with contextlib.suppress(OSError):
            safe_tree.remove_tree(parent_fd, temporary)
        if not safe_tree.exists(parent_fd, name) or _differing(plan.path, plan.seed):
            raise


def _folder(parent_fd: int, name: str, plan: Plan) -> int:
    """The descriptor of a folder that is made where it is missing; the group writes it where it
    writes the one that holds it. Raises OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent_fd)
    descriptor = os.open(name, _FOLDER, dir_fd=parent_fd)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(errno.EPERM, f"{name} belongs to another user")
    _finish(descriptor, parent_fd, plan, 0o755)
    return descriptor


def _finish(descriptor: int, holder: int, plan: Plan, mode: int) -> None:
    """Group and mode of what was made in the folder `holder`."""
    if plan.gid is not None and os.fstat(descriptor).st_gid != plan.gid:
        os.fchown(descriptor, -1, plan.gid)
    os.fchmod(descriptor, mode | os.fstat(holder).st_mode & 0o020)


def _fill(directory_fd: int, plan: Plan) -> None:
    """Write the files of the plan into an open folder, and close it. Each appears whole."""
    made = files(plan.seed)
    contents = {**made, RECORD: _json_bytes(_record(plan.seed, made))}
    try:
        for name in plan.write:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + _TEMP, dir_fd=directory_fd)
            fd = os.open(name + _TEMP, _NEW_FILE, 0o600, dir_fd=directory_fd)
            with os.fdopen(fd, "wb") as handle:
                handle.write(contents[name])
                handle.flush()
                _finish(fd, directory_fd, plan, 0o644)
                os.fsync(fd)
            os.rename(name + _TEMP, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _os_error(path: str, exc: OSError) -> TinyModelError:
    shown = printable(path)
    if exc.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            "run the task with become: true, or make"
            f" {shlex.quote(printable(os.path.dirname(path)))} writable for its user"
        )
    elif exc.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free space, inodes or quota there"
    elif exc.errno == errno.EROFS:
        remedy = "the filesystem is mounted read-only: remount it, or set the path elsewhere"
    else:
        remedy = (
            "something else changed it at the same time, or the filesystem is at fault: run again"
        )
    return TinyModelError(f"{shown} cannot be made: {exc.strerror or exc}: {remedy}")
