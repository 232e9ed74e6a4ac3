import math

import pytest
import torch

from st.diffusion.path import DiscretePath, Path, scaled_linear_betas, straight, zero_terminal_snr
from st.diffusion.target import Particular, Target, clean, epsilon, v, velocity
from st.diffusion.weighting import Weighting
from st.diffusion.weightings import (
    Cosmap,
    CosmapOptions,
    InverseSquare,
    InverseSquareOptions,
    MinSnr,
    MinSnrOptions,
    SoftMinSnr,
    SoftMinSnrOptions,
    Uniform,
    UniformOptions,
    register,
)
from st.registrar import Registrar

SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
T = (torch.arange(1000) + 1) / 1000
KEPT = torch.tensor(SCHEDULE.alphas_cumprod)
SNR = KEPT / (1 - KEPT)
# Both sides divide numbers that nearly cancel in float32 where there is almost no noise.
CLOSE = {"rtol": 2e-4, "atol": 1e-7}
MIN_SNR = MinSnr(MinSnrOptions(limit=5.0))
SOFT = SoftMinSnr(SoftMinSnrOptions(sigma_data=0.5))
INVERSE_SQUARE = InverseSquare(InverseSquareOptions(floor=0.05))
COSMAP = Cosmap(CosmapOptions())


def weights(weighting: Weighting, path: Path, target: Target, t: torch.Tensor = T) -> torch.Tensor:
    mix = path(t)
    return weighting(mix, target(mix), t)


def test_min_snr_divides_by_snr_for_a_noise_target() -> None:
    torch.testing.assert_close(weights(MIN_SNR, SCHEDULE, epsilon), SNR.clamp(max=5) / SNR, **CLOSE)


def test_min_snr_divides_by_snr_plus_one_for_v() -> None:
    torch.testing.assert_close(weights(MIN_SNR, SCHEDULE, v), SNR.clamp(max=5) / (SNR + 1), **CLOSE)


def test_min_snr_is_itself_for_clean_latents() -> None:
    torch.testing.assert_close(weights(MIN_SNR, SCHEDULE, clean), SNR.clamp(max=5), **CLOSE)


@pytest.mark.parametrize("weighting", [MIN_SNR, SOFT], ids=["min_snr", "soft"])
@pytest.mark.parametrize("target", [epsilon, v])
def test_snr_weights_are_zero_without_noise(weighting: Weighting, target: Target) -> None:
    assert weights(weighting, SCHEDULE, target, torch.zeros(1)).tolist() == [0.0]


def test_snr_weights_are_finite_where_a_schedule_ends_in_pure_noise() -> None:
    terminal = DiscretePath(zero_terminal_snr(SCHEDULE.alphas_cumprod))

    assert weights(MIN_SNR, terminal, v)[-1] == 0
    assert weights(MIN_SNR, terminal, v).isfinite().all()


def test_soft_min_snr_is_the_smooth_form_of_min_snr() -> None:
    expected = 1 / (1 / SNR + 0.25)

    torch.testing.assert_close(weights(SOFT, SCHEDULE, clean), expected, **CLOSE)
    torch.testing.assert_close(weights(SOFT, SCHEDULE, epsilon), expected / SNR, **CLOSE)
    torch.testing.assert_close(weights(SOFT, SCHEDULE, v), expected / (SNR + 1), **CLOSE)


@pytest.mark.parametrize("target", [epsilon, v, clean, velocity], ids=lambda target: target.__name__)
def test_min_snr_scores_the_same_mistake_the_same_in_every_target(target: Target) -> None:
    x, wrong_by = torch.tensor([[2.0]]), 0.1
    t = torch.tensor([0.4])
    mix = SCHEDULE(t)
    picture = torch.tensor([[0.5]])
    noise = (x - mix.clean * picture) / mix.noise
    guess = picture + wrong_by
    guessed_noise = (x - mix.clean * guess) / mix.noise
    output = target(mix)

    error = (output.of(guess, guessed_noise) - output.of(picture, noise)) ** 2

    expected = wrong_by**2 * float(SNR[399].clamp(max=5))
    assert float(error * MIN_SNR(mix, output, t)) == pytest.approx(expected, rel=1e-4)


def test_inverse_square_turns_a_clean_loss_into_a_velocity_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    picture, noise, guess = torch.randn(3, 5, 4, generator=generator)
    t = torch.tensor([0.1, 0.3, 0.5, 0.8, 1.0])
    x = straight(t).of(picture, noise)
    velocity_of_guess = (x - guess) / t[:, None]

    by_clean = ((guess - picture) ** 2).mean(1) * weights(INVERSE_SQUARE, straight, clean, t)

    torch.testing.assert_close(by_clean, ((velocity_of_guess - (noise - picture)) ** 2).mean(1), rtol=1e-4, atol=0)


def test_inverse_square_stops_growing_at_its_floor() -> None:
    found = weights(INVERSE_SQUARE, straight, clean, torch.tensor([0.0, 0.01, 0.05, 0.5]))

    torch.testing.assert_close(found, torch.tensor([400.0, 400.0, 400.0, 4.0]))


@pytest.mark.parametrize("ours", ["inverse_square", "cosmap"])
def test_weights_are_those_of_diffusers(ours: str) -> None:
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    name, weighting = {"inverse_square": ("sigma_sqrt", INVERSE_SQUARE), "cosmap": ("cosmap", COSMAP)}[ours]
    t = torch.linspace(0.05, 1, 20)

    expected = compute_loss_weighting_for_sd3(name, t)

    torch.testing.assert_close(weights(weighting, straight, velocity, t), expected)


def test_cosmap_is_a_density() -> None:
    t = (torch.arange(10000) + 0.5) / 10000

    assert weights(COSMAP, straight, velocity, t).mean().item() == pytest.approx(1.0, abs=1e-5)
    assert weights(COSMAP, straight, velocity, torch.tensor([0.5])).item() == pytest.approx(4 / math.pi)


def test_uniform_multiplies() -> None:
    found = weights(Uniform(UniformOptions(factor=3.0)), straight, velocity, torch.tensor([0.1, 0.9]))

    assert found.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("weighting", "path", "refused"),
    [
        (MIN_SNR, straight, True),
        (SOFT, straight, True),
        (INVERSE_SQUARE, straight, False),
        (COSMAP, straight, False),
        (MIN_SNR, SCHEDULE, False),
        (SOFT, SCHEDULE, False),
        (INVERSE_SQUARE, SCHEDULE, True),
        (COSMAP, SCHEDULE, True),
    ],
)
def test_a_weighting_refuses_a_path_that_it_is_not_made_for(weighting: Particular, path: Path, refused: bool) -> None:
    problem = weighting.problem(path, velocity)

    assert (problem is not None) == refused
    assert problem is None or (problem.where == "weighting.kind" and problem.fix)


def test_every_weighting_is_registered() -> None:
    registrar = Registrar()

    register(registrar)

    assert registrar.names("weighting") == ["cosmap", "inverse_square", "min_snr", "soft_min_snr", "uniform"]
