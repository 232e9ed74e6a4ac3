"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CHARACTERS = [chr(code) for code in range(33, 127)]
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WIDTH, T5_WIDTH = 32, 32


def write_tiny(directory: Path) -> None:
    """Write ``model_index.json`` and every component. The same weights each time."""
    import diffusers
    import torch

    build: Any = diffusers  # not typed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip, tokenizer = _clip()
        t5, tokenizer_2 = _t5()
        pipeline = build.FluxPipeline(
            scheduler=build.FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
            ),
            vae=build.AutoencoderKL(
                block_out_channels=(8, 8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=16,
                norm_num_groups=4,
                layers_per_block=1,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=clip,
            tokenizer=tokenizer,
            text_encoder_2=t5,
            tokenizer_2=tokenizer_2,
            transformer=build.FluxTransformer2DModel(
                in_channels=64,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=CLIP_WIDTH,
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    pipeline.save_pretrained(directory)


def _clip() -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = [*CHARACTERS, *(f"{one}</w>" for one in CHARACTERS), START, END]
    tokenizer = CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77, pad_token=END
    )
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=CLIP_WIDTH,
        bos_token_id=words.index(START),
        eos_token_id=words.index(END),
    )
    return CLIPTextModel(config), tokenizer


def _t5() -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel

    from st.model.pipelines.tiny_tokenizer import character_tokenizer

    tokenizer, count = character_tokenizer(CHARACTERS)
    config = T5Config(
        vocab_size=count,
        d_model=T5_WIDTH,
        d_kv=T5_WIDTH // 2,
        d_ff=2 * T5_WIDTH,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config), tokenizer
