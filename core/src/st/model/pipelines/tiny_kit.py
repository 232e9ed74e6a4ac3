"""Tiny kit: parts for tiny checkpoints, with random weights: text encoders with their tokenizers, and autoencoders.

Sizes that a family's other parts depend on are arguments; every further setting of a part's upstream configuration may
be given by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_tokenizer import (
    CLIP_LENGTH,
    END,
    PRINTABLE,
    begun_tokenizer,
    byte_tokenizer,
    character_tokenizer,
    clip_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VISION_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""Words that are one token each in the tokenizers of models that see."""

PIXTRAL_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
"""The same of Mistral's."""

_CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
_CHATTED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_INSTRUCTED = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}[IMG]{% endif %}{% endfor %}{% endif %}"
    "{% if message.role == 'system' %}[/SYSTEM_PROMPT]{% else %}[/INST]{% endif %}{% endfor %}"
)


@contextmanager
def same_weights(seed: int = 0) -> Iterator[None]:
    """Inside of it parts get the same random weights each time; torch's own generator is as before after it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def save_pipeline(kind: str, directory: Path, **parts: Any) -> None:
    """Write a whole checkpoint, ``model_index.json`` included. kind: the pipeline's class in diffusers."""
    import diffusers

    from st.model.checkpoint.quiet import quietly

    pipeline = getattr(diffusers, kind)(**parts)
    with quietly():
        pipeline.save_pretrained(directory)


def save_processor(kind: str, directory: Path, tokenizer: Any, **settings: Any) -> None:
    """Write the part of a checkpoint that makes tokens of text and pictures, and name it in ``model_index.json``.

    kind: its class in transformers, such as "Qwen2VLProcessor". directory: the part's folder in a checkpoint that is
    there. settings: of how pictures are cut up, such as ``patch_size``.
    """
    import json

    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(**settings).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    index = directory.parent / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8")) | {directory.name: ["transformers", kind]}
    index.write_text(json.dumps(parts, indent=2), encoding="utf-8")


def t5(width: int = 32, layers: int = 2, kind: str = "T5EncoderModel", **settings: Any) -> tuple[Any, Any]:
    """T5, or another of its shape ("UMT5EncoderModel"), and a tokenizer of characters. Embeddings are (B, L, width)."""
    tokenizer, count = character_tokenizer()
    shape = {
        "vocab_size": count,
        "d_model": width,
        "d_kv": width // 2,
        "d_ff": 2 * width,
        "num_layers": layers,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }
    return _made(kind, shape | settings), tokenizer


def clip(
    width: int = 32,
    layers: int = 2,
    *,
    projected: bool = False,
    characters: Sequence[str] = PRINTABLE,
    padding: str = END,
    **settings: Any,
) -> tuple[Any, Any]:
    """CLIP's text encoder and its tokenizer, of 77 tokens. Embeddings are (B, 77, width), pooled ones (B, width).

    projected: the class with a projection, to ``projection_dim``, else to the same width. padding: the token of it.
    """
    tokenizer, count = clip_tokenizer(characters, padding)
    shape = {
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_LENGTH,
        "projection_dim": width,
        "bos_token_id": count - 2,
        "eos_token_id": count - 1,
    }
    return _made("CLIPTextModelWithProjection" if projected else "CLIPTextModel", shape | settings), tokenizer


def language(
    kind: str = "Qwen3Model", width: int = 32, layers: int = 2, *, chats: bool = False, **settings: Any
) -> tuple[Any, Any]:
    """A language model by its class in transformers, and a tokenizer of its kind. Hidden states are (B, L, width).

    Qwen2, Qwen3, Gemma 1 to 3 (text), Llama, Mistral and GLM are of this shape. Qwen and GLM count bytes and pad to the
    left; the others begin with a token of their own and pad to the right. chats: whether the tokenizer has a chat
    template, of the form that Qwen3's has.
    """
    tokenizer, count = _words_of(kind)
    if chats:
        tokenizer.chat_template = _CHATTED
        count += tokenizer.add_special_tokens({"additional_special_tokens": list(_CHAT_TOKENS)})
    shape = _language(count, width, layers)
    if kind.startswith("Glm"):
        # Its configuration names a token of the published table where none is given.
        shape |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return _made(kind, shape | settings), tokenizer


def seeing(
    kind: str = "Qwen2_5_VLForConditionalGeneration", width: int = 32, layers: int = 2, **settings: Any
) -> tuple[Any, Any]:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL with a small eye, and its tokenizer of bytes. Hidden states are (B, L, width).

    settings: of the language part. A picture becomes a token for each 28 x 28 pixels, or 32 x 32 of Qwen3-VL; the
    processor that cuts it up is upstream's own, with a ``patch_size`` of 14 or 16, and needs torchvision.
    """
    tokenizer, count = byte_tokenizer(VISION_TOKENS, side="right")
    shape = _language(count, width, layers) | {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _thirds(width // 4)},
    }
    named = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in named.items()}
    eye: dict[str, Any] = {
        "depth": 1,
        "num_heads": 2,
        "patch_size": 16 if kind.startswith("Qwen3") else 14,
        "out_hidden_size": width,
    }
    eye |= {"embed_dim": 16, "hidden_size": width} if kind.startswith("Qwen2VL") else {"hidden_size": 16}
    eye |= {"intermediate_size": 32, "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0]}
    return _made(kind, {"text_config": shape | settings, "vision_config": eye, **ids}), tokenizer


def siglip2(width: int = 16, layers: int = 1, patches: int = 16, **settings: Any) -> tuple[Any, Any]:
    """SigLIP 2 for pictures of any aspect, and its processor. It sees (patches, width), a patch of 16 x 16 pixels each.

    The processor is upstream's own that needs no torchvision; it makes pictures as small as their patches have room.
    """
    import transformers

    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_patches": patches,
        "patch_size": 16,
    }
    processor = transformers.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=patches)
    return _made("Siglip2VisionModel", shape | settings), processor


def pixtral(
    kind: str = "Mistral3ForConditionalGeneration",
    width: int = 32,
    layers: int = 2,
    words: Sequence[str] = (),
    **settings: Any,
) -> tuple[Any, Any]:
    """Mistral with Pixtral's small eye, and a tokenizer of characters. Hidden states are (B, L, width).

    words: further ones that are one token each, such as a system prompt. settings: of the language part. The tokenizer
    has a chat template of the published form, and pads to the left. Published checkpoints wrap it in a processor.
    """
    tokenizer, count = begun_tokenizer("LlamaTokenizer")
    tokenizer.padding_side, tokenizer.chat_template = "left", _INSTRUCTED
    count += tokenizer.add_special_tokens({"additional_special_tokens": [*PIXTRAL_TOKENS, *words]})
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = _language(count, width, layers) | ids | {"model_type": "mistral", "sliding_window": None}
    eye = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    eye |= {"num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    image = tokenizer.convert_tokens_to_ids(PIXTRAL_TOKENS[0])
    model = _made(kind, {"text_config": shape | settings, "vision_config": eye, "image_token_index": image})
    return model, tokenizer


AUTOENCODERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "AutoencoderKL": {
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        "AutoencoderKLFlux2": {
            "block_out_channels": (8, 8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        "AutoencoderKLQwenImage": {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        "AutoencoderKLWan": {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        "AutoencoderKLHunyuanVideo": {
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
        },
        "AutoencoderKLLTXVideo": {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
        },
        "AutoencoderKLCogVideoX": {
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
        },
        "AutoencoderDC": {
            "latent_channels": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
            "attention_head_dim": 4,
        },
        "AutoencoderOobleck": {
            "encoder_hidden_size": 16,
            "decoder_channels": 16,
            "decoder_input_channels": 8,
            "channel_multiples": [1, 1, 1],
            "downsampling_ratios": [2, 4, 8],
            "sampling_rate": 1600,
        },
    }
)
"""By class in diffusers: small sizes, that keep how much smaller than the media its latents are."""


def autoencoder(kind: str = "AutoencoderKL", **settings: Any) -> Any:
    """An autoencoder by its class in diffusers. settings: what the family depends on, such as ``latent_channels``.

    Small sizes are known for AUTOENCODERS; of another class everything is given.
    """
    import diffusers

    return getattr(diffusers, kind)(**{**AUTOENCODERS.get(kind, {}), **settings})


def _made(kind: str, settings: Mapping[str, Any]) -> Any:
    """A model of transformers from its configuration, in eval mode."""
    import transformers

    made: Any = getattr(transformers, kind)
    return made(made.config_class(**settings)).eval()


def _language(count: int, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": count,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
    }


def _words_of(kind: str) -> tuple[Any, int]:
    for start, tokenizer in _BEGUN.items():
        if kind.startswith(start):
            return begun_tokenizer(tokenizer)
    return byte_tokenizer()


_BEGUN: Mapping[str, str] = MappingProxyType(
    {"Gemma": "GemmaTokenizer", "Llama": "LlamaTokenizer", "Mistral": "LlamaTokenizer"}
)


def _thirds(total: int) -> list[int]:
    """Time, height and width of rotary positions."""
    return [total - 2 * (total // 3), total // 3, total // 3]
