import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from st.data.backend import DataBackend
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.digest import digest_of
from st.data.sample import Media, Sample
from st.data.sets.memory import Memory
from st.data.sets.prepare import PreparedSet, keyed_each, prepare_set
from st.data.shape.rule import GeometryRule
from st.data.source.folder import FolderBackend, FolderOptions
from st.data.source.index import Listing
from st.data.store.store import Store
from st.errors import DataUnusable
from st.options import Options
from st.randomness import keyed
from st.report.console import NoConsole
from st.report.report import Report, ReportOptions

Transform = Callable[[Sample], Sample | None]


class Noting(Report):
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(ReportOptions(), None, NoConsole())
        self.notes: list[str] = []
        self.lost: list[tuple[str, str, str]] = []

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        self.notes.append(text)

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        self.lost.append((dataset, key, reason))


class Given(DataBackend):
    """Samples that a test gives."""

    def __init__(self, samples: list[Sample], unreadable: int = 0) -> None:
        super().__init__("given:", Options())
        self.given, self.number_unreadable = samples, unreadable

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        for number in range(self.number_unreadable):
            unreadable(f"bad{number}", "the file is empty")
        yield from self.given

    def read(self, key: str) -> bytes:
        return key.encode()


class Tabled(Given):
    """The same as one table."""

    def table(self, known: pa.Table | None, unreadable: Callable[[str, str], None]) -> Listing:
        rows = {
            "key": [sample.key for sample in self.given],
            "width": [sample.media.width for sample in self.given],
            "height": [sample.media.height for sample in self.given],
            "captions": [sample.captions for sample in self.given],
        }
        return Listing(pa.table(rows), ("a note",))


def sample(key: str, width: int = 512, height: int = 512, *captions: str) -> Sample:
    return Sample(key, Media("image", height, width), captions or ("a cat",))


def prepared(
    backend: DataBackend,
    report: Report | None = None,
    *,
    seed: int = 1,
    transforms: tuple[Transform, ...] = (),
    memory: Memory | None = None,
    **options: object,
) -> PreparedSet:
    settings = DatasetOptions.model_validate({"url": "x", "resolution": 512, **options})
    return prepare_set(
        DatasetConfig(settings, backend.options, "file"),
        backend,
        GeometryRule(),
        seed=seed,
        report=report or Report.silent(),
        transforms=transforms,
        memory=memory,
    )


def keys(one: PreparedSet) -> list[str]:
    return [one.index.key(row) for row in range(len(one.index))]


def test_every_sample_of_the_index_is_in_one_bucket() -> None:
    one = prepared(Given([sample("a"), sample("b", 900, 500), sample("c", 500, 900), sample("d")]))

    rows = np.sort(np.concatenate([bucket.rows for bucket in one.buckets]))
    assert rows.tolist() == [0, 1, 2, 3]
    for bucket in one.buckets:
        assert {one.index.fit(int(row)).geometry for row in bucket.rows} == {bucket.geometry}


def test_a_table_gives_what_its_samples_give() -> None:
    samples = [sample("a"), sample("b", 900, 500), sample("c", 500, 900, "x", "y")]
    report = Noting()

    from_table, from_samples = prepared(Tabled(samples), report), prepared(Given(samples))

    assert list(from_table.index.samples()) == list(from_samples.index.samples())
    assert [str(bucket.geometry) for bucket in from_table.buckets] == [str(b.geometry) for b in from_samples.buckets]
    assert report.notes[0] == "data set 'x': a note"


def test_everything_left_out_is_reported_by_name_and_reason() -> None:
    report = Noting()
    backend = Given([*map(sample, "abcdefghijklmnopqrstuvw"), sample("small", 100, 80), sample("long", 5000, 500)], 1)

    one = prepared(backend, report, minimum_size=256, max_aspect=3)

    assert report.lost == [
        ("x", "bad0", "unreadable: the file is empty"),
        ("x", "small", "too small: 100x80, minimum_size = 256"),
        ("x", "long", "wrong aspect: 5000x500 would be 1600x192"),
    ]
    assert one.dropped == {"unreadable": 1, "too small": 1, "wrong aspect": 1}
    assert report.notes[0] == "data set 'x': left out: 1 unreadable, 1 too small, 1 wrong aspect"


def test_too_many_unreadable_files_stop_the_run() -> None:
    with pytest.raises(DataUnusable) as caught:
        prepared(Given([sample("a"), sample("b")], unreadable=2))

    assert str(caught.value) == (
        "data set 'x': 2 of 4 files cannot be used, such as 'bad0' (the file is empty).\n"
        "  max_unreadable = 0.05 allows 0.\n"
        "  Repair or remove them (`st data check` lists all), or raise max_unreadable."
    )
    assert len(prepared(Given([sample("a"), sample("b")], unreadable=2), max_unreadable=0.5).index) == 2


def test_nothing_left_is_an_error_with_counts_and_examples() -> None:
    with pytest.raises(DataUnusable) as caught:
        prepared(Given([sample("a", 100, 100), sample("b", 90, 90)]), minimum_size=256)

    assert str(caught.value) == (
        "data set 'x': none of its 2 samples can be trained on.\n"
        "           2  too small, such as 'a' (100x100, minimum_size = 256)\n"
        "  Change the options that leave them out; `st data check` shows what each one does."
    )


def test_missing_captions_stop_are_empty_or_leave_the_sample_out() -> None:
    bare = [replace(sample(str(n)), captions=()) for n in range(12)]
    backend = Given([sample("with"), *bare])

    with pytest.raises(DataUnusable) as caught:
        prepared(backend)

    assert caught.value.what.startswith("data set 'x': 12 of 13 samples have no caption: '0', '1', '2',")
    assert caught.value.what.endswith("'9' ...")
    assert keys(prepared(backend, missing_caption="skip")) == ["with"]
    assert prepared(backend, missing_caption="empty").index.captions(3) == ("",)
    assert prepared(backend, instance_prompt="a cat").index.captions(3) == ("a cat",)


def test_transforms_edit_and_drop_samples_in_order() -> None:
    def shout(one: Sample) -> Sample:
        return replace(one, captions=tuple(caption.upper() for caption in one.captions), extras={"seen": one.key})

    def no_dogs(one: Sample) -> Sample | None:
        return None if "A DOG" in one.captions else one

    report = Noting()
    backend = Given([sample("a"), sample("b", 512, 512, "a dog"), sample("c")])

    one = prepared(backend, report, transforms=(shout, no_dogs))

    assert keys(one) == ["a", "c"]
    assert one.index.captions(1) == ("A CAT",)
    assert one.index.extras(1) == {"seen": "c"}
    assert report.lost == [("x", "b", "dropped by a plugin")]


def test_a_key_that_is_listed_twice_is_used_once() -> None:
    report = Noting()

    one = prepared(Given([sample("b"), sample("a"), sample("b"), sample("c")]), report)

    assert keys(one) == ["b", "a", "c"]
    assert report.lost == [("x", "b", "listed twice")]


def test_max_samples_is_the_same_subset_every_time() -> None:
    backend = Given([sample(f"{n:03}") for n in range(100)])

    first, second = (prepared(backend, seed=seed, max_samples=10) for seed in (1, 2))

    assert keys(first) == keys(second) == sorted(keys(first))
    assert len(first.index) == 10 and keys(first) != [f"{n:03}" for n in range(10)]
    assert first.dropped == {"not in max_samples": 90}


def test_a_crop_depends_on_seed_data_set_and_key_alone() -> None:
    options = {"crop": True, "resolution": 256}
    some = [sample(f"{n}", 2000, 600) for n in range(20)]

    alone = prepared(Given(some[7:8]), **options).index.fit(0)

    assert prepared(Given(some), **options).index.fit(7) == alone
    assert prepared(Given(some), seed=2, **options).index.fit(7) != alone
    assert prepared(Given(some), name="other", **options).index.fit(7) != alone


def test_draws_of_many_keys_are_those_of_each() -> None:
    names = ["a.jpg", "b/ä.png", ""]

    assert keyed_each(5, "crop/x/", names).tolist() == [keyed(5, 0, f"crop/x/{name}") for name in names]


def folder(root: Path, count: int = 3) -> FolderBackend:
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (number, 0, 0)).save(buffer, "PNG")
        (root / f"{number}.png").write_bytes(buffer.getvalue())
        (root / f"{number}.txt").write_text(f"number {number}")
    return FolderBackend(str(root), FolderOptions())


def test_a_second_start_knows_the_digests_of_the_first(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    backend = folder(data)
    config = DatasetConfig(DatasetOptions(url=str(data)), backend.options, "file")
    memory = Memory.of(Store.at(str(tmp_path / "cache")), config)
    first = prepared(backend, memory=memory)
    digests = [first.digest(row) for row in range(3)]
    first.save_digests()

    second = prepared(backend, memory=memory)

    assert digests == [digest_of((data / f"{n}.png").read_bytes()) for n in range(3)]
    assert [second.index.digest(row) for row in range(3)] == digests


def test_a_damaged_memory_is_named_and_made_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    backend, cache, notes = folder(data), Store.at(str(tmp_path / "cache")), list[str]()
    config = DatasetConfig(DatasetOptions(url=str(data)), backend.options, "file")
    memory = Memory.of(cache, config, notes.append)
    first = prepared(backend, memory=memory)
    for entry in list(cache.list()):
        written = bytearray(cache.read(entry.key))
        written[-200] ^= 4
        cache.write(entry.key, bytes(written))

    second = prepared(backend, memory=memory)

    assert second.index.table.equals(first.index.table)
    assert len(notes) == 1 and "is damaged" in notes[0]


def test_a_file_with_the_size_and_time_of_the_one_that_it_replaces_is_read_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    backend = folder(data)
    memory = Memory.of(
        Store.at(str(tmp_path / "cache")), DatasetConfig(DatasetOptions(url=str(data)), backend.options, "file")
    )
    first = prepared(backend, memory=memory)
    before = first.digest(0)
    first.save_digests()
    status, bytes_before = (data / "0.png").stat(), (data / "0.png").read_bytes()
    (data / "0.png").write_bytes(bytes_before.replace(b"IEND", b"IENX"))
    os.utime(data / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))

    second = prepared(backend, memory=memory)

    assert (data / "0.png").stat().st_mtime_ns == status.st_mtime_ns
    assert second.digest(0) != before


def test_digests_of_files_of_unknown_age_are_not_kept(tmp_path: Path) -> None:
    backend = Given([sample("a"), sample("b")])
    memory = Memory(Store.at(str(tmp_path)), "given")
    first = prepared(backend, memory=memory)
    first.digest(0)

    first.save_digests()

    known = memory.load("digests")
    assert known is not None and not len(known)


def test_data_sets_with_other_options_do_not_share_a_memory(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    options = DatasetOptions(url="photos")

    names = {
        Memory.of(store, DatasetConfig(options, FolderOptions(caption=caption), "file")).name
        for caption in ("textfile", "filename")
    }

    assert len(names) == 2


@pytest.mark.parametrize(("key", "size", "times"), [("dot.png", (8, 8), "64"), ("sliver.png", (4000, 2), "32")])
def test_a_tiny_picture_and_a_sliver_are_named_with_their_sizes(key: str, size: tuple[int, int], times: str) -> None:
    report = Noting()

    prepared(Given([sample("good.png"), sample(key, *size)]), report)

    (sentence,) = [note for note in report.notes if "enlarged" in note]
    assert "1 samples are enlarged to more than 4 times" in sentence
    assert f"'{key}' of {size[0]}x{size[1]} to {times} times" in sentence
