"""ACE-Step encodes, asks its denoiser, learns and renders as diffusers does. Tolerances are for float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor, nn

from st import Batch, Geometry, Noised, Shot, StError
from st.data.encoder import Input
from st.diffusion.densities import FixedList, ListOptions, LogitNormal, LogitNormalOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.weightings import Uniform, UniformOptions
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.randomness import Draws
from st.testing.subjects.routes import KeepTokens, Tap
from st_ace_step import AceStep

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOLD: Mapping[str, str] = {
    "lyrics": "[verse]\nsoft notes\n[chorus]\nla la la",
    "bpm": "97.0",
    "key": "C major",
    "timesignature": "4",
    "language": "ja",
    "seconds": "2.0",
}
ARGUMENTS: Mapping[str, Any] = {
    "prompt": "a choir, loud drums",
    "lyrics": TOLD["lyrics"],
    "bpm": 97,
    "keyscale": "C major",
    "timesignature": "4",
    "vocal_language": "ja",
    "audio_duration": 2.0,
}


class Asked(list[Mapping[str, Any]]):
    """What a pipeline asks its denoiser, step by step, with the answers."""

    def __init__(self, pipeline: Any, **call: Any) -> None:
        def keep(layer: nn.Module, args: object, kwargs: Mapping[str, Any], answer: tuple[Tensor]) -> None:
            self.append({**kwargs, "answer": answer[0]})

        handle = pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
        try:
            self.result: Tensor = pipeline(return_dict=False, **{"guidance_scale": 1.0, **call})[0]
        finally:
            handle.remove()


def noise_for(length: int) -> Tensor:
    """(1, 8, length)."""
    return torch.randn(1, 8, length, generator=torch.Generator().manual_seed(3))


def test_a_song_is_encoded_as_the_pipeline_does(family: AceStep, upstream: Any, conditions: Any) -> None:
    asked = Asked(upstream, **ARGUMENTS, num_inference_steps=1, output_type="latent")

    ours = conditions(family, (str(ARGUMENTS["prompt"]), TOLD))

    assert torch.equal(ours["encoder_hidden_states"], asked[0]["encoder_hidden_states"])


def test_a_song_is_encoded_alike_whatever_is_encoded_beside_it(family: AceStep, conditions: Any, songs: Any) -> None:
    together = conditions(family, *songs, ("", {}))

    for place, song in enumerate(songs):
        alone = conditions(family, song)["encoder_hidden_states"][0]
        rows = together["encoder_hidden_states"][place][together["encoder_hidden_states_mask"][place]]
        assert torch.equal(rows, alone)


def test_each_fact_changes_what_the_model_is_told(family: AceStep, conditions: Any) -> None:
    plain = conditions(family, ("a choir", TOLD))["encoder_hidden_states"]

    for name in TOLD:
        less = {other: text for other, text in TOLD.items() if other != name}
        told = conditions(family, ("a choir", less))["encoder_hidden_states"]
        assert told.shape != plain.shape or not torch.equal(told, plain), name


def test_nothing_told_is_the_row_that_the_model_learnt_for_it(
    family: AceStep, make_family: Any, upstream: Any, conditions: Any
) -> None:
    nothing = conditions(family, ("", {"seconds": "2"}))["encoder_hidden_states"]

    assert torch.equal(nothing, upstream.condition_encoder.null_condition_emb)
    assert conditions(family, ("", {"lyrics": "la"}))["encoder_hidden_states"].shape[1] > 1
    assert conditions(make_family(flavour="turbo"), ("", {}))["encoder_hidden_states"].shape[1] > 1


def test_a_tempo_that_is_no_number_is_named(family: AceStep, conditions: Any) -> None:
    with pytest.raises(StError, match="the bpm of a song is 'fast'"):
        conditions(family, ("a choir", {"bpm": "fast"}))


def test_a_long_caption_is_counted_with_what_the_pipeline_adds(family: AceStep, upstream: Any) -> None:
    (encoder,) = family.text_encoders()
    text, _ = upstream._format_prompt("word " * 60)

    assert encoder.count_tokens("word " * 60) == (len(upstream.tokenizer(text).input_ids), 256)


def test_the_prediction_is_the_pipelines(family: AceStep, upstream: Any, conditions: Any) -> None:
    asked = Asked(upstream, **ARGUMENTS, num_inference_steps=3, output_type="latent")
    denoiser = family.load_denoiser(CPU, torch.float32)
    told = conditions(family, (str(ARGUMENTS["prompt"]), TOLD))

    for step in asked:
        x = step["hidden_states"].transpose(1, 2)
        batch = Batch(("a",), (0,), "", x, told)
        with torch.no_grad():
            prediction = family.predict(denoiser, Noised(x=x, t=step["timestep"], clean=x, noise=x), batch)
        torch.testing.assert_close(prediction, step["answer"].transpose(1, 2), rtol=0, atol=1e-6)
    assert [round(float(step["timestep"]), 6) for step in asked] == [1.0, 0.857143, 0.6]


def test_a_sound_longer_than_the_silence_that_is_known_is_shown_it_again(family: AceStep, upstream: Any) -> None:
    length = 15003

    ours = family._context(torch.zeros(1, length, 8))

    theirs, _ = upstream.prepare_src_latents(CPU, torch.float32, latent_length=length)
    assert torch.equal(ours, torch.cat([theirs, torch.ones_like(theirs)], dim=-1))


def test_kept_moments_attend_by_their_place_in_time(family: AceStep, sample: Any) -> None:
    batch, noised = sample(family, length=48)
    denoiser: Any = family.load_denoiser(CPU, torch.float32)
    keep, tap, told = torch.tensor([0, 1, 5, 6, 11, 20, 22]), Tap(), {}
    denoiser.layers[0].register_forward_pre_hook(lambda block, args, kwargs: told.update(kwargs), with_kwargs=True)

    with torch.no_grad(), BlockStack(denoiser, family.blocks(), [tap, KeepTokens(0, 3, keep)]):
        family.predict(denoiser, noised, batch)

    near = (keep[:, None] - keep[None, :]).abs() <= denoiser.config.sliding_window
    band = torch.zeros(len(keep), len(keep)).masked_fill(~near, torch.finfo(torch.float32).min)
    cosines, sines = told["position_embeddings"]
    with torch.no_grad():
        expected = denoiser.layers[0](
            tap.inputs[0][:, keep],
            (cosines[keep], sines[keep]),
            told["temb"],
            band[None, None],
            told["encoder_hidden_states"],
            batch.conditions["encoder_hidden_states_mask"][:, None, None, :],
        )
    assert torch.equal(tap.outputs[0], expected)
    assert not near.all()


def lora(denoiser: nn.Module, family: AceStep) -> list[Tensor]:
    parameters: list[Tensor] = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())[0]["params"]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return parameters


def whole(denoiser: nn.Module, family: AceStep) -> list[Tensor]:
    parameters: list[Tensor] = FullAdapter(FullOptions()).attach(denoiser, ())[0]["params"]
    return parameters


@pytest.mark.parametrize("attach", [lora, whole])
def test_loss_and_gradients_of_a_step_are_those_of_the_formula(
    family: AceStep, upstream: Any, sample: Any, attach: Callable[[nn.Module, AceStep], list[Tensor]]
) -> None:
    batch, _ = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    parameters = attach(denoiser, family)
    density = LogitNormal(
        LogitNormalOptions.model_validate({k: v for k, v in family.defaults["density"].items() if k != "kind"})
    )
    objective = Objective(family.path, family.target, density, Uniform(UniformOptions()), L2(L2Options()))
    noised = objective.noise(batch, Draws(0, batch.indices, CPU))

    loss = objective.loss(family.predict(denoiser, noised, batch), noised, batch).total
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)

    losses = []
    for row, (clean, noise, t) in enumerate(zip(noised.clean, noised.noise, noised.t, strict=True)):
        mask = batch.conditions["encoder_hidden_states_mask"][row]
        silence = upstream.condition_encoder.silence_latent[:, : clean.shape[-1]]
        flow = (noise - clean).T[None]
        asked: Any = denoiser
        answer = asked(
            hidden_states=((1 - t) * clean + t * noise).T[None],
            timestep=t[None],
            timestep_r=t[None],
            encoder_hidden_states=batch.conditions["encoder_hidden_states"][row : row + 1, mask],
            context_latents=torch.cat([silence, torch.ones_like(silence)], dim=-1),
        ).sample
        losses.append(nn.functional.mse_loss(answer, flow))
    expected = torch.stack(losses).mean()
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)

    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    largest = max(float(one.abs().max()) for one in theirs if one is not None)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * max(largest, 1))


def test_times_are_drawn_as_the_makers_draw_them(family: AceStep, make_family: Any) -> None:
    wanted = family.defaults["density"]
    distilled = make_family(flavour="turbo").defaults["density"]
    times = FixedList(ListOptions.model_validate({"times": distilled["times"]}))(Draws(0, tuple(range(99)), CPU))

    assert wanted == {"kind": "logit_normal", "mean": -0.4}
    assert family.time_shift(100) == 1
    assert {round(float(t), 4) for t in times} == {1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_what_is_rendered_is_what_the_pipeline_makes_of_the_same_words(
    family: AceStep, upstream: Any, conditions: Any, guidance: float
) -> None:
    generator = torch.Generator().manual_seed(7)
    expected = upstream(**ARGUMENTS, num_inference_steps=3, guidance_scale=guidance, generator=generator).audios

    sound = family.render(
        family.load_denoiser(CPU, torch.float32),
        Shot(
            conditions(family, (str(ARGUMENTS["prompt"]), TOLD)),
            conditions(family, ("", {})) if guidance > 1 else None,
            Geometry(frames=0, seconds=2.0),
            seed=7,
            steps=3,
            guidance=guidance,
        ),
    )

    assert sound.shape == (1, 2, 3200)
    torch.testing.assert_close(sound, expected, rtol=0, atol=1e-5)


def test_guided_sampling_with_our_predictions_ends_at_the_pipelines_latents(
    family: AceStep, upstream: Any, conditions: Any
) -> None:
    noise = noise_for(50)
    asked = Asked(
        upstream,
        **ARGUMENTS,
        num_inference_steps=4,
        guidance_scale=5.0,
        latents=noise.transpose(1, 2),
        output_type="latent",
    )
    denoiser = family.load_denoiser(CPU, torch.float32)
    told, nothing = conditions(family, (str(ARGUMENTS["prompt"]), TOLD)), conditions(family, ("", {}))
    momentum, x = MomentumBuffer(momentum=-0.75), noise

    def ask(words: Mapping[str, Tensor], t: float) -> Tensor:
        noised = Noised(x=x, t=torch.full((1,), t), clean=x, noise=x)
        with torch.no_grad():
            return family.predict(denoiser, noised, Batch(("a",), (0,), "", x, words)).transpose(1, 2)

    times = upstream.scheduler.sigmas.tolist()
    for t, following in pairwise(times):
        guided: Tensor = normalized_guidance(
            ask(told, t),
            ask(nothing, t),
            4.0,
            momentum,
            eta=0.0,
            norm_threshold=2.5,
            use_original_formulation=True,
            norm_dim=(1,),
        )
        x = x + (following - t) * guided.transpose(1, 2)

    assert float((x.transpose(1, 2) - asked.result).abs().max()) < 1e-4


def test_a_distilled_model_is_rendered_without_guidance(
    make_family: Any, distilled_folder: Path, load: Any, conditions: Any
) -> None:
    family = make_family(checkpoint=str(distilled_folder), flavour="turbo")
    pipeline = load(distilled_folder)
    generator = torch.Generator().manual_seed(7)
    expected = pipeline(**ARGUMENTS, num_inference_steps=2, guidance_scale=1.0, generator=generator).audios

    sound = family.render(
        family.load_denoiser(CPU, torch.float32),
        Shot(
            conditions(family, (str(ARGUMENTS["prompt"]), TOLD)),
            conditions(family, ("", {})),
            Geometry(frames=0, seconds=2.0),
            seed=7,
            steps=2,
            guidance=5.0,
        ),
    )

    torch.testing.assert_close(sound, expected, rtol=0, atol=1e-5)


def test_a_text_to_keep_away_from_is_refused(family: AceStep, conditions: Any) -> None:
    with pytest.raises(StError, match="guided away from being told nothing at all"):
        family.render(
            family.load_denoiser(CPU, torch.float32),
            Shot(
                conditions(family, ("a choir", {})),
                conditions(family, ("noise", {})),
                Geometry(frames=0, seconds=1.0),
                seed=0,
                steps=1,
                guidance=3.0,
            ),
        )


def test_latents_are_what_the_autoencoder_gives_and_are_decoded_back(make_family: Any, upstream: Any) -> None:
    family = make_family(latents="mode")
    geometry = Geometry(frames=0, seconds=1.02)
    sound = torch.rand(2, round(1.02 * 1600), generator=torch.Generator().manual_seed(0)) - 0.5

    with family.codec().open(CPU) as encode:
        (entry,) = encode([Input(key="a", geometry=geometry, audio=sound)])
    with family.codec().decoder(CPU) as decode:
        decoded = decode(entry["latents"][None])

    with torch.no_grad():
        latents = upstream.vae.encode(sound[None]).latent_dist.mode()
        expected = upstream.vae.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(entry["latents"], latents[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-6)
    assert decoded.shape == (1, 2, 1600)
    assert tuple(entry["latents"].shape) == family.codec().latent_shape(geometry) == (8, 25)


def test_a_sample_of_the_latents_depends_on_the_sound_alone(family: AceStep, make_family: Any) -> None:
    first, second = torch.rand(2, 2, 1600) - 0.5

    def encode(family: AceStep, *sounds: Tensor) -> list[Tensor]:
        with family.codec().open(CPU) as ask:
            return [one["latents"] for one in ask([Input(key=str(torch.rand(())), audio=sound) for sound in sounds])]

    alone, together, mode = encode(family, first), encode(family, second, first), make_family(latents="mode")

    # A convolution over two sounds adds in another order than over one.
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], encode(mode, first)[0], atol=1e-3)
    assert family.codec().fingerprint != mode.codec().fingerprint


def test_a_long_sound_in_parts_gives_all_but_the_same_latents(make_family: Any) -> None:
    sound = torch.rand(2, 64000, generator=torch.Generator().manual_seed(0)) - 0.5

    def encode(family: AceStep) -> Tensor:
        with family.codec().open(CPU) as ask:
            return ask([Input(key="a", audio=sound)])[0]["latents"]

    whole, parts = make_family(), make_family(tiling=True)

    torch.testing.assert_close(encode(parts), encode(whole), rtol=0, atol=1e-4)
    assert parts.codec().fingerprint != whole.codec().fingerprint


def test_a_checkpoint_of_the_other_kind_is_named(make_family: Any, distilled_folder: Path) -> None:
    with pytest.raises(StError, match="the denoiser is distilled"):
        make_family(checkpoint=str(distilled_folder)).load_denoiser(CPU, torch.float32)
    with pytest.raises(StError, match="the denoiser is not distilled"):
        make_family(flavour="turbo").load_denoiser(CPU, torch.float32)


def test_a_flavour_that_must_be_converted_says_so() -> None:
    from pydantic import ValidationError

    from st_ace_step import AceStepOptions

    with pytest.raises(ValidationError, match="convert it with convert_ace_step_to_diffusers"):
        AceStepOptions(flavour="base")
    assert AceStep(AceStepOptions()).options.checkpoint == "ACE-Step/acestep-v15-xl-turbo-diffusers"
