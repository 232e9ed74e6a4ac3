"""``st adapter extract``: what full training taught a U-Net, as an adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from st.model.files.adapter_file import read_adapter_file
from st_sdxl import Sdxl

LAYERS = (
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, two of its layers changed by updates of rank 3, another weight by a little."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "unet" / WEIGHTS)
    draws = torch.Generator().manual_seed(0)
    for layer in LAYERS:
        out, inside = weights[f"{layer}.weight"].shape
        weights[f"{layer}.weight"] += torch.randn(out, 3, generator=draws) @ torch.randn(3, inside, generator=draws)
    weights["conv_in.bias"] += 0.5
    save_file(weights, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("alone", [False, True], ids=["whole models", "denoisers alone"])
def test_a_change_of_low_rank_is_found_exactly(
    checkpoint: Path, trained: Path, tmp_path: Path, st_cli: Any, alone: bool
) -> None:
    folders = [folder / "unet" if alone else folder for folder in (checkpoint, trained)]
    out, options = tmp_path / "out.safetensors", ["--format", "diffusers", "--format", "kohya"]

    result = st_cli("adapter", "extract", *folders, "--rank", 8, "--output", out, "--plugins", "sdxl", *options)

    assert result.code == 0, result.err
    tensors, told = read_adapter_file(out)
    before, after = (load_file(folder / "unet" / WEIGHTS) for folder in (checkpoint, trained))
    for layer in LAYERS:
        up, down = tensors[f"unet.{layer}.lora_B.weight"], tensors[f"unet.{layer}.lora_A.weight"]
        change = after[f"{layer}.weight"] - before[f"{layer}.weight"]
        assert torch.allclose(up @ down, change, atol=1e-5)
    assert len(tensors) == 4
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    kohya = read_adapter_file(tmp_path / "out-kohya.safetensors")
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in kohya[0]
    assert kohya[1]["ss_network_module"] == "networks.lora"
    assert "1 other weights differ and are left out, such as conv_in.bias" in result.out


def test_the_pipeline_draws_with_it_as_with_the_trained_model(
    checkpoint: Path, trained: Path, tmp_path: Path, st_cli: Any
) -> None:
    weights = load_file(trained / "unet" / WEIGHTS)
    weights["conv_in.bias"] = load_file(checkpoint / "unet" / WEIGHTS)["conv_in.bias"]
    folder, out = tmp_path / "model", tmp_path / "out.safetensors"
    shutil.copytree(trained, folder)
    save_file(weights, folder / "unet" / WEIGHTS, metadata={"format": "pt"})

    result = st_cli(
        "adapter", "extract", checkpoint, folder, "--energy", 1, "--rank", 16, "--output", out, "--plugins", "sdxl"
    )

    assert result.code == 0, result.err
    plain, whole = (StableDiffusionXLPipeline.from_pretrained(one) for one in (checkpoint, folder))
    x, text, extra = (
        torch.randn(1, 4, 8, 8),
        torch.randn(1, 7, 48),
        {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)},
    )
    with torch.no_grad():
        untouched, expected = (one.unet(x, 5, text, added_cond_kwargs=extra).sample for one in (plain, whole))
        plain.load_lora_weights(str(out))
        found = plain.unet(x, 5, text, added_cond_kwargs=extra).sample
    assert (found - expected).abs().max() < 1e-3 * (untouched - expected).abs().max()


def test_a_share_of_energy_chooses_each_rank(checkpoint: Path, trained: Path, tmp_path: Path, st_cli: Any) -> None:
    ranks = []
    for energy in (0.3, 0.999999):
        out = tmp_path / f"{energy}.safetensors"
        result = st_cli(
            "adapter", "extract", checkpoint, trained, "--energy", energy, "--output", out, "--plugins", "sdxl"
        )
        assert result.code == 0, result.err
        ranks.append([len(one) for name, one in read_adapter_file(out)[0].items() if name.endswith("lora_A.weight")])

    assert all(rank < 3 for rank in ranks[0])
    assert ranks[1] == [3, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _rename(folder, "FluxTransformer2DModel"), "is a UNet2DConditionModel and"),
        (lambda folder: _drop(folder, "conv_in.bias"), "1 weights are in one checkpoint only, such as 'conv_in.bias'"),
        (lambda folder: _cut(folder, "conv_in.bias"), "'conv_in.bias' has shape (8,) in"),
        (lambda folder: (folder / "unet" / WEIGHTS).unlink(), "has no 'diffusion_pytorch_model.safetensors'"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "holds no unet of diffusers' layout"),
    ],
)
def test_checkpoints_of_two_models_are_refused(
    checkpoint: Path, tmp_path: Path, st_cli: Any, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(checkpoint, folder)
    spoil(folder)

    result = st_cli(
        "adapter",
        "extract",
        checkpoint,
        folder,
        "--rank",
        4,
        "--output",
        tmp_path / "o.safetensors",
        "--plugins",
        "sdxl",
    )

    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "o.safetensors").exists()


def test_nothing_learnt_and_no_size_are_refused(checkpoint: Path, tmp_path: Path, st_cli: Any) -> None:
    out = tmp_path / "o.safetensors"

    same = st_cli("adapter", "extract", checkpoint, checkpoint, "--rank", 4, "--output", out, "--plugins", "sdxl")
    sizeless = st_cli("adapter", "extract", checkpoint, checkpoint, "--output", out, "--plugins", "sdxl")

    assert "no layer that an adapter changes differs" in same.err
    assert "how large shall it be?" in sizeless.err


def test_a_whole_model_in_several_files_is_loaded_by_diffusers(
    make: Callable[..., Sdxl], checkpoint: Path, tmp_path: Path
) -> None:
    family = make(shard_gigabytes=0.0005)
    unet = family.load_denoiser(torch.device("cpu"), torch.float32)

    family.save_checkpoint(unet, tmp_path / "model")

    files = sorted((tmp_path / "model" / "unet").glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 600_000 for file in files)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    found, expected = pipeline.unet.state_dict(), unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ours, theirs = (folder / "vae" / WEIGHTS for folder in (tmp_path / "model", checkpoint))
    assert ours.stat().st_ino == theirs.stat().st_ino


@pytest.mark.parametrize(
    ("options", "name", "base", "prediction"),
    [
        ({}, "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "epsilon"),
        ({"prediction": "v", "flavour": "base-0.9"}, "stable-diffusion-xl-v1-base", "sdxl_base_v0-9", "v"),
        ({"flavour": "refiner-1.0"}, "stable-diffusion-xl-v1-refiner", "sdxl_refiner_v1-0", "epsilon"),
    ],
)
def test_each_flavour_has_a_name_among_other_programs(
    make: Callable[..., Sdxl], options: dict[str, str], name: str, base: str, prediction: str
) -> None:
    model = make(**options).architecture()

    assert (model.name, model.base, model.prediction) == (name, base, prediction)


def _rename(folder: Path, kind: str) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": kind}))


def _drop(folder: Path, name: str) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    del weights[name]
    save_file(weights, folder / "unet" / WEIGHTS)


def _cut(folder: Path, name: str) -> None:
    weights = load_file(folder / "unet" / WEIGHTS)
    weights[name] = weights[name][:8].clone()
    save_file(weights, folder / "unet" / WEIGHTS)
