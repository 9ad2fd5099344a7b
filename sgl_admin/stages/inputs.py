"""What the work of a stage depends on: each declares it as `depends_on`, and its signature follows.

What is not known splits rather than shares. Of a model's config, of the server's arguments and of
its environment, a declaration names what is known not to matter; everything else is an input.
The tuning of fused experts is the exception: its inputs are few and known (stages/moe_tune.py), so
nothing but them costs hours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_admin.base import files, versions
from sgl_admin.contract.records import sha256
from sgl_admin.contract.texts import read_json_text
from sgl_admin.records import served
from sgl_admin.sglang import ENGINE

if TYPE_CHECKING:
    from sgl_admin.stages.base import Context

# Changes with what the stages declare or how it is written down; hosts find each other's
# work by it, and work that was recorded under another one is looked at by stages/earlier.py.
VERSION = 3

# --- keys of a model's config that change nothing that is compiled, at any depth but within its
# quantisation. tests/unit/test_inputs.py holds them to the configs of transformers and SGLang.

# Names, and who wrote the file.
_NAMES = """
    _name_or_path name_or_path _commit_hash transformers_version tokenizer_class finetuning_task
    task_specific_params
"""
# Training alone reads them: dropout, initial weights, losses, gradients, the cache of transformers'
# own generate().
_TRAINING = """
    attention_dropout activation_dropout hidden_dropout hidden_dropout_prob dropout
    attention_probs_dropout_prob attn_pdrop resid_pdrop embd_pdrop emb_pdrop classifier_dropout
    embedding_dropout embed_dropout output_dropout residual_dropout projector_dropout
    summary_first_dropout initializer_range initializer_factor weight_init
    router_aux_loss_coef aux_loss_alpha seq_aux moe_loss_weight output_router_logits
    router_jitter_noise gradient_checkpointing pretraining_tp tf_legacy_loss use_cache
"""
# Defaults of generate(); `top_k` and `temperature` are not among them, as routers have such keys.
_GENERATION = """
    do_sample max_length min_length early_stopping num_beams num_beam_groups diversity_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    num_return_sequences typical_p bad_words_ids forced_bos_token_id forced_eos_token_id
    return_dict_in_generate output_scores remove_invalid_values exponential_decay_length_penalty
    begin_suppress_tokens
"""
# Numbers of tokens, and how long a context may be: values that kernels get when they are called.
# torch.compile may make constants of them.
_TOKENS_AND_LENGTHS = """
    bos_token_id eos_token_id pad_token_id sep_token_id eod_token_id decoder_start_token_id
    image_token_id image_token_index video_token_id video_token_index audio_token_id
    audio_token_index vision_start_token_id vision_end_token_id
    image_start_token_id image_end_token_id video_start_token_id video_end_token_id
    audio_start_token_id audio_end_token_id boi_token_id boi_token_index eoi_token_id
    eoi_token_index boa_token_id eoa_token_id
    max_position_embeddings n_positions
"""
ALWAYS_IGNORED = frozenset((_NAMES + _TRAINING + _GENERATION).split())
IGNORED_BY_KERNELS = ALWAYS_IGNORED | frozenset(_TOKENS_AND_LENGTHS.split())
# What says how weights are quantised is an input as a whole: bits, groups, exceptions, schemes.
_QUANTISATION = re.compile("quant|compress", re.IGNORECASE)

# --- files beside the config

# Of a model: how it is quantised (SGLang's get_config_filenames: hf_quant_config.json,
# quantize_config.json, quant_config.json, quantization_config.json, quant_model_description.json),
# Mistral's own config, and code that --trust-remote-code runs.
_MODEL_FILE = re.compile(r".*quant.*\.(json|ya?ml|toml)|params\.json|.*\.py", re.IGNORECASE)
# Of a folder that an argument names, a draft model or an adapter, all that configures it.
_OTHER_FILE = re.compile(
    r"(?!tokenizer|vocab|merges|special_tokens|added_tokens|generation_config|chat_template"
    r"|preprocessor|processor).*(?<!\.index)\.(json|ya?ml|toml|py)",
    re.IGNORECASE,
)
_LARGEST = 16 << 20

_SHARED_SOFTWARE: dict[str, Callable[[], str | None]] = {
    "cuda": versions.cuda_runtime,
    "sgl_kernel": lambda: versions.installed("sgl-kernel") or versions.installed("sglang-kernel"),
}


@dataclass(frozen=True)
class Inputs:
    """What a stage's compiled code depends on, beside the device and the engine's version. A stage
    that declares nothing shares its work only where all else is the same.
    """

    # By the name that signatures have for it.
    software: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    # What else of the context: a field of the signature, and its value.
    facts: dict[str, Callable[[Context], Any]] = field(default_factory=dict)
    # Keys of a model's config, and flags of the server, that do not matter.
    ignored_config: frozenset[str] = ALWAYS_IGNORED
    inert_arguments: frozenset[str] = frozenset()


def signature(declared: Inputs, context: Context) -> dict[str, Any]:
    """What a stage's declaration says of a context."""
    return {
        "inputs_version": VERSION,
        **{name: version() for name, version in {**_SHARED_SOFTWARE, **declared.software}.items()},
        **{name: value(context) for name, value in declared.facts.items()},
        "tp": context.request.tp,
        "model_config": _shortened(relevant(context.model.config, declared.ignored_config)),
        "model_files": dict(context.model_files),
        "arguments": ENGINE.kernel_arguments(context.keyed_arguments, declared.inert_arguments),
        "environment": environment(context),
        "named_files": _named_files(context, declared.inert_arguments),
    }


def software(declared: Inputs) -> set[str]:
    """The names that signatures have for what comes with an image."""
    return {ENGINE.name, "triton", *_SHARED_SOFTWARE, *declared.software}


def environment(context: Context) -> dict[str, str]:
    """The variables that may matter to what a server compiles, also those that it inherits."""
    return context.keyed_environment(_environment(context))


def _environment(context: Context) -> dict[str, str]:
    return ENGINE.kernel_environment(dict(context.environment), os.environ)


def relevant(config: Mapping[str, Any], ignored: frozenset[str]) -> dict[str, Any]:
    """A model's config, and the configs in it, without these keys."""
    return {
        key: relevant(value, ignored)
        if isinstance(value, dict) and not _QUANTISATION.search(key)
        else value
        for key, value in config.items()
        if key not in ignored
    }


def _shortened(config: dict[str, Any]) -> dict[str, Any]:
    """A config with digests for lists and quantisations that are too long to read in a record."""
    short: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not _QUANTISATION.search(key):
            short[key] = _shortened(value)
        else:
            text = json.dumps(value, sort_keys=True)
            short[key] = value if len(text) <= 400 else sha256(text.encode())
    return short


# --- files ---------------------------------------------------------------------------------------


def model_files(folder: Path) -> dict[str, str]:
    """The files of a model, beside its config, that change what is compiled, with digests."""
    return dict(_configuring(folder, _MODEL_FILE))


def _configuring(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if pattern.fullmatch(name) and (found := _content(folder / name)):
            yield name, found


def _content(path: Path) -> str | None:
    """The digest of a file: as JSON where it is JSON. None for what is not a file of a size that
    configures something.
    """
    try:
        content = files.read_bytes(path, _LARGEST)
    except (OSError, ValueError):
        return None
    try:
        return sha256(json.dumps(read_json_text(content), sort_keys=True).encode())
    except ValueError:
        return sha256(content)


def _named_files(context: Context, inert: frozenset[str]) -> dict[str, str]:
    """The content of what arguments and variables name: a draft model, an adapter, a file of
    arguments, of scales or of experts' places. A folder that a variable names may be a cache.
    """
    groups = ENGINE.kernel_arguments(context.arguments, inert)
    named = {path: _behind(path) for word in _values(groups) for path in served.paths_in(word)}
    for value in _environment(context).values():
        named.update((path, _content(Path(path))) for path in served.paths_in(value))
    return {path: content for path, content in sorted(named.items()) if content}


def _values(groups: list[list[str]]) -> Iterator[str]:
    return (word for group in groups for word in group[1:])


def _behind(path: str) -> str | None:
    place = Path(path)
    try:
        if not place.is_dir():
            return _content(place)
    except (OSError, ValueError):
        return None
    configuring = dict(_configuring(place, _OTHER_FILE))
    return sha256(json.dumps(configuring).encode()) if configuring else None
