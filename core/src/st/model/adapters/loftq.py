"""LoftQ: an adapter that begins with what a quantizer rounded away. Li et al. 2023, arXiv:2310.08659, one iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st.errors import StError

if TYPE_CHECKING:
    from torch import Tensor, nn


def keep_weights(denoiser: nn.Module, paths: Sequence[str]) -> dict[str, Tensor]:
    """A copy of each layer's weight, before it is quantized. Raises StError for a layer that is no plain linear one."""
    from torch import nn

    found = {}
    for path in paths:
        layer = denoiser.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            raise StError(
                f"adapter.init = 'loftq' cannot make up for {path!r}, a {type(layer).__name__}",
                fix="set adapter.init to 'default', or leave that layer out of adapter.targets",
            )
        found[path] = layer.weight.detach().to("cpu", copy=True)
    return found


def rounded_away(layer: nn.Module, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(down, up) in float32 whose product is closest to ``weight`` minus what the quantized layer multiplies with.

    That is asked of the layer itself, with the unit vectors as inputs, so any quantizer will do.
    """
    import torch

    anchor: Any = layer
    device = anchor.weight.device
    with torch.no_grad():
        inputs = torch.eye(weight.shape[1], dtype=weight.dtype, device=device)
        answers = layer(inputs).float()
        if anchor.bias is not None:
            answers = answers - anchor.bias.float()
        left, values, right = torch.linalg.svd(weight.to(device).float() - answers.T, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def refuse_unquantized(weights: Mapping[str, Tensor], plain: bool) -> None:
    """Raises StError where nothing is rounded away. plain: whether no layer is quantized."""
    if plain or not weights:
        raise StError(
            "adapter.init = 'loftq' makes up for what a quantizer rounds away, and none of these layers is quantized",
            fix="add [quantizer], or set adapter.init to 'pissa'",
        )
