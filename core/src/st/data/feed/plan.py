"""Plan: the order of all samples of a run, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from st.data.feed.mixture import Mixture
from st.errors import DataUnusable
from st.randomness import keyed

if TYPE_CHECKING:
    from st.data.sets.prepare import PreparedSet
    from st.data.shape.buckets import BatchShape, Bucket

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive samples of one bucket. first: the draw index of the first one; the others follow it."""

    dataset: int
    bucket: int
    rows: Rows
    first: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far the order is gone. samples: drawn so far, the next draw index. step, epoch: completed ones.

    epoch_step: steps taken in this epoch. taken: entries used in this epoch of each bucket of each data set.
    """

    samples: int
    step: int
    epoch: int
    epoch_step: int
    taken: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Quota:
    """What an epoch takes of a bucket. entries: samples, repeats and weight included. unit: how many are drawn at once.

    label: what the bucket is called in saved positions.
    """

    label: str
    samples: int
    entries: int
    unit: int

    def left(self, taken: int) -> int:
        return max(self.entries - taken, 0)

    @property
    def units(self) -> int:
        return -(-self.entries // self.unit)


class Plan:
    """Which samples each step trains on, as a pure function of seed and position.

    A step's samples come from one bucket where the bucket has that many in an epoch; the last step of such a bucket is
    filled up with random samples of the same bucket. Smaller buckets are drawn a microbatch (over all ranks) at a time,
    and such microbatches make up a step together. Data set, bucket and order are drawn by the draw index of the first
    sample concerned, so ranks, batch and accumulation do not matter as long as their product stays; where a bucket has
    fewer samples than a step, the samples of a microbatch (batch x ranks) have to stay as well.

    sets: data sets to train on, in any order. by_length: see Mixture.
    """

    def __init__(self, sets: Sequence[PreparedSet], shape: BatchShape, seed: int, by_length: bool = True) -> None:
        self.shape, self.seed = shape, seed
        self.sets = tuple(sorted(sets, key=lambda one: one.config.name))
        self.buckets = tuple(tuple(bucket for bucket in one.buckets if len(bucket.rows)) for one in self.sets)
        options = [one.config.options for one in self.sets]
        lengths = [
            sum(len(bucket.rows) for bucket in buckets) * (one.repeats + 1)
            for one, buckets in zip(options, self.buckets, strict=True)
        ]
        if not sum(lengths):
            raise DataUnusable("no sample is left to train on")
        self.mixture = Mixture.of(options, lengths, by_length)
        self._quotas = tuple(
            tuple(_quota(bucket, (one.repeats + 1) * times, shape) for bucket in buckets)
            for one, buckets, times in zip(options, self.buckets, self.mixture.times, strict=True)
        )
        for quotas in self._quotas:
            labels = [quota.label for quota in quotas]
            assert len(set(labels)) == len(labels), f"two buckets are called the same: {labels}"
        self._orders: dict[tuple[int, int], tuple[int, int, Rows]] = {}

    @property
    def start(self) -> Position:
        """The position before the first sample."""
        return Position(0, 0, 0, 0, self._untouched())

    def _untouched(self) -> tuple[tuple[int, ...], ...]:
        return tuple((0,) * len(quotas) for quotas in self._quotas)

    def next(self, position: Position) -> tuple[tuple[Unit, ...], Position]:
        """The samples of the step at a position, and the position after it.

        One unit of a whole step, or as many units of a microbatch as a step has. Raises DataUnusable where no data set
        is in use at this step.
        """
        position, active = self._in_epoch(position)
        first, position = self._draw(position, self._candidates(position, active), position.samples)
        units = [first]
        while sum(len(unit.rows) for unit in units) < self.shape.effective:
            small = self._candidates(position, active, small=True) or self._candidates(
                position, active, small=True, spent=True
            )
            unit, position = self._draw(position, small, position.samples + sum(len(unit.rows) for unit in units))
            units.append(unit)
        samples = position.samples + self.shape.effective
        return tuple(units), replace(
            position, samples=samples, step=position.step + 1, epoch_step=position.epoch_step + 1
        )

    def _in_epoch(self, position: Position) -> tuple[Position, tuple[int, ...]]:
        """The position at which the next step is drawn: in a new epoch where nothing is left of this one."""
        active = self.mixture.active(position.step + 1, position.epoch + 1)
        if not self._candidates(position, active):
            if position.epoch_step:
                position = replace(position, epoch=position.epoch + 1, epoch_step=0, taken=self._untouched())
            active = self.mixture.require_active(position.step + 1, position.epoch + 1)
        return position, active

    def _candidates(
        self, position: Position, active: Sequence[int], small: bool = False, spent: bool = False
    ) -> dict[int, list[tuple[int, int]]]:
        """data set -> (bucket, entries left). small: only those drawn by the microbatch. spent: also those used up."""
        found: dict[int, list[tuple[int, int]]] = {}
        for number in active:
            for bucket, (quota, taken) in enumerate(zip(self._quotas[number], position.taken[number], strict=True)):
                left = quota.entries if spent else quota.left(taken)
                if left and not (small and quota.unit == self.shape.effective):
                    found.setdefault(number, []).append((bucket, left))
        return found

    def _draw(
        self, position: Position, candidates: Mapping[int, Sequence[tuple[int, int]]], index: int
    ) -> tuple[Unit, Position]:
        """A unit of one of the candidates, and the position with its entries taken."""
        by_set = {number: sum(left for _, left in buckets) for number, buckets in candidates.items()}
        number = self.mixture.choose(by_set, self.seed, index)
        # By the entries left, not in turn: all buckets then run out together at the end of the epoch, as if every
        # sample had been shuffled, where taking turns uses up the small buckets first.
        place = keyed(self.seed, index, "bucket") % by_set[number]
        bucket = next(bucket for bucket, end in _ends(candidates[number]) if place < end)
        taken, quota = position.taken[number][bucket], self._quotas[number][bucket]
        rows = self._rows(number, bucket, position.epoch, range(taken, taken + quota.unit))
        counts = (*position.taken[number][:bucket], taken + quota.unit, *position.taken[number][bucket + 1 :])
        all_counts = (*position.taken[:number], counts, *position.taken[number + 1 :])
        return Unit(number, bucket, rows, index), replace(position, taken=all_counts)

    def _rows(self, number: int, bucket: int, epoch: int, entries: range) -> Rows:
        """The samples at these entries of an epoch. Each pass over the bucket is in an order of its own."""
        length = self._quotas[number][bucket].samples
        ends = [entries.start, *range((entries.start // length + 1) * length, entries.stop, length), entries.stop]
        pieces = []
        for start, stop in pairwise(ends):
            order = self._order(number, bucket, epoch, start // length)
            pieces.append(order[start % length : start % length + stop - start])
        return self.buckets[number][bucket].rows[np.concatenate(pieces)]

    def _order(self, number: int, bucket: int, epoch: int, turn: int) -> Rows:
        known = self._orders.get((number, bucket))
        if known is None or known[:2] != (epoch, turn):
            quota = self._quotas[number][bucket]
            key = keyed(self.seed, epoch, f"order/{self.sets[number].config.name}/{quota.label}/{turn}")
            known = self._orders[number, bucket] = (epoch, turn, permutation(key, quota.samples))
        return known[2]

    def share(self, units: Sequence[Unit], microbatch: int, rank: int) -> Unit:
        """What one rank gets of a step in one of its microbatches: ``batch`` samples."""
        start = (microbatch * self.shape.ranks + rank) * self.shape.batch
        unit = units[start // len(units[0].rows)]
        start %= len(unit.rows)
        return replace(unit, rows=unit.rows[start : start + self.shape.batch], first=unit.first + start)

    def epoch_steps(self, step: int = 1, epoch: int = 1) -> int:
        """Optimizer steps of an epoch with the data sets in use at a step and in an epoch, counted from 1."""
        quotas = [quota for number in self.mixture.active(step, epoch) for quota in self._quotas[number]]
        whole = sum(quota.units for quota in quotas if quota.unit == self.shape.effective)
        microbatches = sum(quota.units for quota in quotas if quota.unit != self.shape.effective)
        return whole + -(-microbatches // self.shape.accumulate)

    def completed_epochs(self, position: Position) -> int:
        """Epochs of which nothing is left at a position."""
        active = self.mixture.active(position.step + 1, position.epoch + 1)
        return position.epoch + (not self._candidates(position, active) and position.epoch_step > 0)

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, data sets that come and go by ``start`` and ``end`` included."""
        position, whole = self.start, int(epochs)
        for _ in range(whole):
            steps = self._steps_to_end_of(position)
            position = replace(position, step=position.step + steps, epoch=position.epoch + 1)
        part = epochs - whole
        return position.step + (round(part * self._steps_to_end_of(position)) if part else 0)

    def _steps_to_end_of(self, position: Position) -> int:
        """Steps of the epoch that begins at a position."""
        first, epoch = position.step + 1, position.epoch + 1
        self.mixture.require_active(first, epoch)
        steps = self.epoch_steps(first, epoch)
        if self.mixture.active(first, epoch) == self.mixture.active(first + steps, epoch):
            edges = {
                edge for one in self.mixture.options for edge in (one.start_step, one.end_step + 1) if first < edge
            }
            if not any(edge <= first + steps for edge in edges):
                return steps
        return self._steps_walked(position)

    def _steps_walked(self, position: Position) -> int:
        """``_steps_to_end_of`` where data sets come or go within the epoch: by going through it."""
        position, steps = replace(position, epoch_step=0, taken=self._untouched()), 0
        while True:
            active = self.mixture.active(position.step + 1, position.epoch + 1)
            if not self._candidates(position, active):
                return steps
            _, position = self.next(position)
            steps += 1

    def state(self, position: Position) -> dict[str, Any]:
        """A position as JSON data. Buckets are named, so that a data set that has grown can be continued."""
        taken = {
            one.config.name: {quota.label: count for quota, count in zip(quotas, counts, strict=True) if count}
            for one, quotas, counts in zip(self.sets, self._quotas, position.taken, strict=True)
        }
        return {
            "samples": position.samples,
            "step": position.step,
            "epoch": position.epoch,
            "epoch_step": position.epoch_step,
            "effective_batch": self.shape.effective,
            "accumulate": self.shape.accumulate,
            "small_buckets": any(quota.unit != self.shape.effective for quotas in self._quotas for quota in quotas),
            "samples_by_dataset": {
                one.config.name: sum(q.samples for q in qs) for one, qs in zip(self.sets, self._quotas, strict=True)
            },
            "taken": taken,
        }

    def restore(self, state: Mapping[str, Any]) -> tuple[Position, tuple[str, ...]]:
        """The position that ``state`` gave, and sentences that say where the order will differ from the one begun."""
        taken = tuple(
            tuple(int(state["taken"].get(one.config.name, {}).get(quota.label, 0)) for quota in quotas)
            for one, quotas in zip(self.sets, self._quotas, strict=True)
        )
        position = Position(state["samples"], state["step"], state["epoch"], state["epoch_step"], taken)
        return position, tuple(self._differences(state))

    def _differences(self, state: Mapping[str, Any]) -> Iterator[str]:
        before, after = state["effective_batch"], self.shape.effective
        if before != after:
            yield (
                f"a step now has {after} samples instead of {before}: training goes on after the {state['samples']} "
                f"samples already drawn, and the order from there differs"
            )
        elif state["small_buckets"] and state["accumulate"] != self.shape.accumulate:
            yield (
                f"{self.shape.unit} samples are drawn at a time from buckets that do not fill a step, instead of "
                f"{before // state['accumulate']}: the order from here differs"
            )
        known: Mapping[str, int] = state["samples_by_dataset"]
        for one, quotas in zip(self.sets, self._quotas, strict=True):
            name, samples = one.config.name, sum(quota.samples for quota in quotas)
            if name not in known:
                yield f"data set {name!r} is new since the checkpoint: it begins with this epoch"
            elif known[name] != samples:
                yield f"data set {name!r} has {samples} samples instead of {known[name]}: this epoch's order differs"
        for name in known:
            if name not in {one.config.name for one in self.sets}:
                yield f"data set {name!r} of the checkpoint is gone: the order differs"


def permutation(key: int, length: int) -> Rows:
    """A random order of [0, length) that depends on the 64-bit key alone, whatever the machine and library versions.

    Sorts the splitmix64 sequence that starts at the key (Steele et al. 2014, doi:10.1145/2660193.2660195); no two of
    its numbers are equal.
    """
    numbers = np.uint64(key) + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(numbers ^ (numbers >> np.uint64(31)), kind="stable")


def _ends(weighted: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(thing, sum of the weights up to and with its own)."""
    end = 0
    for thing, weight in weighted:
        end += weight
        yield thing, end


def _quota(bucket: Bucket, times: float, shape: BatchShape) -> _Quota:
    samples = len(bucket.rows)
    entries = round(samples * times)
    unit = shape.effective if entries >= shape.effective else shape.unit
    return _Quota(bucket.label, samples, entries, unit)
