"""What diffusers reads at the width of the published models only. Half a billion weights: ask for it by `-m heavy`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from st import Batch, Noised
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st_flux import Flux, FluxOptions
from st_flux.names import TABLE

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
NORMS = {
    "double_blocks.0.img_attn.norm.query_norm": "transformer_blocks.0.attn.norm_q",
    "double_blocks.0.img_attn.norm.key_norm": "transformer_blocks.0.attn.norm_k",
    "double_blocks.0.txt_attn.norm.query_norm": "transformer_blocks.0.attn.norm_added_q",
    "double_blocks.0.txt_attn.norm.key_norm": "transformer_blocks.0.attn.norm_added_k",
    "single_blocks.0.norm.query_norm": "single_transformer_blocks.0.attn.norm_q",
    "single_blocks.0.norm.key_norm": "single_transformer_blocks.0.attn.norm_k",
}


@pytest.fixture(scope="module")
def wide(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with one block of each kind, as wide as the published ones."""
    where = tmp_path_factory.mktemp("wide") / "wide"
    shutil.copytree(folder, where)
    with torch.device("meta"):
        denoiser: Any = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True
        )
    denoiser.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in denoiser.parameters():
        parameter.data.normal_(std=0.02, generator=generator)
    denoiser.save_pretrained(where / "transformer")
    return where


@pytest.fixture
def family(wide: Path) -> Flux:
    return Flux(FluxOptions(checkpoint=str(wide), max_tokens=32))


def answer(family: Flux, denoiser: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 8, 8, generator=generator)
    text = torch.randn(1, 32, 32, generator=generator)
    batch = Batch(("a",), (0,), "", x, {"prompt_embeds": text, "pooled_prompt_embeds": text[:, 0]})
    with torch.no_grad():
        return family.predict(denoiser, Noised(x=x, t=torch.tensor([0.5]), clean=x, noise=x), batch)


def makers_file(weights: dict[str, Tensor], file: Path) -> None:
    """The weights as the makers published theirs."""
    found = {f"{theirs}.scale": weights[f"{ours}.weight"] for theirs, ours in NORMS.items()}
    for layer in TABLE.layers(weights):
        for kind in ("weight", "bias"):
            whole = torch.cat([weights[f"{path}.{kind}"] for path in layer.ours])
            found[f"{layer.theirs}.{kind}"] = torch.cat(whole.chunk(2)[::-1]) if layer.swapped else whole
    save_file(found, file)


def test_the_makers_file_gives_the_same_answers(family: Flux, wide: Path, tmp_path: Path) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    expected = answer(family, denoiser)
    makers_file(denoiser.state_dict(), tmp_path / "flux.safetensors")
    del denoiser
    other = Flux(FluxOptions(checkpoint=str(wide), denoiser=str(tmp_path / "flux.safetensors")))

    loaded = answer(other, other.load_denoiser(CPU, torch.float32))

    assert torch.equal(loaded, expected)


def test_kohyas_file_of_every_layer_in_the_blocks_gives_the_pipeline_the_same_answers(
    family: Flux, wide: Path, tmp_path: Path
) -> None:
    targets = ("attn.*", "ff.*", "ff_context.*", "proj_mlp", "single_transformer_blocks.*.proj_out")
    targets += ("norm1.linear", "norm1_context.linear", "norm.linear")
    denoiser = family.load_denoiser(CPU, torch.float32)
    before = answer(family, denoiser)
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=2.0, format="kohya", targets=targets))
    generator = torch.Generator().manual_seed(2)
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.normal_(std=0.05, generator=generator)
    expected = answer(family, denoiser)
    file = adapter.export(family, denoiser, tmp_path, {})
    del denoiser

    pipeline = FluxPipeline.from_pretrained(wide)
    pipeline.load_lora_weights(str(file))
    loaded = answer(family, pipeline.transformer)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert float((expected - before).abs().max()) > 0.1
