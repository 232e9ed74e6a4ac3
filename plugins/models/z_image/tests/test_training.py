"""Z-Image learns as diffusers' training example does, and beside an assistant as without. Float32 on one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor, nn

from st import Batch, Geometry, Shot
from st.diffusion.densities import LogitNormal, LogitNormalOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.shift import ShiftOptions, shift_rule
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.assistant import add_assistant
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.testing import example_batch, example_noised
from st_z_image import ZImage

CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


def lora(denoiser: nn.Module, family: ZImage) -> list[Tensor]:
    groups = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    parameters: list[Tensor] = groups[0]["params"]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return parameters


def whole(denoiser: nn.Module, family: ZImage) -> list[Tensor]:
    parameters: list[Tensor] = FullAdapter(FullOptions()).attach(denoiser, ())[0]["params"]
    return parameters


@pytest.mark.parametrize("attach", [lora, whole])
def test_a_step_is_that_of_diffusers_training_example(
    family: ZImage, attach: Callable[[nn.Module, ZImage], list[Tensor]]
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


def objective(family: ZImage) -> Objective:
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
    """The loss of examples/dreambooth/train_dreambooth_lora_z_image.py for given latents, noise and times."""
    clean, mask = batch.latents, batch.conditions["prompt_embeds_mask"]
    captions = [rows[: int(real.sum())] for rows, real in zip(batch.conditions["prompt_embeds"], mask, strict=True)]
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in times])
    sigmas = sigmas.reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * clean + sigmas * noise
    given = list(noisy.unsqueeze(2).unbind(dim=0))
    prediction = -torch.stack(denoiser(given, (1000 - times) / 1000, captions, return_dict=False)[0]).squeeze(2)
    weighting = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
    error = (weighting.float() * (prediction.float() - (noise - clean).float()) ** 2).reshape(len(clean), -1)
    return error.mean(1).mean()


def test_an_assistant_is_there_in_training_and_not_in_previews(
    make_family: Callable[..., ZImage], tmp_path: Path
) -> None:
    family = make_family(flavour="turbo")
    batch = example_batch(family, SIZE, ("a cat",))
    noised = example_noised(family, batch)
    helper, denoiser = (family.load_denoiser(CPU, torch.float32) for _ in range(2))
    lora(helper, family)
    adapter = LoraAdapter(LoraOptions(rank=4, format="comfyui"))
    fresh = family.load_denoiser(CPU, torch.float32)
    for group in adapter.attach(fresh, family.adapter_targets()):
        for parameter, moved in zip(group["params"], learned(helper), strict=True):
            parameter.data.copy_(moved)
    shot = Shot(batch.conditions, None, SIZE, seed=5, steps=2, guidance=1.0)
    bare, drawn = family.predict(denoiser, noised, batch).detach(), family.render(denoiser, shot)

    add_assistant(denoiser, adapter.export(family, fresh, tmp_path, {}), family.adapter_formats(), 1.0)

    with torch.no_grad():
        training, expected = family.predict(denoiser, noised, batch), family.predict(helper, noised, batch)
        assert torch.equal(family.render(denoiser, shot), drawn)
    torch.testing.assert_close(training, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(training, bare, atol=1e-3)


def learned(denoiser: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in denoiser.named_parameters() if "lora" in name]
