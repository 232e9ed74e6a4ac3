from dataclasses import replace

import pytest
import torch

from st.diffusion.densities import FixedList, ListOptions, Segmented, SegmentedOptions, Uniform, UniformOptions
from st.diffusion.distances import L2, Huber, L2Options, RobustOptions
from st.diffusion.noise import NoiseOptions
from st.diffusion.objective import Batch, Losses, MaskOptions, Noised, Objective
from st.diffusion.path import DiscretePath, scaled_linear_betas, straight, zero_terminal_snr
from st.diffusion.shift import shift
from st.diffusion.target import clean, epsilon, v, velocity
from st.diffusion.weightings import InverseSquare, InverseSquareOptions, MinSnr, MinSnrOptions
from st.diffusion.weightings import Uniform as Even
from st.diffusion.weightings import UniformOptions as EvenOptions
from st.randomness import Draws

CPU = torch.device("cpu")
SCHEDULE = DiscretePath.of_betas(scaled_linear_betas(0.00085, 0.012))
FLOW = Objective(straight, velocity, Uniform(UniformOptions()), Even(EvenOptions()), L2(L2Options()))
DDPM = replace(FLOW, path=SCHEDULE, target=v, density=Segmented(SegmentedOptions()), weighting=MinSnr(MinSnrOptions()))
EVERYTHING = replace(
    DDPM,
    distance=Huber(RobustOptions()),
    extra_noise=NoiseOptions(offset=0.1, offset_probability=0.5, perturbation=0.1, perturbation_steps=100),
    shift=lambda latents: 2.0,
)
OBJECTIVES = {"flow": FLOW, "ddpm": DDPM, "everything": EVERYTHING}


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(values: torch.Tensor, *, indices: tuple[int, ...] = (), mask: torch.Tensor | None = None) -> Batch:
    indices = indices or tuple(range(len(values)))
    return Batch(tuple(map(str, indices)), indices, "pictures", values, {}, mask)


def draws_of(batch: Batch) -> Draws:
    return Draws(1, batch.indices, CPU)


def noised(objective: Objective, batch: Batch) -> Noised:
    return objective.noise(batch, draws_of(batch))


@pytest.mark.parametrize("shape", [(4, 8, 6), (4, 3, 6, 5), (4, 3, 2, 6, 5)], ids=["sound", "picture", "clip"])
def test_x_lies_on_the_path_between_clean_and_noise(shape: tuple[int, ...]) -> None:
    batch = batch_of(latents(*shape))

    found = noised(FLOW, batch)

    t = found.t.reshape(-1, *[1] * (len(shape) - 1))
    assert torch.equal(found.clean, batch.latents)
    torch.testing.assert_close(found.x, (1 - t) * found.clean + t * found.noise)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_row_is_byte_equal_in_any_batch(objective: Objective) -> None:
    values, indices = latents(4, 3, 6, 5), (40, 2, 7, 13)
    together = batch_of(values, indices=indices)
    whole = noised(objective, together)
    losses = objective.loss(0.1 * whole.x, whole, together).samples

    for row, index in enumerate(indices):
        alone = batch_of(values[row : row + 1], indices=(index,))
        part = noised(objective, alone)

        for name in ("x", "t", "clean", "noise"):
            assert torch.equal(getattr(part, name)[0], getattr(whole, name)[row]), name
        assert torch.equal(objective.loss(0.1 * part.x, part, alone).samples[0], losses[row])


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_right_answer_costs_nothing(objective: Objective) -> None:
    batch = batch_of(latents(4, 3, 6, 5))
    found = noised(objective, batch)
    answer = objective.target(objective.path(found.t)).of(found.clean, found.noise)

    assert torch.equal(objective.loss(answer, found, batch).samples, torch.zeros(4))


def test_the_velocity_is_noise_minus_clean() -> None:
    batch = batch_of(latents(2, 3, 4, 4))
    found = noised(FLOW, batch)

    loss = FLOW.loss(torch.zeros_like(found.x), found, batch)

    torch.testing.assert_close(loss.samples, ((found.noise - found.clean) ** 2).flatten(1).mean(1))


def test_perturbation_changes_what_is_seen_and_not_what_is_wanted() -> None:
    batch = batch_of(latents(2, 3, 4, 4))
    plain = noised(FLOW, batch)

    perturbed = noised(replace(FLOW, extra_noise=NoiseOptions(perturbation=0.1)), batch)

    assert torch.equal(perturbed.noise, plain.noise)
    assert not torch.equal(perturbed.x, plain.x)


def test_times_are_shifted_by_what_the_family_says_of_the_latents() -> None:
    batch = batch_of(latents(8, 3, 6, 5))
    shifted = replace(FLOW, shift=lambda values: float(values.shape[-1]))

    assert torch.equal(noised(shifted, batch).t, shift(noised(FLOW, batch).t, 5.0))


def test_listed_times_are_not_shifted() -> None:
    listed = replace(FLOW, density=FixedList(ListOptions(times=(0.25,))), shift=lambda values: 3.0)

    assert noised(listed, batch_of(latents(2, 3, 4, 4))).t.tolist() == [0.25, 0.25]


def test_times_of_a_schedule_are_times_of_its_table() -> None:
    continuous = replace(DDPM, density=Uniform(UniformOptions()))
    found = noised(continuous, batch_of(latents(64, 1, 2, 2)))

    index = SCHEDULE.index(found.t)

    assert torch.equal((index + 1) / 1000, found.t)
    assert index.min() >= 0


def test_half_precision_latents_are_mixed_and_scored_in_float32() -> None:
    batch = batch_of(latents(2, 3, 4, 4).bfloat16())
    found = noised(FLOW, batch)

    loss = FLOW.loss(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16), found, batch)

    assert {found.x.dtype, found.t.dtype, found.clean.dtype, found.noise.dtype} == {torch.float32}
    assert loss.samples.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 5, 4, 4)], ids=["picture", "clip"])
def test_masked_elements_do_not_count(shape: tuple[int, ...]) -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    batch = batch_of(latents(*shape), mask=mask)
    found = noised(FLOW, batch)
    wrong = torch.zeros_like(found.x)
    wrong[..., 2:] = 1000

    prediction = found.noise - found.clean + wrong

    assert FLOW.loss(prediction, found, batch).samples.tolist() == [0, 0]


def test_a_mask_counts_over_all_elements_unless_it_is_normalised() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :1], mask[1, :, :2] = 1, 0.5
    batch = batch_of(latents(2, 3, 4, 4), mask=mask)
    found = noised(FLOW, batch)
    prediction = found.noise - found.clean + 1

    plain = FLOW.loss(prediction, found, batch)
    normalised = replace(FLOW, mask=MaskOptions(normalise=True)).loss(prediction, found, batch)

    torch.testing.assert_close(plain.samples, torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(normalised.samples, torch.tensor([1.0, 1.0]))


def test_a_mask_that_covers_nothing_gives_no_loss_and_no_gradient() -> None:
    batch = batch_of(latents(2, 3, 4, 4), mask=torch.zeros(2, 1, 4, 4))
    prediction = latents(2, 3, 4, 4, seed=1).requires_grad_()
    objective = replace(FLOW, mask=MaskOptions(normalise=True))

    loss = objective.loss(prediction, noised(objective, batch), batch)
    loss.total.backward()

    assert loss.samples.tolist() == [0, 0]
    assert prediction.grad is not None and not prediction.grad.any()


def test_a_mask_of_ones_changes_nothing() -> None:
    values, ones = latents(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    plain, masked = batch_of(values), batch_of(values, mask=ones)
    found = noised(FLOW, plain)

    assert torch.equal(FLOW.loss(found.x, found, masked).samples, FLOW.loss(found.x, found, plain).samples)


def test_clean_predictions_are_scored_as_velocities() -> None:
    batch = batch_of(latents(4, 3, 4, 4))
    by_clean = replace(FLOW, target=clean, weighting=InverseSquare(InverseSquareOptions(floor=1e-6)))
    found = noised(by_clean, batch)
    guess = latents(4, 3, 4, 4, seed=1)
    t = found.t.reshape(-1, 1, 1, 1)

    torch.testing.assert_close(
        by_clean.loss(guess, found, batch).samples, FLOW.loss((found.x - guess) / t, found, batch).samples
    )


def test_a_prediction_of_another_shape_is_refused() -> None:
    batch = batch_of(latents(2, 3, 4, 4))
    found = noised(FLOW, batch)

    with pytest.raises(AssertionError, match=r"predicted \(2, 1, 4, 4\) for \(2, 3, 4, 4\)"):
        FLOW.loss(torch.zeros(2, 1, 4, 4), found, batch)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_scoring_reads_nothing_back_from_the_device(objective: Objective) -> None:
    # Tensors on the meta device have no values: reading one raises.
    on_meta = batch_of(torch.empty(2, 3, 4, 4, device="meta"), mask=torch.empty(2, 1, 4, 4, device="meta"))
    draws = Draws(1, on_meta.indices, torch.device("meta"))
    x = torch.empty(2, 3, 4, 4, device="meta")

    t = objective.times(on_meta.latents, draws)
    losses = objective.loss(x, Noised(x, t, x, x), on_meta)

    assert losses.samples.shape == (2,)


def test_a_term_is_added_to_the_mean_of_the_samples() -> None:
    losses = Losses(torch.tensor([1.0, 3.0])).plus("alignment", torch.tensor(0.5))

    assert losses.total.item() == 2.5


def test_two_terms_of_one_name_are_refused() -> None:
    losses = Losses(torch.ones(1)).plus("alignment", torch.tensor(0.5))

    with pytest.raises(AssertionError, match="alignment"):
        losses.plus("alignment", torch.tensor(0.5))


def test_good_choices_have_no_problems() -> None:
    assert [objective.problems() for objective in OBJECTIVES.values()] == [[], [], []]


def test_all_contradicting_choices_are_named() -> None:
    objective = replace(FLOW, weighting=MinSnr(MinSnrOptions()), extra_noise=NoiseOptions(offset=0.1))

    assert [problem.where for problem in objective.problems()] == ["noise.offset", "weighting.kind"]


def test_a_schedule_that_ends_in_pure_noise_needs_another_target_than_noise() -> None:
    terminal = replace(DDPM, path=DiscretePath(zero_terminal_snr(SCHEDULE.alphas_cumprod)))

    assert terminal.problems() == []
    (problem,) = replace(terminal, target=epsilon).problems()
    assert "'epsilon'" in problem.what
