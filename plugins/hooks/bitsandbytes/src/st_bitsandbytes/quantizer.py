"""How bitsandbytes makes a weight small: blocks of 4-bit normal floats, or rows of bytes.

Its own modules are not used: on some CPUs they repack their weights when a picture is rendered, and are then without
gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NF4, INT8 = "nf4-bnb", "int8-bnb"
SCALES = 256
"""Scales that share a scale of their own, where scales are quantized too."""
ONE_OF_127 = 7.874015718698502e-3
"""bitsandbytes' own constant, by which it multiplies a byte and its row's largest weight."""


class Nf4Options(QuantizerOptions):
    """Four bits for each weight, spaced as normal random numbers are, and a scale for each block. QLoRA,
    arXiv:2305.14314."""

    block: Literal[64, 128, 256, 512] = 64
    """Weights of a block. Smaller blocks are more exact and take more room."""
    double: bool = False
    """Quantize the scales as well, which saves up to 0.4 bits for each weight."""


class RowOptions(QuantizerOptions):
    """Eight bits for each weight and a scale for each output of a layer. LLM.int8(), arXiv:2208.07339."""


class Nf4(Quantizer):
    """Blocks of 4-bit normal floats."""

    def __init__(self, kind: str, options: Nf4Options) -> None:
        super().__init__(kind, options)
        self._block, self._double = options.block, options.double

    def unfit(self, shape: tuple[int, int]) -> str:
        return "" if shape[0] * shape[1] >= self._block else f"of fewer weights than a block of {self._block}"

    def pack(self, weight: Tensor) -> PackedWeight:
        from bitsandbytes.functional import quantize_4bit

        data, state = quantize_4bit(
            weight.contiguous(), blocksize=self._block, compress_statistics=self._double, quant_type="nf4"
        )
        parts = {"data": data, "scale": state.absmax}
        if self._double:
            parts |= {"offset": state.offset, "scale_scale": state.state2.absmax, "scale_code": state.state2.code}
        return PackedWeight(parts, partial(_from_blocks, block=self._block, shape=weight.shape, dtype=weight.dtype))


class Int8(Quantizer):
    """Rows of signed bytes, by the largest of each row."""

    def pack(self, weight: Tensor) -> PackedWeight:
        from bitsandbytes.functional import int8_vectorwise_quant

        data, scale, _ = int8_vectorwise_quant(weight.half())
        return PackedWeight({"data": data, "scale": scale}, partial(_from_rows, dtype=weight.dtype))


def _from_blocks(parts: Mapping[str, Tensor], *, block: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    described: Any = QuantState
    scales = None
    if "offset" in parts:
        scales = described(parts["scale_scale"], code=parts["scale_code"], blocksize=SCALES, dtype=torch.float32)
    state = described(
        parts["scale"],
        shape=shape,
        blocksize=block,
        quant_type="nf4",
        dtype=dtype,
        offset=parts.get("offset"),
        state2=scales,
    )
    whole: Tensor = dequantize_4bit(parts["data"], state)
    return whole


def _from_rows(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    """As ``int8_vectorwise_dequant``: two products, each rounded to fp32."""
    import torch

    from st.model.quantize.restoring import pieces

    data, scale = parts["data"], parts["scale"].view(-1, 1)
    whole = data.new_empty(data.shape, dtype=dtype)
    for rows in pieces(len(data), data.shape[1], data.device):
        torch.mul(data[rows] * scale[rows], ONE_OF_127, out=whole[rows])
    return whole
