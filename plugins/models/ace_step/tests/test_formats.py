"""Adapter files: what diffusers, ComfyUI and the makers' tools write and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline
from safetensors.torch import load_file
from torch import Tensor

from st.errors import StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.formats import LoraShape
from st_ace_step import AceStep
from st_ace_step.formats import MakersFormat

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
EVERY = ("self_attn.to_q", "cross_attn.to_out.0", "mlp.up_proj", "proj_in_conv", "proj_out_conv", "condition_embedder")


def trained(targets: tuple[str, ...], rank: int = 2, alpha: float = 2.0) -> tuple[dict[str, Tensor], LoraShape]:
    """Updates of layers, by their paths in block 1 or outside of the blocks."""
    paths = [f"layers.1.{name}" if "." in name else name for name in targets]
    state = {}
    for number, path in enumerate(paths):
        state[f"{path}.lora_A.weight"] = torch.full((rank, 4), float(number))
        state[f"{path}.lora_B.weight"] = torch.full((4, rank), float(-number))
    return state, LoraShape(dict.fromkeys(paths, rank), dict.fromkeys(paths, alpha))


def test_layers_have_the_names_of_the_published_weights() -> None:
    tensors, metadata = MakersFormat().to_file(*trained(EVERY))

    assert {name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name} == {
        f"base_model.model.{path}"
        for path in (
            "layers.1.self_attn.q_proj",
            "layers.1.cross_attn.o_proj",
            "layers.1.mlp.up_proj",
            "proj_in.1",
            "proj_out.1",
            "condition_embedder",
        )
    }
    assert metadata["layer_names"] == "ACE-Step"


@pytest.mark.parametrize("alpha", [2.0, 8.0])
@pytest.mark.parametrize("prefix", ["base_model.model.", "diffusion_model.decoder."])
def test_files_of_others_are_read(alpha: float, prefix: str) -> None:
    state, shape = trained(EVERY, alpha=alpha)
    tensors, metadata = MakersFormat().to_file(state, shape)
    theirs = {name.replace("base_model.model.", prefix): tensor for name, tensor in tensors.items()}

    restored, restored_shape = MakersFormat().from_file(theirs, metadata)

    assert restored_shape == shape
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)


def test_alpha_is_written_where_it_says_something() -> None:
    assert not [name for name in MakersFormat().to_file(*trained(EVERY, alpha=2.0))[0] if name.endswith("alpha")]
    assert len([name for name in MakersFormat().to_file(*trained(EVERY, alpha=1.0))[0] if name.endswith("alpha")]) == 6


def test_a_file_of_another_model_is_refused() -> None:
    with pytest.raises(StError, match="belong nowhere"):
        MakersFormat().from_file({"lora_unet_down.lora_down.weight": torch.ones(2, 4)}, {})


def test_diffusers_takes_such_a_file_for_the_same_layers(family: AceStep, tmp_path: Path) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, family.adapter_targets())
    state = dict(adapter.state(denoiser))
    ranks = {name.removesuffix(".lora_A.weight"): 2 for name in state if "lora_A" in name}

    tensors, _ = MakersFormat().to_file(state, LoraShape(ranks, dict.fromkeys(ranks, 2.0)))
    read: Any = AceStepPipeline.lora_state_dict(dict(tensors))

    assert read.keys() == {f"transformer.{name}" for name in state}


def test_a_file_is_converted_there_and_back(family: AceStep, st_cli: Callable[..., Any], tmp_path: Path) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=4))
    for group in adapter.attach(denoiser, family.adapter_targets()):
        for parameter in group["params"]:
            parameter.data.normal_(std=0.1)
    first = adapter.export(family, denoiser, tmp_path, {})
    convert = ("adapter", "convert", "--plugins", "ace_step")

    there = st_cli(*convert, first, tmp_path / "there.safetensors", "--to", "comfyui")
    back = st_cli(*convert, tmp_path / "there.safetensors", tmp_path / "back.safetensors", "--to", "diffusers")

    assert (there.code, back.code) == (0, 0), there.err + back.err
    ours, theirs = load_file(first), load_file(tmp_path / "back.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
