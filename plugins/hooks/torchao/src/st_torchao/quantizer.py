"""How torchao makes a weight small: rows of bytes, or groups of 4 bits.

Its tensors are taken apart into plain ones: multiplied as they are, they keep every restored weight for the backward
pass, and sharding them fails. Their own ``dequantize`` passes over a weight five times; what is restored here is equal
to its result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INT8, FP8, INT4 = KINDS = ("int8-torchao", "fp8-torchao", "int4-torchao")
ZERO = "zero_point"


class RowOptions(QuantizerOptions):
    """Eight bits for each weight and a scale for each output of a layer."""


class GroupOptions(QuantizerOptions):
    """Four bits for each weight and a scale for each group of weights of an output."""

    group: Literal[32, 64, 128, 256] = 32
    """Weights of a group. Smaller groups are more exact and take more room; layers whose width is no multiple stay as
    they are."""


class InRows(Quantizer):
    """Signed bytes or 8-bit floats (e4m3), symmetric, with a scale for each row."""

    def pack(self, weight: Tensor) -> PackedWeight:
        import torch
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig  # type: ignore[import-untyped]

        config = Int8WeightOnlyConfig if self.kind == INT8 else Float8WeightOnlyConfig
        parts = _apart(_quantized(weight, config(set_inductor_config=False)))
        if self.kind == FP8:
            # A row of zeros has no scale, and was divided by it.
            data, empty = parts["qdata"], parts["scale"] == 0
            parts["qdata"] = data.view(torch.uint8).masked_fill(empty, 0).view(data.dtype)
        return PackedWeight(parts, partial(_from_rows, dtype=weight.dtype))


class InGroups(Quantizer):
    """Four bits, symmetric, with a scale for each group; two weights share a byte."""

    def __init__(self, kind: str, options: GroupOptions) -> None:
        super().__init__(kind, options)
        self._group = options.group

    def unfit(self, shape: tuple[int, int]) -> str:
        return "" if shape[1] % self._group == 0 else f"of a width that is no multiple of {self._group}"

    def pack(self, weight: Tensor) -> PackedWeight:
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup

        four_bits = torch.int4  # type: ignore[attr-defined]
        config = IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=PerGroup(self._group))
        wide = _apart(_quantized(weight, config))
        # torchao keeps these numbers, -8 to 7, in a byte each.
        numbers, scale = wide["qdata"], wide["scale"]
        halves = (numbers[:, 1::2] << 4) | (numbers[:, ::2] & 15)
        if weight.dtype == torch.bfloat16:
            scale = scale.to(torch.bfloat16)
        return PackedWeight({"qdata": halves, "scale": scale}, partial(_from_halves, dtype=weight.dtype))


def _quantized(weight: Tensor, config: Any) -> Any:
    """torchao's own tensor of a weight, computed in fp32."""
    from torch import nn
    from torchao.quantization import quantize_

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    quantize_(nn.Sequential(layer), config)
    return layer.weight.data


def _apart(tensor: Any) -> dict[str, Tensor]:
    """Its plain tensors; symmetric numbers have a zero point of 0, which need not be kept."""
    names, _ = tensor.__tensor_flatten__()
    assert ZERO not in names or not getattr(tensor, ZERO).any()
    return {name: getattr(tensor, name) for name in names if name != ZERO}


def _from_rows(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    from st.model.quantize.restoring import scaled

    return scaled(parts["qdata"], parts["scale"].float(), dtype)


def _from_halves(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    """Each byte holds two neighbours of a row, the first in its lower half."""
    from st.model.quantize.restoring import pieces, product_into

    halves, scale = parts["qdata"], parts["scale"].float().unsqueeze(-1)
    rows_of, width = halves.shape
    whole = halves.new_empty((rows_of, 2 * width), dtype=dtype)
    pairs = whole.view(rows_of, scale.shape[1], -1, 2)
    bytes_ = halves.view(rows_of, scale.shape[1], -1)
    for rows in pieces(rows_of, 2 * width, halves.device):
        product_into(pairs[rows][..., 0], (bytes_[rows] << 4).bitwise_right_shift_(4), scale[rows])
        product_into(pairs[rows][..., 1], bytes_[rows] >> 4, scale[rows])
    return whole
