"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.learning_text import save_text_encoder
from st.model.pipelines.tiny_kit import autoencoder, clip, same_weights, save_pipeline
from st_sdxl.table_options import SAID, SCHEDULE

if TYPE_CHECKING:
    from pathlib import Path

    from st_sd.flavours import Flavour

WIDTH = 16
"""Of the text encoder."""


def write_tiny(directory: Path, flavour: Flavour, scheduler: str = "DDIMScheduler") -> None:
    """Write ``model_index.json`` and every component. The same weights each time.

    scheduler: its class in diffusers; DDIM's steps are the exact ones of a noise schedule, from pure noise.
    """
    import diffusers

    build: Any = diffusers  # not typed
    exact = {"set_alpha_to_one": True, "clip_sample": False, "timestep_spacing": "trailing"}
    settings = exact if scheduler == "DDIMScheduler" else {"skip_prk_steps": True}
    with same_weights():
        text, tokenizer = clip(WIDTH, hidden_act="gelu" if flavour.second else "quick_gelu")
        save_pipeline(
            "StableDiffusionPipeline",
            directory,
            vae=autoencoder(latent_channels=4, scaling_factor=0.18215),
            text_encoder=text,
            tokenizer=tokenizer,
            unet=_unet(flavour.second),
            scheduler=getattr(build, scheduler)(
                **SCHEDULE, steps_offset=1, prediction_type=SAID[flavour.says], **settings
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    save_text_encoder(text, directory / "text_encoder")


def _unet(second: bool) -> Any:
    """A U-Net with every kind of block that the real one has."""
    import diffusers

    build: Any = diffusers
    return build.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4, 4) if second else 2,
        cross_attention_dim=WIDTH,
        use_linear_projection=second,
        norm_num_groups=8,
    )
