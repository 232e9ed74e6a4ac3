"""The held-out loss is the same number for the same weights, and leaves no trace."""

from __future__ import annotations

import pytest
import torch

from st.data.sets.words import Words
from st.diffusion.objective import Batch, Noised
from st.report.rendering.asked import EvaluationOptions
from st.report.rendering.rendering import encode_texts
from st.train.parts.run import Run
from st.train.validation.evaluation import evaluate, evaluation_rows, evaluation_times

OPTIONS = EvaluationOptions(every=1, times=8)


def batches(run: Run, *groups: tuple[str, ...]) -> list[Batch]:
    """Held-out samples; what a sample holds depends on its key only."""
    texts = encode_texts(run.family, [Words(key) for keys in groups for key in keys], run.device)
    found = []
    for keys in groups:
        latents = [torch.randn(192, 3, 2, generator=torch.Generator().manual_seed(ord(key))) for key in keys]
        conditions = run.family.collate([texts[Words(key)] for key in keys])
        mask = torch.zeros(len(keys), 1, 3, 2)
        found.append(Batch(keys, tuple(range(len(keys))), "held", torch.stack(latents), conditions, mask))
    return found


def test_evaluation_is_repeatable_and_leaves_training_as_it_was(run: Run) -> None:
    sets = {"held": batches(run, ("a", "b"))}
    random_state, modes = torch.get_rng_state(), [module.training for module in run.denoiser.modules()]

    first = evaluate(run, sets, OPTIONS)
    state_after = torch.get_rng_state()
    torch.manual_seed(5)
    second = evaluate(run, sets, OPTIONS)

    assert first == second
    assert torch.equal(state_after, random_state)
    assert [module.training for module in run.denoiser.modules()] == modes
    assert all(parameter.grad is None for parameter in run.denoiser.parameters())


def test_the_loss_is_the_mean_of_its_quarters(run: Run) -> None:
    found = evaluate(run, {"held": batches(run, ("a", "b", "c"))}, OPTIONS)

    assert list(found) == ["eval/held", *(f"eval/held/q{quarter}" for quarter in range(1, 5))]
    quarters = [found[f"eval/held/q{quarter}"] for quarter in range(1, 5)]
    assert found["eval/held"] == pytest.approx(sum(quarters) / 4)


def test_what_a_sample_is_asked_does_not_depend_on_its_batch_mates(run: Run) -> None:
    together = evaluate(run, {"held": batches(run, ("a", "b"), ("c",))}, OPTIONS)
    apart = evaluate(run, {"held": batches(run, ("c",), ("a",), ("b",))}, OPTIONS)

    assert apart == pytest.approx(together, rel=1e-5)  # sums over batches of another size round differently


def test_a_denoiser_that_knows_the_answer_has_no_loss_whatever_the_mask(run: Run) -> None:
    def knows(noised: Noised, batch: Batch) -> torch.Tensor:
        assert batch.mask is None
        return noised.noise - noised.clean

    def knows_nothing(noised: Noised, batch: Batch) -> torch.Tensor:
        return torch.zeros_like(noised.x)

    sets = {"held": batches(run, ("a",))}
    assert evaluate(run, sets, OPTIONS, knows)["eval/held"] == 0
    assert evaluate(run, sets, OPTIONS, knows_nothing)["eval/held"] == pytest.approx(2, abs=0.3)


def test_other_weights_have_another_loss(run: Run) -> None:
    sets = {"held": batches(run, ("a", "b"))}
    before = evaluate(run, sets, OPTIONS)

    with torch.no_grad():
        for parameter in run.denoiser.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)

    assert evaluate(run, sets, OPTIONS) != before


def test_a_data_set_without_samples_has_no_loss(run: Run) -> None:
    assert evaluate(run, {"empty": []}, OPTIONS) == {}


def test_times_and_rows_are_spread_evenly() -> None:
    assert evaluation_times(4) == (0.125, 0.375, 0.625, 0.875)
    assert evaluation_rows(100, 4) == (0, 25, 50, 75)
    assert evaluation_rows(3, 16) == (0, 1, 2)
    assert evaluation_rows(0, 16) == ()
