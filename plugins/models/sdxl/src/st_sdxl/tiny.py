"""A tiny checkpoint in the layout of the real ones, with random weights and tokenizers made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from st.model.pipelines.learning_text import save_text_encoder
from st_sdxl.settings import SCHEDULE

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WIDTH, WIDTH_2 = 16, 32
"""Of the text encoders."""
TIME_WIDTH = 8
LENGTH = 77


def write(directory: Path) -> None:
    """Write the checkpoint; the same one every time, and torch's own generator is as before."""
    directory.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet().save_pretrained(directory / "unet")
        autoencoder().save_pretrained(directory / "vae")
        words = vocabulary()
        first: Any = CLIPTextModel(text_config(WIDTH, "quick_gelu", words))
        second: Any = CLIPTextModelWithProjection(text_config(WIDTH_2, "gelu", words))
    save_text_encoder(first, directory / "text_encoder")
    save_text_encoder(second, directory / "text_encoder_2")
    write_tokenizer(directory / "tokenizer", words, END)
    write_tokenizer(directory / "tokenizer_2", words, "!")
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


def autoencoder() -> Any:
    """An autoencoder that makes one latent of 8 x 8 pixels."""
    build: Any = AutoencoderKL
    return build(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def text_config(width: int, activation: str, words: dict[str, int]) -> CLIPTextConfig:
    """A text encoder of three layers."""
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=words[BEGIN],
        eos_token_id=words[END],
        pad_token_id=words[END],
    )


def vocabulary() -> dict[str, int]:
    """Every byte as a token, with and without the end of a word; ``!`` is 0, as in the real one."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # CLIP's table of bytes: one that cannot be printed is the next letter beyond them.
    letters = [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), BEGIN, END]
    return {word: index for index, word in enumerate(words)}


def write_tokenizer(directory: Path, words: dict[str, int], padding: str) -> None:
    """A tokenizer that spells: in one file, and in the two that CLIP's own has."""
    build: Any = CLIPTokenizer
    build(vocab=words, merges=[], model_max_length=LENGTH, pad_token=padding).save_pretrained(directory)
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
