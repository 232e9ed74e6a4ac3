"""How optimum-quanto makes a weight small: rows of bytes, or groups of 4 or 2 bits.

Its own modules are not used: their 4 and 2 bits are unpacked by an extension that is compiled on the user's machine,
and their products fail under autocast and for gradients that are not contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BYTES = {"int8-quanto": "qint8", "fp8-quanto": "qfloat8_e4m3fn"}
"""Kinds with a scale for each output, and what optimum-quanto calls their numbers."""
GROUPS = {"int4-quanto": 4, "int2-quanto": 2}
"""Kinds with a scale and a shift for each group of weights, and their bits."""


class RowOptions(QuantizerOptions):
    """Eight bits for each weight and a scale for each output of a layer."""


class GroupOptions(QuantizerOptions):
    """Few bits for each weight, and a scale and a shift for each group of weights of an output."""

    group: Literal[32, 64, 96, 128] = 128
    """Weights of a group, at most: where a layer's width is no multiple, the next smaller multiple of 32 that divides
    it. Smaller groups are more exact and take more room."""


class InBytes(Quantizer):
    """Rows of signed bytes or of 8-bit floats (e4m3), by the largest of each row."""

    def __init__(self, kind: str, number: str, options: RowOptions) -> None:
        super().__init__(kind, options)
        self._number = number

    def unfit(self, shape: tuple[int, int]) -> str:
        return "with a single output" if shape[0] == 1 else ""

    def pack(self, weight: Tensor) -> PackedWeight:
        from optimum.quanto import AbsmaxOptimizer, qtypes, quantize_weight  # type: ignore[import-untyped]

        whole, number = weight.float(), qtypes[self._number]
        scale = _not_zero(AbsmaxOptimizer()(whole, qtype=number, axis=0))
        packed = quantize_weight(whole, number, 0, scale, optimized=False)
        return PackedWeight({"data": packed._data, "scale": packed._scale}, partial(_from_bytes, dtype=weight.dtype))


class InGroups(Quantizer):
    """Groups of 4 or 2 bits between the smallest and the largest of each."""

    def __init__(self, kind: str, bits: int, options: GroupOptions) -> None:
        super().__init__(kind, options)
        self._bits, self._group = bits, options.group

    def unfit(self, shape: tuple[int, int]) -> str:
        return "" if self._group_of(shape[1]) else "of a width that is no multiple of 32"

    def pack(self, weight: Tensor) -> PackedWeight:
        import torch
        from optimum.quanto import MaxOptimizer, qtypes, quantize_weight

        whole, number, group = weight.float(), qtypes[f"qint{self._bits}"], self._group_of(weight.shape[1])
        # Kept in half the room where weights are bf16; what is packed is then measured by what was kept.
        kept = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
        scale, shift = (one.to(kept) for one in MaxOptimizer()(whole, qtype=number, axis=0, group_size=group))
        scale = _not_zero(scale)
        packed: Any = quantize_weight(whole, number, 0, scale.float(), shift.float(), group, optimized=False)
        restore = partial(_from_groups, bits=self._bits, shape=weight.shape, dtype=weight.dtype)
        return PackedWeight({"data": packed._data._data, "scale": scale, "shift": shift}, restore)

    def _group_of(self, width: int) -> int:
        """Weights of a group in layers of this width; 0 where none is possible."""
        return next((size for size in range(self._group, 0, -32) if width % size == 0), 0)


def _not_zero(scale: Tensor) -> Tensor:
    """Rows and groups of equal weights have no scale, and would be divided by it."""
    import torch

    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _from_bytes(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    from st.model.quantize.restoring import scaled

    return scaled(parts["data"], parts["scale"], dtype)


def _from_groups(parts: Mapping[str, Tensor], *, bits: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Each byte holds one weight of every 8 / bits-th part of the groups, the first in its lowest bits."""
    import torch

    from st.model.quantize.restoring import pieces

    data, scale, shift = parts["data"], parts["scale"].float(), parts["shift"].float()
    whole = data.new_empty((len(scale), data.shape[1]), dtype=dtype)
    for rows in pieces(len(data), data.shape[1], data.device):
        for part, place in enumerate(range(0, 8, bits)):
            start, end = (min(part * len(data) + row, len(scale)) for row in (rows.start, rows.stop))
            if start == end:
                continue
            numbers = (data[rows][: end - start] >> place).bitwise_and_((1 << bits) - 1)
            torch.sub(scale[start:end] * numbers, shift[start:end], out=whole[start:end])
    return whole.reshape(shape)
