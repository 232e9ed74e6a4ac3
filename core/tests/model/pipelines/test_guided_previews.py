"""Previews with guidance, of a family whose padding is trimmed away: a text and a negative of other lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot
from st.data.encoder import Input
from st.model.collate import pad_alike
from st.model.pipelines.pipeline_family import PipelineFamily, PipelineOptions
from st.model.pipelines.tiny_kit import autoencoder, same_weights, save_pipeline, t5

CPU = torch.device("cpu")
WIDTH = 16
# A guard of diffusers warns where a component is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class Trimmed(PipelineFamily[PipelineOptions]):
    """A pipeline that takes one mask for each text, and both texts at one length."""

    pipeline = "PixArtSigmaPipeline"
    encodes = ("prompt_embeds", "prompt_attention_mask", None, None)
    trims = {"prompt_embeds": "prompt_attention_mask"}  # noqa: RUF012

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": 30, "clean_caption": False}

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        return {"use_resolution_binning": False, "clean_caption": False}

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2] // 4

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        raise NotImplementedError

    def adapter_targets(self) -> Sequence[str]:
        return ("to_q",)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from diffusers import DDIMScheduler, PixArtTransformer2DModel

        with same_weights():
            encoder, tokenizer = t5(WIDTH)
            save_pipeline(
                "PixArtSigmaPipeline",
                directory,
                text_encoder=encoder,
                tokenizer=tokenizer,
                vae=autoencoder(),
                transformer=PixArtTransformer2DModel(
                    num_layers=2,
                    num_attention_heads=2,
                    attention_head_dim=8,
                    cross_attention_dim=16,
                    caption_channels=WIDTH,
                    sample_size=8,
                    in_channels=4,
                    out_channels=8,
                ),
                scheduler=DDIMScheduler(),
            )
        return cls(PipelineOptions(checkpoint=str(directory), text_precision="fp32"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Trimmed:
    return Trimmed.tiny(tmp_path_factory.mktemp("trimmed"))


def conditions(family: Trimmed, text: str) -> Mapping[str, Tensor]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        return family.collate(encode([Input(text, caption=text)]))


@pytest.mark.parametrize(("text", "against"), [("a cat", "blurry, cut off, grey"), ("a cat on a long mat", "grey")])
def test_a_negative_of_another_length_gives_the_pipelines_picture(family: Trimmed, text: str, against: str) -> None:
    from diffusers import PixArtSigmaPipeline

    told = []
    shot = Shot(
        conditions(family, text),
        conditions(family, against),
        Geometry(32, 48),
        seed=5,
        steps=3,
        guidance=4.0,
        on_step=told.append,
    )

    picture = family.render(family.load_denoiser(CPU, torch.float32), shot)

    upstream = PixArtSigmaPipeline.from_pretrained(family.options.checkpoint)
    upstream.set_progress_bar_config(disable=True)
    expected = upstream(
        text,
        negative_prompt=against,
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=30,
        clean_caption=False,
        use_resolution_binning=False,
        output_type="pt",
    ).images
    # Upstream has more padding behind both texts, all of it masked: sums are of other lengths.
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-4)
    assert told == [1, 2, 3]


def test_padding_is_put_back_as_far_as_the_longer_text() -> None:
    first = {"text": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4)}
    second = {"text": torch.ones(1, 5, 3), "pooled": torch.ones(1, 4)}

    one, other = pad_alike(first, second, ["text"])

    assert one["text"].shape == other["text"].shape == (1, 5, 3)
    assert one["text"][0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert one["text_mask"].tolist() == [[True, True, False, False, False]]
    assert other["text_mask"].all()
    assert one["pooled"] is first["pooled"]


def test_texts_of_one_length_are_left_as_they_are() -> None:
    text = {"text": torch.ones(1, 2, 3)}

    assert pad_alike(text, text, ["text"]) == (text, text)
