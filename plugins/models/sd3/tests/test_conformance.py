"""Stable Diffusion 3 passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusion3Pipeline
from torch import nn

from st.testing import PipelineFamilyTests
from st_sd3 import Sd3, Sd3Options
from st_sd3.tiny import write_tiny

# diffusers warns where a tokenizer or the image encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class HeldToThePipeline(PipelineFamilyTests):
    def unshifted(self, steps: int, scheduler: Any) -> Sequence[float]:
        """Evenly from 1 to the smallest time of the scheduler's table, which is a shifted one."""
        return [*np.linspace(1, float(scheduler.sigma_min), steps).tolist(), 0.0]


class TestSd35(HeldToThePipeline):
    @pytest.fixture
    def family(self, tmp_path: Path) -> Sd3:
        return Sd3.tiny(tmp_path / "tiny")


@pytest.mark.alone
class TestSd3WithoutT5(HeldToThePipeline):
    """The layout of 3 medium; a checkpoint that has no T5."""

    @pytest.fixture
    def upstream(self, family: Sd3, denoiser: nn.Module) -> Any:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            family.folder.location, text_encoder_3=None, tokenizer_3=None, transformer=denoiser
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @pytest.fixture
    def family(self, tmp_path: Path) -> Sd3:
        write_tiny(tmp_path / "tiny", newer=False, with_t5=False)
        return Sd3(
            Sd3Options(flavour="medium", checkpoint=str(tmp_path / "tiny"), max_tokens=48, text_precision="fp32")
        )
