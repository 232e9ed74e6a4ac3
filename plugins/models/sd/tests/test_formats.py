"""Adapter files: each format loads where it is meant to, and none loses anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from st import Geometry, Shot
from st.model.adapters.adapter import Adapter
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import write_adapter_file
from st.model.files.formats import LoraShape
from st_sd import Sd
from st_sdxl.layers import original_names

# A guard of diffusers warns where the text encoder is left out, as it is here.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
CPU = torch.device("cpu")
FORMATS = ("diffusers", "kohya", "comfyui")
FLAVOURS = ("1.5", "2.1")
Make = Callable[..., Sd]
Told = Callable[..., Mapping[str, Tensor]]


def adapted(family: Sd) -> tuple[nn.Module, Adapter, dict[str, Tensor], LoraShape]:
    """A denoiser with an adapter that changes every kind of layer, and the adapter as files hold it."""
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=3, rank_pattern={"attn1.to_q": 4, "proj_in": 1}))
    groups = adapter.attach(denoiser, family.adapter_targets())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in groups[0]["params"]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return denoiser, adapter, *adapter.portable(denoiser)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("train_text", [False, True], ids=["unet", "with text encoder"])
def test_a_file_gives_the_pipeline_our_picture(
    make: Make, told: Told, tmp_path: Path, flavour: str, format: str, train_text: bool
) -> None:
    family = make(flavour, train_text=train_text, targets="unet")
    denoiser, _, state, shape = adapted(family)
    file = tmp_path / "a.safetensors"
    write_adapter_file(file, *family.adapter_formats()[format].to_file(state, shape))
    users: Any = StableDiffusionPipeline.from_pretrained(family.options.checkpoint)
    before = drawn(users)

    users.load_lora_weights(file)

    shot = Shot(told(family, "a tree"), None, Geometry(64, 96), seed=5, steps=2, guidance=1.0)
    picture = family.render(denoiser.eval(), shot)
    assert not torch.allclose(picture, before, atol=1e-2), "the adapter changed nothing"
    torch.testing.assert_close(drawn(users), picture, rtol=0, atol=1e-4)


def drawn(pipeline: Any) -> Tensor:
    pixels: Tensor = pipeline(
        "a tree", height=64, width=96, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    return pixels


def test_from_one_format_to_another_and_back_is_the_same_file(make: Make) -> None:
    family = make(train_text=True, targets="unet")
    formats = family.adapter_formats()
    _, _, found, shape = adapted(family)
    # Whole numbers survive that one format multiplies by alpha / rank.
    state = {name: (tensor * 64).round() for name, tensor in found.items()}
    assert tuple(formats) == FORMATS

    for one, other in permutations(FORMATS, 2):
        first = formats[one].to_file(state, shape)
        between = formats[other].to_file(*formats[one].from_file(*first))
        again = formats[one].to_file(*formats[other].from_file(*between))
        assert first[1] == again[1]
        assert first[0].keys() == again[0].keys()
        assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])


def real_unet(second: bool) -> UNet2DConditionModel:
    """The real architecture, without memory."""
    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet: UNet2DConditionModel = build(
            sample_size=96 if second else 64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20) if second else 8,
            cross_attention_dim=1024 if second else 768,
            use_linear_projection=second,
        )
    return unet


@pytest.mark.parametrize("second", [False, True])
def test_original_names_are_those_of_the_released_weights(second: bool) -> None:
    unet = real_unet(second)
    named = original_names([path for path, _ in unet.named_modules()])
    weights: Mapping[str, Tensor] = unet.state_dict()
    original = {}
    for name, tensor in weights.items():
        path, _, kind = name.rpartition(".")
        original[f"model.diffusion_model.{named[path]}.{kind}"] = tensor

    converted: Mapping[str, Tensor] = convert_ldm_unet_checkpoint(dict(original), unet.config)

    assert len(original) == len(weights) == 686
    assert converted.keys() == weights.keys()
    assert all(converted[name] is weights[name] for name in weights)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_every_key_is_in_the_table_that_comfyui_derives(make: Make, format: str, second: bool) -> None:
    """Names by diffusers' layers of the real U-Net, and of CLIP's text encoder under one name for all of its sizes."""
    family = make("2.1" if second else "1.5", train_text=True, targets="unet")
    _, _, state, shape = adapted(family)
    weights = {name.rpartition(".")[0] for name in real_unet(second).state_dict()}
    layers = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
    table = {f"lora_unet_{path.replace('.', '_')}" for path in weights}
    table |= {f"lora_te_text_model_encoder_layers_{layer}_{one}" for layer in range(23) for one in layers}

    tensors, _ = family.adapter_formats()[format].to_file(state, shape)

    assert {key.partition(".")[2] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {key.partition(".")[0] for key in tensors} <= table


@pytest.mark.parametrize(
    ("options", "architecture", "base"),
    [
        ({"flavour": "1.5"}, "stable-diffusion-v1", "sd_v1"),
        ({"flavour": "2.1"}, "stable-diffusion-v2-768-v", "sd_v2_v"),
        ({"flavour": "2.1-base"}, "stable-diffusion-v2-512", "sd_v2"),
        ({"flavour": "1.5", "prediction": "v"}, "stable-diffusion-v1", "sd_v1_v"),
    ],
)
def test_the_header_names_the_model_as_kohyas_tools_do(
    options: Mapping[str, str], architecture: str, base: str
) -> None:
    model = Sd(Sd.Options.model_validate(options)).architecture()

    assert (model.name, model.base, model.v2) == (architecture, base, options["flavour"].startswith("2"))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_whole_model_in_one_file_of_the_original_layout_gives_its_unet(
    make: Make, tmp_path: Path, flavour: str
) -> None:
    unet = make(flavour).load_denoiser(CPU, torch.float32)
    names = original_names([path for path, _ in unet.named_modules()])
    weights = {}
    for name, tensor in unet.state_dict().items():
        path, _, kind = name.rpartition(".")
        weights[f"model.diffusion_model.{names[path]}.{kind}"] = tensor * 2
    weights["first_stage_model.quant_conv.bias"] = torch.zeros(8)
    save_file(weights, tmp_path / "mine.safetensors")

    loaded = make(flavour, denoiser=str(tmp_path / "mine.safetensors")).load_denoiser(CPU, torch.float32)

    expected = {name: tensor * 2 for name, tensor in unet.state_dict().items()}
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in loaded.state_dict().items())
