"""Which data set the next samples come from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from st.errors import DataUnusable
from st.randomness import keyed

if TYPE_CHECKING:
    from st.data.dataset import DatasetOptions


@dataclass(frozen=True, slots=True)
class Mixture:
    """The data sets of a run, sorted by name, with the weights they are drawn by.

    weights: of each data set, in proportion to its chance; they need not add up to 1.
    """

    options: tuple[DatasetOptions, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, options: Sequence[DatasetOptions], lengths: Sequence[int], by_length: bool) -> Mixture:
        """by_length: a data set's chance is its ``weight`` times its share of all samples; else ``weight`` alone."""
        total = sum(lengths)
        shares = [length / total if by_length else 1.0 for length in lengths]
        return cls(tuple(options), tuple(one.weight * share for one, share in zip(options, shares, strict=True)))

    def active(self, step: int, epoch: int) -> tuple[int, ...]:
        """The data sets in use at an optimizer step and in an epoch, both counted from 1."""
        return tuple(number for number, one in enumerate(self.options) if _in_bounds(one, step, epoch))

    def choose(self, candidates: Sequence[int], seed: int, index: int) -> int:
        """One of the candidates, drawn by weight for the sample with this draw index; the same on every rank."""
        sums = list(accumulate(self.weights[number] for number in candidates))
        place = keyed(seed, index, "dataset") / 2**64 * sums[-1]
        return candidates[min(bisect_right(sums, place), len(sums) - 1)]

    def require_active(self, step: int, epoch: int) -> tuple[int, ...]:
        """``active``, of which there must be one. Raises DataUnusable naming every data set's bounds."""
        active = self.active(step, epoch)
        if not active:
            raise DataUnusable(
                f"no data set is in use at step {step} of epoch {epoch}",
                why="; ".join(f"{one.label!r}: {_bounds(one)}" for one in self.options),
                fix="change start_step, end_step, start_epoch or end_epoch of one, or train for fewer steps",
            )
        return active


def _in_bounds(options: DatasetOptions, step: int, epoch: int) -> bool:
    return (
        options.start_step <= step
        and (not options.end_step or step <= options.end_step)
        and options.start_epoch <= epoch
        and (not options.end_epoch or epoch <= options.end_epoch)
    )


def _bounds(options: DatasetOptions) -> str:
    steps = f"steps {options.start_step} to {options.end_step or 'the end'}"
    return f"{steps}, epochs {options.start_epoch} to {options.end_epoch or 'the last'}"
