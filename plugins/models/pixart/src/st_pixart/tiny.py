"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, same_weights, save_pipeline, t5
from st_pixart.flavours import PixArtOptions

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32
"""Of T5 and of the transformer."""


def write_tiny(directory: Path, seed: int = 0) -> None:
    """Write ``model_index.json`` and every component. The same weights for the same seed."""
    import diffusers

    build: Any = diffusers  # not typed
    with same_weights(seed):
        text, tokenizer = t5(WIDTH)
        save_pipeline(
            "PixArtSigmaPipeline",
            directory,
            tokenizer=tokenizer,
            text_encoder=text,
            vae=autoencoder(latent_channels=4, scaling_factor=0.13025),
            transformer=build.PixArtTransformer2DModel(
                sample_size=16,
                num_layers=3,
                patch_size=2,
                num_attention_heads=2,
                attention_head_dim=WIDTH // 2,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=WIDTH,
                caption_channels=WIDTH,
                use_additional_conditions=False,
            ),
            # DDIM's steps are the exact ones of a noise schedule, from pure noise.
            scheduler=build.DDIMScheduler(
                **PixArtOptions.schedule,
                set_alpha_to_one=True,
                clip_sample=False,
                timestep_spacing="trailing",
            ),
        )
