import pytest
import torch

from st.diffusion.distances import L2, Huber, L2Options, RobustOptions, SmoothL1, register, threshold
from st.diffusion.path import DiscretePath, scaled_linear_betas, straight, zero_terminal_snr
from st.registrar import Registrar

SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
T = torch.tensor([0.1, 0.5, 0.9])
D = torch.linspace(-3, 3, 30).reshape(3, 10)
ZERO = torch.zeros(3, 10)


@pytest.mark.parametrize(("t", "expected"), [(0.1, 0.156292), (0.5, 0.325022), (0.9, 0.606264)])
def test_the_snr_schedule_on_a_straight_path(t: float, expected: float) -> None:
    found = threshold(RobustOptions(c=0.1, schedule="snr"), torch.tensor([t]), straight)

    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_snr_schedule_on_a_noise_schedule() -> None:
    kept = torch.tensor([SCHEDULE.alphas_cumprod[index] for index in (99, 499, 899)])
    ratio = ((1 - kept) / kept).sqrt()

    found = threshold(RobustOptions(c=0.1, schedule="snr"), T, SCHEDULE)

    torch.testing.assert_close(found, 0.9 / (1 + ratio) ** 2 + 0.1, rtol=1e-5, atol=0)


def test_the_snr_schedule_is_finite_where_a_schedule_ends_in_pure_noise() -> None:
    terminal = DiscretePath(zero_terminal_snr(SCHEDULE.alphas_cumprod))

    found = threshold(RobustOptions(c=0.1), torch.tensor([0.0, 1.0]), terminal)

    torch.testing.assert_close(found, torch.tensor([1.0, 0.1]))


def test_the_exponential_schedule_falls_from_one_to_c() -> None:
    found = threshold(RobustOptions(c=0.01, schedule="exponential"), torch.tensor([0.0, 0.5, 1.0]), straight)

    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01]))


def test_the_constant_schedule_is_c() -> None:
    assert threshold(RobustOptions(c=0.25, schedule="constant"), T, straight).tolist() == [0.25] * 3


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_and_smooth_l1_are_their_formulas(schedule: str) -> None:
    options = RobustOptions.model_validate({"schedule": schedule})
    c = threshold(options, T, straight)[:, None]
    expected = 2 * ((D**2 + c**2).sqrt() - c)

    torch.testing.assert_close(SmoothL1(options)(D, ZERO, T, straight), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Huber(options)(D, ZERO, T, straight), c * expected, rtol=1e-5, atol=1e-6)


def test_huber_is_l2_for_small_differences() -> None:
    small = 1e-3 * D

    huber = Huber(RobustOptions(c=1.0, schedule="constant"))(small, ZERO, T, straight)

    torch.testing.assert_close(huber, L2(L2Options())(small, ZERO, T, straight), rtol=1e-4, atol=0)


def test_smooth_l1_grows_by_two_for_large_differences() -> None:
    options = RobustOptions(c=0.1, schedule="constant")
    near, far = (torch.full((3, 1), value) for value in (100.0, 101.0))
    smooth = SmoothL1(options)

    growth = smooth(far, torch.zeros(3, 1), T, straight) - smooth(near, torch.zeros(3, 1), T, straight)

    torch.testing.assert_close(growth, torch.full((3, 1), 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("distance", [Huber(RobustOptions()), SmoothL1(RobustOptions()), L2(L2Options())])
def test_agreement_costs_nothing_and_pulls_nowhere(distance: Huber | SmoothL1 | L2) -> None:
    prediction = D.clone().requires_grad_()

    error = distance(prediction, D, T, straight)
    error.sum().backward()

    assert torch.equal(error.detach(), ZERO)
    assert prediction.grad is not None and torch.equal(prediction.grad, ZERO)


def test_every_distance_is_registered() -> None:
    registrar = Registrar()

    register(registrar)

    assert registrar.names("distance") == ["huber", "l2", "smooth_l1"]
