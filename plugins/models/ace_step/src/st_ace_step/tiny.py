"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, TEXT_WIDTH, CHANNELS = 32, 24, 8
END = "<|endoftext|>"


def write_tiny(directory: Path, distilled: bool = False) -> None:
    """Write ``model_index.json`` and every component; 25 latents a second of 1600 Hz. The same weights each time."""
    import diffusers
    import torch

    build: Any = diffusers  # not typed
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder, tokenizer = _text()
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
        pipeline = build.AceStepPipeline(
            vae=build.AutoencoderOobleck(
                encoder_hidden_size=2 * CHANNELS,
                downsampling_ratios=[2, 4, 8],
                channel_multiples=[1, 1, 1],
                decoder_channels=2 * CHANNELS,
                decoder_input_channels=CHANNELS,
                audio_channels=2,
                sampling_rate=1600,
            ),
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
    pipeline.save_pretrained(directory)


def _text() -> tuple[Any, Any]:
    """One token for each byte; padding goes to the left, as in the published table."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        unk_token=END,
        eos_token=END,
        pad_token=END,
        padding_side="left",
    )
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
    )
    return Qwen3Model(config), tokenizer
