"""Control: upstream's control network of Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st import StError

if TYPE_CHECKING:
    from torch import Tensor, nn

USUAL = 12
"""Blocks that a control network has where nothing is said, as upstream."""
COPIED = ("pos_embed", "time_text_embed", "context_embedder")


def make_control(denoiser: Any, layers: Sequence[int]) -> nn.Module:
    """An SD3ControlNetModel with the denoiser's first blocks. layers: (blocks,); () for the usual ones."""
    import diffusers

    kind: Any = diffusers.SD3ControlNetModel  # not typed
    # The last block only reads text, and none of a control network's does.
    most = len(denoiser.transformer_blocks) - 1
    if layers and (len(layers) != 1 or not 1 <= layers[0] <= most):
        raise StError(
            f"adapter.layers = {list(layers)}: a control network can have 1 to {most} of this denoiser's blocks",
            fix=f"give one number, at most [{most}]",
        )
    count = layers[0] if layers else min(USUAL, most)
    # Upstream's from_transformer writes the number of blocks into the denoiser's own configuration.
    config = {**denoiser.config, "num_layers": count, "extra_conditioning_channels": 0}
    # Where it is true, upstream's pipeline shows a network no pooled text, and latents without the autoencoder's shift.
    config["force_zeros_for_pooled_projection"] = False
    network = kind.from_config(config)
    for name in COPIED:
        getattr(network, name).load_state_dict(getattr(denoiser, name).state_dict())
    for ours, theirs in zip(network.transformer_blocks, denoiser.transformer_blocks, strict=False):
        ours.load_state_dict(theirs.state_dict())
    made: nn.Module = network
    return made


def controlled(control: Any, arguments: Mapping[str, Any], shown: Tensor, shift: float) -> dict[str, Any]:
    """The network's residuals for this call of the denoiser.

    shown: (B, C, H, W) latents of the control picture. shift: what the autoencoder's statistics take off them. Raises
    StError for a network of another kind.
    """
    config = control.config
    if config.joint_attention_dim is None or config.extra_conditioning_channels:
        raise StError(
            "adapter.start names a control network of another kind",
            why="it reads no text" if config.joint_attention_dim is None else "it fills in pictures, and reads a mask",
            fix="name one that was begun from this model, or leave adapter.start out",
        )
    hidden, pooled = arguments["hidden_states"], arguments["pooled_projections"]
    if config.force_zeros_for_pooled_projection:
        pooled, shown = pooled * 0, shown + shift
    dtype = next(control.parameters()).dtype
    residuals = control(
        hidden_states=hidden.to(dtype),
        controlnet_cond=shown.to(dtype),
        encoder_hidden_states=arguments["encoder_hidden_states"].to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=arguments["timestep"],
        return_dict=False,
    )[0]
    return {"block_controlnet_hidden_states": [one.to(hidden.dtype) for one in residuals]}
