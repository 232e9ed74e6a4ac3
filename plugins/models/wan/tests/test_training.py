"""A step of training is the one that is made of diffusers' own functions, and experts learn at their own times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from st import Batch, Noised, Shot, StError
from st.diffusion.densities import LogitNormal, LogitNormalOptions, Uniform, UniformOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.objective import Objective
from st.diffusion.shift import ShiftOptions, shift_rule
from st.diffusion.weightings import Uniform as Evenly
from st.diffusion.weightings import UniformOptions as EvenlyOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.randomness import Draws
from st.testing.examples import awake_denoiser
from st_wan import Wan
from st_wan.experts import Experts, Within

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def objective_of(family: Wan, density: Any = None) -> Objective:
    return Objective(
        family.path,
        family.target,
        density or LogitNormal(LogitNormalOptions()),
        Evenly(EvenlyOptions()),
        L2(L2Options()),
        shift=shift_rule(ShiftOptions(), family.tokens, family.time_shift),
        positions=family.times,
    )


def lora(denoiser: nn.Module, family: Wan) -> list[Tensor]:
    groups = LoraAdapter(LoraOptions(rank=2)).attach(denoiser, family.adapter_targets())
    parameters: list[Tensor] = groups[0]["params"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return parameters


def by_hand(flavour: str, denoiser: nn.Module, batch: Batch, sigmas: Tensor, noise: Tensor) -> Tensor:
    """The loss of one step, from diffusers' scheduler and denoisers alone."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, text = batch.latents, batch.conditions["prompt_embeds"]
    losses = []
    for index, sigma in enumerate(sigmas):
        scheduler.set_timesteps(sigmas=[float(sigma)])
        one, eps = clean[index : index + 1], noise[index : index + 1]
        noisy = scheduler.scale_noise(one, scheduler.timesteps[:1], eps)
        timestep, counted, given = scheduler.timesteps[:1], torch.ones_like(one), {}
        if flavour.startswith("i2v"):
            mask = torch.zeros(1, 4, *one.shape[2:])
            mask[:, :, 0] = 1
            noisy = torch.cat([noisy, mask, batch.extras["first_frame"][index : index + 1]], dim=1)
            if "image_embeds" in batch.conditions:
                given["encoder_hidden_states_image"] = batch.conditions["image_embeds"][index : index + 1]
        if flavour == "ti2v-5b":
            mask = torch.ones(1, 1, *one.shape[2:])
            mask[:, :, 0] = 0
            noisy = (1 - mask) * batch.extras["first_frame"][index : index + 1] + mask * noisy
            timestep = (mask[0][0][:, ::2, ::2] * timestep).flatten()[None]
            counted = mask.expand_as(one)
        asked = denoiser
        if isinstance(denoiser, Experts):
            asked = denoiser.high_noise if float(sigma) >= 0.875 else denoiser.low_noise
        answer = asked(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=text[index : index + 1],
            return_dict=False,
            **given,
        )[0]
        losses.append((((answer - (eps - one)) * counted) ** 2).sum() / counted.sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("flavour", ["t2v-1.3b", "i2v-480p", "ti2v-5b", "t2v-a14b"])
def test_a_step_is_that_of_diffusers_own_functions(make_family: Any, sample: Any, flavour: str) -> None:
    family = make_family(flavour, **({"first_frame": 1.0} if flavour == "ti2v-5b" else {}))
    batch, _ = sample(family)
    objective = objective_of(family, Uniform(UniformOptions()))
    # Of the draws that these two indices give, one asks each expert.
    noised = objective.noise(batch, Draws(1, (0, 1), CPU))
    ours, theirs = awake_denoiser(family), awake_denoiser(family)
    mine, other = lora(ours, family), lora(theirs, family)

    loss = objective.loss(family.predict(ours, noised, batch), noised, batch).total
    # The last frame has the sample's time, whatever that of the first is.
    times = noised.t if noised.t.ndim == 1 else noised.t[:, 0, -1, 0, 0]
    expected = by_hand(flavour, theirs, batch, times, noised.noise)
    torch.autograd.backward([loss, expected])

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert len(mine) == len(other) > 0
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)
    asked = {bool(high) for high in times >= 0.875}
    assert flavour != "t2v-a14b" or asked == {True, False}


@pytest.mark.parametrize(("flavour", "k"), [("t2v-1.3b", 3.0), ("i2v-480p", 3.0), ("ti2v-5b", 5.0)])
def test_times_move_as_the_checkpoint_says(make_family: Any, flavour: str, k: float) -> None:
    family = make_family(flavour)
    assert family.time_shift(10) == family.time_shift(10_000) == k
    assert make_family(flavour, flow_shift=7.0).time_shift(10) == 7.0
    assert family.schedule_settings() == {}
    assert make_family(flavour, flow_shift=7.0)._rendering().scheduler.config.flow_shift == 7.0


@pytest.mark.parametrize("flavour", ["t2v-a14b", "i2v-a14b"])
def test_the_boundary_itself_is_the_high_noise_experts(
    make_family: Any, make_upstream: Any, sample: Any, flavour: str
) -> None:
    family = make_family(flavour)
    boundary = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}[flavour]
    exactly = torch.tensor(boundary)
    below = torch.nextafter(exactly, torch.tensor(0.0))
    # A time is 1000 t, which rounds two neighbours to one number: the first that is another is below.
    while below * 1000 >= boundary * 1000:
        below = torch.nextafter(below, torch.tensor(0.0))
    upstream = make_upstream(flavour)
    asked: list[tuple[str, float]] = []
    for name in ("transformer", "transformer_2"):
        upstream.pipeline.components[name].register_forward_hook(
            lambda _module, _args, given, _answer, name=name: asked.append((name, float(given["timestep"][0]))),
            with_kwargs=True,
        )
    times = [float(exactly), float(below), 0.3]
    upstream.pipeline.scheduler = Fixed(times, shift=1.0)
    batch, noised = sample(family)
    if flavour == "i2v-a14b":
        call = {"image": torch.rand(1, 3, 32, 64), "prompt_embeds": batch.conditions["prompt_embeds"][:1]}
    else:
        call = {"prompt_embeds": batch.conditions["prompt_embeds"][:1]}

    with torch.no_grad():
        upstream.latents(noised.noise[:1], num_inference_steps=3, **call)

    assert [name for name, _ in asked] == ["transformer", "transformer_2", "transformer_2"]
    assert family.is_noisy(torch.tensor(times)).tolist() == [True, False, False]


class Fixed(FlowMatchEulerDiscreteScheduler):
    """Asks at these times, whatever number of steps is wanted."""

    def __init__(self, times: list[float], shift: float = 1.0) -> None:
        super().__init__(shift=shift)
        self.wanted = times

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        super().set_timesteps(sigmas=self.wanted)


def test_samples_of_one_batch_ask_their_own_expert(make_family: Any, sample: Any) -> None:
    family = make_family("t2v-a14b")
    batch, noised = sample(family, (0.95, 0.2))
    denoiser = awake_denoiser(family)
    high, low = (make_family("t2v-a14b", experts=name) for name in ("high", "low"))

    answer = family.predict(denoiser, noised, batch)
    turned = family.predict(
        denoiser,
        Noised(noised.x.flip(0), noised.t.flip(0), noised.clean, noised.noise),
        replace(batch, conditions={name: value.flip(0) for name, value in batch.conditions.items()}),
    )

    torch.testing.assert_close(turned.flip(0), answer, rtol=0, atol=1e-5)
    for one, name, place in ((high, "high_noise", 0), (low, "low_noise", 1)):
        alone = one.predict(denoiser.get_submodule(name), noised, batch)
        torch.testing.assert_close(alone[place], answer[place], rtol=0, atol=1e-5)
    assert float((answer[0] - low._question(noised, batch).put_to(denoiser.low_noise)[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["high", "low"])
def test_one_expert_alone_sees_its_own_times(make_family: Any, sample: Any, name: str) -> None:
    family = make_family("i2v-a14b", experts=name)
    batch, _ = sample(family)
    objective = objective_of(family)
    many = replace(batch, latents=batch.latents[:1, :1, :1, :1, :1].expand(2000, -1, -1, -1, -1))
    draws = Draws(7, tuple(range(2000)), CPU)

    wrapped = family.st_objective(objective=objective)
    times, plain = wrapped.noise(many, draws).t, objective.noise(many, draws).t

    inside = plain >= 0.9 if name == "high" else plain < 0.9
    assert bool((times >= 0.9).all() if name == "high" else (times < 0.9).all())
    # What was inside already stays, and the rest is spread alike.
    assert torch.equal(times[inside], plain[inside])
    assert 0.1 < float(inside.float().mean()) < 0.9
    for share in (0.25, 0.5, 0.75):
        assert abs(float(times.quantile(share) - plain[inside].quantile(share))) < 0.02
    first = wrapped.noise(replace(many, latents=many.latents[:1]), Draws(7, (0,), CPU)).t
    assert torch.equal(first, times[:1])


def test_a_density_that_never_meets_an_expert_is_refused() -> None:
    density = Within(Uniform(UniformOptions()), lambda t: t > 2)

    with pytest.raises(StError, match="none of 256 times"):
        density(Draws(0, (0, 1), CPU))


def test_a_preview_of_one_expert_has_the_other_beside_it(make_family: Any, sample: Any) -> None:
    from st import Geometry

    both, alone = make_family("t2v-a14b"), make_family("t2v-a14b", experts="high")
    batch, _ = sample(both)
    text = {"prompt_embeds": batch.conditions["prompt_embeds"][:1]}
    call = {"seed": 0, "steps": 6, "guidance": 1.0}

    with torch.no_grad():
        expected = both.render(both.load_denoiser(CPU, torch.float32), Shot(text, None, Geometry(32, 32, 5), **call))
        denoiser = alone.load_denoiser(CPU, torch.float32)
        ours = alone.render(denoiser, Shot(text, None, Geometry(32, 32, 5), **call))

    assert torch.equal(ours, expected)
    assert alone.denoiser == "transformer" and alone._other is not None and not alone._is_near


def test_both_experts_are_saved_and_the_original_stays(make_family: Any, folder: Any, tmp_path: Path) -> None:
    family = make_family("t2v-a14b")
    denoiser = family.load_denoiser(CPU, torch.float32)
    kept = {name: load_file(next((folder("t2v-a14b") / name).glob("*.safetensors"))) for name in family.options.trained}
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.5)

    family.save_checkpoint(denoiser, tmp_path / "saved")

    fresh = Wan(family.options.model_copy(update={"checkpoint": str(tmp_path / "saved")}))
    state = fresh.load_denoiser(CPU, torch.float32).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in denoiser.state_dict().items())
    for name, before in kept.items():
        after = load_file(next((folder("t2v-a14b") / name).glob("*.safetensors")))
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_flavour_of_another_checkpoint_is_refused(make_family: Any, folder: Any) -> None:
    pairs = [("t2v-1.3b", "i2v-a14b"), ("i2v-a14b", "i2v-480p"), ("t2v-1.3b", "t2v-a14b"), ("t2v-1.3b", "ti2v-5b")]
    for flavour, other in pairs:
        family = make_family(flavour, checkpoint=str(folder(other)))
        with pytest.raises(StError, match=f"is not a {flavour}"):
            family.load_denoiser(CPU, torch.float32)
    with pytest.raises(StError, match="no transformer_2"):
        make_family("t2v-a14b", checkpoint=str(folder("t2v-1.3b")), experts="low").load_denoiser(CPU, torch.float32)
    with pytest.raises(StError, match="WanVACEPipeline"):
        make_family("vace-1.3b", checkpoint=str(folder("t2v-1.3b"))).codec()
