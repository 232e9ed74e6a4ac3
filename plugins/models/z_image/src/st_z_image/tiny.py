"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, language, same_weights, save_pipeline, siglip2

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, SEEN = 32, 16


def write_tiny(directory: Path, *, sees: bool = False) -> None:
    """Write ``model_index.json`` and every component. The same weights each time. sees: whether it is Omni's."""
    import diffusers
    import torch

    build: Any = diffusers  # not typed
    with same_weights():
        parts = {}
        parts["text_encoder"], parts["tokenizer"] = language("Qwen3Model", WIDTH, chats=True)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(shift=6.0)
        parts["vae"] = autoencoder(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        parts["transformer"] = build.ZImageTransformer2DModel(
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            siglip_feat_dim=SEEN if sees else None,
        )
        if sees:
            parts["siglip"], parts["siglip_processor"] = siglip2(SEEN)
        with torch.no_grad():
            # Padding that is zero could not be told from padding that is left out.
            parts["transformer"].x_pad_token.normal_()
            parts["transformer"].cap_pad_token.normal_()
            if sees:
                parts["transformer"].siglip_pad_token.normal_()
        save_pipeline("ZImageOmniPipeline" if sees else "ZImagePipeline", directory, **parts)
