"""Folders far away: nothing is read twice that can be kept, and an outage is no missing file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from st.data.source.remote import RemoteFolderBackend
from st.data.store.store import Store
from st.errors import SampleUnreadable, StoreUnreachable
from st.options import Options
from st.testing.runs import write_photos


class Distant(MemoryFileSystem):
    """A filesystem that counts reads, and may be away."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.reads: list[str] = []
        self.away = False

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        if self.away:
            raise ConnectionError("no route to host")
        if start is None:
            self.reads.append(path.rpartition("/")[2])
        data: bytes = super().cat_file(path, start, end, **options)
        return data


class Far(RemoteFolderBackend):
    """Read what is far away."""

    filesystem: ClassVar = Distant()
    versions: ClassVar[dict[str, str]] = {}

    @classmethod
    def open_store(cls, url: str, options: Options) -> Store:
        return Store(cls.filesystem, "/" + url.partition(":")[2], pause=lambda seconds: None)

    def version(self, store: Store, key: str) -> str:
        return self.versions.get(key, "1")


@pytest.fixture
def filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distant:
    """Four pictures, far away."""
    distant = Distant()
    for file in write_photos(tmp_path / "photos").iterdir():
        distant.pipe_file(f"photos/{file.name}", file.read_bytes())
    monkeypatch.setattr(Far, "filesystem", distant)
    monkeypatch.setattr(Far, "versions", {})
    return distant


def far(**options: object) -> Far:
    return Far("far:photos", Far.Options.model_validate(options))


def test_media_are_read_once_where_copies_are_kept(filesystem: Distant, tmp_path: Path) -> None:
    expected = far().read("0.png")
    filesystem.reads.clear()

    for _ in range(3):
        assert far(local=str(tmp_path / "copies")).read("0.png") == expected
    assert filesystem.reads == ["0.png"]


def test_another_version_is_read_again(filesystem: Distant, tmp_path: Path) -> None:
    backend = far(local=str(tmp_path / "copies"))
    backend.read("0.png")
    filesystem.pipe_file("photos/0.png", b"changed")
    Far.versions["0.png"] = "2"

    assert backend.read("0.png") == b"changed"


def test_what_has_no_version_is_not_kept(filesystem: Distant, tmp_path: Path) -> None:
    Far.versions["0.png"] = ""
    far(local=str(tmp_path / "copies")).read("0.png")

    assert not (tmp_path / "copies").exists()


def test_an_outage_is_not_a_data_set_with_fewer_files(filesystem: Distant) -> None:
    backend = far()
    filesystem.away = True

    with pytest.raises(StoreUnreachable, match="no route to host"):
        backend.read("0.png")
    with pytest.raises(StoreUnreachable, match="no route to host"):
        list(backend.samples(lambda key, reason: pytest.fail(f"{key} was left out")))


def test_an_absent_file_is_one_sample(filesystem: Distant, tmp_path: Path) -> None:
    for backend in (far(), far(local=str(tmp_path / "copies"))):
        with pytest.raises(SampleUnreadable, match="the file is gone"):
            backend.read("absent.png")


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_companions_may_lie_on_this_machine(filesystem: Distant, tmp_path: Path, form: str) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for number in range(4):
        (masks / f"{number}.png").write_bytes(b"mask")

    backend = far(masks=form.format(masks), local=str(tmp_path / "copies"))
    sample = next(backend.samples(lambda key, reason: None))

    assert backend.read(sample.extras["mask"]) == b"mask"
