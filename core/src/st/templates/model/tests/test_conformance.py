"""The family keeps the promises of every family."""

from pathlib import Path

import pytest
from st.testing import ModelFamilyTests, not_applicable

from PACKAGE import CLASS


class TestConformance(ModelFamilyTests):
    test_fingerprint_changes_with_the_checkpoint = not_applicable("codec and text encoder are formulas without weights")
    test_saved_adapter_loads_in_diffusers = not_applicable("this transformer class has no adapter loader upstream")
    test_matches_reference = not_applicable("there is no upstream pipeline of this model to compare with")

    @pytest.fixture
    def family(self, tmp_path: Path) -> CLASS:
        return CLASS.tiny(tmp_path)
