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
# The server's other names of a method that a config declares.
_COMPRESSED = "compressed-tensors"
_SAME = {"modelopt": "modelopt_fp8", "compressed_tensors": _COMPRESSED}
# Methods with a scale for each row of the weights (`W8A8Int8MoEMethod`, `W8A8FP8MoEMethod`).
_BY_CHANNEL = {"w8a8_int8": "int8_w8a8", "w8a8_fp8": "fp8_w8a8"}
# The method by which the Triton kernel runs others' integers, their bits, and the smallest group.
_WNA16, _WNA16_BITS, _LEAST_GROUP = "moe_wna16", {"gptq": (4, 8), "awq": (4,)}, 32
_COMPRESSED_GROUPS = (32, 128)


class UnknownQuantisation(Exception):
    """The experts' data type does not follow from the config; the text says why."""


@dataclass(frozen=True)
class ExpertWeights:
    """How SGLang's Triton kernel gets the experts: the data type by SGLang's name (None for one of
    16 bits), and which of their numbers share a scale.
    """

    dtype: str | None
    # Both sides of the blocks of weights that share one.
    block: tuple[int, int] | None = None
    # Each row of the weights has one, and each token.
    per_channel: bool = False
    # Integers for activations of 16 bits: so many in a row share one.
    group: int | None = None
    # Each of these groups has a zero point, too.
    zero_points: bool = False
    # SGLang makes the groups smaller where they do not divide a GPU's part of the experts.
    shrinks_groups: bool = False
    # SGLang's method that builds them; empty where nothing is quantised.
    method: str = ""


def _declared(config: dict[str, Any], modelopt: dict[str, Any] | None) -> dict[str, Any] | None:
    """What says how the model's weights are quantised; None where nothing does."""
    places = [part.get("quantization_config") for part in language_parts(config)]
    for declared in (*places, config.get("compression_config")):
        if isinstance(declared, dict):
            return declared
    if modelopt is None:
        return None
    inner = modelopt.get("quantization")
    return {**(inner if isinstance(inner, dict) else modelopt), "quant_method": "modelopt"}


def _method(declared: dict[str, Any]) -> str | None:
    method, algorithm = declared.get("quant_method"), declared.get("quant_algo")
    if method in (None, "modelopt") and isinstance(algorithm, str):
        return _MODELOPT.get(algorithm, f"modelopt_{algorithm.lower()}")
    return method if isinstance(method, str) else None


def of_experts(
    config: dict[str, Any],
    modelopt: dict[str, Any] | None,
    asked: str | None = None,
    by_triton: bool = False,
) -> ExpertWeights:
    """How SGLang's Triton kernel gets the experts. Raises UnknownQuantisation.

    `asked` is what the server's arguments name (--quantization); `by_triton` says that they name
    this kernel (--moe-runner-backend).
    """
    for part in language_parts(config):
        # DeepSeek-V4 keeps its experts in another type than the rest.
        other = part.get("expert_dtype")
        if isinstance(other, str) and not other.startswith(("fp8", "bf16", "bfloat16")):
            raise _no_tuning(f"of the data type {other}")
    declared = _declared(config, modelopt)
    if declared is None:
        if asked in (None, "fp8"):
            return ExpertWeights("fp8_w8a8", method=asked) if asked else ExpertWeights(None)
        raise _not_asked(str(asked))
    if excluded := _excluded_experts(declared):
        raise UnknownQuantisation(
            f"the model's quantisation leaves experts out ({excluded}), and which data type a layer"
            " of experts gets is not known here"
        )
    method = _method(declared)
    if asked is None or _SAME.get(asked, asked) == method:
        return _by_method(method, declared, by_triton)
    if asked in _BY_CHANNEL and method == _COMPRESSED:
        return _compressed_by_channel(declared, asked)
    if asked == _WNA16 and method in _WNA16_BITS:
        return _wna16(declared, method)
    raise _not_asked(asked)


def _by_method(method: str | None, declared: dict[str, Any], by_triton: bool) -> ExpertWeights:
    if method == "fp8":
        return ExpertWeights("fp8_w8a8", _block(declared.get("weight_block_size")), method=method)
    if method == "modelopt_fp8":
        return ExpertWeights("fp8_w8a8", method=method)
    if method == _COMPRESSED:
        return _compressed(declared, by_triton)
    if method in _BY_CHANNEL:
        return ExpertWeights(_BY_CHANNEL[method], per_channel=True, method=method)
    if method == "blockwise_int8":
        block = _block(declared.get("weight_block_size"))
        if block is None:
            raise UnknownQuantisation(
                "the model's config has no weight_block_size, which blockwise_int8 needs"
            )
        return ExpertWeights("int8_w8a8", block, method=method)
    if method in _WNA16_BITS:
        raise UnknownQuantisation(
            f"experts quantised by {method} have no tuning here: SGLang runs them by the Triton"
            f" kernel only with --quantization {_WNA16}"
        )
    raise _no_tuning(f"quantised by {method}")


def _no_tuning(kind: str) -> UnknownQuantisation:
    return UnknownQuantisation(
        f"experts {kind} have no tuning here: FP8, 8-bit and 4-bit integers as SGLang's Triton"
        " kernel runs them, and unquantised ones have"
    )


def _not_asked(asked: str) -> UnknownQuantisation:
    return UnknownQuantisation(
        f"experts that the server quantises by --quantization {asked} have no tuning here: leave it"
        " out where the model's config says how they are quantised"
    )


def _wna16(declared: dict[str, Any], method: str) -> ExpertWeights:
    """GPTQ and AWQ, as SGLang's `MoeWNA16Config` reads them."""
    bits, group = declared.get("bits"), declared.get("group_size")
    symmetric = declared.get("sym") if method == "gptq" else not declared.get("zero_point", True)
    if bits not in _WNA16_BITS[method] or declared.get("desc_act"):
        raise UnknownQuantisation(
            f"experts quantised by {method} of {bits} bits"
            f"{', with desc_act' if declared.get('desc_act') else ''}: SGLang's {_WNA16} does not"
            " run them"
        )
    if not (is_integer(group) and group >= _LEAST_GROUP and isinstance(symmetric, bool)):
        raise UnknownQuantisation(
            f"the model's {method} config does not give its groups (group_size {group}) or their"
            f" zero points ({'sym' if method == 'gptq' else 'zero_point'})"
        )
    return ExpertWeights(
        "int4_w4a16" if bits == 4 else "int8_w8a16",
        group=group,
        zero_points=not symmetric,
        shrinks_groups=True,
        method=_WNA16,
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


@dataclass(frozen=True)
class _Scheme:
    """A scheme of compressed-tensors, by its weights and what it has for activations."""

    weights: dict[str, Any]
    activations: dict[str, Any] | None

    def is_of(self, kind: str, bits: int, strategy: str) -> bool:
        found = tuple(self.weights.get(key) for key in ("type", "num_bits", "strategy"))
        return found == (kind, bits, strategy)

    @property
    def by_token(self) -> bool:
        """Whether a token's scale is found when it comes."""
        activations = self.activations or {}
        return activations.get("strategy") == "token" and activations.get("dynamic") is True

    def no_tuning(self, why: str = "") -> UnknownQuantisation:
        kind, bits, strategy = (self.weights.get(key) for key in ("type", "num_bits", "strategy"))
        alone = "" if self.activations is not None else ", weights only"
        return _no_tuning(
            f"quantised by compressed-tensors ({kind} of {bits} bits, scales by {strategy}{alone})"
            f"{why}"
        )


def _scheme(declared: dict[str, Any]) -> _Scheme:
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
        raise _no_tuning("quantised by compressed-tensors (activations only)")
    return _Scheme(weights, activations if isinstance(activations, dict) else None)


def _compressed(declared: dict[str, Any], by_triton: bool) -> ExpertWeights:
    """compressed-tensors, as SGLang's `get_moe_scheme` tells its schemes apart."""
    scheme, method = _scheme(declared), _COMPRESSED
    if scheme.activations is None:
        return _compressed_integers(scheme, by_triton)
    if scheme.is_of("float", 8, "tensor"):
        return ExpertWeights("fp8_w8a8", method=method)
    if scheme.is_of("float", 8, "block"):
        block = _block(scheme.weights.get("block_structure"), "block_structure")
        return ExpertWeights("fp8_w8a8", block, method=method)
    if scheme.is_of("float", 8, "channel"):
        if not scheme.by_token:
            raise scheme.no_tuning(" without a scale for each token")
        return ExpertWeights("fp8_w8a8", per_channel=True, method=method)
    if scheme.is_of("int", 8, "channel"):
        raise scheme.no_tuning(" without --quantization w8a8_int8")
    raise scheme.no_tuning()


def _compressed_integers(scheme: _Scheme, by_triton: bool) -> ExpertWeights:
    """Integers for activations of 16 bits: Marlin runs them, or Triton's kernel where the server is
    asked for it and they are what that takes (`_is_wna16_triton_moe_supported`).
    """
    weights = scheme.weights
    group = weights.get("group_size")
    fits = (
        scheme.is_of("int", 4, "group")
        and group in _COMPRESSED_GROUPS
        and weights.get("symmetric", True) is True
        and not weights.get("actorder")
    )
    if not fits:
        raise scheme.no_tuning()
    if not by_triton:
        raise scheme.no_tuning(" without --moe-runner-backend triton")
    return ExpertWeights("int4_w4a16", group=group, method=_COMPRESSED)


def _compressed_by_channel(declared: dict[str, Any], asked: str) -> ExpertWeights:
    """What SGLang reads with another method than the one that the config names."""
    scheme = _scheme(declared)
    kind = "int" if asked == "w8a8_int8" else "float"
    if not (scheme.is_of(kind, 8, "channel") and scheme.by_token):
        raise scheme.no_tuning(f" with --quantization {asked}")
    return ExpertWeights(_BY_CHANNEL[asked], per_channel=True, method=asked)


def _targets_experts(targets: object) -> bool:
    return isinstance(targets, list) and any(
        target == "Linear"
        or (isinstance(target, str) and _ROUTED.search(target.replace("\\.", ".")) is not None)
        for target in targets
    )
