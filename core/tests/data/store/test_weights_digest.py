from __future__ import annotations

import os
from pathlib import Path

import pytest

from st.data.store import weights_digest as module
from st.data.store.weights_digest import weights_digest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "PIECE_BYTES", 1000)
    return tmp_path / "home"


def settled() -> float:
    """A time at which the files of a test are old."""
    return 1e11


def weights(path: Path, changed: int | None = None) -> Path:
    data = bytearray(range(256)) * 400
    if changed is not None:
        data[changed] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("changed", [0, 999, 1000, 54_321, 102_399])
def test_one_changed_bit_anywhere_is_another_digest(tmp_path: Path, home: Path, changed: int) -> None:
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b", changed)

    assert weights_digest(one) == weights_digest(weights(tmp_path / "c"))
    assert weights_digest(one) != weights_digest(other)


def test_a_file_that_has_not_changed_is_not_read_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path / "a")
    made = weights_digest(path, settled)
    monkeypatch.setattr(module, "_digest", lambda path, size_bytes: pytest.fail("it is read again"))

    assert weights_digest(path, settled) == made


def test_a_file_in_its_place_with_its_size_and_time_is_read(tmp_path: Path, home: Path) -> None:
    path = weights(tmp_path / "a")
    status, made = path.stat(), weights_digest(path, settled)

    weights(path, changed=5)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert weights_digest(path, settled) != made


def test_what_was_changed_just_now_is_not_kept(tmp_path: Path, home: Path) -> None:
    weights_digest(weights(tmp_path / "a"))

    assert not home.exists()


def test_a_damaged_note_of_a_digest_is_not_believed(tmp_path: Path, home: Path) -> None:
    path = weights(tmp_path / "a")
    made = weights_digest(path, settled)
    (note,) = (home / "st" / "weights").iterdir()
    note.write_text(note.read_text().replace(made, "0" * 32))

    assert weights_digest(path, settled) == made


def test_a_home_that_cannot_be_written_changes_no_answer(tmp_path: Path, home: Path) -> None:
    home.write_text("a file")

    assert weights_digest(weights(tmp_path / "a"), settled) == weights_digest(weights(tmp_path / "b"), settled)
