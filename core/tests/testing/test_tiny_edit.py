"""A family whose text encoder looks at references passes the kit."""

from pathlib import Path

import pytest

from st.testing import ModelFamilyTests, TinyEdit, not_applicable


class TestTinyEdit(ModelFamilyTests):
    test_saved_adapter_loads_in_diffusers = not_applicable("it is not a diffusers model")
    test_matches_reference = not_applicable("it has no upstream pipeline")

    @pytest.fixture
    def family(self, tmp_path: Path) -> TinyEdit:
        return TinyEdit.tiny(tmp_path / "tiny")
