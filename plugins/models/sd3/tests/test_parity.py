"""Stable Diffusion 3 learns as diffusers' training example does, and guides previews as its pipeline does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from st import Batch, Encoder, Geometry, Noised, Shot
from st.data.encoder import Input
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st_sd3 import Sd3

CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
Sample = Callable[[Sd3], tuple[Batch, Noised]]


def example_loss(denoiser: nn.Module, scheduler: Any, batch: Batch, noise: Tensor, times: Tensor) -> Tensor:
    """The loss of examples/dreambooth/train_dreambooth_lora_sd3.py for given latents, noise and times, (B,).

    It scores the picture that an answer means, not the answer.
    """
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in times])
    sigmas = sigmas.reshape(-1, 1, 1, 1)
    noisy = sigmas * noise + (1.0 - sigmas) * batch.latents
    answer = denoiser(
        hidden_states=noisy,
        timestep=times,
        encoder_hidden_states=batch.conditions["prompt_embeds"],
        pooled_projections=batch.conditions["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return ((answer * (-sigmas) + noisy - batch.latents) ** 2).reshape(len(times), -1).mean(1)


def test_a_step_is_that_of_diffusers_training_example(family: Sd3, folder: Path, sample: Sample) -> None:
    """Its errors are ours times the time: of the picture x - t v, where ours are of v."""
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    parameters = trained(denoiser, family)
    scheduler = StableDiffusion3Pipeline.from_pretrained(folder).scheduler
    times = scheduler.timesteps[torch.tensor([700, 200])]
    t = times / scheduler.config.num_train_timesteps
    noised = replace(noised, x=family.path(t).of(noised.clean, noised.noise), t=t)

    error = family.predict(denoiser, noised, batch) - family.target(family.path(t)).of(noised.clean, noised.noise)
    ours = t**2 * error.square().flatten(1).mean(1)
    gradients = torch.autograd.grad(ours.mean(), parameters)
    theirs = example_loss(denoiser, scheduler, batch, noised.noise, times)
    expected = torch.autograd.grad(theirs.mean(), parameters)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(gradients) == len(expected) > 0
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def trained(denoiser: nn.Module, family: Sd3) -> list[Tensor]:
    parameters: list[Tensor] = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())[0]["params"]
    for parameter in parameters:
        parameter.data.normal_(std=0.1)
    return parameters


def test_times_are_those_that_the_example_draws(family: Sd3, folder: Path) -> None:
    """An even time, moved by the family, is the entry of the scheduler's table at its place."""
    scheduler = StableDiffusion3Pipeline.from_pretrained(folder).scheduler

    k = family.time_shift(24)

    even = torch.linspace(1, 0.001, 1000)
    torch.testing.assert_close(k * even / (1 + (k - 1) * even), scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.alone
def test_previews_are_guided_away_from_what_skips_layers(make_family: Any, folder: Path) -> None:
    family, plain = make_family(skip_layers=(1,), skip_strength=2.0), make_family()
    (encoder,) = family.text_encoders()
    wanted, against = (family.collate(encoded(encoder, text)) for text in ("a cat", "blurry"))
    denoiser = family.load_denoiser(CPU, torch.float32)
    shot = Shot(wanted, against, SIZE, seed=5, steps=12, guidance=3.0)

    with torch.no_grad():
        picture, other = family.render(denoiser, shot), plain.render(denoiser, shot)

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    expected = pipeline(
        "a cat",
        negative_prompt="blurry",
        guidance_scale=3.0,
        height=64,
        width=96,
        num_inference_steps=12,
        max_sequence_length=48,
        skip_guidance_layers=[1],
        skip_layer_guidance_scale=2.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert torch.equal(picture, expected)
    assert not torch.equal(picture, other)


def encoded(encoder: Encoder, caption: str) -> Sequence[Mapping[str, Tensor]]:
    with encoder.open(CPU) as ask:
        return ask([Input(key=caption, caption=caption)])
