import errno
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from st.data.store.store import Store
from st.errors import OutputUnwritable, StoreUnreachable, StoreUnreadable


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store.at(str(tmp_path / "store"))
    return Store.at(f"memory://{tmp_path.name}")


class Flaky(MemoryFileSystem):
    """A filesystem that does not answer the first few times."""

    cachable = False

    def __init__(self, failures: int, error: Exception) -> None:
        super().__init__()
        self.failures, self.error = failures, error

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        if self.failures:
            self.failures -= 1
            raise self.error
        return b"answer"


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")

    assert store.read("a/b.bin") == b"0123456789"
    assert store.read_range("a/b.bin", 2, 3) == b"234"
    assert store.read_range("a/b.bin", 8, 100) == b"89"
    assert store.exists("a/b.bin") and not store.exists("a/c.bin")


def test_writing_again_replaces(store: Store) -> None:
    store.write("a", b"old")
    store.write("a", b"new")

    assert store.read("a") == b"new"


def test_creating_what_is_there_is_refused(store: Store) -> None:
    store.create("a/b", b"first")

    with pytest.raises(FileExistsError):
        store.create("a/b", b"second")

    assert store.read("a/b") == b"first"


def test_what_is_missing_is_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("nothing")

    store.delete("nothing")
    assert list(store.list()) == []


def test_a_listing_has_every_visible_object_below_its_prefix(store: Store) -> None:
    for key in ("a.jpg", "x/b.jpg", "x/y/c.jpg", ".hidden", "x/.trash/d.jpg", "xx/e.jpg"):
        store.write(key, b"123")

    assert sorted(entry.key for entry in store.list()) == ["a.jpg", "x/b.jpg", "x/y/c.jpg", "xx/e.jpg"]
    assert sorted(entry.key for entry in store.list("x")) == ["x/b.jpg", "x/y/c.jpg"]
    assert all(entry.size_bytes == 3 and entry.modified > 0 for entry in store.list())


def test_deleted_objects_are_gone(store: Store) -> None:
    store.write("a", b"1")
    store.delete("a")

    assert not store.exists("a")


@pytest.mark.parametrize("url", ["{}", "file:{}", "file://{}"])
def test_plain_paths_and_file_urls_are_the_same_store(tmp_path: Path, url: str) -> None:
    (tmp_path / "a").write_bytes(b"1")

    store = Store.at(url.format(tmp_path))

    assert store.read("a") == b"1"
    assert store.local("a") == tmp_path / "a"


def test_only_a_disk_has_local_files(tmp_path: Path) -> None:
    assert Store.at(f"memory://{tmp_path.name}").local("a") is None


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at(str(tmp_path))
    store.write("a", b"old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputUnwritable, match="no space left on device"):
        store.write("a", b"new")

    assert store.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_store_without_hard_links_still_creates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    store = Store.at(str(tmp_path))
    store.create("a", b"first")

    with pytest.raises(FileExistsError):
        store.create("a", b"second")

    assert store.read("a") == b"first"


def test_links_that_lead_back_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"1")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "another").symlink_to(tmp_path / "real")

    assert [entry.key for entry in Store.at(str(tmp_path)).list()] == ["real/a.jpg"]


def test_folders_elsewhere_are_reached_through_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")

    assert [entry.key for entry in Store.at(str(tmp_path / "data")).list()] == ["link/a.jpg"]


def test_a_link_to_nothing_is_listed_and_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone")
    store = Store.at(str(tmp_path))

    assert [entry.key for entry in store.list()] == ["a.jpg"]
    with pytest.raises(FileNotFoundError):
        store.read("a.jpg")


def test_errors_that_pass_are_tried_again_with_growing_pauses() -> None:
    pauses: list[float] = []
    store = Store(Flaky(3, ConnectionResetError("reset")), "x", pause=pauses.append)

    assert store.read("a") == b"answer"
    assert pauses == sorted(pauses) and len(pauses) == 3


def test_a_store_that_never_answers_is_named() -> None:
    store = Store(Flaky(99, TimeoutError("timed out")), "bucket", pause=lambda seconds: None)

    with pytest.raises(StoreUnreachable, match="'a' cannot be read from memory://bucket"):
        store.read("a")


def test_errors_of_a_client_library_pass_only_where_it_is_named() -> None:
    class Throttled(Exception):
        pass

    named = Store(Flaky(1, Throttled()), "x", transient=(Throttled,), pause=lambda seconds: None)

    assert named.read("a") == b"answer"
    with pytest.raises(Throttled):
        Store(Flaky(1, Throttled()), "x").read("a")


def test_errors_that_stay_are_not_tried_again() -> None:
    store = Store(Flaky(1, PermissionError("denied")), "x", pause=lambda seconds: pytest.fail("paused"))

    with pytest.raises(StoreUnreadable, match="denied"):
        store.read("a")


def test_a_disk_does_not_hide_behind_pauses(tmp_path: Path) -> None:
    store = Store(LocalFileSystem(), str(tmp_path), pause=lambda seconds: pytest.fail("paused"))
    (tmp_path / "folder").mkdir()

    with pytest.raises(StoreUnreadable):
        store.read("folder")
