"""Flux asks its denoiser, learns and draws as diffusers does. Tolerances are for float32 on one thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot, StError
from st.diffusion.densities import LogitNormal, LogitNormalOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.sampler import guided
from st.diffusion.sampler import sample as integrate
from st.diffusion.shift import ShiftOptions, shift_rule
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st_flux import Flux

CPU = torch.device("cpu")
SIZE = Geometry(height=64, width=96)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def predictor(family: Flux, denoiser: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    def ask(x: Tensor, t: Tensor) -> Tensor:
        return family.predict(denoiser, Noised(x=x, t=t, clean=x, noise=x), batch)

    return ask


def call(denoiser: Any, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor], **given: Any) -> Tensor:
    """What the pipeline asks its denoiser, with its own packing."""
    batch, channels, height, width = x.shape
    text = conditions["prompt_embeds"]
    packed = denoiser(
        hidden_states=FluxPipeline._pack_latents(x, batch, channels, height, width),
        timestep=t,
        pooled_projections=conditions["pooled_prompt_embeds"],
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3),
        **{
            "guidance": torch.ones(batch),
            "img_ids": FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, CPU, torch.float32),
            **given,
        },
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(packed[:, : height * width // 4], height * 8, width * 8, 8)


def test_captions_are_encoded_as_the_pipeline_does(family: Flux, upstream: Any, conditions: Any) -> None:
    captions = "a red square", "b" * 200

    ours = conditions(family, *captions)

    with torch.no_grad():
        embeds, pooled, _ = upstream.pipeline.encode_prompt(list(captions), max_sequence_length=48)
    assert torch.equal(ours["prompt_embeds"], embeds)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


@pytest.mark.parametrize("fuse_qkv", [False, True])
def test_the_prediction_is_the_pipelines(make_family: Any, upstream: Any, sample: Any, fuse_qkv: bool) -> None:
    family = make_family(fuse_qkv=fuse_qkv, guidance=3.5)
    batch, noised = sample(family)

    with torch.no_grad():
        prediction = family.predict(family.load_denoiser(CPU, torch.float32), noised, batch)
        guidance = torch.full((2,), 3.5)
        expected = call(upstream.pipeline.transformer, noised.x, noised.t, batch.conditions, guidance=guidance)

    torch.testing.assert_close(prediction, expected, rtol=0, atol=1e-5 if fuse_qkv else 0)


def test_guidance_of_a_range_is_drawn_for_each_sample(make_family: Any, upstream: Any, sample: Any) -> None:
    family = make_family(guidance=(1.0, 4.0))
    batch, noised = sample(family, ("a", "a", "a"))
    noised = replace(noised, x=noised.x[:1].expand_as(noised.x), t=noised.t[:1].expand(3))
    denoiser = family.load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        first, again = (family.predict(denoiser, noised, batch) for _ in range(2))
        reordered = family.predict(denoiser, noised, replace(batch, indices=batch.indices[::-1]))

    assert torch.equal(first, again)
    torch.testing.assert_close(reordered, first.flip(0), rtol=0, atol=1e-5)
    assert len({round(float(one.sum()), 3) for one in first}) == 3
    drawn = family._guidance(denoiser, replace(batch, indices=tuple(range(200))), noised.t)
    assert drawn is not None and 1 <= drawn.min() < 1.2 and 3.8 < drawn.max() <= 4


def lora(denoiser: nn.Module, family: Flux) -> list[Tensor]:
    groups = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    parameters: list[Tensor] = groups[0]["params"]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return parameters


def whole(denoiser: nn.Module, family: Flux) -> list[Tensor]:
    parameters: list[Tensor] = FullAdapter(FullOptions()).attach(denoiser, ())[0]["params"]
    return parameters


@pytest.mark.parametrize("attach", [lora, whole])
def test_a_step_is_that_of_diffusers_training_example(
    family: Flux, upstream: Any, sample: Any, attach: Callable[[nn.Module, Flux], list[Tensor]]
) -> None:
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    parameters = attach(denoiser, family)
    scheduler = upstream.pipeline.scheduler
    times = scheduler.timesteps[torch.tensor([700, 200])]
    t = times / scheduler.config.num_train_timesteps
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


def objective(family: Flux) -> Objective:
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
    """The loss of examples/dreambooth/train_dreambooth_lora_flux.py for given latents, noise and times."""
    clean = batch.latents
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in times])
    sigmas = sigmas.reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * clean + sigmas * noise
    prediction = call(denoiser, noisy, times / 1000, batch.conditions)
    weighting = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
    error = (weighting.float() * (prediction.float() - (noise - clean).float()) ** 2).reshape(len(clean), -1)
    return error.mean(1).mean()


@pytest.mark.parametrize(("guidance", "real"), [(1.0, 1.0), (3.5, 1.0), (3.5, 2.5)])
def test_our_sampler_draws_what_the_pipeline_draws(
    make_family: Any, upstream: Any, conditions: Any, guidance: float, real: float
) -> None:
    family = make_family(guidance=guidance)
    denoiser = family.load_denoiser(CPU, torch.float32)
    noise = torch.randn(1, 16, 8, 12)
    prompt, negative = conditions(family, "a cat"), conditions(family, "blurry")
    against = {f"negative_{name}": tensor for name, tensor in negative.items()}

    with torch.no_grad():
        expected, times = upstream.latents(
            prompt | against, noise, guidance_scale=guidance, true_cfg_scale=real, num_inference_steps=6
        )
        ask, oppose = (predictor(family, denoiser, Batch(("a",), (0,), "", noise, c)) for c in (prompt, negative))
        ask = guided(ask, oppose, real) if real > 1 else ask
        latents = integrate(ask, family.path, family.target, noise, times)

    assert float((latents - expected).abs().max()) < 1e-4
    assert len(times) == 7


@pytest.mark.parametrize("real", [1.0, 2.5])
def test_a_preview_is_the_pipelines_picture(make_family: Any, upstream: Any, conditions: Any, real: float) -> None:
    family = make_family(real_guidance=real)
    prompt, negative = conditions(family, "a cat"), conditions(family, "blurry")

    picture = family.render(
        family.load_denoiser(CPU, torch.float32), Shot(prompt, negative, SIZE, seed=5, steps=3, guidance=3.0)
    )

    expected = upstream.pipeline(
        "a cat",
        negative_prompt="blurry",
        true_cfg_scale=real,
        guidance_scale=3.0,
        height=64,
        width=96,
        num_inference_steps=3,
        max_sequence_length=48,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert torch.equal(picture, expected)


def test_real_guidance_without_a_negative_prompt_is_refused(make_family: Any, conditions: Any) -> None:
    family = make_family(real_guidance=2.0)

    with pytest.raises(StError, match="real_guidance needs a negative prompt"):
        family.render(nn.Linear(1, 1), Shot(conditions(family, "a"), None, SIZE, seed=1, steps=1, guidance=1.0))


def test_times_are_shifted_as_the_pipeline_shifts_them(family: Flux, upstream: Any, sample: Any) -> None:
    batch, noised = sample(family)
    _, times = upstream.latents(batch.conditions, noised.noise)

    k = family.time_shift(family.tokens(noised.x))

    expected = [k * t / (1 + (k - 1) * t) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert times == pytest.approx(expected, abs=1e-6)


def test_a_model_without_guidance_is_told_none_and_shifts_nothing(
    make_family: Any, make_upstream: Any, folder: Path, tmp_path: Path, sample: Any
) -> None:
    schnell = without_guidance(folder, tmp_path / "schnell")
    family = make_family(checkpoint=str(schnell), flavour="schnell")
    batch, noised = sample(family)
    pipeline = make_upstream(where=schnell)

    with torch.no_grad():
        prediction = family.predict(family.load_denoiser(CPU, torch.float32), noised, batch)
        expected = call(pipeline.pipeline.transformer, noised.x, noised.t, batch.conditions, guidance=None)
        _, times = pipeline.latents(batch.conditions, noised.noise)

    assert torch.equal(prediction, expected)
    assert family.time_shift(24) == 1
    assert times == [1.0, 0.75, 0.5, 0.25, 0.0]


def without_guidance(folder: Path, where: Path) -> Path:
    """The tiny checkpoint as schnell is: not told guidance, times not shifted."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    pipeline = FluxPipeline.from_pretrained(folder)
    config = dict(pipeline.transformer.config) | {"guidance_embeds": False}
    pipeline.register_modules(
        transformer=FluxTransformer2DModel.from_config(config), scheduler=FlowMatchEulerDiscreteScheduler()
    )
    pipeline.save_pretrained(where)
    return where
