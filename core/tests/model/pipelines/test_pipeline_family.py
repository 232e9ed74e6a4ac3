"""A family made of a pipeline: predictions, previews and files are the pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st.data.geometry import Geometry
from st.diffusion.objective import Batch, Noised
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.model.shot import Shot
from st.report.rendering.rendering import RendersPictures

CPU = torch.device("cpu")
SIZE = Geometry(height=32, width=48)
# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def test_the_prediction_is_the_transformers(family: Any, pipelines: Any) -> None:
    entries = pipelines.conditions(family, "a", "bb")
    latents = torch.randn(2, 4, 16, 24)
    t = torch.tensor([0.25, 0.75])
    batch = Batch(("a", "b"), (0, 1), "", latents, family.collate(entries))
    noised = Noised(x=latents, t=t, clean=latents, noise=latents)
    denoiser = family.load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        prediction = family.predict(denoiser, noised, batch)
        expected = pipelines.upstream.transformer(
            latents, batch.conditions["prompt_embeds"], batch.conditions["pooled_prompt_embeds"], t * 1000
        ).sample

    assert torch.equal(prediction, expected)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_preview_is_the_pipelines_picture(family: Any, guidance: float, pipelines: Any) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    prompt, negative = (family.collate(pipelines.conditions(family, text)) for text in ("a cat", "blurry"))
    assert isinstance(family, RendersPictures)

    for _ in range(2):
        picture = family.render(
            denoiser, Shot(prompt, negative if guidance > 1 else None, SIZE, seed=5, steps=3, guidance=guidance)
        )

    expected = pipelines.upstream(
        "a cat",
        negative_prompt="blurry",
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=20,
        output_type="pt",
    ).images
    assert picture.shape == (1, 3, 32, 48)
    assert torch.equal(picture, expected)


def test_rendering_leaves_no_denoiser_behind(family: Any, pipelines: Any) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    (prompt,) = pipelines.conditions(family, "a")

    family.render(denoiser, Shot(family.collate([prompt]), None, SIZE, seed=1, steps=1, guidance=1.0))

    assert family._renderer.transformer is None


def test_a_trained_adapter_gives_the_pipeline_the_same_picture(family: Any, tmp_path: Path, pipelines: Any) -> None:
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(rank=2, alpha=4))
    groups = adapter.attach(denoiser, family.adapter_targets())
    with torch.no_grad():
        for parameter in groups[0]["params"]:
            parameter.normal_(std=0.3)
    prompt = family.collate(pipelines.conditions(family, "a cat"))
    picture = family.render(denoiser, Shot(prompt, None, SIZE, seed=5, steps=2, guidance=1.0))

    file = adapter.export(family, denoiser, tmp_path, {})
    users = pipelines.load(pipelines.folder)
    users.load_lora_weights(file)
    expected = users(
        height=32,
        width=48,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        **prompt,
    ).images

    assert torch.equal(picture, expected)


def test_the_file_is_the_one_that_the_pipeline_writes(family: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    denoiser, adapter = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, family.adapter_targets())

    ours = load_file(adapter.export(family, denoiser, tmp_path, {}))
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(denoiser), weight_name="theirs.safetensors"
    )

    theirs = load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trained_model_is_a_checkpoint_of_the_family(family: Any, tmp_path: Path, pipelines: Any) -> None:
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), FullAdapter(FullOptions())
    adapter.attach(denoiser, ())
    with torch.no_grad():
        next(denoiser.parameters()).add_(1)

    written = adapter.export(family, denoiser, tmp_path, {})
    again = pipelines.family(written).load_denoiser(CPU, torch.float32)
    users = pipelines.load(written)

    for loaded in (again, users.transformer):
        assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), loaded.parameters(), strict=True))
    assert pipelines.conditions(pipelines.family(written), "a")


def test_recompute_reaches_the_declared_blocks(family: Any, pipelines: Any) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    latents = torch.randn(1, 4, 16, 24)
    batch = Batch(("a",), (0,), "", latents, family.collate(pipelines.conditions(family, "a")))
    noised = Noised(x=latents, t=torch.tensor([0.5]), clean=latents, noise=latents)

    def gradients() -> list[Tensor]:
        denoiser.zero_grad()
        family.predict(denoiser, noised, batch).square().mean().backward()
        return [parameter.grad.clone() for parameter in denoiser.parameters() if parameter.grad is not None]

    expected = gradients()
    with BlockStack(denoiser, family.blocks(), [Recompute(RecomputeOptions(every=1))]):
        actual = gradients()

    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_module_paths_need_no_weights(family: Any) -> None:
    assert "transformer_blocks.2.attn.to_q" in family.module_paths()
