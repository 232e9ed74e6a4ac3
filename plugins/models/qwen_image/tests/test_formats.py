"""Adapter files: the pipeline loads what was trained, and every key is a layer of the published model."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn

from st import Geometry
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.formats import shape_of
from st.testing import example_batch, example_noised
from st_qwen_image import QwenImage
from st_qwen_image.flavours import TARGETS

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]
FORMATS = ("diffusers", "comfyui", "kohya")


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The published denoiser, without its numbers."""
    with torch.device("meta"):
        return QwenImageTransformer2DModel()


def random_state(denoiser: nn.Module, targets: tuple[str, ...], rank: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for path in match_modules(denoiser, targets):
        layer: Any = denoiser.get_submodule(path)
        state[f"{path}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator)
        state[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator)
    return state


@pytest.mark.parametrize("name", FORMATS)
def test_a_trained_adapter_gives_the_pipeline_the_same_answers(
    family: QwenImage, folder: Path, tmp_path: Path, name: str
) -> None:
    batch = example_batch(family, Geometry(64, 96))
    noised = example_noised(family, batch)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, family.adapter_targets()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    pipeline = QwenImagePipeline.from_pretrained(folder)

    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(adapter.export(family, denoiser, tmp_path / "out", {})))
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_from_one_format_to_another_and_back_is_the_identity(family: QwenImage, targets: tuple[str, ...]) -> None:
    state = random_state(family.load_denoiser(CPU, torch.float32), targets)
    formats = family.adapter_formats()
    assert tuple(formats) == FORMATS

    for one, other in permutations(FORMATS, 2):
        tensors, header = formats[one].to_file(state, shape_of(state, {}))
        between = formats[other].to_file(*formats[one].from_file(tensors, header))
        again, again_header = formats[one].to_file(*formats[other].from_file(*between))
        assert again.keys() == tensors.keys() and again_header == header
        assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(("prefix", "name"), [("diffusion_model.", "comfyui"), ("transformer.", "diffusers")])
def test_every_key_is_a_layer_of_the_published_model(
    family: QwenImage, published: nn.Module, prefix: str, name: str
) -> None:
    """ComfyUI calls this architecture's layers as diffusers does, behind ``diffusion_model.``."""
    layers = {path for path, module in published.named_modules() if isinstance(module, nn.Linear)}
    state = random_state(family.load_denoiser(CPU, torch.float32), TARGETS["modulation"])

    tensors, _ = family.adapter_formats()[name].to_file(state, shape_of(state, {}))

    stems = {key.removesuffix(".alpha").partition(".lora_")[0] for key in tensors}
    assert {stem.removeprefix(prefix) for stem in stems} <= layers
    assert all(stem.startswith(prefix) for stem in stems)


@pytest.mark.parametrize(
    ("name", "count"),
    [("mmdit", 240), ("all", 480), ("all+ffs", 720), ("modulation", 840), ("context", 240), ("context+ffs", 360)],
)
def test_targets_are_the_layers_that_they_say(published: nn.Module, name: str, count: int) -> None:
    assert len(match_modules(published, TARGETS[name])) == count
