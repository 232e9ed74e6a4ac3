"""What the U-Net is taught to say, about which times, and what it is told beside the caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError
from torch import Tensor

from st import Batch, Media, Noised, Shot
from st.diffusion.densities import Segmented, SegmentedOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.weightings import Uniform, UniformOptions
from st.randomness import Draws
from st.testing import CliResult
from st.testing.runs import write_photos
from st_sdxl import Sdxl, SdxlOptions

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
Make = Callable[..., Sdxl]
BatchOf = Callable[[Sdxl], Batch]
NoisedAt = Callable[[Sdxl, Batch, Tensor], Noised]
Told = Callable[..., Mapping[str, Tensor]]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_flow_objective_scores_the_velocity_that_an_answer_means(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, prediction: str
) -> None:
    plain, family = make(prediction=prediction), make(prediction=prediction, flow=True)
    batch = batch_of(family)
    noised = noised_at(family, batch, torch.tensor([0.3, 0.9]))
    denoiser = family.load_denoiser(CPU, torch.float32)
    kept = torch.tensor([plain.path.alphas_cumprod[index] for index in (299, 899)]).reshape(2, 1, 1, 1)

    flow = family.predict(denoiser, noised, batch)

    answer = plain.predict(denoiser, noised, batch)
    if prediction == "epsilon":
        clean, noise = (1 / kept).sqrt() * noised.x - (1 / kept - 1).sqrt() * answer, answer
    else:
        clean = kept.sqrt() * noised.x - (1 - kept).sqrt() * answer
        noise = kept.sqrt() * answer + (1 - kept).sqrt() * noised.x
    torch.testing.assert_close(flow, noise - clean, rtol=1e-5, atol=1e-5)
    scored = Objective(
        family.path, family.target, Segmented(SegmentedOptions()), Uniform(UniformOptions()), L2(L2Options())
    )
    expected = torch.nn.functional.mse_loss(flow, noised.noise - noised.clean)
    torch.testing.assert_close(scored.loss(flow, noised, batch).total, expected, rtol=1e-5, atol=1e-5)


def test_the_schedule_ends_in_pure_noise_where_that_is_asked_for(make: Make) -> None:
    family = make(prediction="v", zero_terminal_snr=True)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              rescale_betas_zero_snr=True)  # fmt: skip

    assert family.path.alphas_cumprod[-1] == 0
    torch.testing.assert_close(
        torch.tensor(family.path.alphas_cumprod), scheduler.alphas_cumprod, rtol=0, atol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize(("stage", "first", "last"), [("first", 300, 999), ("second", 0, 299)])
def test_a_stage_learns_the_times_on_its_side_of_strength(make: Make, stage: str, first: int, last: int) -> None:
    family = make(stage=stage, strength=0.3)
    settings = {name: value for name, value in family.defaults["density"].items() if name != "kind"}
    scored = Objective(
        family.path, family.target, Segmented(SegmentedOptions.model_validate(settings)), Uniform(UniformOptions()),
        L2(L2Options()),
    )  # fmt: skip

    times = scored.times(torch.zeros(4000, 1), Draws(1, tuple(range(4000)), CPU))

    index = family.path.index(times)
    assert int(index.min()) == first
    assert int(index.max()) == last
    assert abs(float(index.float().mean()) - (first + last) / 2) < 5


STAGE = """
plugins = ["sdxl"]
output = "out"
steps = 1
[model]
stage = "second"
[density]
kind = "uniform"
[shift]
kind = "static"
value = 3.0
[[dataset]]
url = "photos"
"""


def test_a_density_beside_a_stage_is_refused(run_file: Callable[[str], Path], st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("train", run_file(STAGE), "--dry-run")

    assert result.code == 2
    assert "[density] takes the place of model.stage = 'second'." in result.err
    assert "[shift] moves times out of model.stage = 'second'." in result.err


def test_a_stage_alone_is_a_plan(
    run_file: Callable[[str], Path], st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    text = STAGE.replace('[density]\nkind = "uniform"\n[shift]\nkind = "static"\nvalue = 3.0\n', "")
    text = text.replace('"photos"', f'"{write_photos(tmp_path / "photos", count=2)}"')

    result = st_cli("train", run_file(text), "--dry-run")

    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_terminal_snr": True}, "needs prediction = 'v'"),
        ({"strength": 0.4}, "strength has no effect while stage is 'whole'"),
        ({"aesthetic_score": 5.0}, "aesthetic_score has no effect on a base model"),
        ({"flavour": "refiner-1.0", "train_text": True}, "a refiner has one text encoder of two"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SdxlOptions(**options)


def test_a_dropped_caption_is_told_zeros_and_the_sizes_as_the_pipelines_unconditional_branch_is(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, told: Told
) -> None:
    family = make()
    batch = replace(batch_of(family), conditions=told(family, "", "a tree"))
    noised = noised_at(family, batch, torch.tensor([0.5, 0.5]))
    denoiser: Any = family.load_denoiser(CPU, torch.float32)

    actual = family.predict(denoiser, noised, batch)

    embeds, pooled = (batch.conditions[name] for name in ("prompt_embeds", "pooled_prompt_embeds"))
    ids = torch.tensor([[70.0, 96, 3, 0, 64, 96], [64, 131, 0, 17, 64, 96]])
    expected = denoiser(
        noised.x, torch.tensor([499, 499]), embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
    ).sample  # fmt: skip
    assert not embeds[0].any()
    assert not pooled[0].any()
    assert torch.equal(actual, expected)


def test_the_empty_caption_is_encoded_where_the_pipeline_does_so(
    make: Make, rewrite: Callable[..., Path], told: Told
) -> None:
    encoding = make(checkpoint=str(rewrite("model_index.json", force_zeros_for_empty_prompt=False)))
    entry = told(encoding, "")

    assert entry["prompt_embeds"].any()
    assert entry["captioned"].tolist() == [[0.0]]
    assert encoding.text_encoders()[0].fingerprint != make().text_encoders()[0].fingerprint


@pytest.mark.parametrize("train_text", [False, True])
def test_tokens_beyond_the_77th_are_counted(make: Make, train_text: bool) -> None:
    (encoder,) = make(train_text=train_text).text_encoders()

    assert encoder.count_tokens("abc") == (5, 5)
    assert encoder.count_tokens("x" * 100) == (102, 77)


def refiner(folder: Path, checkpoint: Path) -> Path:
    """A tiny refiner: the second text encoder alone, and a score in place of the last size."""
    import json
    import shutil

    from diffusers import UNet2DConditionModel

    shutil.copytree(checkpoint, folder)
    for name in ("text_encoder", "tokenizer", "unet"):
        shutil.rmtree(folder / name)
    unet: Any = UNet2DConditionModel
    config = dict(unet.load_config(checkpoint, subfolder="unet"))
    changed = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 32 + 5 * 8}
    with torch.random.fork_rng(devices=[]):
        unet.from_config({**config, **changed}).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_refiner_is_asked_as_its_pipeline_asks_it(
    make: Make, batch_of: BatchOf, noised_at: NoisedAt, told: Told, checkpoint: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    folder = refiner(tmp_path / "refiner", checkpoint)
    family = make(checkpoint=str(folder), flavour="refiner-1.0", stage="second", aesthetic_score=6.5)
    batch = batch_of(family)
    noised = noised_at(family, batch, torch.tensor([0.1, 0.2]))
    denoiser = family.load_denoiser(CPU, torch.float32)

    actual = family.predict(denoiser, noised, batch)
    size = family.geometry.nearest(Media("image", height=64, width=64), 64 * 64)
    picture = family.render(denoiser, Shot(told(family, "a tree"), None, size, seed=5, steps=2, guidance=1.0))

    users: Any = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    embeds, _, pooled, _ = users.encode_prompt(["a red square on a table", "a tree"], device=CPU)
    ids = torch.tensor([[70, 96, 3, 0, 6.5], [64, 131, 0, 17, 6.5]])
    expected = users.unet(
        noised.x, torch.tensor([99, 199]), embeds, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
    ).sample  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    drawn = users(
        "a tree", image=torch.zeros(1, 4, 8, 8), strength=1.0, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(picture, drawn, rtol=0, atol=1e-5)
