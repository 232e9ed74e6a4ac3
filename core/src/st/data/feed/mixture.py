"""How often each data set is seen, and which one the next samples come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.errors import DataUnusable
from st.randomness import keyed

if TYPE_CHECKING:
    from st.data.dataset import DatasetOptions


@dataclass(frozen=True, slots=True)
class Mixture:
    """The data sets of a run, sorted by name.

    times: how often an epoch goes through each of them, repeats aside. The least is 1, so that an epoch shows every
    sample; weights make the others more.
    """

    options: tuple[DatasetOptions, ...]
    times: tuple[float, ...]

    @classmethod
    def of(cls, options: Sequence[DatasetOptions], lengths: Sequence[int], by_length: bool) -> Mixture:
        """lengths: samples of each in one pass, repeats included. Empty ones count for nothing.

        by_length: a data set is drawn from as often as its length times its ``weight`` says; else as its ``weight``.
        """
        pairs = list(zip(options, lengths, strict=True))
        times = [one.weight if by_length else one.weight / max(length, 1) for one, length in pairs]
        least = min((time for time, length in zip(times, lengths, strict=True) if length), default=1.0)
        return cls(tuple(options), tuple(max(time / least, 1.0) for time in times))

    def active(self, step: int, epoch: int) -> tuple[int, ...]:
        """The data sets in use at an optimizer step and in an epoch, both counted from 1."""
        return tuple(number for number, one in enumerate(self.options) if _in_bounds(one, step, epoch))

    def choose(self, left: Mapping[int, int], seed: int, index: int) -> int:
        """A data set for the sample with this draw index, by what is left of each in the epoch; the same on every rank.

        By what is left, not by fixed chances: all data sets then run out together, and no part of an epoch belongs to
        one of them.
        """
        place = keyed(seed, index, "dataset") % sum(left.values())
        for number, count in left.items():
            if place < count:
                return number
            place -= count
        raise AssertionError("a place below the sum is in one of the parts")

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
