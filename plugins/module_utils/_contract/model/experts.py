# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The experts that a config describes, by the names that the architectures which SGLang knows have
for them (its models, 0.5.3 to 0.5.23).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..records import is_integer
from .config import all_parts, architecture_name, language_parts

_ROUTED = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",  # Kimi-Linear
    "moe_topk",  # HunYuan, LongCat
    "moe_top_k",  # Step3, DBRX
    "moe_k",  # Ernie 4.5
    "top_k_experts",  # Gemma 4
)
_INTERMEDIATE = (
    "moe_intermediate_size",
    "expert_hidden_dim",
    "expert_ffn_hidden_size",  # LongCat
    "intermediate_size",
)
# Experts that work in a smaller space than the model: Nemotron-H, Kimi-K3.
_LATENT = ("moe_latent_size", "routed_expert_hidden_size")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_ACTIVATIONS = ("mlp_hidden_act", "hidden_act", "hidden_activation")
# With these a projection to twice the size is halved again.
_GATED = ("silu", "swish", "swiglu", "gelu", "gelu_new", "gelu_tanh", "gelu_pytorch_tanh")
_NOT_GATED = ("relu2",)
# A list has one number for each modality here, the text's first; elsewhere one for each layer.
_BY_MODALITY = "Ernie4_5_VL"
# DBRX keeps the experts in a part of its own, under names of its own.
_DBRX_PART, _DBRX_SIZES = "ffn_config", {"ffn_hidden_size": "moe_intermediate_size"}
_NO_SHAPE = (
    "the model's config does not give the shape of its experts (their number, how many are chosen,"
    " their sizes)"
)


class UnknownExperts(Exception):
    """The experts' shape does not follow from the config; the text says why."""


@dataclass(frozen=True)
class Experts:
    """All experts of one layer, before they are split among GPUs."""

    routed: int
    # Of these each token takes so many.
    chosen: int
    intermediate: int
    hidden: int
    # How many more every token takes; a release may fuse them into the routed ones.
    shared: int
    # Whether the first projection has twice the intermediate size, one half to gate the other.
    gated: bool


def has_experts(config: dict[str, Any]) -> bool:
    """True when some layer has more than one routed expert (a list counts per modality or
    layer).
    """
    for part in _parts_with_experts(config):
        for name in _ROUTED:
            value = part.get(name)
            for number in value if isinstance(value, list) else [value]:
                if is_integer(number) and number > 1:
                    return True
    return False


def _parts_with_experts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in all_parts(config):
        yield part
        inner = part.get(_DBRX_PART)
        if isinstance(inner, dict):
            yield inner


def read(config: dict[str, Any]) -> Experts:
    """The experts of the language model. Raises UnknownExperts."""
    architecture = architecture_name(config)
    part = _language_model(config)
    if architecture.startswith("GptOss"):
        raise UnknownExperts(
            "GPT-OSS's experts have biases and an activation of their own, which the tuner does not"
            " run"
        )
    if is_integer(part.get("zero_expert_num")) and part["zero_expert_num"] > 0:
        raise UnknownExperts(
            "some of the model's experts do nothing (zero_expert_num), so how many a token takes is"
            " not known here"
        )
    routed, chosen, intermediate = (
        _number(part, names, architecture) for names in (_ROUTED, _CHOSEN, _INTERMEDIATE)
    )
    hidden = _number(part, (*_LATENT, "hidden_size", "d_model"), architecture)
    if not (routed and chosen and intermediate and hidden):
        raise UnknownExperts(_NO_SHAPE)
    numbers = {name: part[name] for name in _ROUTED if is_integer(part.get(name))}
    if len(set(numbers.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise UnknownExperts(f"the model's config has two numbers of experts ({told})")
    if chosen > routed:
        raise UnknownExperts(f"the model's config has each token take {chosen} of {routed} experts")
    shared = _number(part, _SHARED, architecture) or _shared_by_size(part)
    return Experts(routed, chosen, intermediate, hidden, shared, _is_gated(part, architecture))


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The innermost part of the config that counts experts; DBRX's with the names of others."""
    for part in reversed(language_parts(config)):
        inner = part.get(_DBRX_PART)
        if isinstance(inner, dict):
            renamed = {_DBRX_SIZES.get(name, name): value for name, value in inner.items()}
            return {**part, **renamed}
        if any(part.get(name) is not None for name in _ROUTED):
            return part
    return config


def _number(part: dict[str, Any], names: tuple[str, ...], architecture: str) -> int | None:
    """The first of these names that is a positive number. Raises UnknownExperts where it differs
    between layers.
    """
    for name in names:
        value = part.get(name)
        if isinstance(value, list):
            value = _one_of(value, name, architecture)
        if is_integer(value) and value > 0:
            return value
    return None


def _one_of(values: list[Any], name: str, architecture: str) -> int | None:
    """The number that a list has for all layers, or for text. Raises UnknownExperts."""
    if len(values) < 2 or not all(is_integer(number) for number in values):
        return None
    if len(set(values)) == 1 or architecture.startswith(_BY_MODALITY):
        return int(values[0])
    raise UnknownExperts(
        f"the model's layers of experts differ ({name} {str(values)[:60]}), and one tuning is of"
        " one shape"
    )


def _shared_by_size(part: dict[str, Any]) -> int:
    """Qwen counts no shared expert, but gives its size."""
    size = part.get("shared_expert_intermediate_size")
    return 1 if is_integer(size) and size > 0 else 0


def _is_gated(part: dict[str, Any], architecture: str) -> bool:
    names = [part[name] for name in _ACTIVATIONS if isinstance(part.get(name), str)]
    # Nemotron-H's default (configs/nemotron_h.py).
    default = "relu2" if architecture.startswith("NemotronH") else "silu"
    activation = names[0] if names else default
    if activation in _NOT_GATED:
        return False
    if activation in _GATED and not architecture.startswith("NemotronH"):
        return True
    raise UnknownExperts(
        f"the experts' activation {activation} has no tuning here: whether it gates is not known"
    )
