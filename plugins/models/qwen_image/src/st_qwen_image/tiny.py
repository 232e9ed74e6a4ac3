"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, same_weights, save_pipeline, save_processor, seeing
from st_qwen_image.flavours import FLAVOURS

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32
ZERO_TIME = ("edit-2511",)
"""Flavours whose references have the time 0, as their denoiser's configuration says."""


def write_tiny(directory: Path, flavour: str = "2512") -> None:
    """Write ``model_index.json`` and every component of a flavour. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    one = FLAVOURS[flavour]
    with same_weights():
        parts = {}
        parts["text_encoder"], parts["tokenizer"] = seeing("Qwen2_5_VLForConditionalGeneration", WIDTH)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        )
        parts["vae"] = autoencoder("AutoencoderKLQwenImage")
        parts["transformer"] = build.QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=flavour in ZERO_TIME,
        )
        save_pipeline(one.pipeline, directory, **parts, **({"processor": None} if one.edits else {}))
    if one.edits:
        save_processor("Qwen2VLProcessor", directory / "processor", parts["tokenizer"])
