"""CLIP learns with the denoiser, T5 stays, and what was learnt is where diffusers looks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from st import Batch, Geometry, Shot, StError
from st.data.encoder import Input
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.testing.examples import encoded
from st_flux import Flux

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
Make = Callable[..., Flux]


def told(family: Flux, *captions: str) -> dict[str, Tensor]:
    """What all text encoders give for captions, collated."""
    rows: list[dict[str, Tensor]] = [{} for _ in captions]
    for encoder in family.text_encoders():
        for row, given in zip(rows, encoded(encoder, [Input(one, caption=one) for one in captions], CPU), strict=True):
            row.update(given)
    return dict(family.collate(rows))


@pytest.fixture
def learning(make_family: Make, sample: Any) -> tuple[Flux, nn.Module, Batch, Any]:
    """The family whose CLIP learns, its denoiser, and a batch on its way to noise."""
    batch, noised = sample(make_family())
    family = make_family(train_clip=True)
    batch = replace(batch, conditions=told(family, *batch.keys))
    return family, family.load_denoiser(CPU, torch.float32), batch, noised


def shaken(denoiser: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.1)
    return denoiser


def test_what_is_read_in_a_step_is_what_would_have_been_cached(
    make_family: Make, sample: Any, learning: tuple[Flux, nn.Module, Batch, Any]
) -> None:
    frozen = make_family()
    family, denoiser, batch, noised = learning
    cached, _ = sample(frozen)

    read = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(read, frozen.predict(frozen.load_denoiser(CPU, torch.float32), noised, cached))


def test_adapters_of_both_learn(learning: tuple[Flux, nn.Module, Batch, Any]) -> None:
    family, denoiser, batch, noised = learning
    LoraAdapter(LoraOptions(rank=2)).attach(denoiser.requires_grad_(False), family.adapter_targets())

    torch.autograd.backward(family.predict(denoiser, noised, batch).square().mean())

    moved = {name.split(".")[0] for name, one in denoiser.named_parameters() if one.grad is not None and one.grad.any()}
    assert moved == {"transformer", "text_encoder"}


def test_blocks_are_found_inside(learning: tuple[Flux, nn.Module, Batch, Any]) -> None:
    family, denoiser, batch, noised = learning

    def gradients() -> list[Tensor]:
        denoiser.zero_grad()
        torch.autograd.backward(family.predict(denoiser, noised, batch).square().mean())
        return [one.grad.clone() for one in denoiser.parameters() if one.grad is not None]

    expected = gradients()
    with BlockStack(denoiser, family.blocks(), [Recompute(RecomputeOptions(every=1))]):
        actual = gradients()

    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_an_adapter_gives_the_pipelines_users_both(
    learning: tuple[Flux, nn.Module, Batch, Any], make_upstream: Any, tmp_path: Path
) -> None:
    family, denoiser, _, _ = learning
    adapter = LoraAdapter(LoraOptions(rank=2))
    groups = adapter.attach(denoiser, family.adapter_targets(), family.adapter_formats())
    for group in groups:
        for parameter in group["params"]:
            nn.init.normal_(parameter, std=0.2)
    conditions = told(family, "a red square")
    ours: Any = denoiser
    with torch.no_grad():
        expected = ours.read(conditions)["pooled_prompt_embeds"]

    users = make_upstream().pipeline
    plain = users.encode_prompt("a red square", prompt_2=None, max_sequence_length=48)[1]
    users.load_lora_weights(str(adapter.export(family, denoiser, tmp_path, {})))
    found = users.encode_prompt("a red square", prompt_2=None, max_sequence_length=48)[1]

    assert (plain - expected).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_training_goes_on_from_a_file(
    learning: tuple[Flux, nn.Module, Batch, Any], tmp_path: Path, format: str
) -> None:
    family, denoiser, _, _ = learning
    adapter = LoraAdapter(LoraOptions(rank=2, format=format))
    for group in adapter.attach(denoiser, family.adapter_targets(), family.adapter_formats()):
        for parameter in group["params"]:
            nn.init.normal_(parameter)
    file = adapter.export(family, denoiser, tmp_path, {})

    begins = {"diffusers": ("transformer.", "text_encoder."), "kohya": ("lora_unet_", "lora_te1_text_model_encoder_")}
    keys = load_file(file).keys()
    assert {next(one for one in begins[format] if key.startswith(one)) for key in keys} == {*begins[format]}
    fresh, again = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(start=str(file)))
    again.attach(fresh, family.adapter_targets(), family.adapter_formats())

    state, found = adapter.portable(denoiser)[0], again.portable(fresh)[0]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("fuse_qkv", [False, True])
def test_a_whole_model_is_saved_and_previewed_as_its_users_load_it(
    make_family: Make, make_upstream: Any, tmp_path: Path, fuse_qkv: bool
) -> None:
    family = make_family(train_clip=True, fuse_qkv=fuse_qkv)
    denoiser = shaken(family.load_denoiser(CPU, torch.float32))
    adapter = FullAdapter(FullOptions())
    adapter.attach(denoiser, ())

    picture = family.render(
        denoiser, Shot(told(family, "a tree"), None, Geometry(64, 64), seed=5, steps=2, guidance=3.0)
    )
    users = make_upstream(where=adapter.export(family, denoiser, tmp_path, {})).pipeline

    expected = users(
        "a tree", height=64, width=64, num_inference_steps=2, guidance_scale=3.0, max_sequence_length=48,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-4)


def test_what_would_not_reach_the_denoiser_is_refused(learning: tuple[Flux, nn.Module, Batch, Any]) -> None:
    family, denoiser, _, _ = learning

    for refused in (lambda: family.make_control(denoiser, ()), lambda: family.widen_input(denoiser)):
        with pytest.raises(StError, match=r"model\.train_clip does not go with"):
            refused()
