"""What is learnt, about which times, by which expert; and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from pydantic import ValidationError
from torch import Tensor, nn

from st import Geometry, Input, Shot, StError
from st.diffusion.densities import Segmented, SegmentedOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.randomness import Draws
from st.testing import example_batch
from st_pixart import PixArt, PixArtOptions
from st_pixart.tiny import write_tiny

pytestmark = [
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*", "ignore::FutureWarning:diffusers.*"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pixart") / "tiny"
    write_tiny(path)
    return path


def make(folder: Path, **options: Any) -> PixArt:
    given = {"checkpoint": str(folder), "text_precision": "fp32", "max_tokens": 48}
    return PixArt(PixArtOptions.model_validate(given | options))


def gradients(denoiser: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in denoiser.named_parameters() if one.grad is not None}


def test_loss_and_gradients_are_those_of_noise_that_the_scheduler_adds(folder: Path) -> None:
    family = make(folder)
    built = Objective(
        family.path, family.target, Segmented(SegmentedOptions()), Uniform(UniformOptions()), L2(L2Options())
    )
    batch = example_batch(family, Geometry(64, 96), ("a red square on a table", "a tree"))
    noised = built.noise(batch, Draws(7, batch.indices, CPU))
    index = (noised.t * 1000).round().long() - 1
    denoiser = family.load_denoiser(CPU, torch.float32)
    FullAdapter(FullOptions()).attach(denoiser, ())
    upstream: Any = PixArtTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    scheduler: Any = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")

    loss = built.loss(family.predict(denoiser, noised, batch), noised, batch).total
    torch.autograd.backward(loss)
    noisy = scheduler.add_noise(batch.latents, noised.noise, index)
    text = {
        "encoder_hidden_states": batch.conditions["prompt_embeds"],
        "encoder_attention_mask": batch.conditions["prompt_attention_mask"],
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    answer, _ = upstream(noisy, timestep=index, **text).sample.chunk(2, dim=1)
    expected = F.mse_loss(answer, noised.noise)
    torch.autograd.backward(expected)

    torch.testing.assert_close(noised.x, noisy, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    known = gradients(upstream)
    assert gradients(denoiser).keys() == known.keys() != set()
    for name, gradient in gradients(denoiser).items():
        torch.testing.assert_close(gradient, known[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({"flavour": "900M-1024-first"}, 400, 999),
        ({"flavour": "900M-1024-second"}, 0, 399),
        ({"flavour": "600M-1024", "stage": "second", "strength": 0.3}, 0, 299),
        ({"flavour": "900M-1024-first", "stage": "whole"}, 0, 999),
    ],
)
def test_an_expert_learns_the_times_of_its_stage(
    folder: Path, options: Mapping[str, Any], first: int, last: int
) -> None:
    family = make(folder, **options)
    given = {name: value for name, value in family.options.density().items() if name != "kind"}
    density = Segmented(SegmentedOptions.model_validate(given))

    index = family.path.index(family.path.snap(density(Draws(0, tuple(range(4000)), CPU))))

    assert (int(index.min()), int(index.max())) == (first, last)


def told(family: PixArt, caption: str) -> Mapping[str, Tensor]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        return family.collate(encode([Input(key=caption, caption=caption)]))


@pytest.mark.parametrize("stage", ["first", "second"])
def test_each_expert_draws_its_own_times_of_a_preview(folder: Path, tmp_path: Path, stage: str) -> None:
    write_tiny(tmp_path / "other", seed=1)
    mine, other = (
        PixArtTransformer2DModel.from_pretrained(one, subfolder="transformer") for one in (folder, tmp_path / "other")
    )
    noisy, clean = (mine, other) if stage == "first" else (other, mine)
    asked: list[tuple[str, int]] = []
    family = make(folder, stage=stage, strength=0.5, partner=str(tmp_path / "other"))
    shot = Shot(told(family, "a tree"), None, Geometry(64, 64), seed=5, steps=4, guidance=1.0)

    picture = family.render(family.load_denoiser(CPU, torch.float32), shot)

    pipeline: Any = PixArtSigmaPipeline.from_pretrained(folder)
    latents: Tensor = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    pipeline.scheduler.set_timesteps(4)
    text = {name: one for name, one in told(family, "a tree").items()}
    for index in pipeline.scheduler.timesteps:
        expert: Any = noisy if int(index) >= 500 else clean
        asked.append(("noisy" if expert is noisy else "clean", int(index)))
        with torch.no_grad():
            answer = expert(
                latents,
                timestep=index[None],
                encoder_hidden_states=text["prompt_embeds"],
                encoder_attention_mask=text["prompt_attention_mask"],
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample[:, :4]
        latents = pipeline.scheduler.step(answer, index, latents).prev_sample
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert [name for name, _ in asked] == ["noisy", "noisy", "clean", "clean"]
    torch.testing.assert_close(picture, (decoded / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partner": "elsewhere"}, "partner has no effect while stage is 'whole'"),
        ({"strength": 0.3}, "strength has no effect while stage is 'whole'"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr needs prediction = 'v'"),
    ],
)
def test_options_that_do_nothing_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PixArtOptions.model_validate(options)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "transformer/config.json",
            '"use_additional_conditions": false',
            '"use_additional_conditions": true',
            "is a PixArt Alpha",
        ),
        ("transformer/config.json", '"in_channels": 4', '"in_channels": 9', "takes 9 channels"),
        (
            "scheduler/scheduler_config.json",
            '"beta_end": 0.02',
            '"beta_end": 0.012',
            r"another noise schedule \(beta_end",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))

    with pytest.raises(StError, match=message):
        make(copy).check()
