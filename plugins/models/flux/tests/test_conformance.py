"""Flux passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st.testing import ModelFamilyTests
from st_flux import Flux

# diffusers warns where a tokenizer or the image encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class TestFlux(ModelFamilyTests):
    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux:
        return Flux.tiny(tmp_path / "tiny")

    @pytest.fixture
    def reference(self, make_upstream: Callable[..., Any]) -> Any:
        return lambda denoiser, batch, noise: make_upstream(denoiser=denoiser).latents(batch.conditions, noise)
