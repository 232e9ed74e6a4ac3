from __future__ import annotations

from collections import Counter

import pytest

from st.data.dataset import DatasetOptions
from st.data.feed.mixture import Mixture
from st.errors import DataUnusable


def options(name: str, **given: object) -> DatasetOptions:
    return DatasetOptions.model_validate({"url": f"file:{name}", "name": name, **given})


def test_an_epoch_goes_through_each_data_set_as_often_as_its_weight_says() -> None:
    mixture = Mixture.of([options("a"), options("b", weight=3.0)], [300, 100], by_length=True)

    assert mixture.times == (1.0, 3.0)


def test_with_weights_alone_a_short_data_set_is_gone_through_more_often() -> None:
    mixture = Mixture.of([options("a"), options("b", weight=2.0)], [300, 100], by_length=False)

    assert mixture.times == (1.0, 6.0)


def test_a_weight_below_the_others_makes_the_others_more_and_leaves_no_sample_out() -> None:
    mixture = Mixture.of([options("a"), options("b", weight=0.5), options("empty", weight=0.1)], [9, 9, 0], True)

    assert mixture.times == (2.0, 1.0, 1.0)


def test_draws_follow_what_is_left() -> None:
    mixture = Mixture.of([options("a"), options("b"), options("c")], [10, 30, 60], by_length=True)

    counts = Counter(mixture.choose({0: 10, 1: 30, 2: 60}, 42, index) for index in range(20_000))

    assert [round(counts[number] / 20_000, 2) for number in range(3)] == [0.1, 0.3, 0.6]


def test_only_what_has_something_left_is_drawn() -> None:
    mixture = Mixture.of([options("a"), options("b"), options("c")], [1, 1, 1], by_length=True)

    assert {mixture.choose({0: 4, 2: 4}, 1, index) for index in range(100)} == {0, 2}


def test_bounds_include_their_ends() -> None:
    mixture = Mixture.of(
        [options("steps", start_step=3, end_step=5), options("epochs", start_epoch=2, end_epoch=2)], [1, 1], True
    )

    by_step = [step for step in range(1, 9) if 0 in mixture.active(step, 1)]
    by_epoch = [epoch for epoch in range(1, 5) if 1 in mixture.active(1, epoch)]

    assert (by_step, by_epoch) == ([3, 4, 5], [2])


def test_no_data_set_in_use_names_all_bounds() -> None:
    mixture = Mixture.of([options("a", start_step=10), options("b", start_epoch=2)], [1, 1], True)

    with pytest.raises(DataUnusable, match="no data set is in use at step 1 of epoch 1") as caught:
        mixture.require_active(1, 1)

    assert "'a': steps 10 to the end" in caught.value.why
    assert "'b': steps 0 to the end, epochs 2 to the last" in caught.value.why
