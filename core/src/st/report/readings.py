"""Readings: what steps left on the device, read back many steps at a time in one transfer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from st.progress import Progress
    from st.report.stats import StepStats

    Mean = Callable[[Tensor], Tensor]


SKIPS_ALLOWED = 24
"""Steps in a row that fp16 may leave out: each halves a scale that begins at 2**16, so these end far below 1."""


@dataclass(frozen=True, slots=True)
class Spoiled:
    """The first step with a number that is not finite. what: that number, as in "the loss of step 3 is nan".

    keys: the samples that it was computed on. weights: those whose gradients are not finite, where the losses are.
    """

    step: int
    what: str
    keys: tuple[str, ...]
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """Some steps in a row. step: the last of them. losses: one mean per step. metrics: means over the steps, by name.

    ``loss``, ``term/NAME``, ``dataset/NAME`` (its microbatches' loss), ``grad_norm``, ``lr`` (``lr/0``, ``lr/1`` where
    groups differ), ``learner/NAME/loss``, ``/grad_norm`` and ``/lr`` of further learners, ``optimizer/NAME`` (after the
    last step), ``skipped_steps`` (for fp16: how many of them were left out), ``seconds/step`` and ``seconds/STAGE``,
    ``data_wait`` (share of the step's time), ``samples_per_second`` (of all ranks), ``epoch``.
    """

    step: int
    losses: tuple[float, ...]
    metrics: Mapping[str, float]
    spoiled: Spoiled | None

    @property
    def first(self) -> int:
        """The first of the steps."""
        return self.step - len(self.losses) + 1


class Readings:
    """Holds the stats of the steps since the last reading; their tensors are read by ``read`` only."""

    def __init__(self, ranks: int = 1, mean: Mean | None = None) -> None:
        """ranks: how many work on a step. mean: over them, of a small tensor; all then read at the same steps."""
        self._ranks, self._mean = ranks, mean
        self._held: list[tuple[int, int, StepStats]] = []
        self._skipped_in_row = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, progress: Progress, stats: StepStats) -> None:
        """Hold one step's stats. ``progress`` is already advanced by it."""
        self._held.append((progress.step, progress.epoch, stats))

    def read(self, seconds: float, *, alone: bool = False) -> Reading:
        """Read and forget what is held, at least one step. seconds: what those steps took in all.

        alone: not together with the other ranks, which may be gone.
        """
        held, self._held = self._held, []
        mean = None if alone else self._mean
        values = iter(_numbers([tensor for _, _, stats in held for tensor in _tensors(stats)], mean))
        rows = [_row(step, stats, values) for step, _, stats in held]
        losses = tuple(_mean(row.losses) for row in rows)
        metrics = {"loss": _mean(losses)} | _parts(rows) | _updates(rows) | _times(rows, seconds, self._ranks)
        metrics["epoch"] = float(held[-1][1])
        spoiled = next((found for row in rows if (found := self._spoiled(row))), None)
        return Reading(held[-1][0], losses, metrics, spoiled)

    def _spoiled(self, row: _Row) -> Spoiled | None:
        self._skipped_in_row = self._skipped_in_row + 1 if row.skipped else 0
        return row.spoiled(skips_allowed=self._skipped_in_row <= SKIPS_ALLOWED)


@dataclass(frozen=True, slots=True)
class _Row:
    """One step's stats with its tensors as numbers."""

    step: int
    stats: StepStats
    losses: list[float]
    terms: dict[str, list[float]]
    grad_norm: float | None
    learners: dict[str, list[float]]
    norms: dict[str, float]
    """Of further learners, by name."""

    @property
    def has_broken_gradients(self) -> bool:
        return self.grad_norm is not None and not math.isfinite(self.grad_norm)

    @property
    def skipped(self) -> bool:
        """Whether loss scaling left the step out."""
        return self.has_broken_gradients and self.stats.update is not None and self.stats.update.scaled

    def spoiled(self, *, skips_allowed: bool) -> Spoiled | None:
        each = len(self.stats.keys) // max(1, len(self.losses))  # a step's microbatches are of one size
        for place, loss in [
            *enumerate(self.losses),
            *(one for held in self.learners.values() for one in enumerate(held)),
        ]:
            if not math.isfinite(loss):
                keys = tuple(self.stats.keys[place * each : (place + 1) * each])
                return Spoiled(self.step, f"the loss of step {self.step} is {loss}", keys)
        update = self.stats.update
        for name, norm in self.norms.items():
            if not math.isfinite(norm) and update is not None:
                told = update.others[name].broken
                what = f"the gradient of learner {name!r} at step {self.step} is not finite"
                return Spoiled(self.step, what, tuple(self.stats.keys), tuple(told()) if told is not None else ())
        if not self.has_broken_gradients or (self.skipped and skips_allowed):
            return None
        weights = tuple(update.broken()) if update is not None and update.broken is not None else ()
        what = f"the gradient of step {self.step} is not finite"
        return Spoiled(self.step, what, tuple(self.stats.keys), weights)


def _tensors(stats: StepStats) -> Iterator[Tensor]:
    """Every scalar tensor of a step, in the order in which ``_row`` takes their values."""
    yield from stats.losses
    for terms in stats.terms.values():
        yield from terms
    if stats.update is not None and stats.update.grad_norm is not None:
        yield stats.update.grad_norm
    for losses in stats.learners.values():
        yield from losses
    for other in stats.update.others.values() if stats.update is not None else ():
        if other.grad_norm is not None:
            yield other.grad_norm


def _row(step: int, stats: StepStats, values: Iterator[float]) -> _Row:
    losses = [next(values) for _ in stats.losses]
    terms = {name: [next(values) for _ in tensors] for name, tensors in stats.terms.items()}
    has_norm = stats.update is not None and stats.update.grad_norm is not None
    norm = next(values) if has_norm else None
    learners = {name: [next(values) for _ in tensors] for name, tensors in stats.learners.items()}
    others = stats.update.others if stats.update is not None else {}
    norms = {name: next(values) for name, other in others.items() if other.grad_norm is not None}
    return _Row(step, stats, losses, terms, norm, learners, norms)


def _numbers(scalars: Sequence[Tensor], mean: Mean | None) -> list[float]:
    """The values of scalar tensors, with one transfer per device that they are on (there is one)."""
    import torch

    places: dict[torch.device, list[int]] = {}
    for place, scalar in enumerate(scalars):
        places.setdefault(scalar.device, []).append(place)
    numbers = [0.0] * len(scalars)
    for held in places.values():
        stacked = torch.stack([scalars[place].detach().reshape(()).float() for place in held])
        shared = stacked if mean is None else mean(stacked)
        for place, number in zip(held, shared.tolist(), strict=True):
            numbers[place] = number
    return numbers


def _parts(rows: Sequence[_Row]) -> dict[str, float]:
    """Means per term and per data set, over the microbatches that had them."""
    parts: dict[str, list[float]] = {}
    for row in rows:
        for name, values in row.terms.items():
            parts.setdefault(f"term/{name}", []).extend(values)
        for name, loss in zip(row.stats.datasets, row.losses, strict=True):
            parts.setdefault(f"dataset/{name}", []).append(loss)
        for name, values in row.learners.items():
            parts.setdefault(f"learner/{name}/loss", []).extend(values)
        for name, norm in row.norms.items():
            parts.setdefault(f"learner/{name}/grad_norm", []).append(norm)
        for name, other in row.stats.update.others.items() if row.stats.update is not None else ():
            parts.setdefault(f"learner/{name}/lr", []).append(max(other.learning_rates))
    return {name: _mean(values) for name, values in parts.items()}


def _updates(rows: Sequence[_Row]) -> dict[str, float]:
    metrics = {}
    norms = [row.grad_norm for row in rows if row.grad_norm is not None and not row.skipped]
    if norms:
        metrics["grad_norm"] = _mean(norms)
    if any(row.stats.update is not None and row.stats.update.scaled for row in rows):
        metrics["skipped_steps"] = float(sum(row.skipped for row in rows))
    update = rows[-1].stats.update
    # A step that was another learner's alone has no rates of the first.
    every = [row.stats.update.learning_rates for row in rows if row.stats.update is not None]
    rates = next((one for one in reversed(every) if one), ())
    if len(set(rates)) == 1:
        metrics["lr"] = rates[0]
    elif rates:
        metrics |= {f"lr/{group}": rate for group, rate in enumerate(rates)}
    if update is not None and update.metrics is not None:
        metrics |= {f"optimizer/{name}": value for name, value in update.metrics().items()}
    return metrics


def _times(rows: Sequence[_Row], seconds: float, ranks: int) -> dict[str, float]:
    """Seconds per step in all and by stage; what no stage claims (a busy device, the host) is in the whole only."""
    stages: dict[str, float] = {}
    for row in rows:
        for stage, spent in row.stats.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + spent
    whole = max(seconds, sum(stages.values()))
    metrics = {"seconds/step": whole / len(rows)}
    metrics |= {f"seconds/{stage}": spent / len(rows) for stage, spent in stages.items()}
    if whole > 0:
        metrics["data_wait"] = stages.get("data", 0.0) / whole
        metrics["samples_per_second"] = ranks * sum(row.stats.samples for row in rows) / whole
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
