"""Adapter files: what diffusers reads is what was trained; what ComfyUI and kohya's tools name is in the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers
from safetensors.torch import save_file
from torch import Tensor, nn

from st import Batch, Geometry, Noised
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import AdapterFormat, shape_of
from st.model.files.peft_layout import diffusers_format
from st.testing import example_batch, example_noised
from st_lumina2 import Lumina2
from st_lumina2.flavours import TARGETS
from st_lumina2.formats import COMFYUI, KOHYA, MAKERS

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
EVERYTHING = ("*",)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        denoiser: nn.Module = Lumina2Transformer2DModel(
            hidden_size=24,
            num_layers=3,
            num_refiner_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 64, 64),
            cap_feat_dim=12,
        )
    return denoiser


@pytest.fixture(scope="module")
def formats() -> dict[str, AdapterFormat]:
    return {"diffusers": diffusers_format("transformer"), "comfyui": COMFYUI, "kohya": KOHYA}


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
    family: Lumina2, folder: Path, tmp_path: Path, name: str
) -> None:
    """diffusers 0.42 reads no alpha of this family, so that the others' files are brought into its layout first."""
    batch, noised = asked(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=TARGETS["modulation"], format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    pipeline = Lumina2Pipeline.from_pretrained(folder)
    written = adapter.export(family, denoiser, tmp_path, {})
    if name != "diffusers":
        ours = family.adapter_formats()[name].from_file(*read_adapter_file(written))
        written = tmp_path / "theirs.safetensors"
        write_adapter_file(written, *diffusers_format("transformer").to_file(*ours))

    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(written))
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def asked(family: Lumina2) -> tuple[Batch, Noised]:
    batch = example_batch(family, Geometry(64, 96))
    return batch, example_noised(family, batch)


def makers_layers(layers: int, refiners: int) -> set[str]:
    """The layers with a matrix as the makers name them, and ComfyUI and kohya's tools with them."""
    inside = "attention.qkv attention.out feed_forward.w1 feed_forward.w2 feed_forward.w3"
    counts = {"layers": layers, "noise_refiner": refiners, "context_refiner": refiners}
    found = {f"{kind}.{i}.{one}" for kind, count in counts.items() for i in range(count) for one in inside.split()}
    found |= {f"{kind}.{i}.adaLN_modulation.1" for kind in ("layers", "noise_refiner") for i in range(counts[kind])}
    found |= {"x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1", "cap_embedder.1"}
    return found | {"t_embedder.mlp.0", "t_embedder.mlp.2"}


def test_every_key_is_one_that_comfyui_and_kohyas_tools_know(published: nn.Module) -> None:
    state = random_state(published, EVERYTHING, rank=1)
    known = makers_layers(26, 2)

    dotted, _ = COMFYUI.to_file(state, shape_of(state, {}))
    flat, _ = KOHYA.to_file(state, shape_of(state, {}))

    stems = {re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", key) for key in dotted}
    assert stems == {f"diffusion_model.{path}" for path in known}
    assert all(f"{stem}.alpha" in dotted and f"{stem}.lora_A.weight" in dotted for stem in stems)
    assert {key.partition(".")[0] for key in flat} == {f"lora_unet_{path.replace('.', '_')}" for path in known}


def test_query_key_and_value_lie_where_the_makers_layer_has_them(published: nn.Module) -> None:
    state = random_state(published, ("layers.3.attn.*",), rank=2)

    tensors, _ = COMFYUI.to_file(state, shape_of(state, {}))

    down, up = (tensors[f"diffusion_model.layers.3.attention.qkv.lora_{side}.weight"] for side in "AB")
    parts = [[state[f"layers.3.attn.{name}.lora_{side}.weight"] for side in "BA"] for name in ("to_q", "to_k", "to_v")]
    expected = torch.cat([b @ a for b, a in parts])
    assert up.shape[0] == 2304 + 768 + 768
    torch.testing.assert_close(up @ down, expected, rtol=1e-4, atol=1e-4)


def test_diffusers_reads_the_makers_file_where_it_has_no_alpha(published: nn.Module, tmp_path: Path) -> None:
    state = random_state(published, TARGETS["modulation"], rank=1)
    tensors, _ = COMFYUI.to_file(state, shape_of(state, {}))
    plain = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    # alpha of a layer that stands for several is its whole rank, so that leaving it out changes nothing.
    assert all(
        float(tensors[f"{key[:-14]}.alpha"]) == len(plain[key]) for key in plain if key.endswith("lora_A.weight")
    )
    save_file(plain, tmp_path / "a.safetensors")

    theirs = Lumina2Pipeline.lora_state_dict(str(tmp_path / "a.safetensors"))

    assert theirs.keys() == {f"transformer.{key}" for key in state}
    for path in ("layers.7.attn.to_k", "noise_refiner.1.norm1.linear", "context_refiner.0.feed_forward.linear_2"):
        down, up = (theirs[f"transformer.{path}.lora_{side}.weight"] for side in "AB")
        expected = state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
        torch.testing.assert_close(up @ down, expected, rtol=1e-5, atol=1e-5)


def test_the_makers_table_names_every_layer_once(published: nn.Module) -> None:
    paths = match_modules(published, EVERYTHING)

    found = MAKERS.layers(paths)

    assert makers_layers(26, 2) <= {layer.theirs for layer in found}
    # Of the caption's blocks the time changes nothing; the table has one line for all blocks.
    strange = {path for layer in found for path in layer.ours} - set(paths)
    assert strange == {f"context_refiner.{number}.norm1.linear" for number in range(2)}


def test_diffusers_takes_the_makers_weights_apart_as_the_table_does(published: nn.Module) -> None:
    weights = published.state_dict()
    theirs = {}
    for name, tensor in weights.items():
        if "norm" in name and not name.startswith("norm_out") and "norm1.linear" not in name:
            changed = name.replace("norm1.norm", "norm1").replace(".norm", ".attention_norm")
            changed = changed.replace("attn.attention_norm_q", "attention.q_norm")
            theirs[changed.replace("attn.attention_norm_k", "attention.k_norm")] = tensor
    theirs["cap_embedder.0.weight"] = weights["time_caption_embed.caption_embedder.0.weight"]
    for layer in MAKERS.layers(weights):
        for kind in ("weight", "bias"):
            parts = [weights[f"{path}.{kind}"] for path in layer.ours if f"{path}.{kind}" in weights]
            if parts:
                theirs[f"{layer.theirs}.{kind}"] = torch.cat(parts)

    converted = convert_lumina2_to_diffusers(theirs)

    shapes = {name: tensor.shape for name, tensor in weights.items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == shapes
