"""Adapter files: what diffusers reads is what was trained, what ComfyUI and kohya's tools name is in the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from torch import Tensor, nn

from st import Batch, Noised
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.adapter_file import read_adapter_file
from st.model.files.formats import LoraShape, shape_of
from st_sd3 import Sd3
from st_sd3.flavours import FLAVOURS, TARGETS
from st_sd3.formats import comfyui, kohya
from st_sd3.names import table

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
FORMATS = ("diffusers", "comfyui", "kohya")
EVERYTHING = ("*",)
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
PUBLISHED: dict[str, dict[str, Any]] = {
    "medium": MEDIUM,
    "3.5-medium": {**MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
    "3.5-large": LARGE,
    "3.5-large-turbo": LARGE,
}


def published(name: str) -> nn.Module:
    """The layers of a published model, without weights."""
    with torch.device("meta"):
        denoiser: nn.Module = SD3Transformer2DModel(**PUBLISHED[name])
    return denoiser


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        denoiser: nn.Module = SD3Transformer2DModel(
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    return denoiser


def random_state(denoiser: nn.Module, targets: tuple[str, ...], rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for path in match_modules(denoiser, targets):
        shape = denoiser.get_submodule(path).weight.shape
        state[f"{path}.lora_A.weight"] = torch.randn(rank, *shape[1:], generator=generator)
        state[f"{path}.lora_B.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
    return state


@pytest.fixture
def formats(family: Sd3) -> dict[str, Any]:
    """Those of a denoiser with three blocks, as the tiny one is."""
    return dict(family.adapter_formats())


@pytest.mark.parametrize("targets", [*TARGETS.values(), EVERYTHING], ids=[*TARGETS, "everything"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_as_it_was(formats: dict[str, Any], small: nn.Module, name: str, targets: Any) -> None:
    state = random_state(small, targets)
    ranks = shape_of(state, {}).ranks
    shape = LoraShape(ranks, dict.fromkeys(ranks, 3.0))

    back, back_shape = formats[name].from_file(*formats[name].to_file(state, shape))

    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=3e-7, atol=0) for key in state)
    assert back_shape == shape


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_from_one_format_to_another_and_back_is_the_identity(
    formats: dict[str, Any], small: nn.Module, first: str, second: str
) -> None:
    state = random_state(small, TARGETS["all+ffs"], rank=3)
    tensors, header = formats[first].to_file(state, shape_of(state, {}))

    ours = formats[second].from_file(*formats[second].to_file(*formats[first].from_file(tensors, header)))
    again, again_header = formats[first].to_file(*ours)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_header == header


def makers_weights(denoiser: nn.Module, blocks: int) -> dict[str, Tensor]:
    """The weights of a denoiser as its makers name them, put together from the table of layers."""
    ours = denoiser.state_dict()
    found = {"pos_embed": ours["pos_embed.pos_embed"]}
    for layer in table(blocks).layers(ours):
        for kind in ("weight", "bias"):
            parts = [ours[f"{path}.{kind}"] for path in layer.ours if f"{path}.{kind}" in ours]
            if parts:
                whole = torch.cat(parts)
                found[f"{layer.theirs}.{kind}"] = whole.roll(len(whole) // 2, 0) if layer.swapped else whole
    norms = {"attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k"}
    norms |= {"attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k"}
    norms |= {"attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k"}
    for name, tensor in ours.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.weight", name)
        if match and match[2] in norms:
            found[f"joint_blocks.{match[1]}.{norms[match[2]]}.weight"] = tensor
    return found


def filled(family: Sd3, denoiser: nn.Module, where: Path, name: str, targets: tuple[str, ...]) -> Path:
    """The file of an adapter with random weights."""
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=targets, format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter.export(family, denoiser, where, {})


def test_kohyas_files_change_the_makers_weights_as_it_was_trained(
    family: Sd3, sample: Callable[[Sd3], tuple[Batch, Noised]], tmp_path: Path
) -> None:
    """Added to the makers' weights and converted by diffusers' own converter, it predicts what was trained."""
    batch, noised = sample(family)
    plain, trained = (family.load_denoiser(CPU, torch.float32) for _ in range(2))
    weights = makers_weights(plain, 3)
    unchanged = convert_sd3_transformer_checkpoint_to_diffusers(dict(weights))
    matrices = tuple(path for path, module in plain.named_modules() if isinstance(module, nn.Linear))
    tensors, _ = read_adapter_file(filled(family, trained, tmp_path, "kohya", matrices))
    flat = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": name for name in weights if "weight" in name}

    for stem in {key.split(".")[0] for key in tensors}:
        down, up, alpha = (tensors[f"{stem}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        weights[flat[stem]] = weights[flat[stem]] + float(alpha) / len(down) * up @ down
    plain.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(weights))

    original = family.load_denoiser(CPU, torch.float32).state_dict()
    assert unchanged.keys() == original.keys()
    assert all(torch.equal(unchanged[name], original[name]) for name in original)
    with torch.no_grad():
        actual, expected = (family.predict(one, noised, batch) for one in (plain, trained))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_pipeline_loads_what_was_trained(
    family: Sd3, folder: Path, sample: Callable[[Sd3], tuple[Batch, Noised]], tmp_path: Path
) -> None:
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)

    pipeline.load_lora_weights(str(filled(family, denoiser, tmp_path, "diffusers", TARGETS["all+ffs"])))

    with torch.no_grad():
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def comfyui_table(name: str) -> set[str]:
    """What ComfyUI calls the layers in adapter files of diffusers' naming, as its key map is built."""
    blocks, second = PUBLISHED[name]["num_layers"], len(PUBLISHED[name].get("dual_attention_layers", ()))
    threes = [f"attn.{one}" for one in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")]
    every = [*threes, "attn.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm1_context.linear"]
    text = ["attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"]
    again = [f"attn2.{one}" for one in ("to_q", "to_k", "to_v", "to_out.0")]
    found = {f"transformer_blocks.{i}.{one}" for i in range(blocks) for one in every}
    found |= {f"transformer_blocks.{i}.{one}" for i in range(blocks - 1) for one in text}
    found |= {f"transformer_blocks.{i}.{one}" for i in range(second) for one in again}
    inputs = {f"time_text_embed.{kind}_embedder.linear_{n}" for kind in ("timestep", "text") for n in (1, 2)}
    return {f"transformer.{one}" for one in found | inputs | {"context_embedder", "norm_out.linear", "proj_out"}}


@pytest.mark.parametrize("name", FLAVOURS)
def test_every_key_is_one_that_comfyui_knows(name: str) -> None:
    denoiser = published(name)
    paths = [path for path, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    state = {f"{path}.lora_{side}.weight": torch.zeros(1, 1) for path in paths for side in "AB"}

    tensors, _ = comfyui(FLAVOURS[name].blocks).to_file(state, shape_of(state, {}))

    stems = {re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", key) for key in tensors}
    assert stems == comfyui_table(name)
    assert all(f"{stem}.alpha" in tensors for stem in stems)


@pytest.mark.parametrize("name", FLAVOURS)
def test_every_layer_of_a_published_model_has_a_name_among_kohyas(name: str) -> None:
    paths = match_modules(published(name), EVERYTHING)

    layers = table(FLAVOURS[name].blocks).layers(paths)

    assert {path for layer in layers for path in layer.ours} >= set(paths)


def test_files_that_name_the_makers_layers_are_read(small: nn.Module) -> None:
    state = random_state(small, TARGETS["all"])
    tensors, _ = kohya(3).to_file(state, shape_of(state, {}))
    named = {layer.theirs.replace(".", "_"): layer.theirs for layer in table(3).layers(state)}
    dotted = {}
    for key, tensor in tensors.items():
        stem, _, part = key.removeprefix("lora_unet_").partition(".")
        dotted[f"diffusion_model.{named[stem]}.{part}"] = tensor

    back, _ = comfyui(3).from_file(dotted, {})

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
