"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, language, pixtral, same_weights, save_pipeline
from st_flux2.flavours import DEV, FLAVOURS

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, TAKEN = 16, 3
"""Of the language model, and how many of its hidden states a caption becomes."""


def write_tiny(directory: Path, flavour: str) -> None:
    """Write ``model_index.json`` and every component. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    one = FLAVOURS[flavour]
    parts: dict[str, Any] = {} if one.pipeline == DEV else {"is_distilled": one.few_steps}
    with same_weights():
        parts["text_encoder"], parts["tokenizer"] = _language(one.pipeline)
        parts["scheduler"] = build.FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        )
        parts["vae"] = tiny_autoencoder()
        parts["transformer"] = build.Flux2Transformer2DModel(
            in_channels=4 * LATENTS,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TAKEN * WIDTH,
            guidance_embeds=one.pipeline == DEV,
            axes_dims_rope=(4, 4, 4, 4),
        )
        save_pipeline(one.pipeline, directory, **parts)


LATENTS = 4


def tiny_autoencoder(channels: int = LATENTS) -> Any:
    """The autoencoder of Flux.2, small, whose statistics are not those of a normal distribution."""
    made = autoencoder("AutoencoderKLFlux2", latent_channels=channels, use_quant_conv=True, use_post_quant_conv=True)
    made.bn.running_mean.normal_(0, 0.5)
    made.bn.running_var.uniform_(0.5, 2.0)
    return made


def _language(pipeline: str) -> tuple[Any, Any]:
    """A language model with as many layers as the pipeline reads, which are those of the published sizes."""
    if pipeline == DEV:
        from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

        return pixtral(width=WIDTH, layers=30, words=(SYSTEM_MESSAGE,))
    return language("Qwen3ForCausalLM", WIDTH, 27, chats=True)
