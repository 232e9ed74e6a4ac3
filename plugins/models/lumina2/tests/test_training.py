"""Lumina 2 learns as diffusers' training example does. Float32 on one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor, nn

from st import Batch, Geometry
from st.diffusion.densities import LogitNormal, LogitNormalOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.shift import ShiftOptions, shift_rule
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.testing import example_batch, example_noised
from st_lumina2 import Lumina2

CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


def lora(denoiser: nn.Module, family: Lumina2) -> list[Tensor]:
    groups = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    parameters: list[Tensor] = groups[0]["params"]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return parameters


def whole(denoiser: nn.Module, family: Lumina2) -> list[Tensor]:
    parameters: list[Tensor] = FullAdapter(FullOptions()).attach(denoiser, ())[0]["params"]
    return parameters


@pytest.mark.parametrize("attach", [lora, whole])
def test_a_step_is_that_of_diffusers_training_example(
    family: Lumina2, attach: Callable[[nn.Module, Lumina2], list[Tensor]]
) -> None:
    batch = example_batch(family, SIZE)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    parameters = attach(denoiser, family)
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(family.folder.location, subfolder="scheduler")
    times = scheduler.timesteps[torch.tensor([700, 200])]
    t = times / scheduler.config.num_train_timesteps
    noised = example_noised(family, batch)
    noised = replace(noised, x=family.path(t).of(noised.clean, noised.noise), t=t)

    losses = objective(family).loss(family.predict(denoiser, noised, batch), noised, batch)
    losses.total.backward()
    ours = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    denoiser.zero_grad()
    expected = example_loss(denoiser, scheduler, batch, noised.noise, times)
    expected.backward()
    theirs = [parameter.grad for parameter in parameters if parameter.grad is not None]

    assert len(ours) == len(theirs) == len(parameters)
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def objective(family: Lumina2) -> Objective:
    """As a run without further settings scores."""
    return Objective(
        family.path,
        family.target,
        LogitNormal(LogitNormalOptions()),
        Uniform(UniformOptions()),
        L2(L2Options()),
        shift=shift_rule(ShiftOptions(), family.tokens, family.time_shift),
    )


def example_loss(denoiser: Any, scheduler: Any, batch: Batch, noise: Tensor, times: Tensor) -> Tensor:
    """The loss of examples/dreambooth/train_dreambooth_lora_lumina2.py for given latents, noise and times."""
    clean, texts = batch.latents, batch.conditions
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in times])
    # Of clean latents there, not of noise.
    sigmas = 1 - sigmas.reshape(-1, 1, 1, 1)
    prediction = denoiser(
        hidden_states=(1.0 - sigmas) * noise + sigmas * clean,
        encoder_hidden_states=texts["prompt_embeds"],
        encoder_attention_mask=texts["prompt_embeds_mask"],
        timestep=sigmas.flatten(),
        return_dict=False,
    )[0]
    weighting = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
    error = (weighting.float() * (prediction.float() - (clean - noise).float()) ** 2).reshape(len(clean), -1)
    return error.mean(1).mean()
