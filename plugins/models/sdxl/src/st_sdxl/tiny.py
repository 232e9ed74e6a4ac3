"""A tiny checkpoint in the layout of the real ones, with random weights and tokenizers made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from st.model.pipelines.learning_text import save_text_encoder
from st.model.pipelines.tiny_kit import autoencoder, clip, same_weights
from st_sdxl.table_options import SCHEDULE

WIDTH, WIDTH_2 = 16, 32
"""Of the text encoders."""
TIME_WIDTH = 8


def write(directory: Path) -> None:
    """Write the checkpoint; the same one every time, and torch's own generator is as before."""
    directory.mkdir(parents=True, exist_ok=True)
    with same_weights():
        unet().save_pretrained(directory / "unet")
        vae = autoencoder(latent_channels=4, scaling_factor=0.13025, force_upcast=True)
        vae.save_pretrained(directory / "vae")
        spelling: dict[str, Any] = {"layers": 3, "characters": letters(), "pad_token_id": 2 * len(letters()) + 1}
        first, tokenizer = clip(WIDTH, hidden_act="quick_gelu", **spelling)
        second, tokenizer_2 = clip(WIDTH_2, hidden_act="gelu", projected=True, padding="!", **spelling)
    save_text_encoder(first, directory / "text_encoder")
    save_text_encoder(second, directory / "text_encoder_2")
    write_tokenizer(directory / "tokenizer", tokenizer)
    write_tokenizer(directory / "tokenizer_2", tokenizer_2)
    scheduler: Any = EulerDiscreteScheduler
    scheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading").save_pretrained(directory / "scheduler")
    write_index(directory)


def unet() -> Any:
    """A U-Net with every kind of block that the real one has: 0.5 M weights."""
    build: Any = UNet2DConditionModel
    return build(
        sample_size=16,
        layers_per_block=2,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=WIDTH + WIDTH_2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=WIDTH_2 + 6 * TIME_WIDTH,
        norm_num_groups=8,
    )


def letters() -> list[str]:
    """A letter for each byte; ``!`` is the first, as in the published table."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # CLIP's table of bytes: one that cannot be printed is the next letter beyond them.
    return [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]


def write_tokenizer(directory: Path, tokenizer: Any) -> None:
    """A tokenizer that spells: in one file, and in the two that CLIP's own has."""
    tokenizer.save_pretrained(directory)
    words = {word: number for word, number in sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])}
    (directory / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def write_index(directory: Path) -> None:
    """``model_index.json``: what the pipeline is made of."""
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.40.0",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (directory / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
