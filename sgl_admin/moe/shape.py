"""The shape of a model's fused experts, by its config and by what a server looks up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sgl_admin.base.engine import Lookup, Release
from sgl_admin.facts.model import EXPERTS, language_part

# How the architectures that SGLang knows call these (their Hugging Face configs).
_CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k")
_INTERMEDIATE = ("moe_intermediate_size", "expert_hidden_dim", "intermediate_size")


class Untunable(Exception):
    """These experts have no tuning; the text says why."""


@dataclass(frozen=True)
class MoeShape:
    """The fused experts of one GPU's share of a layer."""

    lookup: Lookup
    hidden_size: int
    # Routed experts that each token chooses; with a fused shared expert, which every token takes,
    # there are more rows.
    chosen: int
    shared: int
    # Of activations and, where nothing is quantised, of weights.
    torch_dtype: str

    @property
    def rows_per_token(self) -> int:
        return self.chosen + self.shared

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> MoeShape:
        lookup = found["lookup"]
        block = tuple(lookup["block_shape"]) if lookup["block_shape"] else None
        return cls(**{**found, "lookup": Lookup(**{**lookup, "block_shape": block})})


def of(
    config: dict[str, Any], tp: int, moe_dtype: str, server_args: tuple[str, ...], release: Release
) -> MoeShape:
    """The shape that a server of this release is expected to fuse. Raises Untunable.

    The server's log has the last word (`seen`): which shared experts are fused depends on the
    release and on its flags.
    """
    text = language_part(config)
    routed, chosen, intermediate = (
        _first(text, keys) for keys in (EXPERTS, _CHOSEN, _INTERMEDIATE)
    )
    hidden = text.get("hidden_size")
    if not (routed and chosen and intermediate and isinstance(hidden, int)):
        raise Untunable(
            "the model's config does not tell the shape of its experts (their number, how many are"
            " chosen, their sizes)"
        )
    if intermediate % tp:
        raise Untunable(
            f"the experts' intermediate size {intermediate} cannot be divided among {tp} GPUs"
        )
    dtype, block = _quantisation(config)
    if moe_dtype not in ("auto", dtype or "bf16"):
        raise Untunable(
            f"--moe-dtype {moe_dtype}: the model's experts are {dtype or 'not quantised (bf16)'};"
            " leave it away, or use auto"
        )
    shared = release.fused_shared_experts(config, server_args)
    torch_dtype = (
        text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or "bfloat16"
    )
    return MoeShape(
        Lookup(routed + shared, intermediate // tp, dtype, block), hidden, chosen, shared,
        torch_dtype if torch_dtype in ("bfloat16", "float16") else "bfloat16",
    )  # fmt: skip


def seen(expected: MoeShape, lookups: list[Lookup]) -> MoeShape | None:
    """The expected shape as the server asks for it; None where none of its lookups can be of these
    experts.
    """
    routed = expected.lookup.E - expected.shared
    for lookup in lookups:
        if lookup.N == expected.lookup.N and lookup.E >= routed:
            return MoeShape(
                lookup,
                expected.hidden_size,
                expected.chosen,
                lookup.E - routed,
                expected.torch_dtype,
            )
    return None


def _first(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    values = [config[key] for key in keys if type(config.get(key)) is int and config[key] > 0]
    return values[0] if values else None


def _quantisation(config: dict[str, Any]) -> tuple[str | None, tuple[int, int] | None]:
    """SGLang's name of the experts' data type, None where they are not quantised, and the block
    shape of their scales.
    """
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return None, None
    method, block = found.get("quant_method"), found.get("weight_block_size")
    if method != "fp8":
        raise Untunable(
            f"experts quantised by {method} have no tuning here: only fp8 and unquantised ones have"
        )
    if block is None:
        return "fp8_w8a8", None
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(number) is int and number > 0 for number in block)
    ):
        raise Untunable(f"weight_block_size {block} of the model's config is no pair of numbers")
    return "fp8_w8a8", (block[0], block[1])
