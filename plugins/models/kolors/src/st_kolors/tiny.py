"""Tiny: a whole checkpoint with random weights, in the layout of the published one, in seconds on a CPU."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from st.model.pipelines.tiny_kit import autoencoder, same_weights, save_pipeline
from st_kolors.settings import KolorsOptions

WIDTH, TIME_WIDTH = 32, 8
"""Of the language model, and of each number that the U-Net is told."""


def write_tiny(directory: Path) -> None:
    """Write ``model_index.json`` and every component. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    with same_weights(), tempfile.TemporaryDirectory() as folder:
        text, tokenizer = chatglm(Path(folder))
        save_pipeline(
            "KolorsPipeline",
            directory,
            vae=autoencoder(latent_channels=4, scaling_factor=0.13025),
            text_encoder=text,
            tokenizer=tokenizer,
            unet=_unet(),
            # DDIM's steps are the exact ones of a noise schedule, from pure noise.
            scheduler=build.DDIMScheduler(
                **KolorsOptions.schedule,
                steps_offset=1,
                set_alpha_to_one=True,
                clip_sample=False,
                timestep_spacing="trailing",
            ),
        )


def chatglm(folder: Path) -> tuple[Any, Any]:
    """A ChatGLM of two layers, and its tokenizer of characters, whose table lies in the folder."""
    import torch
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel, RMSNorm
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
    from sentencepiece import SentencePieceTrainer

    characters = [chr(code) for code in range(33, 127)]
    table, train = io.BytesIO(), SentencePieceTrainer.train
    train(
        sentence_iterator=iter([" ".join(characters)]),
        model_writer=table,
        model_type="char",
        vocab_size=len(characters) + 4,
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(table.getvalue())
    build: Any = ChatGLMTokenizer
    tokenizer = build(str(folder / "tokenizer.model"))
    build = ChatGLMConfig
    config = build(
        num_layers=2,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        ffn_hidden_size=2 * WIDTH,
        kv_channels=WIDTH // 2,
        num_attention_heads=2,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        original_rope=True,
        use_cache=False,
    )
    build = ChatGLMModel
    model = build(config, empty_init=False)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            torch.nn.init.ones_(module.weight)
    return model.eval(), tokenizer


def _unet() -> Any:
    """A U-Net with every kind of block that the real one has."""
    import diffusers

    build: Any = diffusers
    return build.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=16,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=WIDTH + 6 * TIME_WIDTH,
        norm_num_groups=8,
    )
