"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, language, same_weights, save_pipeline

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32


def write_tiny(directory: Path) -> None:
    """Write ``model_index.json`` and every component. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    with same_weights():
        parts = {}
        parts["text_encoder"], parts["tokenizer"] = language("Gemma2Model", WIDTH)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(shift=6.0)
        parts["vae"] = autoencoder(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        parts["transformer"] = build.Lumina2Transformer2DModel(
            sample_size=8,
            hidden_size=96,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=32,
            axes_dim_rope=(16, 8, 8),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        )
        save_pipeline("Lumina2Pipeline", directory, **parts)
