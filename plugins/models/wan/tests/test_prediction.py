"""Wan asks its denoisers, samples and draws as diffusers' pipelines do. Tolerances are for float32 on one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot, StError
from st.data.encoder import Input
from st.diffusion.sampler import guided
from st.diffusion.sampler import sample as integrate
from st.testing.examples import awake_denoiser, example_pixels, row
from st_wan import Wan
from st_wan.flavours import MODULES

CPU = torch.device("cpu")
CLIP = Geometry(32, 64, 5)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
EVERY = (
    ("t2v-1.3b", {}),
    ("i2v-480p", {}),
    ("t2v-a14b", {}),
    ("i2v-a14b", {}),
    ("ti2v-5b", {}),
    ("ti2v-5b", {"first_frame": 1.0}),
    ("vace-1.3b", {}),
    ("vace-1.3b", {"first_frame": 1.0}),
)
named = pytest.mark.parametrize(
    ("flavour", "options"), EVERY, ids=[f"{flavour}{'-begun' * len(options)}" for flavour, options in EVERY]
)


def bytes_picture() -> Tensor:
    """(3, H, W) in [0, 1] with values of whole bytes, which is all that users have."""
    return (example_pixels(CLIP, 0)[:, 0] * 255).round() / 255


def beginning_with(family: Wan, batch: Batch, picture: Tensor) -> Batch:
    """The batch of a prompt that shows this picture, as rendering makes it."""
    references = family.references()
    assert references is not None and references.encoder is not None
    with references.encoder.open(CPU) as encode:
        (entry,) = encode([Input("", CLIP, pixels=picture)])
    shown = {f"reference_{name}": tensor[None] for name, tensor in entry.items()}
    conditions = {"prompt_embeds": batch.conditions["prompt_embeds"]}
    return replace(batch, conditions=conditions, extras=shown, latents=torch.zeros_like(batch.latents))


def prepared(
    make_family: Any, make_upstream: Any, sample: Any, flavour: str, options: dict[str, Any]
) -> tuple[Wan, nn.Module, Batch, Noised, Any, dict[str, Any]]:
    """Family, denoiser, one sample, and the pipeline on the same denoiser with what it is given of the sample."""
    family = make_family(flavour, **options)
    batch, noised = row(*sample(family), 0)
    denoiser = awake_denoiser(family)
    both = len(family.options.trained) == 2
    parts = {name: denoiser.get_submodule(MODULES[name]) if both else denoiser for name in family.options.trained}
    upstream = make_upstream(flavour, **parts)
    given: dict[str, Any] = {"prompt_embeds": batch.conditions["prompt_embeds"]}
    if family.options.starts:
        picture = bytes_picture()
        batch = beginning_with(family, batch, picture)
        given |= shown_upstream(upstream, picture)
    return family, denoiser, batch, noised, upstream, given


def shown_upstream(upstream: Any, picture: Tensor) -> dict[str, Any]:
    """How a user gives a pipeline this picture to begin with."""
    from PIL import Image

    image = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
    if isinstance(upstream.pipeline, diffusers.WanVACEPipeline):
        video = torch.zeros(1, 3, *((CLIP.frames, CLIP.height, CLIP.width)))
        video[:, :, 0] = picture * 2 - 1
        mask = torch.ones_like(video)
        mask[:, :, 0] = 0
        # Its own reading of pictures has no byte for the grey between 127 and 128 that stands for nothing.
        upstream.pipeline.preprocess_conditions = lambda *_: (video, mask, [[]])
        return {}
    if isinstance(upstream.pipeline, diffusers.WanPipeline):
        parts = {name: part for name, part in upstream.pipeline.components.items() if part is not None}
        object.__setattr__(upstream, "pipeline", diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=True))
        upstream.pipeline.set_progress_bar_config(disable=True)
    return {"image": image}


@named
def test_the_denoiser_is_asked_what_the_pipeline_asks_it(
    make_family: Any, make_upstream: Any, sample: Any, flavour: str, options: dict[str, Any]
) -> None:
    family, denoiser, batch, noised, upstream, given = prepared(make_family, make_upstream, sample, flavour, options)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    for name in family.options.trained:
        upstream.pipeline.components[name].register_forward_hook(
            lambda _module, _args, asked, answer: calls.append((asked, answer[0])), with_kwargs=True
        )

    with torch.no_grad():
        _, times = upstream.latents(noised.noise, num_inference_steps=3, **given)
        asked_upstream = tuple(calls)
        assert len(asked_upstream) == 3
        for (asked, answer), t in zip(asked_upstream, times, strict=False):
            x = asked["hidden_states"][:, : noised.noise.shape[1]]
            at = Noised(x=x, t=torch.tensor([t]), clean=x, noise=x)
            question = family._question(at, batch)

            assert torch.equal(question.x, asked["hidden_states"])
            torch.testing.assert_close(question.time.float(), asked["timestep"].float(), rtol=1e-6, atol=0)
            assert torch.equal(question.text, asked["encoder_hidden_states"])
            assert same(question.image, asked.get("encoder_hidden_states_image"))
            # Bit for bit in test_conditions.py; here the codec was given two clips at once.
            torch.testing.assert_close(question.control, asked.get("control_hidden_states"), rtol=0, atol=1e-5)
            ours = family.predict(denoiser, at, batch)
            begun = 1 if flavour == "ti2v-5b" and options else 0
            torch.testing.assert_close(ours[:, :, begun:], answer[:, :, begun:], rtol=0, atol=1e-5)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other is None or (one is not None and other is not None and torch.equal(one, other))


@named
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sampling_gives_the_pipelines_latents(
    make_family: Any, make_upstream: Any, sample: Any, flavour: str, options: dict[str, Any], guidance: float
) -> None:
    family, denoiser, batch, noised, upstream, given = prepared(make_family, make_upstream, sample, flavour, options)
    text = batch.conditions["prompt_embeds"]
    against = replace(batch, conditions={**batch.conditions, "prompt_embeds": text * 0.5})
    steps = 8 if family.options.published.experts else 4

    with torch.no_grad():
        expected, times = upstream.latents(
            noised.noise, num_inference_steps=steps, guidance_scale=guidance, negative_prompt_embeds=text * 0.5, **given
        )
        asked = predictor(family, denoiser, batch)
        if guidance > 1:
            asked = guided(asked, predictor(family, denoiser, against), guidance)
        ours = integrate(asked, family.path, family.target, noised.noise, times)

    assert float((ours - expected).abs().max()) <= 1e-4
    assert float((ours - noised.noise).abs().max()) > 0.1


def predictor(family: Wan, denoiser: nn.Module, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    def ask(x: Tensor, t: Tensor) -> Tensor:
        return family.predict(denoiser, Noised(x=x, t=t, clean=x, noise=x), batch)

    return ask


@pytest.mark.parametrize("flavour", ["t2v-1.3b", "t2v-a14b", "ti2v-5b", "vace-1.3b"])
def test_previews_are_what_the_pipeline_draws(make_family: Any, folder: Any, sample: Any, flavour: str) -> None:
    family = make_family(flavour)
    batch, _ = row(*sample(family), 0)
    text = {"prompt_embeds": batch.conditions["prompt_embeds"]}
    negative = {"prompt_embeds": text["prompt_embeds"] * 0.5}
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder(flavour))
    pipeline.set_progress_bar_config(disable=True)

    with torch.no_grad():
        ours = family.render(
            family.load_denoiser(CPU, torch.float32), Shot(text, negative, CLIP, seed=3, steps=3, guidance=3.0)
        )
        expected = pipeline(
            **text,
            negative_prompt_embeds=negative["prompt_embeds"],
            height=32,
            width=64,
            num_frames=5,
            num_inference_steps=3,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
        ).frames

    assert ours.shape == (1, 3, 5, 32, 64)
    assert torch.equal(ours, expected.transpose(1, 2))


def test_one_time_for_each_sample_gives_the_same(make_family: Any, sample: Any) -> None:
    per_token = make_family("ti2v-5b")
    per_sample = make_family("ti2v-5b", times="sample")
    batch, noised = sample(per_token)
    denoiser = awake_denoiser(per_token)

    assert per_token._question(noised, batch).time.shape == (2, per_token.tokens(noised.x))
    assert per_sample._question(noised, batch).time.shape == (2,)
    torch.testing.assert_close(
        per_sample.predict(denoiser, noised, batch), per_token.predict(denoiser, noised, batch), rtol=0, atol=1e-5
    )


def test_a_share_of_the_samples_begins_with_its_first_frame(make_family: Any, sample: Any) -> None:
    family = make_family("ti2v-5b", first_frame=0.5)
    batch, noised = sample(family)
    denoiser = awake_denoiser(family)
    never, always = make_family("ti2v-5b"), make_family("ti2v-5b", first_frame=1.0)
    without = replace(batch, extras={})

    begun = [bool(family._first_frame(noised.x, replace(batch, indices=(i, i)))[1][0]) for i in range(400)]
    known = begun.index(True), begun.index(False)
    mixed = family.predict(denoiser, noised, replace(batch, indices=known))

    assert 160 < sum(begun) < 240
    torch.testing.assert_close(mixed[:1], always.predict(denoiser, noised, batch)[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1:], never.predict(denoiser, noised, without)[1:], rtol=0, atol=1e-5)


def test_a_model_that_begins_with_a_picture_says_that_it_lacks_one(make_family: Any, sample: Any) -> None:
    family = make_family("i2v-a14b")
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)

    with pytest.raises(StError, match="without its first frame"):
        family.predict(denoiser, noised, replace(batch, extras={}))
    with pytest.raises(StError, match="begins with a picture"):
        family.render(denoiser, Shot(batch.conditions, None, CLIP, seed=0, steps=1, guidance=1.0))
