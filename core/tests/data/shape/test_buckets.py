import numpy as np
import pytest

from st.data.dataset import DatasetOptions
from st.data.geometry import Geometry
from st.data.shape.buckets import BatchShape, Bucket, assign, check_batches
from st.data.shape.fitting import Fits
from st.errors import DataUnusable


def made(sizes: list[tuple[int, int]]) -> Fits:
    fits = Fits.empty(len(sizes))
    fits.width[:], fits.height[:] = np.array(sizes).T
    fits.frames[:] = 1
    return fits


def bucket(count: int, width: int = 512, height: int = 512) -> Bucket:
    return Bucket(Geometry(height, width), width / height, np.arange(count))


def test_members_of_a_bucket_share_one_size() -> None:
    buckets = assign(made([(512, 512), (640, 448), (512, 512), (448, 640)]), np.ones(4, np.int32))

    assert [(str(one.geometry), one.aspect, one.rows.tolist()) for one in buckets] == [
        ("640x448", 1.43, [1]),
        ("512x512", 1.0, [0, 2]),
        ("448x640", 0.7, [3]),
    ]


def test_sizes_of_equal_aspect_are_different_buckets() -> None:
    buckets = assign(made([(512, 512), (576, 576)]), np.ones(2, np.int32))

    assert [one.aspect for one in buckets] == [1.0, 1.0]
    assert [one.rows.tolist() for one in buckets] == [[0], [1]]


def test_a_sample_with_several_passes_is_in_its_bucket_as_often() -> None:
    (one,) = assign(made([(512, 512)] * 3), np.array([1, 3, 2], np.int32))

    assert one.rows.tolist() == [0, 1, 1, 1, 2, 2]


def test_a_bucket_smaller_than_a_batch_is_refused_with_every_number_and_a_remedy() -> None:
    buckets = [bucket(100), bucket(3, 640, 448)]

    with pytest.raises(DataUnusable) as caught:
        check_batches("photos", DatasetOptions(url="photos"), buckets, BatchShape(4, 2, 3))

    assert str(caught.value) == (
        "data set 'photos': 1 bucket has too few samples to fill a batch.\n"
        "         640x448  aspect 1.4285714285714286  3 samples\n"
        "  A batch takes 8 samples of one bucket: batch = 4 on 2 ranks (accumulate = 3, 24 in all); repeats = 0.\n"
        "  Set repeats = 2, a smaller batch, fewer ranks, oversubscribe = true to show samples again, "
        "or crop = true for fewer shapes."
    )


def test_accumulation_does_not_have_to_be_filled_by_one_bucket() -> None:
    check_batches("photos", DatasetOptions(url="photos"), [bucket(4)], BatchShape(batch=4, accumulate=16))


def test_enough_repeats_or_oversubscribe_fill_a_batch() -> None:
    check_batches("photos", DatasetOptions(url="photos", repeats=2), [bucket(3)], BatchShape(8))
    check_batches("photos", DatasetOptions(url="photos", oversubscribe=True), [bucket(3)], BatchShape(8))


def test_oversubscribe_does_not_change_repeats_that_were_set() -> None:
    with pytest.raises(DataUnusable, match="oversubscribe does not change repeats that were set"):
        check_batches("p", DatasetOptions(url="p", oversubscribe=True, repeats=1), [bucket(3)], BatchShape(8))
