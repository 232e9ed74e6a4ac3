"""A family of two streams, and one whose first frame is given, pass the kit."""

from pathlib import Path

import pytest

from st.data.geometry import Geometry
from st.testing import ModelFamilyTests, TinyDuo, not_applicable


class TestTinyDuo(ModelFamilyTests):
    geometries = (Geometry(16, 16, 3), Geometry(16, 24, 2))
    test_saved_adapter_loads_in_diffusers = not_applicable("it is not a diffusers model")
    test_matches_reference = not_applicable("it has no upstream pipeline")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyDuo:
        return TinyDuo.tiny(tmp_path / "tiny")


class TestTinyDuoThatBegins(TestTinyDuo):
    test_sampler_recovers_a_known_flow = not_applicable("its first frame is not sampled")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyDuo:
        made = TinyDuo.tiny(tmp_path / "tiny")
        return TinyDuo(made.options.model_copy(update={"begins": True}))
