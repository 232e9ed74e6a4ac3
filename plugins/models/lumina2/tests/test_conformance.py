"""Lumina 2 passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from st.testing import PipelineFamilyTests
from st_lumina2 import Lumina2

# diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class TestLumina2(PipelineFamilyTests):
    @pytest.fixture
    def family(self, tmp_path: Path) -> Lumina2:
        return Lumina2.tiny(tmp_path / "tiny")

    def combined(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        """Each row of latents stays as long as it is without guidance."""
        both = against + strength * (wanted - against)
        return both * wanted.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True)
