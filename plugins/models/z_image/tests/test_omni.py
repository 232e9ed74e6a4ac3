"""Omni: what the pipeline that sees pictures asks its denoiser, with and without references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageOmniPipeline
from PIL import Image
from torch import Tensor, nn

from st import Batch, Geometry, Input, Noised, Shot, StError
from st.testing import ModelFamilyTests, not_applicable
from st.testing.examples import awake_denoiser, example_pixels
from st_z_image import ZImage, ZImageOptions

CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
SHOWN = (Geometry(64, 96), Geometry(80, 64))
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


@pytest.fixture
def family(tmp_path: Path) -> ZImage:
    return ZImage.tiny(tmp_path / "tiny", "omni")


class TestOmni(ModelFamilyTests):
    test_matches_reference = not_applicable("its pipeline is given pictures: the tests below")

    @pytest.fixture
    def family(self, tmp_path: Path) -> ZImage:
        return ZImage.tiny(tmp_path / "tiny", "omni")


@dataclass
class Walk:
    """What the pipeline asked: (time, latents, answer) of each step, and the latents of its references."""

    steps: list[tuple[float, Tensor, Tensor]]
    shown: Sequence[Tensor]


def walked(folder: str, denoiser: nn.Module, pictures: Sequence[Tensor], strength: float) -> Walk:
    pipeline = ZImageOmniPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    # It encodes references in this precision whatever the checkpoint's.
    pipeline.register_modules(transformer=denoiser, vae=pipeline.vae.to(torch.bfloat16))
    walk, step, prepare = Walk([], []), pipeline.scheduler.step, pipeline.prepare_image_latents

    def stepped(answer: Tensor, time: Tensor, latents: Tensor, **given: Any) -> Any:
        walk.steps.append((float(time) / 1000, latents.clone(), answer.clone()))
        return step(answer, time, latents, **given)

    def prepared(**given: Any) -> Any:
        found = prepare(**given)
        walk.shown = [one.squeeze(1)[None] for one in found[0]]
        return found

    pipeline.scheduler.step, pipeline.prepare_image_latents = stepped, prepared
    pipeline(
        image=[picture(one) for one in pictures] or None,
        prompt="make it blue",
        negative_prompt="blurry" if strength else None,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=3,
        guidance_scale=strength,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    )
    return walk


def picture(pixels: Tensor) -> Any:
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def read(family: ZImage, text: str, pictures: Sequence[Tensor]) -> Mapping[str, Tensor]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        return family.collate(encode([Input("a", caption=text, references=tuple(pictures))]))


@pytest.mark.parametrize("strength", [0.0, 3.0])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_step_of_the_pipeline_is_the_familys(family: ZImage, number: int, strength: float) -> None:
    denoiser = awake_denoiser(family)
    pictures = [example_pixels(one, place) for place, one in enumerate(SHOWN[:number])]
    texts = [read(family, text, pictures) for text in ("make it blue", "blurry")]

    with torch.no_grad():
        walk = walked(family.folder.location, denoiser, pictures, strength)
        extras = {f"reference{place or ''}": one for place, one in enumerate(walk.shown)}
        for time, x, expected in walk.steps:
            noised = Noised(x=x, t=torch.tensor([time]), clean=x, noise=x)
            wanted, against = (
                family.predict(denoiser, noised, Batch(("a",), (0,), "a", latents=x, conditions=told, extras=extras))
                for told in texts
            )
            ours = wanted + strength * (wanted - against)
            # Guidance adds up the roundings of both answers, as often as it counts them.
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * (1 + 2 * strength))

    assert (len(walk.steps), len(walk.shown)) == (3, number)


def test_a_preview_without_references_is_the_pipelines(family: ZImage) -> None:
    denoiser = awake_denoiser(family)
    wanted, against = (read(family, text, ()) for text in ("a cat", "blurry"))
    pipeline = ZImageOmniPipeline.from_pretrained(family.folder.location, transformer=denoiser)
    pipeline.set_progress_bar_config(disable=True)

    shown = family.render(denoiser, Shot(wanted, against, SIZE, seed=5, steps=2, guidance=3.0))

    expected = pipeline(
        prompt="a cat",
        negative_prompt="blurry",
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=2,
        guidance_scale=3.0,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert torch.equal(shown, expected)


def test_references_of_two_sizes_and_captions_of_two_lengths_share_a_batch(family: ZImage) -> None:
    denoiser = awake_denoiser(family)
    pictures = [example_pixels(SHOWN[0], 1), example_pixels(SHOWN[1], 2)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 12, generator=generator)
    shown = {"reference": torch.randn(2, 16, 8, 12, generator=generator), "reference2": torch.randn(2, 16, 10, 8)}
    (encoder,) = family.text_encoders()
    captions = ("blue", "make all of it as blue as the sky on a day in winter")
    with encoder.open(CPU) as encode:
        rows = encode([Input(text, caption=text, references=tuple(pictures)) for text in captions])
    t = torch.tensor([0.3, 0.7])

    def asked(keep: slice) -> Tensor:
        batch = Batch(
            captions[keep],
            tuple(range(len(captions[keep]))),
            "a",
            latents=x[keep],
            conditions=family.collate(rows[keep]),
            extras={name: one[keep] for name, one in shown.items()},
        )
        return family.predict(denoiser, Noised(x=x[keep], t=t[keep], clean=x[keep], noise=x[keep]), batch)

    with torch.no_grad():
        together, first, second = asked(slice(0, 2)), asked(slice(0, 1)), asked(slice(1, 2))

    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_the_other_pipeline_is_refused(family: ZImage, folder: Path) -> None:
    with pytest.raises(StError, match="is not of the flavour 'base'") as raised:
        ZImage(ZImageOptions(checkpoint=family.options.checkpoint)).check_files()
    assert raised.value.fix == "set model.flavour to 'omni', or name another checkpoint"

    with pytest.raises(StError, match="is not of the flavour 'omni'"):
        ZImage(ZImageOptions(flavour="omni", checkpoint=str(folder))).codec()
