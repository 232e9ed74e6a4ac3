"""The kit's own family passes the kit."""

from pathlib import Path

import pytest

from st.testing import ModelFamilyTests, TinyFamily, not_applicable


class TestTinyFamily(ModelFamilyTests):
    test_saved_adapter_loads_in_diffusers = not_applicable("it is not a diffusers model")
    test_matches_reference = not_applicable("it has no upstream pipeline")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyFamily:
        return TinyFamily.tiny(tmp_path / "tiny")
