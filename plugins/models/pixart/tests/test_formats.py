"""Adapter files: each format is what its reader reads, and none loses anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from st import FusedLayer, Geometry, comfyui_format
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.formats import LoraShape
from st.model.files.stacking import read_updates, stack, write_updates
from st.testing import example_batch
from st.testing.examples import example_noised
from st_pixart import PixArt
from st_pixart.formats import TABLE

pytestmark = pytest.mark.alone
CPU = torch.device("cpu")
FORMATS = ("diffusers", "comfyui")


@pytest.fixture
def family(tmp_path: Path) -> PixArt:
    options = PixArt.tiny(tmp_path / "tiny").options
    return PixArt(options.model_copy(update={"targets": "blocks", "text_precision": "fp32"}))


def adapted(family: PixArt) -> tuple[nn.Module, dict[str, Tensor], LoraShape]:
    """A denoiser with an adapter, and what files hold of it: whole numbers, which formats may multiply."""
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.attach(denoiser, family.adapter_targets())[0]["params"]:
            parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 64)
    return denoiser, *adapter.portable(denoiser)


def test_the_diffusers_file_is_what_peft_injects(family: PixArt) -> None:
    denoiser, state, shape = adapted(family)
    tensors, _ = family.adapter_formats()["diffusers"].to_file(state, shape)
    users: Any = PixArtTransformer2DModel.from_pretrained(family.options.checkpoint, subfolder="transformer")
    batch = example_batch(family, Geometry(64, 96))
    noised = example_noised(family, batch)
    with torch.no_grad():
        before = family.predict(users, noised, batch)

    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(family.adapter_targets()))
    inject_adapter_in_model(config, users)
    loaded = set_peft_model_state_dict(users, {key.removeprefix("transformer."): one for key, one in tensors.items()})

    assert not loaded.unexpected_keys
    with torch.no_grad():
        ours, theirs = (family.predict(one, noised, batch) for one in (denoiser, users))
    assert not torch.allclose(theirs, before, atol=1e-3)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("one", "other"), [FORMATS, FORMATS[::-1]])
def test_from_one_format_to_the_other_and_back_is_the_same_file(family: PixArt, one: str, other: str) -> None:
    formats, (_, state, shape) = family.adapter_formats(), adapted(family)
    assert tuple(formats) == FORMATS

    first = formats[one].to_file(state, shape)
    between = formats[other].to_file(*formats[one].from_file(*first))
    again = formats[one].to_file(*formats[other].from_file(*between))

    assert first[1] == again[1]
    assert first[0].keys() == again[0].keys()
    assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])


def real() -> PixArtTransformer2DModel:
    """The architecture of the published 600M, without memory."""
    build: Any = PixArtTransformer2DModel
    with torch.device("meta"):
        denoiser: PixArtTransformer2DModel = build(
            out_channels=8, caption_channels=4096, use_additional_conditions=False
        )
    return denoiser


def linear_layers(denoiser: nn.Module) -> set[str]:
    return {path for path, one in denoiser.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))}


def test_every_key_of_the_comfyui_file_is_a_layer_of_the_real_model(family: PixArt) -> None:
    """ComfyUI maps ``transformer.`` and the path of each of diffusers' layers onto the original ones."""
    _, state, shape = adapted(family)

    tensors, _ = family.adapter_formats()["comfyui"].to_file(state, shape)

    layers = {key.rsplit(".", 2)[0] if ".lora_" in key else key.rsplit(".", 1)[0] for key in tensors}
    assert layers <= {f"transformer.{path}" for path in linear_layers(real())}


def test_the_original_layers_cover_the_real_model_once() -> None:
    named = [path for layer in TABLE.layers(linear_layers(real())) for path in layer.ours]

    assert len(named) == len(set(named))
    assert set(named) == linear_layers(real())


def test_files_in_the_names_of_the_original_code_are_read(family: PixArt) -> None:
    _, state, shape = adapted(family)
    updates = read_updates(state, shape)
    fused: Mapping[str, FusedLayer] = {one.theirs: one for one in TABLE.layers(state)}
    found = {
        name: stack([updates[path] for path in one.ours], one.shares) if len(one.ours) > 1 else updates[one.ours[0]]
        for name, one in fused.items()
        if one.ours[0] in updates
    }
    theirs, theirs_shape = write_updates(found)

    file = comfyui_format().to_file(theirs, theirs_shape)
    assert any(key.startswith("diffusion_model.blocks.0.attn.qkv.") for key in file[0])

    read, _ = family.adapter_formats()["comfyui"].from_file(*file)

    assert read.keys() == state.keys()
