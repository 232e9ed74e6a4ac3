from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from st.data.cache.origins import Origins
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.encoder import Encoder, LatentCodec
from st.data.inspect.checking import Findings, check_set, lines
from st.data.media.pixels import Pixels
from st.data.shape.buckets import BatchShape
from st.data.shape.rule import GeometryRule
from st.data.source.folder import FolderBackend, FolderOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from st.data.encoder import Encode
    from st.data.geometry import Geometry


class FiveWords(Encoder):
    """A text encoder that reads five words."""

    name, reads = "five", ("caption",)
    fingerprint = "1"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        raise AssertionError("a check counts tokens without loading an encoder")

    def count_tokens(self, caption: str) -> tuple[int, int]:
        words = len(caption.split())
        return words, min(words, 5)


class Eighths(Pixels, LatentCodec):
    """A codec that is never asked to decode."""

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...]:
        return (3, geometry.height // 8, geometry.width // 8)

    def decoder(self, device: torch.device) -> Any:
        raise NotImplementedError


def png(path: Path, number: int, size: tuple[int, int] = (64, 64), caption: str = "a cat") -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    path.with_suffix(".txt").write_text(caption)


def check(folder: Path, shape: BatchShape | None = None, **options: object) -> Findings:
    backend = FolderBackend(str(folder), FolderOptions())
    settings = DatasetOptions.model_validate({"url": str(folder), "name": "photos", "resolution": 64, **options})
    config = DatasetConfig(settings, backend.options, "file")
    return check_set(
        config, backend, GeometryRule(), Origins(Eighths(), [FiveWords()]), shape=shape or BatchShape(), seed=1
    )


def test_a_good_data_set_has_no_findings(tmp_path: Path) -> None:
    for number in range(4):
        png(tmp_path / f"{number}.png", number)

    found = check(tmp_path)

    assert list(lines(found)) == [
        f"data set 'photos' ({tmp_path}): 4 samples in 1 bucket",
        "           64x64  aspect 1            4  ########################################",
        "  training would start",
    ]


def test_everything_is_decoded(tmp_path: Path) -> None:
    for number in range(4):
        png(tmp_path / f"{number}.png", number)
    damaged = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(damaged[: len(damaged) // 2])

    found = check(tmp_path)

    assert [key for key, _ in found.unreadable] == ["2.png"]
    assert len(found.failures) == 1 and "1 of 4 files cannot be used, such as '2.png'" in found.failures[0]
    assert check(tmp_path, max_unreadable=0.3).failures == []


def test_files_with_the_same_bytes_are_named(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    png(tmp_path / "b.png", 1)
    png(tmp_path / "c.png", 2)

    assert check(tmp_path).doubles == [("a.png", "b.png")]


def test_captions_that_are_empty_or_cut_off_are_named(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1, caption="one two three four five six seven")
    png(tmp_path / "b.png", 2, caption="short")
    png(tmp_path / "c.png", 3, caption="")

    found = check(tmp_path, missing_caption="empty")

    assert found.long == [("a.png", "five", 7, 5)]
    assert found.empty == ["c.png"]


def test_what_would_stop_training_is_said_in_the_words_of_the_run(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1)
    png(tmp_path / "b.png", 2, size=(200, 64))

    found = check(tmp_path, BatchShape(batch=2), align=16)

    assert "data set 'photos': 2 buckets have too few samples to fill a batch." in found.failures[0]
    assert check(tmp_path, BatchShape(batch=2), align=16, role="evaluation").failures == []


def test_a_bucket_that_loses_a_file_to_decoding_is_counted_as_training_counts_it(tmp_path: Path) -> None:
    for number in range(4):
        png(tmp_path / f"{number}.png", number)
    damaged = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(damaged[: len(damaged) // 2])

    found = check(tmp_path, BatchShape(batch=4), max_unreadable=0.5)

    assert len(found.failures) == 1 and "3 samples" in found.failures[0]


def test_everything_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    for number in range(3):
        png(tmp_path / f"{number}.png", number)
    (tmp_path / "1.txt").unlink()
    (tmp_path / "empty.png").write_bytes(b"")
    damaged = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(damaged[: len(damaged) // 2])

    found = check(tmp_path, BatchShape(batch=4))

    said = "\n".join(found.failures)
    assert "'empty.png' (the file is empty)" in said
    assert "1 of 3 samples have no caption: '1.png'" in said
    assert "1 of 3 files cannot be used, such as '2.png'" in said
    assert "too few samples to fill a batch" in said


def test_what_bucket_edges_cut_off_is_said(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 1, size=(90, 64))

    said = list(lines(check(tmp_path)))

    assert said[
        2
    ] == "  note: data set 'photos': 1 samples lose more than 25% of their area at the edges, 'a.png' 29%: " + (
        "their shapes are far from those of the buckets (a smaller align has more shapes; min_aspect and max_aspect "
        "leave them out)"
    )
    assert said[3] == "  cut off at the edges: 29% of the area, at most 29% (a.png)"


def test_what_is_cut_off_is_said_where_twelve_shapes_share_the_one_bucket_of_a_small_resolution(tmp_path: Path) -> None:
    for number in range(12):
        png(tmp_path / f"{number}.png", number, size=(64 + number, 64))

    found = check(tmp_path)

    assert found.prepared is not None
    assert len(found.prepared.buckets) == 1
    assert "  cut off at the edges: 8% of the area, at most 15% (11.png)" in list(lines(found))


def test_a_data_set_that_cannot_be_listed_is_a_failure(tmp_path: Path) -> None:
    found = check(tmp_path / "nothing")

    assert found.prepared is None
    assert "does not exist" in found.failures[0]
    assert next(lines(found)) == "data set 'photos': cannot be used"


def test_long_lists_are_cut_with_their_number(tmp_path: Path) -> None:
    found = Findings("photos", empty=[f"{number}.png" for number in range(30)])

    said = list(lines(found, listed=3))

    assert said[1:] == [
        "  empty captions: 30",
        "    0.png",
        "    1.png",
        "    2.png",
        "    and 27 more (--all lists them)",
        "  training would start",
    ]


@pytest.mark.parametrize("size", [(40, 30)])
def test_what_is_too_small_is_listed_with_its_reason(tmp_path: Path, size: tuple[int, int]) -> None:
    png(tmp_path / "a.png", 1)
    png(tmp_path / "b.png", 2, size=size)

    assert check(tmp_path, minimum_size=64).lost == [("b.png", "too small: 40x30, minimum_size = 64")]
