"""Training computes what diffusers' own example computes, and control networks what its pipeline does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor, nn

from st import Batch, Geometry, Input, Noised, Shot, StError
from st.diffusion.densities import Segmented, SegmentedOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.weightings import MinSnr, MinSnrOptions, Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.randomness import Draws
from st_controlnet.network import ControlNetAdapter
from st_controlnet.options import ControlNetOptions
from st_sd import Sd
from st_sd.flavours import FLAVOURS
from st_sd.tiny import write_tiny

# A guard of diffusers warns where the text encoder is left out, as it is here.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
CPU = torch.device("cpu")
Make = Callable[..., Sd]
BatchOf = Callable[[Sd], Batch]
NoisedAt = Callable[[Sd, Batch, Tensor], Noised]
Told = Callable[..., Mapping[str, Tensor]]


def example_loss(unet: Any, batch: Batch, noise: Tensor, index: Tensor, scheduler: Any, gamma: float | None) -> Tensor:
    """One step of diffusers' train_text_to_image.py, from its public classes."""
    noisy = scheduler.add_noise(batch.latents, noise, index)
    prediction = unet(noisy, index, batch.conditions["prompt_embeds"], return_dict=False)[0]
    is_v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch.latents, noise, index) if is_v else noise
    if gamma is None:
        return F.mse_loss(prediction.float(), target.float(), reduction="mean")
    snr = compute_snr(scheduler, index)
    weights = snr.clamp(max=gamma) / ((snr + 1) if is_v else snr)
    loss = F.mse_loss(prediction.float(), target.float(), reduction="none")
    return (loss.mean(dim=[1, 2, 3]) * weights).mean()


def gradients(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in denoiser.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("flavour", ["1.5", "2.1", "2.1-base"])
def test_loss_and_gradients_are_the_examples(make: Make, batch_of: BatchOf, flavour: str, gamma: float | None) -> None:
    family = make(flavour)
    weighting: Any = Uniform(UniformOptions()) if gamma is None else MinSnr(MinSnrOptions(limit=gamma))
    built = Objective(family.path, family.target, Segmented(SegmentedOptions()), weighting, L2(L2Options()))
    batch = batch_of(family)
    noised = built.noise(batch, Draws(7, batch.indices, CPU))
    index = (noised.t * 1000).round().long() - 1
    denoiser = family.load_denoiser(CPU, torch.float32)
    FullAdapter(FullOptions()).attach(denoiser, ())
    unet: Any = UNet2DConditionModel.from_pretrained(family.options.checkpoint, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(family.options.checkpoint, subfolder="scheduler")

    loss = built.loss(family.predict(denoiser, noised, batch), noised, batch).total
    torch.autograd.backward(loss)
    expected = example_loss(unet, batch, noised.noise, index, scheduler, gamma)
    torch.autograd.backward(expected)

    torch.testing.assert_close(noised.x, scheduler.add_noise(batch.latents, noised.noise, index), rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    known = gradients(unet)
    assert gradients(denoiser).keys() == known.keys() != set()
    for name, gradient in gradients(denoiser).items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-5, atol=1e-5)


def test_what_the_text_encoder_reads_in_a_step_is_what_would_have_been_cached(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, told: Told
) -> None:
    frozen, learning = make(), make(train_text=True)
    batch = batch_of(frozen)
    noised = noised_at(frozen, batch, torch.tensor([0.4, 0.8]))

    cached, read = (
        one.predict(
            one.load_denoiser(CPU, torch.float32), noised, replace(batch, conditions=told(one, "a red square", ""))
        )
        for one in (frozen, learning)
    )

    torch.testing.assert_close(read, cached, rtol=0, atol=1e-5)


def test_a_whole_model_with_its_text_encoder_is_saved_as_the_pipeline_loads_it(
    make: Make, told: Told, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    family = make(train_text=True)
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), FullAdapter(FullOptions())
    adapter.attach(denoiser, ())
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.1)

    folder = adapter.export(family, denoiser, tmp_path, {})

    users: Any = StableDiffusionPipeline.from_pretrained(folder)
    shot = Shot(told(family, "a tree"), told(family, "blurry"), Geometry(64, 64), seed=5, steps=2, guidance=3.0)
    expected = users(
        "a tree", negative_prompt="blurry", height=64, width=64, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(family.render(denoiser, shot), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flavour", ["1.5", "2.1"])
def test_a_control_network_acts_in_upstreams_pipeline_as_it_was_trained(
    make: Make, told: Told, tmp_path: Path, flavour: str
) -> None:
    family = make(flavour)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = ControlNetAdapter(ControlNetOptions())
    adapter.begin(family, denoiser)
    adapter.attach(denoiser, ())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.state(denoiser).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    network = ControlNetModel.from_pretrained(adapter.export(family, denoiser, tmp_path, {}))
    picture = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
    pipeline: Any = StableDiffusionControlNetPipeline.from_pretrained(family.options.checkpoint, controlnet=network)
    calls: list[tuple[Tensor, int, Tensor]] = []
    pipeline.unet.register_forward_hook(lambda unet, args, result: calls.append((args[0], int(args[1]), result[0])))

    shown = Image.fromarray(picture.permute(1, 2, 0).numpy())
    pipeline("x", image=shown, height=64, width=64, num_inference_steps=3, guidance_scale=1.0, output_type="latent")

    assert len(calls) == 3
    for x, index, theirs in calls:
        noised = Noised(x=x, t=torch.tensor([(index + 1) / 1000]), clean=x, noise=x)
        batch = Batch(("x",), (0,), "", x, told(family, "x"), extras={"reference": picture[None]})
        with torch.no_grad():
            ours = adapter.predict(family, denoiser, noised, batch)
            with adapter.disabled(denoiser):
                base = adapter.predict(family, denoiser, noised, batch)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert not torch.allclose(ours, base, atol=1e-3)


@pytest.mark.parametrize("skip", [1, 11])
def test_skipped_layers_are_those_at_the_end(make: Make, told: Told, folders: Callable[[str], Path], skip: int) -> None:
    """The encoder with so many layers fewer reads the same."""
    from transformers import CLIPTextModel

    text: Any = CLIPTextModel.from_pretrained(folders("1.5") / "text_encoder")
    layers = len(text.encoder.layers)
    if skip >= layers:
        with pytest.raises(StError, match=f"has {layers} layers, none is left"):
            make(clip_skip=skip).text_encoders()
        return
    text.encoder.layers = text.encoder.layers[:-skip]
    (encoder,) = make(train_text=True).text_encoders()
    with encoder.open(CPU) as encode, torch.no_grad():
        ids = torch.stack([one["tokens"] for one in encode([Input(key="a", caption=one) for one in ("a tree", "")])])
        expected = text(ids).last_hidden_state

    embeds = told(make(clip_skip=skip), "a tree", "")["prompt_embeds"]

    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)


def test_skipped_layers_are_skipped_where_the_text_encoder_learns(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, told: Told
) -> None:
    frozen, learning = make(clip_skip=1), make(clip_skip=1, train_text=True)
    batch = batch_of(frozen)
    noised = noised_at(frozen, batch, torch.tensor([0.4, 0.8]))
    denoisers = [one.load_denoiser(CPU, torch.float32) for one in (frozen, learning)]

    cached, read = (
        one.predict(denoiser, noised, replace(batch, conditions=told(one, "a red square", "")))
        for one, denoiser in zip((frozen, learning), denoisers, strict=True)
    )

    torch.testing.assert_close(read, cached, rtol=0, atol=1e-5)


def test_a_preview_has_the_sampler_of_the_checkpoint(make: Make, told: Told, tmp_path: Path) -> None:
    """PNDM, as the published checkpoints of the first version have it."""
    from diffusers import StableDiffusionPipeline

    write_tiny(tmp_path / "pndm", FLAVOURS["1.5"], scheduler="PNDMScheduler")
    family = make(checkpoint=str(tmp_path / "pndm"))
    shot = Shot(told(family, "a tree"), told(family, "blurry"), Geometry(64, 64), seed=5, steps=4, guidance=3.0)

    picture = family.render(family.load_denoiser(CPU, torch.float32), shot)

    users: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "pndm")
    expected = users(
        "a tree", negative_prompt="blurry", height=64, width=64, num_inference_steps=4, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    assert torch.equal(picture, expected)


def test_a_safety_checker_that_is_left_out_is_no_warning(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    caplog.set_level("WARNING")
    family = make()

    (encoder,) = family.text_encoders()
    encoder.count_tokens("a tree")
    denoiser = family.load_denoiser(CPU, torch.float32)
    with encoder.open(CPU) as encode:
        conditions = family.collate(encode([Input(key="a", caption="a tree")]))
    family.render(denoiser, Shot(conditions, None, Geometry(64, 64), seed=5, steps=1, guidance=1.0))

    assert "safety checker" not in caplog.text
