"""The weights, scales and zero points that a server hands to its fused experts, by their shape.

As the `create_weights` of SGLang's methods makes them (0.5.17 and 0.5.23: fp8.py, w8a8_fp8.py,
w8a8_int8.py, blockwise_int8.py, moe_wna16.py and compressed_tensors_w8a8_fp8_moe.py in
srt/layers/quantization, and `TritonMoeQuantInfo` of each); torch is not needed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sgl_admin.moe.shape import MoeShape

# torch's names of the data types of weights, by SGLang's of the experts.
_DTYPES = {
    "fp8_w8a8": "float8_e4m3fn",
    "int8_w8a8": "int8",
    "int8_w8a16": "uint8",
    "int4_w4a16": "uint8",
}
# How far integers of a type spread, evenly: with this the scales keep what is computed near 1.
_SPREAD = {"int8_w8a8": 73.0, "int8_w8a16": 73.0, "int4_w4a16": 4.6}


@dataclass(frozen=True)
class Tensor:
    """`scale` is what its random numbers are multiplied by."""

    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0

    @property
    def is_integer(self) -> bool:
        return self.dtype in ("int8", "uint8")


@dataclass(frozen=True)
class Operands:
    """`weights` and `scales` by the names of the call's arguments, and its other arguments."""

    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    arguments: dict[str, Any]


def of(shape: MoeShape) -> Operands:
    lookup, hidden, size = shape.lookup, shape.hidden_size, shape.intermediate
    matrices = {"1": ((2 if shape.gated else 1) * size, hidden), "2": (hidden, size)}
    dtype = _DTYPES[lookup.dtype] if lookup.dtype else shape.torch_dtype
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for number, (rows, columns) in matrices.items():
        whole = (lookup.E, rows, columns // shape.in_a_byte)
        weights[f"w{number}"] = Tensor(whole, dtype, columns**-0.5)
        if lookup.dtype:
            scales[f"w{number}_scale"] = _scale(shape, rows, columns)
        if shape.group and shape.zero_points:
            points = (lookup.E, rows // shape.in_a_byte, columns // shape.group)
            scales[f"w{number}_zp"] = Tensor(points, dtype)
    if _is_static(shape):
        scales.update({f"a{number}_scale": Tensor((1,), "float32") for number in matrices})
    return Operands(weights, scales, _arguments(shape))


def _scale(shape: MoeShape, rows: int, columns: int) -> Tensor:
    lookup = shape.lookup
    number = 1.0
    if lookup.dtype in _SPREAD:
        number = columns**-0.5 / _SPREAD[lookup.dtype]
    if shape.group:
        return Tensor((lookup.E, rows, columns // shape.group), shape.torch_dtype, number)
    if lookup.per_channel:
        return Tensor((lookup.E, rows, 1), "float32", number)
    if lookup.block_shape is None:
        return Tensor((lookup.E,), "float32", number)
    n, k = lookup.block_shape
    return Tensor((lookup.E, math.ceil(rows / n), math.ceil(columns / k)), "float32", number)


def _is_static(shape: MoeShape) -> bool:
    """Whether activations have one scale that is known before they come."""
    lookup = shape.lookup
    by_tensor = lookup.block_shape is None and not lookup.per_channel
    return lookup.dtype == "fp8_w8a8" and by_tensor


def _arguments(shape: MoeShape) -> dict[str, Any]:
    lookup = shape.lookup
    if lookup.dtype is None:
        return {}
    block = list(lookup.block_shape) if lookup.block_shape else None
    return {
        f"use_{lookup.dtype}": True,
        # Of groups along a row alone, which no file's name has.
        "block_shape": [0, shape.group] if shape.group else block,
        **({"per_channel_quant": True} if lookup.per_channel else {}),
    }
