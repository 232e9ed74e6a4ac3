"""Flux passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from st.model.pipelines.packing import unpack
from st.testing import PipelineFamilyTests
from st_flux import Flux

# diffusers warns where a tokenizer or the image encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class TestFlux(PipelineFamilyTests):
    # A distilled model is told a strength: test_parity.py.
    strengths = (1.0,)

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux:
        return Flux.tiny(tmp_path / "tiny")

    def ours(self, latents: Tensor) -> Tensor:
        return unpack(latents, self.size.height // 8, self.size.width // 8)
