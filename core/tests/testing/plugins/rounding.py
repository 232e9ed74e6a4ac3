"""A quantizer of one file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import st
from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RoundingOptions(QuantizerOptions):
    """A byte for each weight and a scale for each output."""


class Rounding(Quantizer):
    """Whole multiples of a 127th of each row's largest."""

    def pack(self, weight: Tensor) -> PackedWeight:
        import torch

        whole = weight.float()
        scale = whole.abs().amax(dim=1, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        numbers = (whole / scale).round().to(torch.int8)
        return PackedWeight({"numbers": numbers, "scale": scale}, partial(multiplied, dtype=weight.dtype))


def multiplied(parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Tensor:
    """The weight again."""
    from st.model.quantize.restoring import scaled

    return scaled(parts["numbers"], parts["scale"], dtype)


class Rounds:
    """Brings ``[quantizer] kind = "rounding"``."""

    class Options(st.Options):
        """Nothing."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: st.Registrar) -> None:
        """Rounding, by its name."""
        register.add(st.QUANTIZER, "rounding", partial(Rounding, "rounding"), RoundingOptions)
