"""Evaluation: the loss on samples that are not trained on, measured the same way each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from st.train.validation.untouched import untouched

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.objective import Batch, Noised
    from st.report.rendering.asked import EvaluationOptions
    from st.train.parts.run import Run

    Predict = Callable[[Noised, Batch], Tensor]

QUARTERS = 4


def evaluation_rows(length: int, samples: int) -> tuple[int, ...]:
    """Which rows of a data set of this length are used: at most ``samples``, spread evenly, always the same."""
    used = min(length, samples)
    return tuple(row * length // used for row in range(used)) if used else ()


def evaluation_times(count: int) -> tuple[float, ...]:
    """The middles of ``count`` equal parts of (0, 1): each quarter holds as many."""
    return tuple((place + 0.5) / count for place in range(count))


def evaluate(
    run: Run, sets: Mapping[str, Iterable[Batch]], options: EvaluationOptions, predict: Predict | None = None
) -> dict[str, float]:
    """Mean squared error to the training target: ``eval/NAME`` and ``eval/NAME/q1`` (least noise) to ``/q4``.

    Comparable between steps, and between runs whatever their density, weighting, distance and batch size: times are
    fixed, and noise depends on the seed, the sample's key and the time only. No mask, no loss terms, every stream
    counted alike. sets: by data set, batches on the device without caption dropout. predict: how the loop asks the
    denoiser (its precision); the family's own otherwise. Weights, their training mode and every stream of draws are as
    before. Every rank computes the same.
    """

    def ask(noised: Noised, batch: Batch) -> Tensor:
        if predict is not None:
            return predict(noised, batch)
        return run.adapter.predict(run.family, run.denoiser, noised, batch)

    metrics: dict[str, float] = {}
    with untouched(run.denoiser, run.device):
        for name, batches in sets.items():
            metrics |= _losses_of_set(run, name, batches, options, ask)
    return metrics


def _losses_of_set(
    run: Run, name: str, batches: Iterable[Batch], options: EvaluationOptions, predict: Predict
) -> dict[str, float]:
    """Reads the device once per data set. Empty where it has no samples."""
    import torch

    times = evaluation_times(options.times)
    rows = []
    for batch in batches:
        plain = replace(batch, mask=None)
        rows.append(torch.stack([_losses_at(run, plain, t, options.seed, predict) for t in times], dim=1))
    if not rows:
        return {}
    by_time = torch.cat(rows).mean(dim=0).tolist()
    each = len(times) // QUARTERS
    quarters = [_mean(by_time[quarter * each : (quarter + 1) * each]) for quarter in range(QUARTERS)]
    by_quarter = {f"eval/{name}/q{number}": loss for number, loss in enumerate(quarters, start=1)}
    return {f"eval/{name}": _mean(by_time)} | by_quarter


def _losses_at(run: Run, batch: Batch, time: float, seed: int, predict: Predict) -> Tensor:
    """(B,) float32 mean squared error of each sample at one time."""
    import torch

    from st.diffusion.objective import Noised, has_stream
    from st.diffusion.path import DiscretePath
    from st.randomness import Draws, keyed

    # Keyed by the sample's name: adding or removing samples does not change what the others are asked.
    indices = tuple(keyed(seed, 0, f"{batch.dataset}/{key}") for key in batch.keys)
    clean, layout = batch.clean, batch.layout
    noise = Draws(seed, indices, run.device).normal(f"evaluation/{time}", like=clean)
    path = run.family.path
    t = torch.full((len(batch.keys),), time, device=clean.device)
    t = run.objective.positions(path.snap(t) if isinstance(path, DiscretePath) else t, batch, None)
    mix = path(t)
    target = run.family.target(mix).of(clean, noise)
    prediction = predict(Noised(x=mix.of(clean, noise), t=t, clean=clean, noise=noise), batch)
    assert prediction.shape == target.shape, f"predicted {tuple(prediction.shape)} for {tuple(target.shape)}"
    error = (prediction.float() - target).square()
    if layout is None:
        return _mean_asked(error, t)
    times = layout.split_times(t)
    means = {name: _mean_asked(one, times[name]) for name, one in layout.split(error).items()}
    has = {name: has_stream(batch, name, error) for name in means}
    return torch.stack([means[name] * has[name] for name in means]).sum(0) / torch.stack([*has.values()]).sum(0)


def _mean_asked(error: Tensor, t: Tensor) -> Tensor:
    """(B,) the mean over a sample's elements, those that are given left out."""
    from st.diffusion.layout import broadcast
    from st.diffusion.objective import mean_where

    return error.flatten(1).mean(dim=1) if t.ndim == 1 else mean_where(error, broadcast(t, error.shape) > 0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
