"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, language, same_weights, save_pipeline

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, TEXT_WIDTH, CHANNELS = 32, 24, 8


def write_tiny(directory: Path, distilled: bool = False) -> None:
    """Write ``model_index.json`` and every component; 25 latents a second of 1600 Hz. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    with same_weights():
        text_encoder, tokenizer = language("Qwen3Model", TEXT_WIDTH)
        condition_encoder = build.AceStepConditionEncoder(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            text_hidden_dim=TEXT_WIDTH,
            timbre_hidden_dim=CHANNELS,
            num_lyric_encoder_hidden_layers=2,
            num_timbre_encoder_hidden_layers=2,
            **attention,
        )
        condition_encoder.silence_latent.normal_()
        save_pipeline(
            "AceStepPipeline",
            directory,
            vae=autoencoder("AutoencoderOobleck", decoder_input_channels=CHANNELS),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=build.AceStepTransformer1DModel(
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=4,
                in_channels=3 * CHANNELS,
                audio_acoustic_hidden_dim=CHANNELS,
                encoder_hidden_size=WIDTH,
                is_turbo=distilled,
                **attention,
            ),
            condition_encoder=condition_encoder,
            scheduler=build.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        )
