"""Training and previews compute what diffusers' own example and pipeline compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot
from st.diffusion.densities import Segmented, SegmentedOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.noise import NoiseOptions
from st.diffusion.objective import Objective
from st.diffusion.sampler import guided, sample
from st.diffusion.weightings import MinSnr, MinSnrOptions, Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.randomness import Draws
from st.report.rendering.rendering import RendersPictures
from st_sdxl import Sdxl

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
Make = Callable[..., Sdxl]
Told = Callable[..., Mapping[str, Tensor]]

PREDICTIONS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "epsilon": ({}, {}),
    "v": ({"prediction": "v"}, {"prediction_type": "v_prediction"}),
    "zero terminal SNR": (
        {"prediction": "v", "zero_terminal_snr": True},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
}


def numbers(batch: Batch) -> Tensor:
    """The numbers that the example tells the U-Net, as it puts them together."""
    rows = []
    for original, crop, target in zip(
        *(batch.extras[n] for n in ("original_size", "crop", "target_size")), strict=True
    ):
        rows.append(torch.tensor([list(original) + list(crop) + list(target)], dtype=torch.float32))
    return torch.cat(rows)


def example_loss(
    unet: Any, batch: Batch, noise: Tensor, index: Tensor, scheduler: Any, snr_gamma: float | None
) -> Tensor:
    """One step of diffusers' train_text_to_image_lora_sdxl.py, from its public classes."""
    noisy = scheduler.add_noise(batch.latents, noise, index)
    prediction = unet(
        noisy,
        index,
        batch.conditions["prompt_embeds"],
        added_cond_kwargs={"time_ids": numbers(batch), "text_embeds": batch.conditions["pooled_prompt_embeds"]},
        return_dict=False,
    )[0]
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch.latents, noise, index) if is_v else noise
    if snr_gamma is None:
        return F.mse_loss(prediction.float(), target.float(), reduction="mean")
    snr = compute_snr(scheduler, index)
    weights = torch.stack([snr, snr_gamma * torch.ones_like(index)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1) if is_v else weights / snr
    loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()


def objective(family: Sdxl, snr_gamma: float | None = None, noise: NoiseOptions | None = None) -> Objective:
    weighting: Any = Uniform(UniformOptions()) if snr_gamma is None else MinSnr(MinSnrOptions(limit=snr_gamma))
    built = Objective(
        family.path, family.target, Segmented(SegmentedOptions()), weighting, L2(L2Options()),
        extra_noise=noise or NoiseOptions(),
    )  # fmt: skip
    assert built.problems() == []
    return built


def gradients(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in denoiser.named_parameters() if one.grad is not None}


def drawn(family: Sdxl, batch: Batch, built: Objective) -> tuple[Noised, Tensor]:
    """A step's noise, and the indices that the example would have drawn for it."""
    noised = built.noise(batch, Draws(7, batch.indices, CPU))
    return noised, (noised.t * 1000).round().long() - 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prediction_is_the_pipelines_call_of_its_unet(
    make: Make, upstream: Callable[..., Any], batch_of: Callable[[Sdxl], Batch], prediction: str
) -> None:
    family = make(**PREDICTIONS[prediction][0])
    batch = batch_of(family)
    noised, index = drawn(family, batch, objective(family))
    denoiser = family.load_denoiser(CPU, torch.float32)

    actual = family.predict(denoiser, noised, batch)

    embeds, _, pooled, _ = upstream().encode_prompt(["a red square on a table", "a tree"], device=CPU)
    expected = upstream().unet(
        noised.x, index, embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": numbers(batch)}
    ).sample  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_and_gradients_are_the_examples(
    make: Make, checkpoint: Path, batch_of: Callable[[Sdxl], Batch], prediction: str, snr_gamma: float | None
) -> None:
    ours, theirs = PREDICTIONS[prediction]
    family = make(**ours)
    batch, built = batch_of(family), objective(family, snr_gamma)
    noised, index = drawn(family, batch, built)
    denoiser = family.load_denoiser(CPU, torch.float32)
    FullAdapter(FullOptions()).attach(denoiser, ())
    unet: Any = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    config = DDPMScheduler.load_config(checkpoint, subfolder="scheduler")
    scheduler = DDPMScheduler.from_config(config, **theirs)

    loss = built.loss(family.predict(denoiser, noised, batch), noised, batch).total
    torch.autograd.backward(loss)
    expected = example_loss(unet, batch, noised.noise, index, scheduler, snr_gamma)
    torch.autograd.backward(expected)

    torch.testing.assert_close(noised.x, scheduler.add_noise(batch.latents, noised.noise, index), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    known = gradients(unet)
    assert gradients(denoiser).keys() == known.keys()
    for name, gradient in gradients(denoiser).items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-5, atol=1e-5)


def test_gradients_of_an_adapter_are_the_examples(
    make: Make, checkpoint: Path, batch_of: Callable[[Sdxl], Batch]
) -> None:
    family = make()
    batch, built = batch_of(family), objective(family, noise=NoiseOptions(offset=0.1, offset_probability=1.0))
    noised, index = drawn(family, batch, built)
    denoiser = family.load_denoiser(CPU, torch.float32)
    LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    moved(denoiser)
    unet: Any = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    moved(unet)
    scheduler = DDPMScheduler.from_pretrained(checkpoint, subfolder="scheduler")

    loss = built.loss(family.predict(denoiser, noised, batch), noised, batch).total
    torch.autograd.backward(loss)
    expected = example_loss(unet, batch, noised.noise, index, scheduler, None)
    torch.autograd.backward(expected)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    known = gradients(unet)
    assert gradients(denoiser).keys() == known.keys() != set()
    for name, gradient in gradients(denoiser).items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-5, atol=1e-5)


def moved(denoiser: nn.Module) -> None:
    """Every weight of the adapter at a value of its own, the same for the same name."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(denoiser.named_parameters()):
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("negative", [None, "", "blurry"])
def test_a_preview_is_the_pipelines_picture(
    make: Make, upstream: Callable[..., Any], told: Told, negative: str | None
) -> None:
    family = make()
    assert isinstance(family, RendersPictures)
    denoiser = family.load_denoiser(CPU, torch.float32)
    against = None if negative is None else told(family, negative)
    guidance = 1.0 if negative is None else 4.0

    picture = family.render(denoiser, Shot(told(family, "a tree"), against, SIZE, seed=5, steps=3, guidance=guidance))

    # Without a negative prompt the pipeline's is zeros, and so is our empty caption.
    expected = upstream()(
        "a tree", negative_prompt=negative or None, height=64, width=96, num_inference_steps=3,
        guidance_scale=guidance, generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    assert picture.shape == (1, 3, 64, 96)
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_our_sampler_ends_where_the_pipeline_does(
    make: Make, upstream: Callable[..., Any], told: Told, prediction: str, guidance: float
) -> None:
    ours, theirs = PREDICTIONS[prediction]
    family, pipeline = make(**ours), upstream()
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, **theirs
    )
    denoiser = family.load_denoiser(CPU, torch.float32)
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))

    def asked(text: str) -> Callable[[Tensor, Tensor], Tensor]:
        size, nowhere = torch.tensor([[64, 96]]), torch.tensor([[0, 0]])
        extras = {"original_size": size, "crop": nowhere, "target_size": size}
        batch = Batch(("a",), (0,), "", noise, told(family, text), extras=extras)
        return lambda x, t: family.predict(denoiser, Noised(x=x, t=t, clean=x, noise=x), batch)

    with torch.no_grad():
        predict = asked("a tree") if guidance == 1.0 else guided(asked("a tree"), asked("blurry"), guidance)
        latents = sample(predict, family.path, family.target, noise, (1.0, 0.75, 0.5, 0.25, 0.0))
        expected = pipeline(
            "a tree", negative_prompt="blurry", height=64, width=96, num_inference_steps=4, latents=noise,
            guidance_scale=guidance, output_type="latent",
        ).images  # fmt: skip

    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
