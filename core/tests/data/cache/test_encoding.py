from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from st.data.cache import encoding as module
from st.data.cache import sharing
from st.data.cache.cache import Cache
from st.data.cache.sharing import owners
from st.data.store.store import Store
from st.errors import DataUnusable, OutOfMemory, StError


def damage(store: Store, position: int = -5) -> None:
    """Flip a bit in the last entry of every shard."""
    for path in (Path(store.root) / "shards").iterdir():
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)


def latents_of(encoded: Any, cache: Cache, row: int) -> torch.Tensor:
    one, origins = encoded.sets[0], encoded.origins
    entry = cache.get(origins.media(origins.codec, one, row).key)
    assert entry is not None
    return entry["latents"]


def test_every_sample_and_caption_is_encoded_once(studio: Any, store: Store, pictures: Any) -> None:
    pictures_seen, texts_seen = studio.Diary(), studio.Diary()
    cache = Cache(store)

    found = studio.encoded(
        cache,
        studio.prepared(pictures),
        codec=studio.PoolingCodec(pictures_seen),
        text=studio.Letters(texts_seen),
        prompts=["a prompt", "picture 3"],
    )

    expected = {"", "a prompt", *(caption for one in pictures.listed for caption in one.captions)}
    assert Counter(pictures_seen.keys) == Counter(one.key for one in pictures.listed)
    assert Counter(texts_seen.keys) == Counter(expected)
    assert pictures_seen.opened == ["pooling"]
    assert all(latents_of(found, cache, row).dtype == torch.bfloat16 for row in range(14))


def test_a_full_cache_loads_no_encoder_and_decodes_nothing(studio: Any, store: Store, pictures: Any) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    diary = studio.Diary()

    studio.encoded(
        Cache(store), studio.prepared(pictures), codec=studio.PoolingCodec(diary), text=studio.Letters(diary)
    )

    assert diary.opened == []


def test_known_digests_spare_reading_the_files(studio: Any, store: Store, pictures: Any) -> None:
    one = studio.prepared(pictures)
    studio.encoded(Cache(store), one)
    read: list[str] = []
    pictures.read = lambda key: read.append(key) or pictures.files[key]

    studio.encoded(Cache(store), one)

    assert all(key.startswith("mask:") for key in read)


def test_batches_hold_one_geometry(studio: Any, store: Store, pictures: Any) -> None:
    diary = studio.Diary()

    studio.encoded(Cache(store), studio.prepared(pictures), codec=studio.PoolingCodec(diary), batch=4)

    assert diary.sizes == [4, 4, 1, 4, 1]


def test_a_moved_picture_keeps_its_entry_and_a_changed_one_does_not(studio: Any, store: Store, pictures: Any) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    pictures.files["00.png"], pictures.files["01.png"] = pictures.files["01.png"], pictures.files["00.png"]
    pictures.files["02.png"] = studio.png(99, 64, 64)
    diary = studio.Diary()

    studio.encoded(Cache(store), studio.prepared(pictures), codec=studio.PoolingCodec(diary))

    assert diary.keys == ["02.png"]


@pytest.mark.parametrize("change", ["fingerprint", "resolution"])
def test_another_encoder_or_size_encodes_anew(studio: Any, store: Store, pictures: Any, change: str) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    diary = studio.Diary()

    studio.encoded(
        Cache(store),
        studio.prepared(pictures, resolution=32 if change == "resolution" else 64),
        codec=studio.PoolingCodec(diary, fingerprint="2" if change == "fingerprint" else "1"),
    )

    assert len(diary.keys) == 14


def test_memory_that_does_not_suffice_halves_the_batch(studio: Any, store: Store, pictures: Any) -> None:
    diary, cache = studio.Diary(), Cache(store)

    found = studio.encoded(cache, studio.prepared(pictures), codec=studio.PoolingCodec(diary, most=2), batch=8)

    assert max(diary.sizes) == 2
    assert len(found.sets[0].buckets[0].rows) + len(found.sets[0].buckets[1].rows) == 14
    assert all(latents_of(found, cache, row) is not None for row in range(14))


def test_one_sample_that_does_not_fit_says_what_to_do(studio: Any, store: Store, pictures: Any) -> None:
    with pytest.raises(OutOfMemory, match=r"'pooling' runs out of memory on '00\.png' alone") as caught:
        studio.encoded(Cache(store), studio.prepared(pictures), codec=studio.PoolingCodec(studio.Diary(), most=0))

    assert caught.value.exit_code == 3
    assert "smaller resolution" in caught.value.fix


def test_a_sample_that_gives_no_number_counts_as_unreadable(studio: Any, store: Store, pictures: Any) -> None:
    codec, report = studio.PoolingCodec(studio.Diary(), spoiled="03.png"), studio.Told()

    found = studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=0.1), codec=codec, report=report)

    assert 3 not in {int(row) for bucket in found.sets[0].buckets for row in bucket.rows}
    assert report.drops == [("pictures", "03.png", report.drops[0][2])]
    assert "gives NaN or infinity" in report.drops[0][2]
    assert any("'03.png': encoder 'pooling' gives NaN" in note for note in report.notes)
    with pytest.raises(
        DataUnusable, match=r"1 of 14 files cannot be used, such as '03\.png' \(encoder 'pooling' gives"
    ):
        studio.encoded(Cache(store), studio.prepared(pictures), codec=codec)


def test_a_sample_that_an_encoder_fails_on_costs_no_other(studio: Any, store: Store, pictures: Any) -> None:
    codec, report = studio.PoolingCodec(studio.Diary()), studio.Told()
    codec.diary.keys = Refusing("05.png")

    found = studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=0.1), codec=codec, report=report)

    assert sum(len(bucket) for bucket in found.sets[0].buckets) == 13
    assert [key for _, key, _ in report.drops] == ["05.png"]
    assert "ZeroDivisionError: of all things" in report.drops[0][2]


def test_an_encoder_that_fails_on_everything_is_at_fault_itself(studio: Any, store: Store, pictures: Any) -> None:
    codec = studio.PoolingCodec(studio.Diary())
    codec.diary.keys = Refusing("")

    with pytest.raises(StError, match=r"encoder 'pooling' failed on '\d\d\.png': ZeroDivisionError: of all things"):
        studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=1.0), codec=codec)


def test_a_caption_that_gives_no_number_is_named(studio: Any, store: Store, pictures: Any) -> None:
    text = studio.Letters(studio.Diary())
    text.diary.keys = Refusing("picture 7")

    with pytest.raises(StError, match="encoder 'letters' failed on 'picture 7'"):
        studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=1.0), text=text)


class Refusing(list[str]):
    """A list that cannot be added to what names a key; every key where it is empty."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def __iadd__(self, keys: Any) -> Any:
        if not self.key or self.key in keys:
            raise ZeroDivisionError("of all things")
        return super().__iadd__(keys)


def test_an_unreadable_picture_is_left_out_and_reported(studio: Any, store: Store, pictures: Any) -> None:
    pictures.files["05.png"] = pictures.files["05.png"][:100]
    report = studio.Told()

    found = studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=0.1), report=report)

    rows = [row for bucket in found.sets[0].buckets for row in bucket.rows]
    assert sorted(rows) == [0, 1, 2, 3, 4, *range(6, 14)]
    ((name, key, reason),) = report.drops
    assert (name, key) == ("pictures", "05.png")
    assert "cannot be decoded" in reason or "truncated" in reason
    assert any("1 samples ('05.png': " in note for note in report.notes)


def test_too_many_unreadable_pictures_stop_the_run(studio: Any, store: Store, pictures: Any) -> None:
    del pictures.files["05.png"]

    with pytest.raises(DataUnusable, match=r"1 of 14 files cannot be used, such as '05\.png'"):
        studio.encoded(Cache(store), studio.prepared(pictures))


def test_masks_are_means_over_each_latent(studio: Any, store: Store, pictures: Any) -> None:
    cache = Cache(store)

    found = studio.encoded(cache, studio.prepared(pictures))

    one, row = found.sets[0], 3
    origin = found.origins.mask(one, row, 8, 8)
    entry = cache.get(origin.key)
    whole = np.array(Image.open(io.BytesIO(pictures.files["mask:03.png"])), np.float64)
    expected = whole.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert entry is not None
    assert entry["mask"].shape == (8, 8)
    assert np.abs(entry["mask"].numpy() - expected).max() <= 0.51
    assert found.origins.mask(one, 1, 8, 8) is None


def test_an_unreadable_mask_leaves_its_picture_out(studio: Any, store: Store, pictures: Any) -> None:
    pictures.files["mask:03.png"] = b"not a picture"
    report = studio.Told()

    found = studio.encoded(Cache(store), studio.prepared(pictures, max_unreadable=0.1), report=report)

    assert 3 not in {int(row) for bucket in found.sets[0].buckets for row in bucket.rows}
    assert report.drops[0][1] == "03.png"
    assert report.drops[0][2].startswith("its mask: ")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_work_and_see_each_others(studio: Any, store: Store, pictures: Any, ranks: int) -> None:
    pictures.files["05.png"] = b""
    twin = pictures.files["01.png"]
    pictures.add("twin.png", 64, 64, "picture 1")
    pictures.files["twin.png"] = twin
    listed = pictures.listed[-1]
    pictures.listed[-1] = type(listed)(listed.key, listed.media, listed.captions, {}, len(twin), 1.0)
    diary, reports = studio.Diary(), [studio.Told() for _ in range(ranks)]

    def work(rank: Any) -> Any:
        cache = Cache(store)
        found = studio.encoded(
            cache,
            studio.prepared(pictures, max_unreadable=0.1),
            codec=studio.PoolingCodec(diary),
            text=studio.Letters(diary),
            ranks=rank,
            batch=1,
            report=reports[rank.rank],
        )
        rows = [int(row) for bucket in found.sets[0].buckets for row in bucket.rows]
        return rows, [latents_of(found, cache, row) for row in rows], found.origins.masks

    answers = studio.in_ranks(ranks, work)

    encoded = Counter(diary.keys)
    assert encoded["01.png"] + encoded["twin.png"] == 1
    assert max(encoded.values()) == 1
    assert all(rows == answers[0][0] and masks == answers[0][2] for rows, _, masks in answers)
    assert sorted(answers[0][0]) == [0, 1, 2, 3, 4, *range(6, 15)]
    assert all(report.drops[0][1:] == reports[0].drops[0][1:] for report in reports)
    assert not list(store.list("digests/"))


def test_a_damaged_entry_is_encoded_again_and_reported(studio: Any, store: Store, pictures: Any) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    damage(store)
    diary, report = studio.Diary(), studio.Told()

    cache = Cache(store, note=report.note)
    studio.encoded(cache, studio.prepared(pictures), codec=studio.PoolingCodec(diary), verify="start", report=report)

    assert len(diary.keys) == 1
    assert sum("damaged" in note for note in report.notes) == 3
    assert all(damaged == 0 for _, entries, damaged in Cache(store).verify() if entries == 1)


def test_verifying_at_the_start_reads_every_file_again(studio: Any, store: Store, pictures: Any) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    one = studio.prepared(pictures)
    for row in range(len(one.index)):
        one.digest(row)
    pictures.files["03.png"] = pictures.files["03.png"][:-1] + b"x"
    diary = studio.Diary()

    studio.encoded(Cache(store), one, codec=studio.PoolingCodec(diary), verify="start")

    assert diary.keys == ["03.png"]


def test_a_shard_cut_short_is_encoded_again_and_reported(studio: Any, store: Store, pictures: Any) -> None:
    studio.encoded(Cache(store), studio.prepared(pictures))
    for path in (Path(store.root) / "shards").iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    diary, report = studio.Diary(), studio.Told()

    cache = Cache(store, note=report.note)
    found = studio.encoded(cache, studio.prepared(pictures), codec=studio.PoolingCodec(diary), report=report)

    assert 0 < len(diary.keys) < 14
    assert any("cut short" in note for note in report.notes)
    assert all(latents_of(found, cache, row) is not None for row in range(14))


def test_files_of_one_size_have_one_owner_unless_there_are_too_many() -> None:
    mixed = np.array([5, 7, 5, 9, 7, 11, 13, 15] * 2)
    equal = np.full(1000, 42)

    by_size = owners(mixed, 4)
    dealt = owners(equal, 4)

    assert all(len(set(by_size[mixed == size])) == 1 for size in set(mixed.tolist()))
    assert np.bincount(dealt).tolist() == [250] * 4
    assert owners(mixed, 1).tolist() == [0] * 16


def test_an_encoder_of_captions_is_given_the_longest_first(studio: Any, store: Store) -> None:
    backend, diary = studio.Pictures(), studio.Diary()
    for number in range(6):
        backend.add(f"{number}.png", 64, 64, "x" * (number * 7 % 6 + 1))

    studio.encoded(Cache(store), studio.prepared(backend), text=studio.Letters(diary))

    assert diary.keys == sorted(diary.keys, key=len, reverse=True)


def test_captions_are_gone_through_a_part_at_a_time(
    studio: Any, store: Store, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(sharing, "SORTED", 4)
    diary = studio.Diary()
    one = studio.prepared(pictures)

    studio.encoded(Cache(store), one, text=studio.Letters(diary), prompts=["picture 1", "a prompt"])

    assert sorted(diary.keys) == sorted({"", "a prompt", *one.index.distinct_captions()})
    assert [len(text) for text in diary.keys[:4]] == sorted((len(text) for text in diary.keys[:4]), reverse=True)
    diary.keys.clear()
    studio.encoded(Cache(store), one, text=studio.Letters(diary), prompts=["picture 1", "another"])
    assert diary.keys == ["another"]


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (0, "2 masks are black wherever their picture is trained on, such as that of 'a.png'"),
        (255, "all 2 masks are white"),
    ],
)
def test_masks_that_do_nothing_are_said(studio: Any, store: Store, level: int, said: str) -> None:
    backend = studio.Pictures()
    for name in ("a.png", "b.png"):
        backend.add(name, 64, 64, "x", mask=True)
        file = io.BytesIO()
        Image.new("L", (64, 64), level).save(file, "PNG")
        backend.files[f"mask:{name}"] = file.getvalue()

    for _ in range(2):
        report = studio.Told()
        studio.encoded(Cache(store), studio.prepared(backend), report=report)
        assert [note for note in report.notes if said in note]
