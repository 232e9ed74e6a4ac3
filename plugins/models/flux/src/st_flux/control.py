"""Control: upstream's control network of Flux, and an input that reads the control picture's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st import StError
from st.model.pipelines.packing import pack

if TYPE_CHECKING:
    from torch import Tensor, nn

USUAL = (4, 10)
"""Joint and single blocks that a control network has where nothing is said, as upstream."""


def make_control(denoiser: Any, layers: Sequence[int]) -> nn.Module:
    """A FluxControlNetModel with the denoiser's first blocks. layers: (joint, single); () for the usual ones."""
    from diffusers import FluxControlNetModel

    config = denoiser.config
    there = (config.num_layers, config.num_single_layers)
    if layers and (len(layers) != 2 or any(mine > all_ for mine, all_ in zip(layers, there, strict=True))):
        raise StError(
            f"adapter.layers = {list(layers)}: this denoiser has {there[0]} joint and {there[1]} single blocks",
            fix=f"give two numbers, at most {list(there)}",
        )
    joint, single = layers or tuple(map(min, USUAL, there))
    if not joint and not single:
        raise StError("adapter.layers leaves the control network no block", fix="copy at least one")
    network: nn.Module = FluxControlNetModel.from_transformer(
        denoiser,
        num_layers=joint,
        num_single_layers=single,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    )
    return network


def controlled(control: Any, arguments: Mapping[str, Any], shown: Tensor) -> dict[str, Any]:
    """The network's residuals for this call of the denoiser. shown: (B, C, H, W) latents of the control picture."""
    same = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
        "joint_attention_kwargs",
    )
    given = {name: arguments.get(name) for name in same}
    hidden = arguments["hidden_states"]
    joint, single = control(controlnet_cond=pack(shown).to(hidden.dtype), return_dict=False, **given)
    return {
        "controlnet_block_samples": None if joint is None else [one.to(hidden.dtype) for one in joint],
        "controlnet_single_block_samples": None if single is None else [one.to(hidden.dtype) for one in single],
    }


def widen_input(denoiser: Any) -> str:
    """Let ``x_embedder`` read twice the channels; the new columns are zero, as where upstream's pipeline widens it."""
    import torch
    from torch import nn

    narrow: nn.Linear = denoiser.x_embedder
    weight = narrow.weight
    wide = nn.Linear(2 * narrow.in_features, narrow.out_features, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        wide.weight.zero_()
        wide.weight[:, : narrow.in_features] = weight
        wide.bias.copy_(narrow.bias)
    denoiser.x_embedder = wide.requires_grad_(False)
    denoiser.register_to_config(in_channels=2 * narrow.in_features)
    return "x_embedder"


def widened(arguments: Mapping[str, Any], shown: Tensor | None) -> dict[str, Any]:
    """The packed latents of noise and control picture side by side, as ``FluxControlPipeline`` joins them."""
    import torch

    hidden: Tensor = arguments["hidden_states"]
    control = torch.zeros_like(hidden) if shown is None else pack(shown).to(hidden)
    return {"hidden_states": torch.cat([hidden, control], dim=2)}
