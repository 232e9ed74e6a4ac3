from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor

from st.diffusion.path import DiscretePath, Path, scaled_linear_betas, straight, zero_terminal_snr
from st.diffusion.sampler import Sampler, euler, guided, guided_together, sample, times
from st.diffusion.samplers import heun, register
from st.diffusion.target import Target, clean, dataward_velocity, epsilon, v, velocity
from st.registrar import Registrar

NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
TERMINAL = DiscretePath(zero_terminal_snr(SCHEDULE.alphas_cumprod))


def denoiser(x: Tensor, t: Tensor) -> Tensor:
    """A smooth stand-in for a network: some function of x and t with answers of about 1."""
    return torch.tanh(x.roll(1, -1) + 0.5 * x) * (1.3 - t.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(("steps", "k"), [(8, 3.0), (20, 1.0)])
def test_euler_on_a_straight_path_is_diffusers_flow_matching(steps: int, k: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=k)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    x = NOISE
    for timestep in scheduler.timesteps:
        x = scheduler.step(denoiser(x, timestep.expand(2) / 1000), timestep, x).prev_sample

    ours = sample(denoiser, straight, velocity, NOISE, times(steps, k))

    # Theirs adds small steps to x, ours mixes anew: float32 roundings of numbers up to about 4.
    torch.testing.assert_close(ours, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("target", "kind", "terminal"),
    [(epsilon, "epsilon", False), (v, "v_prediction", False), (v, "v_prediction", True), (clean, "sample", False)],
)
def test_euler_on_a_schedule_is_diffusers_ddim(target: Target, kind: str, terminal: bool) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
        rescale_betas_zero_snr=terminal,
    )
    path = DiscretePath(tuple(scheduler.alphas_cumprod.tolist()))
    scheduler.set_timesteps(20)
    x = NOISE
    for timestep in scheduler.timesteps:
        x = scheduler.step(denoiser(x, (timestep.expand(2) + 1) / 1000), int(timestep), x).prev_sample

    ours = sample(denoiser, path, target, NOISE, times(20))

    # Dividing a noise prediction by sqrt(a) = 0.07 at the noisy end makes numbers of about 20.
    torch.testing.assert_close(ours, x, rtol=5e-6, atol=5e-6)


def test_heun_on_a_straight_path_is_diffusers_flow_matching_heun() -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    places = scheduler.sigmas.unique_consecutive().tolist()
    x = NOISE
    for timestep in scheduler.timesteps:
        x = scheduler.step(denoiser(x, timestep.expand(2) / 1000), timestep, x).prev_sample

    ours = sample(denoiser, straight, velocity, NOISE, places, sampler=heun)

    torch.testing.assert_close(ours, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])
def test_the_error_falls_with_the_samplers_order(sampler: Sampler, order: int) -> None:
    # Latents of variance 4: the best velocity is a multiple of x, and x keeps its place among all x at that time.
    def best(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)
        return x * (t - 4 * (1 - t)) / (4 * (1 - t) ** 2 + t**2)

    noise = NOISE.double()
    errors = []
    for steps in (20, 40, 80):
        # Stops at t = 0.1: the last step to 0 is Euler's in both.
        places = [1 - 0.9 * step / steps for step in range(steps + 1)]
        exact = noise * (4 * 0.9**2 + 0.1**2) ** 0.5
        found = sample(lambda x, t: best(x, t), straight, velocity, noise, places, sampler=sampler)
        errors.append(float((found - exact).abs().max()))

    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("sampler", [euler, heun], ids=["euler", "heun"])
@pytest.mark.parametrize(
    ("path", "target"),
    [
        (straight, velocity),
        (straight, dataward_velocity),
        (straight, clean),
        (SCHEDULE, epsilon),
        (SCHEDULE, v),
        (SCHEDULE, clean),
        (TERMINAL, v),
        (TERMINAL, clean),
    ],
)
def test_a_denoiser_that_knows_the_picture_arrives_at_it(path: Path, target: Target, sampler: Sampler) -> None:
    picture = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def knows(x: Tensor, t: Tensor) -> Tensor:
        here = path(t)
        assert isinstance(here.clean, Tensor) and isinstance(here.noise, Tensor)
        noise = (x - here.clean.reshape(-1, 1, 1, 1) * picture) / here.noise.reshape(-1, 1, 1, 1)
        return target(here).of(picture, noise)

    arrived = sample(knows, path, target, NOISE, times(8), sampler=sampler)

    torch.testing.assert_close(arrived, picture, rtol=0, atol=5e-5)


@pytest.mark.parametrize("path", [straight, SCHEDULE])
def test_a_row_is_sampled_alike_in_any_batch(path: Path) -> None:
    together = sample(denoiser, path, velocity, NOISE, times(4))

    alone = [sample(denoiser, path, velocity, NOISE[row : row + 1], times(4)) for row in range(2)]

    assert torch.equal(together, torch.cat(alone))


def test_times_fall_from_one_to_zero_and_are_shifted() -> None:
    assert times(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert times(4, 3.0) == pytest.approx((1.0, 0.9, 0.75, 0.5, 0.0))


def test_times_on_a_table_are_trailing() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(7)
    told: list[int] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        told.append(int(SCHEDULE.index(t)[0]))
        return x

    sample(predict, SCHEDULE, v, NOISE, times(7))

    assert told == scheduler.timesteps.tolist()


def conditional(x: Tensor, t: Tensor) -> Tensor:
    return denoiser(x, t)


def unconditional(x: Tensor, t: Tensor) -> Tensor:
    return 0.3 * x


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_one_large_prediction_guides_as_two_small_ones_do(rescale: float) -> None:
    def together(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([conditional(x[:2], t[:2]), unconditional(x[2:], t[2:])])

    t = torch.tensor([0.4, 0.9])

    two = guided(conditional, unconditional, 4.0, rescale)(NOISE, t)
    one = guided_together(together, 4.0, rescale)(NOISE, t)

    assert torch.equal(one, two)


@pytest.mark.parametrize(("scale", "alone"), [(1.0, conditional), (0.0, unconditional)])
def test_a_scale_of_one_is_the_prompt_and_of_zero_the_negative(
    scale: float, alone: Callable[[Tensor, Tensor], Tensor]
) -> None:
    t = torch.tensor([0.4, 0.9])

    torch.testing.assert_close(guided(conditional, unconditional, scale)(NOISE, t), alone(NOISE, t))


def test_rescaled_guidance_keeps_the_contrast_of_the_prompt() -> None:
    t = torch.tensor([0.4, 0.9])

    found = guided(conditional, unconditional, 7.0, 1.0)(NOISE, t)

    torch.testing.assert_close(found.flatten(1).std(1), conditional(NOISE, t).flatten(1).std(1))


def test_every_sampler_is_registered() -> None:
    registrar = Registrar()

    register(registrar)

    assert registrar.names("sampler") == ["euler", "heun"]
