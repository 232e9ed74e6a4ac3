"""Adapter files: what diffusers reads is what was trained; what ComfyUI and kohya's tools name is in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor, nn

from st import StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.formats import AdapterFormat, LoraShape, shape_of, split_key
from st.model.files.peft_layout import diffusers_format
from st_flux2.flavours import TARGETS
from st_flux2.formats import COMFYUI, KOHYA, TABLE

CPU = torch.device("cpu")
FORMATS: dict[str, AdapterFormat] = {"diffusers": diffusers_format(), "comfyui": COMFYUI, "kohya": KOHYA}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        made: nn.Module = Flux2Transformer2DModel(
            in_channels=8,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(2, 2, 2, 2),
        )
    return made


def random_state(denoiser: nn.Module, targets: tuple[str, ...], dora: bool = False) -> dict[str, Tensor]:
    state = {}
    for path in match_modules(denoiser, targets):
        layer: Any = denoiser.get_submodule(path)
        state[f"{path}.lora_A.weight"] = torch.randn(3, layer.in_features)
        state[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, 3)
        if dora:
            state[f"{path}.lora_magnitude_vector"] = torch.rand(layer.out_features)
    return state


def scaled(state: dict[str, Tensor], alpha: float) -> LoraShape:
    ranks = shape_of(state, {}).ranks
    return LoraShape(ranks, dict.fromkeys(ranks, alpha))


@pytest.mark.parametrize("targets", [*TARGETS.values(), ("*",)], ids=[*TARGETS, "everything"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_as_it_was(small: nn.Module, name: str, targets: Any) -> None:
    state = random_state(small, targets)
    shape = scaled(state, 2.0)

    back, back_shape = FORMATS[name].from_file(*FORMATS[name].to_file(state, shape))

    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=3e-7, atol=0) for key in state)
    assert back_shape == shape


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_from_one_format_to_another_and_back_is_the_identity(small: nn.Module, first: str, second: str) -> None:
    state = random_state(small, TARGETS["all+ffs"])
    tensors, header = FORMATS[first].to_file(state, shape_of(state, {}))

    ours = FORMATS[second].from_file(*FORMATS[second].to_file(*FORMATS[first].from_file(tensors, header)))
    again, again_header = FORMATS[first].to_file(*ours)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_header == header


@pytest.mark.parametrize("name", FORMATS)
def test_dora_comes_back_as_it_was(small: nn.Module, name: str) -> None:
    state = random_state(small, TARGETS["all+ffs"], dora=True)

    back, _ = FORMATS[name].from_file(*FORMATS[name].to_file(state, shape_of(state, {})))

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", FORMATS)
def test_a_trained_adapter_gives_the_pipeline_the_same_answers(
    make_family: Any, sample: Any, tmp_path: Path, name: str
) -> None:
    family = make_family()
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=TARGETS["all+ffs"], format=name))
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.2)
    pipeline = Flux2KleinPipeline.from_pretrained(family.folder.location)

    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(adapter.export(family, denoiser, tmp_path, {})))
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def makers_layers(num_double: int, num_single: int) -> set[str]:
    """The matrices of the published weights, as BFL's own model calls them."""
    sides = [f"{side}_{one}" for side in ("img", "txt") for one in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")]
    found = {f"double_blocks.{i}.{one}" for i in range(num_double) for one in sides}
    found |= {f"single_blocks.{i}.{one}" for i in range(num_single) for one in ("linear1", "linear2")}
    found |= {f"{one}_in.{side}_layer" for one in ("time", "guidance") for side in ("in", "out")}
    found |= {f"double_stream_modulation_{side}.lin" for side in ("img", "txt")}
    return (
        found
        | {"single_stream_modulation.lin", "img_in", "txt_in", "final_layer.linear"}
        | {"final_layer.adaLN_modulation.1"}
    )


@pytest.mark.alone
def test_every_layer_of_the_published_model_is_one_that_comfyui_and_kohyas_tools_know() -> None:
    with torch.device("meta"):
        published: nn.Module = Flux2Transformer2DModel()
    paths = match_modules(published, ("*",))
    state = {
        f"{path}.lora_{side}.weight": torch.zeros((1, 1), device="meta")
        if side == "A"
        else torch.zeros((published.get_submodule(path).out_features, 1), device="meta")  # type: ignore[arg-type]
        for path in paths
        for side in "AB"
    }
    dotted = {split_key(key)[0] for key in COMFYUI.to_file(state, shape_of(state, {}))[0]}  # type: ignore[index]
    flat = {key.split(".")[0] for key in KOHYA.to_file(state, shape_of(state, {}))[0]}

    known = makers_layers(8, 48)
    assert dotted == {f"diffusion_model.{one}" for one in known}
    assert flat == {f"lora_unet_{one.replace('.', '_')}" for one in known}
    assert sorted(path for layer in TABLE.layers(paths) for path in layer.ours) == sorted(paths)


def test_a_file_of_another_family_is_refused() -> None:
    tensors = {f"lora_unet_input_blocks_4_proj_in.lora_{side}.weight": torch.zeros(2, 2) for side in ("down", "up")}

    with pytest.raises(StError, match="2 of 2 tensors belong nowhere, such as 'lora_unet_input_blocks_4"):
        KOHYA.from_file(tensors, {})
