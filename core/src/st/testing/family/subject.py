"""FamilyTests: the family that a conformance class is about, and what its tests are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from st.data.geometry import Geometry
from st.testing.declared import Conformance
from st.testing.examples import awake_denoiser, example_batch, example_noised

if TYPE_CHECKING:
    from torch import nn

    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily


class FamilyTests(Conformance):
    """Fixtures that all tests of a family share: a tiny denoiser in float32 on the CPU, and a batch of two."""

    geometries: ClassVar[tuple[Geometry, ...]] = (Geometry(64, 64), Geometry(64, 96))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each size, where a test asks for one."""
        if "geometry" in metafunc.fixturenames:
            metafunc.parametrize("geometry", self.geometries, ids=str)

    @pytest.fixture
    def family(self) -> ModelFamily[Any]:
        """The tiny family under test; every subclass gives its own."""
        raise NotImplementedError("give the test class a `family` fixture that returns YourFamily.tiny(tmp_path)")

    @pytest.fixture
    def denoiser(self, family: ModelFamily[Any]) -> nn.Module:
        """The family's denoiser, awake and frozen, in eval mode."""
        return awake_denoiser(family)

    @pytest.fixture
    def batch(self, family: ModelFamily[Any]) -> Batch:
        """Two samples of the first size, with captions of different lengths."""
        return example_batch(family, self.geometries[0])

    @pytest.fixture
    def noised(self, family: ModelFamily[Any], batch: Batch) -> Noised:
        """The batch on its way to noise, each sample at a time of its own."""
        return example_noised(family, batch)
