# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a model's weights are quantised, by each of the places that say so.

In SGLang's order (`ModelConfig._parse_quant_hf_config`, `resolve_checkpoint_quant_spec`):
quantization_config, that of the language model's part, compression_config, hf_quant_config.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..records import is_integer
from .config import language_parts

_EXCLUDED = (
    "modules_to_not_convert",
    "ignored_layers",
    "ignore",
    "exclude_modules",
    "exclude",
)
# Routed experts in a pattern or a name of a layer; shared ones are layers of their own.
_ROUTED = re.compile(r"(?<!shared_)(?<!shared)\bexperts\b")
_MODELOPT = {"FP8": "modelopt_fp8", "MXFP8": "mxfp8"}


class UnknownQuantisation(Exception):
    """The experts' data type does not follow from the config; the text says why."""


@dataclass(frozen=True)
class Quantisation:
    """What a config says of the quantised weights; `declared` is the whole of it."""

    method: str | None
    declared: dict[str, Any]


@dataclass(frozen=True)
class ExpertWeights:
    """The experts' data type by SGLang's name, None for one of 16 bits, and the blocks that share
    a scale.
    """

    dtype: str | None
    block: tuple[int, int] | None = None


def find(config: dict[str, Any], modelopt: dict[str, Any] | None) -> Quantisation | None:
    """The model's quantisation; None where nothing says that there is one."""
    for part in language_parts(config):
        declared = part.get("quantization_config")
        if isinstance(declared, dict):
            return Quantisation(_method(declared), declared)
    declared = config.get("compression_config")
    if isinstance(declared, dict):
        return Quantisation(_method(declared), declared)
    if modelopt is not None:
        inner = modelopt.get("quantization")
        declared = inner if isinstance(inner, dict) else modelopt
        return Quantisation(_method({**declared, "quant_method": "modelopt"}), declared)
    return None


def _method(declared: dict[str, Any]) -> str | None:
    method, algorithm = declared.get("quant_method"), declared.get("quant_algo")
    if method in (None, "modelopt") and isinstance(algorithm, str):
        return _MODELOPT.get(algorithm, f"modelopt_{algorithm.lower()}")
    return method if isinstance(method, str) else None


def of_experts(quantisation: Quantisation | None, config: dict[str, Any]) -> ExpertWeights:
    """The data type that SGLang's Triton kernel gets the experts in. Raises UnknownQuantisation."""
    for part in language_parts(config):
        # DeepSeek-V4 keeps its experts in another type than the rest.
        other = part.get("expert_dtype")
        if isinstance(other, str) and not other.startswith(("fp8", "bf16", "bfloat16")):
            raise UnknownQuantisation(
                f"experts of the data type {other} have no tuning here: only fp8 and unquantised"
                " ones have"
            )
    if quantisation is None:
        return ExpertWeights(None)
    if excluded := _excluded_experts(quantisation.declared):
        raise UnknownQuantisation(
            f"the model's quantisation leaves experts out ({excluded}), and which data type a layer"
            " of experts gets is not known here"
        )
    if quantisation.method == "fp8":
        return ExpertWeights("fp8_w8a8", _block(quantisation.declared.get("weight_block_size")))
    if quantisation.method == "modelopt_fp8":
        return ExpertWeights("fp8_w8a8")
    if quantisation.method == "compressed-tensors":
        return _compressed(quantisation.declared)
    raise _no_tuning(str(quantisation.method))


def _no_tuning(kind: str) -> UnknownQuantisation:
    return UnknownQuantisation(
        f"experts quantised by {kind} have no tuning here: only fp8 and unquantised ones have"
    )


def _block(block: object, name: str = "weight_block_size") -> tuple[int, int] | None:
    if block is None:
        return None
    if (
        isinstance(block, list)
        and len(block) == 2
        and all(is_integer(number) and number > 0 for number in block)
    ):
        return block[0], block[1]
    raise UnknownQuantisation(f"{name} {block} of the model's config is no pair of numbers")


def _excluded_experts(declared: dict[str, Any]) -> str | None:
    for key in _EXCLUDED:
        names = declared.get(key)
        for name in names if isinstance(names, list) else ():
            # A pattern escapes its dots.
            if isinstance(name, str) and _ROUTED.search(name.replace("\\.", ".")):
                return f"{key}: {name[:80]}"
    return None


def _compressed(declared: dict[str, Any]) -> ExpertWeights:
    """compressed-tensors, as SGLang's `get_moe_scheme` tells its FP8 schemes apart."""
    groups = declared.get("config_groups")
    schemes = []
    for group in groups.values() if isinstance(groups, dict) else ():
        if isinstance(group, dict) and _targets_experts(group.get("targets")):
            schemes.append((group.get("weights"), group.get("input_activations")))
    if not schemes or any(scheme != schemes[0] for scheme in schemes):
        raise UnknownQuantisation(
            f"compressed-tensors has {len(schemes)} groups for the experts, and which one they get"
            " is not known here"
        )
    weights, activations = schemes[0]
    if not isinstance(weights, dict):
        raise _no_tuning("compressed-tensors (activations only)")
    bits, kind, strategy = (weights.get(key) for key in ("num_bits", "type", "strategy"))
    told = f"compressed-tensors ({kind} of {bits} bits, scales by {strategy})"
    if (kind, bits) != ("float", 8) or not isinstance(activations, dict):
        raise _no_tuning(told if isinstance(activations, dict) else f"{told[:-1]}, weights only)")
    if strategy == "tensor":
        return ExpertWeights("fp8_w8a8")
    if strategy == "block":
        return ExpertWeights("fp8_w8a8", _block(weights.get("block_structure"), "block_structure"))
    raise _no_tuning(told)


def _targets_experts(targets: object) -> bool:
    return isinstance(targets, list) and any(
        target == "Linear"
        or (isinstance(target, str) and _ROUTED.search(target.replace("\\.", ".")) is not None)
        for target in targets
    )
