"""A bucket as a data set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from st.errors import StError, StoreUnreachable
from st.testing import DataBackendTests
from st.testing.subjects.network import SpoilingProxy
from st_s3 import S3


class TestConformance(DataBackendTests):
    plugin = "s3"

    @pytest.fixture
    def backend(self, photos: str, proxy: SpoilingProxy) -> S3:
        return S3(photos, S3.Options(endpoint=proxy.endpoint))


def test_importing_it_imports_no_client_library() -> None:
    code = (
        "import st_s3, sys; print([name for name in ('s3fs', 'botocore', 'aiohttp', 'torch') if name in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_captions_masks_and_references_lie_beside_the_pictures(
    photos: str, proxy: SpoilingProxy, put: Callable[..., None]
) -> None:
    bucket = photos.removeprefix("s3://").partition("/")[0]
    for number in range(4):
        put(f"{bucket}/photos/masks/{number}.png", f"mask {number}".encode())
        put(f"{bucket}/edges/{number}.jpg", f"edges {number}".encode())
    companions = {"masks": f"{photos}/masks", "references": f"s3://{bucket}/edges"}

    backend = S3(photos, S3.Options(endpoint=proxy.endpoint, **companions))
    samples = list(backend.samples(lambda key, reason: pytest.fail(reason)))

    assert [sample.key for sample in samples] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(len(sample.captions) == 1 for sample in samples)
    assert backend.read(samples[2].extras["mask"]) == b"mask 2"
    assert backend.read(samples[3].extras["reference"]) == b"edges 3"


def test_an_empty_prefix_says_what_is_there(bucket: str, proxy: SpoilingProxy, put: Callable[..., None]) -> None:
    put(f"{bucket}/x/readme.md", b"no picture")

    with pytest.raises(StError, match="holds no pictures") as raised:
        list(S3(f"s3://{bucket}/x", S3.Options(endpoint=proxy.endpoint)).samples(lambda key, reason: None))

    assert ".md" in str(raised.value)


def test_an_outage_leaves_no_sample_out(photos: str, proxy: SpoilingProxy) -> None:
    backend = S3(photos, S3.Options(endpoint=proxy.endpoint, attempts=1))
    keys = [sample.key for sample in backend.samples(lambda key, reason: None)]
    backend.store._pause = lambda seconds: None
    proxy.kinds, proxy.share = ("500",), 1.0

    with pytest.raises(StoreUnreachable):
        backend.read(keys[0])


def test_media_are_fetched_once_where_copies_are_kept(photos: str, proxy: SpoilingProxy, tmp_path: Path) -> None:
    def fetched() -> list[str]:
        return [line for line in proxy.lines if line.startswith("GET") and ".png" in line]

    options = S3.Options(endpoint=proxy.endpoint, local=str(tmp_path / "copies"))
    first = S3(photos, options).read("0.png")
    before = fetched()

    again = S3(photos, options).read("0.png")

    assert again == first == (tmp_path / "originals" / "0.png").read_bytes()
    assert len(before) == 1 and fetched() == before


def test_an_object_that_changed_is_fetched_again(photos: str, proxy: SpoilingProxy, tmp_path: Path) -> None:
    backend = S3(photos, S3.Options(endpoint=proxy.endpoint, local=str(tmp_path / "copies")))
    backend.read("0.png")

    backend.store.write("0.png", b"changed")

    assert backend.read("0.png") == b"changed"
