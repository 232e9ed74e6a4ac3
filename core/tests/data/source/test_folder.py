import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from st.data.sample import Sample
from st.data.source import scan as module
from st.data.source.folder import FolderBackend, FolderOptions
from st.data.source.index import Index
from st.data.store.store import Store
from st.errors import DataUnusable, SampleUnreadable


def picture(path: Path, size: tuple[int, int] = (40, 30), kind: str = "JPEG", caption: str | None = "a cat") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    path.write_bytes(buffer.getvalue())
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def samples(root: Path | str, **options: object) -> tuple[list[Sample], list[tuple[str, str]]]:
    unreadable: list[tuple[str, str]] = []
    backend = FolderBackend(str(root), FolderOptions.model_validate(options))
    return list(backend.samples(lambda key, reason: unreadable.append((key, reason)))), unreadable


def keys(root: Path, **options: object) -> list[str]:
    return [sample.key for sample in samples(root, **options)[0]]


def notes(root: Path, **options: object) -> tuple[str, ...]:
    return FolderBackend(str(root), FolderOptions.model_validate(options)).table(None, lambda key, reason: None).notes


def test_pictures_of_all_folders_are_samples_sorted_by_key(tmp_path: Path) -> None:
    for name in ("b/c.jpg", "a.JPG", "b.jpeg", "z.png"):
        picture(tmp_path / name)

    found, unreadable = samples(tmp_path)

    assert [sample.key for sample in found] == ["a.JPG", "b.jpeg", "b/c.jpg", "z.png"]
    assert not unreadable
    first = found[0]
    assert (first.media.width, first.media.height, first.captions) == (40, 30, ("a cat",))
    assert first.size_bytes == (tmp_path / "a.JPG").stat().st_size
    assert first.modified == (tmp_path / "a.JPG").stat().st_mtime


def test_every_file_of_a_long_listing_is_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    for number in range(11):
        picture(tmp_path / f"{number:02}.jpg", caption=f"number {number}")

    found, _ = samples(tmp_path)

    assert [sample.captions for sample in found] == [(f"number {number}",) for number in range(11)]


def test_hidden_and_system_folders_are_not_searched(tmp_path: Path) -> None:
    for name in (".cache/a.jpg", "__MACOSX/b.jpg", "x/@eaDir/c.jpg", ".d.jpg", "x/e.jpg"):
        picture(tmp_path / name)

    assert keys(tmp_path) == ["x/e.jpg"]


def test_each_line_of_a_text_file_is_a_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption="a cat\n\none cat\n")

    assert samples(tmp_path)[0][0].captions == ("a cat", "one cat")
    assert samples(tmp_path, multiline=True)[0][0].captions == ("a cat\n\none cat",)


def test_captions_come_from_where_the_options_say(tmp_path: Path) -> None:
    picture(tmp_path / "a_red_cat.jpg", caption="text")
    (tmp_path / "a_red_cat.caption").write_text("other")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a_red_cat.jpg", "text": ["x", "y"]}))

    def captions(**options: object) -> tuple[str, ...]:
        return samples(tmp_path, **options)[0][0].captions

    assert captions() == ("text",)
    assert captions(caption_extension=".caption") == ("other",)
    assert captions(caption="filename") == ("a red cat",)
    assert captions(caption="jsonl") == ("x", "y")
    assert captions(caption="none") == ()


def test_folder_names_give_passes_and_captions(tmp_path: Path) -> None:
    picture(tmp_path / "10_sks cat" / "a.jpg", caption=None)
    picture(tmp_path / "10_sks cat" / "b.jpg", caption="own words")
    picture(tmp_path / "c.jpg", caption=None)
    backend = FolderBackend(str(tmp_path), FolderOptions(caption="folder"))

    index = Index.from_table(backend.table(None, lambda key, reason: None).table)

    assert [index.captions(row) for row in range(3)] == [("sks cat",), ("own words",), ()]
    assert index.passes().tolist() == [10, 10, 1]


def test_numbers_in_folder_names_mean_nothing_unless_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "2024_holiday" / "a.jpg")
    backend = FolderBackend(str(tmp_path), FolderOptions())

    index = Index.from_table(backend.table(None, lambda key, reason: None).table)

    assert index.passes().tolist() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl:1 is not JSON"),
        ('{"text": "a"}', "metadata.jsonl:1 has no 'file_name'"),
        ('{"file_name": "a.jpg", "text": true}', "metadata.jsonl:1: the caption of 'a.jpg' is True, not a text"),
    ],
)
def test_a_caption_list_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "metadata.jsonl").write_text(line)

    with pytest.raises(DataUnusable, match=message):
        samples(tmp_path, caption="jsonl")


def test_a_missing_caption_list_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")

    with pytest.raises(DataUnusable, match=r"has no caption list 'metadata\.jsonl'"):
        samples(tmp_path, caption="jsonl")


def test_masks_pair_by_path_without_extension(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "x" / "a.jpg")
    picture(tmp_path / "masks" / "x" / "a.png", kind="PNG", caption=None)
    backend = FolderBackend(str(tmp_path / "data"), FolderOptions(masks=str(tmp_path / "masks")))

    (sample,) = backend.samples(lambda key, reason: None)

    assert sample.extras == {"mask": "mask:x/a.png"}
    assert backend.read("mask:x/a.png") == (tmp_path / "masks" / "x" / "a.png").read_bytes()


def test_masks_inside_the_data_set_are_no_samples(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "masks" / "a.png", caption=None)

    assert keys(tmp_path, masks=str(tmp_path / "masks")) == ["a.jpg"]


def test_a_missing_mask_stops_is_left_out_or_is_done_without(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "data" / name)
    picture(tmp_path / "masks" / "a.png", caption=None)
    masks = str(tmp_path / "masks")

    with pytest.raises(DataUnusable, match=r"1 of 2 pictures have no mask: 'b\.jpg'"):
        samples(tmp_path / "data", masks=masks)

    assert keys(tmp_path / "data", masks=masks, missing_companion="skip") == ["a.jpg"]
    assert keys(tmp_path / "data", masks=masks, missing_companion="keep") == ["a.jpg", "b.jpg"]
    assert "they are left out" in notes(tmp_path / "data", masks=masks, missing_companion="skip")[0]


def test_pictures_of_one_name_are_two_samples_that_share_a_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    picture(tmp_path / "a.png", kind="PNG", caption="shared")

    found, _ = samples(tmp_path)

    assert [(sample.key, sample.captions) for sample in found] == [("a.jpg", ("shared",)), ("a.png", ("shared",))]
    assert notes(tmp_path) == (
        "names that several pictures share: 1, such as 'a.jpg' and 'a.png'; each picture is a sample, "
        "and a caption file of that name is for all of them",
    )


def test_a_mislabelled_picture_is_used_and_noted(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", kind="PNG")

    assert keys(tmp_path) == ["a.jpg"]
    assert notes(tmp_path) == ("files of another format than their names say: 1, such as 'a.jpg'; used as they are",)


def test_unreadable_files_are_named_with_their_reasons(tmp_path: Path) -> None:
    picture(tmp_path / "good.jpg")
    picture(tmp_path / "latin.jpg")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "short.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:50])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")

    found, unreadable = samples(tmp_path)

    assert [sample.key for sample in found] == ["good.jpg"]
    assert unreadable == [
        ("empty.jpg", "the file is empty"),
        ("latin.jpg", "its caption is not UTF-8 (byte 0xe9 at position 3)"),
        ("link.jpg", "the file, or its caption, is gone or a link to nothing"),
        ("short.jpg", "the file is cut short after 50 bytes"),
        ("text.jpg", "not a picture (it begins with b'not a pi')"),
    ]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnusable) as caught:
        samples(tmp_path)

    assert caught.value.what == f"{str(tmp_path)!r} holds no pictures."
    assert caught.value.why == "The folder is empty."


def test_a_folder_of_text_is_refused_with_what_is_there(tmp_path: Path) -> None:
    for name in ("a.txt", "b.TXT", "notes.md", "README"):
        (tmp_path / name).write_text("words")

    with pytest.raises(DataUnusable) as caught:
        samples(tmp_path)

    assert caught.value.why == "Found 2 .txt, 1 .md, 1 without extension."


def test_a_folder_that_does_not_exist_is_named_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataUnusable) as caught:
        samples("file:photos")

    assert caught.value.what == "folder 'file:photos' does not exist."
    assert caught.value.why == f"Looked for {str(tmp_path / 'photos')!r}."


def test_reading_what_is_gone_names_the_sample(tmp_path: Path) -> None:
    backend = FolderBackend(str(tmp_path), FolderOptions())

    with pytest.raises(SampleUnreadable, match=r"'a\.jpg' cannot be used: the file is gone"):
        backend.read("a.jpg")


def test_a_store_in_memory_is_a_data_set_as_well(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    url = f"memory://{tmp_path.name}"
    for name in ("a.jpg", "a.txt"):
        Store.at(url).write(f"sub/{name}", (tmp_path / name).read_bytes())

    found, unreadable = samples(url)

    assert [(sample.key, sample.captions) for sample in found] == [("sub/a.jpg", ("a cat",))]
    assert not unreadable


class Counting(Store):
    """A store that counts what is read of it."""

    reads = 0

    def read(self, key: str) -> bytes:
        self.reads += 1
        return super().read(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.reads += 1
        return super().read_range(key, start, length)


class CountingBackend(FolderBackend):
    def store_at(self, url: str) -> Store:
        plain = Store.at(url)
        return Counting(plain.filesystem, plain.root)


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.jpg", caption=name)
    first = FolderBackend(str(tmp_path), FolderOptions()).table(None, lambda key, reason: None).table
    (tmp_path / "b.txt").write_text("changed")
    (tmp_path / "c.jpg").unlink()
    picture(tmp_path / "d.jpg", size=(10, 20))
    backend = CountingBackend(str(tmp_path), FolderOptions())

    again = backend.table(first, lambda key, reason: None).table

    fresh = FolderBackend(str(tmp_path), FolderOptions()).table(None, lambda key, reason: None).table
    assert again.equals(fresh)
    assert again["key"].to_pylist() == ["a.jpg", "b.jpg", "d.jpg"]
    assert isinstance(backend.store, Counting) and backend.store.reads == 4


def test_an_unchanged_folder_is_only_listed(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    backend = CountingBackend(str(tmp_path), FolderOptions())
    first = backend.table(None, lambda key, reason: None).table
    reads = backend.store.reads if isinstance(backend.store, Counting) else -1

    again = backend.table(first, lambda key, reason: None).table

    assert again.equals(first)
    assert isinstance(backend.store, Counting) and backend.store.reads == reads == 2


@pytest.mark.parametrize("name", ["pipe.jpg", "a.txt"])
def test_a_pipe_among_the_files_is_named_and_not_waited_for(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    os.mkfifo(tmp_path / name)

    _, unreadable = samples(tmp_path)

    assert [key for key, _ in unreadable] == ["pipe.jpg" if name == "pipe.jpg" else "a.jpg"]
    assert "is a pipe" in unreadable[0][1]


def test_a_pipe_in_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")

    with pytest.raises(SampleUnreadable, match="it is a pipe"):
        FolderBackend(str(tmp_path), FolderOptions(media="video")).open("a.mp4")


def test_names_that_are_no_text_are_left_out_and_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    with open(os.fsencode(tmp_path) + b"/b\xff.jpg", "wb") as file:
        file.write((tmp_path / "a.jpg").read_bytes())

    assert keys(tmp_path) == ["a.jpg"]
    assert notes(tmp_path) == ("files whose names are not UTF-8: 1, such as 'b\\udcff.jpg'; they are left out",)


def test_names_in_a_list_may_be_spelled_in_another_way(tmp_path: Path) -> None:
    names = {"sub/a.jpg": "sub\\\\a.jpg", "b.jpg": "./b.jpg", "caf\u00e9.jpg": "cafe\u0301.jpg"}
    for key in names:
        picture(tmp_path / key, caption=None)
    rows = [json.dumps({"file_name": written.replace("\\\\", "\\"), "text": key}) for key, written in names.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))

    found, _ = samples(tmp_path, caption="jsonl")

    assert {sample.key: sample.captions for sample in found} == {key: (key,) for key in names}


def test_lines_of_a_list_that_are_not_used_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    rows = [{"file_name": "a.jpg", "text": "one"}, {"file_name": "gone.jpg", "text": "x"}, {"file_name": "./a.jpg"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    assert notes(tmp_path, caption="jsonl") == (
        "lines of 'metadata.jsonl' that name no file of the data set: 1, such as 'gone.jpg'; they are not used",
        "lines of 'metadata.jsonl' that name a file that an earlier line names: 1, such as 'a.jpg'; the last one "
        "counts",
    )


def test_a_line_of_a_list_may_hold_any_letter(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    row = json.dumps({"file_name": "a.jpg", "text": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(row, encoding="utf-8")

    assert samples(tmp_path, caption="jsonl")[0][0].captions == ("one\u2028two",)


@pytest.mark.parametrize("text", ['{"file_name": "a.jpg", "text": "\\ud800"}', "[" * 100_000, "9" * 5000])
def test_a_list_that_nobody_can_use_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    (tmp_path / "metadata.jsonl").write_text(text)

    with pytest.raises(DataUnusable, match=r"metadata\.jsonl:1 is not JSON"):
        samples(tmp_path, caption="jsonl")
