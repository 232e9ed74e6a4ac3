"""Flux.2 learns as upstream's training examples do. Tolerances are for float32 on one thread."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from st import Batch
from st.diffusion.densities import LogitNormal, LogitNormalOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.shift import ShiftOptions, shift_rule
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st_flux2 import Flux2

CPU = torch.device("cpu")


def example_loss(denoiser: Any, batch: Batch, noise: Tensor, times: Tensor, guidance: Tensor | None) -> Tensor:
    """The loss of examples/dreambooth/train_dreambooth_lora_flux2_klein.py, and of the one for dev, for given latents,
    noise and times in thousandths."""
    clean, sigmas = batch.latents, (times / 1000).reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * clean + sigmas * noise
    text, ids = batch.conditions["prompt_embeds"], Flux2KleinPipeline._prepare_latent_ids(clean)
    answer = denoiser(
        hidden_states=Flux2KleinPipeline._pack_latents(noisy),
        timestep=times / 1000,
        guidance=guidance,
        encoder_hidden_states=text,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(text),
        img_ids=ids,
        return_dict=False,
    )[0]
    prediction = Flux2KleinPipeline._unpack_latents_with_ids(answer, ids)
    return ((prediction.float() - (noise - clean).float()) ** 2).reshape(len(clean), -1).mean(1).mean()


@pytest.mark.parametrize("flavour", ["klein-base-4b", pytest.param("dev", marks=pytest.mark.alone)])
def test_a_step_is_that_of_diffusers_training_example(make_family: Any, sample: Any, flavour: str) -> None:
    family = make_family(flavour, **({"guidance": 3.5} if flavour == "dev" else {}))
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    parameters = attached(denoiser, family)
    guidance = torch.full([1], 3.5).expand(2) if flavour == "dev" else None

    losses = objective(family).loss(family.predict(denoiser, noised, batch), noised, batch)
    losses.total.backward()
    ours = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    denoiser.zero_grad()
    expected = example_loss(denoiser, batch, noised.noise, noised.t * 1000, guidance)
    expected.backward()
    theirs = [parameter.grad for parameter in parameters if parameter.grad is not None]

    assert len(ours) == len(theirs) == len(parameters)
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def attached(denoiser: Any, family: Flux2) -> list[Tensor]:
    groups = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    parameters: list[Tensor] = groups[0]["params"]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return parameters


def objective(family: Flux2) -> Objective:
    """As a run without further settings scores."""
    shift = shift_rule(ShiftOptions(), family.tokens, family.time_shift)
    density, weighting = LogitNormal(LogitNormalOptions()), Uniform(UniformOptions())
    return Objective(family.path, family.target, density, weighting, L2(L2Options()), shift=shift)


@pytest.mark.parametrize("tokens", [24, 1024, 4096])
def test_times_are_shifted_as_the_pipeline_shifts_those_of_many_steps(make_family: Any, tokens: int) -> None:
    family = make_family()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(family.folder.location, subfolder="scheduler")
    even = torch.linspace(1.0, 1 / 200, 200)
    scheduler.set_timesteps(sigmas=even.tolist(), mu=compute_empirical_mu(tokens, 200))

    k = family.time_shift(tokens)

    torch.testing.assert_close(k * even / (1 + (k - 1) * even), scheduler.sigmas[:-1], rtol=0, atol=1e-6)
    assert k < math.exp(compute_empirical_mu(tokens, 50))


def test_guidance_of_a_range_is_drawn_for_each_sample(make_family: Any, sample: Any) -> None:
    family = make_family("dev", guidance=(1.0, 4.0))
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    many = Batch(("a",) * 200, tuple(range(200)), "a", batch.latents, batch.conditions)

    drawn = family._guidance(denoiser, many, torch.zeros(200))

    assert drawn is not None and 1 <= drawn.min() < 1.2 and 3.8 < drawn.max() <= 4
    assert family._guidance(make_family().load_denoiser(CPU, torch.float32), many, noised.t) is None
