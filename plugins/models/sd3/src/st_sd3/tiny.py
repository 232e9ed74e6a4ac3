"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, clip, same_weights, save_pipeline, t5

if TYPE_CHECKING:
    from pathlib import Path

CLIP_WIDTHS, T5_WIDTH = (16, 24), 48
"""The published CLIPs are together narrower than T5, too: their embeddings are filled up with zeros."""


def write_tiny(directory: Path, *, newer: bool = True, with_t5: bool = True) -> None:
    """Write ``model_index.json`` and every component. The same weights each time.

    newer: in the layout of 3.5 medium, with a second attention in the first block and norms of queries and keys; else
    in that of 3 medium. with_t5: whether there is the third text encoder.
    """
    import diffusers

    build: Any = diffusers  # not typed
    with same_weights():
        parts: dict[str, Any] = {}
        parts["text_encoder"], parts["tokenizer"] = clip(CLIP_WIDTHS[0], projected=True)
        parts["text_encoder_2"], parts["tokenizer_2"] = clip(CLIP_WIDTHS[1], projected=True)
        parts["text_encoder_3"], parts["tokenizer_3"] = t5(T5_WIDTH) if with_t5 else (None, None)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(shift=3.0)
        parts["vae"] = autoencoder(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        parts["transformer"] = build.SD3Transformer2DModel(
            sample_size=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=sum(CLIP_WIDTHS),
            pos_embed_max_size=32,
            **({"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if newer else {}),
        )
        save_pipeline("StableDiffusion3Pipeline", directory, **parts)
