"""Parts of tiny checkpoints read texts and media, and are what upstream's loaders read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from st.model.pipelines.tiny_kit import (
    AUTOENCODERS,
    autoencoder,
    clip,
    language,
    pixtral,
    same_weights,
    save_pipeline,
    seeing,
    siglip2,
    t5,
)

WIDTH = 24
TEXTS = ["a cat", "a longer one"]
LANGUAGES = ("Qwen2Model", "Qwen3Model", "Gemma2Model", "Gemma3TextModel", "LlamaModel", "MistralModel", "GlmModel")
PIXTRAL = ("Mistral3ForConditionalGeneration",)
SEEING = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")


def part(kind: str) -> tuple[Any, Any]:
    if kind.startswith("CLIP"):
        return clip(WIDTH, projected=kind.endswith("Projection"))
    if kind.endswith("EncoderModel"):
        return t5(WIDTH, kind=kind)
    if kind in PIXTRAL:
        return pixtral(kind, WIDTH)
    return seeing(kind, WIDTH) if kind in SEEING else language(kind, WIDTH)


def read(model: Any, tokenizer: Any) -> Tensor:
    with torch.no_grad():
        answer = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), output_hidden_states=True)
    hidden: Tensor = answer.hidden_states[-1]
    return hidden


@pytest.mark.parametrize(
    "kind",
    [
        "T5EncoderModel",
        "UMT5EncoderModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        *LANGUAGES,
        *PIXTRAL,
        *SEEING,
    ],
)
def test_a_text_encoder_and_its_tokenizer_are_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    with same_weights():
        model, tokenizer = part(kind)
    expected = read(model, tokenizer)

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = type(model).from_pretrained(tmp_path / "model")
    words = type(tokenizer).from_pretrained(tmp_path / "tokenizer")

    assert type(model).__name__ == kind
    assert expected.shape[::2] == (2, WIDTH)
    assert torch.equal(read(loaded, words), expected)
    assert not torch.allclose(expected[0, -1], expected[1, -1])


def test_siglip_sees_as_many_patches_as_it_says_and_is_the_same_when_loaded(tmp_path: Path) -> None:
    with same_weights():
        model, processor = siglip2(WIDTH, patches=16)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    loaded = type(model).from_pretrained(tmp_path / "model")
    cutting = type(processor).from_pretrained(tmp_path / "processor")
    shown = [Image.new("RGB", (96, 48), "teal")]

    with torch.no_grad():
        seen = model(**processor(shown, return_tensors="pt")).last_hidden_state
        again = loaded(**cutting(shown, return_tensors="pt")).last_hidden_state

    assert seen.shape == (1, 16, WIDTH)
    assert torch.equal(again, seen)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: language("Qwen3Model", WIDTH, chats=True), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            lambda: pixtral(width=WIDTH, words=("Be brief.",)),
            "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]hi[/INST]",
        ),
    ],
)
def test_a_tokenizer_that_chats_has_one_token_for_each_word_of_its_template(made: Any, expected: str) -> None:
    model, tokenizer = made()
    chat = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    system = [{"role": "system", "content": "Be brief."}] if "SYSTEM" in expected else []
    if not system:
        chat[0]["content"] = "hi"

    text = tokenizer.apply_chat_template([*system, *chat], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids

    assert text == expected
    assert len(ids) < 30
    assert max(ids) < model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize("kind", list(AUTOENCODERS))
def test_an_autoencoder_gives_back_media_of_the_same_size(kind: str) -> None:
    with same_weights():
        made = autoencoder(kind)
    encode = made.encode
    shapes = {"AutoencoderKL": (64, 64), "AutoencoderKLFlux2": (64, 64), "AutoencoderDC": (64, 64)}
    media = torch.rand(1, 2, 6400) if kind == "AutoencoderOobleck" else torch.rand(1, 3, *shapes.get(kind, (9, 64, 64)))

    with torch.no_grad():
        encoded = encode(media)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        decoded = made.decode(latents).sample

    assert decoded.shape == media.shape
    assert latents.shape[-1] < media.shape[-1]
    assert sum(weights.numel() for weights in made.parameters()) < 200_000


def test_weights_are_the_same_each_time_and_leave_no_trace() -> None:
    before = torch.get_rng_state()
    made = []
    for _ in range(2):
        with same_weights():
            made.append(t5(16)[0].state_dict())

    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_whole_checkpoint_is_one_that_the_pipeline_loads(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    with same_weights():
        encoder, tokenizer = t5(16)
        save_pipeline(
            "PixArtSigmaPipeline",
            tmp_path,
            text_encoder=encoder,
            tokenizer=tokenizer,
            vae=autoencoder(),
            transformer=PixArtTransformer2DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8,
                                                 cross_attention_dim=16, caption_channels=16, sample_size=8),
            scheduler=DDIMScheduler(),
        )  # fmt: skip

    assert type(PixArtSigmaPipeline.from_pretrained(tmp_path).vae).__name__ == "AutoencoderKL"
