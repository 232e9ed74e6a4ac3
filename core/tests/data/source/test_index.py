from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from st.data.sample import Media, Sample
from st.data.shape.fitting import Fits
from st.data.source import index as module
from st.data.source.captions import CaptionRecipe
from st.data.source.index import Index

SAMPLES = (
    Sample("a.jpg", Media("image", 30, 40), ("a cat", "one cat"), {"mask": "mask:a.png"}, 100, 1.5),
    Sample("b.mp4", Media("video", 480, 640, 37, 24.0, 1.5), (), {}, 200, 2.5),
    Sample("c.wav", Media("audio", 0, 0, 0, 0.0, 7.5), ("a song",)),
)


def test_samples_survive_the_index() -> None:
    assert tuple(Index.from_samples(SAMPLES).samples()) == SAMPLES


def test_samples_of_several_chunks_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    samples = [Sample(f"{n}", Media("image", n + 1, 5), (f"c{n}",)) for n in range(5)]

    assert list(Index.from_samples(samples).samples()) == samples


def test_a_table_needs_only_keys_and_sizes() -> None:
    table = pa.table({"key": ["a", "b"], "width": [3, 4], "height": [5, 6]})

    index = Index.from_table(table)

    assert index.sample(1) == Sample("b", Media("image", 6, 4))
    assert index.passes().tolist() == [1, 1]
    assert index.captions(0) == ()


def test_a_text_column_holds_one_caption_per_row() -> None:
    table = pa.table({"key": ["a", "b", "c"], "width": [1] * 3, "height": [1] * 3, "caption": ["x", None, "y"]})

    index = Index.from_table(table)

    assert [index.captions(row) for row in range(3)] == [("x",), (), ("y",)]


def test_columns_in_several_chunks_are_read_as_one() -> None:
    one = pa.table({"key": ["a"], "width": [1], "height": [1], "caption": ["x"]})

    index = Index.from_table(pa.concat_tables([one, one, one]))

    assert len(index) == 3 and index.captions(2) == ("x",)


def test_captions_are_those_of_the_recipe() -> None:
    index = Index.from_samples(SAMPLES).with_fits(Fits.empty(3), CaptionRecipe(prefix="sks "))

    assert index.captions(0) == ("sks a cat", "sks one cat")
    assert index.sample(0).captions == ("a cat", "one cat")


@pytest.mark.parametrize(
    "recipe",
    [
        CaptionRecipe(),
        CaptionRecipe(prefix="x "),
        CaptionRecipe(instance_prompts=("p", "q")),
        CaptionRecipe(empty_if_missing=True),
    ],
)
def test_distinct_captions_are_all_that_any_sample_has(recipe: CaptionRecipe) -> None:
    index = Index.from_samples([*SAMPLES, *SAMPLES]).with_fits(Fits.empty(6), recipe)

    distinct = list(index.distinct_captions())

    assert len(set(distinct)) == len(distinct)
    assert set(distinct) == {caption for row in range(len(index)) for caption in index.captions(row)}


def test_white_space_is_no_caption() -> None:
    samples = [Sample(str(n), Media("image", 1, 1), texts) for n, texts in enumerate([(), ("",), (" \n",), ("", "a")])]

    assert Index.from_samples(samples).has_caption().tolist() == [False, False, False, True]


def test_rows_are_taken_with_all_that_is_known_about_them() -> None:
    fits = Fits.empty(3)
    fits.width[:] = [1, 2, 3]
    index = Index.from_samples(SAMPLES).with_fits(fits, CaptionRecipe())
    index.remember(2, "ab" * 16)

    taken = index.take(np.array([2, 0]))

    assert [taken.key(row) for row in range(2)] == ["c.wav", "a.jpg"]
    assert [taken.fit(row).geometry.width for row in range(2)] == [3, 1]
    assert [taken.digest(row) for row in range(2)] == ["ab" * 16, None]


def test_digests_are_recalled_for_files_that_have_not_changed(tmp_path: Path) -> None:
    first = Index.from_samples(SAMPLES)
    for row in range(3):
        first.remember(row, f"{row:02}" * 16)
    changed = [SAMPLES[0], Sample("b.mp4", SAMPLES[1].media, (), {}, 200, 99.0), SAMPLES[2]]
    second = Index.from_samples([Sample("0.jpg", Media("image", 1, 1)), *changed])

    second.recall(first.digest_table())

    assert [second.digest(row) for row in range(4)] == [None, "00" * 16, None, "02" * 16]


def test_an_empty_data_set_has_an_index() -> None:
    index = Index.from_samples([])

    assert len(index) == 0
    assert list(index.distinct_captions()) == []
    assert index.has_caption().tolist() == []
