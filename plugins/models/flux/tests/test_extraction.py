"""``st adapter extract`` in every layout of the family, and what its files call the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import read_adapter_file
from st_flux import Flux
from st_flux.flavours import FLAVOURS

WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYERS = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.1.attn.to_add_out",
    "single_transformer_blocks.0.attn.to_v",
)
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoiser alone, with updates of rank 2 in three of its layers, in several files."""
    target = tmp_path_factory.mktemp("trained") / "transformer"
    denoiser: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in LAYERS:
            weight = denoiser.get_submodule(layer).weight
            weight += torch.randn(len(weight), 2, generator=draws) @ torch.randn(2, weight.shape[1], generator=draws)
    denoiser.save_pretrained(target, max_shard_size="100KB")
    assert len(list(target.glob("*.safetensors"))) > 1
    return target


def test_each_layout_holds_the_change(
    folder: Path, trained: Path, tmp_path: Path, st_cli: Any, make_family: Callable[..., Flux], sample: Any
) -> None:
    out, names = tmp_path / "out.safetensors", ("diffusers", "comfyui", "kohya")
    formats = [word for name in names for word in ("--format", name)]

    result = st_cli("adapter", "extract", folder, trained, "--rank", 2, "--output", out, "--plugins", "flux", *formats)

    assert result.code == 0, result.err
    family = make_family()
    batch, noised = sample(family)
    whole: Any = FluxTransformer2DModel.from_pretrained(trained)
    for file in (out, tmp_path / "out-comfyui.safetensors", tmp_path / "out-kohya.safetensors"):
        denoiser = family.load_denoiser(CPU, torch.float32)
        LoraAdapter(LoraOptions(start=str(file))).attach(denoiser, family.adapter_targets(), family.adapter_formats())
        with torch.no_grad():
            expected, found = (family.predict(one, noised, batch) for one in (whole, denoiser))
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        told = read_adapter_file(file)[1]
        assert told["modelspec.architecture"] == "flux-1-dev/lora"
        assert (told["ss_base_model_version"], told["ss_network_module"]) == ("flux1", "networks.lora_flux")
        assert told["modelspec.hash_sha256"] == f"0x{told['sshs_model_hash']}"
        assert told["ss_network_dim"] == "2"
    errors = [line.split()[0] for line in result.out.splitlines() if line.endswith(LAYERS)]
    assert errors == ["0.00%"] * 3


def test_half_of_the_rank_leaves_the_rest_out_and_says_so(
    folder: Path, trained: Path, tmp_path: Path, st_cli: Any
) -> None:
    out = tmp_path / "out.safetensors"

    result = st_cli("adapter", "extract", folder, trained, "--rank", 1, "--output", out, "--plugins", "flux")

    before, after = (
        FluxTransformer2DModel.from_pretrained(one).state_dict() for one in (folder / "transformer", trained)
    )
    tensors = read_adapter_file(out)[0]
    for layer in LAYERS:
        change = after[f"{layer}.weight"] - before[f"{layer}.weight"]
        kept = tensors[f"transformer.{layer}.lora_B.weight"] @ tensors[f"transformer.{layer}.lora_A.weight"]
        values = torch.linalg.svdvals(change)
        assert torch.linalg.norm(change - kept) == pytest.approx(float(values[1]), rel=1e-3)
        expected = float(values[1] / torch.linalg.norm(change))
        line = next(line for line in result.out.splitlines() if line.endswith(layer))
        assert float(line.split()[0].rstrip("%")) / 100 == pytest.approx(expected, abs=1e-4)


def test_each_flavour_has_a_name_among_other_programs(make_family: Callable[..., Flux]) -> None:
    named = {flavour: make_family(flavour=flavour).architecture().name for flavour in FLAVOURS}

    assert {flavour for flavour, name in named.items() if name == "flux-1-schnell"} == {"schnell", "libreflux"}
    assert set(named.values()) == {"flux-1-dev", "flux-1-schnell"}


@pytest.mark.parametrize("fused", [False, True])
def test_a_whole_model_in_several_files_is_loaded_by_diffusers(
    make_family: Callable[..., Flux], folder: Path, tmp_path: Path, fused: bool
) -> None:
    family = make_family(shard_gigabytes=1e-4, fuse_qkv=fused)

    family.save_checkpoint(family.load_denoiser(CPU, torch.float32), tmp_path / "model")

    assert len(list((tmp_path / "model" / "transformer").glob("*.safetensors"))) > 1
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipeline, FluxPipeline)
    found, expected = pipeline.transformer.state_dict(), load_file(folder / "transformer" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kept = (one / "text_encoder_2" / "model.safetensors" for one in (tmp_path / "model", folder))
    assert len({file.stat().st_ino for file in kept}) == 1


def test_a_file_that_is_cut_off_is_named(folder: Path, tmp_path: Path, st_cli: Any) -> None:
    broken = tmp_path / "transformer"
    shutil.copytree(folder / "transformer", broken)
    save_file({"a": torch.zeros(4)}, broken / WEIGHTS)
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-8])

    result = st_cli(
        "adapter", "extract", folder, broken, "--rank", 1, "--output", tmp_path / "o.safetensors", "--plugins", "flux"
    )

    assert result.code == 1
    assert "is not a whole safetensors file" in result.err
