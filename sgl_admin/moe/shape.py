"""The shape of a model's fused experts, by its config and by what a server looks up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sgl_admin.base.engine import Lookup, Release, Split
from sgl_admin.contract.model import experts, quantisation
from sgl_admin.contract.model.arguments import flag_value, overridden
from sgl_admin.contract.model.config import language_parts
from sgl_admin.moe import space
from sgl_admin.sglang import ENGINE

# The server's names of its data types.
_DTYPES = {"half": "float16", "float16": "float16", "bfloat16": "bfloat16"}

# Of two weights in a byte; and the smallest group that SGLang makes (`MoeWNA16Method`).
_PACKED, _LEAST_GROUP = "int4_w4a16", 32


class Untunable(Exception):
    """These experts have no tuning; the text says why."""


@dataclass(frozen=True)
class MoeShape:
    """The fused experts of one GPU's share of a layer."""

    lookup: Lookup
    hidden_size: int
    # Routed experts that each token chooses, of all ranks; with a fused shared expert, which every
    # token takes, there are more rows.
    chosen: int
    shared: int
    # Of activations and, where nothing is quantised, of weights.
    torch_dtype: str
    # The ranks of expert parallelism: each has as many routed experts.
    ranks: int = 1
    # Whether the first projection is twice as large, one half to gate the other.
    gated: bool = True
    # More shared experts than these no server fuses.
    most_shared: int = 2
    # Of integers for activations of 16 bits: so many along a row share a scale and, maybe, a zero
    # point. No name of a file tells these.
    group: int | None = None
    zero_points: bool = False

    @property
    def rows_per_token(self) -> int:
        return self.chosen + self.shared

    @property
    def routed(self) -> int:
        """The routed experts of one rank."""
        return self.lookup.E - self.shared

    @property
    def in_a_byte(self) -> int:
        """How many weights are in one; SGLang counts N, as the files name it, in bytes."""
        return 2 if self.lookup.dtype == _PACKED else 1

    @property
    def intermediate(self) -> int:
        """The experts' intermediate size on one GPU."""
        return self.lookup.N * self.in_a_byte

    @property
    def by_tma(self) -> bool:
        """Whether the kernel can load by TMA: that of integers for 16 bits has no descriptors, and
        does not write sorted rows.
        """
        return self.group is None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> MoeShape:
        lookup = found["lookup"]
        block = tuple(lookup["block_shape"]) if lookup["block_shape"] else None
        return cls(**{**found, "lookup": Lookup(**{**lookup, "block_shape": block})})


def of(
    config: dict[str, Any],
    tp: int,
    moe_dtype: str,
    server_args: tuple[str, ...],
    release: Release,
    modelopt: dict[str, Any] | None = None,
) -> MoeShape:
    """The shape that a server of this release is expected to fuse. Raises Untunable.

    The server's log has the last word (`seen`): which shared experts are fused depends on the
    release and on its flags. `modelopt` is the model's hf_quant_config.json.
    """
    config = overridden(config, server_args)
    split = ENGINE.experts_split(server_args, tp)
    if split.reason:
        raise Untunable(split.reason)
    try:
        found = experts.read(config)
        weights = _weights(config, modelopt, server_args)
    except (experts.UnknownExperts, quantisation.UnknownQuantisation) as error:
        raise Untunable(str(error)) from error
    if moe_dtype not in ("auto", weights.dtype or "bf16"):
        raise Untunable(
            f"--moe-dtype {moe_dtype}: the model's experts are"
            f" {weights.dtype or 'not quantised (bf16)'}; leave it out, or use auto"
        )
    if not found.gated and weights.method not in release.ungated:
        kind = f" that are quantised by {weights.method}" if weights.method else ""
        raise Untunable(
            f"the model's experts have no gate, and this SGLang fuses only gated ones{kind}"
        )
    if not space.count(weights.block):
        raise Untunable(f"no launch configuration fits scales of blocks of {weights.block}")
    shared = release.fused_shared_experts(config, server_args, split.ranks)
    return MoeShape(
        _lookup(found, split, shared, weights),
        found.hidden,
        found.chosen,
        shared,
        _torch_dtype(config, server_args),
        split.ranks,
        found.gated,
        max(2, found.shared),
        _group(found, split, weights),
        weights.zero_points,
    )


def _lookup(
    found: experts.Experts, split: Split, shared: int, weights: quantisation.ExpertWeights
) -> Lookup:
    routed = found.routed + split.redundant
    if routed % split.ranks:
        raise Untunable(f"{routed} experts cannot be divided among {split.ranks} ranks (--ep-size)")
    if found.intermediate % split.parts:
        raise Untunable(
            f"the experts' intermediate size {found.intermediate} cannot be divided among"
            f" {split.parts} GPUs"
        )
    size = found.intermediate // split.parts
    if weights.dtype == _PACKED:
        if size % 2 or found.hidden % 2:
            raise Untunable(f"{weights.dtype}: a row of {size} or {found.hidden} is no whole bytes")
        size //= 2
    return Lookup(
        routed // split.ranks + shared,
        size,
        weights.dtype,
        weights.block,
        weights.per_channel,
    )


def _group(found: experts.Experts, split: Split, weights: quantisation.ExpertWeights) -> int | None:
    """As the server has it: it makes a group smaller that does not divide the rows."""
    group = weights.group
    rows = (found.intermediate // split.parts, found.hidden)
    while group is not None and any(row % group for row in rows):
        group //= 2
        if group < _LEAST_GROUP or not weights.shrinks_groups:
            raise Untunable(
                f"groups of {weights.group} ({weights.dtype}) do not divide rows of"
                f" {rows[0]} and {rows[1]}"
            )
    return group


def _weights(
    config: dict[str, Any], modelopt: dict[str, Any] | None, server_args: tuple[str, ...]
) -> quantisation.ExpertWeights:
    """The experts' data type: by the model's config, or as the server is asked to make it."""
    return quantisation.of_experts(
        config,
        modelopt,
        flag_value(server_args, "--quantization"),
        flag_value(server_args, ENGINE.moe.backend_flag) == "triton",
    )


def _torch_dtype(config: dict[str, Any], server_args: tuple[str, ...]) -> str:
    asked = flag_value(server_args, "--dtype") or "auto"
    if asked.startswith("float32") or asked == "float":
        raise Untunable(f"experts of 32 bits (--dtype {asked}) have no tuning here")
    if asked != "auto":
        return _DTYPES.get(asked, "bfloat16")
    named = (
        part[key]
        for part in reversed(language_parts(config))
        for key in ("torch_dtype", "dtype")
        if isinstance(part.get(key), str)
    )
    return _DTYPES.get(next(named, "bfloat16"), "bfloat16")


def seen(expected: MoeShape, lookups: Sequence[Lookup]) -> MoeShape | None:
    """The expected shape as the server asks for it: it may fuse other shared experts. None where
    none of its lookups can be of these experts.
    """
    for lookup in sorted(lookups, key=lambda each: each != expected.lookup):
        shared = lookup.E - expected.routed
        alike = replace(lookup, E=expected.lookup.E) == expected.lookup
        if alike and 0 <= shared <= expected.most_shared:
            return replace(expected, lookup=lookup, shared=shared)
    return None


def mismatch(expected: MoeShape, names: Sequence[str]) -> str:
    """Why none of the files that a server looked up is of the expected shape."""
    if not names:
        return f"its experts are not run by the Triton kernel ({ENGINE.moe.backend_flag})"
    lookups = [lookup for name in names if (lookup := ENGINE.moe.lookup(name)) is not None]
    if not lookups:
        return "a file of that name has no tuning here"
    scales = _scales(expected.lookup)
    if all(_scales(lookup) != scales for lookup in lookups):
        return "its experts are of another data type than the model's config says"
    return (
        "it builds or splits its experts in another way than the model's config and its arguments"
        " say"
    )


def _scales(lookup: Lookup) -> tuple[object, ...]:
    return lookup.dtype, lookup.block_shape, lookup.per_channel
