"""The backend keeps the promises of every backend, and its own."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import st
from PIL import Image
from st.testing import DataBackendTests

from PACKAGE import CLASS


def archive(file: Path) -> Path:
    """A zip file of two pictures, one of them with a caption, and one file that is no picture inside."""
    picture = BytesIO()
    Image.new("RGB", (96, 64), "teal").save(picture, "PNG")
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("first.png", picture.getvalue())
        out.writestr("first.txt", "a teal rectangle")
        out.writestr("more/second.png", picture.getvalue())
        out.writestr("broken.png", b"not a picture")
    return file


class TestConformance(DataBackendTests):
    plugin = "PLUGIN"

    @pytest.fixture
    def backend(self, tmp_path: Path) -> CLASS:
        return CLASS(f"PLUGIN:{archive(tmp_path / 'photos.zip')}", CLASS.Options())


def test_folder_leaves_out_what_lies_beside_it(tmp_path: Path) -> None:
    backend = CLASS(f"PLUGIN:{archive(tmp_path / 'photos.zip')}", CLASS.Options(folder="more/"))

    assert [sample.key for sample in backend.samples(lambda key, reason: None)] == ["more/second.png"]


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    backend = CLASS(f"PLUGIN:{archive(tmp_path / 'photos.zip')}", CLASS.Options())
    named: list[str] = []

    list(backend.samples(lambda key, reason: named.append(key)))

    assert named == ["broken.png"]


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(st.StError, match="cannot be read"):
        CLASS(f"PLUGIN:{tmp_path / 'absent.zip'}", CLASS.Options())
