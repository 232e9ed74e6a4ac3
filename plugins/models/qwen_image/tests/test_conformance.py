"""Qwen-Image passes what every model family passes, and is held to the upstream pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from st.model.pipelines.packing import unpack
from st.testing import PipelineFamilyTests
from st_qwen_image import QwenImage

# diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class TestQwenImage(PipelineFamilyTests):
    @pytest.fixture
    def family(self, tmp_path: Path) -> QwenImage:
        return QwenImage.tiny(tmp_path / "tiny")

    def ours(self, latents: Tensor) -> Tensor:
        return unpack(latents, self.size.height // 8, self.size.width // 8)
