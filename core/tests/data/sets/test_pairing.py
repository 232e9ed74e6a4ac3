from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.sets.pairing import check_names
from st.data.sets.prepare import list_set, with_references
from st.data.shape.rule import GeometryRule
from st.errors import DataUnusable
from st.options import Options
from st.report.report import Report

RULE = GeometryRule(multiple=8)


def configured(name: str, **options: Any) -> DatasetConfig:
    given = DatasetOptions(url=f"memory:{name}", name=name, **options)
    return DatasetConfig(options=given, backend=Options(), scheme="memory")


def paired(studio: Any, samples: Any, references: Any, report: Any = None, **options: Any) -> Any:
    """Samples with those of ``references`` beside them. Options that begin with own_ are the samples' own."""
    own = {name.removeprefix("own_"): value for name, value in options.items() if name.startswith("own_")}
    theirs = {name: value for name, value in options.items() if not name.startswith("own_")}
    report = report or Report.silent()
    one = studio.prepared(samples, resolution=64, align=8, name="photos", reference_sets=("edges",), **own)
    edges = list_set(configured("edges", role="reference", **theirs), references, report=report)
    return with_references(one, {"edges": edges}, RULE, seed=1, report=report)


@pytest.fixture
def samples(studio: Any) -> Any:
    made = studio.Pictures()
    for number, (height, width) in enumerate([(64, 64), (64, 128), (64, 64), (96, 64)]):
        made.add(f"a/{number}.jpg", height, width, f"picture {number}")
    return made


def beside(studio: Any, samples: Any, scale: float = 1.0, leave_out: tuple[str, ...] = ()) -> Any:
    made = studio.Pictures()
    made.add("extra.png", 64, 64)
    for one in reversed(samples.listed):
        if one.key not in leave_out:
            height, width = int(one.media.height * scale), int(one.media.width * scale)
            made.add(one.key.replace(".jpg", ".png"), height, width)
    return made


def test_row_by_row_the_reference_has_its_sample_s_path(studio: Any, samples: Any) -> None:
    one = paired(studio, samples, beside(studio, samples))

    (other,) = one.references
    keys = [(one.index.key(row), other.index.key(row)) for row in range(4)]
    assert keys == [(f"a/{number}.jpg", f"a/{number}.png") for number in range(4)]


def test_strict_references_get_their_sample_s_size_and_crop(studio: Any, samples: Any) -> None:
    one = paired(studio, samples, beside(studio, samples, scale=2), own_crop=True)

    (other,) = one.references
    assert [other.index.fit(row) for row in range(4)] == [one.index.fit(row) for row in range(4)]
    assert [bucket.geometry for bucket in other.buckets] == [bucket.geometry for bucket in one.buckets]


def test_a_strict_reference_of_another_aspect_is_named(studio: Any, samples: Any) -> None:
    references = beside(studio, samples, leave_out=("a/1.jpg",))
    references.add("a/1.png", 64, 64)

    with pytest.raises(
        DataUnusable, match=r"1 of 4 have another aspect than their sample: 'a/1.png' with 64x64 for 128x64"
    ):
        paired(studio, samples, references)


def test_loose_references_get_sizes_of_their_own_and_share_one_in_each_bucket(studio: Any, samples: Any) -> None:
    references = beside(studio, samples, leave_out=("a/2.jpg",))
    references.add("a/2.png", 64, 128)

    one = paired(studio, samples, references, pairing="loose", resolution=32, align=8)

    (other,) = one.references
    for own, theirs in zip(one.buckets, other.buckets, strict=True):
        assert np.array_equal(own.rows, theirs.rows)
        assert {other.index.fit(int(row)).geometry for row in own.rows} == {theirs.geometry}
    # Samples 0 and 2 are of one size, and their references are not.
    assert [list(bucket.rows) for bucket in one.buckets if 0 in bucket.rows] == [[0]]
    assert max(bucket.geometry.height * bucket.geometry.width for bucket in other.buckets) <= 32 * 32 * 1.3


def test_a_missing_reference_stops_and_is_named(studio: Any, samples: Any) -> None:
    with pytest.raises(DataUnusable, match=r"2 of 4 samples have no reference in 'edges': 'a/0.jpg', 'a/3.jpg'"):
        paired(studio, samples, beside(studio, samples, leave_out=("a/0.jpg", "a/3.jpg")))


def test_samples_without_reference_are_left_out_where_that_is_asked_for(studio: Any, samples: Any) -> None:
    references = beside(studio, samples, leave_out=("a/0.jpg",))

    one = paired(studio, samples, references, own_missing_reference="skip")

    (other,) = one.references
    assert [one.index.key(row) for row in range(3)] == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]
    assert [other.index.key(row) for row in range(3)] == ["a/1.png", "a/2.png", "a/3.png"]
    assert sorted(int(row) for bucket in one.buckets for row in bucket.rows) == [0, 1, 2]


def test_two_references_of_one_sample_are_refused(studio: Any, samples: Any) -> None:
    references = beside(studio, samples)
    references.add("a/0.webp", 64, 64)

    with pytest.raises(DataUnusable, match=r"several files for one sample: 'a/0.png', 'a/0.webp'"):
        paired(studio, samples, references)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([("photos", {"reference_sets": ("edge",)}), ("edges", {"role": "reference"})], "Did you mean 'edges'"),
        ([("photos", {"reference_sets": ("others",)}), ("others", {})], "there to be trained on"),
        ([("photos", {}), ("edges", {"role": "reference"})], "no data set names it"),
    ],
)
def test_names_that_lead_nowhere_are_refused(sets: list[tuple[str, dict[str, Any]]], message: str) -> None:
    with pytest.raises(DataUnusable, match=message):
        check_names([configured(name, **options) for name, options in sets])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "reference", "repeats": 2}, "repeats has no effect"),
        ({"role": "reference", "resolution": 512}, "resolution has no effect with pairing = 'strict'"),
        ({"pairing": "loose"}, "pairing = 'loose' has no effect"),
    ],
)
def test_options_that_references_do_not_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetOptions(url="file:x", **options)


def test_a_reference_that_cannot_be_decoded_takes_its_sample_along(studio: Any, samples: Any, store: Any) -> None:
    from st.data.cache.cache import Cache

    references = beside(studio, samples)
    one = paired(studio, samples, references, own_max_unreadable=0.5)
    references.files["a/1.png"] = b"no picture"

    encoded = studio.encoded(Cache(store), one)

    assert sorted(int(row) for bucket in encoded.sets[0].buckets for row in bucket.rows) == [0, 2, 3]


def test_a_batch_holds_the_references_of_its_samples(studio: Any, samples: Any, store: Any) -> None:
    from st.data.cache.cache import Cache
    from st.data.cache.mending import Mender
    from st.data.feed.batches import Assembler, Kept, fixed_batches
    from st.model.collate import pad_and_stack

    cache, references = Cache(store), beside(studio, samples)
    encoded = studio.encoded(cache, paired(studio, samples, references))
    mender = Mender(encoded.origins, cache, print)
    assembler = Assembler(encoded, Kept(cache, 1 << 20), pad_and_stack, seed=1, mender=mender, note=print)

    batches = list(fixed_batches(assembler, encoded.sets[0], range(4), 2))

    origins, (other,) = encoded.origins, encoded.sets[0].references
    shown = {
        key: tensor for batch in batches for key, tensor in zip(batch.keys, batch.extras["reference"], strict=True)
    }
    for row in range(4):
        entry = cache.get(origins.media(origins.references, other, row).key)
        assert entry is not None
        assert shown[f"a/{row}.jpg"].equal(entry["latents"])
