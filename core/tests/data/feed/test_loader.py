from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

from st.data.cache.cache import Cache
from st.data.feed.loader import Loader, LoaderOptions
from st.data.sets.words import Words
from st.data.shape.buckets import BatchShape
from st.data.store.store import Store
from st.diffusion.objective import Batch

Make = Callable[..., Loader]


@pytest.fixture
def make(studio: Any, store: Store, pictures: Any) -> Any:
    """A loader over ``pictures`` (and further sets); closed after the test."""
    loaders: list[Loader] = []

    def build(
        shape: BatchShape = BatchShape(2),  # noqa: B008
        rank: int = 0,
        sets: Any = None,
        report: Any = None,
        seed: int = 7,
        prefetch: int = 2,
        **options: Any,
    ) -> Loader:
        cache = Cache(store)
        encoded = studio.encoded(cache, *(sets or [studio.prepared(pictures, **options)]))
        loader = Loader(
            encoded,
            cache,
            studio.collate,
            shape,
            rank=rank,
            seed=seed,
            device=torch.device("cpu"),
            report=report or studio.Told(),
            options=LoaderOptions(prefetch=prefetch),
        )
        loaders.append(loader)
        return loader

    yield build
    for loader in loaders:
        loader.close()


def take(loader: Loader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def rows(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """Every sample in draw order with everything that it is trained on, as plain data."""
    found = []
    for batch in batches:
        for place in range(len(batch.keys)):
            mask = None if batch.mask is None else batch.mask[place].tolist()
            texts = {name: tensor[place].tolist() for name, tensor in batch.conditions.items()}
            extras = {name: tensor[place].tolist() for name, tensor in batch.extras.items()}
            latents = batch.latents[place].tolist()
            found.append((batch.indices[place], batch.keys[place], batch.dataset, latents, texts, extras, mask))
    return sorted(found, key=lambda row: row[0])


def without_masks(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Whether a batch has masks at all depends on all of its samples."""
    return [row[:-1] for row in found]


def test_batches_have_the_shapes_they_promise(make: Make) -> None:
    for batch in take(make(BatchShape(4)), 6):
        height, width = batch.latents.shape[-2:]
        assert batch.latents.shape == (4, 3, height, width)
        assert batch.latents.dtype == torch.bfloat16
        assert batch.conditions["text"].shape == (4, 16, 1)
        assert batch.extras.keys() == {"original_size", "crop", "target_size"}
        assert batch.extras["target_size"].tolist() == [[height * 8, width * 8]] * 4
        assert batch.mask is None or batch.mask.shape == (4, 1, height, width)


def test_the_original_size_is_that_of_the_file(make: Make, pictures: Any) -> None:
    sizes = {sample.key: [sample.media.height, sample.media.width] for sample in pictures.listed}

    for batch in take(make(BatchShape(2)), 6):
        assert batch.extras["original_size"].tolist() == [sizes[key] for key in batch.keys]


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing(make: Make, prefetch: int) -> None:
    assert rows(take(make(prefetch=prefetch), 20)) == rows(take(make(prefetch=2), 20))


@pytest.mark.parametrize("shape", [BatchShape(2, 2, 1), BatchShape(2, 1, 2), BatchShape(1, 4, 1)])
def test_ranks_batch_and_accumulation_train_on_the_same(make: Make, shape: BatchShape) -> None:
    expected = rows(take(make(BatchShape(4)), 12))

    found = [batch for rank in range(shape.ranks) for batch in take(make(shape, rank=rank), 12 * shape.accumulate)]

    assert without_masks(rows(found)) == without_masks(expected)


def test_masks_are_ones_where_only_others_have_one(make: Make, pictures: Any) -> None:
    masked = {one.key for one in pictures.listed if "mask" in one.extras}
    seen = set()

    for batch in take(make(BatchShape(2)), 40):
        has = [key in masked for key in batch.keys]
        seen.add(tuple(sorted(has)))
        if not any(has):
            assert batch.mask is None
            continue
        assert batch.mask is not None
        for mask, own in zip(batch.mask, has, strict=True):
            assert bool((mask == 1).all()) is not own
            assert 0 <= mask.min() <= mask.max() <= 1

    assert seen == {(False, False), (False, True), (True, True)}


def test_captions_are_dropped_as_often_as_asked(studio: Any, make: Make) -> None:
    loader = make(BatchShape(4), caption_dropout=0.25)

    texts = [studio.read_back(text) for batch in take(loader, 250) for text in batch.conditions["text"]]

    assert texts.count("") == 247


def test_no_dropout_means_none(studio: Any, make: Make) -> None:
    texts = [studio.read_back(t) for batch in take(make(caption_dropout=0), 60) for t in batch.conditions["text"]]

    assert "" not in texts


def test_every_caption_of_a_sample_is_drawn_and_only_its_own(studio: Any, make: Make, pictures: Any) -> None:
    captions = {one.key: set(one.captions) for one in pictures.listed}
    seen: dict[str, set[str]] = {}

    for batch in take(make(caption_dropout=0), 120):
        for key, text in zip(batch.keys, batch.conditions["text"], strict=True):
            seen.setdefault(key, set()).add(studio.read_back(text))

    assert seen == captions


def test_draws_depend_on_the_seed(make: Make) -> None:
    assert rows(take(make(seed=1), 10)) != rows(take(make(seed=2), 10))


@pytest.mark.parametrize("shape", [BatchShape(2), BatchShape(2, 1, 3)])
def test_training_goes_on_from_every_position(make: Make, shape: BatchShape) -> None:
    straight = make(shape)
    states = []
    batches = []
    for _ in range(15):
        states.append(json.loads(json.dumps(straight.state_dict())))
        batches.append(next(straight))

    resumed = make(shape)
    for consumed, state in enumerate(states):
        resumed.load_state_dict(state)
        assert resumed.samples == consumed * 2
        assert rows(take(resumed, 15 - consumed)) == rows(batches[consumed:])


def test_training_goes_on_with_another_number_of_ranks(studio: Any, make: Make) -> None:
    expected = rows(take(make(BatchShape(4)), 10))
    before = make(BatchShape(1, 2, 2), rank=1)
    take(before, 2 * 4)

    report = studio.Told()
    found = []
    for rank in range(4):
        after = make(BatchShape(1, 4, 1), rank=rank, report=report)
        after.load_state_dict(before.state_dict())
        found += take(after, 6)

    assert without_masks(rows(found)) == without_masks(expected[16:])
    assert report.notes == []


def test_a_saved_position_does_not_count_what_is_prepared_ahead(make: Make) -> None:
    loader = make(prefetch=5)

    take(loader, 3)

    assert loader.samples == 6
    assert loader.state_dict()["samples"] == 6


def test_another_step_size_is_noted(studio: Any, make: Make) -> None:
    before, report = make(BatchShape(2)), studio.Told()
    take(before, 3)

    after = make(BatchShape(4), report=report)
    after.load_state_dict(before.state_dict())

    assert after.samples == 6
    assert "a step now has 4 samples instead of 2" in report.notes[0]


def test_epochs_are_counted_when_their_last_batch_is_handed_out(make: Make) -> None:
    loader = make(BatchShape(2, 1, 2))

    epochs = [(next(loader), loader.epoch)[1] for _ in range(20)]

    assert loader.steps_per_epoch == 5
    assert epochs == [0] * 9 + [1] * 10 + [2]
    assert (loader.steps(1), loader.steps(2.5)) == (5, 12)


def test_no_sample_is_dropped_in_an_epoch(make: Make, pictures: Any) -> None:
    loader = make(BatchShape(3), repeats=1)

    counts = Counter(key for batch in take(loader, loader.steps_per_epoch) for key in batch.keys)

    assert all(counts[one.key] >= 2 for one in pictures.listed)


def test_evaluation_batches_are_always_the_same_and_leave_training_alone(
    studio: Any, make: Make, pictures: Any
) -> None:
    held_out = studio.Pictures()
    for number in range(7):
        held_out.add(f"e{number}.png", 64, 64 if number < 5 else 192, f"first {number}", "second")
    sets = [studio.prepared(pictures), studio.prepared(held_out, name="held out", role="evaluation", caption_dropout=1)]
    plain, loader = make(sets=sets), make(sets=sets)

    first = {name: list(batches) for name, batches in loader.evaluation(range).items()}
    take(loader, 3)
    second = {name: list(batches) for name, batches in loader.evaluation(range).items()}
    some = [key for batch in loader.evaluation(lambda length: (0, length - 1))["held out"] for key in batch.keys]

    assert list(first) == ["held out"]
    assert rows(first["held out"]) == rows(second["held out"])
    assert sorted(key for batch in first["held out"] for key in batch.keys) == [f"e{number}.png" for number in range(7)]
    for batch in first["held out"]:
        texts = [studio.read_back(text) for text in batch.conditions["text"]]
        assert texts == [f"first {key[1]}" for key in batch.keys]
    assert sorted(some) == ["e0.png", "e6.png"]
    assert rows(take(plain, 5))[6:] == rows(take(loader, 2))


def test_encodings_are_those_of_the_text_encoders(make: Make) -> None:
    words = Words("picture 3")

    assert make().encodings([words])[words]["text"].shape == (11, 1)


def spoil(store: Store) -> None:
    for path in (Path(store.root) / "shards").iterdir():
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)


def test_an_entry_found_damaged_in_training_is_encoded_again_and_never_trained_on(
    studio: Any, make: Make, store: Store
) -> None:
    expected = rows(take(make(), 30))
    spoil(store)
    report = studio.Told()

    found = rows(take(make(report=report), 30))

    assert found == expected
    # The third is a mask: those are read before training.
    assert sum("is encoded again" in note for note in report.notes) == 2


def test_a_sample_that_cannot_be_encoded_again_gives_way_to_another(
    studio: Any, make: Make, store: Store, pictures: Any
) -> None:
    one = studio.prepared(pictures)
    take(make(sets=[one]), 1)
    spoil(store)
    report = studio.Told()
    gone = {"08.png", "13.png"}
    loader = make(sets=[one], report=report)
    pictures.files = {key: data for key, data in pictures.files.items() if key not in gone}

    batches = take(loader, 40)

    assert any("takes its place" in note for note in report.notes)
    assert [index for batch in batches for index in batch.indices] == list(range(80))


def test_a_loader_that_is_closed_can_be_closed_again(make: Make) -> None:
    loader = make()
    take(loader, 1)

    loader.close()
    loader.close()


class Far(Store):
    """A store that takes its time for each request, and says how many it had at once."""

    is_local = False

    def __init__(self, near: Store) -> None:
        super().__init__(near.filesystem, near.root)
        self.lock, self.busy, self.most = Lock(), 0, 0

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        with self.lock:
            self.busy -= 1
        return super().read_range(key, start, length)


def test_entries_of_a_batch_come_from_far_away_side_by_side(
    make: Make, studio: Any, store: Store, pictures: Any
) -> None:
    expected = rows(take(make(BatchShape(4)), 6))
    cache = Cache(far := Far(store))
    found = studio.encoded(cache, studio.prepared(pictures))

    loader = Loader(
        found,
        cache,
        studio.collate,
        BatchShape(4),
        rank=0,
        seed=7,
        device=torch.device("cpu"),
        report=studio.Told(),
        options=LoaderOptions(prefetch=0),
    )

    assert rows(take(loader, 6)) == expected
    assert far.most >= 4
    loader.close()
