"""Copies on this machine: whole or not there, within their budget, and never in the way."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from st.data.store.copies import CHECKSUM_BYTES, LocalCopies


def refused() -> bytes:
    raise AssertionError("fetched although there is a copy")


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_fetched_once_is_read_from_the_copy(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 1000)

    assert copies.read("a", "1", lambda: b"bytes") == b"bytes"
    assert copies.read("a", "1", refused) == b"bytes"
    assert LocalCopies(tmp_path, 1000).read("a", "1", refused) == b"bytes"


def test_another_version_is_fetched(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 1000)
    copies.read("a", "1", lambda: b"old")

    assert copies.read("a", "2", lambda: b"new") == b"new"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, damage: bytes) -> None:
    copies = LocalCopies(tmp_path, 1000)
    copies.read("a", "1", lambda: b"bytes")
    kept(tmp_path)[0].write_bytes(damage)

    assert copies.read("a", "1", lambda: b"bytes") == b"bytes"
    assert copies.read("a", "1", refused) == b"bytes"


def test_copies_take_no_more_than_their_budget(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 1000)

    for number in range(100):
        copies.read(f"{number}", "1", lambda: b"x" * 50)
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= 1000


def test_what_was_read_longest_ago_makes_room(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 3 * (100 + CHECKSUM_BYTES))
    for age, name in ((300, "old"), (200, "older"), (100, "new")):
        before = set(kept(tmp_path))
        copies.read(name, "1", lambda: b"x" * 100)
        (made,) = set(kept(tmp_path)) - before
        os.utime(made, (time.time() - age,) * 2)
    copies.read("old", "1", refused)

    copies.read("newest", "1", lambda: b"x" * 100)

    assert copies.read("old", "1", refused) == b"x" * 100
    assert copies.read("older", "1", lambda: b"again") == b"again"


def test_what_is_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 100)

    assert copies.read("a", "1", lambda: b"x" * 100) == b"x" * 100
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    copies = LocalCopies(tmp_path / "file" / "below", 1000)

    assert copies.read("a", "1", lambda: b"bytes") == b"bytes"


def test_threads_share_one_folder(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 600)
    names = [f"{number % 10}" for number in range(400)]

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: copies.read(name, "1", lambda: name.encode() * 50), names))

    assert read == [name.encode() * 50 for name in names]
    assert sum(path.stat().st_size for path in kept(tmp_path)) <= 600
