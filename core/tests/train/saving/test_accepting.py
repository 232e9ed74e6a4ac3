"""What a resumed run may change, and what is advised where it may not."""

from __future__ import annotations

import pytest

from st.errors import ProblemsFound
from st.train.saving.accepting import check_names, refused
from st.train.saving.differences import Difference

PLAIN = {"batch": 2, "optimizer": {"kind": "adamw", "lr": 1e-4}, "dataset": [{"url": "photos"}]}


@pytest.mark.parametrize(
    "change",
    [
        Difference("adapter.rank", 4, 8),
        Difference("optimizer.kind", "adamw", "sgd"),
        Difference("average", None, {"decay": 0.9}),
        Difference("average.decay", 0.9, None),
    ],
    ids=lambda change: change.key,
)
def test_what_no_checkpoint_fits_is_neither_accepted_nor_advised(change: Difference) -> None:
    (problem,) = refused([change], [change.key, change.key.partition(".")[0]])

    assert problem.fix == "set it back, or start a new run: --output DIR"


def test_a_change_that_can_be_accepted_is_refused_until_it_is() -> None:
    change = Difference("average.decay", 0.9, 0.99)

    (problem,) = refused([change], [])

    assert problem.fix == "set it back, or accept the change: --accept average.decay"
    assert refused([change], ["average"]) == []


def test_a_name_that_is_no_setting_is_refused_with_the_closest() -> None:
    check_names(["batch", "optimizer", "optimizer.lr", "dataset.0.url"], PLAIN)

    with pytest.raises(ProblemsFound, match=r"--accept optimiser.lr: there is no such setting.\n.*'optimizer.lr'"):
        check_names(["optimiser.lr"], PLAIN)


def test_a_section_that_only_the_earlier_run_had_can_be_named() -> None:
    check_names(["tread.drop"], PLAIN, {"tread": {"drop": 0.5}})
