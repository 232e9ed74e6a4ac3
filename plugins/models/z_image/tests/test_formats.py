"""Adapter files: what diffusers reads is what was trained; what ComfyUI and musubi-tuner name is in the tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from st import Batch, Geometry, LoraShape, Noised, comfyui_format, fused_format, kohya_format
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.formats import AdapterFormat, shape_of
from st.model.files.peft_layout import diffusers_format
from st.testing import example_batch, example_noised
from st_z_image import ZImage
from st_z_image.flavours import TARGETS
from st_z_image.formats import MAKERS, comfyui, kohya

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
EVERYTHING = ("*",)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        denoiser: nn.Module = ZImageTransformer2DModel(
            dim=16, n_layers=3, n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=12, axes_dims=[2, 2, 4]
        )
    return denoiser


@pytest.fixture(scope="module")
def formats(small: nn.Module) -> dict[str, AdapterFormat]:
    paths = [path for path, _ in small.named_modules()]
    return {"diffusers": diffusers_format("transformer"), "comfyui": comfyui(), "kohya": kohya(lambda: paths)}


def random_state(denoiser: nn.Module, targets: tuple[str, ...], rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for path in match_modules(denoiser, targets):
        layer: Any = denoiser.get_submodule(path)
        state[f"{path}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator)
        state[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator)
    return state


@pytest.mark.parametrize("targets", [*TARGETS.values(), EVERYTHING], ids=[*TARGETS, "everything"])
@pytest.mark.parametrize("first", ["diffusers", "comfyui", "kohya"])
@pytest.mark.parametrize("second", ["diffusers", "comfyui", "kohya"])
def test_from_one_format_to_another_and_back_is_the_identity(
    small: nn.Module, formats: dict[str, AdapterFormat], first: str, second: str, targets: Any
) -> None:
    state = random_state(small, targets, rank=3)
    tensors, header = formats[first].to_file(state, shape_of(state, {}))

    ours = formats[second].from_file(*formats[second].to_file(*formats[first].from_file(tensors, header)))
    again, again_header = formats[first].to_file(*ours)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_header == header


@pytest.mark.parametrize("name", ["diffusers", "comfyui", "kohya"])
def test_a_trained_adapter_gives_the_pipeline_the_same_answers(
    family: ZImage, folder: Path, tmp_path: Path, name: str
) -> None:
    batch, noised = asked(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=TARGETS["modulation"], format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    pipeline = ZImagePipeline.from_pretrained(folder)

    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(adapter.export(family, denoiser, tmp_path, {})))
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def asked(family: ZImage) -> tuple[Batch, Noised]:
    batch = example_batch(family, Geometry(64, 96))
    return batch, example_noised(family, batch)


def diffusers_layers(layers: int, refiners: int) -> set[str]:
    """The layers with a matrix, as diffusers and the makers' own code name them."""
    inside = "attention.to_q attention.to_k attention.to_v attention.to_out.0"
    inside += " feed_forward.w1 feed_forward.w2 feed_forward.w3"
    counts = {"layers": layers, "noise_refiner": refiners, "context_refiner": refiners}
    found = {f"{kind}.{i}.{one}" for kind, count in counts.items() for i in range(count) for one in inside.split()}
    found |= {f"{kind}.{i}.adaLN_modulation.0" for kind in ("layers", "noise_refiner") for i in range(counts[kind])}
    final = "all_final_layer.2-1"
    found |= {"all_x_embedder.2-1", f"{final}.linear", f"{final}.adaLN_modulation.1", "cap_embedder.1"}
    return found | {"t_embedder.mlp.0", "t_embedder.mlp.2"}


def makers_layers(layers: int, refiners: int) -> set[str]:
    """The layers with a matrix of the single file that ComfyUI loads, by its own names."""
    inside = "attention.qkv attention.out feed_forward.w1 feed_forward.w2 feed_forward.w3"
    counts = {"layers": layers, "noise_refiner": refiners, "context_refiner": refiners}
    found = {f"{kind}.{i}.{one}" for kind, count in counts.items() for i in range(count) for one in inside.split()}
    found |= {f"{kind}.{i}.adaLN_modulation.0" for kind in ("layers", "noise_refiner") for i in range(counts[kind])}
    found |= {"x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1", "cap_embedder.1"}
    return found | {"t_embedder.mlp.0", "t_embedder.mlp.2"}


def test_every_key_is_one_that_comfyui_knows(published: nn.Module) -> None:
    """Its key map has every layer of its model by diffusers' name too."""
    paths = match_modules(published, EVERYTHING)
    state = {f"{path}.lora_{side}.weight": torch.zeros(1, 1) for path in paths for side in "AB"}

    tensors, _ = comfyui().to_file(state, shape_of(state, {}))

    stems = {re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", key) for key in tensors}
    assert stems == {f"diffusion_model.{path}" for path in diffusers_layers(30, 2)}
    assert all(f"{stem}.alpha" in tensors and f"{stem}.lora_A.weight" in tensors for stem in stems)


def test_every_key_is_one_that_musubi_tuner_knows(published: nn.Module) -> None:
    paths = match_modules(published, EVERYTHING)
    state = {f"{path}.lora_{side}.weight": torch.zeros(1, 1) for path in paths for side in "AB"}

    tensors, _ = kohya(lambda: paths).to_file(state, shape_of(state, {}))

    stems = {key.partition(".")[0] for key in tensors}
    assert stems == {f"lora_unet_{path.replace('.', '_')}" for path in diffusers_layers(30, 2)}


def test_the_makers_table_names_every_layer_once(published: nn.Module) -> None:
    paths = match_modules(published, EVERYTHING)

    found = MAKERS.layers(paths)

    assert makers_layers(30, 2) <= {layer.theirs for layer in found}
    # Of the caption's blocks the time changes nothing; the table has one line for all blocks.
    strange = {path for layer in found for path in layer.ours} - set(paths)
    assert strange == {f"context_refiner.{number}.adaLN_modulation.0" for number in range(2)}


@pytest.mark.parametrize("name", ["comfyui", "kohya"])
def test_files_that_name_the_makers_layers_are_read(
    small: nn.Module, formats: dict[str, AdapterFormat], name: str
) -> None:
    state = random_state(small, TARGETS["modulation"])
    ranks = shape_of(state, {}).ranks
    plain = (lambda paths: comfyui_format()) if name == "comfyui" else kohya_format
    tensors, header = fused_format(plain, MAKERS).to_file(state, LoraShape(ranks, dict.fromkeys(ranks, 3.0)))

    back, shape = formats[name].from_file(tensors, header)

    assert any("attention" in key and "qkv" in key for key in tensors)
    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=3e-7, atol=0) for key in state)
    assert set(shape.alphas.values()) == {3.0}


def test_the_single_file_that_comfyui_loads_gives_the_same_answers(
    make_family: Callable[..., ZImage], tmp_path: Path
) -> None:
    family = make_family()
    batch, noised = asked(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    weights = denoiser.state_dict()
    theirs = {"x_pad_token": weights["x_pad_token"], "cap_pad_token": weights["cap_pad_token"]}
    for name in weights:
        changed = name.replace("attention.norm_", "attention.N").replace("Nq", "q_norm").replace("Nk", "k_norm")
        if "norm" in name or name.startswith("cap_embedder.0"):
            theirs[changed] = weights[name]
    for layer in MAKERS.layers(weights):
        for kind in ("weight", "bias"):
            parts = [weights[f"{path}.{kind}"] for path in layer.ours if f"{path}.{kind}" in weights]
            if parts:
                theirs[f"{layer.theirs}.{kind}"] = torch.cat(parts)
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in theirs.items()}, tmp_path / "z.safetensors")

    other = make_family(denoiser=str(tmp_path / "z.safetensors")).load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        assert torch.equal(family.predict(other, noised, batch), family.predict(denoiser, noised, batch))
