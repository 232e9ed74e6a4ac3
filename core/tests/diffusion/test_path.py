from itertools import pairwise

import pytest
import torch

from st.diffusion.path import (
    DiscretePath,
    Mix,
    Path,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    straight,
    unmix,
    zero_terminal_snr,
)
from st.diffusion.target import Target, clean, dataward_velocity, epsilon, v, velocity

SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
TERMINAL = DiscretePath(zero_terminal_snr(SCHEDULE.alphas_cumprod))
PATHS = {"straight": straight, "schedule": SCHEDULE, "terminal": TERMINAL}
TARGETS = [velocity, dataward_velocity, epsilon, v, clean]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_target_gives_back_clean_and_noise(path: Path, target: Target) -> None:
    t = torch.tensor([0.05, 0.3, 0.6, 0.9])
    picture, noise = normal(4, 3, 8, 8), normal(4, 3, 8, 8, seed=1)
    input = path(t)
    output = target(input)

    found = unmix(input.of(picture, noise), input, output.of(picture, noise), output)

    # The worst case divides float32 rounding by the share of noise at t = 0.05 (or of the picture at 0.9), about 0.05.
    torch.testing.assert_close(found, (picture, noise), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 5, 6), (2, 4, 3, 5, 6)])
def test_a_mix_spreads_over_all_but_the_batch(shape: tuple[int, ...]) -> None:
    picture, noise = normal(*shape), normal(*shape, seed=1)

    mixed = Mix(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).of(picture, noise)

    assert torch.equal(mixed, torch.stack([picture[0], 2 * noise[1]]))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_time_zero_is_exactly_clean(path: Path) -> None:
    mix = path(torch.zeros(2))

    assert torch.equal(torch.as_tensor(mix.clean), torch.ones(2))
    assert torch.equal(torch.as_tensor(mix.noise), torch.zeros(2))


def test_time_one_is_the_last_index() -> None:
    assert SCHEDULE.index(torch.tensor([0.0, 0.001, 0.5, 1.0])).tolist() == [-1, 0, 499, 999]


def test_every_index_comes_back_from_its_time() -> None:
    indices = torch.arange(1000)
    times = (indices + 1) / 1000

    assert torch.equal(SCHEDULE.index(times), indices)
    assert torch.equal(SCHEDULE.snap(times), times)


def test_even_times_give_every_index_equally_often() -> None:
    path = DiscretePath(tuple(1 - index / 20 for index in range(1, 11)))
    times = (torch.arange(1000) + 0.5) / 1000

    counts = path.index(path.snap(times)).bincount()

    assert counts.tolist() == [100] * 10


def test_snapping_keeps_clean_clean_and_never_passes_the_end() -> None:
    snapped = SCHEDULE.snap(torch.tensor([0.0, 1e-9, 1.0]))

    torch.testing.assert_close(snapped, torch.tensor([0.0, 0.001, 1.0]), rtol=0, atol=0)


def test_a_schedule_keeps_the_variance() -> None:
    mix = SCHEDULE((torch.arange(1000) + 1) / 1000)

    torch.testing.assert_close(mix.clean**2 + mix.noise**2, torch.ones(1000), rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("kind", "betas"),
    [
        ("linear", linear_betas(0.0001, 0.02)),
        ("scaled_linear", scaled_linear_betas(0.00085, 0.012)),
        ("squaredcos_cap_v2", cosine_betas()),
    ],
)
def test_betas_are_those_of_diffusers(kind: str, betas: tuple[float, ...]) -> None:
    from diffusers import DDPMScheduler

    start, end = (0.00085, 0.012) if kind == "scaled_linear" else (0.0001, 0.02)
    theirs = DDPMScheduler(beta_start=start, beta_end=end, beta_schedule=kind)
    ours = DiscretePath.of_betas(betas)

    # Ours are float64, theirs a running product of a thousand float32 numbers.
    torch.testing.assert_close(torch.tensor(betas), theirs.betas, rtol=2e-5, atol=0)
    torch.testing.assert_close(torch.tensor(ours.alphas_cumprod), theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step() -> None:
    rescaled = zero_terminal_snr(SCHEDULE.alphas_cumprod)

    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(SCHEDULE.alphas_cumprod[0], rel=1e-12)
    assert all(before > after for before, after in pairwise(rescaled))


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )

    torch.testing.assert_close(torch.tensor(TERMINAL.alphas_cumprod), theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)


def test_a_path_is_compared_by_its_table_after_it_was_used() -> None:
    fresh = DiscretePath(SCHEDULE.alphas_cumprod)
    SCHEDULE(torch.ones(1))

    assert fresh == SCHEDULE
    assert hash(fresh) == hash(SCHEDULE)
