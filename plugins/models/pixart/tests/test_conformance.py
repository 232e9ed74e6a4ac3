"""The family keeps the promises of every family, and is held to the upstream pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from st.testing import PipelineFamilyTests, not_applicable
from st_pixart import PixArt

# diffusers warns where the text encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*", "ignore::FutureWarning:diffusers.*")


class TestPixArt(PipelineFamilyTests):
    test_saved_adapter_loads_in_diffusers = not_applicable(
        "upstream's class takes no adapters by itself; test_formats.py loads them with peft"
    )
    # At the last time a hundred-and-fiftieth of the picture is left, and rounding of the first step grows as much.
    reference_tolerance = 2e-3

    @pytest.fixture
    def family(self, tmp_path: Path) -> PixArt:
        options = PixArt.tiny(tmp_path / "tiny").options
        return PixArt(options.model_copy(update={"text_precision": "fp32"}))

    def times(self, scheduler: Any) -> Sequence[float]:
        return [*((float(index) + 1) / 1000 for index in scheduler.timesteps), 0.0]
