"""What is meant by a word that is no name."""

from __future__ import annotations

import pytest

from st.spelling import closest


@pytest.mark.parametrize(
    ("word", "names", "first"),
    [
        ("learning_rate", ["lr", "beta1"], "lr"),
        ("wd", ["weight_decay", "lr"], "weight_decay"),
        ("epsilom", ["lr", "epsilon"], "epsilon"),
        ("LR", ["lr"], "lr"),
    ],
)
def test_initials_and_words_stand_for_each_other_and_slips_are_seen_through(
    word: str, names: list[str], first: str
) -> None:
    assert closest(word, names)[0] == first
