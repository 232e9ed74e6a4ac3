"""Times of positions: mixed, weighted, scored and sampled where they belong, and what is given counts for nothing."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from st.diffusion.densities import Segmented, SegmentedOptions, Uniform, UniformOptions
from st.diffusion.distances import L2, Huber, L2Options, RobustOptions
from st.diffusion.layout import broadcast, from_tokens, to_tokens
from st.diffusion.objective import Batch, MaskOptions, Noised, Objective
from st.diffusion.path import DiscretePath, Path, scaled_linear_betas, straight
from st.diffusion.sampler import Sampler, euler, following, sample, times
from st.diffusion.samplers import heun
from st.diffusion.target import Target, clean, epsilon, v, velocity
from st.diffusion.weightings import InverseSquare, InverseSquareOptions, MinSnr, MinSnrOptions
from st.diffusion.weightings import Uniform as Even
from st.diffusion.weightings import UniformOptions as EvenOptions
from st.randomness import Draws

SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
FLOW = Objective(straight, velocity, Uniform(UniformOptions()), Even(EvenOptions()), L2(L2Options()))
DDPM = replace(FLOW, path=SCHEDULE, target=v, density=Segmented(SegmentedOptions()), weighting=MinSnr(MinSnrOptions()))
HUBER = replace(DDPM, distance=Huber(RobustOptions()))
SQUARE = replace(FLOW, target=clean, weighting=InverseSquare(InverseSquareOptions()))
OBJECTIVES = {"flow": FLOW, "min-snr": DDPM, "huber": HUBER, "inverse-square": SQUARE}
CLIPS = torch.randn(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0))


def batch_of(latents: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch(("a", "b")[: len(latents)], tuple(range(len(latents))), "clips", latents, {}, mask)


def draws_of(batch: Batch) -> Draws:
    return Draws(1, batch.indices, torch.device("cpu"))


def by_frame(t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
    """The first frame given, the others at the sample's time."""
    frames = t.reshape(-1, 1, 1, 1, 1).repeat(1, 1, batch.latents.shape[2], 1, 1)
    frames[:, :, 0] = 0
    return frames


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 4, 6, 5), (2, 4, 3, 6, 5)], ids=["sound", "picture", "clip"])
def test_times_of_positions_are_each_positions_own(shape: tuple[int, ...]) -> None:
    count = math.prod(shape[2:])
    t = torch.rand(2, count, generator=torch.Generator().manual_seed(1))
    x, noise = torch.randn(shape), torch.randn(shape)

    mixed = straight(t).of(x, noise)

    flat = t.reshape(2, 1, count)
    expected = (1 - flat) * x.flatten(2) + flat * noise.flatten(2)
    torch.testing.assert_close(mixed.flatten(2), expected)


def test_times_that_fit_neither_samples_nor_positions_are_refused() -> None:
    latents = torch.zeros(2, 4, 4, 4)

    for shape in ((2, 4), (3,), (2, 3, 4, 4), (2, 1, 4)):
        with pytest.raises(ValueError, match="fit neither"):
            straight(torch.rand(shape)).of(latents, latents)


def test_times_of_tokens_reach_the_positions_of_their_patch_and_come_back() -> None:
    t = torch.rand(2, 2 * 3 * 2)

    spread = from_tokens(t, (2, 3, 4, 6, 4), (2, 3, 2))

    assert spread.shape == (2, 1, 4, 6, 4)
    assert torch.equal(spread[:, 0, 2:, :2, 2:].flatten(1), t.reshape(2, 2, 3, 2)[:, 1, 0, 1, None].expand(2, 8))
    assert torch.equal(to_tokens(spread, (2, 3, 4, 6, 4), (2, 3, 2)), t)


def test_the_time_of_a_sample_is_that_of_all_its_tokens() -> None:
    t = torch.tensor([0.25, 0.5])

    assert torch.equal(to_tokens(t, (2, 16, 7), (1, 1, 7)), t[:, None].expand(2, 7))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_one_time_written_for_every_position_is_the_time_of_the_sample(objective: Objective) -> None:
    batch = batch_of(CLIPS, mask=torch.rand(2, 1, 6, 5))
    one = objective.noise(batch, draws_of(batch))
    each = replace(objective, positions=lambda t, b, d: t.reshape(-1, 1, 1, 1, 1).expand(-1, 1, 4, 6, 5))
    every = each.noise(batch, draws_of(batch))
    answer = 0.1 * one.x

    assert torch.equal(every.x, one.x)
    torch.testing.assert_close(each.loss(answer, every, batch).samples, objective.loss(answer, one, batch).samples)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("normalise", [False, True])
def test_what_is_given_is_shown_clean_and_counts_for_nothing(objective: Objective, normalise: bool) -> None:
    masks = MaskOptions(normalise=normalise)
    batch, rest = batch_of(CLIPS, torch.rand(2, 1, 6, 5)), batch_of(CLIPS[:, :, 1:], torch.rand(2, 1, 6, 5))
    rest = replace(rest, mask=batch.mask)
    placed = replace(objective, positions=by_frame, mask=masks)
    noised = placed.noise(batch, draws_of(batch))
    answer = 0.1 * noised.noise
    wrong = torch.cat([answer[:, :, :1] + 100, answer[:, :, 1:]], dim=2)

    given = placed.loss(answer, noised, batch).samples

    alone = Noised(noised.x[:, :, 1:], noised.t[:, 0, 1, 0, 0], noised.clean[:, :, 1:], noised.noise[:, :, 1:])
    expected = replace(objective, mask=masks).loss(answer[:, :, 1:], alone, rest).samples
    assert torch.equal(noised.x[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(placed.loss(wrong, noised, batch).samples, given)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_each_position_is_weighted_by_its_own_time(objective: Objective) -> None:
    batch = batch_of(CLIPS)
    t = torch.tensor([[0.2, 0.4, 0.6, 0.8], [0.9, 0.7, 0.5, 0.3]])
    placed = replace(objective, positions=lambda *_: t.reshape(2, 1, 4, 1, 1))
    noised = placed.noise(batch, draws_of(batch))
    answer = 0.1 * noised.noise

    found = placed.loss(answer, noised, batch).samples

    def frame(number: int) -> Tensor:
        at = (slice(None), slice(None), slice(number, number + 1))
        single = Noised(noised.x[at], t[:, number], noised.clean[at], noised.noise[at])
        return objective.loss(answer[at], single, batch_of(CLIPS[at])).samples

    torch.testing.assert_close(found, torch.stack([frame(number) for number in range(4)]).mean(0))


@pytest.mark.parametrize(
    ("path", "target"),
    [(straight, velocity), (straight, clean), (SCHEDULE, epsilon), (SCHEDULE, v)],
    ids=["velocity", "clean", "epsilon", "v"],
)
@pytest.mark.parametrize("sampler", [euler, heun])
def test_sampling_arrives_at_what_is_known_and_leaves_what_is_given(
    path: Path, target: Target, sampler: Sampler
) -> None:
    batch, noise = batch_of(CLIPS), torch.randn(CLIPS.shape, generator=torch.Generator().manual_seed(2))
    start = noise.clone()
    start[:, :, 0] = CLIPS[:, :, 0]
    asked: list[Tensor] = []

    def knows(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        here = path(t)
        # The noise that x is made of, given that the clean latents are known.
        scale = broadcast(here.noise if isinstance(here.noise, Tensor) else t, x.shape).clamp(min=1e-6)
        behind = (x - broadcast(here.clean if isinstance(here.clean, Tensor) else 1 - t, x.shape) * CLIPS) / scale
        return target(here).of(CLIPS, behind)

    made = sample(knows, path, target, start, times(6), sampler=sampler, positions=lambda t: by_frame(t, batch, None))

    assert all(t.shape == (2, 1, 4, 1, 1) and not t[:, :, 0].any() for t in asked)
    assert torch.equal(made[:, :, 0], CLIPS[:, :, 0])
    torch.testing.assert_close(made, CLIPS, rtol=1e-3, atol=1e-3)


def test_a_flow_map_is_told_where_each_step_leads() -> None:
    moments = times(4, 3.0)
    steps: list[tuple[float, float]] = []

    def ask(x: Tensor, t: Tensor) -> Tensor:
        steps.append((float(t[0]), float(following(t, moments, straight)[0])))
        return torch.zeros_like(x)

    sample(ask, straight, velocity, CLIPS, moments)

    assert steps == [pytest.approx(pair) for pair in pairwise(moments)]


def test_the_following_time_is_one_of_the_table() -> None:
    t = SCHEDULE.nearest(torch.tensor([1.0, 2 / 3]))

    assert torch.equal(following(t, times(3), SCHEDULE), SCHEDULE.nearest(torch.tensor([2 / 3, 1 / 3])))
