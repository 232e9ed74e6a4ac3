"""Z-Image passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from st.testing import PipelineFamilyTests
from st_z_image import ZImage

# diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class TestZImage(PipelineFamilyTests):
    # The pipeline is not guided at 0 only.
    strengths = (0.0, 3.0)

    @pytest.fixture
    def family(self, tmp_path: Path) -> ZImage:
        return ZImage.tiny(tmp_path / "tiny")

    def combined(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        """Its strength is counted from the wanted answer on."""
        return wanted + strength * (wanted - against)
