"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, clip, same_weights, save_pipeline, t5

if TYPE_CHECKING:
    from pathlib import Path

CLIP_WIDTH, T5_WIDTH = 32, 32


def write_tiny(directory: Path) -> None:
    """Write ``model_index.json`` and every component. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    with same_weights():
        parts = {}
        parts["text_encoder"], parts["tokenizer"] = clip(CLIP_WIDTH)
        parts["text_encoder_2"], parts["tokenizer_2"] = t5(T5_WIDTH)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        )
        parts["vae"] = autoencoder(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        parts["transformer"] = build.FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        save_pipeline("FluxPipeline", directory, **parts)
