from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from st.data.feed.plan import Plan, Position, permutation
from st.data.geometry import Geometry
from st.data.sets.prepare import PreparedSet
from st.data.shape.buckets import BatchShape, Bucket
from st.errors import DataUnusable


def data_set(studio: Any, name: str = "pictures", square: int = 20, wide: int = 0, **options: Any) -> PreparedSet:
    backend = studio.Pictures()
    for number in range(square):
        backend.add(f"{name}-{number:03}.png", 32, 32, "x")
    for number in range(wide):
        backend.add(f"{name}-w{number:03}.png", 32, 160, "x")
    return studio.prepared(backend, name=name, resolution=32, **options)


def steps(
    plan: Plan, count: int, position: Position | None = None
) -> tuple[list[list[tuple[int, str, str]]], Position]:
    """(draw index, data set, key) of the samples of so many steps."""
    position, found = position or plan.start, []
    for _ in range(count):
        units, position = plan.next(position)
        sets = plan.sets
        found.append(
            [
                (unit.first + place, sets[unit.dataset].name, sets[unit.dataset].index.key(int(row)))
                for unit in units
                for place, row in enumerate(unit.rows)
            ]
        )
    return found, position


def split(plan: Plan, count: int) -> list[list[tuple[int, str]]]:
    """The samples of each step as the ranks get them, in draw order: (draw index, key)."""
    position, found = plan.start, []
    for _ in range(count):
        units, position = plan.next(position)
        step = []
        for microbatch in range(plan.shape.accumulate):
            for rank in range(plan.shape.ranks):
                unit = plan.share(units, microbatch, rank)
                assert len(unit.rows) == plan.shape.batch
                index = plan.sets[unit.dataset].index
                step += [(unit.first + place, index.key(int(row))) for place, row in enumerate(unit.rows)]
        found.append(step)
    return found


SHAPES = [BatchShape(4, 1, 1), BatchShape(2, 2, 1), BatchShape(2, 1, 2), BatchShape(1, 4, 1), BatchShape(1, 1, 4)]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_same_samples_come_in_the_same_step_however_a_step_is_split(studio: Any, shape: BatchShape) -> None:
    sets = [data_set(studio, "a", square=9, wide=5), data_set(studio, "b", square=7, repeats=1)]

    expected = split(Plan(sets, SHAPES[0], seed=3), 40)

    assert split(Plan(sets, shape, seed=3), 40) == expected
    assert [index for step in expected for index, _ in step] == list(range(160))


def test_oversubscribe_adds_no_more_than_fills_the_batches_of_all_ranks(studio: Any) -> None:
    shape = BatchShape(1, 8, 8)

    plain = Plan([data_set(studio, square=10, wide=10)], shape, seed=1)
    filled = Plan([data_set(studio, square=10, wide=5, oversubscribe=True)], shape, seed=1)

    assert (plain.epoch_steps(), filled.epoch_steps()) == (1, 1)


def test_oversubscribe_leaves_repeats_as_they_were_set(studio: Any) -> None:
    shape = BatchShape(1, 2, 8)

    epochs = [
        Plan([data_set(studio, square=6, repeats=1, oversubscribe=filled)], shape, seed=1).epoch_steps()
        for filled in (False, True)
    ]

    assert epochs == [1, 1]


def test_weight_says_how_often_a_data_set_is_seen_in_an_epoch(studio: Any) -> None:
    sets = [data_set(studio, "a", square=40, weight=2.0), data_set(studio, "b", square=40)]
    plan = Plan(sets, BatchShape(2), seed=3)

    found, position = steps(plan, plan.epoch_steps())

    counts = Counter(name for step in found for _, name, _ in step)
    assert counts == {"a": 80, "b": 40}
    assert plan.completed_epochs(position) == 1


def test_weights_alone_show_data_sets_equally_often_whatever_their_lengths(studio: Any) -> None:
    sets = [data_set(studio, "a", square=60), data_set(studio, "b", square=10, repeats=1)]
    plan = Plan(sets, BatchShape(2), seed=3, by_length=False)

    found, _ = steps(plan, plan.epoch_steps())

    assert Counter(name for step in found for _, name, _ in step) == {"a": 60, "b": 60}


@pytest.mark.parametrize("options", [{"weight": 4.0}, {"repeats": 3}])
def test_no_part_of_an_epoch_belongs_to_one_data_set(studio: Any, options: dict[str, Any]) -> None:
    plan = Plan([data_set(studio, "a", square=100, **options), data_set(studio, "b", square=100)], BatchShape(1), 3)

    found, _ = steps(plan, plan.epoch_steps())

    quarters = [Counter(name for step in found[at : at + 125] for _, name, _ in step) for at in range(0, 500, 125)]
    assert all(15 <= quarter["b"] <= 35 for quarter in quarters)


def test_buckets_of_one_size_that_references_tell_apart_are_continued_apart(studio: Any) -> None:
    one = data_set(studio, square=12)
    (whole,) = one.buckets
    shown = Geometry(32, 32), Geometry(32, 64)
    parts = tuple(replace(whole, rows=whole.rows[n::2], references=(shown[n],)) for n in range(2))
    plan = Plan([replace(one, buckets=parts)], BatchShape(1), seed=3)
    expected, _ = steps(plan, 12)
    _, position = steps(plan, 3)

    restored, differences = plan.restore(json.loads(json.dumps(plan.state(position))))

    assert differences == ()
    assert steps(plan, 9, restored)[0] == expected[3:]


def test_sounds_of_nearly_one_length_have_buckets_of_different_names() -> None:
    lengths = np.nextafter(np.float32(123.4567), np.float32(200)), np.float32(123.4567)

    first, second = (Bucket(Geometry(frames=0, seconds=float(one)), 0.0, np.arange(2)).label for one in lengths)

    assert first != second


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (3, 1), (2, 2), (2, 8), (5, 3)])
def test_an_epoch_shows_every_sample_at_least_repeats_plus_one_times(studio: Any, batch: int, accumulate: int) -> None:
    sets = [data_set(studio, "a", square=11, wide=5, repeats=2), data_set(studio, "b", square=6)]
    plan = Plan(sets, BatchShape(batch, 1, accumulate), seed=5)

    found, position = steps(plan, plan.epoch_steps())

    counts = Counter((name, key) for step in found for _, name, key in step)
    assert all(counts["a", one.key] >= 3 for one in sets[0].index.samples())
    assert all(counts["b", one.key] >= 1 for one in sets[1].index.samples())
    assert plan.completed_epochs(position) == 1


@pytest.mark.parametrize("epoch", range(3))
def test_a_batch_size_that_divides_a_bucket_shows_each_sample_once(studio: Any, epoch: int) -> None:
    plan = Plan([data_set(studio, square=12, wide=8)], BatchShape(2, 1, 2), seed=epoch)
    _, position = steps(plan, epoch * 5)

    found, _ = steps(plan, 5, position)

    assert set(Counter(key for step in found for *_, key in step).values()) == {1}


def test_each_epoch_has_an_order_of_its_own(studio: Any) -> None:
    plan = Plan([data_set(studio, square=20)], BatchShape(4), seed=0)

    first, position = steps(plan, 5)
    second, _ = steps(plan, 5, position)

    assert [key for step in first for *_, key in step] != [key for step in second for *_, key in step]


def test_a_step_comes_from_one_bucket_that_is_large_enough(studio: Any) -> None:
    plan = Plan([data_set(studio, square=12, wide=9)], BatchShape(2, 1, 4), seed=0)
    position = plan.start

    for _ in range(20):
        units, position = plan.next(position)
        assert [len(unit.rows) for unit in units] == [8]


def test_small_buckets_make_up_a_step_together(studio: Any) -> None:
    plan = Plan([data_set(studio, square=3, wide=3)], BatchShape(2, 1, 4), seed=0)

    units, _ = plan.next(plan.start)

    assert [len(unit.rows) for unit in units] == [2, 2, 2, 2]
    assert [unit.first for unit in units] == [0, 2, 4, 6]
    assert {unit.bucket for unit in units} == {0, 1}


def test_a_bucket_that_ends_within_a_batch_is_filled_up_from_itself(studio: Any) -> None:
    plan = Plan([data_set(studio, square=5, wide=5)], BatchShape(4), seed=0)
    position, shown = plan.start, Counter[tuple[int, int]]()

    for _ in range(plan.epoch_steps()):
        (unit,), position = plan.next(position)
        shown.update((unit.bucket, int(row)) for row in unit.rows)
        assert set(unit.rows) <= set(plan.buckets[0][unit.bucket].rows)

    assert shown.total() == 16
    assert len(shown) == 10


def test_103_microbatches_at_four_to_a_step_are_26_steps(studio: Any) -> None:
    plan = Plan([data_set(studio, square=103)], BatchShape(1, 1, 4), seed=0)

    assert plan.epoch_steps() == 26


def test_counted_steps_are_those_that_are_taken(studio: Any) -> None:
    sets = [data_set(studio, "a", square=11, wide=3, repeats=1), data_set(studio, "b", square=2, wide=5)]
    for shape in (BatchShape(1), BatchShape(2, 1, 3), BatchShape(2, 2, 4), BatchShape(1, 1, 7)):
        plan, position, ends = Plan(sets, shape, seed=9), None, []

        for step in range(1, 200):
            _, position = steps(plan, 1, position)
            if plan.completed_epochs(position) > len(ends):
                ends.append(step)

        assert ends[:4] == [plan.epoch_steps() * epoch for epoch in range(1, 5)]
        assert [plan.steps(epochs) for epochs in range(1, 5)] == ends[:4]


def test_epochs_with_data_sets_that_come_and_go_are_counted_by_walking(studio: Any) -> None:
    sets = [
        data_set(studio, "a", square=8),
        data_set(studio, "b", square=4, start_step=6),
        data_set(studio, "c", square=4, end_step=3),
        data_set(studio, "d", square=4, start_epoch=2),
    ]
    plan, position, ends = Plan(sets, BatchShape(2), seed=1), None, []

    for step in range(1, 60):
        _, position = steps(plan, 1, position)
        if plan.completed_epochs(position) > len(ends):
            ends.append(step)

    assert [plan.steps(epochs) for epochs in range(1, 5)] == ends[:4]
    assert plan.steps(1.5) - plan.steps(1) in (4, 5)


def test_a_data_set_outside_its_bounds_is_not_drawn(studio: Any) -> None:
    sets = [data_set(studio, "a", square=8), data_set(studio, "late", square=8, start_step=4)]

    found, _ = steps(Plan(sets, BatchShape(2), seed=1), 20)

    assert all(name == "a" for step in found[:3] for _, name, _ in step)
    assert any(name == "late" for step in found[3:] for _, name, _ in step)


def test_no_data_set_in_use_stops_the_run(studio: Any) -> None:
    plan = Plan([data_set(studio, square=8, end_step=2)], BatchShape(2), seed=1)
    _, position = steps(plan, 2)

    with pytest.raises(DataUnusable, match="no data set is in use at step 3"):
        plan.next(position)


@pytest.mark.parametrize("shape", [BatchShape(4), BatchShape(2, 1, 3), BatchShape(1, 1, 8)])
def test_every_position_can_be_continued_from_json(studio: Any, shape: BatchShape) -> None:
    sets = [data_set(studio, "a", square=11, wide=3, repeats=1), data_set(studio, "b", square=2, wide=5)]
    plan = Plan(sets, shape, seed=2)
    expected, _ = steps(plan, 30)

    position: Position | None = None
    for step in range(30):
        state = json.loads(json.dumps(plan.state(position or plan.start)))
        restored, differences = Plan(sets, shape, seed=2).restore(state)
        assert differences == ()
        assert steps(Plan(sets, shape, seed=2), 30 - step, restored)[0] == expected[step:]
        _, position = steps(plan, 1, position)


def test_a_position_is_continued_by_another_number_of_ranks(studio: Any) -> None:
    sets = [data_set(studio, "a", square=9, wide=5), data_set(studio, "b", square=7)]
    expected, _ = steps(Plan(sets, SHAPES[0], seed=3), 20)
    _, position = steps(Plan(sets, SHAPES[1], seed=3), 7)
    state = Plan(sets, SHAPES[1], seed=3).state(position)

    other = Plan(sets, SHAPES[4], seed=3)
    restored, differences = other.restore(state)

    assert differences == ()
    assert steps(other, 13, restored)[0] == expected[7:]


def test_another_effective_batch_goes_on_after_the_samples_drawn_and_says_so(studio: Any) -> None:
    one = data_set(studio, square=20)
    before = Plan([one], BatchShape(4), seed=3)
    first, position = steps(before, 3)

    after = Plan([one], BatchShape(8), seed=3)
    restored, differences = after.restore(before.state(position))
    rest, _ = steps(after, 1, restored)

    assert "a step now has 8 samples instead of 4" in differences[0]
    assert rest[0][0][0] == 12
    assert not {key for step in first for *_, key in step} & {key for *_, key in rest[0]}


def test_small_buckets_drawn_in_other_numbers_are_noted(studio: Any) -> None:
    one = data_set(studio, square=3, wide=3)
    before, after = Plan([one], BatchShape(1, 1, 4), seed=3), Plan([one], BatchShape(2, 1, 2), seed=3)

    _, differences = after.restore(before.state(before.start))

    assert differences == (
        "2 samples are drawn at a time from buckets that do not fill a step, instead of 1: the order from here differs",
    )


def test_a_data_set_that_has_changed_is_named(studio: Any) -> None:
    before = Plan([data_set(studio, "a"), data_set(studio, "b")], BatchShape(4), seed=3)
    after = Plan([data_set(studio, "a", square=21), data_set(studio, "c")], BatchShape(4), seed=3)

    _, differences = after.restore(before.state(before.start))

    assert [text.split("'")[1] for text in differences] == ["a", "c", "b"]


def test_a_permutation_depends_on_its_key_alone() -> None:
    assert permutation(7, 10).tolist() == permutation(7, 10).tolist()
    assert permutation(7, 10).tolist() != permutation(8, 10).tolist()
    assert sorted(permutation(2**64 - 1, 1000)) == list(range(1000))
    assert permutation(42, 8).tolist() == [4, 1, 6, 2, 3, 0, 7, 5]


def test_first_places_of_permutations_are_uniform() -> None:
    counts = np.bincount([permutation(key, 4)[0] for key in range(8000)], minlength=4)

    assert abs(counts - 2000).max() < 150


def test_nothing_to_train_on_is_an_error(studio: Any) -> None:
    with pytest.raises(DataUnusable, match="no sample is left"):
        Plan([], BatchShape(), seed=0)
