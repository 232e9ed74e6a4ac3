"""Flux with its options: masked padding, references, fused projections, an assistant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot
from st.diffusion.sampler import guided
from st.diffusion.sampler import sample as integrate
from st.model.adapters.assistant import add_assistant, without_assistant
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.model.pipelines.packing import pack, unpack
from st.testing.subjects.routes import KeepTokens
from st_flux import Flux
from st_flux.places import places, reference_places

CPU = torch.device("cpu")
SIZE = Geometry(height=64, width=96)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def train_a_little(denoiser: nn.Module, targets: Any, **options: Any) -> LoraAdapter:
    """An adapter whose weights have all been moved, without training."""
    adapter = LoraAdapter(LoraOptions(**{"rank": 4, "alpha": 6.0, **options}))
    generator = torch.Generator().manual_seed(3)
    for group in adapter.attach(denoiser, targets):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter


def ask(family: Flux, denoiser: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: family.predict(denoiser, Noised(x=x, t=t, clean=x, noise=x), batch)


def test_packing_is_the_pipelines() -> None:
    latents = torch.randn(2, 16, 8, 12)

    packed = pack(latents)

    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(packed, 8, 12), latents)
    assert torch.equal(places(latents), FluxPipeline._prepare_latent_image_ids(2, 4, 6, CPU, torch.float32))


def test_references_do_not_overlap() -> None:
    shapes = [(8, 12), (8, 8), (12, 4), (4, 4)]

    found = reference_places([torch.zeros(1, 16, *shape) for shape in shapes])

    taken = [tuple(place) for one in found for place in one[:, 1:].tolist()]
    assert len(taken) == len(set(taken)) == sum(h * w // 4 for h, w in shapes)
    assert all((one[:, 0] == 1).all() for one in found)
    assert torch.equal(found[0][:, 1:], places(torch.zeros(1, 16, 8, 12))[:, 1:])


def test_masked_padding_is_as_if_it_were_not_there(make_family: Any, sample: Any) -> None:
    family, plain = make_family(mask_padding=True), make_family()
    short, long = "a cat", "a red square on a wooden table"
    batch, noised = sample(family, (short, long))
    denoiser = family.load_denoiser(CPU, torch.float32)
    full = sample(plain, (short, long))[0].conditions["prompt_embeds"]

    with torch.no_grad():
        together = family.predict(denoiser, noised, batch)
        for row, caption in enumerate((short, long)):
            real = len(caption) + 2
            trimmed = {
                "prompt_embeds": full[row : row + 1, :real],
                "pooled_prompt_embeds": batch.conditions["pooled_prompt_embeds"][row : row + 1],
            }
            alone = Batch((caption,), (0,), "", batch.latents[row : row + 1], trimmed)
            expected = ask(family, denoiser, alone)(noised.x[row : row + 1], noised.t[row : row + 1])
            torch.testing.assert_close(together[row], expected[0], rtol=0, atol=1e-5)

    assert batch.conditions["prompt_embeds"].shape[1] == len(long) + 2
    assert batch.conditions["prompt_embeds_mask"].sum(1).tolist() == [len(short) + 2, len(long) + 2]


def test_tokens_can_be_dropped_beside_a_mask(make_family: Any, sample: Any) -> None:
    family = make_family(mask_padding=True)
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    everything = torch.arange(24)

    with torch.no_grad():
        plain = family.predict(denoiser, noised, batch)
        with BlockStack(denoiser, family.blocks(), [KeepTokens(0, 3, everything)]):
            routed = family.predict(denoiser, noised, batch)
        with BlockStack(denoiser, family.blocks(), [KeepTokens(0, 3, everything[::2])]):
            halved = family.predict(denoiser, noised, batch)

    assert torch.equal(routed, plain)
    assert torch.isfinite(halved).all() and not torch.allclose(halved, plain)


@pytest.mark.parametrize("real", [1.0, 2.0])
def test_a_masked_preview_is_what_was_trained(make_family: Any, conditions: Any, real: float) -> None:
    family = make_family(mask_padding=True, real_guidance=real, guidance=3.0)
    denoiser = family.load_denoiser(CPU, torch.float32)
    prompt, negative = conditions(family, "a cat on a mat"), conditions(family, "")
    noise = torch.randn((1, 16, 8, 12), generator=torch.Generator().manual_seed(5))
    k = family.time_shift(24)
    times = [k * t / (1 + (k - 1) * t) for t in (1.0, 0.5, 0.0)]

    picture = family.render(denoiser, Shot(prompt, negative, SIZE, seed=5, steps=2, guidance=3.0))

    with torch.no_grad():
        wanted, against = (ask(family, denoiser, Batch(("a",), (0,), "", noise, c)) for c in (prompt, negative))
        both = guided(wanted, against, real) if real > 1 else wanted
        latents = integrate(both, family.path, family.target, noise, times)
        with family.codec().decoder(CPU) as decode:
            expected = decode(latents)
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-4)


def references(batch: Batch, *sizes: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    made = [torch.randn(len(batch.keys), 16, *size, generator=generator) for size in sizes]
    return {f"reference{'' if number == 0 else number + 1}": one for number, one in enumerate(made)}


def test_a_reference_is_seen_as_the_pipeline_that_edits_sees_it(
    make_family: Any, make_upstream: Any, kontext: type, conditions: Any
) -> None:
    family = make_family(flavour="kontext", guidance=2.5)
    upstream = make_upstream(kontext)
    prompt = conditions(family, "make it blue")
    noise = torch.randn(1, 16, 8, 12)
    batch = Batch(("a",), (0,), "", noise, prompt)
    batch = replace(batch, extras=references(batch, (4, 6)))
    denoiser = family.load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        expected, times = upstream.latents(
            prompt, noise, guidance_scale=2.5, max_area=64 * 96, image=batch.extras["reference"]
        )
        latents = integrate(ask(family, denoiser, batch), family.path, family.target, noise, times)
        without = integrate(ask(family, denoiser, replace(batch, extras={})), family.path, family.target, noise, times)

    assert float((latents - expected).abs().max()) < 1e-4
    assert float((without - expected).abs().max()) > 1e-3


def test_several_references_are_tokens_behind_the_picture(make_family: Any, sample: Any) -> None:
    family = make_family(flavour="kontext")
    batch, noised = sample(family)
    given = references(batch, (8, 8), (4, 6))
    denoiser: Any = family.load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        prediction = family.predict(denoiser, noised, replace(batch, extras=given))
        several = torch.stack([given["reference"], given["reference"] + 1], dim=1)
        stacked = family.predict(denoiser, noised, replace(batch, extras={"reference": several}))
        named = {"reference": given["reference"], "reference2": given["reference"] + 1}
        apart = family.predict(denoiser, noised, replace(batch, extras=named))
        first, second = given.values()
        ids = [FluxPipeline._prepare_latent_image_ids(2, h, w, CPU, torch.float32) for h, w in ((4, 6), (4, 4), (2, 3))]
        ids[1][:, 0] = ids[2][:, 0] = 1
        ids[2][:, 1] += 4
        expected = denoiser(
            hidden_states=torch.cat([pack(noised.x), pack(first), pack(second)], dim=1),
            encoder_hidden_states=batch.conditions["prompt_embeds"],
            pooled_projections=batch.conditions["pooled_prompt_embeds"],
            timestep=noised.t,
            guidance=torch.ones(2),
            img_ids=torch.cat(ids),
            txt_ids=torch.zeros(48, 3),
        ).sample

    assert torch.equal(prediction, unpack(expected[:, :24], 8, 12))
    assert torch.equal(stacked, apart)


def test_the_pipeline_that_edits_renders_at_the_size_that_was_asked_for(
    make_family: Any, make_upstream: Any, kontext: type, conditions: Any
) -> None:
    family = make_family(flavour="kontext")
    prompt = conditions(family, "a cat")

    picture = family.render(
        family.load_denoiser(CPU, torch.float32), Shot(prompt, None, SIZE, seed=5, steps=2, guidance=2.0)
    )

    expected = make_upstream(kontext).pipeline(
        **prompt,
        guidance_scale=2.0,
        height=64,
        width=96,
        max_area=64 * 96,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    )
    assert picture.shape == (1, 3, 64, 96)
    assert torch.equal(picture, expected.images)


def test_fused_projections_take_the_place_of_three(make_family: Any) -> None:
    family = make_family(fuse_qkv=True)

    names = set(family.load_denoiser(CPU, torch.float32).state_dict())

    assert "transformer_blocks.0.attn.to_qkv.weight" in names
    assert "transformer_blocks.0.attn.to_added_qkv.bias" in names
    assert not any(".to_q." in name or ".add_k_proj." in name for name in names)
    assert family.adapter_targets() == ("attn.to_qkv", "attn.to_out.0", "attn.to_added_qkv", "attn.to_add_out")


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_an_adapter_of_fused_projections_is_saved_as_three(
    make_family: Any, make_upstream: Any, sample: Any, tmp_path: Path, format: str
) -> None:
    family = make_family(fuse_qkv=True)
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = train_a_little(denoiser, family.adapter_targets(), format=format)
    with torch.no_grad():
        expected = family.predict(denoiser, noised, batch)

    file = adapter.export(family, denoiser, tmp_path, {})
    upstream = make_upstream()
    upstream.pipeline.load_lora_weights(str(file))

    with torch.no_grad():
        loaded = make_family().predict(upstream.pipeline.transformer, noised, batch)
    assert not any("qkv" in name for name in load_file(file))
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)


def test_a_whole_model_trained_fused_is_saved_as_three(
    make_family: Any, make_upstream: Any, sample: Any, tmp_path: Path
) -> None:
    family = make_family(fuse_qkv=True)
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.1)
        expected = family.predict(denoiser, noised, batch)

    family.save_checkpoint(denoiser, tmp_path / "saved")

    with torch.no_grad():
        stock = make_family().predict(make_upstream(where=tmp_path / "saved").pipeline.transformer, noised, batch)
    torch.testing.assert_close(stock, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
@pytest.mark.parametrize("fuse_qkv", [False, True])
def test_an_assistant_is_there_in_training_and_not_in_previews(
    make_family: Any, make_upstream: Any, sample: Any, tmp_path: Path, layout: str, fuse_qkv: bool
) -> None:
    plain, family = make_family(), make_family(fuse_qkv=fuse_qkv)
    batch, noised = sample(family)
    helper = plain.load_denoiser(CPU, torch.float32)
    file = train_a_little(helper, plain.adapter_targets(), format=layout).export(plain, helper, tmp_path, {})
    with_helper, without = make_upstream(), make_upstream()
    with_helper.pipeline.load_lora_weights(str(file))
    denoiser = family.load_denoiser(CPU, torch.float32)

    count = add_assistant(denoiser, file, family.adapter_formats(), 1.0)
    LoraAdapter(LoraOptions()).attach(denoiser, family.adapter_targets())

    with torch.no_grad():
        training = family.predict(denoiser, noised, batch)
        with without_assistant(denoiser):
            preview = family.predict(denoiser, noised, batch)
        again = family.predict(denoiser, noised, batch)
        expected = plain.predict(with_helper.pipeline.transformer, noised, batch)
        bare = plain.predict(without.pipeline.transformer, noised, batch)
    assert count == (10 if fuse_qkv else 22)
    torch.testing.assert_close(training, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(preview, bare, rtol=0, atol=1e-5)
    assert torch.equal(again, training)
    assert not torch.allclose(training, bare, atol=1e-3)
