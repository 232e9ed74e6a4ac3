"""Both text encoders learn with the U-Net, and are saved where upstream looks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st_sdxl import Sdxl

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
TIMES = torch.tensor([0.4, 0.8])
Make = Callable[..., Sdxl]
BatchOf = Callable[[Sdxl], Batch]
NoisedAt = Callable[[Sdxl, Batch, Tensor], Noised]
Told = Callable[..., Mapping[str, Tensor]]


def test_what_is_read_in_a_step_is_what_would_have_been_cached(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, told: Told
) -> None:
    frozen, learning = make(), make(train_text=True)
    batch = batch_of(frozen)
    noised = noised_at(frozen, batch, TIMES)

    cached, read = (
        family.predict(
            family.load_denoiser(CPU, torch.float32),
            noised,
            replace(batch, conditions=told(family, "a red square", "")),
        )
        for family in (frozen, learning)
    )

    torch.testing.assert_close(read, cached, rtol=0, atol=1e-5)


def test_adapters_of_both_encoders_learn(make: Make, batch_of: BatchOf, noised_at: NoisedAt) -> None:
    family = make(train_text=True)
    batch = batch_of(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    LoraAdapter(LoraOptions(rank=2)).attach(denoiser, family.adapter_targets())

    torch.autograd.backward(family.predict(denoiser, noised_at(family, batch, TIMES), batch).square().mean())

    moved = {name.split(".")[0] for name, one in denoiser.named_parameters() if one.grad is not None and one.grad.any()}
    assert moved == {"unet", "text_encoder", "text_encoder_2"}


def test_blocks_are_found_inside(make: Make, batch_of: BatchOf, noised_at: NoisedAt) -> None:
    family = make(train_text=True)
    batch = batch_of(family)
    noised = noised_at(family, batch, TIMES)
    denoiser = family.load_denoiser(CPU, torch.float32)

    def gradients() -> list[Tensor]:
        denoiser.zero_grad()
        torch.autograd.backward(family.predict(denoiser, noised, batch).square().mean())
        return [one.grad.clone() for one in denoiser.parameters() if one.grad is not None]

    expected = gradients()
    with BlockStack(denoiser, family.blocks(), [Recompute(RecomputeOptions(every=1))]):
        actual = gradients()

    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def shaken(denoiser: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.1)
    return denoiser


def test_a_whole_model_is_saved_as_the_pipeline_loads_it(
    make: Make, upstream: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    family = make(train_text=True)
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), FullAdapter(FullOptions())
    adapter.attach(denoiser, ())
    shaken(denoiser)
    before = load_file(checkpoint / "text_encoder" / "model.safetensors")

    folder = adapter.export(family, denoiser, tmp_path, {})

    users = upstream(folder)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        theirs = getattr(users, name).state_dict()
        ours = denoiser.get_submodule(name).state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert {path.name for path in folder.iterdir()} == {path.name for path in checkpoint.iterdir()}
    assert load_file(folder / "text_encoder" / "model.safetensors").keys() == before.keys()
    after = load_file(checkpoint / "text_encoder" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before), "the original has changed"


def test_a_preview_uses_the_encoders_that_learn(
    make: Make, upstream: Callable[..., Any], told: Told, tmp_path: Path
) -> None:
    family = make(train_text=True)
    denoiser = shaken(family.load_denoiser(CPU, torch.float32))
    family.save_checkpoint(denoiser, tmp_path / "model")
    prompt, negative = told(family, "a tree"), told(family, "blurry")

    picture = family.render(denoiser, Shot(prompt, negative, Geometry(64, 64), seed=5, steps=2, guidance=3.0))

    expected = upstream(tmp_path / "model")(
        "a tree", negative_prompt="blurry", height=64, width=64, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)
