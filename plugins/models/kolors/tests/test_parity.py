"""Training computes what the scheduler and the U-Net of the pipeline give, and files and networks load into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDPMScheduler, KolorsPipeline, UNet2DConditionModel
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot, StError
from st.diffusion.densities import Segmented, SegmentedOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import write_adapter_file
from st.randomness import Draws
from st_controlnet.network import ControlNetAdapter
from st_controlnet.options import ControlNetOptions
from st_kolors import Kolors
from st_sdxl import Sdxl
from st_sdxl.layers import original_names

# A guard of diffusers warns where the text encoder is left out, as it is here.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
CPU = torch.device("cpu")
FORMATS = ("diffusers", "comfyui")
Make = Callable[..., Kolors]
BatchOf = Callable[[Kolors], Batch]
Told = Callable[..., Mapping[str, Tensor]]


def moved(parameters: Any) -> None:
    """Every weight at a value of its own, the same each time; whole numbers, which formats may multiply."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 64)


def gradients(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in denoiser.named_parameters() if one.grad is not None}


def test_loss_and_gradients_are_those_of_noise_that_the_scheduler_adds(make: Make, batch_of: BatchOf) -> None:
    family = make()
    built = Objective(
        family.path, family.target, Segmented(SegmentedOptions()), Uniform(UniformOptions()), L2(L2Options())
    )
    batch = batch_of(family)
    noised = built.noise(batch, Draws(7, batch.indices, CPU))
    index = (noised.t * 1100).round().long() - 1
    denoiser = family.load_denoiser(CPU, torch.float32)
    FullAdapter(FullOptions()).attach(denoiser, ())
    unet: Any = UNet2DConditionModel.from_pretrained(family.options.checkpoint, subfolder="unet")
    scheduler: Any = DDPMScheduler.from_pretrained(family.options.checkpoint, subfolder="scheduler")
    ids = torch.cat([batch.extras[name] for name in ("original_size", "crop", "target_size")], dim=1)
    text = {"text_embeds": batch.conditions["pooled_prompt_embeds"], "time_ids": ids}

    loss = built.loss(family.predict(denoiser, noised, batch), noised, batch).total
    torch.autograd.backward(loss)
    noisy = scheduler.add_noise(batch.latents, noised.noise, index)
    answer = unet(noisy, index, batch.conditions["prompt_embeds"], added_cond_kwargs=text).sample
    expected = F.mse_loss(answer, noised.noise)
    torch.autograd.backward(expected)

    torch.testing.assert_close(noised.x, noisy, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    known = gradients(unet)
    assert gradients(denoiser).keys() == known.keys() != set()
    for name, gradient in gradients(denoiser).items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-5, atol=1e-5)


def drawn(pipeline: Any) -> Tensor:
    pixels: Tensor = pipeline(
        "a tree", height=64, width=96, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    return pixels


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_gives_the_pipeline_our_picture(make: Make, told: Told, tmp_path: Path, format: str) -> None:
    family = make(targets="unet")
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=3, rank_pattern={"proj_in": 1}))
    moved(adapter.attach(denoiser, family.adapter_targets())[0]["params"])
    write_adapter_file(
        tmp_path / "a.safetensors", *family.adapter_formats()[format].to_file(*adapter.portable(denoiser))
    )
    users: Any = KolorsPipeline.from_pretrained(family.options.checkpoint)
    before = drawn(users)

    users.load_lora_weights(tmp_path / "a.safetensors")

    shot = Shot(told(family, "a tree"), None, Geometry(64, 96), seed=5, steps=2, guidance=1.0)
    picture = family.render(denoiser.eval(), shot)
    assert not torch.allclose(picture, before, atol=1e-2), "the adapter changed nothing"
    torch.testing.assert_close(drawn(users), picture, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("one", "other"), [FORMATS, FORMATS[::-1]])
def test_from_one_format_to_the_other_and_back_is_the_same_file(make: Make, one: str, other: str) -> None:
    family = make(targets="unet")
    formats, denoiser = family.adapter_formats(), family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=3, rank_pattern={"proj_in": 1}))
    moved(adapter.attach(denoiser, family.adapter_targets())[0]["params"])
    assert tuple(formats) == FORMATS

    first = formats[one].to_file(*adapter.portable(denoiser))
    between = formats[other].to_file(*formats[one].from_file(*first))
    again = formats[one].to_file(*formats[other].from_file(*between))

    assert first[1] == again[1]
    assert first[0].keys() == again[0].keys()
    assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])


def real_unet() -> UNet2DConditionModel:
    """The real architecture, without memory."""
    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet: UNet2DConditionModel = build(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            encoder_hid_dim=4096,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=5632,
        )
    return unet


def test_every_key_is_a_name_that_comfyui_derives_from_the_layers_of_the_real_unet(make: Make) -> None:
    family = make(targets="unet")
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, family.adapter_targets())
    layers = {path for path in original_names([path for path, _ in real_unet().named_modules()])}

    tensors, _ = family.adapter_formats()["comfyui"].to_file(*adapter.portable(denoiser))

    assert {key.partition(".")[0] for key in tensors} <= {f"lora_unet_{path.replace('.', '_')}" for path in layers}


def test_a_control_network_is_upstreams_with_text_narrowed_before_it(
    make: Make, batch_of: BatchOf, tmp_path: Path
) -> None:
    family = make()
    batch = batch_of(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    reads = denoiser.get_submodule("encoder_hid_proj")
    adapter = ControlNetAdapter(ControlNetOptions())
    adapter.begin(family, denoiser)
    adapter.attach(denoiser, ())
    begun = adapter.state(denoiser)["controlnet.encoder_hid_proj.weight"]
    assert torch.equal(begun, reads.get_parameter("weight"))
    moved(adapter.state(denoiser).values())
    network: Any = ControlNetModel.from_pretrained(adapter.export(family, denoiser, tmp_path, {}))
    picture = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    noised = Noised(x=batch.latents, t=torch.tensor([0.3, 0.9]), clean=batch.latents, noise=batch.latents)

    shown = Batch(
        batch.keys, batch.indices, batch.dataset, batch.latents, batch.conditions,
        extras={**batch.extras, "reference": picture},
    )  # fmt: skip
    with torch.no_grad():
        ours = adapter.predict(family, denoiser, noised, shown)

        index = torch.tensor([329, 989])
        text = batch.conditions["prompt_embeds"]
        ids = torch.cat([batch.extras[name] for name in ("original_size", "crop", "target_size")], dim=1)
        told = {"text_embeds": batch.conditions["pooled_prompt_embeds"], "time_ids": ids}
        down, middle = network(
            noised.x, index, network.encoder_hid_proj(text), picture / 255, added_cond_kwargs=told, return_dict=False
        )
        unet: Any = UNet2DConditionModel.from_pretrained(family.options.checkpoint, subfolder="unet")
        asked = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        expected = unet(noised.x, index, text, added_cond_kwargs=told, **asked).sample
        alone = unet(noised.x, index, text, added_cond_kwargs=told).sample

    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(ours, alone, atol=1e-3)


def test_a_checkpoint_of_another_family_is_refused(make: Make, tmp_path: Path) -> None:
    Sdxl.tiny(tmp_path / "sdxl")

    with pytest.raises(StError, match="is not a model of this family"):
        make(checkpoint=str(tmp_path / "sdxl")).check()


def test_sdxl_refuses_a_checkpoint_of_this_family(checkpoint: Path) -> None:
    with pytest.raises(StError, match="is not a model of this family"):
        Sdxl(Sdxl.Options(checkpoint=str(checkpoint))).check()


def test_a_checkpoint_of_another_noise_schedule_is_refused(make: Make, checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("1100", "1000"))

    with pytest.raises(StError, match=r"trained on another noise schedule \(num_train_timesteps = 1000\)"):
        make(checkpoint=str(copy)).check()


def test_tokens_beyond_the_256th_are_counted(make: Make) -> None:
    (encoder,) = make().text_encoders()

    assert encoder.count_tokens("abc") == (6, 6)
    assert encoder.count_tokens("x" * 400) == (403, 256)
