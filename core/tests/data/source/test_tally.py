"""The most frequent texts: as a plain count has them, ties and merging included."""

from __future__ import annotations

import random
from collections import Counter

import pyarrow as pa

from st.data.source.captions import CaptionRecipe
from st.data.source.index import Index
from st.data.source.tally import MERGE, most_frequent, parts


def texts(*words: str | None) -> pa.Array:
    return pa.array(words, pa.large_string())


def test_of_equal_counts_the_first_in_the_alphabet_are_kept() -> None:
    chunks = [texts("d", "c", "b"), texts("c", "\u00e9", "a", "d")]

    assert list(most_frequent(chunks, 3).items()) == [("c", 2), ("d", 2), ("a", 1)]


def test_counts_that_are_put_together_on_the_way_are_those_of_a_plain_count() -> None:
    draws = random.Random(0)
    words = [f"{draws.choice('ab')} {draws.randrange(MERGE)}" for _ in range(3 * MERGE)]
    chunks = [texts(*words[start : start + 20_000]) for start in range(0, len(words), 20_000)]

    found = most_frequent(chunks, 1000)

    expected = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))[:1000]
    assert list(found.items()) == expected


def test_nothing_gives_nothing() -> None:
    assert most_frequent([texts()], 5) == most_frequent([], 5) == {}


def test_parts_are_without_white_space_and_without_what_is_empty() -> None:
    assert parts(texts(" a cat,, \u3000by a river ,", ""), ",").to_pylist() == ["a cat", "by a river"]


def test_parts_are_counted_of_the_captions_that_are_trained_on() -> None:
    table = pa.table({"key": ["a", "b"], "width": [64, 64], "height": [64, 64], "caption": ["red, cat", "cat"]})
    index = Index(Index.from_table(table).table, CaptionRecipe(prefix="sks, "))

    assert index.caption_parts(",", 2) == {"cat": 2, "sks": 2}
