"""DataBackendTests: what every backend promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from st.errors import SampleUnreadable
from st.testing.plugins import PluginTests

if TYPE_CHECKING:
    from st.data.backend import DataBackend
    from st.data.sample import Sample


class DataBackendTests(PluginTests):
    """Subclass it beside a ``backend`` fixture that answers a backend with at least two samples."""

    @pytest.fixture
    def backend(self) -> DataBackend:
        """The backend under test; every subclass gives its own."""
        raise NotImplementedError("give the test class a `backend` fixture with at least two samples")

    def test_it_has_samples(self, backend: DataBackend) -> None:
        assert len(self.samples(backend)) >= 2

    def test_keys_are_unique(self, backend: DataBackend) -> None:
        keys = [sample.key for sample in self.samples(backend)]

        assert len(set(keys)) == len(keys)

    def test_order_is_stable(self, backend: DataBackend) -> None:
        assert self.samples(backend) == self.samples(backend)

    def test_every_sample_can_be_read(self, backend: DataBackend) -> None:
        assert [sample.key for sample in self.samples(backend) if not backend.read(sample.key)] == []

    def test_extras_can_be_read(self, backend: DataBackend) -> None:
        extras = [key for sample in self.samples(backend) for key in sample.extras.values()]

        assert [key for key in extras if not backend.read(key)] == []

    def test_sizes_are_those_of_the_pictures(self, backend: DataBackend) -> None:
        from PIL import Image, ImageOps

        for sample in self.samples(backend):
            if sample.media.kind == "image":
                with Image.open(BytesIO(backend.read(sample.key))) as stored:
                    picture = ImageOps.exif_transpose(stored)
                assert (sample.media.width, sample.media.height) == picture.size, sample.key

    def test_an_absent_key_is_named(self, backend: DataBackend) -> None:
        with pytest.raises(SampleUnreadable) as raised:
            backend.read("no/such/key.png")

        assert raised.value.key == "no/such/key.png"

    def test_threads_read_the_same_bytes(self, backend: DataBackend) -> None:
        keys = [sample.key for sample in self.samples(backend)] * 8
        expected = [backend.read(key) for key in keys]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(backend.read, keys)) == expected

    def samples(self, backend: DataBackend) -> list[Sample]:
        """Every sample that can be used."""
        return list(backend.samples(lambda key, reason: None))
